//! Times steps of a model on the GPU: it is made anew for each cell, because caches and buffers follow the cell.

use std::borrow::Cow;
use std::sync::Arc;

use super::bench_args::BenchArgs;
use super::numerics_args::Experts;
use super::session::{self, gpu_failed, kernels};
use super::subject::Subject;
use crate::cli::CliError;
use crate::device::Gpu;
use crate::dispatch::PrepareOptions;
use crate::engine::{Cell, Measured, StepMeter};
use crate::models::dsv4::Config;
use crate::models::dsv4::forward::{Forward, ForwardError, ForwardOptions, StepTimes};
use crate::models::dsv4::weights::{LoadOptions, Weights};
use crate::problem::bucket_of;
use crate::report::{CellTimes, OpTime, StepTime};

/// The GPU and what is made on it.
struct GpuMeter<'a> {
    gpu: Arc<Gpu>,
    kernels: PrepareOptions,
    subject: &'a Subject,
    options: ForwardOptions,
}

/// The GPU that `args` name, for `subject`.
///
/// # Errors
/// A GPU that cannot be opened, flags that nobody would look at.
pub fn open<'a>(args: &BenchArgs, subject: &'a Subject) -> Result<Box<dyn StepMeter<Error = CliError> + 'a>, CliError> {
    let options = ForwardOptions {
        numerics: session::numerics(&args.numerics)?,
        is_batch_invariant: args.batch_invariant,
        streams: args.numerics.stream_element(),
        has_nvfp4_experts: args.numerics.experts == Experts::Nvfp4,
        ..ForwardOptions::default()
    };
    let gpu = Arc::new(Gpu::open(args.gpu.ordinal)?);
    Ok(Box::new(GpuMeter { gpu, kernels: kernels(&args.gpu), subject, options }))
}

impl StepMeter for GpuMeter<'_> {
    type Error = CliError;

    fn toolchain(&self) -> [String; 2] {
        let nvrtc =
            self.kernels.jit.nvrtc().map_or_else(|error| error.to_string(), |nvrtc| nvrtc.version().to_string());
        [self.gpu.driver_version().to_string(), nvrtc]
    }

    fn measure(&mut self, cell: &Cell) -> Result<Measured, CliError> {
        // Long steps need large buffers and one sequence, decode steps many caches: each is made for itself, both with
        // the layers that fit in either.
        let (forward, decode_layers) = self.model(cell, self.decode_options(cell))?;
        drop(forward);
        let (mut forward, layers) = self.model(&Cell { layers: decode_layers, ..*cell }, self.prefill_options(cell))?;
        let prefill = prefill(&mut forward, cell.context).map_err(gpu_failed)?;
        drop(forward);
        let (mut forward, layers) = self.model(&Cell { layers, ..*cell }, self.decode_options(cell))?;
        forward.assume(cell.batch, cell.context).map_err(gpu_failed)?;
        let decode = step_time(&forward.time_decode(cell.batch, REPEATS).map_err(gpu_failed)?);
        let weight_bytes = forward.report().weight_bytes;
        Ok(Measured { layers, weight_bytes, times: CellTimes { prefill, decode } })
    }
}

impl GpuMeter<'_> {
    fn prefill_options(&self, cell: &Cell) -> ForwardOptions {
        ForwardOptions {
            context: cell.context + ROOM_TOKENS,
            sequences: 1,
            chunk: chunk(cell.context),
            ..self.options.clone()
        }
    }

    fn decode_options(&self, cell: &Cell) -> ForwardOptions {
        let chunk = cell.batch.next_power_of_two();
        ForwardOptions { context: cell.context + ROOM_TOKENS, sequences: cell.batch, chunk, ..self.options.clone() }
    }

    /// The model of a cell, with as many of its layers as fit.
    fn model(&self, cell: &Cell, options: ForwardOptions) -> Result<(Forward, u32), CliError> {
        let mut layers = cell.layers;
        loop {
            match self.make(layers, &options) {
                Ok(forward) => return Ok((forward, layers)),
                Err(Failure::Forward(ForwardError::Memory { layers: fit, .. })) if (1..layers).contains(&fit) => {
                    layers = fit;
                }
                Err(Failure::Forward(error)) => return Err(gpu_failed(error)),
                Err(Failure::Cli(error)) => return Err(error),
            }
        }
    }

    fn make(&self, layers: u32, options: &ForwardOptions) -> Result<Forward, Failure> {
        let Subject { config, formats, files, .. } = self.subject;
        let Some((files, config_file)) = files else {
            let kinds = config.layer_kinds[..layers as usize].to_vec();
            let config = Config { layer_kinds: Cow::Owned(kinds), ..config.clone() };
            return Ok(Forward::synthetic(&self.gpu, (&config, *formats), options, &self.kernels)?);
        };
        let load = LoadOptions { layers: Some(layers), experts_as_nvfp4: options.has_nvfp4_experts };
        let loaded = Weights::load(files, config_file, load)
            .map_err(|error| Failure::Cli(session::refused(files.directory(), &error)))?;
        let model = (&loaded.config, &loaded.weights);
        Ok(Forward::load(&self.gpu, model, options, &self.kernels, &mut ())?)
    }
}

/// Why a model could not be made.
enum Failure {
    Forward(ForwardError),
    Cli(CliError),
}

impl From<ForwardError> for Failure {
    fn from(error: ForwardError) -> Self {
        Self::Forward(error)
    }
}

/// All steps of a prefill: times and ops add up.
fn prefill(forward: &mut Forward, context: u32) -> Result<StepTime, ForwardError> {
    let mut whole: Option<StepTime> = None;
    for start in (0..context).step_by(chunk(context) as usize) {
        let tokens = chunk(context).min(context - start);
        let part = step_time(&forward.time_prefill(tokens, start, PREFILL_REPEATS)?);
        whole = Some(match whole {
            None => part,
            Some(whole) => sum(whole, part),
        });
    }
    Ok(whole.expect("a context has at least one token, so at least one step"))
}

fn sum(mut whole: StepTime, part: StepTime) -> StepTime {
    whole.us += part.us;
    whole.spread_us = [whole.spread_us[0] + part.spread_us[0], whole.spread_us[1] + part.spread_us[1]];
    whole.gaps_us = whole.gaps_us.zip(part.gaps_us).map(|(a, b)| a + b);
    for op in part.ops {
        match whole.ops.iter_mut().find(|other| other.op == op.op) {
            None => whole.ops.push(op),
            Some(same) => {
                same.launches += op.launches;
                same.us += op.us;
                same.floor_us = same.floor_us.zip(op.floor_us).map(|(a, b)| a + b);
            }
        }
    }
    whole
}

fn step_time(times: &StepTimes) -> StepTime {
    let op = |op: &crate::models::dsv4::forward::OpTime| OpTime {
        op: op.name.to_string(),
        launches: op.count as u32,
        us: op.us,
        floor_us: (op.floor_us > 0.0).then_some(op.floor_us),
    };
    StepTime {
        us: times.step_us,
        spread_us: times.spread_us,
        gaps_us: Some(times.gaps_us()),
        ops: times.ops.iter().map(op).collect(),
    }
}

/// Most tokens of a step of a prefill: a bucket.
fn chunk(context: u32) -> u32 {
    bucket_of(context).unwrap_or(MOST_STEP_TOKENS)
}

const REPEATS: u32 = 7;
const PREFILL_REPEATS: u32 = 3;
const MOST_STEP_TOKENS: u32 = 8192;
/// Replays of a decode step move on by a token each.
const ROOM_TOKENS: u32 = 128;
