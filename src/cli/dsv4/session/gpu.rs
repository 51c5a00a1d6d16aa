//! A session on a GPU.

use std::sync::Arc;

use super::{Session, Size};
use crate::cli::CliError;
use crate::cli::dsv4::args::RunArgs;
use crate::cli::dsv4::gpu_args::GpuArgs;
use crate::cli::dsv4::numerics_args::Experts;
use crate::cli::progress::ProgressView;
use crate::cli::voice::talk;
use crate::device::Gpu;
use crate::dispatch::PrepareOptions;
use crate::engine::{EngineError, LanguageModel, Limits, OpId, Sampling, sampling};
use crate::environment;
use crate::jit::{Jit, KernelCache, Search};
use crate::models::dsv4::Watch;
use crate::models::dsv4::forward::{DeviceWatch, Forward, ForwardError, ForwardOptions, Progress};
use crate::models::dsv4::reference::Options;
use crate::models::dsv4::weights::Loaded;
use crate::quant::{Counters, NonFinite};
use crate::store::Database;

/// The model on its GPU.
struct GpuSession {
    forward: Forward,
    /// Looks at every op, one step after the other.
    watch: Option<Watch>,
    /// What was sampled last for each slot, where somebody looks on.
    sampled: Vec<u32>,
}

/// Packs `loaded` on the GPU that `run` names, and prepares every kernel.
///
/// # Errors
/// Too little memory, with how many layers would fit; kernels that cannot be made.
pub fn open(
    run: &RunArgs,
    loaded: &Loaded<'_>,
    (numerics, size): (Options, Size),
    watch: Option<Watch>,
) -> Result<Box<dyn Session>, CliError> {
    let gpu = Arc::new(Gpu::open(run.gpu.ordinal)?);
    let options = ForwardOptions {
        numerics,
        context: size.context,
        sequences: size.sequences,
        is_batch_invariant: run.batch_invariant,
        streams: run.numerics.stream_element(),
        has_nvfp4_experts: run.numerics.experts == Experts::Nvfp4,
        ..ForwardOptions::default()
    };
    let bytes = loaded.ledger.entries.iter().map(|entry| entry.bytes).sum();
    let mut loading = Loading::start(bytes);
    let model = (&loaded.config, &loaded.weights);
    let forward = Forward::load(&gpu, model, &options, &kernels(&run.gpu), &mut loading);
    drop(loading);
    let forward = forward.map_err(failed)?;
    let report = forward.report();
    talk(&format!("{}: {}", gpu.spec().identity.product, report.prepared));
    talk(&format!(
        "{:.1} GB of weights and {:.1} GB of caches and buffers, ready after {:.1} s",
        report.weight_bytes as f64 / 1e9,
        report.buffer_bytes as f64 / 1e9,
        report.took.as_secs_f64()
    ));
    super::say_warnings(&report.shared_scales);
    let sampled = vec![0; size.sequences as usize];
    Ok(Box::new(GpuSession { forward, watch, sampled }))
}

/// Where winners and kernels come from.
pub fn kernels(args: &GpuArgs) -> PrepareOptions {
    let mut search = Search { is_offline: args.offline, on_progress: Some(talk), ..Search::from_environment() };
    if let Some(named) = &args.nvrtc {
        search.named = Some(named.clone());
    }
    let database = args.db.clone().unwrap_or_else(|| environment::data_dir().join("db"));
    let cache = KernelCache::new(environment::cache_dir().join("kernels"));
    PrepareOptions {
        snapshot: Database::snapshot_path(&database),
        jit: Arc::new(Jit::new(search, cache)),
        threads: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
    }
}

/// Bytes on their way to the GPU.
struct Loading {
    view: ProgressView,
    done: u64,
    of: u64,
    started: std::time::Instant,
}

impl Loading {
    fn start(of: u64) -> Self {
        Self { view: ProgressView::start((of >> 20) as usize), done: 0, of, started: std::time::Instant::now() }
    }
}

impl Progress for Loading {
    fn add(&mut self, bytes: u64) {
        self.done += bytes;
        let rate = self.done as f64 / self.started.elapsed().as_secs_f64().max(1e-6);
        let (done, of) = (self.done as f64 / 1e9, self.of as f64 / 1e9);
        self.view.done((self.done >> 20) as usize);
        self.view.status(format!("loading {done:.1} of {of:.1} GB at {:.2} GB/s", rate / 1e9));
    }
}

impl GpuSession {
    /// Feeds `tokens` to `slot` in parts that are one step each, and gives their logits.
    fn watched_logits(&mut self, watch: &Watch, slot: u32, tokens: &[u32]) -> Result<Vec<f32>, CliError> {
        let mut logits = Vec::new();
        for part in tokens.chunks(WATCHED_TOKENS) {
            let mut observer = DeviceWatch::new(watch, self.forward.length(slot) as usize);
            let fed = self.forward.observed_logits(slot, part, &mut observer);
            // What a run was stopped by is in the dump as well.
            let written = watch.end_step();
            logits.extend(fed.map_err(failed)?);
            written.map_err(|error| CliError::failed(error.to_string(), None))?;
        }
        Ok(logits)
    }

