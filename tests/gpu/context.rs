//! What cases share: the GPU, a compiler, and how a tile is checked.

use std::collections::BTreeSet;
use std::sync::Arc;

use tilekiln::codegen::{self, Request};
use tilekiln::device::{Buffer, Geometry, Gpu, Kernel, Stream};
use tilekiln::dispatch::Bound;
use tilekiln::environment;
use tilekiln::jit::{Jit, KernelCache, Search};
use tilekiln::kernels::{self, Family};
use tilekiln::problem::{Problem, Routing, Tile};
use tilekiln::quant::{self, Activations, PackedWeights, RowOrder, SourceMatrix, WeightFormat};
use tilekiln::tuner::{Live, LiveError};

/// One thing to be shown.
pub struct Case {
    pub name: String,
    pub run: Run,
}

/// Checks something and gives the number of checks.
pub type Run = Box<dyn Fn(&mut Context) -> Result<usize, Failure>>;

/// Why a case failed.
pub struct Failure {
    pub reason: String,
    pub is_sticky: bool,
}

impl From<LiveError> for Failure {
    fn from(error: LiveError) -> Self {
        Self { is_sticky: error.is_sticky(), reason: error.to_string() }
    }
}

impl From<tilekiln::device::DeviceError> for Failure {
    fn from(error: tilekiln::device::DeviceError) -> Self {
        Self { is_sticky: error.is_sticky(), reason: error.to_string() }
    }
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self { reason, is_sticky: false }
    }
}

pub struct Context {
    pub jit: Arc<Jit>,
    pub stream: Stream,
    // Last: the stream is destroyed in a context that must still be there.
    pub gpu: Arc<Gpu>,
}

impl Context {
    pub fn open() -> Result<Self, String> {
        let gpu = Arc::new(Gpu::open(0).map_err(|error| error.to_string())?);
        let cache = KernelCache::new(environment::cache_dir().join("kernels"));
        let jit = Arc::new(Jit::new(Search::from_environment(), cache));
        let stream = Stream::new(&gpu).map_err(|error| error.to_string())?;
        Ok(Self { gpu, jit, stream })
    }

    pub fn describe(&self) -> String {
        let nvrtc = self.jit.nvrtc().map_or("none".to_string(), |nvrtc| nvrtc.version());
        let product = &self.gpu.spec().identity.product;
        format!("{product}, driver {}, NVRTC {nvrtc}, commit {}", self.gpu.driver_version(), tilekiln::COMMIT)
    }

    /// Compiles what `tiles` need, on all cores.
    pub fn compile_ahead(&self, problem: &Problem, tiles: &[Tile]) -> Result<(), String> {
        let spec = self.gpu.spec();
        let mut requests = BTreeSet::new();
        for tile in tiles {
            let plan = kernels::plan(problem, tile, spec).map_err(|error| format!("{tile}: {error}"))?;
            requests.extend(plan.kernels().cloned());
        }
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let render = |request: &Request| codegen::render(request, spec.arch, &spec.target).ok();
        // A refusal shows again, with its words, when the tile is checked.
        self.jit.compile_all(&requests.iter().filter_map(render).collect::<Vec<_>>(), cores);
        Ok(())
    }

    /// `tile` of `problem`, ready to be launched with the caller's arguments.
    pub fn bound(&self, problem: &Problem, tile: &Tile) -> Result<Bound, Failure> {
        let spec = self.gpu.spec();
        let plan = kernels::plan(problem, tile, spec).map_err(|error| format!("{tile}: {error}"))?;
        let kernels = plan.launches.iter().map(|launch| -> Result<Arc<Kernel>, Failure> {
            let source = codegen::render(&launch.kernel, spec.arch, &spec.target).map_err(|error| error.to_string())?;
            let (cubin, _) = self.jit.compile(&source).map_err(|error| error.to_string())?;
            Ok(Arc::new(Kernel::load(&self.gpu, &cubin, launch.smem_bytes)?))
        });
        let kernels = kernels.collect::<Result<Vec<_>, _>>()?;
        Ok(Bound::new(problem.clone(), plan, kernels, spec))
    }

