//! The database through its front door: what it keeps, what it refuses, what it says.

mod store_samples;

use std::fs;
use std::path::Path;

use store_samples::{gpu, problem, record, records, trial};
use tempfile::TempDir;
use tilekiln::problem::Routing;
use tilekiln::store::{
    BadValue, Database, DatabaseError, FileError, Ground, Origin, Put, Record, SCHEMA, Snapshot, Verification,
    WinnerKey,
};

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Opens a database that must be whole.
fn open(path: &Path) -> Database {
    let (database, recovery) = Database::open(path).unwrap();
    assert_eq!(recovery, None);
    database
}

fn never(_: &Record) -> bool {
    false
}

/// Does `act` to sled behind the database's back.
fn behind_its_back(path: &Path, act: impl FnOnce(&sled::Db)) {
    // sled gives its lock back a moment after it closes.
    let open = || sled::open(path).inspect_err(|_| std::thread::sleep(std::time::Duration::from_millis(20)));
    let db = (0..100).find_map(|_| open().ok()).expect("sled opens");
    act(&db);
    db.flush().unwrap();
}

#[test]
fn what_is_put_is_there_after_reopening() {
    let folder = folder();
    let path = folder.path().join("winners");
    let database = open(&path);
    let winners = records(30);
    for winner in &winners {
        assert_eq!(database.put_winner(winner, 0.02, &never).unwrap(), Put::New);
    }
    for idx in 0..50 {
        database.append_trial(&trial("nvfp4 64x64 m1", idx, idx)).unwrap();
        database.append_trial(&trial("nvfp4 64x64 m16", idx, idx)).unwrap();
    }
    database.close().unwrap();

    let database = open(&path);
    assert_eq!(database.counts(), (100, 30));
    assert_eq!(database.winner(&WinnerKey::of(&winners[7])).unwrap().as_ref(), Some(&winners[7]));
    let mut kept = database.winners().unwrap();
    kept.sort_by(|a, b| a.problem.cmp(&b.problem));
    let mut expected = winners.clone();
    expected.sort_by(|a, b| a.problem.cmp(&b.problem));
    assert_eq!(kept, expected);
    let trials = database.trials_of(&gpu("h100"), &problem("nvfp4 64x64 m1")).unwrap();
    assert_eq!(trials.len(), 50, "m16 must not be found under m1");
    assert_eq!(database.trials().count(), 100);
    assert!(database.remove(&WinnerKey::of(&winners[7])).unwrap());
    assert!(!database.remove(&WinnerKey::of(&winners[7])).unwrap());
    assert_eq!(database.counts(), (100, 29));
    assert_eq!(database.verify().unwrap(), Verification { trials: 100, winners: 29, bad: Vec::new() });
}

#[test]
fn a_later_trial_of_the_same_candidate_replaces_the_earlier() {
    let folder = folder();
    let database = open(&folder.path().join("winners"));
    database.append_trial(&trial("nvfp4 64x64 m1", 3, 1)).unwrap();
    database.append_trial(&trial("nvfp4 64x64 m1", 3, 2)).unwrap();
    let mut other_kernels = trial("nvfp4 64x64 m1", 3, 3);
    other_kernels.trial.toolchain.kernels = "ffffffffffffffff".to_string();
    database.append_trial(&other_kernels).unwrap();
    let seeds: Vec<u64> = database.trials().map(|trial| trial.unwrap().trial.seed).collect();
    assert_eq!(seeds.len(), 2);
    assert!(seeds.contains(&2) && seeds.contains(&3), "{seeds:?}");
}

