//! Dense GEMM on `wgmma`: the tensor-core path, for 16 tokens and more on Hopper.

use std::collections::BTreeMap;

use super::dense_mma::{dense_of, out_word, parts, parts_meet_in_one_place};
use super::group::{Group, token_choices};
use super::plan::{Workspace, word_of};
use super::space::{first_that_fits, number, tile_values};
use super::{Axis, BoxMap, Family, Launch, Operand, Param, Plan, Rule, Work};
use crate::arch::{ArchSpec, GpuSpec};
use crate::codegen::{Request, Value, Values, Widths};
use crate::problem::{Activations, Dense, Epilogue, Problem, Tile};
use crate::quant::PackedLayout;

/// `templates/dense_wgmma`.
pub struct DenseWgmma;

impl Family for DenseWgmma {
    fn name(&self) -> &'static str {
        "dense_wgmma"
    }

    fn serves(&self, problem: &Problem, arch: &ArchSpec) -> Result<(), String> {
        match problem {
            Problem::Dense(dense) if dense.activations != Activations::A16 => {
                Err(format!("expected a16 activations, found {}", dense.activations))
            }
            Problem::Dense(dense) if arch.capabilities.wgmma && dense.m >= MIN_TOKENS => Ok(()),
            Problem::Dense(_) if !arch.capabilities.wgmma => Err(format!("{} has no wgmma", arch.name)),
            Problem::Dense(dense) => Err(format!("expected at least {MIN_TOKENS} tokens, found {}", dense.m)),
            other => Err(format!("expected a dense problem, found `{other}`")),
        }
    }

    fn axes(&self, problem: &Problem, _: &ArchSpec) -> Vec<Axis> {
        vec![
            Axis::new("consumers", [1, 2, 4]),
            Axis::new("tokens", token_choices(problem.m())),
            Axis::new("block_k", [128, 256]),
            Axis::new("stages", [2, 3, 4, 6, 8]),
            Axis::new("split", [1, 2, 4, 8]),
            Axis::new("cluster", [1, 2, 4, 8]),
            Axis::new("signal", [0, 1, 3]),
            Axis::new("raster", [0, 1]),
        ]
    }

    fn rules(&self) -> &'static [Rule] {
        &RULES
    }

    fn default_tile(&self, problem: &Problem, gpu: &GpuSpec) -> Tile {
        let tokens = token_choices(problem.m()).last().copied().unwrap_or(16).min(128);
        let fixed =
            [("consumers", 2), ("tokens", tokens), ("block_k", 128), ("signal", 3), ("raster", 0), ("cluster", 1)];
        let numbers =
            |(stages, split)| Tile::new(self.name(), fixed.into_iter().chain([("stages", stages), ("split", split)]));
        let choices = [(4, 4), (4, 2), (4, 1), (3, 1), (2, 1)].map(numbers);
        first_that_fits(self, &choices, problem, gpu)
    }

    fn plan(&self, problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Plan {
        let dense = dense_of(problem);
        let group = group_of(tile, problem);
        let (split, parts) = (number(tile, "split"), parts(tile));
        let rows = dense.groups * dense.n.div_ceil(64).div_ceil(group.consumers);
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
            grid: if is_by_token { [token_tiles, rows * parts, 1] } else { [rows * parts, token_tiles, 1] },
            threads: group.threads(),
            smem_bytes: group.smem_bytes(),
            params: vec![
                Param::Operand(Operand::Weights),
                Param::Box(BoxMap::of_tokens(dense, group.tokens)),
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
            work: work(dense, &group, tile),
        };
        Plan { workspace_bytes: workspace.bytes(), ..Plan::single(launch) }
    }

    fn numerics(&self, _: &Problem, tile: &Tile) -> String {
        match parts(tile) {
            1 => "wgmma.k16/ranges=1".to_string(),
            parts => format!("wgmma.k16/ranges={parts}/k{}", number(tile, "block_k")),
        }
    }
}

/// Below this a tile of 16 tokens would be mostly padding.
const MIN_TOKENS: u32 = 16;

const AXES: [&str; 7] = ["consumers", "tokens", "block_k", "stages", "split", "cluster", "signal"];

const RULES: [Rule; 8] = [
    Rule { name: "smem", check: |tile, problem, gpu| group_of(tile, problem).fits_shared_memory(gpu) },
    Rule { name: "registers", check: |tile, problem, _| group_of(tile, problem).fits_registers() },
    Rule { name: "slabs", check: |tile, problem, _| group_of(tile, problem).k_is_whole_slabs() },
    Rule { name: "stages-idle", check: the_ring_is_used },
    Rule { name: "split-idle", check: parts_fill_idle_sms },
    Rule { name: "one-way", check: |tile, _, _| parts_meet_in_one_place(tile) },
    Rule { name: "cluster", check: |tile, _, _| a_block_has_tokens_of_its_own(tile) },
    Rule { name: "raster-moot", check: raster_makes_a_difference },
];

