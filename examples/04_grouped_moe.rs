//! One block of experts through the library: `cargo run --release --example 04_grouped_moe`.
//!
//! With a GPU a tiny block runs on constant weights, whose result has a closed form. Without one the block of
//! DeepSeek-V4-Flash is planned for an H100: the best predicted tile of a few buckets, and its launches.

use std::error::Error;
use std::sync::Arc;

use tilekiln::arch::GpuSpec;
use tilekiln::device::{Buffer, Gpu, Stream};
use tilekiln::dispatch::{LaunchArgs, PrepareOptions, prepare};
use tilekiln::kernels;
use tilekiln::problem::Problem;
use tilekiln::quant::{self, PackError, PackedWeights, RowOrder, SourceMatrix, bf16, math};
use tilekiln::tuner::{bound, ranked};

fn main() -> Result<(), Box<dyn Error>> {
    if Gpu::count() == 0 {
        let gpu = GpuSpec::named("h100")?;
        println!("no GPU at hand: predicting for {}, nothing is measured", gpu.identity.product);
        return [1, 16, 256, 4096].into_iter().try_for_each(|m| plan(m, gpu));
    }
    run(&Arc::new(Gpu::open(0)?))
}

/// Prints what a step of `m` tokens would launch.
fn plan(m: u32, gpu: &GpuSpec) -> Result<(), Box<dyn Error>> {
    let problem: Problem = format!("moe nvfp4 256 top6 4096x2048 m{m}").parse()?;
    let ranked = ranked(&problem, gpu);
    let (tile, us) = ranked.first().ok_or("no tile serves the problem")?;
    let plan = kernels::plan(&problem, tile, gpu)?;
    println!("{problem}: {us:.1} us predicted, bound by {}, the best of {} tiles", bound(&plan, gpu), ranked.len());
    println!("  {tile}, {} B of workspace", plan.workspace_bytes);
    for launch in &plan.launches {
        let (grid, threads) = (format!("{:?}", launch.grid), launch.threads);
        let smem_bytes = launch.smem_bytes;
        println!("    {:<13} grid {grid:<14} {threads:>4} threads {smem_bytes:>7} B shared", launch.kernel.template);
    }
    Ok(())
}

/// Runs the tiny block and compares every element with the closed form.
fn run(gpu: &Arc<Gpu>) -> Result<(), Box<dyn Error>> {
    let problem: Problem = format!("moe nvfp4 {EXPERTS} top{TOP_K} {HIDDEN}x{INTERMEDIATE} m{TOKENS}").parse()?;
    let prepared = prepare(gpu, [problem.clone()], &PrepareOptions::from_environment())?;
    println!("{}", prepared.report());
    let loaded = prepared.lookup(&problem).ok_or("not prepared")?;

    // All experts have the same codes; what tells them apart is their alpha.
    let up = ones(2 * INTERMEDIATE, HIDDEN, RowOrder::GateUp)?;
    let down = ones(HIDDEN, INTERMEDIATE, RowOrder::Plain)?;
    let (up_weights, down_weights) = (up.bytes.repeat(EXPERTS), down.bytes.repeat(EXPERTS));
    let up_alpha: Vec<f32> = (0..EXPERTS).flat_map(|expert| [up.alpha * scale(expert); 2]).collect();
    let down_alpha: Vec<f32> = (0..EXPERTS).map(|expert| down.alpha * scale(expert)).collect();
    // Token t goes to experts t and t + 3.
    let experts: Vec<i32> = (0..TOKENS).flat_map(|token| expert_of(token).map(|expert| expert as i32)).collect();

    let activations = Buffer::of(gpu, &vec![bf16::encode(ACTIVATION); TOKENS * HIDDEN])?;
    let (weights, down_weights) = (Buffer::of(gpu, &up_weights)?, Buffer::of(gpu, &down_weights)?);
    let (up_alpha, down_alpha) = (Buffer::of(gpu, &up_alpha)?, Buffer::of(gpu, &down_alpha)?);
    let (experts, routing) = (Buffer::of(gpu, &experts)?, Buffer::of(gpu, &ROUTING.repeat(TOKENS))?);
    let output = Buffer::zeros(gpu, 2 * TOKENS * HIDDEN)?;
    let workspace = Buffer::zeros(gpu, loaded.workspace_bytes() as usize)?;
    let args = LaunchArgs {
        activations: activations.pointer(),
        activation_stride: HIDDEN as u32,
        weights: weights.pointer(),
        down_weights: down_weights.pointer(),
        output: output.pointer(),
        output_stride: HIDDEN as u32,
        tokens: TOKENS as u32,
        experts: experts.pointer(),
        routing: routing.pointer(),
        up_alpha: up_alpha.pointer(),
        down_alpha: down_alpha.pointer(),
        workspace: workspace.pointer(),
        ..LaunchArgs::default()
    };
    let stream = Stream::new(gpu)?;
    // SAFETY: every buffer has the size that the problem says and outlives the wait.
    unsafe { loaded.launch(&args, stream.raw().cast())? };
    stream.synchronize()?;

    for (token, row) in output.download::<u16>(TOKENS * HIDDEN)?.chunks(HIDDEN).enumerate() {
        let expected = expected(token);
        // Two roundings to BF16, of the hidden value and of the result, each of 2^-8 at most.
        let is_off = |bits: &&u16| (bf16::decode(**bits) / expected - 1.0).abs() > 2.0 / 256.0;
        if let Some(bits) = row.iter().find(is_off) {
            return Err(format!("token {token}: expected {expected}, found {}", bf16::decode(*bits)).into());
        }
        println!("token {token}, experts {:?}: {} (closed form {expected})", expert_of(token), bf16::decode(row[0]));
    }
    Ok(())
}

/// A matrix of ones as NVFP4: E2M1 code 2 and E4M3 byte 0x38 are both 1.
fn ones(n: usize, k: usize, order: RowOrder) -> Result<PackedWeights, PackError> {
    quant::pack(&SourceMatrix::Nvfp4 { n, k, codes: &vec![0x22; n * k / 2], scales: &vec![0x38; n * k / 16] }, order)
}

/// `sum_s routing[s] * I * w * swiglu(w * H * x, w * H * x)`, with `w` the expert's scale.
fn expected(token: usize) -> f32 {
    let of_slot = |(expert, routing): (usize, f32)| {
        let gate = scale(expert) * HIDDEN as f32 * ACTIVATION;
        routing * INTERMEDIATE as f32 * scale(expert) * math::swiglu(gate, gate, f32::INFINITY)
    };
    expert_of(token).into_iter().zip(ROUTING).map(of_slot).sum()
}

fn expert_of(token: usize) -> [usize; TOP_K] {
    [token % EXPERTS, (token + 3) % EXPERTS]
}

fn scale(expert: usize) -> f32 {
    (expert + 1) as f32 / 4.0
}

const EXPERTS: usize = 8;
const TOP_K: usize = 2;
const TOKENS: usize = 4;
const HIDDEN: usize = 256;
const INTERMEDIATE: usize = 128;
const ACTIVATION: f32 = 1.0 / 256.0;
const ROUTING: [f32; TOP_K] = [0.75, 0.25];
