//! Dense GEMM on `mma.sync` and `cp.async`: the bandwidth path, for few tokens and for every chip from sm_80 up.

use std::collections::BTreeMap;

use super::plan::{Workspace, word_of};
use super::space::{first_that_fits, number, tile_values};
use super::stream::Stream;
use super::{Axis, Family, Launch, Operand, Param, Plan, Rule, Work};
use crate::arch::{ArchSpec, GpuSpec};
use crate::codegen::{Request, Values};
use crate::problem::{Activations, Dense, Epilogue, Output, Problem, Tile};
use crate::quant::PackedLayout;

/// `templates/dense_mma`.
pub struct DenseMma;

impl Family for DenseMma {
    fn name(&self) -> &'static str {
        "dense_mma"
    }

    fn serves(&self, problem: &Problem, arch: &ArchSpec) -> Result<(), String> {
        match problem {
            Problem::Dense(dense) if dense.activations != Activations::A16 => {
                Err(format!("expected a16 activations, found {}", dense.activations))
            }
            Problem::Dense(_) if arch.capabilities.mma_sync => Ok(()),
            Problem::Dense(_) => Err(format!("{} has no mma.sync on BF16", arch.name)),
            other => Err(format!("expected a dense problem, found `{other}`")),
        }
    }

    fn axes(&self, problem: &Problem, arch: &ArchSpec) -> Vec<Axis> {
        let signals: &[u32] = if arch.capabilities.dependent_launch { &[0, 1, 2, 3] } else { &[0] };
        let clusters: &[u32] = if arch.capabilities.clusters { &[1, 2, 4, 8] } else { &[1] };
        vec![
            Axis::new("row_tiles", [1, 2, 4]),
            Axis::new("tokens", token_choices(problem.m())),
            Axis::new("warps", [4, 8, 16]),
            Axis::new("slabs", [1, 2, 4, 8]),
            Axis::new("stages", [1, 3, 4, 6, 8]),
            Axis::new("split", [1, 2, 4]),
            Axis::new("cluster", clusters),
            Axis::new("signal", signals),
        ]
    }

    fn rules(&self) -> &'static [Rule] {
        &RULES
    }

    fn default_tile(&self, problem: &Problem, gpu: &GpuSpec) -> Tile {
        let tokens = token_choices(problem.m()).last().copied().unwrap_or(64);
        let signal = if gpu.arch.capabilities.dependent_launch { 1 } else { 0 };
        let row_tiles = if tokens > 16 { 2 } else { 1 };
        let numbers = |warps, stages| {
            let fixed = [("row_tiles", row_tiles), ("tokens", tokens), ("slabs", 1), ("signal", signal)];
            let chosen = [("warps", warps), ("stages", stages), ("split", 1), ("cluster", 1)];
            Tile::new(self.name(), fixed.into_iter().chain(chosen))
        };
        let choices = [(8, 6), (8, 4), (4, 6), (4, 4), (4, 3)].map(|(warps, stages)| numbers(warps, stages));
        first_that_fits(self, &choices, problem, gpu)
    }

    fn plan(&self, problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Plan {
        let dense = dense_of(problem);
        let stream = stream_of(tile, problem);
        let split = number(tile, "split");
        let tiles = dense.groups * dense.n.next_multiple_of(64).div_ceil(stream.rows());
        let token_tiles = dense.m.div_ceil(stream.tokens);
        let mut workspace = Workspace::default();
        let all = u64::from(tiles) * u64::from(token_tiles);
        let (partials, tickets) = workspace.take_splits(split, all, stream.tokens * stream.rows());
        let launch = Launch {
            kernel: Request { template: self.name(), values: values(dense, tile, &stream, gpu), wgmma_tokens: None },
            grid: [tiles * parts(tile), token_tiles, 1],
            threads: stream.threads(),
            smem_bytes: stream.smem_bytes(),
            params: vec![
                Param::Operand(Operand::Weights),
                Param::Operand(Operand::Activations),
                Param::Operand(Operand::Output),
                Param::TokensOnDevice,
                partials,
                tickets,
                Param::ActivationStride,
                Param::OutputStride,
                Param::Tokens,
                Param::Int(dense.n as i32),
                Param::Int(dense.k as i32),
                Param::Int(dense.groups as i32),
                Param::Limit,
                Param::Segments,
            ],
            work: work(dense, &stream, tile),
        };
        Plan { workspace_bytes: workspace.bytes(), ..Plan::single(launch) }
    }

    fn numerics(&self, _: &Problem, tile: &Tile) -> String {
        // Ranges of slabs in ascending order; the tokens of a tile do not touch each other.
        format!("mma.k16/ranges={}x{}", parts(tile), number(tile, "warps"))
    }
}

