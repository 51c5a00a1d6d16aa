//! Problems on a live GPU: random data, references, checks, and times of CUDA-graph replays.
//!
//! A [`Live`] holds the data of one op (a problem without its tokens) and any number of candidates for it. Weights
//! rotate through copies, and experts through routings, so that launches read them from device memory. Times come in
//! two kinds: *chained*, where launches may overlap the one ahead (and where a result can be the next launch's tokens,
//! each reads what that one wrote), and *unchained*, independent and without overlap.

mod ceiling;
mod chain;
mod convert;
mod dense;
mod moe;
mod routing;
mod stream_mix;
mod tools;
mod weights;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::check::{Comparison, Path, Wrong, judge};
use crate::codegen::{self, CodegenError};
use crate::device::{Buffer, Clocks, DeviceError, Event, Gpu, Graph, Kernel, Stream};
use crate::dispatch::{Bound, LaunchArgs, LaunchError};
use crate::jit::{Jit, JitError};
use crate::kernels::{self, Rejection};
use crate::problem::{Output, Problem, Routing, Tile};
pub(in crate::tuner) use ceiling::{Ceiling, run_sabotage};
pub(in crate::tuner) use chain::Chain;
pub use chain::ChainLink;
use convert::ConvertSubject;
use dense::DenseSubject;
use moe::MoeSubject;
pub use routing::touched_experts;
use stream_mix::StreamMixSubject;
use tools::Toolbox;

/// Why a candidate, or the data for it, is not there.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The GPU or its driver.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The compiler.
    #[error(transparent)]
    Jit(#[from] JitError),
    /// A template.
    #[error(transparent)]
    Codegen(#[from] CodegenError),
    /// A launch.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A rule.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The result was wrong.
    #[error(transparent)]
    Wrong(#[from] Wrong),
    /// The data could not be made.
    #[error("{0}")]
    Data(String),
}

impl LiveError {
    /// Whether the GPU's context is lost.
    pub fn is_sticky(&self) -> bool {
        match self {
            Self::Device(error) | Self::Launch(LaunchError::Device(error)) => error.is_sticky(),
            _ => false,
        }
    }
}

/// How launches follow each other while they are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Programmatic dependent launch; each launch reads what the one before it wrote, where that can be its tokens.
    Chained,
    /// Independent launches, each starting when the one before it has ended.
    Unchained,
}

/// The data of one op on one GPU, and candidates for it.
pub struct Live {
    jit: Arc<Jit>,
    clocks: Option<Clocks>,
    candidates: HashMap<u32, Candidate>,
    subject: Subject,
    last_loading: Duration,
    // Last: it holds the context in which the others' memory and kernels are freed.
    tools: Toolbox,
}

/// Data, references and arguments for one kind of problem.
enum Subject {
    Dense(DenseSubject),
    Moe(MoeSubject),
    Convert(ConvertSubject),
    StreamMix(StreamMixSubject),
}

struct Candidate {
    // First: what a graph launches must outlive it.
    graphs: HashMap<(Mode, usize), (Graph, u32)>,
    bound: Bound,
    tile: Tile,
    /// Its own memory, unless it works in the subject's.
    workspace: Buffer,
    /// Rough time of one launch, for choosing how many make a graph.
    estimate_us: f64,
}

/// What one replay gave.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Sample {
    /// Microseconds for each launch of the plan.
    pub us: f64,
    /// SM clock just after it, MHz; 0 without NVML.
    pub sm_clock_mhz: u32,
    /// NVML's throttle reasons.
    pub throttle_reasons: u64,
}

impl Live {
    /// Makes the data of `problem`, whose `m` is the most tokens that will be asked for.
    ///
    /// # Errors
    /// [`LiveError`]: not enough memory, or a context that is lost.
    pub fn open(
        gpu: Arc<Gpu>,
        jit: Arc<Jit>,
        problem: &Problem,
        routings: &[Routing],
        seed: u64,
    ) -> Result<Self, LiveError> {
        gpu.make_current()?;
        let clocks = Clocks::of(&gpu.spec().identity.product, gpu.ordinal());
        let mut tools = Toolbox::new(gpu, jit.clone())?;
        let subject = match problem {
            Problem::Dense(dense) => Subject::Dense(DenseSubject::new(&mut tools, dense, seed)?),
            Problem::MoeBlock(block) => Subject::Moe(MoeSubject::new(&mut tools, block, routings, seed)?),
            Problem::Convert(convert) => Subject::Convert(ConvertSubject::new(&mut tools, convert, seed)?),
            Problem::StreamMix(mix) => Subject::StreamMix(StreamMixSubject::new(&mut tools, mix, seed)?),
        };
        Ok(Self { tools, jit, clocks, subject, candidates: HashMap::new(), last_loading: Duration::ZERO })
    }

