//! Dense GEMM on the FP8 tensor cores for many tiles: a block an SM goes from one to the next.

use super::dense_mma::dense_of;
use super::dense_persistent::{
    MOST_TOKENS, ROWS, TOKENS, is_worth_walking, ring_is_used, rounds, staging_bytes, tiles,
};
use super::dense_wgmma::problem_values;
use super::dense_wgmma_a8::{DenseWgmmaA8, chain_ends_before, scales_belong_to_chains, sums_fit_twice};
use super::group_a8::GroupA8;
use super::space::{first_that_fits, number, tile_values};
use super::{Axis, BoxMap, Family, Launch, Operand, Param, Plan, Rule, Work};
use crate::arch::{ArchSpec, GpuSpec};
use crate::codegen::{Request, Values, Widths};
use crate::problem::{Dense, Problem, Tile};
use crate::quant::{PackedLayout, WeightFormat};

/// `templates/dense_persistent_a8`.
pub struct DensePersistentA8;

impl Family for DensePersistentA8 {
    fn name(&self) -> &'static str {
        "dense_persistent_a8"
    }

    fn serves(&self, problem: &Problem, arch: &ArchSpec) -> Result<(), String> {
        DenseWgmmaA8.serves(problem, arch)?;
        is_worth_walking(dense_of(problem))
    }

    fn axes(&self, problem: &Problem, _: &ArchSpec) -> Vec<Axis> {
        let chains: &[u32] = match dense_of(problem).weights {
            WeightFormat::Fp8 => &[128],
            _ => &[0, 512],
        };
        vec![
            Axis::new("consumers", [ROWS / 64]),
            Axis::new("tokens", TOKENS),
            Axis::new("block_k", [128, 256]),
            Axis::new("stages", [2, 3, 4, 5]),
            Axis::new("promote", chains),
            Axis::new("signal", [0, 3]),
            Axis::new("raster", [0, 1]),
        ]
    }

    fn rules(&self) -> &'static [Rule] {
        &RULES
    }

    fn default_tile(&self, problem: &Problem, gpu: &GpuSpec) -> Tile {
        let fixed = [("consumers", ROWS / 64), ("block_k", 128), ("signal", 0), ("raster", 0)];
        let numbers = |(tokens, stages, promote)| {
            let chosen = [("tokens", tokens), ("stages", stages), ("promote", promote)];
            Tile::new(self.name(), fixed.into_iter().chain(chosen))
        };
        // Long chains lose what is small beside their sum; where k is short, none has to end.
        let choices = match dense_of(problem).weights {
            WeightFormat::Fp8 => [(128, 4, 128), (128, 2, 128)],
            _ if dense_of(problem).k > LONGEST_CHAIN => [(128, 4, 512), (128, 2, 512)],
            _ => [(MOST_TOKENS, 4, 0), (MOST_TOKENS, 2, 0)],
        };
        first_that_fits(self, &choices.map(numbers), problem, gpu)
    }

    fn plan(&self, problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Plan {
        let dense = dense_of(problem);
        let group = group_of(tile, problem);
        Plan::single(Launch {
            kernel: Request {
                template: self.name(),
                values: values(dense, tile, &group),
                wgmma_tokens: Some(Widths::single(group.tokens)),
            },
            grid: [tiles(dense, group.tokens).min(gpu.sm_count()), 1, 1],
            threads: group.threads(),
            smem_bytes: group.smem_bytes(),
            params: vec![
                Param::Operand(Operand::Weights),
                Param::Box(BoxMap::of_tokens(dense, group.tokens)),
                Param::Operand(Operand::RowScales),
                Param::Operand(Operand::Output),
                Param::TokensOnDevice,
                Param::OutputStride,
                Param::Tokens,
                Param::Int(dense.n as i32),
                Param::Int(dense.k as i32),
                Param::Int(dense.groups as i32),
                Param::Int(number(tile, "raster") as i32),
                Param::Limit,
                Param::Segments,
            ],
            work: work(dense, &group, gpu),
        })
    }

    /// That of `dense_wgmma_a8` with k in one part, whose bits these are.
    fn numerics(&self, problem: &Problem, tile: &Tile) -> String {
        DenseWgmmaA8.numerics(problem, &tile.with("split", 1))
    }
}

/// k above which the default ends its chains.
const LONGEST_CHAIN: u32 = 4096;

const AXES: [&str; 6] = ["consumers", "tokens", "block_k", "stages", "promote", "signal"];

const RULES: [Rule; 5] = [
    Rule { name: "smem", check: |tile, problem, gpu| group_of(tile, problem).fits_shared_memory(gpu) },
    Rule { name: "registers", check: sums_fit_twice },
    Rule { name: "block-scales", check: scales_belong_to_chains },
    Rule { name: "promote-moot", check: |tile, problem, _| chain_ends_before(dense_of(problem).k, tile, problem) },
    Rule { name: "stages-idle", check: the_ring_is_used },
];

fn group_of(tile: &Tile, problem: &Problem) -> GroupA8 {
    let dense = dense_of(problem);
    let tokens = number(tile, "tokens");
    GroupA8 {
        layout: PackedLayout::of(dense.weights, dense.activations),
        consumers: number(tile, "consumers"),
        tokens,
        block_k: number(tile, "block_k"),
        stages: number(tile, "stages"),
        promote: number(tile, "promote"),
        producers: 128,
        // And a scale of each token for each warp.
        staging_bytes: staging_bytes(dense) + 4 * tokens * 4,
        cluster: 1,
    }
}

fn the_ring_is_used(tile: &Tile, problem: &Problem, _: &GpuSpec) -> Result<(), String> {
    let group = group_of(tile, problem);
    ring_is_used(group.stages, group.stages_of(dense_of(problem).k))
}

fn values(dense: &Dense, tile: &Tile, group: &GroupA8) -> Values {
    let launch = [("threads", group.threads().into()), ("smem_bytes", group.smem_bytes().into())].into();
    [("problem", problem_values(dense)), ("tile", tile_values(tile, &AXES)), ("launch", launch)].into()
}

fn work(dense: &Dense, group: &GroupA8, gpu: &GpuSpec) -> Work {
    let tiles = tiles(dense, group.tokens);
    let rounds = rounds(dense, group.tokens, gpu);
    let k = group.layout.padded_k(dense.k as usize) as f64;
    Work {
        blocks: f64::from(tiles.min(gpu.sm_count())),
        memory_bytes: (dense.weight_bytes() + dense.activation_bytes()) as f64,
        l2_bytes: f64::from(tiles) * (group.weight_bytes_of(k) + k * f64::from(group.tokens)),
        bytes_in_flight: f64::from(group.bytes_in_flight()),
        block_flops: rounds * 2.0 * k * f64::from(group.rows() * group.tokens),
        is_wgmma: true,
        is_fp8: true,
        block_issues: rounds * group.issues(k),
        tail_steps: 4.0,
        registers: group.registers(),
        is_prefetching: true,
    }
}
