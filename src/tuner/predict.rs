//! What a tile should cost, without running it: bytes, FLOPs, issue slots, waves and latency.
//!
//! The order of visit on a GPU, and the whole answer where there is none. Each launch is bound by the slowest of
//! memory, L2, instruction issue and tensor cores, and pays in part for the next slowest, because overlap is never
//! whole.

use serde::Serialize;

use crate::arch::GpuSpec;
use crate::kernels::{Launch, Plan};
use crate::problem::{Problem, Tile};
use crate::{jit::Resources, kernels};

/// Expected time of `plan` on `gpu`, microseconds, in a chain of dependent launches.
pub fn predict(plan: &Plan, gpu: &GpuSpec) -> f64 {
    plan.launches.iter().map(|launch| launch_us(launch, launch.work.registers, gpu)).sum()
}

/// As [`predict`], with the registers that the compiler gave each launch in place of the estimates.
pub fn predict_compiled(plan: &Plan, resources: &[Resources], gpu: &GpuSpec) -> f64 {
    let launches = plan.launches.iter().zip(resources);
    launches.map(|(launch, resources)| launch_us(launch, resources.registers, gpu)).sum()
}

/// What the time of a plan mostly goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Bytes from and to device memory.
    Memory,
    /// Bytes between L2 and the SMs.
    L2,
    /// Instructions that decode and feed the tensor cores.
    Issue,
    /// The tensor cores.
    Math,
    /// Starting launches and waves, and ending blocks.
    Latency,
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::L2 => "L2",
            Self::Issue => "issue",
            Self::Math => "math",
            Self::Latency => "latency",
        })
    }
}

/// The largest part of what [`predict`] gives for `plan`, all launches together.
pub fn bound(plan: &Plan, gpu: &GpuSpec) -> Bound {
    let mut sums = [Bound::Memory, Bound::L2, Bound::Issue, Bound::Math, Bound::Latency].map(|bound| (bound, 0.0));
    for launch in &plan.launches {
        let Parts { memory_us, l2_us, issue_us, math_us, latency_us } = parts(launch, launch.work.registers, gpu);
        let parts = [memory_us, l2_us, issue_us, math_us, latency_us];
        sums.iter_mut().zip(parts).for_each(|((_, sum), part)| *sum += part);
    }
    sums.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(Bound::Latency, |(bound, _)| bound)
}

/// The tiles of every family that serves `problem`, the expected fastest first, with their times.
pub fn ranked(problem: &Problem, gpu: &GpuSpec) -> Vec<(Tile, f64)> {
    let tiles = kernels::serving(problem, gpu.arch)
        .into_iter()
        .flat_map(|family| kernels::space(family, problem, gpu).tiles.into_iter().map(move |tile| (family, tile)));
    let mut ranked: Vec<(Tile, f64)> = tiles
        .map(|(family, tile)| {
            let us = predict(&family.plan(problem, &tile, gpu), gpu);
            (tile, us)
        })
        .collect();
    // Ties by id, so that the order is the same everywhere.
    ranked.sort_by(|a, b| a.1.total_cmp(&b.1).then_with(|| a.0.cmp(&b.0)));
    ranked
}

/// Spearman's rank correlation of two equally long lists; `None` below three pairs, which say nothing.
pub fn rank_correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let n = a.len();
    if n < 3 || n != b.len() {
        return None;
    }
    let (ranks_a, ranks_b) = (ranks(a), ranks(b));
    let mean = (n - 1) as f64 / 2.0;
    let (mut both, mut only_a, mut only_b) = (0.0, 0.0, 0.0);
    for (x, y) in ranks_a.iter().zip(&ranks_b) {
        both += (x - mean) * (y - mean);
        only_a += (x - mean).powi(2);
        only_b += (y - mean).powi(2);
    }
    (only_a > 0.0 && only_b > 0.0).then(|| both / (only_a * only_b).sqrt())
}

/// Rank of each value from 0; equal values share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut begin = 0;
    for run in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let shared = begin as f64 + (run.len() - 1) as f64 / 2.0;
        run.iter().for_each(|&idx| ranks[idx] = shared);
        begin += run.len();
    }
    ranks
}

fn launch_us(launch: &Launch, registers: u32, gpu: &GpuSpec) -> f64 {
    let Parts { memory_us, l2_us, issue_us, math_us, latency_us } = parts(launch, registers, gpu);
    let mut bounds = [memory_us, l2_us, issue_us.max(math_us), issue_us.min(math_us)];
    bounds.sort_by(|a, b| b.total_cmp(a));
    let us = latency_us + bounds[0] + MODEL.second * bounds[1] + MODEL.third * bounds[2];
    // What was fitted to all candidates may promise more than memory gives; the order of two such promises is kept.
    us.max(launch.work.memory_bytes / (gpu.chain_gbs * 1e3) + 0.05 * us)
}

/// What a launch would take if only one thing took time, microseconds.
struct Parts {
    memory_us: f64,
    l2_us: f64,
    issue_us: f64,
    math_us: f64,
    latency_us: f64,
}

