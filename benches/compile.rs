//! NVRTC without its cache: one candidate on one core, and how compile threads scale.
//!
//! `cargo bench --bench compile`. Goals for sm_90a on one core: a dense wgmma candidate below 400 ms, a block of
//! experts with two token tiles, which is four kernels, below 1.5 s.

use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;
use tilekiln::arch::GpuSpec;
use tilekiln::codegen::{self, Request};
use tilekiln::jit::{Jit, KernelCache, Search};
use tilekiln::kernels;
use tilekiln::problem::{Problem, Tile};
use tilekiln::tuner::{CompileAhead, Urgency};

/// A compiler whose cache is empty, and goes with the folder.
fn cold() -> (TempDir, Jit) {
    let folder = tempfile::tempdir().unwrap();
    let jit = Jit::new(Search::from_environment(), KernelCache::new(folder.path()));
    jit.nvrtc().unwrap();
    (folder, jit)
}

fn kernels_of(problem: &str, tile: &Tile, gpu: &GpuSpec) -> Vec<Request> {
    let plan = kernels::plan(&problem.parse().unwrap(), tile, gpu).unwrap();
    plan.kernels().cloned().collect()
}

fn candidates(c: &mut Criterion) {
    let gpu = GpuSpec::named("h100").unwrap();
    let mut group = c.benchmark_group("compile a candidate on one core");
    group.sample_size(10).measurement_time(Duration::from_secs(10));
    for (problem, tile) in CANDIDATES {
        let requests = kernels_of(problem, &tile.parse().unwrap(), gpu);
        group.bench_function(tile, |b| {
            let compile = |(folder, jit): (TempDir, Jit)| {
                for request in &requests {
                    let source = codegen::render(request, gpu.arch, &gpu.target).unwrap();
                    assert!(jit.compile(&source).unwrap().0.resources.is_clean());
                }
                (folder, jit)
            };
            b.iter_batched(cold, compile, BatchSize::PerIteration)
        });
    }
}

/// The tuner's own pool of threads over the first tiles of a space.
fn threads(c: &mut Criterion) {
    let gpu = GpuSpec::named("h100").unwrap();
    let (text, family) = ("nvfp4 4096x8192 m64", kernels::family("dense_wgmma").unwrap());
    let problem: Problem = text.parse().unwrap();
    let tiles = kernels::space(family, &problem, gpu).tiles;
    let step = tiles.len() / BATCH;
    let requests: Vec<Request> =
        tiles.iter().step_by(step).take(BATCH).flat_map(|tile| kernels_of(text, tile, gpu)).collect();
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let mut group = c.benchmark_group(format!("compile {BATCH} dense candidates"));
    group.sample_size(10).measurement_time(Duration::from_secs(20)).throughput(Throughput::Elements(BATCH as u64));
    for n_threads in (0..).map(|power| 1 << power).take_while(|&n| n < cores).chain([cores]) {
        group.bench_function(format!("{n_threads} threads"), |b| {
            let compile = |(folder, jit): (TempDir, Jit)| {
                let ahead = CompileAhead::start(Arc::new(jit), gpu.clone(), n_threads);
                ahead.enqueue(Urgency::Planned, requests.iter().cloned());
                while ahead.n_left() > 0 {
                    std::thread::sleep(POLL);
                }
                assert_eq!(ahead.finish() as usize, requests.len(), "each was compiled");
                folder
            };
            b.iter_batched(cold, compile, BatchSize::PerIteration)
        });
    }
}

/// Defaults at 64 and at 1024 tokens, and a block whose two GEMMs have different token tiles.
const CANDIDATES: [(&str, &str); 4] = [
    ("nvfp4 4096x8192 m64", "dense_wgmma block_k=128 consumers=2 raster=0 signal=3 split=4 stages=4 tokens=64"),
    ("nvfp4 4096x8192 m1024", "dense_wgmma block_k=128 consumers=2 raster=0 signal=3 split=1 stages=4 tokens=128"),
    ("nvfp4 4096x8192 m1024", "dense_wgmma block_k=128 consumers=2 raster=0 signal=3 split=1 stages=3 tokens=256"),
    (
        "moe nvfp4 256 top6 4096x2048 m4096",
        "moe_wgmma block_k=128 consumers=2 down_tokens=64 persistent=1 producers=64 signal=0 stages=3 up_tokens=128 \
         widths=8",
    ),
];

/// Candidates of a batch, a few for each of many threads.
const BATCH: usize = 12;

/// Short beside a compilation.
const POLL: Duration = Duration::from_millis(1);

criterion_group!(benches, candidates, threads);
criterion_main!(benches);