#[test]
fn an_incumbent_stays_unless_it_is_beaten_by_the_band() {
    let with = |origin: Origin, tile: u64, us: f64| Record { origin, ..record("nvfp4 64x64 m1", "h100", tile, us) };
    let measured = |tile, us| with(Origin::Measured, tile, us);
    let predicted = |tile, us| with(Origin::Predicted, tile, us);
    let inherited = |tile, us| with(Origin::Inherited { from_m: 4 }, tile, us);
    let stale = |_: &Record| true;
    #[rustfmt::skip]
    let cases: [(&str, Record, Record, bool, &str); 11] = [
        ("slower",              measured(1, 10.0),  measured(2, 10.5),  false, "stays (1.050 times its time)"),
        ("within the band",     measured(1, 10.0),  measured(2, 9.81),  false, "stays (0.981 times its time)"),
        ("beyond the band",     measured(1, 10.0),  measured(2, 9.79),  false, "(0.979 times its time)"),
        ("the same tile",       measured(1, 10.0),  measured(1, 11.0),  false, "the same tile won again"),
        ("stale",               measured(1, 10.0),  measured(2, 10.5),  true,  "(it was stale)"),
        ("stale, weaker",       measured(1, 10.0),  predicted(2, 5.0),  true,  "stays (better evidence)"),
        ("predicted",           predicted(1, 5.0),  measured(2, 10.0),  false, "(better evidence)"),
        ("inherited",           inherited(1, 5.0),  measured(2, 10.0),  false, "(better evidence)"),
        ("inherited, weaker",   inherited(1, 10.0), predicted(2, 5.0),  false, "stays (better evidence)"),
        ("inherited anew",      inherited(1, 10.0), inherited(2, 10.0), false, "(1.000 times its time)"),
        ("same tile, measured", inherited(1, 10.0), measured(1, 10.0),  false, "the same tile won again"),
    ];
    for (name, incumbent, newcomer, is_stale, sentence) in cases {
        let folder = folder();
        let database = open(&folder.path().join("winners"));
        database.put_winner(&incumbent, 0.02, &never).unwrap();
        let put = database.put_winner(&newcomer, 0.02, if is_stale { &stale } else { &never }).unwrap();
        assert!(put.to_string().ends_with(sentence), "{name}: {put}");
        let kept = database.winner(&WinnerKey::of(&newcomer)).unwrap().unwrap();
        let expected = if matches!(put, Put::Kept { .. }) { &incumbent } else { &newcomer };
        assert_eq!((&kept, put.winner(&newcomer)), (expected, expected), "{name}");
    }
}

#[test]
fn times_under_other_routings_are_not_compared() {
    let (quick, full) = (vec![Routing::Uniform], vec![Routing::Uniform, Routing::Zipf(1.0)]);
    let with = |tile: u64, us: f64, routings: &[Routing]| Record {
        routings: routings.to_vec(),
        ..record("nvfp4 64x64 m1", "h100", tile, us)
    };
    let stale = |_: &Record| true;
    let more = "(a larger search, under other routings)";
    let short = |record: Record| Record { tried: 1, ..record };
    #[rustfmt::skip]
    let cases: [(&str, Record, Record, bool, &str); 9] = [
        ("full after quick",      with(1, 10.0, &quick), with(2, 15.0, &full),  false, more),
        ("the same tile, full",   with(1, 10.0, &quick), with(1, 15.0, &full),  false, "the same tile won again"),
        ("quick after full",      with(1, 10.0, &full),  with(2, 5.0, &quick),  false, more),
        ("the same tile, quick",  with(1, 10.0, &full),  with(1, 5.0, &quick),  false, more),
        ("quick after old full",  with(1, 10.0, &full),  with(2, 15.0, &quick), true,  "(it was stale)"),
        ("a full one cut short",  with(1, 10.0, &quick), short(with(2, 5.0, &full)), false, more),
        ("quick after that",      short(with(1, 10.0, &full)), with(2, 15.0, &quick), false, more),
        ("full after full",       with(1, 10.0, &full),  with(2, 5.0, &full),   false, "(0.500 times its time)"),
        ("neither holds another", with(1, 10.0, &quick), with(2, 5.0, &[Routing::OneSet]), false,
            "(0.500 times its time)"),
    ];
    for (name, incumbent, newcomer, is_stale, sentence) in cases {
        let folder = folder();
        let database = open(&folder.path().join("winners"));
        database.put_winner(&incumbent, 0.02, &never).unwrap();
        let put = database.put_winner(&newcomer, 0.02, if is_stale { &stale } else { &never }).unwrap();
        assert!(put.to_string().ends_with(sentence), "{name}: {put}");
        let is_larger = incumbent.tried > newcomer.tried
            || incumbent.tried == newcomer.tried && incumbent.routings == full && newcomer.routings == quick;
        assert_eq!(matches!(put, Put::Kept { .. }), is_larger && !is_stale, "{name}");
        let kept = database.winner(&WinnerKey::of(&newcomer)).unwrap().unwrap();
        let expected = if matches!(put, Put::Kept { .. }) { &incumbent } else { &newcomer };
        assert_eq!(kept, *expected, "{name}");
    }
}

#[test]
fn an_incumbent_that_outlasts_a_larger_search_says_so() {
    let folder = folder();
    let path = folder.path().join("winners");
    let database = open(&path);
    let with = |tile: u64, us: f64, tried: u32| Record { tried, ..record("nvfp4 64x64 m1", "h100", tile, us) };
    database.put_winner(&with(1, 10.0, 50), 0.02, &never).unwrap();
    let put = database.put_winner(&with(2, 10.0, 300), 0.02, &never).unwrap();
    let expected = with(1, 10.0, 300);
    assert_eq!(
        put,
        Put::Kept { incumbent: Box::new(expected.clone()), ground: Ground::Time { ratio: 1.0 } },
        "what is kept is what is stored"
    );
    database.put_winner(&with(2, 10.0, 70), 0.02, &never).unwrap();
    database.close().unwrap();
    assert_eq!(open(&path).winners().unwrap(), [expected]);
}

