//! A template to a named text: flattened, filled in, hashed. Then what comes before it: a problem to a checked plan.
//!
//! `cargo bench --bench render`. Goal: below 0.5 ms a kernel.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use tilekiln::arch::GpuSpec;
use tilekiln::codegen;
use tilekiln::kernels;
use tilekiln::problem::Problem;

fn render(c: &mut Criterion) {
    let gpu = GpuSpec::named("h100").unwrap();
    for text in ["nvfp4 4096x8192 m1", "nvfp4 4096x8192 m1024", "moe nvfp4 256 top6 4096x2048 m1024"] {
        let problem: Problem = text.parse().unwrap();
        let tile = kernels::default_tile(&problem, gpu).unwrap();
        let plan = kernels::plan(&problem, &tile, gpu).unwrap();
        // Of a block of experts the longest text: gate-up.
        let text_bytes =
            |request: &&codegen::Request| codegen::render(request, gpu.arch, &gpu.target).unwrap().text.len();
        let request = plan.kernels().max_by_key(text_bytes).unwrap();
        c.bench_function(&format!("render and hash, {}", request.template), |b| {
            b.iter(|| codegen::render(black_box(request), gpu.arch, &gpu.target).unwrap().hash)
        });
    }
}

fn plan(c: &mut Criterion) {
    let gpu = GpuSpec::named("h100").unwrap();
    let problem: Problem = "moe nvfp4 256 top6 4096x2048 m1024".parse().unwrap();
    let tile = kernels::default_tile(&problem, gpu).unwrap();
    c.bench_function("rules and plan, moe_wgmma", |b| {
        b.iter(|| kernels::plan(black_box(&problem), black_box(&tile), gpu).unwrap())
    });
}

criterion_group!(benches, render, plan);
criterion_main!(benches);
