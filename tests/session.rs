//! A run over buckets, with the cost model in place of a GPU: what it counts is what it has kept.

mod store_samples;

use std::sync::Arc;

use store_samples::{problem, record};
use tilekiln::arch::GpuSpec;
use tilekiln::jit::{Jit, KernelCache, Search};
use tilekiln::store::{Database, Origin, Record, Toolchain, WinnerKey};
use tilekiln::tuner::{Effort, Job, Predicted, Progress, Session, Settings, Summary};

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