fn parts(launch: &Launch, registers: u32, gpu: &GpuSpec) -> Parts {
    let (work, model) = (&launch.work, &MODEL);
    let sms = f64::from(gpu.sm_count());
    let per_sm = gpu.blocks_per_sm(launch.threads, registers, launch.smem_bytes).max(1);
    let (room, blocks) = (sms * f64::from(per_sm), work.blocks.max(1.0));
    let waves = blocks / room;
    // Below one wave the fullest SM decides; above it the last wave is in part empty.
    let imbalance = match waves <= 1.0 {
        true => (blocks / sms).ceil() * sms / blocks,
        false => (waves.ceil() * model.whole_waves + waves * (1.0 - model.whole_waves)) / waves,
    };
    let clock_per_us = f64::from(gpu.clock_mhz);
    let bandwidth = gpu.chain_gbs * 1e3 * model.bandwidth_factor;
    let in_flight = blocks.min(room) * work.bytes_in_flight.max(1.0) / model.latency_us;
    let memory_us = work.memory_bytes / bandwidth.min(in_flight);
    let l2_us = work.l2_bytes / (model.l2_per_read * gpu.read_gbs * 1e3);
    let issue_us = work.block_issues * blocks / (sms * 4.0 * clock_per_us) * imbalance * model.issue_factor;
    let efficiency = if work.is_wgmma { model.wgmma_efficiency } else { model.mma_efficiency };
    let flops_per_clock = match (work.is_fp8, gpu.arch.fp8_flops_per_clock_per_sm) {
        (true, Some(flops)) => f64::from(flops) * FP8_EFFICIENCY,
        _ => f64::from(gpu.arch.bf16_flops_per_clock_per_sm),
    };
    let flops_per_us = sms * flops_per_clock * clock_per_us * efficiency;
    let math_us = work.block_flops * blocks / flops_per_us * imbalance;
    let launch_us = if work.is_prefetching { model.prefetching_us } else { model.waiting_us };
    let more_waves_us = model.wave_us * (waves - 1.0).max(0.0);
    let tail_us = model.tail_step_us * work.tail_steps;
    Parts { memory_us, l2_us, issue_us, math_us, latency_us: launch_us + more_waves_us + tail_us }
}

/// What the model does not know from first principles.
struct Model {
    bandwidth_factor: f64,
    latency_us: f64,
    l2_per_read: f64,
    issue_factor: f64,
    wgmma_efficiency: f64,
    /// mma.sync reaches this share of the wgmma rate.
    mma_efficiency: f64,
    second: f64,
    third: f64,
    prefetching_us: f64,
    waiting_us: f64,
    tail_step_us: f64,
    wave_us: f64,
    whole_waves: f64,
}

/// Fitted by random search to what one H100 measured (driver 580.159, 2026-11-23): the trials of 111 problems with
/// NVRTC 13.2, every tile of two of them, and sweeps by hand of a dozen more with NVRTC 13.0. Counted were the regret
/// of the first, the nine and the twenty best predicted, and log times of tiles near the best. What it reaches is in
/// `tests/search_replay.rs`.
const MODEL: Model = Model {
    bandwidth_factor: 1.067,
    latency_us: 3.681,
    l2_per_read: 12.0,
    issue_factor: 2.306,
    wgmma_efficiency: 0.9925,
    mma_efficiency: 0.1092,
    second: 0.0336,
    third: 0.41,
    prefetching_us: 0.542,
    waiting_us: 0.797,
    tail_step_us: 1.293,
    wave_us: 2.025,
    whole_waves: 1.0,
};

/// FP8 reaches a smaller share of its peak than BF16: 1,479 of 1,979 TFLOP/s beside 787 of 989, at the same power.
const FP8_EFFICIENCY: f64 = (1479.0 / 1979.0) / (787.0 / 989.0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlation_of_ranks() {
        let close = |found: Option<f64>, expected: f64| (found.unwrap() - expected).abs() < 1e-12;
        assert!(close(rank_correlation(&[1.0, 2.0, 3.0], &[10.0, 20.0, 30.0]), 1.0));
        assert!(close(rank_correlation(&[1.0, 2.0, 3.0], &[30.0, 20.0, 10.0]), -1.0));
        // Wikipedia's example of IQ and hours of television: rho = -29/165.
        let iq = [106.0, 100.0, 86.0, 101.0, 99.0, 103.0, 97.0, 113.0, 112.0, 110.0];
        let tv = [7.0, 27.0, 2.0, 50.0, 28.0, 29.0, 20.0, 12.0, 6.0, 17.0];
        assert!(close(rank_correlation(&iq, &tv), -29.0 / 165.0));
        assert_eq!(rank_correlation(&[1.0, 2.0], &[1.0, 2.0]), None);
        assert_eq!(rank_correlation(&[1.0, 1.0, 1.0], &[1.0, 2.0, 3.0]), None);
    }

    #[test]
    fn no_prediction_is_below_the_floor_by_much_or_nonsense() {
        let gpu = GpuSpec::named("h100").unwrap();
        for text in [
            "nvfp4 4096x8192 m1",
            "nvfp4 4096x8192 m4096",
            "bf16 129280x4096 f32 m16",
            "moe nvfp4 256 top6 4096x2048 m64",
        ] {
            let problem: Problem = text.parse().unwrap();
            let ranked = ranked(&problem, gpu);
            let floor = problem.floor_us(gpu);
            assert!(ranked[0].1 > 0.85 * floor && ranked[0].1 < 5.0 * floor, "{text}: {:?} {floor}", ranked[0]);
            assert!(ranked.iter().all(|(_, us)| us.is_finite()));
        }
    }
}
