//! The main job: search every bucket of every op, keep the winners, say what was found.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use serde::Serialize;

use super::args::{CommonArgs, EffortArg, TuneArgs};
use super::context::Paths;
use super::progress::ProgressView;
use super::voice::{self, talk};
use super::{CliError, Exit};
use crate::arch::GpuSpec;
use crate::jit::{Jit, Stop};
use crate::problem::Routing;
use crate::store::{Database, Put, Record, Toolchain};
use crate::tuner::{
    Effort, Job, Progress, Session, SessionError, Settings, Spent, Summary, Worker, WorkerBench, WorkerCommand,
    failure, headline,
};

/// Settings of a run, with the versions that its records will name.
pub fn settings(tune: &TuneArgs, gpu: GpuSpec, driver: &str, nvrtc: String) -> Settings {
    let effort = match tune.effort {
        EffortArg::Quick => Effort::QUICK,
        EffortArg::Full => Effort::FULL,
        EffortArg::Exhaustive => Effort::EXHAUSTIVE,
    };
    let routings = match tune.effort {
        EffortArg::Quick => vec![Routing::Uniform],
        EffortArg::Full | EffortArg::Exhaustive => vec![Routing::Uniform, Routing::Zipf(1.0)],
    };
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    Settings {
        gpu,
        effort,
        routings,
        deadline: tune.budget.map(|budget| Instant::now() + budget),
        toolchain: Toolchain {
            driver: driver.to_string(),
            nvrtc,
            kernels: String::new(),
            commit: crate::COMMIT.to_string(),
        },
        seed: tune.seed,
        is_forced: tune.force,
        compile_threads: tune.compile_threads.unwrap_or(cores.saturating_sub(1).max(1)),
    }
}

/// Opens the database and says if it had to be mended.
pub fn open_database(paths: &Paths) -> Result<Database, CliError> {
    let (database, recovery) = Database::open(&paths.database)?;
    if let Some(recovery) = recovery {
        talk(&format!("warning: {recovery}"));
    }
    Ok(database)
}

/// Opens the database, which must be there.
pub fn open_existing_database(paths: &Paths) -> Result<Database, CliError> {
    let (database, recovery) = Database::open_existing(&paths.database)?;
    recovery.iter().for_each(|recovery| talk(&format!("warning: {recovery}")));
    Ok(database)
}

/// Counts Ctrl-C: one ends the run with everything saved, and `stop`s compilations; a second ends it at once.
pub fn signals(stop: &Stop) -> Arc<AtomicU32> {
    let count = Arc::new(AtomicU32::new(0));
    let (counted, stop) = (count.clone(), stop.clone());
    let handler = move || {
        if counted.fetch_add(1, Ordering::SeqCst) > 0 {
            std::process::exit(i32::from(Exit::InPart.code()));
        }
        stop.now();
        talk("stopping; everything found so far is kept (again to stop at once)");
    };
    // A second handler cannot be set; then the default one ends the run, and what was saved is saved.
    let _ = ctrlc::set_handler(handler);
    count
}

/// A run on a live GPU, and what it leaves behind for whoever goes on measuring.
pub struct Run {
    /// What the shell is told.
    pub exit: Exit,
    /// Counts.
    pub summary: Summary,
    /// What is stored now of each problem, in the order in which it was worked on.
    pub records: Vec<Record>,
    /// The worker.
    pub bench_of: WorkerBench,
    /// The database, still open.
    pub database: Database,
    /// What the run was told.
    pub settings: Settings,
    /// What compiles.
    pub jit: Arc<Jit>,
    /// Ctrl-C so far.
    pub signals: Arc<AtomicU32>,
}

/// Searches `jobs` on the GPU that the worker has open, and prints what was asked for.
pub fn run(
    common: &CommonArgs,
    tune: &TuneArgs,
    paths: &Paths,
    target: (Worker, WorkerCommand, GpuSpec),
    jobs: &[Job],
) -> Result<Exit, CliError> {
    let Run { exit, summary, records, settings, .. } = live_run(tune, paths, target, jobs)?;
    if common.json {
        print_json(&settings, &summary, &records)?;
    }
    Ok(exit)
}