    /// Checks every tile of `tiles` on data made for `data`: right, the same bits twice, and of a dense
    /// GEMM nothing written outside.
    pub fn check_tiles(
        &mut self,
        data: &Problem,
        problem: &Problem,
        routings: &[Routing],
        tiles: &[Tile],
    ) -> Result<usize, Failure> {
        self.compile_ahead(problem, tiles)?;
        let mut live = Live::open(self.gpu.clone(), self.jit.clone(), data, routings, SEED)?;
        for tile in tiles {
            let named = |error: LiveError| Failure {
                is_sticky: error.is_sticky(),
                reason: format!("`{problem}` {tile}: {error}"),
            };
            live.prepare(0, problem, tile).map_err(named)?;
            let first = live.compare(0).map_err(named)?.checksum;
            if live.compare(0).map_err(named)?.checksum != first {
                return Err(format!("`{problem}` {tile}: two runs differ in their bits").into());
            }
            let strays = live.stray_writes(0).map_err(named)?;
            if strays > 0 {
                return Err(format!("`{problem}` {tile}: {strays} bytes written outside of the result").into());
            }
            let overlapping = live.sequence_checksum(0, CHAIN, true).map_err(named)?;
            if live.sequence_checksum(0, CHAIN, false).map_err(named)? != overlapping {
                return Err(format!("`{problem}` {tile}: a chain that overlaps gives other bits").into());
            }
        }
        Ok(tiles.len())
    }

    /// Checks that all of `tiles`, which have one numerics id, give the same bits.
    pub fn check_agreement(&mut self, problem: &Problem, routings: &[Routing], tiles: &[Tile]) -> Result<(), Failure> {
        let mut live = Live::open(self.gpu.clone(), self.jit.clone(), problem, routings, SEED)?;
        let mut first = None;
        for tile in tiles {
            let named = |error: LiveError| Failure {
                is_sticky: error.is_sticky(),
                reason: format!("`{problem}` {tile}: {error}"),
            };
            live.prepare(0, problem, tile).map_err(named)?;
            let checksum = live.compare(0).map_err(named)?.checksum;
            if *first.get_or_insert(checksum) != checksum {
                return Err(format!("`{problem}` {tile}: other bits than {}", tiles[0]).into());
            }
        }
        Ok(())
    }

    /// Runs one of our tools with raw 64-bit values, low bytes first.
    pub fn run_tool(&self, request: &Request, blocks: u32, values: &mut [u64]) -> Result<(), Failure> {
        let spec = self.gpu.spec();
        let source = codegen::render(request, spec.arch, &spec.target).map_err(|error| error.to_string())?;
        let (cubin, _) = self.jit.compile(&source).map_err(|error| error.to_string())?;
        let kernel = Kernel::load(&self.gpu, &cubin, 0)?;
        let mut pointers: Vec<_> = values.iter_mut().map(|value| (value as *mut u64).cast()).collect();
        let geometry = Geometry { grid: [blocks, 1, 1], threads: 256, smem_bytes: 0, is_dependent: false };
        // SAFETY: each caller passes the values that the tool's doc lists, with buffers that outlive the wait below.
        unsafe { kernel.launch(&geometry, &mut pointers, self.stream.raw())? };
        Ok(self.stream.synchronize()?)
    }

    pub fn buffer<T: tilekiln::device::Plain>(&self, values: &[T]) -> Result<Buffer, Failure> {
        Ok(Buffer::of(&self.gpu, values)?)
    }
}

/// NVFP4 weights are rounded for FP8 tensor cores, MXFP4 weights are not.
pub fn format_for(activations: Activations) -> WeightFormat {
    match activations {
        Activations::A16 => WeightFormat::Nvfp4,
        Activations::A8 => WeightFormat::Mxfp4,
    }
}

/// A matrix of ones: E2M1 code 2, E4M3 byte 0x38 and UE8M0 byte 127 are all 1.
pub fn ones(activations: Activations, n: usize, k: usize, order: RowOrder) -> Result<PackedWeights, Failure> {
    let codes = &vec![0x22; n * k / 2];
    let (of_16, of_32) = (vec![0x38; n * k / 16], vec![127; n * k / 32]);
    let source = match activations {
        Activations::A16 => SourceMatrix::Nvfp4 { n, k, codes, scales: &of_16 },
        Activations::A8 => SourceMatrix::Mxfp4 { n, k, codes, scales: &of_32 },
    };
    quant::pack_for(activations, &source, order).map_err(|error| error.to_string().into())
}

/// The default tile and up to `count` others, spread over the space.
pub fn sample(family: &dyn Family, problem: &Problem, gpu: &tilekiln::arch::GpuSpec, count: usize) -> Vec<Tile> {
    let space = kernels::space(family, problem, gpu).tiles;
    let mut tiles = vec![family.default_tile(problem, gpu)];
    // A step that shares no factor with the axes visits all of their values.
    let step = (space.len() / count.max(1)).max(1) | 1;
    tiles.extend(space.iter().step_by(step).take(count).cloned());
    tiles.dedup();
    tiles
}

const SEED: u64 = 20_261_122;

/// Launches of a chain that must give the same bits with and without overlap.
const CHAIN: u32 = 6;
