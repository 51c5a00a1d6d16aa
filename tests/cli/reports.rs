//! What `bench` and `report` say of their files, and that the README shows what the tool writes.

use std::fs;
use std::path::Path;

use crate::machine::Machine;

const RESULTS: &str = "benches/results/h100/bench.json";
const PEERS: &str = "benches/peers/h100.json";

/// `autotune report` as somebody in the checkout gives it.
fn report(machine: &Machine, words: &[&str]) -> String {
    let mut command = machine.command(&[&["report", RESULTS], words].concat());
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    let said = crate::machine::Said::by(command);
    assert_eq!(said.code(), 0, "{said:?}");
    said.stdout
}

#[test]
fn the_readme_shows_what_the_tool_writes() {
    let machine = Machine::new();
    let committed = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let copy = machine.path("README.md");
    fs::write(&copy, &committed).unwrap();
    report(&machine, &["--peers", PEERS, "--readme", copy.to_str().unwrap()]);
    assert!(fs::read_to_string(&copy).unwrap() == committed, "`autotune report` writes another README");
    for words in [RESULTS, "The best peer is the fastest with BF16 activations", "humming-mxfp4-a8 18.95 (a8) |"] {
        assert!(committed.contains(words), "{words}");
    }
}

#[test]
fn a_table_tells_peers_with_8_bit_activations_apart() {
    let machine = Machine::new();
    let row = |words: &[&str], problem: &str| {
        let table = report(&machine, words);
        table.lines().find(|line| line.starts_with(&format!("| {problem} |"))).unwrap().to_string()
    };
    assert!(row(&[], "mxfp4 8192x8192 m1").contains("| triton_kernels-mxfp4 49.89 | 0.32 |"));
    let beside = "| triton_kernels-mxfp4 49.89, humming-mxfp4-a8 18.95 (a8) | 0.32 |";
    assert!(row(&["--peers", PEERS], "mxfp4 8192x8192 m1").contains(beside));
    assert!(row(&["--peers", PEERS], "fp8 4096x4096 m1").contains("| cublas-fp8 9.46 (a8) | 0.96 |"));
}

#[test]
fn files_that_cannot_be_read_or_written_have_a_hint() {
    let machine = Machine::new();
    machine.run(&["report", "none.json"]).refuses(1, "expected a file at `none.json`, found nothing", "bench --out");
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join(RESULTS);
    let results = results.to_str().unwrap();
    machine.run(&["report", results, "--readme", "none.md"]).refuses(1, "found nothing", "README");
    machine.run(&["report", results, "--peers", "none.json"]).refuses(2, "none.json: ", PEERS);
    fs::write(machine.path("other.json"), "{}").unwrap();
    machine.run(&["report", "other.json"]).refuses(2, "expected a report of `autotune bench`", "benches/results/");
}
