//! `dsv4 bench`: prefill and decode apart, a cell for each context and batch, in as many layers as fit.

use std::time::{SystemTime, UNIX_EPOCH};

use super::bench_args::BenchArgs;
use super::meter;
use super::numerics_args::{Activation, Index, Kv, RouterWeight, Scale, Streams};
use super::subject::Subject;
use crate::arch::GpuSpec;
use crate::cli::voice::{self, talk};
use crate::cli::{CliError, Exit, context};
use crate::device::Gpu;
use crate::engine::dump::replace_file;
use crate::engine::{Cell, Measured};
use crate::models::InventoryError;
use crate::models::dsv4::{Config, Footprint, IndexFormat, KvFormat, Load, floor_us, layers_that_fit};
use crate::report::{RunnerCell, RunnerMeta, RunnerReport, runner_table};

/// Plans every cell, measures those that fit where there is a GPU, and reports.
pub fn run(args: &BenchArgs, is_json: bool) -> Result<Exit, CliError> {
    args.numerics.scale()?;
    let subject = Subject::of(args)?;
    let (gpu, memory_bytes) = place(args)?;
    let cells = plan(args, &subject, &gpu, memory_bytes)?;
    let mut report = RunnerReport { meta: meta(args, &subject, &gpu), cells };
    for cell in &report.cells {
        talk(&format!(
            "context {}, batch {}: {} of {} layers fit, {:.1} GB of weights and {:.2} GB of caches",
            cell.context,
            cell.batch,
            cell.layers,
            cell.model_layers,
            cell.weight_bytes as f64 / 1e9,
            cell.cache_bytes as f64 / 1e9
        ));
    }
    // The plan first: a file that cannot be written is found out before anything is measured.
    save(args, &report)?;
    match Gpu::count() {
        0 => talk("no GPU at hand: planned, not measured"),
        _ => measure(args, &mut report, &subject, &gpu)?,
    }
    if is_json {
        voice::json(&report)?
    } else {
        voice::print(&runner_table(&report))?
    }
    Ok(Exit::Done)
}

/// Writes the report where `args` ask for it.
fn save(args: &BenchArgs, report: &RunnerReport) -> Result<(), CliError> {
    let Some(path) = &args.out else { return Ok(()) };
    let text = serde_json::to_string_pretty(report)
        .map_err(|error| CliError::failed(format!("expected a report that JSON can hold, found: {error}"), None))?;
    let written = replace_file(path, (text + "\n").as_bytes());
    written.map_err(|error| {
        let sentence = format!("expected to write `{}`, found: {error}", path.display());
        CliError::failed(sentence, Some("name a file in a folder that can be written to".into()))
    })
}

/// Measures every cell in which a layer fits, says so as it goes, and saves what it has.
fn measure(args: &BenchArgs, report: &mut RunnerReport, subject: &Subject, gpu: &GpuSpec) -> Result<(), CliError> {
    let mut meter = meter::open(args, subject)?;
    [report.meta.driver, report.meta.nvrtc] = meter.toolchain();
    for cell_idx in 0..report.cells.len() {
        let cell = &mut report.cells[cell_idx];
        if cell.layers == 0 {
            continue;
        }
        let Measured { layers, weight_bytes, times } =
            meter.measure(&Cell { context: cell.context, batch: cell.batch, layers: cell.layers })?;
        // The plan counts bytes of the files; packed weights and workspaces may leave room for fewer layers.
        let floor = |tokens, sequences| floor_us((&subject.config, subject.formats), layers, tokens, sequences, gpu);
        cell.prefill_floor_us = floor(cell.context, 1).map_err(refused)?;
        cell.decode_floor_us = floor(cell.batch, cell.batch).map_err(refused)?;
        (cell.layers, cell.weight_bytes, cell.times) = (layers, weight_bytes, Some(times));
        let rate = |rate: Option<f64>| rate.unwrap_or_default();
        talk(&format!(
            "context {}, batch {}: {layers} layers, prefill {:.0} tokens/s, decode {:.1} tokens/s",
            cell.context,
            cell.batch,
            rate(cell.prefill_tokens_per_s()),
            rate(cell.decode_tokens_per_s())
        ));
        save(args, report)?;
    }
    Ok(())
}

