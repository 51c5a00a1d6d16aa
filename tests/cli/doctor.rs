//! The doctor: a line for each thing, nothing changed, and exit code 1 for what makes runs fail.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tilekiln::jit::Nvrtc;
use tilekiln::store::Database;

use crate::machine::{Machine, Said, current_record};

/// State and sentence of `thing`, and the exit code.
fn line(said: &Said, thing: &str) -> (i32, String, String) {
    let checks: serde_json::Value =
        serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let check = checks.as_array().unwrap().iter().find(|check| check["thing"] == thing).expect("each thing has a line");
    let text = |name: &str| check[name].as_str().unwrap().to_string();
    (said.code(), text("state"), text("says"))
}

#[track_caller]
fn expect(machine: &Machine, words: &[&str], thing: &str, state: &str, says: &str) {
    let said = machine.run(&[&["doctor", "--json"], words].concat());
    let (code, found, sentence) = line(&said, thing);
    assert_eq!((code, &*found), (i32::from(state == "error"), state), "{said:?}");
    assert!(sentence.contains(says), "expected `{says}`: {said:?}");
}

#[test]
fn a_bare_machine_is_well_and_stays_bare() {
    let machine = Machine::cold();
    let text = machine.data(&["doctor"]);
    for words in
        ["gpu ", "ok       nvrtc     13.", "compiles for sm_90a\n", "none yet; the first run makes it", "packs "]
    {
        assert!(text.contains(words), "expected `{words}`: {text}");
    }
    assert_eq!(fs::read_dir(machine.path("")).unwrap().count(), 0, "something was made");
}

#[test]
fn no_nvrtc_is_an_error_where_none_can_be_had() {
    if Nvrtc::load(Path::new("libnvrtc.so.13")).is_ok() {
        eprintln!("not run: this machine's loader finds an NVRTC of its own");
        return;
    }
    let machine = Machine::cold();
    let mut command = machine.command(&["doctor", "--offline", "--json"]);
    command.env_remove("TILEKILN_NVRTC").env_remove("CUDA_HOME").env_remove("CUDA_PATH").env("PATH", machine.path(""));
    let said = Said::by(command);
    let (code, state, says) = line(&said, "nvrtc");
    assert_eq!((code, &*state), (1, "error"), "{said:?}");
    assert!(says.ends_with("found none: `--offline` forbids to fetch it"), "{says}");
    assert_eq!(line(&said, "python"), (1, "error".to_string(), "no python3".to_string()));
    assert_eq!(said.sentence(), "expected no errors, found 2");
}

#[test]
fn no_nvrtc_and_a_network_that_fails_is_said() {
    let has_pip =
        Command::new("python3").args(["-m", "pip", "--version"]).output().is_ok_and(|out| out.status.success());
    if Nvrtc::load(Path::new("libnvrtc.so.13")).is_ok() || !has_pip {
        eprintln!("not run: this machine has an NVRTC of its own, or no pip");
        return;
    }
    let machine = Machine::cold();
    let mut command = machine.command(&["--problem", "nvfp4 64x64"]);
    command.env_remove("TILEKILN_NVRTC").env_remove("CUDA_HOME").env_remove("CUDA_PATH");
    // A port that nobody listens on stands for the network that is not there.
    command.env("PIP_INDEX_URL", "http://127.0.0.1:9/").env("PIP_RETRIES", "0").env("PIP_NO_INPUT", "1");
    command.env("PIP_CONFIG_FILE", "/dev/null").env_remove("PIP_EXTRA_INDEX_URL").env_remove("PIP_FIND_LINKS");
    let said = Said::by(command);
    said.refuses(1, "expected NVRTC (13.2.86 is the pinned version), found none: `python3 -m pip download", "--nvrtc");
}

#[test]
fn an_nvrtc_that_is_none_or_too_old_is_an_error() {
    let machine = Machine::cold();
    expect(&machine, &["--nvrtc", "/bin/true"], "nvrtc", "error", "expected NVRTC at /bin/true, found ");
    let old = old_nvrtc(&machine);
    let sentence = "sm_90a needs an NVRTC that supports it, found 12.4, which knows sm_80";
    expect(&machine, &["--nvrtc", old.to_str().unwrap()], "nvrtc", "error", sentence);
    let said = machine.run(&["--problem", "nvfp4 64x64", "--nvrtc", old.to_str().unwrap()]);
    said.refuses(1, sentence, "leave `--nvrtc` and TILEKILN_NVRTC out to use the pinned version");
}

