//! Checks and times chosen tiles of one problem: `time_tiles "moe nvfp4 256 top6 4096x2048 m4096" < tiles.txt`.
//!
//! A tile a line, as `show` and `explain` print them; a line that is no tile of the problem says why and is passed by.
//! Blocks of experts are timed under uniform and Zipf(1.0) routing. For trying a handful before a search.

use std::error::Error;
use std::io::BufRead;
use std::sync::Arc;

use tilekiln::arch::GpuSpec;
use tilekiln::codegen::{self, Source};
use tilekiln::device::Gpu;
use tilekiln::environment;
use tilekiln::jit::{Jit, KernelCache, Search};
use tilekiln::kernels;
use tilekiln::problem::{Problem, Routing, Tile};
use tilekiln::tuner::{Live, LiveError, Mode, predict};

fn main() -> Result<(), Box<dyn Error>> {
    let problem: Problem = std::env::args().nth(1).ok_or("expected a problem, found nothing")?.parse()?;
    let tiles: Vec<Tile> = std::io::stdin().lock().lines().filter_map(|line| line.ok()?.trim().parse().ok()).collect();
    let gpu = Arc::new(Gpu::open(0)?);
    let spec = gpu.spec().clone();
    let cache = KernelCache::new(environment::cache_dir().join("kernels"));
    let jit = Arc::new(Jit::new(Search::from_environment(), cache));
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    jit.compile_all(&sources(&problem, &tiles, &spec), cores);
    let routings: &[Routing] = match problem {
        Problem::MoeBlock(_) => &[Routing::Uniform, Routing::Zipf(1.0)],
        _ => &[],
    };
    let mut live = Live::open(gpu, jit, &problem, routings, SEED)?;
    println!(
        "{problem}: floor {:.1} us; chained us under each routing, the prediction, the tile",
        problem.floor_us(&spec)
    );
    for tile in &tiles {
        let predicted = kernels::plan(&problem, tile, &spec).map(|plan| predict(&plan, &spec));
        match (predicted, times(&mut live, &problem, tile, routings.len().max(1))) {
            (Ok(predicted), Ok(us)) => println!("{us:9.1?} {predicted:9.1} {tile}"),
            (Err(error), _) => println!("{tile}: {error}"),
            (_, Err(error)) if error.is_sticky() => return Err(error.into()),
            (_, Err(error)) => println!("{tile}: {error}"),
        }
    }
    Ok(())
}

/// Every kernel of every tile that is one.
fn sources(problem: &Problem, tiles: &[Tile], gpu: &GpuSpec) -> Vec<Source> {
    let plans = tiles.iter().filter_map(|tile| kernels::plan(problem, tile, gpu).ok());
    let requests = plans.flat_map(|plan| plan.launches).map(|launch| launch.kernel);
    requests.filter_map(|request| codegen::render(&request, gpu.arch, &gpu.target).ok()).collect()
}

/// Median time under each routing, microseconds.
fn times(live: &mut Live, problem: &Problem, tile: &Tile, n_routings: usize) -> Result<Vec<f64>, LiveError> {
    live.prepare(0, problem, tile)?;
    let median = |live: &mut Live, routing_idx| -> Result<f64, LiveError> {
        let mut us = Vec::new();
        for _ in 0..REPLAYS {
            us.push(live.replay(0, Mode::Chained, routing_idx)?.us);
        }
        us.sort_by(f64::total_cmp);
        Ok(us[us.len() / 2])
    };
    let times = (0..n_routings).map(|routing_idx| median(live, routing_idx)).collect();
    live.drop_candidate(0);
    times
}

const REPLAYS: usize = 7;

const SEED: u64 = 1;
