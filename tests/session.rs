//! A run over buckets, with the cost model in place of a GPU: what it counts is what it has kept.

mod store_samples;

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use store_samples::{problem, record};
use tilekiln::arch::GpuSpec;
use tilekiln::jit::{Jit, KernelCache, Search};
use tilekiln::store::{Database, Origin, Record, Toolchain, WinnerKey};
use tilekiln::tuner::{Effort, Job, Predicted, Progress, Session, Settings, Summary, ranked};

/// Runs one job, and gives what it came to and the records that it told of.
fn run(database: &Database, settings: &Settings, job: Job) -> (Summary, Vec<Record>) {
    let folder = tempfile::tempdir().unwrap();
    let jit = Arc::new(Jit::new(Search::from_environment(), KernelCache::new(folder.path())));
    // Nothing is launched, so nothing has to be compiled.
    jit.stop().now();
    let mut told = Vec::new();
    let mut on_progress = |progress: Progress<'_>| {
        if let Progress::Won { record, put } = progress {
            told.push(put.winner(record).clone());
        }
    };
    let session = Session::new(settings, database, jit, &|| false, &mut on_progress);
    let summary = session.run(&[job], &mut Predicted { gpu: &settings.gpu }).unwrap();
    (summary, told)
}

/// Runs a search of every tile that is stopped after `most` tiles, and gives what it came to and how many it tried.
fn sweep(database: &Database, settings: &Settings, most: usize) -> (Summary, usize) {
    let folder = tempfile::tempdir().unwrap();
    let jit = Arc::new(Jit::new(Search::from_environment(), KernelCache::new(folder.path())));
    jit.stop().now();
    let tried = RefCell::new(HashSet::new());
    let mut on_progress = |progress: Progress<'_>| {
        if let Progress::Tried { tile, .. } = progress {
            tried.borrow_mut().insert(tile.clone());
        }
    };
    let should_stop = || tried.borrow().len() >= most;
    let session = Session::new(settings, database, jit, &should_stop, &mut on_progress);
    let problem = problem("nvfp4 256x256 m1");
    let job = Job { name: "op".to_string(), problem, measured: vec![1], inherited: Vec::new() };
    let summary = session.run(&[job], &mut Predicted { gpu: &settings.gpu }).unwrap();
    let tried = tried.borrow().len();
    (summary, tried)
}

#[test]
fn a_sweep_of_every_tile_goes_on_where_it_was_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let (database, _) = Database::open(&folder.path().join("winners")).unwrap();
    let gpu = GpuSpec::named("h100").unwrap().clone();
    let all = ranked(&problem("nvfp4 256x256 m1"), &gpu).len();
    let settings = Settings {
        gpu,
        effort: Effort::EXHAUSTIVE,
        deadline: None,
        toolchain: Toolchain::default(),
        routings: Vec::new(),
        seed: 1,
        is_forced: false,
        compile_threads: 1,
    };
    let (first, tried) = sweep(&database, &settings, all / 2);
    assert_eq!((first.searched, first.left, tried), (0, 1, all / 2));
    let (second, again) = sweep(&database, &settings, usize::MAX);
    assert_eq!((second.searched, second.left), (1, 0));
    // The default and the fastest of the first half race once more.
    assert!((all - all / 2..=all - all / 2 + 7).contains(&again), "{again} of {all} after {tried}");
    let (third, tried) = sweep(&database, &settings, usize::MAX);
    assert_eq!((third.fresh, tried), (1, 0));
}

#[test]
fn a_search_that_was_cut_short_is_taken_up_again() {
    let folder = tempfile::tempdir().unwrap();
    let (database, _) = Database::open(&folder.path().join("winners")).unwrap();
    let settings = Settings {
        gpu: GpuSpec::named("h100").unwrap().clone(),
        effort: Effort::QUICK,
        deadline: None,
        toolchain: Toolchain::default(),
        routings: Vec::new(),
        seed: 1,
        is_forced: false,
        compile_threads: 1,
    };
    // More than the first field and a fifth, fewer than all neighbours.
    let (first, _) = sweep(&database, &settings, 14);
    assert_eq!((first.searched, first.left), (0, 1));
    let (second, tried) = sweep(&database, &settings, usize::MAX);
    assert_eq!((second.fresh, second.searched), (0, 1), "{tried} tried");
    let (third, _) = sweep(&database, &settings, usize::MAX);
    assert_eq!((third.fresh, third.searched), (1, 0));
}

#[test]
fn a_bucket_whose_own_winner_stays_has_inherited_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (database, _) = Database::open(&folder.path().join("winners")).unwrap();
    let gpu = GpuSpec::named("h100").unwrap().clone();
    let mut own = record("nvfp4 256x256 m2", "h100", 1, 5.0);
    own.tile = tilekiln::kernels::default_tile(&own.problem, &gpu).unwrap();
    own.runners_up.clear();
    database.put_winner(&own, 0.02, &|_| false).unwrap();
    let settings = Settings {
        gpu,
        effort: Effort::QUICK,
        deadline: None,
        toolchain: Toolchain::default(),
        routings: Vec::new(),
        seed: 1,
        is_forced: false,
        compile_threads: 1,
    };
    let job =
        Job { name: "op".to_string(), problem: problem("nvfp4 256x256 m1"), measured: vec![1], inherited: vec![2, 4] };
    let (summary, told) = run(&database, &settings, job);
    assert_eq!((summary.searched, summary.inherited), (1, 1));
    assert_eq!(told.iter().filter(|record| matches!(record.origin, Origin::Inherited { .. })).count(), 1);
    assert!(told.contains(&own));
    for record in told {
        assert_eq!(database.winner(&WinnerKey::of(&record)).unwrap(), Some(record));
    }
}
