//! `autotune bench`: winners beside floors, the stream ceiling and other engines, measured in one run.
//!
//! Every row is saved as it comes. A row that the file has of this commit and GPU is not measured again, so a bench
//! that was cut short goes on with the same command.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::args::{BenchArgs, CommonArgs};
use super::context::{Paths, Target, target};
use super::measure::{LONG_US, Measure, REST, ROUNDS, Reads};
use super::results::{make_room, read_peers, read_report, save_report};
use super::suite::AttentionChain;
use super::table::Table;
use super::tune::{self, Run};
use super::voice::{self, talk};
use super::winners::Winners;
use super::{CliError, Exit, select, suite};
use crate::arch::GpuSpec;
use crate::kernels::{self, Plan};
use crate::problem::{Problem, Routing, Tile};
use crate::report::{BenchMeta, BenchReport, BenchRow, ChainRow, MOST_RATIO, Peers, regime_table, table};
use crate::store::WinnerKey;
use crate::tuner::{ChainLink, CompileAhead, Job, Urgency};

/// Tunes what has no winner yet, then measures every winner and writes the report.
pub fn run(common: &CommonArgs, bench: &BenchArgs, paths: &Paths) -> Result<Exit, CliError> {
    let peers = read_peers(&bench.peers)?;
    let chains = chains(bench)?;
    let mut jobs = jobs(bench, peers.as_ref(), &chains)?;
    if bench.list {
        return list(common, &jobs);
    }
    let started = Instant::now();
    let Target::Live(worker, command, gpu) = target(common, paths)? else {
        let hint = "without a GPU, `autotune --model dsv4` compiles and predicts";
        return Err(CliError::failed("expected a GPU to measure on, found none", Some(hint.to_string())));
    };
    // Before anything is measured: what cannot be written is better known now.
    bench.out.as_deref().map_or(Ok(()), make_room)?;
    jobs.iter_mut().for_each(|job| fit(job, &gpu));
    let (rows, known_chains) = known(bench, &gpu)?;
    let is_known = |problem: &Problem| !bench.again && is_measured(&rows, problem);
    jobs.iter_mut().for_each(|job| job.measured.retain(|&m| !is_known(&job.problem.with_m(m))));
    jobs.retain(|job| !job.measured.is_empty());
    let mut tuning = bench.tune.clone();
    tuning.budget = tuning.budget.map(|budget| budget.mul_f64(TUNING_SHARE));
    let to_tune = if bench.no_search { &[] } else { &jobs[..] };
    let mut run = tune::live_run(&tuning, paths, (*worker, command, gpu), to_tune)?;
    if run.signals.load(Ordering::SeqCst) > 0 || (run.exit == Exit::InPart && bench.tune.budget.is_none()) {
        return Ok(run.exit);
    }
    run.settings.deadline = bench.tune.budget.map(|budget| started + budget);
    let meta = meta(&run, peers.as_ref());
    let mut report = BenchReport { meta, rows, chains: known_chains };
    peers.iter().for_each(|peers| report.take_peers(peers));
    let mut session = Session { bench, paths, peers, report, is_whole: true };
    session.measure(&mut run, &jobs, &chains)?;
    session.close(common)?;
    Ok(if session.is_whole { run.exit } else { Exit::InPart })
}

/// What is measured, and what there is of it.
struct Session<'a> {
    bench: &'a BenchArgs,
    paths: &'a Paths,
    peers: Option<Peers>,
    report: BenchReport,
    /// Whether everything that was asked for was measured.
    is_whole: bool,
}

/// An op with the tiles of its buckets.
struct Wanted<'a> {
    job: &'a Job,
    tiles: Vec<(Problem, Tile)>,
}