    /// Whether weights may come from L2 in part: too few or too small copies of a matrix, or experts that are used.
    pub fn is_warm(&self) -> bool {
        match &self.subject {
            Subject::Dense(dense) => dense.is_warm(),
            Subject::Moe(moe) => moe.is_warm(),
            Subject::Convert(_) => false,
            Subject::StreamMix(mix) => mix.is_warm(),
        }
    }

    /// Compiles, loads and checks `tile` for `problem`, an op of this data for no more tokens than it was made for, and
    /// keeps it as candidate `id`. Gives its relative L2 error.
    ///
    /// # Errors
    /// [`LiveError`]: what became of the candidate.
    pub fn prepare(&mut self, id: u32, problem: &Problem, tile: &Tile) -> Result<f64, LiveError> {
        let started = Instant::now();
        let bound = bind(&self.tools.gpu, &self.jit, problem, tile)?;
        self.last_loading = started.elapsed();
        let needed = bound.workspace_bytes() as usize;
        let lent = self.subject.lent_workspace_bytes();
        if lent.is_some_and(|lent| needed > lent) {
            return Err(LiveError::Data(format!("`{tile}` needs {needed} bytes of workspace, more than any other")));
        }
        let workspace = Buffer::zeros(&self.tools.gpu, if lent.is_some() { 0 } else { needed })?;
        let mut candidate =
            Candidate { bound, tile: tile.clone(), workspace, graphs: HashMap::new(), estimate_us: 0.0 };
        let relative_l2 = self.check(&candidate)?;
        candidate.estimate_us = self.estimate(&candidate)?;
        self.candidates.insert(id, candidate);
        Ok(relative_l2)
    }

    /// How long the kernels of the last candidate that was prepared took to be compiled, or waited for, and loaded.
    pub fn last_loading(&self) -> Duration {
        self.last_loading
    }

    /// Forgets candidate `id`.
    pub fn drop_candidate(&mut self, id: u32) {
        self.candidates.remove(&id);
    }

    /// Replays candidate `id` once, under routing `routing_idx` of those that the data was made for, and gives the time
    /// of a launch.
    ///
    /// # Errors
    /// [`LiveError`]: the launch failed.
    pub fn replay(&mut self, id: u32, mode: Mode, routing_idx: usize) -> Result<Sample, LiveError> {
        let mut candidate = self.candidates.remove(&id).ok_or_else(|| LiveError::Data(format!("no candidate {id}")))?;
        let sample = self.replay_candidate(&mut candidate, mode, routing_idx);
        self.candidates.insert(id, candidate);
        sample
    }

    /// Checks candidate `id` again and gives the comparison, with the checksum of its bits.
    ///
    /// # Errors
    /// [`LiveError`]: the launch failed.
    pub fn compare(&mut self, id: u32) -> Result<Comparison, LiveError> {
        let candidate = self.candidates.remove(&id).ok_or_else(|| LiveError::Data(format!("no candidate {id}")))?;
        let comparisons = self.subject.compare(&mut self.tools, &candidate);
        self.candidates.insert(id, candidate);
        let mut all = Comparison::default();
        comparisons?.iter().for_each(|comparison| all.add(comparison));
        Ok(all)
    }

    /// Bytes that candidate `id` of a dense GEMM or a mix of streams writes outside of its result, for problems small
    /// enough to look at every byte. For others nothing is looked at: 0.
    ///
    /// # Errors
    /// [`LiveError`]: the launch failed.
    pub fn stray_writes(&mut self, id: u32) -> Result<usize, LiveError> {
        let candidate = self.candidates.remove(&id).ok_or_else(|| LiveError::Data(format!("no candidate {id}")))?;
        let strays = match &mut self.subject {
            Subject::Dense(dense) => dense.stray_writes(&mut self.tools, &candidate),
            Subject::StreamMix(mix) => mix.stray_writes(&mut self.tools, &candidate),
            Subject::Moe(_) | Subject::Convert(_) => Ok(0),
        };
        self.candidates.insert(id, candidate);
        strays
    }

