//! Everything that a model can launch, loaded in parallel before the first request.

use std::collections::HashMap;
use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Bound, LaunchArgs, LaunchError, kernels_hash};
use crate::codegen::{self, CodegenError, Request};
use crate::device::{DeviceError, Gpu, Kernel};
use crate::environment;
use crate::jit::{CameFrom, Jit, JitError, KernelCache, Search};
use crate::kernels::{self, Plan};
use crate::problem::{Problem, Tile};
use crate::store::{Current, Database, How, Lookup, LookupNote, Stale, WinnerKey};

/// Where winners and kernels come from.
pub struct PrepareOptions {
    /// Snapshot of the database of winners; embedded packs stand behind it.
    pub snapshot: PathBuf,
    /// Compiles what the cache does not hold.
    pub jit: Arc<Jit>,
    /// Threads that compile and load.
    pub threads: usize,
}

impl PrepareOptions {
    /// The user's own database and cache, all cores.
    pub fn from_environment() -> Self {
        let cache = KernelCache::new(environment::cache_dir().join("kernels"));
        Self {
            snapshot: Database::snapshot_path(&environment::data_dir().join("db")),
            jit: Arc::new(Jit::new(Search::from_environment(), cache)),
            threads: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
        }
    }
}

/// Why a model is not ready.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// No family serves a problem.
    #[error("no kernel serves `{problem}` on {gpu}: {}", reasons.join("; "))]
    Unserved {
        /// The problem.
        problem: String,
        /// The GPU.
        gpu: String,
        /// Each family's sentence.
        reasons: Vec<String>,
    },
    /// Neither the winner nor any that came after it, the default included, could be loaded.
    #[error("no kernel for `{problem}` can be loaded: {reason}")]
    Unloadable {
        /// The problem.
        problem: String,
        /// What became of the last one tried.
        reason: String,
    },
    /// NVRTC is needed and not there.
    #[error(transparent)]
    Jit(JitError),
    /// The GPU.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A template.
    #[error(transparent)]
    Codegen(#[from] CodegenError),
}

/// A problem's launches, ready.
pub struct Loaded {
    bound: Bound,
    tile: Tile,
    how: How,
    stale: Option<Stale>,
}

impl Loaded {
    /// The tile that is launched.
    pub fn tile(&self) -> &Tile {
        &self.tile
    }

    /// By which rung of the ladder it was found.
    pub fn how(&self) -> &How {
        &self.how
    }

    /// Why its winner should be measured again, if it should.
    pub fn stale(&self) -> Option<&Stale> {
        self.stale.as_ref()
    }

    /// Bytes that [`LaunchArgs::workspace`] must have, zeroed once, one for each launch that may run beside others.
    pub fn workspace_bytes(&self) -> u64 {
        self.bound.workspace_bytes()
    }

    /// Launches on `stream`, a raw CUstream of the GPU's context; see [`Bound::launch`].
    ///
    /// # Safety
    /// As [`Bound::launch`].
    ///
    /// # Errors
    /// [`LaunchError`].
    pub unsafe fn launch(&self, args: &LaunchArgs, stream: *mut c_void) -> Result<(), LaunchError> {
        // SAFETY: passed on to the caller.
        unsafe { self.bound.launch(args, stream) }
    }
}

/// What was prepared, and how long each part took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PrepareReport {
    /// Problems that can be launched.
    pub problems: usize,
    /// Problems by rung: measured here, other bucket, borrowed, predicted, default.
    pub by_rung: [usize; 5],
    /// Problems whose winner is stale.
    pub stale: usize,
    /// Problems whose winner is not valid or did not load, so that a runner-up or the default took its place.
    pub replaced: usize,
    /// Distinct kernels loaded.
    pub kernels: usize,
    /// Kernels that were compiled now; the others came from the cache.
    pub compiled: usize,
    /// Bytes of all loaded images.
    pub image_bytes: usize,
    /// Reading winners and choosing tiles.
    pub choosing: Duration,
    /// Rendering, and compiling or reading the cache.
    pub compiling: Duration,
    /// Loading into the context.
    pub loading: Duration,
    /// Snapshots and packs that could not be read, so that their winners are not used.
    pub notes: Vec<String>,
}