fn group_of(tile: &Tile, problem: &Problem) -> Group {
    let (consumers, tokens) = (number(tile, "consumers"), number(tile, "tokens"));
    Group {
        layout: PackedLayout::of(dense_of(problem).weights, dense_of(problem).activations),
        consumers,
        tokens,
        block_k: number(tile, "block_k"),
        stages: number(tile, "stages"),
        producers: if consumers == 2 && tokens > 192 { 128 } else { 32 },
        staging_bytes: 0,
    }
}

fn the_ring_is_used(tile: &Tile, problem: &Problem, _: &GpuSpec) -> Result<(), String> {
    let group = group_of(tile, problem);
    let stages = group.stages_of(dense_of(problem).k).div_ceil(parts(tile));
    if group.stages <= stages.max(2) {
        return Ok(());
    }
    Err(format!("a block has {stages} stages of work, a ring of {} is never full", group.stages))
}

fn a_block_has_tokens_of_its_own(tile: &Tile) -> Result<(), String> {
    let (tokens, cluster) = (number(tile, "tokens"), number(tile, "cluster"));
    if cluster == 1 || tokens.is_multiple_of(16 * cluster) {
        return Ok(());
    }
    Err(format!("{tokens} tokens are no sixteens for each of {cluster} blocks"))
}

fn parts_fill_idle_sms(tile: &Tile, problem: &Problem, gpu: &GpuSpec) -> Result<(), String> {
    let (dense, group, parts) = (dense_of(problem), group_of(tile, problem), parts(tile));
    let blocks = dense.groups * dense.n.div_ceil(group.rows()) * dense.m.div_ceil(group.tokens);
    let stages = group.stages_of(dense.k);
    if parts > 1 && parts > stages {
        return Err(format!("k = {} has {stages} stages of {}, fewer than {parts} parts", dense.k, group.block_k));
    }
    if parts == 1 || blocks * parts <= 2 * gpu.sm_count() {
        return Ok(());
    }
    Err(format!("{blocks} blocks already fill {} SMs, splitting k only adds sums", gpu.sm_count()))
}

pub(super) fn raster_makes_a_difference(tile: &Tile, problem: &Problem, _: &GpuSpec) -> Result<(), String> {
    if number(tile, "raster") == 0 || dense_of(problem).m > number(tile, "tokens") {
        return Ok(());
    }
    Err("there is one tile of tokens, both orders are the same".to_string())
}

/// What a template is told of the problem.
pub(super) fn problem_values(dense: &Dense) -> BTreeMap<&'static str, Value> {
    BTreeMap::from([
        ("weights", word_of(dense.weights).into()),
        ("out", out_word(dense.output).into()),
        ("swiglu", (dense.epilogue == Epilogue::SwiGlu).into()),
    ])
}

fn values(dense: &Dense, tile: &Tile, group: &Group, gpu: &GpuSpec) -> Values {
    // Along the rows, whichever axis of the grid these are.
    let cluster = match (number(tile, "cluster"), number(tile, "raster")) {
        (1, _) => String::new(),
        (blocks, 0) => format!(" __cluster_dims__({blocks}, 1, 1)"),
        (blocks, _) => format!(" __cluster_dims__(1, {blocks}, 1)"),
    };
    let launch = BTreeMap::from([
        ("cluster", cluster.into()),
        ("threads", group.threads().into()),
        ("blocks_per_sm", group.blocks_per_sm(gpu).into()),
        ("smem_bytes", group.smem_bytes().into()),
    ]);
    BTreeMap::from([("problem", problem_values(dense)), ("tile", tile_values(tile, &AXES)), ("launch", launch)])
}

fn work(dense: &Dense, group: &Group, tile: &Tile) -> Work {
    let (split, parts) = (number(tile, "split"), parts(tile));
    let rows = f64::from(dense.groups * dense.n.div_ceil(group.rows()));
    let token_tiles = f64::from(dense.m.div_ceil(group.tokens));
    let blocks = rows * token_tiles * f64::from(parts);
    let k = group.layout.padded_k(dense.k as usize) as f64 / f64::from(parts);
    let block_weights = group.weight_bytes_of(k);
    let partials = if split > 1 { 8.0 * f64::from(group.tokens * group.rows()) } else { 0.0 };
    Work {
        blocks,
        memory_bytes: (dense.weight_bytes() + dense.activation_bytes()) as f64,
        l2_bytes: blocks * (block_weights + k * 2.0 * f64::from(group.tokens) + partials),
        bytes_in_flight: f64::from(group.bytes_in_flight()),
        block_flops: 2.0 * k * f64::from(group.rows() * group.tokens),
        is_wgmma: true,
        is_fp8: false,
        block_issues: group.issues(k),
        tail_steps: if split > 1 {
            8.0
        } else if parts > 1 {
            5.0
        } else {
            4.0
        },
        registers: group.registers(),
        is_prefetching: true,
    }
}
