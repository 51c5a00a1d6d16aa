//! Tunes one GEMM through the library: `cargo run --release --example 03_tune_one_gemm -- "nvfp4 4096x8192 m16"`.
//!
//! With a GPU every candidate is checked, then timed, in a process of its own: this binary, started again. Without one
//! the same search runs on the cost model, for an H100, and says so.

use std::collections::HashSet;
use std::error::Error;
use std::sync::Arc;

use tilekiln::arch::GpuSpec;
use tilekiln::device::Gpu;
use tilekiln::environment;
use tilekiln::jit::{Jit, KernelCache, Search as NvrtcSearch};
use tilekiln::problem::{Problem, Routing};
use tilekiln::tuner::{self, Bench, Effort, Predicted, Search, ServeOptions, Worker, WorkerBench, WorkerCommand};

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let problem: Problem = match words.next().as_deref() {
        // The parent starts this binary with `--socket PATH` to own the GPU.
        Some("--socket") => return Ok(serve(&words.next().ok_or("--socket needs a path")?)?),
        Some(text) => text.parse()?,
        None => "nvfp4 4096x8192 m16".parse()?,
    };
    if Gpu::count() == 0 {
        let gpu = GpuSpec::named("h100")?;
        println!("no GPU at hand: predicting for {}, nothing is measured", gpu.identity.product);
        return tune(&problem, gpu, &mut Predicted { gpu });
    }
    let gpu = Gpu::open(0)?.spec().clone();
    let command = WorkerCommand { program: std::env::current_exe()?, arguments: Vec::new() };
    let worker = Worker::start(&command)?;
    println!("measuring on {}, driver {}", gpu.identity.product, worker.gpu().driver);
    let mut bench = WorkerBench::new(command, worker, vec![Routing::Uniform], SEED);
    bench.open(&problem)?;
    tune(&problem, &gpu, &mut bench)
}

/// One quick search: prints each candidate as it is tried, then the winner.
fn tune(problem: &Problem, gpu: &GpuSpec, bench: &mut dyn Bench) -> Result<(), Box<dyn Error>> {
    let search = Search {
        problem,
        gpu,
        effort: Effort::QUICK,
        hints: &[],
        known_bad: &HashSet::new(),
        should_stop: &|| false,
        expect: &|_, _| (),
    };
    let mut seen = HashSet::new();
    let found = search.run(bench, &mut |tile, outcome, _| {
        // A candidate of the final is reported again, with all its rounds.
        if seen.insert(tile.clone()) {
            println!("  {:<40} {tile}", outcome.to_string());
        }
    })?;
    let us = found.winner.timing.chained_us;
    println!("{problem}: {us:.2} us, {:.0} % of the floor", 100.0 * problem.floor_us(gpu) / us);
    println!("winner {}; the default takes {:.2} us", found.winner.tile, found.default_us);
    Ok(())
}

fn serve(socket: &str) -> Result<(), tuner::ServeError> {
    let cache = KernelCache::new(environment::cache_dir().join("kernels"));
    let jit = Arc::new(Jit::new(NvrtcSearch::from_environment(), cache).measuring());
    tuner::serve(ServeOptions { socket: socket.into(), ordinal: 0, jit })
}

const SEED: u64 = 1;
