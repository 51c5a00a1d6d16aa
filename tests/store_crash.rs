//! What the store survives: kills, damaged files, a full disk, a second writer, readers in the middle of a write.
//!
//! A child is this very binary, told by an environment variable which part to play.

mod store_samples;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use store_samples::{Numbers, records, trial};
use tilekiln::problem::BUCKETS;
use tilekiln::store::{Database, DatabaseError, GpuTrial, Record, Snapshot};

const ROLE: &str = "TILEKILN_STORE_TEST_ROLE";
const PATH: &str = "TILEKILN_STORE_TEST_PATH";

#[test]
fn no_acknowledged_trial_is_lost_in_200_kills() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("winners");
    let mut numbers = Numbers(0x5eed_1234_abcd);
    let mut acknowledged: HashMap<u64, u64> = HashMap::new();
    let (mut n_grown, mut n_rebuilt) = (0, 0);
    for kill in 0..200 {
        // One in ten starts from nothing, so that the making of a database is killed, too.
        let (is_fresh, fresh) = (kill % 10 == 9, folder.path().join(format!("fresh-{kill}")));
        let path = if is_fresh { &fresh } else { &path };
        // Every second child has appended something when it dies; the others die at any moment since their start.
        let since = if kill % 2 == 0 { Since::FirstTrial } else { Since::Start };
        let lines = run_and_kill("append", path, since, Duration::from_micros(numbers.below(60_000)));
        let seeds = lines.iter().filter_map(|line| line.strip_prefix("kept ")?.parse::<u64>().ok());
        let seeds: HashMap<u64, u64> = seeds.map(|seed| (seed % SLOTS, seed)).collect();
        n_grown += usize::from(!seeds.is_empty());
        let expected = if is_fresh {
            &seeds
        } else {
            acknowledged.extend(seeds);
            &acknowledged
        };

        let (database, recovery) = Database::open(path).unwrap();
        // A kill in the middle of a write may leave files that sled refuses (seen: once in some thousand kills, on a
        // loaded machine). The promise is that they are rebuilt with nothing lost, not that sled never does it.
        if let Some(recovery) = recovery {
            let lost = (recovery.lost_trials, recovery.lost_winners, recovery.has_older);
            assert_eq!(lost, (0, 0, false), "kill {kill}: {recovery}");
            n_rebuilt += 1;
        }
        let kept: HashMap<u64, GpuTrial> =
            database.trials().map(|trial| trial.unwrap()).map(|trial| (trial.trial.seed % SLOTS, trial)).collect();
        assert_eq!(database.n_bad(), 0, "kill {kill}");
        for (slot, seed) in expected {
            let found = &kept[slot];
            assert!(
                found.trial.seed >= *seed,
                "kill {kill}: slot {slot} went back from {seed} to {}",
                found.trial.seed
            );
            assert_eq!(*found, numbered(found.trial.seed), "kill {kill}");
        }
        database.close().unwrap();
    }
    assert!(n_rebuilt <= 2, "{n_rebuilt} of 200 kills left files that sled refused");
    assert!(n_grown >= 100, "only {n_grown} of 200 children lived long enough to append");
    assert!(acknowledged.len() as u64 > SLOTS / 2, "{} slots of {SLOTS}", acknowledged.len());
}

#[test]
fn damage_is_never_a_panic_and_never_silent() {
    const CASES: u64 = 100;
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole/winners");
    let (n_trials, n_winners) = (SLOTS, 100);
    let database = Database::open(&whole).unwrap().0;
    // Half of the candidates are tried again, so that there are older copies to go back to.
    (0..SLOTS + SLOTS / 2).for_each(|seed| database.append_trial(&numbered(seed)).unwrap());
    for winner in records(n_winners) {
        database.put_winner(&winner, 0.0, &|_| false).unwrap();
    }
    database.write_snapshot().unwrap();
    database.close().unwrap();

    let mut numbers = Numbers(0xdead_beef_0042);
    let (mut n_moved, mut n_refilled, mut n_lost) = (0, 0, 0);
    for case in 0..CASES {
        let part = folder.path().join(format!("case-{case}"));
        copy(whole.parent().unwrap(), &part);
        let path = part.join("winners");
        let what = damage(&path, case, &mut numbers);
        let (database, recovery) = Database::open(&path).unwrap_or_else(|error| panic!("{what}: {error}"));
        let kept = database.verify().unwrap();
        assert_eq!(kept.winners as usize, n_winners, "{what}: the snapshot has every winner");
        let may_be_older = recovery.as_ref().is_some_and(|recovery| recovery.has_older);
        match recovery {
            None => assert_eq!((kept.trials, kept.bad.len()), (n_trials, 0), "{what}: a silent loss"),
            Some(recovery) => {
                assert!(recovery.to_string().starts_with("the database was damaged ("), "{what}: {recovery}");
                assert_eq!(kept.trials + recovery.lost_trials, n_trials, "{what}: {recovery}");
                assert!(recovery.lost_trials <= 1 || !what.contains("flipped"), "{what}: {recovery}");
                n_lost += recovery.lost_trials;
                match &recovery.moved_to {
                    Some(moved_to) => {
                        let name = moved_to.file_name().unwrap().to_string_lossy().into_owned();
                        assert!(moved_to.is_dir() && name.starts_with("winners.corrupt-"), "{what}: {recovery}");
                        n_moved += 1;
                    }
                    None => n_refilled += 1,
                }
            }
        }
        for trial in database.trials().map(|trial| trial.unwrap()) {
            let seed = trial.trial.seed;
            assert_eq!(trial, numbered(seed), "{what}");
            assert!(may_be_older || seed >= SLOTS / 2, "{what}: went back to {seed} without a word");
        }
        database.append_trial(&numbered(3 * SLOTS)).unwrap();
        database.close().unwrap();
        assert_eq!(Database::open(&path).unwrap().1, None, "{what}: once is enough");
        fs::remove_dir_all(part).unwrap();
    }
    // One case in four cuts the file, at its middle on average.
    let share = n_lost as f64 / (CASES * n_trials) as f64;
    assert!(n_moved > 20 && n_refilled > 5 && share < 0.25, "moved {n_moved}, refilled {n_refilled}, lost {share}");
}

