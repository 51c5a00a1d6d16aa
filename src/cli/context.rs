//! Where things are, which GPU is meant, and how the worker is started.

use std::path::PathBuf;
use std::sync::Arc;

use super::args::{CommonArgs, WorkerArgs};
use super::voice::talk;
use super::{CliError, Exit};
use crate::arch::{GpuSpec, UnknownGpu};
use crate::device::Gpu;
use crate::environment;
use crate::jit::{Jit, KernelCache, Search};
use crate::tuner::{self, ServeOptions, Worker, WorkerCommand, WorkerError};

/// Where things are.
pub struct Paths {
    /// Database of winners.
    pub database: PathBuf,
    /// How NVRTC is found.
    pub search: Search,
    /// Compiled kernels.
    pub kernels: PathBuf,
    /// Number of this machine's GPU.
    pub ordinal: u32,
}

impl Paths {
    pub fn of(common: &CommonArgs) -> Self {
        let mut search = Search { is_offline: common.offline, on_progress: Some(talk), ..Search::from_environment() };
        if let Some(named) = &common.nvrtc {
            search.named = Some(named.clone());
        }
        Self {
            database: common.db.clone().unwrap_or_else(|| environment::data_dir().join("db")),
            search,
            kernels: environment::cache_dir().join("kernels"),
            ordinal: common.device,
        }
    }

    /// The compiler.
    pub fn jit(&self) -> Arc<Jit> {
        Arc::new(Jit::new(self.search.clone(), KernelCache::new(&self.kernels)))
    }

    /// The compiler of a run that measures.
    pub fn measuring_jit(&self) -> Arc<Jit> {
        Arc::new(Jit::new(self.search.clone(), KernelCache::new(&self.kernels)).measuring())
    }

    /// How a worker is started: this binary, with what it must know of our flags.
    pub fn worker_command(&self) -> Result<WorkerCommand, CliError> {
        let program = std::env::current_exe()
            .map_err(|error| CliError::failed(format!("the path of this program is not known ({error})"), None))?;
        let mut arguments = vec!["worker".to_string(), "--device".to_string(), self.ordinal.to_string()];
        if let Some(named) = &self.search.named {
            arguments.extend(["--nvrtc".to_string(), named.display().to_string()]);
        }
        if self.search.is_offline {
            arguments.push("--offline".to_string());
        }
        Ok(WorkerCommand { program, arguments })
    }
}

/// The GPU that a run is for.
pub enum Target {
    /// At hand: a worker has it open.
    Live(Box<Worker>, WorkerCommand, GpuSpec),
    /// Not at hand: facts only.
    Facts(GpuSpec),
}

/// The GPU that was asked for: the one at hand if it is that, or else its facts.
pub fn target(common: &CommonArgs, paths: &Paths) -> Result<Target, CliError> {
    let named = named(common)?;
    let count = Gpu::count();
    if count == 0 {
        talk("no GPU at hand");
        return Ok(Target::Facts(named.unwrap_or(default_gpu()?).clone()));
    }
    if common.device >= count {
        let sentence = format!("expected GPU 0 to {}, found --device {}", count - 1, common.device);
        return Err(CliError::usage(sentence, "`nvidia-smi` lists the GPUs that the driver sees"));
    }
    let command = paths.worker_command()?;
    let worker = Worker::start(&command).map_err(|error| match error {
        WorkerError::Start { reason, hint } => CliError::failed(reason, hint),
        other => CliError::failed(other.to_string(), None),
    })?;
    let spec = live_spec(&worker, paths)?;
    match named {
        Some(named) if named.identity.product != spec.identity.product => {
            talk(&format!("{} is at hand, {} was asked for: compiling and predicting", spec.name, named.name));
            Ok(Target::Facts(named.clone()))
        }
        _ => Ok(Target::Live(Box::new(worker), command, spec)),
    }
}

/// Facts about the GPU that the worker has open: those of its `gpu.toml`, or what the driver says.
fn live_spec(worker: &Worker, paths: &Paths) -> Result<GpuSpec, CliError> {
    let report = worker.gpu();
    match GpuSpec::of_product(&report.identity.product) {
        Some(known) => {
            Ok(GpuSpec { identity: report.identity.clone(), memory_bytes: report.memory.1, ..known.clone() })
        }
        None => Ok(Gpu::open(paths.ordinal)?.spec().clone()),
    }
}

/// Facts about the GPU that is meant: the named one, the one at hand, or the default.
pub fn spec(common: &CommonArgs) -> Result<GpuSpec, CliError> {
    match named(common)? {
        // The one at hand, if it is that, has winners under its own power limit and memory.
        Some(named) => Ok(at_hand(common)?
            .filter(|gpu| gpu.identity.product == named.identity.product)
            .unwrap_or_else(|| named.clone())),
        None => Ok(at_hand(common)?.map_or_else(|| default_gpu().cloned(), Ok)?),
    }
}

fn named(common: &CommonArgs) -> Result<Option<&'static GpuSpec>, CliError> {
    let hint = "tuning_db/ has a folder for each known GPU; CONTRIBUTING.md says how to add one";
    let unknown = |error: UnknownGpu| CliError::usage(error.to_string(), hint);
    common.gpu.as_deref().map(|name| GpuSpec::named(name).map_err(unknown)).transpose()
}

/// The GPU of this machine that `--device` means; `None` where there is none.
fn at_hand(common: &CommonArgs) -> Result<Option<GpuSpec>, CliError> {
    match Gpu::count() {
        0 => Ok(None),
        _ => Ok(Some(Gpu::open(common.device)?.spec().clone())),
    }
}

/// What is assumed where there is no GPU.
pub fn default_gpu() -> Result<&'static GpuSpec, CliError> {
    GpuSpec::named(DEFAULT_GPU).map_err(|error| CliError::failed(error.to_string(), None))
}

/// Serves a parent.
pub fn serve(worker: &WorkerArgs, paths: &Paths) -> Result<Exit, CliError> {
    // A signal for the whole group is the parent's to handle: it still wants this process's last answer.
    let _ = ctrlc::set_handler(|| {});
    let options = ServeOptions { socket: worker.socket.clone(), ordinal: paths.ordinal, jit: paths.measuring_jit() };
    match tuner::serve(options) {
        Ok(()) => Ok(Exit::Done),
        Err(error) => Err(CliError::failed(error.to_string(), None)),
    }
}

const DEFAULT_GPU: &str = "h100";
