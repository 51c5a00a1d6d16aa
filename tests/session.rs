//! A run over buckets, with the cost model in place of a GPU: what it counts is what it has kept.

mod store_samples;

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;

use store_samples::{problem, record};
use tilekiln::arch::GpuSpec;
use tilekiln::jit::{Jit, KernelCache, Search};
use tilekiln::problem::{Problem, Tile};
use tilekiln::store::{Database, Edits, Origin, Pack, Record, Snapshot, Toolchain, WinnerKey};
use tilekiln::tuner::{
    Bench, Effort, Job, Miss, Mode, Predicted, Progress, Sample, Session, Settings, Summary, ranked,
};

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

/// The cost model, for which there is no data of mixes of streams.
struct WithoutMixes<'a>(Predicted<'a>);

impl Bench for WithoutMixes<'_> {
    fn routings(&self) -> &[tilekiln::problem::Routing] {
        self.0.routings()
    }

    fn open(&mut self, problem: &Problem) -> Result<(), String> {
        match problem {
            Problem::StreamMix(_) => Err("out of memory".to_string()),
            _ => self.0.open(problem),
        }
    }

    fn prepare(&mut self, problem: &Problem, tile: &Tile) -> Result<f64, Miss> {
        self.0.prepare(problem, tile)
    }

    fn sample(&mut self, problem: &Problem, tile: &Tile, mode: Mode, routing_idx: usize) -> Result<Sample, Miss> {
        self.0.sample(problem, tile, mode, routing_idx)
    }

    fn release(&mut self, problem: &Problem, tile: &Tile) {
        self.0.release(problem, tile);
    }
}

fn quick() -> Settings {
    Settings {
        gpu: GpuSpec::named("h100").unwrap().clone(),
        effort: Effort::QUICK,
        deadline: None,
        toolchain: Toolchain::default(),
        routings: Vec::new(),
        seed: 1,
        is_forced: false,
        compile_threads: 1,
    }
}

#[test]
fn a_mix_of_streams_is_searched_and_kept_as_every_op_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("winners");
    let (database, _) = Database::open(&path).unwrap();
    let settings = quick();
    for op in ["hc f32 24x16384", "hc bf16 24x28672 first", "hc f32 4x16384"] {
        let (measured, inherited) = (vec![1, 16, 64, 1024, 4096], vec![2, 32, 8192]);
        let job = Job { name: "op".to_string(), problem: problem(op), measured, inherited };
        let (summary, told) = run(&database, &settings, job);
        assert_eq!((summary.searched, summary.inherited, summary.lost, summary.failed), (5, 3, 0, 0), "{op}");
        for record in &told {
            assert!(["hc_mix", "hc_mix_mma"].contains(&record.tile.family()), "{}", record.problem);
            assert_eq!(record.layout, "none", "{}", record.problem);
            assert_eq!(database.winner(&WinnerKey::of(record)).unwrap().as_ref(), Some(record));
        }
        // What readers and people get says the same.
        database.write_snapshot().unwrap();
        let snapshot = Snapshot::load(&Database::snapshot_path(&path)).unwrap();
        let pack = Pack::new(settings.gpu.identity.clone(), "dsv4", "nvfp4", told.clone()).unwrap();
        let file = folder.path().join("pack.toml");
        pack.write(&file).unwrap();
        let packed = Pack::read(&file, Edits::Refuse).unwrap();
        for record in &told {
            let entry = snapshot.get(&WinnerKey::of(record).hash()).unwrap();
            assert_eq!(entry.record().as_ref(), Ok(record));
            // A pack rounds times for people.
            let is_it = |other: &Record| (&other.problem, &other.tile) == (&record.problem, &record.tile);
            assert!(packed.records().iter().any(is_it), "{}", record.problem);
        }
    }
}

#[test]
fn a_mix_of_streams_that_cannot_be_measured_is_told_and_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (database, _) = Database::open(&folder.path().join("winners")).unwrap();
    let settings = quick();
    let jit = Arc::new(Jit::new(Search::from_environment(), KernelCache::new(folder.path().join("kernels"))));
    jit.stop().now();
    let mut lost = Vec::new();
    let mut on_progress = |progress: Progress<'_>| {
        if let Progress::Lost { problem, reason } = progress {
            lost.push(format!("{problem}: {reason}"));
        }
    };
    let job = |text: &str| {
        let (problem, measured) = (problem(text), vec![1, 64]);
        Job { name: text.to_string(), problem, measured, inherited: Vec::new() }
    };
    let jobs = [job("hc f32 24x16384"), job("nvfp4 256x256"), job("hc f32 4x16384 first"), job("nvfp4 512x256")];
    let session = Session::new(&settings, &database, jit, &|| false, &mut on_progress);
    let summary = session.run(&jobs, &mut WithoutMixes(Predicted { gpu: &settings.gpu })).unwrap();
    assert_eq!((summary.searched, summary.lost), (4, 4));
    assert_eq!(lost[1], "hc f32 24x16384 m64: out of memory");
}
