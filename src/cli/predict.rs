//! The main job without a GPU: compile the best predicted candidates, count what they need, keep them marked predicted.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use clap::ValueEnum;

use super::args::{CommonArgs, DEFAULT_SEED, EffortArg, TuneArgs};
use super::context::Paths;
use super::progress::ProgressView;
use super::table::Table;
use super::tune::{exit, open_database, settings, signals};
use super::voice::{self, talk};
use super::{CliError, Exit};
use crate::arch::GpuSpec;
use crate::codegen;
use crate::jit::{CameFrom, Jit, JitError, Resources};
use crate::kernels::{self, Plan};
use crate::problem::{Problem, Tile};
use crate::store::{Database, Record};
use crate::tuner::{
    CompileAhead, Job, Settings, Summary, Urgency, calibration, predict_compiled, predicted_record, ranked,
};

/// A candidate that was compiled and counted.
#[derive(serde::Serialize)]
struct Compiled {
    op: String,
    problem: String,
    m: u32,
    tile: String,
    predicted_us: f64,
    floor_us: f64,
    registers: u32,
    spill_bytes: u32,
    smem_bytes: u32,
    kernels: usize,
}

/// What a run has come to so far.
#[derive(Default)]
struct Found {
    summary: Summary,
    rows: Vec<Compiled>,
    /// What is stored now of each problem.
    records: Vec<Record>,
    /// NVRTC that compiled the first.
    nvrtc: Option<String>,
}

/// Works through `jobs` for a GPU that is not here.
pub fn run(common: &CommonArgs, tune: &TuneArgs, paths: &Paths, gpu: GpuSpec, jobs: &[Job]) -> Result<Exit, CliError> {
    let started = Instant::now();
    let jit = paths.jit();
    let signals = signals(jit.stop());
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    // A warm cache needs no NVRTC: each record names the version that compiled its kernels.
    let settings =
        Settings { compile_threads: tune.compile_threads.unwrap_or(cores), ..settings(tune, gpu, "", String::new()) };
    settings.deadline.into_iter().for_each(|deadline| jit.stop().at(deadline));
    if common.nvrtc.is_some() {
        // Who names an NVRTC hears that it is none, even if nothing has to be compiled.
        jit.nvrtc()?;
    }
    let database = open_database(paths)?;
    talk(&format!(
        "compiling and predicting for {} ({}); nothing is measured",
        settings.gpu.identity.product, settings.gpu.target
    ));
    talk(&calibration(settings.gpu.arch).to_string());
    ignored(tune).iter().for_each(|sentence| talk(sentence));
    let found = predict(&settings, &database, &jit, jobs);
    jit.cache().take_warnings().iter().for_each(|warning| talk(&format!("warning: {warning}")));
    // What was found before a failure is kept for readers too.
    database.write_snapshot()?;
    let mut found = found?;
    found.summary.is_interrupted = signals.load(Ordering::SeqCst) > 0;
    finish(common, paths, &settings, &found, started)?;
    Ok(exit(&found.summary))
}

/// What was asked for and needs a GPU, in sentences.
fn ignored(tune: &TuneArgs) -> Vec<String> {
    let mut sentences = Vec::new();
    if let Some(effort) = tune.effort.to_possible_value().filter(|_| tune.effort != EffortArg::Quick) {
        let effort = effort.get_name();
        sentences.push(format!(
            "`--effort {effort}` changes nothing without a GPU: the {CANDIDATES} best predicted tiles of each bucket \
             and the default are compiled"
        ));
    }
    if tune.seed != DEFAULT_SEED {
        sentences.push("`--seed` changes nothing without a GPU: no data is made".to_string());
    }
    sentences
}

/// Compiles the candidates of every bucket of `jobs` until there are no more, or it is time to stop.
fn predict(settings: &Settings, database: &Database, jit: &Arc<Jit>, jobs: &[Job]) -> Result<Found, CliError> {
    let buckets = |job: &'_ Job| job.measured.iter().chain(&job.inherited).copied().collect::<Vec<u32>>();
    let problems: Vec<(&Job, Problem)> =
        jobs.iter().flat_map(|job| buckets(job).into_iter().map(move |m| (job, job.problem.with_m(m)))).collect();
    let candidates: Vec<Vec<Tile>> = problems.iter().map(|(_, problem)| candidates(problem, &settings.gpu)).collect();
    let ahead = CompileAhead::start(jit.clone(), settings.gpu.clone(), settings.compile_threads);
    for ((_, problem), tiles) in problems.iter().zip(&candidates) {
        let plans = tiles.iter().filter_map(|tile| kernels::plan(problem, tile, &settings.gpu).ok());
        ahead.enqueue(Urgency::Planned, plans.flat_map(|plan| plan.kernels().cloned().collect::<Vec<_>>()));
    }
    let view = ProgressView::start(problems.len());
    let mut found = Found::default();
    for (done, ((job, problem), tiles)) in problems.iter().zip(&candidates).enumerate() {
        if jit.stop().is_due() {
            found.summary.left += 1;
            continue;
        }
        view.done(done);
        view.status(format!("{problem} ({} kernels left to compile)", ahead.n_left()));
        match best_compiled(settings, jit, problem, tiles, &mut found.summary) {
            Ok(Some(best)) => {
                let mut record = predicted_record(settings, problem, &best.tile, best.us, best.us);
                record.toolchain.nvrtc = best.nvrtc.clone();
                let put = database.put_winner(&record, 0.0, &|_| false)?;
                found.rows.push(row(&job.name, problem, &best, &settings.gpu));
                found.records.push(put.winner(&record).clone());
                found.nvrtc.get_or_insert(best.nvrtc);
                found.summary.searched += 1;
            }
            Ok(None) => {
                found.summary.lost += 1;
                view.line(&format!("error: {problem}: {}", lost(problem, &settings.gpu)));
            }
            Err(_) if jit.stop().is_due() => found.summary.left += 1,
            Err(error) => return Err(error),
        }
    }
    found.summary.compiled += ahead.finish();
    Ok(found)
}