impl Session<'_> {
    /// Measures the winner of every bucket of `jobs`, op by op; a signal or the budget ends it between two of them.
    fn measure(&mut self, run: &mut Run, jobs: &[Job], chains: &[AttentionChain]) -> Result<(), CliError> {
        let wanted = self.wanted(run, jobs)?;
        let peers = self.peers.take();
        let Run { bench_of, settings, jit, signals, .. } = run;
        // A run whose winners were all known has compiled nothing yet.
        let ahead = CompileAhead::start(jit.clone(), settings.gpu.clone(), settings.compile_threads);
        for (problem, tile) in wanted.iter().flat_map(|wanted| &wanted.tiles) {
            let plan = kernels::plan(problem, tile, &settings.gpu).ok();
            ahead.enqueue(Urgency::Planned, plan.iter().flat_map(Plan::kernels).cloned());
        }
        bench_of.set_routings(ROUTINGS.to_vec());
        let (gpu, seed) = (&settings.gpu, settings.seed);
        let mut measure = Measure { bench: bench_of, gpu, seed, peers: peers.as_ref(), ceilings: HashMap::new() };
        let is_over = || {
            let is_late = settings.deadline.is_some_and(|deadline| Instant::now() >= deadline);
            is_late || signals.load(Ordering::SeqCst) > 0
        };
        for Wanted { job, tiles } in &wanted {
            let problems: Vec<Problem> = tiles.iter().map(|(problem, _)| problem.clone()).collect();
            let Some(most) = problems.iter().max_by_key(|problem| problem.m()) else { continue };
            if is_over() {
                self.is_whole = false;
                break;
            }
            talk(&format!("measuring {} ({})", job.problem.op(), job.name));
            let reads: Reads = measure.reads(&problems, &ROUTINGS);
            if let Err(error) = measure.open(most, &reads) {
                talk(&format!("error: {}: {error}", job.problem.op()));
                self.is_whole = false;
                continue;
            }
            for (problem, tile) in tiles {
                if is_over() {
                    self.is_whole = false;
                    break;
                }
                let rows = measure.rows(problem, tile, &reads)?;
                self.is_whole &= !rows.is_empty();
                self.take(rows)?;
            }
        }
        for chain in chains {
            match is_over() {
                true => self.is_whole = false,
                false => self.chain(&mut measure, chain)?,
            }
        }
        Ok(())
    }

    /// Measures a layer of launches with the tiles of their rows.
    fn chain(&mut self, measure: &mut Measure<'_>, chain: &AttentionChain) -> Result<(), CliError> {
        let row_of = |problem: &Problem| self.report.rows.iter().find(|row| row.problem == *problem);
        let rows: Option<Vec<&BenchRow>> = chain.problems.iter().map(row_of).collect();
        let Some(rows) = rows else {
            talk(&format!("{}: not every launch of it was measured", chain.name));
            self.is_whole = false;
            return Ok(());
        };
        let link = |(row, &reads): (&&BenchRow, &usize)| {
            Some(ChainLink { problem: row.problem.clone(), tile: row.tile.parse().ok()?, reads })
        };
        let links: Option<Vec<ChainLink>> = rows.iter().zip(&chain.reads).map(link).collect();
        let links = links.ok_or_else(|| CliError::failed("expected tiles in the report, found other text", None))?;
        let weight_bytes = rows.iter().map(|row| row.weight_bytes()).sum();
        let sum_us = rows.iter().map(|row| row.chained_us).sum();
        let tiles = rows.iter().map(|row| row.tile.clone()).collect();
        let (ceiling_us, _) = measure.ceiling(weight_bytes)?;
        let (chained_us, unchained_us) = match measure.bench.chain(&links) {
            Ok(times) => times,
            Err(error) => {
                talk(&format!("error: {}: {error}", chain.name));
                self.is_whole = false;
                return Ok(());
            }
        };
        talk(&format!(
            "{}: {chained_us:.2} us a layer, {unchained_us:.2} unchained, {sum_us:.2} one by one, {:.0} % of \
             the ceiling",
            chain.name,
            100.0 * ceiling_us / chained_us
        ));
        let AttentionChain { name, problems, .. } = chain.clone();
        self.report.chains.retain(|known| known.name != name);
        let row = ChainRow { name, problems, tiles, chained_us, unchained_us, sum_us, weight_bytes, ceiling_us };
        self.report.chains.push(row);
        self.take(Vec::new())
    }

    /// Puts rows in place of what the report had of them, and saves it.
    fn take(&mut self, rows: Vec<BenchRow>) -> Result<(), CliError> {
        for row in rows {
            let is_same = |known: &&mut BenchRow| known.problem == row.problem && known.routing == row.routing;
            match self.report.rows.iter_mut().find(is_same) {
                Some(known) => *known = row,
                None => self.report.rows.push(row),
            }
        }
        self.bench.out.as_deref().map_or(Ok(()), |out| save_report(out, &self.report))
    }

    /// The tile of every bucket: its winner, or with `--no-search` the best that the ladder has.
    fn wanted<'j>(&mut self, run: &Run, jobs: &'j [Job]) -> Result<Vec<Wanted<'j>>, CliError> {
        let ladder = self.bench.no_search.then(|| Winners::open(self.paths, run.settings.gpu.clone()));
        let mut wanted = Vec::new();
        for job in jobs {
            let mut tiles = Vec::new();
            for &m in &job.measured {
                let problem = job.problem.with_m(m);
                let tile = match &ladder {
                    Some(ladder) => {
                        ladder.ask(&problem).map(|answer| answer.tile).map_err(|error| talk(&error.to_string())).ok()
                    }
                    None => {
                        let gpu = &run.settings.gpu.identity;
                        let key = WinnerKey { layout: problem.layout(), problem: &problem, gpu };
                        run.database.winner(&key)?.map(|record| record.tile)
                    }
                };
                self.is_whole &= tile.is_some();
                tiles.extend(tile.map(|tile| (problem, tile)));
            }
            wanted.push(Wanted { job, tiles });
        }
        Ok(wanted)
    }

    /// Prints the report and says what is slow.
    fn close(&self, common: &CommonArgs) -> Result<(), CliError> {
        let report = &self.report;
        if let Some(out) = &self.bench.out {
            save_report(out, report)?;
            talk(&format!("wrote {}", out.display()));
        }
        match common.json {
            true => voice::json(report)?,
            false if self.bench.tune.subject.suite.is_some() => voice::print(&regime_table(report))?,
            false => voice::print(&table(report))?,
        }
        let behind = report.behind(MOST_RATIO);
        let compared = report.rows.iter().filter(|row| row.ratio().is_some()).count();
        talk(&format!("{} of {compared} rows take more than {MOST_RATIO} times the best peer's time", behind.len()));
        for (row, ratio) in behind {
            talk(&format!("  {}: {ratio:.2}", row.problem));
        }
        if !self.is_whole {
            talk("not everything was measured; the same command goes on where this one stopped");
        }
        Ok(())
    }
}