fn refused(error: InventoryError) -> CliError {
    CliError::failed(error.to_string(), None)
}

/// The GPU that is planned for, and the memory that a model may take of it.
fn place(args: &BenchArgs) -> Result<(GpuSpec, u64), CliError> {
    if Gpu::count() > 0 {
        let gpu = Gpu::open(args.gpu.ordinal)?;
        let (free, _) = gpu.memory()?;
        return Ok((gpu.spec().clone(), usable(free)));
    }
    let hint = "tuning_db/ has a folder for each known GPU";
    let spec = match &args.plan_for {
        Some(name) => GpuSpec::named(name).map_err(|error| CliError::usage(error.to_string(), hint))?,
        None => context::default_gpu()?,
    };
    Ok((spec.clone(), usable(spec.memory_bytes)))
}

/// What is left for a model: kernels, the driver and fragmentation take their part.
fn usable(bytes: u64) -> u64 {
    bytes / 100 * USABLE_PERCENT
}

/// A cell for each context and batch.
fn plan(args: &BenchArgs, subject: &Subject, gpu: &GpuSpec, memory_bytes: u64) -> Result<Vec<RunnerCell>, CliError> {
    let &Subject { ref config, formats, .. } = subject;
    let mut cells = Vec::new();
    for &context in &args.context {
        for &batch in &args.batch {
            let load = load(args, config, context, batch);
            let layers = layers_that_fit(config, formats, &load, memory_bytes).map_err(refused)?;
            let held = Footprint::of(config, formats, &Load { layers, ..load }).map_err(refused)?;
            let floor = |tokens, sequences| floor_us((config, formats), layers, tokens, sequences, gpu);
            cells.push(RunnerCell {
                context,
                batch,
                layers,
                model_layers: config.layers(),
                weight_bytes: held.weights,
                cache_bytes: held.caches,
                prefill_floor_us: floor(context, 1).map_err(refused)?,
                decode_floor_us: floor(batch, batch).map_err(refused)?,
                times: None,
            });
        }
    }
    Ok(cells)
}

/// What a cell asks the device to hold.
fn load(args: &BenchArgs, config: &Config, context: u32, batch: u32) -> Load {
    Load {
        layers: args.layers.unwrap_or(config.layers()),
        context,
        sequences: batch,
        step_tokens: context.min(MOST_STEP_TOKENS).max(batch),
        kv: if args.numerics.kv == Kv::Fp8 { KvFormat::Fp8 } else { KvFormat::Bf16 },
        index: if args.numerics.index == Index::Mxfp4 { IndexFormat::Mxfp4 } else { IndexFormat::Bf16 },
    }
}

fn meta(args: &BenchArgs, subject: &Subject, gpu: &GpuSpec) -> RunnerMeta {
    let numerics = &args.numerics;
    let mut words = vec![match numerics.activation {
        Activation::A16 => "a16".to_string(),
        Activation::A4 => format!("a4 {}", numerics.scale.unwrap_or(Scale::PerToken)),
    }];
    words.push(format!("kv {}", if numerics.kv == Kv::Fp8 { "fp8" } else { "bf16" }));
    words.push(format!("index {}", if numerics.index == Index::Mxfp4 { "mxfp4" } else { "bf16" }));
    words.extend((numerics.streams == Streams::Bf16).then(|| "streams bf16".to_string()));
    words.extend((numerics.router_weight == RouterWeight::Before).then(|| "router weight before w2".to_string()));
    words.extend(args.batch_invariant.then(|| "batch-invariant".to_string()));
    RunnerMeta {
        model: subject.name.clone(),
        checkpoint: subject.form.clone(),
        gpu: gpu.identity.product.clone(),
        driver: String::new(),
        nvrtc: String::new(),
        commit: crate::COMMIT.to_string(),
        written_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        numerics: words.join(", "),
        method: METHOD.to_string(),
    }
}

const METHOD: &str = "\
Prefill is of one sequence of the whole context, without the head, decode one step of all sequences behind it. Floors \
are those of the weights' products: bytes over the bandwidth of a large read or FLOPs over the measured BF16 rate, \
whichever is longer; attention and caches are not counted.";

const USABLE_PERCENT: u64 = 94;
const MOST_STEP_TOKENS: u32 = 8192;
