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
    let ratio = |weights, size, peer_us: f64| format!("{:.2}", own_us(weights, size, "unchained_us") / peer_us);
    let mxfp4 = ratio("mxfp4", 8192, 49.891);
    let beside = format!("| triton_kernels-mxfp4 49.89, humming-mxfp4-a8 18.95 (a8) | {mxfp4} |");
    for words in [&[][..], &["--peers", PEERS]] {
        assert!(row(words, "mxfp4 8192x8192 m1").contains(&beside), "{words:?}");
    }
    let beside = format!("| cublas-fp8 9.46 (a8) | {} |", ratio("fp8", 4096, 9.465));
    assert!(row(&["--peers", PEERS], "fp8 4096x4096 m1").contains(&beside));
}

#[test]
fn files_that_cannot_be_read_or_written_have_a_hint() {
    let machine = Machine::new();
    machine.run(&["report", "none.json"]).refuses(1, "expected a file at `none.json`, found nothing", "bench --out");
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join(RESULTS);
    let results = results.to_str().unwrap();
    machine.run(&["report", results, "--readme", "none.md"]).refuses(1, "found nothing", "README");
    machine.run(&["report", results, "--peers", "none.json"]).refuses(
        1,
        "expected a file at `none.json`, found nothing",
        PEERS,
    );
    for words in [["--readme", "none.md"], ["--runner", "none.json"]] {
        let regimes: &[&str] = if words[0] == "--runner" { &["--regimes"] } else { &[] };
        let said = machine.run(&[&["report", results, "--json"], regimes, &words].concat());
        said.refuses(2, "expected `--json` with rows or `--regimes`", "--json");
    }
    fs::write(machine.path("other.json"), "{}").unwrap();
    machine.run(&["report", "other.json"]).refuses(2, "expected a report of `autotune bench`", "benches/results/");
    machine.run(&["report", results, "--peers", "other.json"]).refuses(2, "other.json: expected `meta.gpu`", PEERS);
}

#[test]
fn goals_are_held_against_peers_of_the_same_run() {
    let machine = Machine::new();
    let script = r#"{"device": "NVIDIA H100 80GB HBM3", "torch": "2.11", "rows": [
        {"peer": "humming-nvfp4-a16", "m": 1, "n": 8192, "k": 8192, "us": 1.0, "mode": "graph"}]}"#;
    let same_run = machine.path("humming.json");
    fs::write(&same_run, script).unwrap();
    let same_run = same_run.to_str().unwrap();
    let table = report(&machine, &["--peers", PEERS, "--peers", same_run]);
    assert!(table.contains("but for those marked `same run`"), "{table}");
    assert!(table.contains("humming-nvfp4-a16 1.00 (same run)"), "{table}");
    let goals = report(&machine, &["--peers", PEERS, "--peers", same_run, "--regimes"]);
    let said = report(&machine, &["--peers", PEERS, "--regimes", "--json"]);
    let standings: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(standings.as_array().unwrap().iter().any(|goal| goal["found"][0]["is_reached"] == true), "{said}");
    let not_slower = "| dense 4-bit, 1 to 16 tokens | no problem slower than the best peer |";
    let line = goals.lines().find(|line| line.starts_with(not_slower)).unwrap();
    let worst = format!("nvfp4 8192x8192 m1: {:.2}x", 1.0 / own_us("nvfp4", 8192, "chained_us"));
    assert!(line.contains(&worst) && line.ends_with("| no |"), "{line}");
}

#[test]
fn a_whole_model_has_goals_of_its_own() {
    let machine = Machine::new();
    let goals = report(&machine, &["--regimes", "--runner", "benches/results/h100/dsv4_flash.json"]);
    let of_cell = |line: &&str| line.starts_with("| context 8192, batch 1 | ") && line.contains(" % | ");
    assert_eq!(goals.lines().filter(of_cell).count(), 2, "{goals}");
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join(RESULTS);
    let results = results.to_str().unwrap();
    let hint = "benches/results/";
    machine.run(&["report", results, "--regimes", "--runner", results]).refuses(2, "of `dsv4 bench`, found", hint);
}

#[test]
fn a_suite_is_listed_without_a_gpu() {
    let machine = Machine::new();
    let list = |words: &[&str]| {
        let problems = machine.json(&[&["bench", "--list"], words].concat());
        problems.as_array().unwrap().iter().map(|problem| problem.as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    let all = list(&["--suite", "hopper"]);
    for problem in ["nvfp4 1536x4096 m1", "nvfp4 8192x8192 m8192", "moe nvfp4 384/384 top6 7168x3072 m8192"] {
        assert!(all.iter().any(|listed| listed == problem), "{problem}");
    }
    let some = list(&["--suite", "hopper", "--only", "moe nvfp4,head", "--m", "1,4096"]);
    let heads = ["bf16 129280x4096 f32 m1", "bf16 129280x7168 f32 m1"].map(str::to_string);
    assert!(some.len() == 6 && heads.iter().all(|head| some.contains(head)), "{some:?}");
    let chain = list(&["--chain", "attention", "--m", "16"]);
    assert!(chain.contains(&"fp8 8x1024x4096 m16".to_string()), "{chain:?}");
    let hint = "--suite hopper --list";
    machine.run(&["bench", "--suite", "ampere", "--list"]).refuses(2, "expected the name of a suite (hopper)", hint);
    machine.run(&["bench", "--suite", "hopper", "--only", "none", "--list"]).refuses(2, "found `none`", hint);
    machine.run(&["bench", "--suite", "hopper", "--chain", "attention"]).refuses(2, "", "--help");
}

/// What the committed results have of the plain square product of one token.
fn own_us(weights: &str, size: u64, which: &str) -> f64 {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(RESULTS);
    let results: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let is_it = |row: &&serde_json::Value| {
        let dense = &row["problem"]["dense"];
        let numbers = ["n", "k", "m", "groups"].map(|name| dense[name].as_u64());
        let words = ["weights", "activations", "epilogue"].map(|name| dense[name].as_str());
        numbers == [size, size, 1, 1].map(Some) && words == [weights, "a16", "plain"].map(Some)
    };
    results["rows"].as_array().unwrap().iter().find(is_it).unwrap()[which].as_f64().unwrap()
}
