//! `autotune bench`: winners beside floors, the stream ceiling and other engines, measured in one run.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use super::args::{BenchArgs, CommonArgs, ReportArgs};
use super::context::{Paths, Target, target};
use super::tune::{self, Run};
use super::voice::{self, talk};
use super::{CliError, Exit, select};
use crate::arch::GpuSpec;
use crate::kernels::{self, Plan};
use crate::problem::{Problem, Tile};
use crate::report::{
    BenchMeta, BenchReport, BenchRow, MOST_RATIO, PeerTime, Peers, readme_block, replace_block, table,
};
use crate::store::{FileError, WinnerKey};
use crate::tuner::{Bench, CompileAhead, Job, Miss, Mode, Urgency, WorkerBench, sentence};

/// Tunes what has no winner yet, then measures every winner and writes the report.
pub fn run(common: &CommonArgs, bench: &BenchArgs, paths: &Paths) -> Result<Exit, CliError> {
    let peers = bench.peers.as_deref().map(read_peers).transpose()?;
    let jobs = match &peers {
        Some(peers) => {
            let tokens = select::buckets(&bench.tune.subject.tokens)?;
            jobs_of(peers.problems.keys().filter(|problem| wanted(problem, bench, &tokens)))
        }
        None => select::jobs(&bench.tune.subject, bench.tune.effort)?,
    };
    let Target::Live(worker, command, gpu) = target(common, paths)? else {
        let hint = "without a GPU, `autotune --model dsv4` compiles and predicts";
        return Err(CliError::failed("expected a GPU to measure on, found none", Some(hint.to_string())));
    };
    // Before anything is measured: what cannot be written is better known now.
    bench.out.as_deref().map_or(Ok(()), make_room)?;
    let mut run = tune::live_run(&bench.tune, paths, (*worker, command, gpu), &jobs)?;
    if run.exit == Exit::InPart {
        return Ok(run.exit);
    }
    let rows = measure(&mut run, &jobs, peers.as_ref())?;
    let is_whole = run.signals.load(Ordering::SeqCst) == 0;
    let Run { exit, settings, .. } = run;
    let report = BenchReport {
        meta: BenchMeta {
            gpu: settings.gpu.identity.product.clone(),
            driver: settings.toolchain.driver.clone(),
            nvrtc: settings.toolchain.nvrtc.clone(),
            commit: crate::COMMIT.to_string(),
            written_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            method: METHOD.to_string(),
            peers: peers.map(|peers| peers.gpu).unwrap_or_default(),
        },
        rows,
    };
    write(common, bench.out.as_deref(), &report)?;
    Ok(if is_whole { exit } else { Exit::InPart })
}

/// Measures the winner of every bucket of `jobs`, op by op; a signal ends it between two of them.
fn measure(run: &mut Run, jobs: &[Job], peers: Option<&Peers>) -> Result<Vec<BenchRow>, CliError> {
    let Run { bench_of, database, settings, jit, signals, .. } = run;
    // A run whose winners were all known has compiled nothing yet.
    let ahead = CompileAhead::start(jit.clone(), settings.gpu.clone(), settings.compile_threads);
    let mut wanted: Vec<(&Job, Vec<(Problem, Tile)>)> = Vec::new();
    for job in jobs {
        let mut winners = Vec::new();
        for &m in &job.measured {
            let problem = job.problem.with_m(m);
            let key = WinnerKey { layout: problem.layout(), problem: &problem, gpu: &settings.gpu.identity };
            let Some(record) = database.winner(&key)? else { continue };
            let plan = kernels::plan(&problem, &record.tile, &settings.gpu).ok();
            ahead.enqueue(Urgency::Planned, plan.iter().flat_map(Plan::kernels).cloned());
            winners.push((problem, record.tile));
        }
        wanted.push((job, winners));
    }
    let mut measure = Measure { bench: bench_of, ceilings: HashMap::new(), gpu: &settings.gpu, peers };
    let mut rows = Vec::new();
    for (job, winners) in wanted {
        let Some(&most) = job.measured.iter().max().filter(|_| signals.load(Ordering::SeqCst) == 0) else { continue };
        talk(&format!("measuring {}", job.problem.op()));
        measure.ceilings_of(job)?;
        measure.bench.open(&job.problem.with_m(most)).map_err(|reason| CliError::failed(reason, None))?;
        for (problem, tile) in &winners {
            rows.push(measure.row(problem, tile)?);
        }
    }
    Ok(rows)
}

