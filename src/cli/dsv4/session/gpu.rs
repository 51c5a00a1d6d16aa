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
use crate::engine::{LanguageModel, Limits, Sampling};
use crate::environment;
use crate::jit::{Jit, KernelCache, Search};
use crate::models::dsv4::forward::{Forward, ForwardError, ForwardOptions, Progress};
use crate::models::dsv4::reference::Options;
use crate::models::dsv4::weights::Loaded;
use crate::store::Database;

/// The model on its GPU.
struct GpuSession {
    forward: Forward,
}

/// Packs `loaded` on the GPU that `run` names, and prepares every kernel.
///
/// # Errors
/// Too little memory, with how many layers would fit; kernels that cannot be made.
pub fn open(run: &RunArgs, loaded: &Loaded<'_>, numerics: Options, size: Size) -> Result<Box<dyn Session>, CliError> {
    let gpu = Arc::new(Gpu::open(run.gpu.ordinal)?);
    let options = ForwardOptions {
        numerics,
        context: size.context,
        sequences: size.sequences,
        is_batch_invariant: run.batch_invariant,
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
    Ok(Box::new(GpuSession { forward }))
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

impl LanguageModel for GpuSession {
    type Error = CliError;

    fn limits(&self) -> Limits {
        self.forward.limits()
    }

    fn logits(&mut self, slot: u32, tokens: &[u32]) -> Result<Vec<f32>, CliError> {
        self.forward.logits(slot, tokens).map_err(failed)
    }

    fn prefill(&mut self, prompts: &[(u32, &[u32])], sampling: &Sampling) -> Result<Vec<u32>, CliError> {
        self.forward.prefill(prompts, sampling).map_err(failed)
    }

    fn decode(&mut self, slots: &[u32], sampling: &Sampling) -> Result<Vec<u32>, CliError> {
        self.forward.decode(slots, sampling).map_err(failed)
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
        let warning = |(op, counters): &(_, crate::quant::Counters)| {
            let op: &crate::engine::OpId = op;
            counters.warning().map(|warning| format!("{op}: {warning}; {}", warning.hint()))
        };
        Ok(counters.iter().filter_map(warning).collect())
    }
}

pub fn failed(error: ForwardError) -> CliError {
    let hint = match &error {
        ForwardError::Memory { layers, .. } if *layers > 0 => Some(format!("`--layers {layers}` would fit")),
        ForwardError::Memory { .. } => Some("a smaller `--context` needs less".into()),
        ForwardError::InputScale { .. } | ForwardError::NoInputScale { .. } => {
            Some("`--scale per-token` needs no scale of the file".into())
        }
        ForwardError::Context { .. } => Some("a shorter prompt, fewer `--max-tokens` or a larger `--context`".into()),
        ForwardError::Sampling { .. } => Some("`--check finite=op --device cpu` names where they come from".into()),
        _ => None,
    };
    CliError::failed(error.to_string(), hint)
}
