//! Dense GEMM on `wgmma` for many tiles: a block an SM goes from one to the next, and its ring does not run empty.

use super::dense_mma::dense_of;
use super::dense_wgmma::problem_values;
use super::group::Group;
use super::space::{first_that_fits, number, tile_values};
use super::{Axis, BoxMap, Family, Launch, Operand, Param, Plan, Rule, Work};
use crate::arch::{ArchSpec, GpuSpec};
use crate::codegen::{Request, Values, Widths};
use crate::problem::{Activations, Dense, Epilogue, Problem, Tile};
use crate::quant::PackedLayout;

/// `templates/dense_persistent`.
pub struct DensePersistent;

impl Family for DensePersistent {
    fn name(&self) -> &'static str {
        "dense_persistent"
    }

    fn serves(&self, problem: &Problem, arch: &ArchSpec) -> Result<(), String> {
        let Problem::Dense(dense) = problem else {
            return Err(format!("expected a dense problem, found `{problem}`"));
        };
        if dense.activations != Activations::A16 {
            return Err(format!("expected a16 activations, found {}", dense.activations));
        }
        if !arch.capabilities.wgmma {
            return Err(format!("{} has no wgmma", arch.name));
        }
        is_worth_walking(dense)
    }

    fn axes(&self, _: &Problem, _: &ArchSpec) -> Vec<Axis> {
        vec![
            Axis::new("consumers", [ROWS / 64]),
            Axis::new("tokens", TOKENS),
            Axis::new("block_k", [128, 256]),
            Axis::new("stages", [2, 3, 4]),
            Axis::new("signal", [0, 3]),
            Axis::new("raster", [0, 1]),
        ]
    }

    fn rules(&self) -> &'static [Rule] {
        &RULES
    }

    fn default_tile(&self, problem: &Problem, gpu: &GpuSpec) -> Tile {
        let fixed = [("consumers", ROWS / 64), ("block_k", 128), ("signal", 3), ("raster", 0)];
        let numbers = |(tokens, stages)| {
            Tile::new(self.name(), fixed.into_iter().chain([("tokens", tokens), ("stages", stages)]))
        };
        let choices = [(MOST_TOKENS, 3), (MOST_TOKENS, 2), (192, 2), (128, 2)].map(numbers);
        first_that_fits(self, &choices, problem, gpu)
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

    fn numerics(&self, _: &Problem, _: &Tile) -> String {
        "wgmma.k16/ranges=1".to_string()
    }
}

/// Rows of a tile.
pub(super) const ROWS: u32 = 128;

/// Tokens of a tile.
pub(super) const TOKENS: [u32; 5] = [128, 160, 192, 224, MOST_TOKENS];

/// Tokens of the widest tile.
pub(super) const MOST_TOKENS: u32 = 256;

/// Below this the weights are read for a tile of tokens or two, and memory is waited for whoever walks.
const MIN_TOKENS: u32 = 512;

/// Tiles below which `dense_wgmma` has nothing to wait for either: hardly one for each SM of any GPU.
const MIN_TILES: u32 = 128;

/// Refuses what has too few tiles to walk over.
pub(super) fn is_worth_walking(dense: &Dense) -> Result<(), String> {
    if dense.m < MIN_TOKENS {
        return Err(format!("expected at least {MIN_TOKENS} tokens, found {}", dense.m));
    }
    let tiles = tiles(dense, MOST_TOKENS);
    if tiles >= MIN_TILES {
        return Ok(());
    }
    Err(format!("expected at least {MIN_TILES} tiles of {ROWS} rows and {MOST_TOKENS} tokens, found {tiles}"))
}

/// Tiles of D that have `tokens` tokens.
pub(super) fn tiles(dense: &Dense, tokens: u32) -> u32 {
    dense.groups * dense.n.div_ceil(ROWS) * dense.m.div_ceil(tokens)
}

/// Tiles of the block that has most of them: to the model it is one long block.
pub(super) fn rounds(dense: &Dense, tokens: u32, gpu: &GpuSpec) -> f64 {
    f64::from(tiles(dense, tokens).div_ceil(gpu.sm_count()))
}

/// Room of a consumer for results on their way out, bytes.
pub(super) fn staging_bytes(dense: &Dense) -> u32 {
    let columns = if dense.epilogue == Epilogue::SwiGlu { 32 } else { 64 };
    STAGING_TOKENS * (columns * 2 + 16)
}

/// Refuses a ring that is longer than a tile.
pub(super) fn ring_is_used(ring: u32, stages_of_tile: u32) -> Result<(), String> {
    if ring <= stages_of_tile.max(2) {
        return Ok(());
    }
    Err(format!("a tile has {stages_of_tile} stages of work, a ring of {ring} only copies further ahead"))
}

const AXES: [&str; 5] = ["consumers", "tokens", "block_k", "stages", "signal"];

const RULES: [Rule; 4] = [
    Rule { name: "smem", check: |tile, problem, gpu| group_of(tile, problem).fits_shared_memory(gpu) },
    Rule { name: "registers", check: |tile, problem, _| group_of(tile, problem).fits_registers() },
    Rule { name: "slabs", check: |tile, problem, _| group_of(tile, problem).k_is_whole_slabs() },
    Rule { name: "stages-idle", check: the_ring_is_used },
];

fn group_of(tile: &Tile, problem: &Problem) -> Group {
    let dense = dense_of(problem);
    Group {
        layout: PackedLayout::of(dense.weights, dense.activations),
        consumers: number(tile, "consumers"),
        tokens: number(tile, "tokens"),
        block_k: number(tile, "block_k"),
        stages: number(tile, "stages"),
        producers: 128,
        staging_bytes: staging_bytes(dense),
    }
}

/// Tokens whose results leave together.
const STAGING_TOKENS: u32 = 16;

fn the_ring_is_used(tile: &Tile, problem: &Problem, _: &GpuSpec) -> Result<(), String> {
    let group = group_of(tile, problem);
    ring_is_used(group.stages, group.stages_of(dense_of(problem).k))
}

fn values(dense: &Dense, tile: &Tile, group: &Group) -> Values {
    let launch = [("threads", group.threads().into()), ("smem_bytes", group.smem_bytes().into())].into();
    [("problem", problem_values(dense)), ("tile", tile_values(tile, &AXES)), ("launch", launch)].into()
}

fn work(dense: &Dense, group: &Group, gpu: &GpuSpec) -> Work {
    let tiles = tiles(dense, group.tokens);
    let rounds = rounds(dense, group.tokens, gpu);
    let k = group.layout.padded_k(dense.k as usize) as f64;
    Work {
        blocks: f64::from(tiles.min(gpu.sm_count())),
        memory_bytes: (dense.weight_bytes() + dense.activation_bytes()) as f64,
        l2_bytes: f64::from(tiles) * (group.weight_bytes_of(k) + k * 2.0 * f64::from(group.tokens)),
        bytes_in_flight: f64::from(group.bytes_in_flight()),
        block_flops: rounds * 2.0 * k * f64::from(group.rows() * group.tokens),
        is_wgmma: true,
        is_fp8: false,
        block_issues: rounds * group.issues(k),
        tail_steps: 4.0,
        registers: group.registers(),
        is_prefetching: true,
    }
}