impl std::fmt::Display for PrepareReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [exact, other, borrowed, predicted, default] = self.by_rung;
        write!(
            f,
            "{} problems ready ({exact} measured here, {other} from another bucket, {borrowed} borrowed, \
             {predicted} predicted, {default} default; {} stale, {} replaced); {} kernels, {} compiled, {:.1} MiB; \
             choosing {:.2} s, compiling {:.2} s, loading {:.2} s",
            self.problems,
            self.stale,
            self.replaced,
            self.kernels,
            self.compiled,
            self.image_bytes as f64 / (1 << 20) as f64,
            self.choosing.as_secs_f64(),
            self.compiling.as_secs_f64(),
            self.loading.as_secs_f64()
        )?;
        self.notes.iter().try_for_each(|note| write!(f, "; warning: {note}"))
    }
}

/// Loaded launches by problem. May be shared by threads.
pub struct Prepared {
    loaded: HashMap<Problem, Loaded>,
    report: PrepareReport,
    // Kernels unload into a context that must still be there.
    _gpu: Arc<Gpu>,
}

impl Prepared {
    /// The launches of `problem`, whose `m` is a bucket. No lock, no allocation.
    pub fn lookup(&self, problem: &Problem) -> Option<&Loaded> {
        self.loaded.get(problem)
    }

    /// What was prepared.
    pub fn report(&self) -> &PrepareReport {
        &self.report
    }
}

/// Loads what `problems` launch on `gpu`: winners of the snapshot and of the embedded packs, or what the ladder gives.
///
/// # Errors
/// [`PrepareError`]; nothing is half-loaded.
pub fn prepare(
    gpu: &Arc<Gpu>,
    problems: impl IntoIterator<Item = Problem>,
    options: &PrepareOptions,
) -> Result<Prepared, PrepareError> {
    let mut preparation = Preparation::new(gpu, options);
    let started = Instant::now();
    let choices = preparation.choose(problems)?;
    preparation.report.choosing = started.elapsed();
    preparation.load(choices)
}

/// As [`prepare`], with tiles by which a token gets the same bits in every bucket: winners are not asked, for they
/// differ between buckets.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_invariant(
    gpu: &Arc<Gpu>,
    problems: impl IntoIterator<Item = Problem>,
    options: &PrepareOptions,
) -> Result<Prepared, PrepareError> {
    let mut preparation = Preparation::new(gpu, options);
    let started = Instant::now();
    let choices = preparation.choose_invariant(problems)?;
    preparation.report.choosing = started.elapsed();
    preparation.load(choices)
}

/// The tiles that may serve a problem, best first, and the one that is tried.
struct Choice {
    problem: Problem,
    tiles: Vec<Tile>,
    /// What was found: the winner and its runners-up, valid or not; empty where only the default is known.
    found: Vec<Tile>,
    tried: usize,
    plan: Plan,
    how: How,
    /// NVRTC that the winner was measured with.
    measured_with: Option<String>,
    stale: Option<Stale>,
}

impl Choice {
    /// What was said of the winner does not hold for a default that stands in for it.
    fn settle(&mut self) {
        if !self.found.contains(&self.tiles[self.tried]) {
            (self.how, self.stale, self.measured_with) = (How::Default, None, None);
        }
    }

    /// Whether the winner is not what is launched.
    fn is_replaced(&self) -> bool {
        self.found.first().is_some_and(|winner| *winner != self.tiles[self.tried])
    }
}

/// A kernel on the GPU, and the NVRTC that compiled it.
struct OnGpu {
    kernel: Arc<Kernel>,
    nvrtc: String,
}

struct Preparation<'a> {
    gpu: &'a Arc<Gpu>,
    options: &'a PrepareOptions,
    report: PrepareReport,
    /// Loaded kernels, or why one is not. Shared memory is part of the key: it is set when a kernel is loaded.
    kernels: HashMap<(Request, u32), Result<OnGpu, String>>,
}

impl<'a> Preparation<'a> {
    fn new(gpu: &'a Arc<Gpu>, options: &'a PrepareOptions) -> Self {
        Self { gpu, options, report: PrepareReport::default(), kernels: HashMap::new() }
    }

    /// Winners first; what does not load falls to the next tile, until the default.
    fn load(mut self, mut choices: Vec<Choice>) -> Result<Prepared, PrepareError> {
        let mut loaded = HashMap::with_capacity(choices.len());
        while !choices.is_empty() {
            self.load_kernels(&choices)?;
            let mut again = Vec::new();
            for mut choice in choices {
                match self.bind(&choice) {
                    Some(bound) => {
                        choice.settle();
                        choice.stale = choice.stale.take().or_else(|| self.other_compiler(&choice));
                        self.count(&choice);
                        let Choice { problem, tiles, tried, how, stale, .. } = choice;
                        loaded.insert(problem, Loaded { bound, tile: tiles[tried].clone(), how, stale });
                    }
                    None => again.push(self.next(choice)?),
                }
            }
            choices = again;
        }
        self.report.problems = loaded.len();
        Ok(Prepared { loaded, report: self.report, _gpu: self.gpu.clone() })
    }

