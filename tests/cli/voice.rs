//! Standard output is data, standard error is talk, and a reader that goes away is no failure.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::machine::{Machine, Said};

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let machine = Machine::new();
    for words in [&["show", "problems"][..], &["show", "problems", "--json"], &["--help"]] {
        let mut child = machine.command(words).spawn().unwrap();
        let mut first = String::new();
        BufReader::with_capacity(64, child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let said = child.wait_with_output().unwrap();
        assert_eq!((said.status.code(), String::from_utf8_lossy(&said.stderr)), (Some(0), "".into()), "{words:?}");
    }
}

#[test]
fn a_closed_standard_error_is_no_failure() {
    let machine = Machine::new();
    let mut command = machine.command(&["--model", "nonsense"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stderr(Stdio::from(writer));
    assert_eq!(command.status().unwrap().code(), Some(2));
}

#[test]
fn a_full_standard_output_is_said() {
    let machine = Machine::new();
    let mut command = machine.command(&["show", "problems"]);
    command.stdout(std::fs::File::options().write(true).open("/dev/full").unwrap()).stderr(Stdio::piped());
    let out = command.spawn().unwrap().wait_with_output().unwrap();
    let said = Said { status: out.status, stdout: String::new(), stderr: String::from_utf8(out.stderr).unwrap() };
    said.refuses(1, "expected room to write `standard output`, found a full disk", "make room");
}

#[test]
fn json_of_every_command_parses() {
    let machine = Machine::new();
    let problems = machine.json(&["show", "problems", "--model", "dsv4-pro", "--tp", "8"]);
    assert!(problems.as_array().is_some_and(|rows| rows.len() > 100));
    for words in [&["doctor"][..], &["verify"], &["gc", "--dry-run"], &["show", "records"]] {
        assert!(!machine.json(words).is_null(), "{words:?}");
    }
}