/// `autotune report`: a committed report as tables, and into a README.
pub fn report(common: &CommonArgs, args: &ReportArgs) -> Result<Exit, CliError> {
    let text = read(&args.results, "`autotune bench --out FILE` writes a report; benches/results/ holds some")?;
    let mut report: BenchReport = serde_json::from_str(&text).map_err(|error| {
        let sentence = format!("{}: expected a report of `autotune bench`, found {error}", args.results.display());
        CliError::usage(sentence, "benches/results/ holds such reports")
    })?;
    if let Some(path) = &args.peers {
        report.take_peers(&read_peers(path)?);
    }
    if let Some(path) = &args.readme {
        let block = readme_block(&report, &args.results.display().to_string());
        let rewritten = replace_block(&read(path, "name the README of a checkout")?, &block).map_err(|error| {
            CliError::failed(format!("{}: {error}", path.display()), Some("README.md has both lines".to_string()))
        })?;
        save(path, &rewritten)?;
        talk(&format!("rewrote the results in {}", path.display()));
    } else if common.json {
        voice::json(&report)?;
    } else {
        voice::print(&table(&report))?;
    }
    Ok(Exit::Done)
}

struct Measure<'a> {
    bench: &'a mut WorkerBench,
    /// Pure reads by bytes: chained, unchained.
    ceilings: HashMap<u64, (f64, f64)>,
    gpu: &'a GpuSpec,
    peers: Option<&'a Peers>,
}

impl Measure<'_> {
    /// Measures the ceilings of a job's weight bytes, while no data is there.
    fn ceilings_of(&mut self, job: &Job) -> Result<(), CliError> {
        for &m in &job.measured {
            let bytes = weight_bytes(&job.problem.with_m(m));
            if !self.ceilings.contains_key(&bytes) {
                let failed = |error: crate::tuner::WorkerError| CliError::failed(error.to_string(), None);
                let ceiling = self.bench.ceiling(bytes).map_err(failed)?;
                self.ceilings.insert(bytes, ceiling);
            }
        }
        Ok(())
    }

    fn row(&mut self, problem: &Problem, tile: &Tile) -> Result<BenchRow, CliError> {
        let failed = |miss: Miss| match miss {
            Miss::Fatal(reason) => CliError::failed(reason, None),
            Miss::Candidate(outcome) => CliError::failed(format!("`{problem}` {tile}: {}", sentence(&outcome)), None),
        };
        let relative_l2 = self.bench.prepare(problem, tile).map_err(failed)?;
        let (mut chained, mut unchained, mut clocks) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let sample = self.bench.sample(problem, tile, Mode::Chained, 0).map_err(failed)?;
            chained.push(sample.us);
            clocks.push(f64::from(sample.sm_clock_mhz));
            unchained.push(self.bench.sample(problem, tile, Mode::Unchained, 0).map_err(failed)?.us);
        }
        self.bench.release(problem, tile);
        let (ceiling_chained_us, ceiling_unchained_us) =
            self.ceilings.get(&weight_bytes(problem)).copied().unwrap_or((f64::NAN, f64::NAN));
        let (chained_us, half_width_us) = crate::tuner::median_and_half_width(&chained);
        Ok(BenchRow {
            problem: problem.clone(),
            tile: tile.to_string(),
            chained_us,
            unchained_us: crate::tuner::median_and_half_width(&unchained).0,
            half_width_us,
            floor_us: problem.floor_us(self.gpu),
            ceiling_chained_us,
            ceiling_unchained_us,
            relative_l2,
            is_warm: self.bench.is_warm(),
            sm_clock_mhz: crate::tuner::median_and_half_width(&clocks).0 as u32,
            peers: self.peers_of(problem),
        })
    }

    fn peers_of(&self, problem: &Problem) -> Vec<PeerTime> {
        self.peers.and_then(|peers| peers.problems.get(problem)).cloned().unwrap_or_default()
    }
}

