//! A database that is held, damaged, read-only, foreign, or on a full disk: one sentence, and nothing is lost.

use std::fs;
use std::process::Command;

use tilekiln::store::{Database, Pack};

use crate::machine::{Machine, Said, current_record};
use crate::store_samples;

/// A machine with one winner, and a pack with two in `a.toml`.
fn machine() -> Machine {
    let machine = Machine::new();
    machine.keep(&[current_record("nvfp4 64x64 m1", 2.0)]);
    let records = ["nvfp4 64x64 m1", "nvfp4 64x64 m2"].map(|problem| current_record(problem, 2.0));
    let pack = Pack::new(store_samples::gpu("h100"), "dsv4", "nvfp4", records.to_vec()).unwrap();
    pack.write(&machine.path("a.toml")).unwrap();
    machine
}

#[test]
fn no_database_is_said_and_none_is_made() {
    let machine = Machine::new();
    let said = machine.run(&["export", "--out", "packs"]);
    said.refuses(1, &format!("expected a database at `{}`, found nothing", machine.database().display()), "`--db`");
    assert!(!machine.database().exists());
}

#[test]
fn a_database_that_is_held_is_left_alone() {
    let machine = machine();
    let holder = Database::open(&machine.database()).unwrap().0;
    let sentence = format!("to be free, found it held by process {}", std::process::id());
    for words in [&["import", "a.toml"][..], &["export", "--out", "packs"], &["--problem", "nvfp4 64x64"]] {
        machine.run(words).refuses(1, &sentence, "wait for it to end, or name another database with `--db`");
    }
    let said = machine.run(&["diff", "a.toml", "data/db"]);
    said.refuses(1, &sentence, "`data/db.snapshot` holds the winners of the last run, and may be read meanwhile");
    assert_eq!(machine.json(&["diff", "a.toml", "data/db.snapshot"]).as_array().unwrap().len(), 1);
    assert_eq!(holder.counts(), (0, 1));
    // Who only reads does not come to the database.
    assert_eq!(machine.records(&[]).len(), 1);
}

#[test]
fn a_damaged_database_is_moved_aside_and_the_run_goes_on() {
    let machine = machine();
    fs::write(machine.database().join("db"), vec![0x5a; 100_000]).unwrap();
    fs::write(machine.database().join("conf"), vec![0x5a; 100]).unwrap();
    let said = machine.run(&["import", "a.toml", "--json"]);
    assert_eq!(said.code(), 0, "{said:?}");
    assert!(said.stderr.contains("warning: the database was damaged ("), "{said:?}");
    assert!(said.stderr.contains(".corrupt-"), "{said:?}");
    let counts: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!((&counts[0]["new"], &counts[0]["kept"]), (&1.into(), &1.into()), "the snapshot had the other");
}

#[test]
fn a_database_of_another_schema_is_left_alone() {
    let machine = machine();
    let seal = |schema: u16| {
        let schema = schema.to_be_bytes();
        [&schema[..], &blake3::hash(&schema).as_bytes()[..16]].concat()
    };
    let set_schema = |schema| {
        let db = sled::open(machine.database()).unwrap();
        db.open_tree("meta").unwrap().insert("schema", seal(schema)).unwrap();
        db.flush().unwrap();
    };
    set_schema(8);
    for words in [&["import", "a.toml"][..], &["export", "--out", "packs"], &["--problem", "nvfp4 64x64"]] {
        machine.run(words).refuses(1, "expected schema 1 in the database `", "newer tilekiln");
    }
    set_schema(1);
    assert_eq!(Database::open(&machine.database()).unwrap().0.counts(), (0, 1));
}

#[test]
fn what_is_no_database_is_left_alone() {
    let machine = machine();
    fs::create_dir(machine.path("notes")).unwrap();
    fs::write(machine.path("notes/mine.txt"), "mine").unwrap();
    let said = machine.run(&["import", "a.toml", "--db", "notes"]);
    said.refuses(1, "expected a database or nothing at `notes`, found a directory that holds `mine.txt`", "`--db`");
    machine.run(&["import", "a.toml", "--db", "a.toml"]).refuses(1, "at `a.toml`, found a file", "`--db`");
    assert_eq!(fs::read_dir(machine.path("notes")).unwrap().count(), 1);
}

/// Root passes permission checks, so this takes a directory that refuses even root: the kernel's own.
#[test]
fn a_database_that_cannot_be_written_is_said() {
    let machine = machine();
    for db in ["/proc/tilekiln/db", "/sys/tilekiln/db"] {
        let said = machine.run(&["import", "a.toml", "--db", db]);
        said.refuses(1, "expected to write `", "a directory that you may write to");
    }
    let said = machine.run(&["export", "--out", "/proc/tilekiln"]);
    said.refuses(1, "expected to write `/proc/tilekiln/other.toml`", "a directory that you may write to");
}

/// A limit on the size of files stands for the full disk: the system call fails in the same place.
#[test]
fn a_full_disk_is_said_and_loses_nothing() {
    let machine = machine();
    let limited = |blocks: u32, words: &[&str]| {
        let plain = machine.command(words);
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"")).arg(plain.get_program());
        shell.args(plain.get_args()).current_dir(machine.path(""));
        shell.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Said::by(shell)
    };
    let said = limited(0, &["import", "a.toml"]);
    said.refuses(1, "expected room to write `", "make room and run the same command again");
    let said = limited(1, &["import", "a.toml", "--db", "new"]);
    said.refuses(1, "expected room to write `", "make room and run the same command again");
    let (database, recovery) = Database::open(&machine.database()).unwrap();
    assert_eq!((recovery, database.counts()), (None, (0, 1)));
}
