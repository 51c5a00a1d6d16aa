//! Residual streams mixed between two sublayers, many tokens: products on BF16 tensor cores, as exact as f32.

use super::hc_mix::{SLICES, mix_of, mix_params};
use super::runner::{Element, mix_fields};
use super::space::{first_that_fits, number};
use super::{Axis, Family, Launch, Plan, Rule, Work};
use crate::arch::{ArchSpec, GpuSpec};
use crate::codegen::Request;
use crate::problem::{Output, Problem, StreamMix, Tile};

/// `templates/hc_mix_mma`.
///
/// A block keeps the weights of its slice as three BF16 numbers each, and the blocks of a slice take tokens in turn.
pub struct HcMixMma;

impl Family for HcMixMma {
    fn name(&self) -> &'static str {
        "hc_mix_mma"
    }

    fn serves(&self, problem: &Problem, _: &ArchSpec) -> Result<(), String> {
        match problem {
            Problem::StreamMix(mix) if mix.m >= MIN_TOKENS => Ok(()),
            Problem::StreamMix(mix) => Err(format!("expected at least {MIN_TOKENS} tokens, found {}", mix.m)),
            other => Err(format!("expected a mix of residual streams, found `{other}`")),
        }
    }

    fn axes(&self, problem: &Problem, _: &ArchSpec) -> Vec<Axis> {
        let hidden = mix_of(problem).hidden;
        let slices = SLICES.into_iter().filter(|slice| hidden.is_multiple_of(*slice) && *slice <= WIDEST);
        let slices: Vec<u32> = slices.collect();
        vec![
            Axis::new("slice", slices),
            Axis::new("warps", [4, 8, 12, 16]),
            Axis::new("groups", (0..=6).map(|n| 1 << n).collect::<Vec<u32>>()),
        ]
    }

    fn rules(&self) -> &'static [Rule] {
        &RULES
    }

    fn default_tile(&self, problem: &Problem, gpu: &GpuSpec) -> Tile {
        let numbers = |(slice, groups)| Tile::new(self.name(), [("slice", slice), ("warps", 8), ("groups", groups)]);
        let choices = [(128, 8), (128, 1), (64, 1), (32, 1)].map(numbers);
        first_that_fits(self, &choices, problem, gpu)
    }

    fn plan(&self, problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Plan {
        let mix = mix_of(problem);
        let cut = Cut::of(tile);
        let element = match mix.element {
            Output::Bf16 => Element::Bf16,
            Output::F32 => Element::F32,
        };
        let mut fields = mix_fields((mix.hidden, mix.n, element), mix.has_post, cut.slice, cut.warps);
        fields.insert("blocks_per_sm", cut.blocks_per_sm(mix, gpu).into());
        fields.insert("smem_bytes", cut.smem_bytes(mix).into());
        Plan::single(Launch {
            kernel: Request { template: self.name(), values: [("op", fields)].into(), wgmma_tokens: None },
            grid: [mix.hidden / cut.slice, cut.groups, 1],
            threads: cut.threads(),
            smem_bytes: cut.smem_bytes(mix),
            params: mix_params(mix),
            work: cut.work(mix),
        })
    }

    /// Warps and groups decide who sums, not in which order.
    fn numerics(&self, _: &Problem, tile: &Tile) -> String {
        format!("hc_mix_mma slice{}", number(tile, "slice"))
    }
}

/// Below this a wait for the parts of the weights is no small share.
const MIN_TOKENS: u32 = 64;

/// Columns of a block at most: the weights of more of them do not fit.
const WIDEST: u32 = 256;

/// Columns that a lane of four has 8 of at a time.
const CHUNK: u32 = 32;

/// Tokens of a warp at a time.
const TOKENS: u32 = 16;

const RULES: [Rule; 3] = [
    Rule { name: "smem", check: weights_fit },
    Rule { name: "idle", check: every_block_has_tokens },
    Rule { name: "parts", check: parts_are_few },
];

/// How a tile cuts a problem.
struct Cut {
    slice: u32,
    warps: u32,
    groups: u32,
}

impl Cut {
    fn of(tile: &Tile) -> Self {
        let [slice, warps, groups] = ["slice", "warps", "groups"].map(|name| number(tile, name));
        Self { slice, warps, groups }
    }