/// Blocks that share a tile's k, through memory or in a cluster.
pub(super) fn parts(tile: &Tile) -> u32 {
    number(tile, "split") * number(tile, "cluster")
}

/// Tokens of a block for `m` tokens: the smallest tile that holds them all, and smaller ones where that is a choice.
pub(super) fn token_choices(m: u32) -> Vec<u32> {
    let whole = m.next_power_of_two().min(64);
    match whole {
        1..=8 => vec![whole],
        16 => vec![8, 16],
        _ => vec![whole / 4, whole / 2, whole],
    }
}

/// Blocks that fit on an SM side by side, for `__launch_bounds__`.
pub(super) fn blocks_per_sm(stream: &Stream, gpu: &GpuSpec) -> u32 {
    gpu.blocks_per_sm(stream.threads(), stream.registers(), stream.smem_bytes()).max(1)
}

/// At most what the kernels on `mma.sync` have beside the rings: tickets, and the work of a block of experts.
const STATIC_BYTES: u32 = 1024;

pub(super) fn fits_shared_memory(stream: &Stream, gpu: &GpuSpec) -> Result<(), String> {
    let (need, have) = (stream.smem_bytes() + STATIC_BYTES, gpu.arch.smem_per_block);
    if need <= have {
        return Ok(());
    }
    Err(format!(
        "{} rings of {} stages need {need} B of shared memory, {} has {have} B",
        stream.warps, stream.stages, gpu.name
    ))
}

pub(super) fn fits_registers(stream: &Stream, gpu: &GpuSpec) -> Result<(), String> {
    let (need, have) = (stream.registers(), (gpu.arch.registers_per_sm / stream.threads()).min(255));
    if need <= have {
        return Ok(());
    }
    Err(format!("the sums of a warp need about {need} registers a thread, {} warps leave {have}", stream.warps))
}

const AXES: [&str; 8] = ["row_tiles", "tokens", "warps", "slabs", "stages", "split", "cluster", "signal"];

const RULES: [Rule; 7] = [
    Rule { name: "way", check: |tile, problem, _| stream_of(tile, problem).fits_its_way() },
    Rule { name: "smem", check: |tile, problem, gpu| fits_shared_memory(&stream_of(tile, problem), gpu) },
    Rule { name: "registers", check: |tile, problem, gpu| fits_registers(&stream_of(tile, problem), gpu) },
    Rule { name: "k-ranges", check: every_warp_has_a_slab },
    Rule { name: "slabs-idle", check: registers_are_used },
    Rule { name: "split-idle", check: parts_fill_idle_sms },
    Rule { name: "one-way", check: |tile, _, _| parts_meet_in_one_place(tile) },
];

/// The product of a problem that `serves` has let through.
pub(super) fn dense_of(problem: &Problem) -> &Dense {
    let Problem::Dense(dense) = problem else { unreachable!("`serves` has refused other problems") };
    dense
}

fn stream_of(tile: &Tile, problem: &Problem) -> Stream {
    let stream = Stream::of(tile, PackedLayout::of(dense_of(problem).weights, Activations::A16));
    let cluster = number(tile, "cluster");
    let received_bytes = if cluster == 1 { 0 } else { cluster * stream.tokens.div_ceil(cluster) * stream.rows() * 4 };
    Stream { received_bytes, ..stream }
}

fn every_warp_has_a_slab(tile: &Tile, problem: &Problem, _: &GpuSpec) -> Result<(), String> {
    let dense = dense_of(problem);
    let stream = stream_of(tile, problem);
    let (slabs, ranges) = (stream.layout.slabs(dense.k as usize) as u32, parts(tile) * stream.warps);
    // The smallest tile must do for any k.
    if ranges <= slabs || ranges == 4 {
        return Ok(());
    }
    Err(format!("k = {} has {slabs} slabs of {}, fewer than the {ranges} ranges", dense.k, stream.layout.slab_k()))
}