#[test]
fn a_second_writer_learns_who_holds_the_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("winners");
    let mut holder = spawn("hold", &path);
    let deadline = Instant::now() + Duration::from_secs(20);
    let error = loop {
        // Until the child has opened it, this process does.
        match Database::open(&path) {
            Err(error @ DatabaseError::Held { pid: Some(pid), .. }) if pid == holder.id() => break error,
            _ => assert!(Instant::now() < deadline, "the child never opened the database"),
        }
        thread::sleep(Duration::from_millis(5));
    };
    assert!(error.to_string().ends_with(&format!("to be free, found it held by process {}", holder.id())), "{error}");
    assert_eq!(error.hint(), "wait for it to end, or name another database with `--db`");
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(Database::open(&path).unwrap().1, None);
}

#[test]
fn sixteen_readers_see_whole_snapshots_while_one_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("winners.snapshot");
    generation(0).write(&path).unwrap();
    let readers: Vec<Child> = (0..16).map(|_| spawn("read", &path)).collect();
    let end = Instant::now() + Duration::from_secs(3);
    let mut n_written = 0;
    while Instant::now() < end {
        n_written += 1;
        generation(n_written).write(&path).unwrap();
    }
    fs::write(beside(&path, ".stop"), "").unwrap();
    let mut n_seen = 0;
    for reader in readers {
        let lines = succeeded(reader.wait_with_output().unwrap());
        n_seen += lines.iter().filter(|line| line.starts_with("saw ")).count();
    }
    assert!(n_written > 10 && n_seen >= 16, "{n_written} generations written, {n_seen} seen");
}

/// A limit on the size of files stands for the full disk: the system call fails in the same place, and sled takes it
/// the same way.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_the_run_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for (blocks, is_opened) in [(1, false), (4096, true)] {
        let path = folder.path().join(format!("winners-{blocks}"));
        let exe = std::env::current_exe().unwrap();
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"")).arg(exe);
        let lines = succeeded(as_child(shell, "fill", &path).output().unwrap());
        let error = lines.iter().find_map(|line| line.strip_prefix("error: ")).expect("the disk is full at some time");
        assert!(error.starts_with("expected room to write `"), "{error}");
        assert!(error.ends_with("found a limit on the size of a file"), "{error}");
        let kept: Vec<u64> = lines.iter().filter_map(|line| line.strip_prefix("kept ")?.parse().ok()).collect();
        assert_eq!(!kept.is_empty(), is_opened, "{blocks}");

        let (database, recovery) = Database::open(&path).unwrap();
        assert_eq!(recovery, None, "{blocks}");
        let seeds: Vec<u64> = database.trials().map(|trial| trial.unwrap().trial.seed).collect();
        assert!(kept.iter().all(|seed| seeds.contains(seed)), "{blocks}");
        database.append_trial(&numbered(SLOTS)).unwrap();
    }
}

/// The test that a child runs; in the parent it has no part to play.
#[test]
fn child() {
    let (Ok(role), Ok(path)) = (std::env::var(ROLE), std::env::var(PATH)) else { return };
    let path = PathBuf::from(path);
    // The harness has begun a line of its own.
    println!();
    match role.as_str() {
        "append" => append(&path),
        "fill" => println!("error: {}", fill(&path)),
        "hold" => hold(&path),
        "read" => read(&path),
        _ => panic!("no role {role}"),
    }
}

/// Appends where the last run stopped, and says of each trial that it is kept once it is.
fn append(path: &Path) {
    let database = Database::open(path).unwrap().0;
    let last = database.trials().map(|trial| trial.unwrap().trial.seed).max();
    for seed in last.map_or(0, |last| last + 1).. {
        database.append_trial(&numbered(seed)).unwrap();
        println!("kept {seed}");
    }
}