/// Searches `jobs` on the GPU that the worker has open.
pub fn live_run(
    tune: &TuneArgs,
    paths: &Paths,
    (worker, command, gpu): (Worker, WorkerCommand, GpuSpec),
    jobs: &[Job],
) -> Result<Run, CliError> {
    let started = Instant::now();
    let jit = paths.measuring_jit();
    let signals = signals(jit.stop());
    let database = open_database(paths)?;
    let settings = settings(tune, gpu, &worker.gpu().driver, jit.nvrtc()?.version());
    let mut bench_of = WorkerBench::new(command, worker, settings.routings.clone(), tune.seed);
    let of: usize = jobs.iter().map(|job| job.measured.len() + job.inherited.len()).sum();
    talk(&opening(&settings, jobs, of));
    let view = ProgressView::start(of);
    let should_stop = || signals.load(Ordering::SeqCst) > 0;
    let mut records = Vec::new();
    let mut on_progress = |progress: Progress<'_>| show(&view, &settings.gpu, progress, &mut records);
    let session = Session::new(&settings, &database, jit.clone(), &should_stop, &mut on_progress);
    let summary = session.run(jobs, &mut bench_of);
    drop(view);
    jit.cache().take_warnings().iter().for_each(|warning| talk(&format!("warning: {warning}")));
    database.write_snapshot()?;
    let summary = summary.map_err(|error| match error {
        SessionError::Database(error) => error.into(),
        SessionError::Gpu(reason) => {
            CliError::failed(reason, Some("everything found so far is kept; the same command goes on".to_string()))
        }
    })?;
    closing(&summary, &bench_of, paths, started);
    Ok(Run { exit: exit(&summary), summary, records, bench_of, database, settings, jit, signals })
}

/// What a run ends with.
pub fn exit(summary: &Summary) -> Exit {
    match summary {
        Summary { left: 1.., .. } | Summary { is_interrupted: true, .. } => Exit::InPart,
        Summary { lost: 1.., .. } => Exit::Failed,
        _ => Exit::Done,
    }
}

fn opening(settings: &Settings, jobs: &[Job], of: usize) -> String {
    let Settings { gpu, toolchain, .. } = settings;
    format!(
        "{} ({}, driver {}, NVRTC {}): {} ops, {of} buckets",
        gpu.identity.product,
        gpu.target,
        toolchain.driver,
        toolchain.nvrtc,
        jobs.len()
    )
}

/// One event, as a line or as the state of the bar.
fn show(view: &ProgressView, gpu: &GpuSpec, progress: Progress<'_>, records: &mut Vec<Record>) {
    match progress {
        Progress::Job { job_idx, jobs, name } => {
            view.status(format!("op {} of {jobs}, {name}: making data", job_idx + 1))
        }
        Progress::Searching { problem, done, .. } => {
            view.done(done);
            view.status(format!("{problem}"));
        }
        Progress::Tried { problem, tile, outcome } => {
            if let Some(failure) = failure(tile, outcome) {
                view.line(&format!("  {problem}: {failure}"));
            }
            view.status(format!("{problem}: {tile}"));
        }
        Progress::Won { record, put } => {
            let kept = match put {
                Put::Kept { incumbent, ground } => format!(" (kept {}: {ground})", incumbent.tile),
                _ => String::new(),
            };
            let how = match &record.origin {
                crate::store::Origin::Inherited { from_m } => format!(" (inherited from m{from_m})"),
                _ => String::new(),
            };
            view.line(&format!("{}: {}{how}{kept}", record.problem, headline(record, gpu)));
            records.push(put.winner(record).clone());
        }
        Progress::Fresh { record } => records.push(record.clone()),
        Progress::Lost { problem, reason } => view.line(&format!("error: {problem}: {reason}")),
    }
}

fn closing(summary: &Summary, bench_of: &WorkerBench, paths: &Paths, started: Instant) {
    let Summary { searched, fresh, inherited, lost, left, tried, failed, compiled, .. } = summary;
    talk(&format!(
        "{searched} searched, {inherited} inherited, {fresh} fresh, {lost} without a winner, {left} left; \
         {tried} candidates, {failed} failed, {compiled} kernels compiled, {} workers replaced; {:.1} s",
        bench_of.replacements(),
        started.elapsed().as_secs_f64()
    ));
    let Spent { opening, loading, checking, timing } = bench_of.spent();
    let [opening, loading, checking, timing] = [opening, loading, checking, timing].map(|spent| spent.as_secs_f64());
    talk(&format!(
        "of these, making data {opening:.1} s, waiting for kernels {loading:.1} s, checking {checking:.1} s, timing \
         {timing:.1} s"
    ));
    talk(&format!(
        "winners are in {} and {}",
        paths.database.display(),
        Database::snapshot_path(&paths.database).display()
    ));
    if *left > 0 {
        talk("the same command goes on where this one stopped");
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    gpu: &'a str,
    product: &'a str,
    driver: &'a str,
    nvrtc: &'a str,
    commit: &'a str,
    searched: usize,
    fresh: usize,
    inherited: usize,
    lost: usize,
    left: usize,
    tried: usize,
    failed: usize,
    records: &'a [Record],
}

/// Prints the records of a run.
pub fn print_json(settings: &Settings, summary: &Summary, records: &[Record]) -> Result<(), CliError> {
    let Summary { searched, fresh, inherited, lost, left, tried, failed, .. } = *summary;
    let Toolchain { driver, nvrtc, commit, .. } = &settings.toolchain;
    let (gpu, product) = (settings.gpu.name.as_str(), settings.gpu.identity.product.as_str());
    let report =
        Report { gpu, product, driver, nvrtc, commit, searched, fresh, inherited, lost, left, tried, failed, records };
    voice::json(&report)
}