#[test]
fn put_names_the_ground() {
    let folder = folder();
    let database = open(&folder.path().join("winners"));
    let incumbent = record("nvfp4 64x64 m1", "h100", 1, 10.0);
    database.put_winner(&incumbent, 0.02, &never).unwrap();
    let put = database.put_winner(&record("nvfp4 64x64 m1", "h100", 2, 5.0), 0.02, &never).unwrap();
    assert_eq!(put, Put::Replaced { incumbent: Box::new(incumbent), ground: Ground::Time { ratio: 0.5 } });
}

#[test]
fn bad_values_are_misses_that_verify_names_and_gc_removes() {
    let folder = folder();
    let path = folder.path().join("winners");
    let good = record("nvfp4 64x64 m1", "h100", 1, 1.0);
    let misplaced = record("nvfp4 64x64 m4", "h100", 1, 1.0);
    let database = open(&path);
    database.put_winner(&good, 0.0, &never).unwrap();
    database.append_trial(&trial("nvfp4 64x64 m1", 1, 1)).unwrap();
    database.append_trial(&trial("nvfp4 64x64 m1", 2, 2)).unwrap();
    database.close().unwrap();
    behind_its_back(&path, |db| {
        let winners = db.open_tree("winners").unwrap();
        let mut bytes = winners.get(WinnerKey::of(&good).to_string()).unwrap().unwrap().to_vec();
        winners.insert(WinnerKey::of(&misplaced).to_string(), &bytes[..]).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        winners.insert("flipped", bytes).unwrap();
        db.open_tree("trials").unwrap().insert("rubble", "rubble").unwrap();
    });

    let database = open(&path);
    assert_eq!(database.winner(&WinnerKey::of(&misplaced)).unwrap(), None);
    assert_eq!(database.winners().unwrap(), [good]);
    assert_eq!(database.trials().count(), 2);
    assert!(database.n_bad() >= 3);
    let verification = database.verify().unwrap();
    assert_eq!((verification.trials, verification.winners, verification.bad.len()), (2, 1, 3));
    let found: Vec<&BadValue> = verification.bad.iter().map(|bad| &bad.found).collect();
    assert!(found.contains(&&BadValue::NoSeal(6)) && found.contains(&&BadValue::Checksum), "{found:?}");
    assert!(found.iter().any(|found| matches!(found, BadValue::Key(_))), "{found:?}");

    let collected = database.gc(&|trial| trial.trial.seed == 1).unwrap();
    assert_eq!((collected.outdated_trials, collected.bad), (1, 3));
    assert_eq!(database.verify().unwrap(), Verification { trials: 1, winners: 1, bad: Vec::new() });
    assert_eq!(database.put_winner(&misplaced, 0.0, &never).unwrap(), Put::New);
    assert_eq!(database.counts(), (1, 2));
    database.close().unwrap();
    assert_eq!(open(&path).counts(), (1, 2));
}

#[test]
fn a_winner_that_went_bad_or_missing_is_noticed_and_put_back() {
    let folder = folder();
    let path = folder.path().join("winners");
    let (flipped, missing) = (record("nvfp4 64x64 m1", "h100", 1, 1.0), record("nvfp4 64x64 m2", "h100", 1, 1.0));
    let database = open(&path);
    for winner in [&flipped, &missing] {
        database.put_winner(winner, 0.0, &never).unwrap();
    }
    database.write_snapshot().unwrap();
    database.close().unwrap();
    behind_its_back(&path, |db| {
        let winners = db.open_tree("winners").unwrap();
        let key = WinnerKey::of(&flipped).to_string();
        let mut bytes = winners.get(&key).unwrap().unwrap().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        winners.insert(key, bytes).unwrap();
    });
    let (database, recovery) = Database::open(&path).unwrap();
    let sentence = recovery.expect("it is noticed").to_string();
    assert_eq!(
        sentence,
        "the database was damaged (values were bad or older than the last ones written); kept: 0 trials and 2 \
         winners, nothing is known to be lost"
    );
    assert_eq!(database.winners().unwrap(), [flipped.clone(), missing.clone()]);
    database.close().unwrap();

    behind_its_back(&path, |db| db.open_tree("winners").unwrap().clear().unwrap());
    let (database, recovery) = Database::open(&path).unwrap();
    let sentence = recovery.expect("it is noticed").to_string();
    assert!(
        sentence.starts_with("the database was damaged (0 of 0 trials and 0 of 2 winners were left); kept: "),
        "{sentence}"
    );
    assert_eq!(database.winners().unwrap(), [flipped, missing]);
}

