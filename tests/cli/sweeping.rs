//! What `gc` removes, and above all what it leaves.

use std::fs::{self, File, FileTimes};
use std::path::Path;
use std::time::{Duration, SystemTime};

use tilekiln::store::{Database, GpuTrial};

use crate::machine::{Machine, Said, current_record};
use crate::store_samples;

/// Makes `path` look as if it had last been used `days` ago.
fn age(path: &Path, days: u64) {
    let then = SystemTime::now() - Duration::from_secs(86400 * days);
    File::open(path).unwrap().set_times(FileTimes::new().set_accessed(then).set_modified(then)).unwrap();
}

#[test]
fn kernels_go_when_no_record_uses_them_and_nobody_has_for_long() {
    let machine = Machine::cold();
    machine.data(&["--problem", "nvfp4 64x64", "--m", "1,64"]);
    let all = machine.kernels().len() as u64;
    let young = machine.json(&["gc", "--dry-run"]);
    let used = young["used"].as_u64().unwrap();
    assert!(used > 0 && used < all, "{young}");
    assert_eq!((&young["kernels"], &young["recent"]), (&0.into(), &(all - used).into()), "{young}");

    machine.kernels().iter().for_each(|kernel| age(&kernel.join("kernel.cubin"), 40));
    let dry = machine.json(&["gc", "--dry-run"]);
    assert_eq!((&dry["kernels"], machine.kernels().len() as u64), (&(all - used).into(), all), "{dry}");
    assert!(dry["kernel_bytes"].as_u64().unwrap() > 1000, "{dry}");
    assert_eq!(machine.json(&["gc", "--older-than", "50d"])["kernels"], 0);

    // Somebody else is at work on each kernel.
    let locks = machine.path("cache/kernels/locks");
    let locked: Vec<File> =
        fs::read_dir(&locks).unwrap().map(|lock| File::open(lock.unwrap().path()).unwrap()).collect();
    locked.iter().for_each(|lock| lock.lock().unwrap());
    let busy = machine.json(&["gc"]);
    assert_eq!((&busy["locked"], machine.kernels().len() as u64), (&(all - used).into(), all), "{busy}");
    drop(locked);

    let removed = machine.json(&["gc"]);
    assert_eq!((&removed["kernels"], &removed["kernel_bytes"]), (&(all - used).into(), &dry["kernel_bytes"]));
    assert_eq!(machine.kernels().len() as u64, used);
    let again = machine.data(&["gc"]);
    assert!(
        again.contains(&format!("kernels                0      0  {used} of records, 0 recent, 0 locked")),
        "{again}"
    );
    // What the records need is still there: nothing has to be compiled for them.
    for problem in ["nvfp4 64x64 m1", "nvfp4 64x64 m64"] {
        let mut command = machine.command(&["render", "--problem", problem, "--resources", "--offline"]);
        command.env("TILEKILN_NVRTC", "/bin/true");
        assert_eq!(Said::by(command).code(), 0, "{problem}");
    }
}

#[test]
fn trials_of_kernels_that_changed_go_and_winners_stay() {
    let machine = Machine::new();
    let record = current_record("nvfp4 64x64 m1", 2.0);
    let mut stale = current_record("nvfp4 64x64 m2", 2.0);
    stale.toolchain.kernels = "0123456789abcdef".to_string();
    machine.keep(&[record.clone(), stale]);
    let GpuTrial { gpu, trial } = store_samples::trial("nvfp4 64x64 m1", 1, 1);
    let mut current = GpuTrial { gpu, trial: trial.clone() };
    (current.trial.tile, current.trial.toolchain) = (record.tile, record.toolchain);
    let mut foreign = current.clone();
    foreign.gpu.product = "NVIDIA Tomorrow".to_string();
    let outdated = store_samples::trial("nvfp4 64x64 m1", 2, 1);
    machine.keep_trials(&[current, foreign, outdated]);
    assert_eq!(machine.json(&["gc", "--dry-run"])["trials"], 1);
    assert_eq!(machine.json(&["gc"])["trials"], 1);
    assert_eq!(Database::open(&machine.database()).unwrap().0.counts(), (2, 2));
    assert_eq!(machine.json(&["gc"])["trials"], 0);
}

#[test]
fn leftovers_go_when_they_are_old() {
    let machine = Machine::cold();
    let [old, young] = ["cache/kernels/.building-old", "cache/kernels/.building-young"].map(|name| machine.path(name));
    let (fetch, write) = (machine.path("cache/nvrtc/.fetching-old"), machine.path("data/.tilekiln-old"));
    for folder in [&old, &young, &fetch] {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("part"), [0; 10]).unwrap();
    }
    fs::create_dir(machine.path("data")).unwrap();
    fs::write(&write, [0; 10]).unwrap();
    [&old, &fetch, &write].into_iter().for_each(|path| age(path, 1));
    let removed = machine.json(&["gc"]);
    assert_eq!((&removed["leftovers"], &removed["leftover_bytes"]), (&3.into(), &30.into()), "{removed}");
    assert_eq!([&old, &young, &fetch, &write].map(|path| path.exists()), [false, true, false, false]);
    assert!(!machine.database().exists(), "no database was made");
}

#[test]
fn gc_waits_for_nobody_and_touches_no_held_database() {
    let machine = Machine::cold();
    machine.keep(&[current_record("nvfp4 64x64 m1", 2.0)]);
    let _holder = Database::open(&machine.database()).unwrap().0;
    machine.run(&["gc"]).refuses(1, "to be free, found it held by process ", "wait for it to end");
}