/// A library with NVRTC's functions that says it is 12.4 and knows only sm_80.
fn old_nvrtc(machine: &Machine) -> PathBuf {
    let stubs = ["CreateProgram", "DestroyProgram", "CompileProgram", "SetFlowCallback", "GetProgramLogSize"];
    let more = ["GetProgramLog", "GetCUBINSize", "GetCUBIN", "GetPTXSize", "GetPTX"];
    let stubs = stubs.iter().chain(&more);
    let mut text = String::from(
        "#[unsafe(no_mangle)] pub unsafe extern \"C\" fn nvrtcVersion(major: *mut i32, minor: *mut i32) -> i32 {
             unsafe { (*major, *minor) = (12, 4) }; 0
         }
         #[unsafe(no_mangle)] pub unsafe extern \"C\" fn nvrtcGetNumSupportedArchs(n: *mut i32) -> i32 {
             unsafe { *n = 1 }; 0
         }
         #[unsafe(no_mangle)] pub unsafe extern \"C\" fn nvrtcGetSupportedArchs(archs: *mut i32) -> i32 {
             unsafe { *archs = 80 }; 0
         }\n",
    );
    stubs.for_each(|stub| {
        text.push_str(&format!("#[unsafe(no_mangle)] pub extern \"C\" fn nvrtc{stub}() -> i32 {{ 1 }}\n"));
    });
    let (source, library) = (machine.path("old.rs"), machine.path("libnvrtc.so.12"));
    fs::write(&source, text).unwrap();
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition", "2024", "--crate-type", "cdylib", "-A", "nonstandard-style", "-o"]);
    assert!(rustc.arg(&library).arg(&source).status().unwrap().success());
    library
}

#[test]
fn a_database_is_looked_at_and_left_as_it_is() {
    let machine = Machine::new();
    let current = current_record("nvfp4 4096x8192 m64", 10.0);
    machine.keep(std::slice::from_ref(&current));
    expect(&machine, &[], "database", "ok", ": 0 trials, 1 winners");
    expect(&machine, &[], "snapshot", "ok", ": 1 winners, 1 of h100-sxm");

    let holder = Database::open(&machine.database()).unwrap().0;
    let held = format!("process {} is at work in it", std::process::id());
    expect(&machine, &[], "database", "ok", &held);
    let mut stale = current_record("nvfp4 4096x8192 m256", 10.0);
    stale.toolchain.kernels = "0123456789abcdef".to_string();
    holder.put_winner(&stale, 0.0, &|_| false).unwrap();
    holder.write_snapshot().unwrap();
    holder.close().unwrap();
    expect(&machine, &[], "snapshot", "warning", "2 winners, 2 of h100-sxm, 1 stale, 0 no tiles any more");

    let file = machine.database().join("db");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, vec![0x5a; 100_000]).unwrap();
    fs::write(machine.database().join("conf"), vec![0x5a; 100]).unwrap();
    let before = listing(&machine.path("data"));
    expect(&machine, &[], "database", "error", ": damaged (");
    assert_eq!(listing(&machine.path("data")), before, "the patient was touched");
    assert_ne!(fs::read(&file).unwrap(), whole);

    let snapshot = Database::snapshot_path(&machine.database());
    fs::write(&snapshot, "tilekiln").unwrap();
    expect(&machine, &[], "snapshot", "error", "to be whole, found only 8 bytes");
    expect(&machine, &["--db", "/bin/true"], "database", "error", "at `/bin/true`, found a file");
}

/// Every file below `folder` with its bytes.
fn listing(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(listing(&path)),
            false => found.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

#[test]
fn a_cache_that_others_may_write_to_is_an_error() {
    let machine = Machine::cold();
    let kernels = machine.path("cache/kernels");
    fs::create_dir_all(&kernels).unwrap();
    fs::set_permissions(&kernels, fs::Permissions::from_mode(0o777)).unwrap();
    expect(&machine, &[], "cache", "error", "others may write to ");
    fs::set_permissions(&kernels, fs::Permissions::from_mode(0o700)).unwrap();
    expect(&machine, &[], "cache", "ok", "mode 700, 0 kernels, 0.0 MiB, ");
    fs::remove_dir_all(machine.path("cache")).unwrap();
    fs::write(machine.path("cache"), "a file").unwrap();
    expect(&machine, &[], "cache", "warning", "` is no folder");
}