/// Bytes of weights that a launch must read.
fn weight_bytes(problem: &Problem) -> u64 {
    match problem {
        Problem::Dense(dense) => dense.weight_bytes(),
        Problem::MoeBlock(block) => block.touched_weight_bytes(),
        Problem::Convert(convert) => convert.bytes(),
    }
}

/// Problems of one op are one job.
fn jobs_of<'a>(problems: impl Iterator<Item = &'a Problem>) -> Vec<Job> {
    let mut jobs: Vec<Job> = Vec::new();
    for problem in problems {
        match jobs.iter_mut().find(|job| job.problem.op() == problem.op()) {
            Some(job) => job.measured.push(problem.m()),
            None => jobs.push(Job {
                name: problem.op(),
                problem: problem.clone(),
                measured: vec![problem.m()],
                inherited: Vec::new(),
            }),
        }
    }
    jobs.iter_mut().for_each(|job| job.measured.sort_unstable());
    jobs
}

/// Whether `--only` and `--m` let a problem of the peers' file through.
fn wanted(problem: &Problem, bench: &BenchArgs, tokens: &[u32]) -> bool {
    let only = &bench.tune.subject.only;
    let is_named = only.as_ref().is_none_or(|text| problem.to_string().contains(text.as_str()));
    is_named && (tokens.is_empty() || tokens.contains(&problem.m()))
}

fn write(common: &CommonArgs, out: Option<&Path>, report: &BenchReport) -> Result<(), CliError> {
    if let Some(path) = out {
        let text = serde_json::to_string_pretty(report)
            .map_err(|error| CliError::failed(format!("the report cannot be written as JSON ({error})"), None))?;
        save(path, &(text + "\n"))?;
        talk(&format!("wrote {}", path.display()));
    }
    match common.json {
        true => voice::json(report)?,
        false => voice::print(&table(report))?,
    }
    let behind = report.behind(MOST_RATIO);
    let compared = report.rows.iter().filter(|row| row.ratio().is_some()).count();
    talk(&format!("{} of {compared} rows take more than {MOST_RATIO} times the best peer's time", behind.len()));
    for (row, ratio) in behind {
        talk(&format!("  {}: {ratio:.2}", row.problem));
    }
    Ok(())
}

fn read_peers(path: &Path) -> Result<Peers, CliError> {
    let hint = "benches/peers/h100.json shows the form of such a file";
    Peers::read(path).map_err(|error| CliError::usage(error.to_string(), hint))
}

fn read(path: &Path, hint: &str) -> Result<String, CliError> {
    std::fs::read_to_string(path).map_err(|error| match FileError::new(path, "read", &error) {
        error @ FileError::Missing { .. } => CliError::failed(error.to_string(), Some(hint.to_string())),
        other => other.into(),
    })
}

/// Writes a file, with the folders that it lies in.
fn save(path: &Path, text: &str) -> Result<(), CliError> {
    make_room(path)?;
    std::fs::write(path, text).map_err(|error| FileError::new(path, "write", &error).into())
}

/// Makes the folders that a file will lie in.
fn make_room(path: &Path) -> Result<(), CliError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let made = folder.map_or(Ok(()), std::fs::create_dir_all);
    made.map_err(|error| FileError::new(path, "write", &error).into())
}

/// Rounds of each mode.
const ROUNDS: usize = 7;

const METHOD: &str = "\
CUDA graphs of launches over rotating copies of the weights, and of experts over eight routing tables in turn, so that \
weights come from device memory; medians of 7 replays, chained (programmatic dependent launch; where the result is \
BF16 without SwiGLU, each launch reads what the one before wrote) and unchained (no overlap) in turn; every element \
checked against f64 first; random data; clocks untouched.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_saved_with_its_folders_or_says_what_is_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results/h100/bench.json");
        save(&path, "{}").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}");
        let error = save(&path.join("below.json"), "{}").unwrap_err();
        assert!(error.to_string().contains("found a file on the way") && error.hint().is_some(), "{error}");
    }
}