fn registers_are_used(tile: &Tile, problem: &Problem, _: &GpuSpec) -> Result<(), String> {
    let dense = dense_of(problem);
    let stream = stream_of(tile, problem);
    let ranges = parts(tile) * stream.warps;
    let slabs = (stream.layout.slabs(dense.k as usize) as u32).div_ceil(ranges);
    if !stream.is_in_registers() || stream.slabs < 2 * slabs {
        return Ok(());
    }
    Err(format!("a warp has {slabs} slabs, registers for {} would stay empty", stream.slabs))
}

pub(super) fn parts_meet_in_one_place(tile: &Tile) -> Result<(), String> {
    let (split, cluster) = (number(tile, "split"), number(tile, "cluster"));
    if split == 1 || cluster == 1 {
        return Ok(());
    }
    Err(format!("{split} parts meet in memory, so {cluster} blocks cannot add theirs in a cluster"))
}

fn parts_fill_idle_sms(tile: &Tile, problem: &Problem, gpu: &GpuSpec) -> Result<(), String> {
    let dense = dense_of(problem);
    let (stream, parts) = (stream_of(tile, problem), parts(tile));
    let blocks = dense.groups * dense.n.div_ceil(stream.rows()) * dense.m.div_ceil(stream.tokens);
    let room = gpu.sm_count() * blocks_per_sm(&stream, gpu);
    if parts == 1 || blocks * parts <= 2 * room {
        return Ok(());
    }
    Err(format!("{blocks} blocks already fill {} SMs, splitting k only adds sums", gpu.sm_count()))
}

fn values(dense: &Dense, tile: &Tile, stream: &Stream, gpu: &GpuSpec) -> Values {
    let problem = BTreeMap::from([
        ("weights", word_of(dense.weights).into()),
        ("out", out_word(dense.output).into()),
        ("swiglu", (dense.epilogue == Epilogue::SwiGlu).into()),
    ]);
    let cluster = match number(tile, "cluster") {
        1 => String::new(),
        blocks => format!(" __cluster_dims__({blocks}, 1, 1)"),
    };
    let launch = BTreeMap::from([
        ("cluster", cluster.into()),
        ("blocks_per_sm", blocks_per_sm(stream, gpu).into()),
        ("smem_bytes", stream.smem_bytes().into()),
    ]);
    BTreeMap::from([("problem", problem), ("tile", tile_values(tile, &AXES)), ("launch", launch)])
}

/// Element type of the result in CUDA.
pub(super) fn out_word(output: Output) -> &'static str {
    match output {
        Output::Bf16 => "bf16",
        Output::F32 => "float",
    }
}

fn work(dense: &Dense, stream: &Stream, tile: &Tile) -> Work {
    let (split, parts) = (number(tile, "split"), parts(tile));
    let tiles = f64::from(dense.groups * dense.n.div_ceil(stream.rows()));
    let token_tiles = f64::from(dense.m.div_ceil(stream.tokens));
    let blocks = tiles * token_tiles * f64::from(parts);
    let slabs = stream.layout.slabs(dense.k as usize) as f64 / f64::from(parts);
    let block_weights = slabs * f64::from(stream.row_tiles) * stream.layout.slab_bytes() as f64 / 4.0;
    let block_tokens = f64::from(stream.tokens.min(dense.m)) * f64::from(dense.k) * 2.0 / f64::from(parts);
    let partials = if split > 1 { 8.0 * f64::from(stream.tokens * stream.rows()) } else { 0.0 };
    Work {
        blocks,
        memory_bytes: (dense.weight_bytes() + dense.activation_bytes()) as f64,
        l2_bytes: blocks * (block_weights + block_tokens + partials),
        bytes_in_flight: f64::from(stream.bytes_in_flight()),
        block_flops: 2.0 * slabs * stream.layout.slab_k() as f64 * f64::from(stream.rows() * stream.tokens.max(8)),
        is_wgmma: false,
        is_fp8: false,
        block_issues: stream.issues(slabs),
        tail_steps: if split > 1 {
            6.0
        } else if parts > 1 {
            3.0
        } else {
            2.0
        },
        registers: stream.registers(),
        is_prefetching: true,
    }
}