/// Appends until it cannot; returns the reason.
fn fill(path: &Path) -> DatabaseError {
    let database = match Database::open(path) {
        Ok((database, _)) => database,
        Err(error) => return error,
    };
    for seed in 0.. {
        match database.append_trial(&numbered(seed)) {
            Ok(()) => println!("kept {seed}"),
            Err(error) => return error,
        }
    }
    unreachable!("there are numbers enough");
}

fn hold(path: &Path) {
    // The parent may be looking at this moment.
    let _database = (0..1000).find_map(|_| Database::open(path).ok().or_else(pause)).unwrap();
    thread::sleep(Duration::from_secs(60));
}

fn pause<T>() -> Option<T> {
    thread::sleep(Duration::from_millis(2));
    None
}

/// Loads the snapshot again and again; each is of one generation and has all of it.
fn read(path: &Path) {
    let mut last = None;
    let mut is_over = false;
    while !is_over {
        is_over = beside(path, ".stop").exists();
        let snapshot = Snapshot::load(path).unwrap();
        let number = snapshot.entries()[0].tried;
        assert!(snapshot.entries().iter().all(|entry| entry.tried == number));
        assert_eq!(snapshot.entries().len(), entries_of(number));
        if last.is_none_or(|last| last < number) {
            println!("saw {number}");
        }
        assert!(last.is_none_or(|last| last <= number), "went back from {last:?} to {number}");
        last = Some(number);
    }
}

fn generation(number: u32) -> Snapshot {
    let with_number = |record: Record| Record { tried: number, ..record };
    Snapshot::of(&records(entries_of(number)).into_iter().map(with_number).collect::<Vec<_>>())
}

fn entries_of(number: u32) -> usize {
    100 + (number as usize * 37) % 400
}

/// Candidates of the append loop: enough to grow, few enough to be replaced.
const SLOTS: u64 = 1400;

/// The trial with this seed; seeds that are `SLOTS` apart are of one candidate.
fn numbered(seed: u64) -> GpuTrial {
    let slot = seed % SLOTS;
    trial(&format!("nvfp4 4096x4096 m{}", BUCKETS[slot as usize % BUCKETS.len()]), slot, seed)
}

/// Starts this binary as a child that plays `role` on `path`.
fn spawn(role: &str, path: &Path) -> Child {
    as_child(Command::new(std::env::current_exe().unwrap()), role, path).spawn().unwrap()
}

fn as_child(mut command: Command, role: &str, path: &Path) -> Command {
    command.args(["child", "--exact", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).env(PATH, path).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// From when a child's life is counted.
#[derive(PartialEq)]
enum Since {
    Start,
    FirstTrial,
}

/// Kills the child (signal 9) after `life`; returns the whole lines that it had printed.
fn run_and_kill(role: &str, path: &Path, since: Since, life: Duration) -> Vec<String> {
    let mut child = spawn(role, path);
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let (line_sender, line_receiver) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut line = String::new();
        while stdout.read_line(&mut line).is_ok_and(|length| length > 0) {
            // A line without its end was cut by the kill.
            if let Some(whole) = line.strip_suffix('\n') {
                line_sender.send(whole.to_string()).unwrap();
            }
            line.clear();
        }
    });
    let mut lines = Vec::new();
    while since == Since::FirstTrial && !lines.iter().any(|line: &String| line.starts_with("kept ")) {
        lines.push(line_receiver.recv_timeout(Duration::from_secs(30)).expect("the child appends"));
    }
    thread::sleep(life);
    child.kill().unwrap();
    let errors = child.wait_with_output().unwrap().stderr;
    let errors = String::from_utf8_lossy(&errors);
    assert!(!errors.contains("panicked"), "{errors}");
    reader.join().unwrap();
    lines.extend(line_receiver.try_iter());
    lines
}

fn succeeded(output: Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("panicked"), "{errors}");
    text.lines().map(str::to_string).collect()
}

/// Cuts one of sled's files, clears a page of it or flips a bit; returns what was done.
fn damage(path: &Path, case: u64, numbers: &mut Numbers) -> String {
    let name = if case % 6 == 5 { "conf" } else { "db" };
    let file = path.join(name);
    let mut bytes = fs::read(&file).unwrap();
    let at = numbers.below(bytes.len() as u64) as usize;
    let what = match case % 4 {
        0 => {
            bytes.truncate(at);
            format!("cut to {at} bytes")
        }
        1 => {
            let start = at / 4096 * 4096;
            let end = bytes.len().min(start + 4096);
            bytes[start..end].fill(0);
            format!("cleared from byte {start} to {end}")
        }
        _ => {
            let bit = numbers.below(8);
            bytes[at] ^= 1 << bit;
            format!("bit {bit} of byte {at} flipped")
        }
    };
    fs::write(file, bytes).unwrap();
    format!("case {case}: {name} {what}")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}