#[test]
fn a_database_that_is_no_longer_one_is_moved_aside_and_rebuilt() {
    let folder = folder();
    let path = folder.path().join("winners");
    let database = open(&path);
    for winner in records(5) {
        database.put_winner(&winner, 0.0, &never).unwrap();
    }
    database.append_trial(&trial("nvfp4 64x64 m1", 1, 1)).unwrap();
    database.write_snapshot().unwrap();
    database.close().unwrap();
    fs::write(path.join("db"), vec![0x5a; 100_000]).unwrap();
    fs::write(path.join("conf"), vec![0x5a; 100]).unwrap();

    let (database, recovery) = Database::open(&path).unwrap();
    let recovery = recovery.unwrap();
    assert_eq!((recovery.winners, recovery.from_snapshot), (5 + recovery.from_packs, 5));
    assert_eq!((recovery.trials, recovery.lost_trials, recovery.lost_winners), (0, 1, 0));
    let moved_to = recovery.moved_to.clone().unwrap();
    assert_eq!(fs::read(moved_to.join("db")).unwrap(), vec![0x5a; 100_000]);
    let sentence = recovery.to_string();
    assert!(sentence.contains(&format!(", was moved to `{}` and rebuilt; kept: ", moved_to.display())), "{sentence}");
    assert!(sentence.ends_with(", lost: 1 trial and 0 winners"), "{sentence}");
    database.close().unwrap();
    open(&path);
}

#[test]
fn the_snapshot_holds_every_winner_and_changes_its_hash_with_any() {
    let folder = folder();
    let path = folder.path().join("winners");
    let database = open(&path);
    for winner in records(20) {
        database.put_winner(&winner, 0.0, &never).unwrap();
    }
    let written = database.write_snapshot().unwrap();
    let read = Snapshot::load(&Database::snapshot_path(&path)).unwrap();
    assert_eq!((read.entries(), read.hash()), (written.entries(), written.hash()));
    assert_eq!(read.entries().len(), 20);
    database.put_winner(&record("nvfp4 64x64 m1", "h100", 9, 0.5), 0.0, &never).unwrap();
    assert_ne!(database.write_snapshot().unwrap().hash(), read.hash());
}

#[test]
fn a_database_of_another_schema_is_refused_and_left_alone() {
    let folder = folder();
    let path = folder.path().join("winners");
    let database = open(&path);
    database.put_winner(&records(1)[0], 0.0, &never).unwrap();
    database.close().unwrap();
    let seal =
        |schema: u16| [&schema.to_be_bytes()[..], &blake3::hash(&schema.to_be_bytes()).as_bytes()[..16]].concat();
    let set_schema = |schema| {
        behind_its_back(&path, |db| {
            db.open_tree("meta").unwrap().insert("schema", seal(schema)).unwrap();
        });
    };
    set_schema(SCHEMA + 7);
    let error = Database::open(&path).unwrap_err();
    assert_eq!(error, DatabaseError::OtherSchema { path: path.clone(), found: SCHEMA + 7 });
    assert!(error.to_string().ends_with("found schema 8") && error.hint().contains("newer"), "{error}");
    set_schema(SCHEMA);
    assert_eq!(open(&path).counts(), (0, 1));
}

#[test]
fn what_is_no_database_is_refused_and_left_alone() {
    let folder = folder();
    let file = folder.path().join("notes.txt");
    fs::write(&file, "mine").unwrap();
    let error = Database::open(&file).unwrap_err();
    assert!(error.to_string().ends_with("notes.txt`, found a file"), "{error}");

    let error = Database::open(folder.path()).unwrap_err();
    assert!(error.to_string().ends_with("found a directory that holds `notes.txt`"), "{error}");

    let error = Database::open(&file.join("winners")).unwrap_err();
    assert!(matches!(error, DatabaseError::File(FileError::NotADirectory { .. })), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was left beside");
}

/// Root passes permission checks, so this takes a directory that refuses even root: the kernel's own.
#[cfg(target_os = "linux")]
#[test]
fn a_directory_of_the_kernel_cannot_be_written() {
    let error = Database::open(Path::new("/proc/tilekiln/winners")).unwrap_err();
    assert!(matches!(error, DatabaseError::File(FileError::Refused { .. })), "{error}");
    assert!(error.hint().contains("a directory that you may write to"));
}

/// Says nothing when root runs it: root may write where the mode forbids it.
#[cfg(unix)]
#[test]
fn a_read_only_directory_is_refused_unless_root_asks() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let path = folder.path().join("winners");
    open(&path).close().unwrap();
    for read_only in [path.as_path(), folder.path()] {
        fs::set_permissions(read_only, fs::Permissions::from_mode(0o555)).unwrap();
    }
    let is_root = fs::write(folder.path().join("probe"), "").is_ok();
    let result = Database::open(&path.join("../new"));
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    match result {
        Ok(_) => assert!(is_root),
        Err(error) => {
            assert!(matches!(error, DatabaseError::File(FileError::Refused { found: "no permission", .. })), "{error}");
        }
    }
}