    /// As a step without anybody who looks on, but for one sequence, and sampled on the host.
    fn watched_next(&mut self, watch: &Watch, (slot, tokens): (u32, &[u32]), how: &Sampling) -> Result<u32, CliError> {
        let logits = self.watched_logits(watch, slot, tokens)?;
        let last = &logits[logits.len() - self.forward.limits().vocabulary as usize..];
        let position = self.forward.length(slot) - 1;
        let token = sampling::sample(last, how, slot, position);
        let token = token.ok_or_else(|| failed(ForwardError::Sampling { slot, position }))?;
        self.sampled[slot as usize] = token;
        Ok(token)
    }
}

impl LanguageModel for GpuSession {
    type Error = CliError;

    fn limits(&self) -> Limits {
        self.forward.limits()
    }

    fn logits(&mut self, slot: u32, tokens: &[u32]) -> Result<Vec<f32>, CliError> {
        match self.watch.clone() {
            Some(watch) => self.watched_logits(&watch, slot, tokens),
            None => self.forward.logits(slot, tokens).map_err(failed),
        }
    }

    fn prefill(&mut self, prompts: &[(u32, &[u32])], sampling: &Sampling) -> Result<Vec<u32>, CliError> {
        match self.watch.clone() {
            Some(watch) => prompts.iter().map(|prompt| self.watched_next(&watch, *prompt, sampling)).collect(),
            None => self.forward.prefill(prompts, sampling).map_err(failed),
        }
    }

    fn decode(&mut self, slots: &[u32], sampling: &Sampling) -> Result<Vec<u32>, CliError> {
        let Some(watch) = self.watch.clone() else { return self.forward.decode(slots, sampling).map_err(failed) };
        let mut next = |&slot: &u32| {
            let token = self.sampled[slot as usize];
            self.watched_next(&watch, (slot, &[token]), sampling)
        };
        slots.iter().map(&mut next).collect()
    }

    fn release(&mut self, slot: u32) {
        self.forward.release(slot);
    }
}

impl Session for GpuSession {
    fn end_warmup(&mut self) -> Result<(), CliError> {
        self.forward.end_warmup().map_err(failed)
    }

    fn warnings(&self) -> Result<Vec<String>, CliError> {
        let counters = self.forward.read_counters().map_err(failed)?;
        Ok(counters.iter().flat_map(|(op, counters)| sentences(*op, counters)).collect())
    }
}

/// What should be said about the activations that `op` has rounded: values that are none first, for they make whatever
/// else was counted worthless.
fn sentences(op: OpId, counters: &Counters) -> impl Iterator<Item = String> {
    let NonFinite { count, first } = counters.non_finite;
    let place =
        first.map(|(row, column)| format!(", the first in row {row} of a launch, column {column}")).unwrap_or_default();
    let bad = (count > 0).then(|| {
        format!(
            "{op}: {count} of its input values are not finite{place}; `--check finite=op` names where they come from"
        )
    });
    let scale = counters.warning().map(|warning| format!("{op}: {warning}; {}", warning.hint()));
    bad.into_iter().chain(scale)
}

pub fn failed(error: ForwardError) -> CliError {
    let hint = match &error {
        ForwardError::Memory { layers, .. } if *layers > 0 => Some(format!("`--layers {layers}` would fit")),
        ForwardError::Memory { .. } => Some("a smaller `--context` needs less".into()),
        ForwardError::InputScale { .. } | ForwardError::NoInputScale { .. } => {
            Some("`--scale per-token` needs no scale of the file".into())
        }
        ForwardError::Context { .. } => Some("a shorter prompt, fewer `--max-tokens` or a larger `--context`".into()),
        ForwardError::Sampling { .. } => Some("`--check finite=op` names where they come from".into()),
        ForwardError::Engine(EngineError::Observer(_)) => {
            Some("`--dump DIR` keeps every op's output up to there".into())
        }
        _ => None,
    };
    CliError::failed(error.to_string(), hint)
}

/// Rows of logits are made at least this many at a time, so a part is one step with one head.
const WATCHED_TOKENS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_none_are_told_by_op_and_layer() {
        let op = OpId { name: "attn.wo_b", layer: Some(3) };
        let said = |counters: Counters| sentences(op, &counters).collect::<Vec<_>>();
        let clean = Counters { blocks: 100, ..Counters::default() };
        assert!(said(clean).is_empty());
        let bad = Counters { non_finite: NonFinite { count: 7, first: Some((2, 31)) }, ..clean };
        let expected = "layers.3.attn.wo_b: 7 of its input values are not finite, the first in row 2 of a launch, \
                        column 31; \
                        `--check finite=op` names where they come from";
        assert_eq!(said(bad), [expected]);
        let both = said(Counters { saturated_blocks: 50, ..bad });
        assert_eq!((both.len(), both[0].as_str()), (2, expected));
        assert!(both[1].starts_with("layers.3.attn.wo_b: activation scale too small: 50.0 % of blocks"), "{both:?}");
    }
}