    /// The one tile of each problem that is the same in every bucket.
    fn choose_invariant(&self, problems: impl IntoIterator<Item = Problem>) -> Result<Vec<Choice>, PrepareError> {
        let spec = self.gpu.spec();
        let mut choices: Vec<Choice> = Vec::new();
        for problem in problems {
            if choices.iter().any(|choice| choice.problem == problem) {
                continue;
            }
            let tile = kernels::invariant_tile(&problem, spec);
            let planned = tile.and_then(|tile| Some((kernels::plan(&problem, &tile, spec).ok()?, tile)));
            let (plan, tile) = planned.ok_or_else(|| self.unserved(&problem))?;
            let (tiles, found) = (vec![tile], Vec::new());
            let how = How::Default;
            choices.push(Choice { problem, tiles, found, tried: 0, plan, how, measured_with: None, stale: None });
        }
        Ok(choices)
    }

    fn unserved(&self, problem: &Problem) -> PrepareError {
        let spec = self.gpu.spec();
        PrepareError::Unserved {
            problem: problem.to_string(),
            gpu: spec.name.clone(),
            reasons: kernels::refusals(problem, spec.arch),
        }
    }

    fn choose(&mut self, problems: impl IntoIterator<Item = Problem>) -> Result<Vec<Choice>, PrepareError> {
        let spec = self.gpu.spec();
        let (lookup, notes) = Lookup::open(&self.options.snapshot, spec.arch);
        self.report.notes.extend(notes.iter().map(LookupNote::to_string));
        let mut choices: Vec<Choice> = Vec::new();
        for problem in problems {
            if choices.iter().any(|choice| choice.problem == problem) {
                continue;
            }
            let unserved = || self.unserved(&problem);
            let default = kernels::default_tile(&problem, spec).ok_or_else(unserved)?;
            let key = WinnerKey { layout: problem.layout(), problem: &problem, gpu: &spec.identity };
            // A warm cache needs no NVRTC: which one compiled a kernel is known when it is loaded.
            let is_valid = |problem: &Problem, tile: &Tile| kernels::plan(problem, tile, spec).is_ok();
            let kernels = |problem: &Problem, tile: &Tile| kernels_hash(problem, tile, spec);
            let current = Current { nvrtc: None, kernels: &kernels, is_valid: &is_valid };
            let found = lookup.find(&key, spec.arch, &current, &default);
            let tiles: Vec<Tile> = found.tiles().filter(|tile| is_valid(&problem, tile)).collect();
            let (how, stale) = (found.how.clone(), found.stale.clone());
            let known = found.entry.map(|entry| entry.tiles().collect()).unwrap_or_default();
            let measured_with = found.entry.map(|entry| entry.toolchain.nvrtc.clone());
            let plan = tiles.first().and_then(|tile| kernels::plan(&problem, tile, spec).ok()).ok_or_else(unserved)?;
            choices.push(Choice { problem, tiles, found: known, tried: 0, plan, how, measured_with, stale });
        }
        Ok(choices)
    }

