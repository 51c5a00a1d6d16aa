//! A kernel that faults, one that hangs and a worker that dies cost one candidate each; a whole run in small.

use std::collections::HashSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tilekiln::environment;
use tilekiln::jit::{Jit, KernelCache, Search};
use tilekiln::problem::{Problem, Routing};
use tilekiln::store::{Database, Origin, Outcome, Toolchain, WinnerKey};
use tilekiln::tuner::{
    self, Bench, Effort, Job, Mode, Sabotage, ServeOptions, Session, Settings, Worker, WorkerBench, WorkerCommand,
    WorkerError,
};

use crate::context::{Case, Context, Failure};

/// This binary is its own worker: `gpu --socket PATH`.
pub fn serve_if_asked() -> Option<ExitCode> {
    let words: Vec<String> = std::env::args().collect();
    let at = words.iter().position(|word| word == "--socket")?;
    let cache = KernelCache::new(environment::cache_dir().join("kernels"));
    let jit = Arc::new(Jit::new(Search::from_environment(), cache));
    let options = ServeOptions { socket: words.get(at + 1)?.into(), ordinal: 0, jit };
    Some(if tuner::serve(options).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&mut Context) -> Result<usize, Failure>| Case {
        name: name.to_string(),
        run: Box::new(run),
    };
    vec![
        case("recovery from misbehaving kernels", misbehaving_kernels),
        case("recovery goes on with the same op", the_op_goes_on),
        case("recovery of a whole run", a_run_in_small),
    ]
}

fn command() -> Result<WorkerCommand, Failure> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    Ok(WorkerCommand { program, arguments: Vec::new() })
}

fn start() -> Result<Worker, Failure> {
    Worker::start(&command()?).map_err(|error| error.to_string().into())
}

/// What the parent is told, and how long it takes.
fn misbehaving_kernels(_: &mut Context) -> Result<usize, Failure> {
    let mut worker = start()?;
    match worker.sabotage(Sabotage::Fault, Duration::from_secs(10)) {
        Err(WorkerError::Failed { outcome: Outcome::FailedToRun { message }, is_lost: true }) => {
            if !message.contains("ILLEGAL_ADDRESS") && !message.contains("illegal memory access") {
                return Err(format!("a fault was reported as `{message}`").into());
            }
        }
        other => return Err(format!("a fault gave {other:?}").into()),
    }
    let mut worker = start()?;
    let started = Instant::now();
    let limit = Duration::from_secs(1);
    match worker.sabotage(Sabotage::Hang, limit) {
        Err(WorkerError::TimedOut { .. }) if started.elapsed() < limit + Duration::from_secs(2) => {}
        other => return Err(format!("a hang gave {other:?} after {:.1} s", started.elapsed().as_secs_f64()).into()),
    }
    let mut worker = start()?;
    match worker.sabotage(Sabotage::Crash, Duration::from_secs(10)) {
        Err(WorkerError::Died { .. }) => Ok(3),
        other => Err(format!("a crash gave {other:?}").into()),
    }
}

/// A bench whose worker is killed from outside carries on with what it had.
fn the_op_goes_on(context: &mut Context) -> Result<usize, Failure> {
    let problem: Problem = "nvfp4 256x1024 m8".parse().map_err(|error| format!("{error}"))?;
    let spec = context.gpu.spec().clone();
    let tile = tilekiln::kernels::default_tile(&problem, &spec).ok_or_else(|| "no default".to_string())?;
    let worker = start()?;
    let pid = worker.pid();
    let mut bench = WorkerBench::new(command()?, worker, Vec::new(), 1);
    bench.open(&problem)?;
    let lost = |miss| format!("{miss:?}");
    bench.prepare(&problem, &tile).map_err(lost)?;
    bench.sample(&problem, &tile, Mode::Chained, 0).map_err(lost)?;
    let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status();
    if !killed.is_ok_and(|status| status.success()) {
        return Err("the worker could not be killed".to_string().into());
    }
    // The candidate that meets the loss is charged with it; the next question is answered again.
    let first = bench.sample(&problem, &tile, Mode::Chained, 0);
    let second = bench.sample(&problem, &tile, Mode::Chained, 0);
    match (first, second, bench.replacements()) {
        (Err(_), Ok(_), 1) => Ok(1),
        (first, second, replacements) => Err(format!("{first:?}, {second:?}, {replacements} replacements").into()),
    }
}

/// A run over three ops, then the same again: everything is fresh.
fn a_run_in_small(context: &mut Context) -> Result<usize, Failure> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let (database, _) = Database::open(&folder.path().join("db")).map_err(|error| error.to_string())?;
    let settings = Settings {
        gpu: context.gpu.spec().clone(),
        effort: Effort { first: 4, neighbours: 2, in_front: 1, rounds: 3 },
        deadline: None,
        toolchain: Toolchain {
            driver: context.gpu.driver_version().to_string(),
            nvrtc: context.jit.nvrtc().map_err(|error| error.to_string())?.version(),
            kernels: String::new(),
            commit: tilekiln::COMMIT.to_string(),
        },
        routings: vec![Routing::Uniform],
        seed: 3,
        is_forced: false,
        compile_threads: 4,
    };
    let job = |text: &str| -> Result<Job, Failure> {
        let problem: Problem = text.parse().map_err(|error| format!("{error}"))?;
        Ok(Job { name: text.to_string(), problem, measured: vec![1, 64], inherited: vec![8] })
    };
    let jobs = [job("nvfp4 512x1024")?, job("fp8 512x1024 swiglu")?, job("moe nvfp4 8 top2 512x256")?];
    let routings = vec![Routing::Uniform, Routing::Zipf(1.0)];
    let mut bench = WorkerBench::new(command()?, start()?, routings, settings.seed);
    let should_stop = || false;
    let mut ignore = |_: tuner::Progress<'_>| {};
    let run = |bench: &mut WorkerBench, ignore: &mut dyn FnMut(tuner::Progress<'_>)| {
        Session::new(&settings, &database, context.jit.clone(), &should_stop, ignore)
            .run(&jobs, bench)
            .map_err(|error| error.to_string())
    };
    let first = run(&mut bench, &mut ignore)?;
    let second = run(&mut bench, &mut ignore)?;
    if (first.searched, first.inherited, first.lost, first.left) != (6, 3, 0, 0) {
        return Err(format!("the first run came to {first:?}").into());
    }
    if (second.searched, second.fresh) != (0, 6) {
        return Err(format!("the second run came to {second:?}").into());
    }
    let mut origins = HashSet::new();
    for job in &jobs {
        for m in [1, 8, 64] {
            let problem = job.problem.with_m(m);
            let key = WinnerKey { layout: problem.layout(), problem: &problem, gpu: &settings.gpu.identity };
            let record = database.winner(&key).map_err(|error| error.to_string())?;
            let record = record.ok_or_else(|| format!("no record of `{problem}`"))?;
            origins.insert(format!("{:?}", record.origin));
            if record.origin == Origin::Measured && record.timing.chained_us > record.default_us * 1.02 {
                return Err(format!("`{problem}`: the winner is slower than the default").into());
            }
        }
    }
    Ok(9)
}
