//! `dsv4 bench`: prefill and decode apart, a cell for each context and batch, in as many layers as fit.

use std::time::{SystemTime, UNIX_EPOCH};

use super::bench_args::{BenchArgs, Synthetic};
use super::numerics_args::{Activation, Index, Kv, RouterWeight, Scale};
use crate::arch::GpuSpec;
use crate::cli::voice::{self, talk};
use crate::cli::{CliError, Exit, context};
use crate::device::Gpu;
use crate::engine::{Cell, StepMeter};
use crate::models::dsv4::{Config, Footprint, IndexFormat, KvFormat, Load, floor_us, layers_that_fit};
use crate::models::{Checkpoint, InventoryError};
use crate::report::{RunnerCell, RunnerMeta, RunnerReport, runner_table};

/// What is measured: a model, and how it is called in the report.
struct Subject {
    name: String,
    config: Config,
    checkpoint: Checkpoint,
}

/// Plans every cell, measures those that fit where there is a GPU, and reports.
pub fn run(args: &BenchArgs, is_json: bool) -> Result<Exit, CliError> {
    args.numerics.scale()?;
    let subject = subject(args)?;
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
    match open_meter(args)? {
        Some(mut meter) => measure(&mut report, meter.as_mut())?,
        None => talk("no GPU at hand: planned, not measured"),
    }
    if let Some(path) = &args.out {
        let text = serde_json::to_string_pretty(&report)
            .map_err(|error| CliError::failed(format!("expected a report that JSON can hold, found: {error}"), None))?;
        std::fs::write(path, text + "\n").map_err(|error| {
            let sentence = format!("expected to write `{}`, found: {error}", path.display());
            CliError::failed(sentence, Some("name a file in a folder that can be written to".into()))
        })?;
    }
    if is_json {
        voice::json(&report)?
    } else {
        voice::print(&runner_table(&report))?
    }
    Ok(Exit::Done)
}

/// Measures every cell in which a layer fits, and says so as it goes.
fn measure(report: &mut RunnerReport, meter: &mut dyn StepMeter<Error = CliError>) -> Result<(), CliError> {
    [report.meta.driver, report.meta.nvrtc] = meter.toolchain();
    for cell in report.cells.iter_mut().filter(|cell| cell.layers > 0) {
        let times = meter.measure(&Cell { context: cell.context, batch: cell.batch, layers: cell.layers })?;
        cell.times = Some(times);
        let rate = |rate: Option<f64>| rate.unwrap_or_default();
        talk(&format!(
            "context {}, batch {}: prefill {:.0} tokens/s, decode {:.1} tokens/s",
            cell.context,
            cell.batch,
            rate(cell.prefill_tokens_per_s()),
            rate(cell.decode_tokens_per_s())
        ));
    }
    Ok(())
}

/// What times steps on the GPU; `None` where there is none.
fn open_meter(_args: &BenchArgs) -> Result<Option<Box<dyn StepMeter<Error = CliError>>>, CliError> {
    match Gpu::count() {
        0 => Ok(None),
        _ => Err(CliError::failed("expected a model that runs on the GPU, found none in this build", None)),
    }
}

/// What is measured.
fn subject(args: &BenchArgs) -> Result<Subject, CliError> {
    let form = args.checkpoint.as_deref().unwrap_or("nvfp4");
    let checkpoint: Checkpoint =
        form.parse().map_err(|error| CliError::usage(format!("{error}"), "`dsv4 bench --help` shows examples"))?;
    let (name, config) = match args.synthetic {
        Some(Synthetic::Flash) => ("synthetic flash".to_string(), Config::FLASH),
        Some(Synthetic::Pro) => ("synthetic pro".to_string(), Config::PRO),
        None => return Err(CliError::failed("expected --synthetic, found a model directory", None)),
    };
    let most = config.layers();
    if let Some(layers) = args.layers.filter(|&layers| layers > most) {
        let sentence = format!("expected at most the {most} layers of the model, found --layers {layers}");
        return Err(CliError::usage(sentence, "leave --layers out to run as many as fit"));
    }
    if let Some(context) = args.context.iter().find(|&&context| context > config.max_tokens) {
        let sentence = format!("expected a context of at most {} tokens, found {context}", config.max_tokens);
        return Err(CliError::usage(sentence, "max_position_embeddings is the model's limit"));
    }
    Ok(Subject { name, config, checkpoint })
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
    let Subject { config, checkpoint, .. } = subject;
    let refused = |error: InventoryError| CliError::failed(error.to_string(), None);
    let mut cells = Vec::new();
    for &context in &args.context {
        for &batch in &args.batch {
            let load = load(args, config, context, batch);
            let layers = layers_that_fit(config, *checkpoint, &load, memory_bytes).map_err(refused)?;
            let held = Footprint::of(config, *checkpoint, &Load { layers, ..load }).map_err(refused)?;
            let floor = |tokens, sequences| floor_us((config, *checkpoint), layers, tokens, sequences, gpu);
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
    words.extend((numerics.router_weight == RouterWeight::Before).then(|| "router weight before w2".to_string()));
    words.extend(args.batch_invariant.then(|| "batch-invariant".to_string()));
    RunnerMeta {
        model: subject.name.clone(),
        checkpoint: subject.checkpoint.to_string(),
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
Prefill is of one sequence of the whole context, decode one step of all sequences behind it. Floors are those of the \
weights' products: bytes over the bandwidth of a large read or FLOPs over the measured BF16 rate, whichever is longer; \
attention and caches are not counted.";

const USABLE_PERCENT: u64 = 94;
const MOST_STEP_TOKENS: u32 = 8192;
