//! Dense GEMM on the FP8 tensor cores of Hopper: FP8 tokens, weights decoded to FP8.

use std::collections::BTreeMap;

use super::dense_mma::dense_of;
use super::dense_wgmma::{problem_values, raster_makes_a_difference};
use super::group::token_choices;
use super::group_a8::{GroupA8, sums_of};
use super::plan::Workspace;
use super::space::{first_that_fits, number, tile_values};
use super::{Axis, BoxMap, Family, Launch, Operand, Param, Plan, Rule, Work};
use crate::arch::{ArchSpec, GpuSpec};
use crate::codegen::{Request, Values, Widths};
use crate::problem::{Activations, Dense, Problem, Tile};
use crate::quant::{PackedLayout, WeightFormat};

/// `templates/dense_wgmma_a8`.
pub struct DenseWgmmaA8;

impl Family for DenseWgmmaA8 {
    fn name(&self) -> &'static str {
        "dense_wgmma_a8"
    }

    fn serves(&self, problem: &Problem, arch: &ArchSpec) -> Result<(), String> {
        match problem {
            Problem::Dense(_) if !arch.capabilities.wgmma => Err(format!("{} has no wgmma", arch.name)),
            Problem::Dense(dense) if dense.weights == WeightFormat::Bf16 => {
                Err("bf16 weights are no FP8 operands".to_string())
            }
            Problem::Dense(dense) if dense.activations == Activations::A8 => Ok(()),
            Problem::Dense(dense) => Err(format!("expected a8 activations, found {}", dense.activations)),
            other => Err(format!("expected a dense problem, found `{other}`")),
        }
    }

    fn axes(&self, problem: &Problem, arch: &ArchSpec) -> Vec<Axis> {
        let clusters: &[u32] = if arch.capabilities.clusters { &[1, 2] } else { &[1] };
        let chains: &[u32] = match dense_of(problem).weights {
            WeightFormat::Fp8 => &[128],
            _ => &[0, 128, 256, 512],
        };
        vec![
            Axis::new("consumers", [1, 2]),
            Axis::new("tokens", token_choices(problem.m())),
            Axis::new("block_k", [128, 256]),
            Axis::new("stages", [2, 3, 4, 5, 6, 8]),
            Axis::new("split", [1, 2, 4, 8]),
            Axis::new("promote", chains),
            Axis::new("cluster", clusters),
            Axis::new("signal", [0, 1, 3]),
            Axis::new("raster", [0, 1]),
        ]
    }

    fn rules(&self) -> &'static [Rule] {
        &RULES
    }

    fn default_tile(&self, problem: &Problem, gpu: &GpuSpec) -> Tile {
        let tokens = token_choices(problem.m()).last().copied().unwrap_or(16).min(128);
        let promote = match dense_of(problem).weights {
            WeightFormat::Fp8 => 128,
            _ => 512,
        };
        let fixed = [("consumers", 2), ("tokens", tokens), ("block_k", 128), ("signal", 3), ("raster", 0)];
        let numbers = |(stages, split, promote, cluster)| {
            let chosen = [("stages", stages), ("split", split), ("promote", promote), ("cluster", cluster)];
            Tile::new(self.name(), fixed.into_iter().chain(chosen))
        };
        // Where a chain would never end, or k is not worth splitting, the next is tried.
        let choices = [
            (4, 4, promote, 1),
            (4, 4, 0, 1),
            (4, 2, promote, 1),
            (4, 2, 0, 1),
            (4, 1, promote, 1),
            (4, 1, 0, 1),
            (3, 1, 0, 1),
            (2, 1, 0, 1),
            (2, 1, 128, 1),
        ]
        .map(numbers);
        first_that_fits(self, &choices, problem, gpu)
    }

    fn plan(&self, problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Plan {
        let dense = dense_of(problem);
        let group = group_of(tile, problem);
        let split = number(tile, "split");
        let rows = dense.groups * group.row_tiles(dense.n);
        let token_tiles = dense.m.div_ceil(group.tokens);
        let is_by_token = number(tile, "raster") == 1;
        let mut workspace = Workspace::default();
        let all = u64::from(rows) * u64::from(token_tiles);
        let (partials, tickets) = workspace.take_splits(split, all, group.tokens * group.rows());
        let launch = Launch {
            kernel: Request {
                template: self.name(),
                values: values(dense, tile, &group, gpu),
                wgmma_tokens: Some(Widths::single(group.tokens)),
            },
            grid: if is_by_token { [token_tiles, rows * split, 1] } else { [rows * split, token_tiles, 1] },
            threads: group.threads(),
            smem_bytes: group.smem_bytes(),
            params: vec![
                Param::Operand(Operand::Weights),
                Param::Box(BoxMap::of_tokens(dense, group.tokens / group.cluster)),
                Param::Operand(Operand::RowScales),
                Param::Operand(Operand::Output),
                Param::TokensOnDevice,
                partials,
                tickets,
                Param::OutputStride,
                Param::Tokens,
                Param::Int(dense.n as i32),
                Param::Int(dense.k as i32),
                Param::Int(i32::from(is_by_token)),
                Param::Limit,
                Param::Segments,
            ],
            work: work(dense, &group, split),
        };
        Plan { workspace_bytes: workspace.bytes(), ..Plan::single(launch) }
    }

    fn numerics(&self, _: &Problem, tile: &Tile) -> String {
        let (chain, block_k) = (number(tile, "promote"), number(tile, "block_k"));
        match number(tile, "split") {
            // Where k ends within a chain of 512, stages say how much of it belongs to the last one.
            1 if chain < 512 => format!("wgmma.e4m3.k32/chain={chain}/ranges=1"),
            split => format!("wgmma.e4m3.k32/chain={chain}/ranges={split}/k{block_k}"),
        }
    }
}