/// The best predicted tiles, and the default, which is what is used if nothing else compiles.
fn candidates(problem: &Problem, gpu: &GpuSpec) -> Vec<Tile> {
    let mut tiles: Vec<Tile> = ranked(problem, gpu).into_iter().take(CANDIDATES).map(|(tile, _)| tile).collect();
    tiles.extend(kernels::default_tile(problem, gpu).filter(|default| !tiles.contains(default)));
    tiles
}

/// A tile whose kernels compile.
struct Best {
    tile: Tile,
    plan: Plan,
    resources: Vec<Resources>,
    us: f64,
    nvrtc: String,
}

/// Compiles `tiles` and gives the one that is expected to be fastest with the registers it really has. A tile that
/// spills or serialises comes after all that do not.
fn best_compiled(
    settings: &Settings,
    jit: &Jit,
    problem: &Problem,
    tiles: &[Tile],
    summary: &mut Summary,
) -> Result<Option<Best>, CliError> {
    let gpu = &settings.gpu;
    let mut best: Option<(bool, Best)> = None;
    for tile in tiles {
        let Ok(plan) = kernels::plan(problem, tile, gpu) else { continue };
        summary.tried += 1;
        let (mut resources, mut nvrtc) = (Vec::new(), String::new());
        for request in plan.kernels() {
            let source = codegen::render(request, gpu.arch, &gpu.target)
                .map_err(|error| CliError::failed(error.to_string(), None))?;
            match jit.compile(&source) {
                Ok((cubin, came_from)) => {
                    summary.compiled += u32::from(came_from == CameFrom::Compilation);
                    resources.push(cubin.resources);
                    nvrtc = cubin.nvrtc;
                }
                Err(error @ (JitError::Refused { .. } | JitError::TimedOut { .. } | JitError::Empty { .. })) => {
                    talk(&format!("  {problem}: {tile}: {error}"));
                    summary.failed += 1;
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if resources.len() < plan.launches.len() {
            continue;
        }
        let is_unclean = !resources.iter().all(Resources::is_clean);
        let us = predict_compiled(&plan, &resources, gpu);
        if best.as_ref().is_none_or(|(unclean, best)| (is_unclean, us) < (*unclean, best.us)) {
            best = Some((is_unclean, Best { tile: tile.clone(), plan, resources, us, nvrtc }));
        }
    }
    Ok(best.map(|(_, best)| best))
}

fn lost(problem: &Problem, gpu: &GpuSpec) -> String {
    let reasons = kernels::refusals(problem, gpu.arch);
    if reasons.is_empty() { "no candidate compiles".to_string() } else { reasons.join("; ") }
}

fn row(op: &str, problem: &Problem, best: &Best, gpu: &GpuSpec) -> Compiled {
    let Best { tile, plan, resources, us, .. } = best;
    let smem = plan.launches.iter().zip(resources).map(|(launch, used)| launch.smem_bytes + used.static_smem_bytes);
    Compiled {
        op: op.to_string(),
        problem: problem.to_string(),
        m: problem.m(),
        tile: tile.to_string(),
        predicted_us: *us,
        floor_us: problem.floor_us(gpu),
        registers: resources.iter().map(|used| used.registers).max().unwrap_or(0),
        spill_bytes: resources.iter().map(|used| used.spill_bytes).sum(),
        smem_bytes: smem.max().unwrap_or(0),
        kernels: plan.launches.len(),
    }
}

fn finish(
    common: &CommonArgs,
    paths: &Paths,
    settings: &Settings,
    Found { summary, rows, records, nvrtc }: &Found,
    started: Instant,
) -> Result<(), CliError> {
    if common.json {
        voice::json(&serde_json::json!({
            "gpu": settings.gpu.name,
            "product": settings.gpu.identity.product,
            "target": settings.gpu.target,
            "nvrtc": nvrtc,
            "commit": settings.toolchain.commit,
            "measured": false,
            "calibration": calibration(settings.gpu.arch),
            "compiled": rows,
            "records": records,
        }))?;
    } else {
        voice::print(&table(rows).to_string())?;
    }
    talk(&format!(
        "{} problems predicted, {} without a candidate, {} left; {} candidates, {} kernels compiled; {:.1} s",
        summary.searched,
        summary.lost,
        summary.left,
        summary.tried,
        summary.compiled,
        started.elapsed().as_secs_f64()
    ));
    talk(&format!("records, marked predicted, are in {}", paths.database.display()));
    if summary.left > 0 {
        talk("the same command goes on where this one stopped");
    }
    Ok(())
}

fn table(rows: &[Compiled]) -> Table {
    let mut table = Table::new(["op", ">m", ">us", ">floor", ">regs", ">spills", ">smem", "tile"]);
    for row in rows {
        table.row([
            row.op.clone(),
            row.m.to_string(),
            format!("{:.2}", row.predicted_us),
            format!("{:.2}", row.floor_us),
            row.registers.to_string(),
            row.spill_bytes.to_string(),
            row.smem_bytes.to_string(),
            row.tile.clone(),
        ]);
    }
    table
}

/// Candidates of each problem that are compiled.
const CANDIDATES: usize = 2;