/// The chains that are asked for.
fn chains(bench: &BenchArgs) -> Result<Vec<AttentionChain>, CliError> {
    let asked = select::buckets(&bench.tune.subject.tokens)?;
    let tokens = if asked.is_empty() { CHAIN_TOKENS.to_vec() } else { asked };
    bench.chain.as_ref().map_or(Ok(Vec::new()), |_| suite::every_attention_chain(&tokens))
}

/// What is measured: the launches of the chains, a suite, the peers' problems, or what tuning would work on.
fn jobs(bench: &BenchArgs, peers: Option<&Peers>, chains: &[AttentionChain]) -> Result<Vec<Job>, CliError> {
    let subject = &bench.tune.subject;
    match peers {
        _ if !chains.is_empty() => {
            let problems: BTreeSet<&Problem> = chains.iter().flat_map(|chain| &chain.problems).collect();
            Ok(jobs_of(problems.into_iter()))
        }
        Some(peers) if subject.suite.is_none() => {
            let tokens = select::buckets(&subject.tokens)?;
            Ok(jobs_of(peers.problems.keys().filter(|problem| wanted(problem, bench, &tokens))))
        }
        _ => select::jobs(subject, bench.tune.effort),
    }
}

/// Prints what would be measured.
fn list(common: &CommonArgs, jobs: &[Job]) -> Result<Exit, CliError> {
    let of = |job: &Job| job.measured.iter().map(|&m| job.problem.with_m(m).to_string()).collect::<Vec<_>>();
    if common.json {
        voice::json(&jobs.iter().flat_map(of).collect::<Vec<String>>())?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(["problem", "tokens", ">weight MB", "ops"]);
    for job in jobs {
        let tokens: Vec<String> = job.measured.iter().map(u32::to_string).collect();
        let bytes = match &job.problem {
            Problem::Dense(dense) => dense.weight_bytes(),
            Problem::MoeBlock(block) => block.weight_bytes(),
            Problem::Convert(convert) => convert.bytes(),
            Problem::StreamMix(mix) => mix.weight_bytes(),
        };
        let megabytes = format!("{:.1}", bytes as f64 / 1e6);
        table.row([job.problem.op(), tokens.join(","), megabytes, job.name.clone()]);
    }
    voice::print(&table.to_string())?;
    let rows: usize = jobs.iter().map(|job| job.measured.len()).sum();
    talk(&format!("{} ops, {rows} problems", jobs.len()));
    Ok(Exit::Done)
}

/// Blocks of experts are cut to what fits.
fn fit(job: &mut Job, gpu: &GpuSpec) {
    if let Problem::MoeBlock(block) = &job.problem {
        let part = suite::fitting(block, gpu.memory_bytes);
        if part.local_experts < block.local_experts {
            talk(&format!("{}: {} of {} experts fit", job.problem.op(), part.local_experts, part.experts));
            job.problem = Problem::MoeBlock(part);
        }
    }
}

/// Rows and chains of the file that this run adds to.
fn known(bench: &BenchArgs, gpu: &GpuSpec) -> Result<(Vec<BenchRow>, Vec<ChainRow>), CliError> {
    let Some(out) = bench.out.as_deref().filter(|out| out.is_file()) else { return Ok(Default::default()) };
    let report = read_report(out)?;
    if report.meta.gpu != gpu.identity.product {
        let (found, product) = (&report.meta.gpu, &gpu.identity.product);
        let sentence = format!("expected a report of {product} in `{}`, found one of {found}", out.display());
        return Err(CliError::usage(sentence, "name another file with `--out`"));
    }
    let own = |mut row: BenchRow| {
        if row.commit.is_empty() {
            row.commit.clone_from(&report.meta.commit);
        }
        if matches!(row.problem, Problem::MoeBlock(_)) {
            row.routing.get_or_insert(Routing::Uniform);
        }
        row
    };
    Ok((report.rows.into_iter().map(own).collect(), report.chains))
}

/// Whether this commit has measured `problem` under every routing that is asked for.
fn is_measured(known: &[BenchRow], problem: &Problem) -> bool {
    let has = |routing: Option<Routing>| {
        let is_it = |row: &BenchRow| row.problem == *problem && row.routing == routing && row.commit == crate::COMMIT;
        known.iter().any(is_it)
    };
    match problem {
        Problem::MoeBlock(_) => ROUTINGS.into_iter().all(|routing| has(Some(routing))),
        _ => has(None),
    }
}

fn meta(run: &Run, peers: Option<&Peers>) -> BenchMeta {
    let Run { settings, .. } = run;
    BenchMeta {
        gpu: settings.gpu.identity.product.clone(),
        driver: settings.toolchain.driver.clone(),
        nvrtc: settings.toolchain.nvrtc.clone(),
        commit: crate::COMMIT.to_string(),
        written_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        method: method(),
        peers: peers.map(|peers| peers.gpu.clone()).unwrap_or_default(),
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

/// Routings that rows of experts are measured under.
const ROUTINGS: [Routing; 2] = [Routing::Uniform, Routing::Zipf(1.0)];

/// Tokens of chains if nothing is said.
const CHAIN_TOKENS: [u32; 2] = [1, 16];

/// Of a budget, what tuning may take before winners are measured.
const TUNING_SHARE: f64 = 0.6;

/// How the rows of a bench were measured.
fn method() -> String {
    let numbers = [("ROUNDS", ROUNDS.to_string()), ("REST", REST.as_secs().to_string()), ("LONG", LONG_US.to_string())];
    numbers.iter().fold(METHOD.to_string(), |text, (name, number)| text.replace(name, number))
}

const METHOD: &str = "\
CUDA graphs of launches over rotating copies of the weights, and of experts over eight routing tables in turn, so that \
weights come from device memory; medians of ROUNDS replays, chained (programmatic dependent launch; where the result \
is BF16 without SwiGLU, each launch reads what the one before wrote) and unchained (no overlap) in turn; every element \
checked against f64 first; random data; clocks untouched; in rows of 4148099a72cb and later commits the GPU idle for \
REST s before a problem whose floor is LONG us or more.";