const AXES: [&str; 8] = ["consumers", "tokens", "block_k", "stages", "split", "promote", "cluster", "signal"];

const RULES: [Rule; 8] = [
    Rule { name: "smem", check: fits_shared_memory },
    Rule { name: "registers", check: sums_fit_twice },
    Rule { name: "block-scales", check: scales_belong_to_chains },
    Rule { name: "promote-moot", check: chains_end_before_k },
    Rule { name: "cluster", check: a_cluster_shares_tokens },
    Rule { name: "stages-idle", check: the_ring_is_used },
    Rule { name: "split-idle", check: split_fills_idle_sms },
    Rule { name: "raster-moot", check: raster_makes_a_difference },
];

/// The block that `tile` describes, fed by a warp, or by a warpgroup that gives its registers away.
fn group_of(tile: &Tile, problem: &Problem) -> GroupA8 {
    let dense = dense_of(problem);
    let [consumers, tokens, promote] = ["consumers", "tokens", "promote"].map(|name| number(tile, name));
    let producers = if consumers == 2 && sums_of(tokens, promote) >= 96 { 128 } else { 32 };
    GroupA8 {
        layout: PackedLayout::of(dense.weights, dense.activations),
        consumers,
        tokens,
        block_k: number(tile, "block_k"),
        stages: number(tile, "stages"),
        promote,
        producers,
        staging_bytes: 0,
        cluster: number(tile, "cluster"),
    }
}

fn fits_shared_memory(tile: &Tile, problem: &Problem, gpu: &GpuSpec) -> Result<(), String> {
    let group = group_of(tile, problem);
    group.fits_shared_memory(gpu)?;
    let (staged, ring) = (group.consumers * group.tokens * 144, group.stages * group.stage_bytes());
    match staged <= ring {
        true => Ok(()),
        false => Err(format!("results of {staged} B are staged in the ring, which has {ring} B")),
    }
}

pub(super) fn sums_fit_twice(tile: &Tile, _: &Problem, _: &GpuSpec) -> Result<(), String> {
    let tokens = number(tile, "tokens");
    if number(tile, "promote") == 0 || tokens <= 128 {
        return Ok(());
    }
    Err(format!("{tokens} tokens take more registers than a thread has if their sums are kept twice"))
}

pub(super) fn scales_belong_to_chains(tile: &Tile, problem: &Problem, _: &GpuSpec) -> Result<(), String> {
    match (dense_of(problem).weights, number(tile, "promote")) {
        (WeightFormat::Fp8, chain) if chain != 128 => {
            Err(format!("a scale of fp8 weights is for 128 k, a chain of {chain} would need several"))
        }
        _ => Ok(()),
    }
}

fn chains_end_before_k(tile: &Tile, problem: &Problem, _: &GpuSpec) -> Result<(), String> {
    chain_ends_before(dense_of(problem).k.div_ceil(number(tile, "split")), tile, problem)
}