    /// Checksum of the result after a sequence of launches in `mode`: a chain that overlaps must give the bits of one
    /// that does not.
    ///
    /// # Errors
    /// [`LiveError`]: a launch failed.
    pub fn sequence_checksum(&mut self, id: u32, launches: u32, overlaps: bool) -> Result<u64, LiveError> {
        let candidate = self.candidates.remove(&id).ok_or_else(|| LiveError::Data(format!("no candidate {id}")))?;
        let checksum = self.subject.sequence_checksum(&mut self.tools, &candidate, launches, overlaps);
        self.candidates.insert(id, candidate);
        checksum
    }

    /// Every element of the result against the reference.
    fn check(&mut self, candidate: &Candidate) -> Result<f64, LiveError> {
        let comparisons = self.subject.compare(&mut self.tools, candidate)?;
        let mut worst: f64 = 0.0;
        for (idx, comparison) in comparisons.iter().enumerate() {
            let (output, path) = self.subject.judged_by(idx);
            worst = worst.max(judge(comparison, output, path)?);
        }
        Ok(worst)
    }

    /// Time of a launch from three of them.
    fn estimate(&mut self, candidate: &Candidate) -> Result<f64, LiveError> {
        const LAUNCHES: u32 = 3;
        let (start, end) = (Event::new(&self.tools.gpu)?, Event::new(&self.tools.gpu)?);
        let stream = &self.tools.stream;
        start.record(stream)?;
        for idx in 0..LAUNCHES {
            self.subject.launch(candidate, stream.raw().cast(), idx, Mode::Unchained, 0)?;
        }
        end.record(stream)?;
        Ok(end.microseconds_since(&start)? / f64::from(LAUNCHES))
    }

    fn replay_candidate(
        &mut self,
        candidate: &mut Candidate,
        mode: Mode,
        routing_idx: usize,
    ) -> Result<Sample, LiveError> {
        let key = (mode, routing_idx);
        if !candidate.graphs.contains_key(&key) {
            let launches = ((GRAPH_US / candidate.estimate_us.max(0.5)) as u32).clamp(FEWEST_LAUNCHES, MOST_LAUNCHES);
            let stream = &self.tools.stream;
            let graph = stream.capture(|| -> Result<(), LiveError> {
                let launch = |idx| self.subject.launch(candidate, stream.raw().cast(), idx, mode, routing_idx);
                (0..launches).try_for_each(launch)
            })?;
            candidate.graphs.insert(key, (graph, launches));
            // The first replay uploads the graph.
            self.run_graph(candidate, key)?;
        }
        let us = self.run_graph(candidate, key)?;
        let clocks = self.clocks.as_ref().map(Clocks::sample).unwrap_or_default();
        Ok(Sample { us, sm_clock_mhz: clocks.sm_mhz, throttle_reasons: clocks.throttle_reasons })
    }

    fn run_graph(&self, candidate: &Candidate, key: (Mode, usize)) -> Result<f64, LiveError> {
        let (graph, launches) = &candidate.graphs[&key];
        let stream = &self.tools.stream;
        let (start, end) = (Event::new(&self.tools.gpu)?, Event::new(&self.tools.gpu)?);
        self.subject.reset(stream)?;
        start.record(stream)?;
        graph.launch(stream)?;
        end.record(stream)?;
        Ok(end.microseconds_since(&start)? / f64::from(*launches))
    }
}

impl Subject {
    /// Type of the result of comparison `idx` and what it goes through: where tolerances come from.
    fn judged_by(&self, idx: usize) -> (Output, Path) {
        match self {
            Self::Dense(dense) => dense.judged_by(),
            Self::Moe(moe) => moe.judged_by(),
            Self::Convert(_) => (Output::F32, Path::Sum { k: 1 }),
            Self::StreamMix(mix) => mix.judged_by(idx),
        }
    }

    /// Bytes that candidates share, one after the other, because each of them would need too much of its own.
    fn lent_workspace_bytes(&self) -> Option<usize> {
        match self {
            Self::Moe(moe) => Some(moe.workspace_bytes()),
            Self::Dense(_) | Self::Convert(_) | Self::StreamMix(_) => None,
        }
    }

