//! Records and trials for the tests and benches of the store: made up, and of the size that real ones have.

#![allow(dead_code, reason = "each test and bench uses its part")]

use tilekiln::arch::{GpuIdentity, GpuSpec};
use tilekiln::problem::{BUCKETS, Problem, Routing, Tile};
use tilekiln::store::{GpuTrial, Origin, Outcome, Record, RunnerUp, Timing, Toolchain, Trial};

/// The identity of the GPU called `name`.
pub fn gpu(name: &str) -> GpuIdentity {
    GpuSpec::named(name).unwrap().identity.clone()
}

/// The problem that `text` says.
pub fn problem(text: &str) -> Problem {
    text.parse().unwrap()
}

/// One of many tiles, with as many numbers as a real one.
pub fn tile(idx: u64) -> Tile {
    let number = |range: u64, shift: u64| (idx >> shift) % range;
    let power = |least: u32, shift: u64| least << number(3, shift);
    let numbers = [
        ("k_slab", power(64, 0)),
        ("prefetch", number(2, 1) as u32),
        ("rows", power(16, 2)),
        ("split_k", power(1, 3)),
        ("stages", 2 + number(5, 4) as u32),
        ("tokens", power(8, 5)),
        ("variant", idx as u32),
        ("warps", power(2, 6)),
    ];
    Tile::new("dense_mma", numbers)
}

/// What a time of `chained_us` looks like.
pub fn timing(chained_us: f64) -> Timing {
    Timing {
        chained_us,
        unchained_us: chained_us * 1.17,
        half_width_us: chained_us * 0.004,
        rounds: 32,
        is_warm: false,
        sm_clock_mhz: 1755,
        throttle_reasons: 4,
        relative_l2: 1.53e-3,
    }
}

/// The tools that measured tile `idx`.
pub fn toolchain(idx: u64) -> Toolchain {
    Toolchain {
        driver: "580.159.04".to_string(),
        nvrtc: "13.2".to_string(),
        kernels: blake3::hash(&idx.to_le_bytes()).to_hex()[..16].to_string(),
        commit: "0123456789ab".to_string(),
    }
}

/// A measured winner: tile `idx` in `chained_us`.
pub fn record(problem_text: &str, gpu_name: &str, idx: u64, chained_us: f64) -> Record {
    let runner_up = |n: u64| RunnerUp { tile: tile(idx + n), chained_us: chained_us * (1.0 + 0.01 * n as f64) };
    Record {
        problem: problem(problem_text),
        gpu: gpu(gpu_name),
        layout: "nvfp4@2".to_string(),
        tile: tile(idx),
        numerics: "k-ascending/split2/f32".to_string(),
        origin: Origin::Measured,
        timing: timing(chained_us),
        default_us: chained_us * 1.15,
        runners_up: (1..4).map(runner_up).collect(),
        routings: Vec::new(),
        tried: 212,
        toolchain: toolchain(idx),
        written_at: 1_763_800_000 + idx,
    }
}

/// `n` winners of different problems on the H100.
pub fn records(n: usize) -> Vec<Record> {
    let problems =
        (0u32..).flat_map(|op| BUCKETS.map(|m| format!("nvfp4 {}x{} m{m}", 64 * (op % 40 + 1), 64 * (op / 40 + 1))));
    let us = |idx: u64| 3.0 + (idx % 977) as f64 * 0.731;
    problems.zip(0..).take(n).map(|(problem, idx)| record(&problem, "h100", idx % 500, us(idx))).collect()
}

/// Trial `idx` of `problem`, measured.
pub fn trial(problem_text: &str, idx: u64, seed: u64) -> GpuTrial {
    let trial = Trial {
        problem: problem(problem_text),
        tile: tile(idx),
        routing: idx.is_multiple_of(3).then_some(Routing::Zipf(1.1)),
        outcome: Outcome::Measured(timing(7.0 + idx as f64 * 0.0137)),
        seed,
        toolchain: toolchain(idx),
    };
    GpuTrial { gpu: gpu("h100"), trial }
}

/// A stream of numbers that looks random and is the same in every run.
pub struct Numbers(pub u64);

impl Numbers {
    /// The next one, below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