/// Refuses chains that are as long as the `range` of k that a block has.
pub(super) fn chain_ends_before(range: u32, tile: &Tile, problem: &Problem) -> Result<(), String> {
    let chain = number(tile, "promote");
    if chain < range || dense_of(problem).weights == WeightFormat::Fp8 {
        return Ok(());
    }
    Err(format!("a chain of {chain} never ends before the {range} k of a block"))
}

fn a_cluster_shares_tokens(tile: &Tile, problem: &Problem, _: &GpuSpec) -> Result<(), String> {
    let group = group_of(tile, problem);
    if group.cluster == 1 {
        return Ok(());
    }
    let (split, row_blocks) = (number(tile, "split"), dense_of(problem).n.div_ceil(group.rows()));
    if split > 1 {
        return Err(format!("blocks of a cluster share tokens, {split} parts of k have their own"));
    }
    if row_blocks < group.cluster {
        return Err(format!("{row_blocks} tile of rows fills no cluster of {}", group.cluster));
    }
    Ok(())
}

fn the_ring_is_used(tile: &Tile, problem: &Problem, _: &GpuSpec) -> Result<(), String> {
    let group = group_of(tile, problem);
    let stages = group.stages_of(dense_of(problem).k).div_ceil(number(tile, "split"));
    if group.stages <= stages.max(2) {
        return Ok(());
    }
    Err(format!("a block has {stages} stages of work, a ring of {} is never full", group.stages))
}

fn split_fills_idle_sms(tile: &Tile, problem: &Problem, gpu: &GpuSpec) -> Result<(), String> {
    let (dense, group, split) = (dense_of(problem), group_of(tile, problem), number(tile, "split"));
    let blocks = dense.groups * group.row_tiles(dense.n) * dense.m.div_ceil(group.tokens);
    let stages = group.stages_of(dense.k);
    if split > 1 && split > stages {
        return Err(format!("k = {} has {stages} stages of {}, fewer than {split} parts", dense.k, group.block_k));
    }
    if split == 1 || blocks * split <= 2 * gpu.sm_count() {
        return Ok(());
    }
    Err(format!("{blocks} blocks already fill {} SMs, splitting k only adds sums", gpu.sm_count()))
}

fn values(dense: &Dense, tile: &Tile, group: &GroupA8, gpu: &GpuSpec) -> Values {
    // Along the rows, whichever axis of the grid these are.
    let cluster = match (group.cluster, number(tile, "raster")) {
        (1, _) => String::new(),
        (blocks, 0) => format!(" __cluster_dims__({blocks}, 1, 1)"),
        (blocks, _) => format!(" __cluster_dims__(1, {blocks}, 1)"),
    };
    let launch = BTreeMap::from([
        ("threads", group.threads().into()),
        ("blocks_per_sm", group.blocks_per_sm(gpu).into()),
        ("smem_bytes", group.smem_bytes().into()),
        ("cluster", cluster.into()),
    ]);
    BTreeMap::from([("problem", problem_values(dense)), ("tile", tile_values(tile, &AXES)), ("launch", launch)])
}

fn work(dense: &Dense, group: &GroupA8, split: u32) -> Work {
    let rows = f64::from(dense.groups * group.row_tiles(dense.n));
    let token_tiles = f64::from(dense.m.div_ceil(group.tokens));
    let blocks = rows * token_tiles * f64::from(split);
    let k = group.layout.padded_k(dense.k as usize) as f64 / f64::from(split);
    let block_weights = group.weight_bytes_of(k);
    let block_tokens = k * f64::from(group.tokens) / f64::from(group.cluster);
    let partials = if split > 1 { 8.0 * f64::from(group.tokens * group.rows()) } else { 0.0 };
    Work {
        blocks,
        memory_bytes: (dense.weight_bytes() + dense.activation_bytes()) as f64,
        l2_bytes: blocks * (block_weights + block_tokens + partials),
        bytes_in_flight: f64::from(group.bytes_in_flight()),
        block_flops: 2.0 * k * f64::from(group.rows() * group.tokens),
        is_wgmma: true,
        is_fp8: true,
        block_issues: group.issues(k),
        tail_steps: if split > 1 { 8.0 } else { 4.0 },
        registers: group.registers(),
        is_prefetching: true,
    }
}
