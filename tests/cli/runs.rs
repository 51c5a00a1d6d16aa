//! The main job where there is no GPU: it stops when it is told to, goes on where it was, and compiles nothing twice.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tilekiln::codegen::Source;
use tilekiln::jit::{Jit, JitError, KernelCache, Nvrtc, Search};
use tilekiln::store::{Database, Origin, Record};

use crate::machine::{Machine, Said, current_record, ends_within};

#[test]
fn ctrl_c_ends_a_run_within_a_moment_and_the_same_command_goes_on() {
    let machine = Machine::cold();
    let words = ["--model", "dsv4", "--only", "wq_b", "--compile-threads", "1"];
    let mut child = machine.command(&words).spawn().unwrap();
    let started = Instant::now();
    while machine.kernels().len() < 8 {
        assert!(child.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    let cut = ends_within(child, Duration::from_secs(2));
    assert_eq!(cut.code(), 3, "{cut:?}");
    let predicted = number_before(&cut, " problems predicted");
    assert!(predicted > 0 && number_before(&cut, " left;") > 0, "{cut:?}");
    assert_eq!(winners(&machine), predicted);

    let whole = machine.run(&words);
    assert_eq!(whole.code(), 0, "{whole:?}");
    assert_eq!((number_before(&whole, " problems predicted"), winners(&machine)), (28, 28));
    let compiled = number_before(&cut, " kernels compiled") + number_before(&whole, " kernels compiled");
    assert_eq!(compiled, machine.kernels().len(), "a kernel was compiled twice: {cut:?} {whole:?}");
}

#[test]
fn a_spent_budget_is_a_run_done_in_part() {
    let machine = Machine::cold();
    let started = Instant::now();
    let said = machine.run(&["--model", "dsv4", "--budget", "1s", "--json"]);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(said.code(), 3, "{said:?}");
    assert!(said.stderr.ends_with("the same command goes on where this one stopped\n"), "{said:?}");
    let answer: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(answer["records"].as_array().unwrap().len(), winners(&machine));
}

#[test]
fn a_cache_that_cannot_be_written_is_one_warning_and_nothing_is_compiled_twice() {
    let machine = Machine::cold();
    std::fs::write(machine.path("cache"), "in the way").unwrap();
    let said = machine.run(&["--problem", "nvfp4 64x64", "--m", "1,2,4,8", "--gpu", "h100"]);
    assert_eq!(said.code(), 0, "{said:?}");
    let warnings: Vec<&str> = said.stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
    let [first, more] = warnings[..] else { panic!("{said:?}") };
    assert!(first.contains(" could not be kept in ") && more.contains(" more kernels could not be kept"), "{said:?}");
    let compiled = number_before(&said, " kernels compiled");
    assert!(compiled >= 2 && compiled == number_before(&said, " more kernels") + 1, "{said:?}");
    let warm = Machine::cold();
    let said = warm.run(&["--problem", "nvfp4 64x64", "--m", "1,2,4,8", "--gpu", "h100"]);
    assert_eq!((number_before(&said, " kernels compiled"), warm.kernels().len()), (compiled, compiled), "{said:?}");
}

#[test]
fn the_records_of_a_run_are_those_that_are_stored() {
    let machine = Machine::new();
    let measured = current_record("nvfp4 64x64 m1", 5.0);
    machine.keep(std::slice::from_ref(&measured));
    let answer = machine.json(&["--problem", "nvfp4 64x64", "--m", "1,2", "--gpu", "h100"]);
    let records: Vec<Record> = serde_json::from_value(answer["records"].clone()).unwrap();
    let (database, _) = Database::open(&machine.database()).unwrap();
    assert_eq!(records, database.winners().unwrap());
    assert_eq!(records[0], measured);
}

#[test]
fn what_needs_a_gpu_is_said_to_change_nothing_without_one() {
    let machine = Machine::new();
    let words = ["--problem", "nvfp4 64x64", "--gpu", "h100", "--seed", "7"];
    let said = machine.run(&[&words[..], &["--effort", "exhaustive"]].concat());
    assert_eq!(said.code(), 0, "{said:?}");
    for flag in ["`--effort exhaustive`", "`--seed`"] {
        assert!(said.stderr.contains(&format!("{flag} changes nothing without a GPU: ")), "{said:?}");
    }
    let said = machine.run(&words[..4]);
    assert!(!said.stderr.contains("changes nothing"), "{said:?}");
}

#[test]
fn sixteen_processes_on_a_cold_cache_compile_each_kernel_once() {
    let machine = Machine::cold();
    let start = |idx: usize| {
        let database = machine.path(&format!("db-{idx}"));
        let words = ["--problem", "nvfp4 64x64", "--m", "1,2", "--db", &database.to_string_lossy()];
        machine.command(&words).spawn().unwrap()
    };
    let children: Vec<_> = (0..16).map(start).collect();
    let said: Vec<Said> = children.into_iter().map(|child| ends_within(child, Duration::from_secs(60))).collect();
    assert!(said.iter().all(|said| said.code() == 0), "{said:?}");
    let compiled: usize = said.iter().map(|said| number_before(said, " kernels compiled")).sum();
    assert_eq!(compiled, machine.kernels().len());
    assert!(compiled >= 2);
}

#[test]
fn a_warm_cache_needs_no_time_and_no_nvrtc() {
    let machine = Machine::new();
    let words = ["--model", "dsv4", "--only", "gate"];
    machine.data(&words);
    let started = Instant::now();
    let mut command = machine.command(&words);
    command.arg("--offline").env_remove("TILEKILN_NVRTC");
    let said = Said::by(command);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!((said.code(), number_before(&said, " kernels compiled")), (0, 0), "{said:?}");
    let (database, _) = Database::open(&machine.database()).unwrap();
    assert!(database.winners().unwrap().iter().all(|record| record.origin == Origin::Predicted));
}

#[test]
fn no_nvrtc_and_no_network_is_said() {
    if Nvrtc::load(Path::new("libnvrtc.so.13")).is_ok() {
        eprintln!("not run: this machine's loader finds an NVRTC of its own");
        return;
    }
    let machine = Machine::cold();
    let mut command = machine.command(&["--problem", "nvfp4 64x64", "--offline"]);
    command.env_remove("TILEKILN_NVRTC").env_remove("CUDA_HOME").env_remove("CUDA_PATH").env("PATH", machine.path(""));
    let said = Said::by(command);
    said.refuses(1, "expected NVRTC (13.2.86 is the pinned version), found none", "`--nvrtc PATH`");
    assert!(said.sentence().ends_with("`--offline` forbids to fetch it"), "{said:?}");
}

#[test]
fn a_named_path_that_is_no_nvrtc_is_said() {
    let machine = Machine::new();
    std::fs::write(machine.path("text.so"), "no library").unwrap();
    std::fs::create_dir(machine.path("empty")).unwrap();
    let found =
        [("text.so", "found "), ("missing.so", "found nothing"), ("empty", "found a folder without libnvrtc.so")];
    for (name, found) in found {
        let path = machine.path(name);
        let said = machine.run(&["--problem", "nvfp4 64x64", "--nvrtc", &path.to_string_lossy()]);
        said.refuses(1, &format!("expected NVRTC at {}, {found}", path.display()), "libnvrtc.so");
    }
}

#[test]
fn a_target_that_nvrtc_does_not_know_is_said() {
    let jit = Jit::new(Search::from_environment(), KernelCache::new(Machine::cold().path("kernels")));
    let source = Source { entry: "k", target: "sm_250a".to_string(), text: String::new(), hash: "k".to_string() };
    let error = jit.compile(&source).unwrap_err();
    assert!(matches!(error, JitError::TooOld { .. }) && error.hint().is_some(), "{error}");
    assert!(error.to_string().starts_with("sm_250a needs an NVRTC that supports it, found 13."), "{error}");
}

fn winners(machine: &Machine) -> usize {
    Database::open(&machine.database()).unwrap().0.winners().unwrap().len()
}

/// The number before `words` in what a run said at its end.
fn number_before(said: &Said, words: &str) -> usize {
    let at = said.stderr.rfind(words).unwrap_or_else(|| panic!("no `{words}`: {said:?}"));
    let text = &said.stderr[..at];
    let start = text.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
    text[start..].parse().unwrap()
}