    fn threads(&self) -> u32 {
        self.warps * 32
    }

    /// Fragments of three BF16 parts: eight bytes a lane for each of two mma, four streams, each eight rows.
    fn smem_bytes(&self, mix: &StreamMix) -> u32 {
        self.slice / CHUNK * 4 * 2 * mix.n.div_ceil(8) * 3 * 32 * 8
    }

    fn blocks_per_sm(&self, mix: &StreamMix, gpu: &GpuSpec) -> u32 {
        gpu.blocks_per_sm(self.threads(), registers(mix), self.smem_bytes(mix)).max(1)
    }

    /// Instructions are counted in the kernel's text, for a warp.
    fn work(&self, mix: &StreamMix) -> Work {
        let (groups, slices) = (f64::from(self.groups), f64::from(mix.hidden / self.slice));
        let chunks = f64::from(self.slice / CHUNK);
        let memory_bytes = mix.bytes() as f64 + (slices - 1.0) * mix.part_bytes() as f64;
        let row_tiles = f64::from(mix.n.div_ceil(8));
        let is_f32 = mix.element == Output::F32;
        let (products, splitting) = if is_f32 { (6.0, 24.0 * 4.0) } else { (3.0, 24.0) };
        // Of 16 tokens and 32 columns: loads and stores, mixing, squares, products.
        let mixing = if mix.has_post { 16.0 * 20.0 } else { 0.0 };
        let of_chunk = 60.0 + mixing + 64.0 + 4.0 * (splitting + 2.0 * row_tiles * (products + 3.0));
        let tiles = f64::from(mix.m) / f64::from(TOKENS) / groups;
        let of_weights = chunks * 8.0 * row_tiles * 60.0;
        let lane_bytes = f64::from(mix.element.bytes() as u32) * 64.0 + if mix.has_post { 64.0 } else { 0.0 };
        Work {
            blocks: slices * groups,
            memory_bytes,
            l2_bytes: memory_bytes + (groups - 1.0) * mix.weight_bytes() as f64,
            bytes_in_flight: f64::from(self.threads()) * lane_bytes,
            block_issues: tiles * chunks * of_chunk + of_weights,
            tail_steps: 1.0,
            registers: registers(mix),
            is_prefetching: true,
            ..Work::default()
        }
    }
}

/// Registers of a thread, the bound that the kernel is compiled under: two tokens' columns and their parts.
fn registers(mix: &StreamMix) -> u32 {
    if mix.has_post { 168 } else { 128 }
}

fn weights_fit(tile: &Tile, problem: &Problem, gpu: &GpuSpec) -> Result<(), String> {
    let mix = mix_of(problem);
    let cut = Cut::of(tile);
    let (need, have) = (cut.smem_bytes(mix), gpu.arch.smem_per_block);
    if need > have {
        return Err(format!(
            "weights of {} columns need {need} B of shared memory, {} has {have} B",
            cut.slice, gpu.name
        ));
    }
    let threads = 65536 / registers(mix);
    if cut.threads() <= threads {
        return Ok(());
    }
    Err(format!("{} threads take more registers than an SM has for {threads}", cut.threads()))
}

fn every_block_has_tokens(tile: &Tile, problem: &Problem, _: &GpuSpec) -> Result<(), String> {
    let mix = mix_of(problem);
    let cut = Cut::of(tile);
    if (cut.groups - 1) * cut.warps * TOKENS < mix.m {
        return Ok(());
    }
    Err(format!("{} blocks of {} warps on a slice, and {} tokens", cut.groups, cut.warps, mix.m))
}

/// The launch behind a mix reads its parts again, which no measurement of a mix sees.
fn parts_are_few(tile: &Tile, problem: &Problem, _: &GpuSpec) -> Result<(), String> {
    let mix = mix_of(problem);
    let parts = u64::from(mix.hidden / Cut::of(tile).slice) * mix.part_bytes();
    if mix.m < MANY_TOKENS || parts * 8 <= mix.stream_bytes() {
        return Ok(());
    }
    Err(format!("parts of {parts} B are more than an eighth of the streams, which have {} B", mix.stream_bytes()))
}

/// Tokens from which on streams leave the L2 before they are read again.
const MANY_TOKENS: u32 = 1024;