    /// Compiles and loads the kernels of `choices` that are not there yet.
    fn load_kernels(&mut self, choices: &[Choice]) -> Result<(), PrepareError> {
        let launches = choices.iter().flat_map(|choice| &choice.plan.launches);
        let mut wanted: Vec<(Request, u32)> =
            launches.map(|launch| (launch.kernel.clone(), launch.smem_bytes)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        wanted.retain(|key| !self.kernels.contains_key(key));
        let started = Instant::now();
        let spec = self.gpu.spec();
        let sources = wanted.iter().map(|(request, _)| codegen::render(request, spec.arch, &spec.target));
        let sources = sources.collect::<Result<Vec<_>, _>>()?;
        let compiled = self.options.jit.compile_all(&sources, self.options.threads);
        self.report.compiling += started.elapsed();
        let started = Instant::now();
        for (key, compiled) in wanted.into_iter().zip(compiled) {
            let kernel = match compiled {
                Ok((cubin, came_from)) => {
                    self.report.compiled += usize::from(came_from == CameFrom::Compilation);
                    self.report.image_bytes += cubin.image.len();
                    self.report.kernels += 1;
                    let kernel = Kernel::load(self.gpu, &cubin, key.1).map_err(|error| error.to_string());
                    kernel.map(|kernel| OnGpu { kernel: Arc::new(kernel), nvrtc: cubin.nvrtc })
                }
                // A text that NVRTC refuses is one kernel less; its absence is all of them.
                Err(error @ (JitError::NoNvrtc { .. } | JitError::NotNvrtc { .. })) => {
                    return Err(PrepareError::Jit(error));
                }
                Err(error) => Err(error.to_string()),
            };
            self.kernels.insert(key, kernel);
        }
        self.report.loading += started.elapsed();
        Ok(())
    }

    /// The plan with its kernels, unless one of them is missing.
    fn bind(&self, choice: &Choice) -> Option<Bound> {
        let kernels = choice.plan.launches.iter().map(|launch| Some(self.on_gpu(launch)?.kernel.clone()));
        let kernels: Option<Vec<Arc<Kernel>>> = kernels.collect();
        kernels.map(|kernels| Bound::new(choice.problem.clone(), choice.plan.clone(), kernels, self.gpu.spec()))
    }

    fn on_gpu(&self, launch: &kernels::Launch) -> Option<&OnGpu> {
        self.kernels.get(&(launch.kernel.clone(), launch.smem_bytes)).and_then(|kernel| kernel.as_ref().ok())
    }

    /// Whether the winner was measured with another NVRTC than the one that compiled its kernels here.
    fn other_compiler(&self, choice: &Choice) -> Option<Stale> {
        let then = choice.measured_with.as_deref()?;
        let mut loaded = choice.plan.launches.iter().filter_map(|launch| self.on_gpu(launch));
        loaded.find_map(|on_gpu| Stale::of_compiler(then, &on_gpu.nvrtc))
    }

    /// The same problem with its next tile.
    fn next(&self, choice: Choice) -> Result<Choice, PrepareError> {
        let tried = choice.tried + 1;
        let plan = choice.tiles.get(tried).and_then(|tile| kernels::plan(&choice.problem, tile, self.gpu.spec()).ok());
        match plan {
            Some(plan) => Ok(Choice { tried, plan, ..choice }),
            None => {
                let reasons = choice.plan.launches.iter().filter_map(|launch| {
                    let kernel = self.kernels.get(&(launch.kernel.clone(), launch.smem_bytes))?;
                    kernel.as_ref().err().cloned()
                });
                let reason = reasons.collect::<Vec<_>>().join("; ");
                Err(PrepareError::Unloadable { problem: choice.problem.to_string(), reason })
            }
        }
    }

    fn count(&mut self, choice: &Choice) {
        let rung = match choice.how {
            How::Exact => 0,
            How::OtherBucket { .. } => 1,
            How::Borrowed { .. } => 2,
            How::Predicted => 3,
            How::Default => 4,
        };
        self.report.by_rung[rung] += 1;
        self.report.stale += usize::from(choice.stale.is_some());
        self.report.replaced += usize::from(choice.is_replaced());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::GpuSpec;

    #[test]
    fn a_default_that_stands_in_is_told_as_the_default() {
        let gpu = GpuSpec::named("h100").unwrap();
        let problem: Problem = "nvfp4 4096x4096 m1".parse().unwrap();
        let default = kernels::default_tile(&problem, gpu).unwrap();
        let [winner, next] = [2, 4].map(|stages| default.with("stages", stages));
        let choice = |tried| {
            let plan = kernels::plan(&problem, &default, gpu).unwrap();
            let (tiles, found) =
                (vec![winner.clone(), next.clone(), default.clone()], vec![winner.clone(), next.clone()]);
            let (problem, measured_with) = (problem.clone(), Some("13.2".to_string()));
            let mut choice = Choice {
                problem,
                tiles,
                found,
                tried,
                plan,
                how: How::Exact,
                measured_with,
                stale: Some(Stale::Kernels),
            };
            choice.settle();
            (choice.how.clone(), choice.stale.is_some(), choice.measured_with.is_some(), choice.is_replaced())
        };
        assert_eq!(choice(0), (How::Exact, true, true, false));
        assert_eq!(choice(1), (How::Exact, true, true, true));
        assert_eq!(choice(2), (How::Default, false, false, true));
    }
}