    /// Runs the candidate on poisoned outputs and compares: once for each routing or each result, or once.
    fn compare(&mut self, tools: &mut Toolbox, candidate: &Candidate) -> Result<Vec<Comparison>, LiveError> {
        match self {
            Self::Dense(dense) => Ok(vec![dense.compare(tools, candidate)?]),
            Self::Moe(moe) => moe.compare(tools, candidate),
            Self::Convert(convert) => Ok(vec![convert.compare(tools, candidate)?]),
            Self::StreamMix(mix) => mix.compare(tools, candidate),
        }
    }

    /// Puts launch number `idx` of a sequence on `stream`.
    fn launch(
        &self,
        candidate: &Candidate,
        stream: *mut std::ffi::c_void,
        idx: u32,
        mode: Mode,
        routing_idx: usize,
    ) -> Result<(), LiveError> {
        let args = match self {
            Self::Dense(dense) => dense.args(candidate.bound.problem().m(), idx, mode),
            Self::Moe(moe) => moe.args(candidate.bound.problem().m(), idx, routing_idx),
            Self::Convert(convert) => convert.args(candidate.bound.problem().m()),
            Self::StreamMix(mix) => mix.args(candidate.bound.problem().m(), idx, mode),
        };
        launch_with(candidate, args, stream, mode)
    }

    fn sequence_checksum(
        &mut self,
        tools: &mut Toolbox,
        candidate: &Candidate,
        launches: u32,
        overlaps: bool,
    ) -> Result<u64, LiveError> {
        let m = candidate.bound.problem().m();
        self.reset(&tools.stream)?;
        for idx in 0..launches {
            let args = match self {
                Self::Dense(dense) => dense.args(m, idx, Mode::Chained),
                Self::Moe(moe) => moe.args(m, idx, 0),
                Self::Convert(convert) => convert.args(m),
                Self::StreamMix(mix) => mix.args(m, idx, Mode::Chained),
            };
            let mode = if overlaps { Mode::Chained } else { Mode::Unchained };
            launch_with(candidate, args, tools.stream.raw().cast(), mode)?;
        }
        tools.stream.synchronize()?;
        match self {
            Self::Dense(dense) => dense.checksum(tools, m, launches),
            Self::Moe(moe) => moe.checksum(tools, m),
            Self::Convert(_) => Ok(0),
            Self::StreamMix(mix) => mix.checksum(tools, candidate),
        }
    }

    /// What a chain has written is put back.
    fn reset(&self, stream: &Stream) -> Result<(), LiveError> {
        match self {
            Self::Dense(dense) => dense.reset(stream),
            Self::StreamMix(mix) => mix.reset(stream),
            Self::Moe(_) | Self::Convert(_) => Ok(()),
        }
    }
}

/// Compiles and loads the kernels of `tile` for `problem`.
fn bind(gpu: &Arc<Gpu>, jit: &Jit, problem: &Problem, tile: &Tile) -> Result<Bound, LiveError> {
    let plan = kernels::plan(problem, tile, gpu.spec())?;
    let kernels = plan.launches.iter().map(|launch| -> Result<Arc<Kernel>, LiveError> {
        let source = codegen::render(&launch.kernel, gpu.spec().arch, &gpu.spec().target)?;
        let (cubin, _) = jit.compile(&source)?;
        Ok(Arc::new(Kernel::load(gpu, &cubin, launch.smem_bytes)?))
    });
    let kernels = kernels.collect::<Result<Vec<_>, _>>()?;
    Ok(Bound::new(problem.clone(), plan, kernels, gpu.spec()))
}

/// Launches a candidate with the subject's arguments and its own workspace, if it has one.
fn launch_with(
    candidate: &Candidate,
    mut args: LaunchArgs,
    stream: *mut std::ffi::c_void,
    mode: Mode,
) -> Result<(), LiveError> {
    if candidate.workspace.bytes() > 0 {
        args.workspace = candidate.workspace.pointer();
    }
    // SAFETY: the subject's buffers hold as many tokens as it was opened for, no fewer than the candidate's problem has
    // (`LaunchArgs` is validated against it), and live as long as the subject, which outlives every launch: each use
    // ends with waiting for the stream.
    unsafe { candidate.bound.launch_as(&args, stream, mode == Mode::Chained)? };
    Ok(())
}

/// A graph should run about this long, so that an event's resolution does not show.
const GRAPH_US: f64 = 2500.0;
const FEWEST_LAUNCHES: u32 = 2;
const MOST_LAUNCHES: u32 = 200;
