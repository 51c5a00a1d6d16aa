//! The cost model over whole spaces: axes, rules, plans, predictions, order.
//!
//! `cargo bench --bench predict`. It decides how soon a run says something, and is all there is without a GPU.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tilekiln::arch::GpuSpec;
use tilekiln::kernels;
use tilekiln::problem::Problem;
use tilekiln::tuner::{predict, ranked};

fn spaces(c: &mut Criterion) {
    let gpu = GpuSpec::named("h100").unwrap();
    let mut group = c.benchmark_group("rank a whole space");
    for text in ["nvfp4 4096x8192 m1", "nvfp4 4096x8192 m1024", "moe nvfp4 256 top6 4096x2048 m4096"] {
        let problem: Problem = text.parse().unwrap();
        let n_tiles = ranked(&problem, gpu).len();
        group.throughput(Throughput::Elements(n_tiles as u64));
        group.bench_function(format!("{text}, {n_tiles} tiles"), |b| b.iter(|| ranked(black_box(&problem), gpu)));
    }
}

fn one_plan(c: &mut Criterion) {
    let gpu = GpuSpec::named("h100").unwrap();
    let problem: Problem = "moe nvfp4 256 top6 4096x2048 m4096".parse().unwrap();
    let tile = kernels::default_tile(&problem, gpu).unwrap();
    let plan = kernels::plan(&problem, &tile, gpu).unwrap();
    c.bench_function("predict one plan", |b| b.iter(|| predict(black_box(&plan), gpu)));
}

criterion_group!(benches, spaces, one_plan);
criterion_main!(benches);
