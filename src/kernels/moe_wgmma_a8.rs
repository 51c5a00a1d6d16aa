//! Blocks of experts on the FP8 tensor cores of Hopper: schedule, tokens to FP8, gate-up, hidden rows to FP8, down,
//! combine.
//!
//! Tokens and hidden rows are converted by launches of `templates/quantise`, whose time is the block's. A row keeps one
//! scale, which is its largest value's: a hidden row is known only when every block of gate-up has given its part.

use std::collections::BTreeMap;

use super::convert::{Rows, rows_to_fp8};
use super::group_a8::{GroupA8, sums_of};
use super::moe::{Cut, Schedule, block_of, most_tiles, part_word, rows_per_expert, slots};
use super::moe_wgmma::step_of;
use super::plan::{BoxBase, Workspace, word_of};
use super::space::{first_that_fits, number, tile_values};
use super::{Axis, BoxMap, Family, Launch, Operand, Param, Plan, Rule, Work};
use crate::arch::{ArchSpec, GpuSpec};
use crate::codegen::{Request, Values, Widths};
use crate::problem::{Activations, MoeBlock, Problem, Tile};
use crate::quant::{PackedLayout, WeightFormat};

/// `templates/moe_wgmma_a8`.
pub struct MoeWgmmaA8;

impl Family for MoeWgmmaA8 {
    fn name(&self) -> &'static str {
        "moe_wgmma_a8"
    }

    fn serves(&self, problem: &Problem, arch: &ArchSpec) -> Result<(), String> {
        match problem {
            Problem::MoeBlock(_) if !arch.capabilities.wgmma => Err(format!("{} has no wgmma", arch.name)),
            Problem::MoeBlock(block) if block.weights == WeightFormat::Bf16 => {
                Err("bf16 weights are no FP8 operands".to_string())
            }
            Problem::MoeBlock(block) if block.activations == Activations::A8 => Schedule::fits(block, arch),
            Problem::MoeBlock(block) => Err(format!("expected a8 activations, found {}", block.activations)),
            other => Err(format!("expected a block of experts, found `{other}`")),
        }
    }

    fn axes(&self, problem: &Problem, _: &ArchSpec) -> Vec<Axis> {
        let rows = rows_per_expert(problem);
        // An expert's own count chooses among the widths below these; a popular one has more rows than the average.
        let most = if rows < 4 { 16 } else { 2 * rows.max(16) };
        let near = |tokens: &u32| *tokens <= most && 3 * *tokens >= rows.min(256);
        let tokens: Vec<u32> = [16, 32, 48, 64, 96, 128, 192, 256].into_iter().filter(near).collect();
        let chains: &[u32] = match block_of(problem).weights {
            WeightFormat::Fp8 => &[128],
            _ => &[0, 512],
        };
        vec![
            Axis::new("consumers", [1, 2, 3]),
            Axis::new("up_tokens", tokens.clone()),
            Axis::new("down_tokens", tokens),
            Axis::new("widths", [1, 8]),
            Axis::new("block_k", [128, 256]),
            Axis::new("stages", [3, 4, 5, 6]),
            Axis::new("producers", [64, 128]),
            Axis::new("persistent", [0, 1]),
            Axis::new("promote", chains),
            Axis::new("part_bytes", [2, 4]),
            Axis::new("signal", [0, 3]),
        ]
    }

    fn rules(&self) -> &'static [Rule] {
        &RULES
    }

    fn default_tile(&self, problem: &Problem, gpu: &GpuSpec) -> Tile {
        let block = block_of(problem);
        let widest = rows_per_expert(problem).next_power_of_two().clamp(16, 256);
        let promote = match block.weights {
            WeightFormat::Fp8 => 128,
            _ if block.hidden.max(block.intermediate) > LONGEST_CHAIN => 512,
            _ => 0,
        };
        let widths = if promote > 0 { 1 } else { 8 };
        let numbers = |(tokens, stages, producers)| {
            let fixed = [("consumers", 2), ("up_tokens", tokens), ("down_tokens", tokens), ("widths", widths)];
            let chosen = [("block_k", 128), ("stages", stages), ("producers", producers), ("promote", promote)];
            let last = [("part_bytes", 4), ("signal", 0), ("persistent", 1)];
            Tile::new(self.name(), fixed.into_iter().chain(chosen).chain(last))
        };
        let narrower = widest.min(128);
        let choices = [(widest, 4, 64), (widest, 4, 128), (widest, 3, 128), (narrower, 4, 64), (narrower, 4, 128)];
        first_that_fits(self, &choices.map(numbers), problem, gpu)
    }

    fn plan(&self, problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Plan {
        let block = block_of(problem);
        let [up, down] = steps(tile, block);
        let mut workspace = Workspace::default();
        let schedule = Schedule::reserve(&mut workspace, block, up.cut, down.cut);
        let tokens = Fp8Rows::reserve(&mut workspace, block.m, block.hidden);
        let hidden = Fp8Rows::reserve(&mut workspace, slots(block), block.intermediate);
        let launches = vec![
            convert_tokens(block, tokens),
            schedule.launch(block),
            up.launch(tile, block, (&schedule, tokens), gpu),
            convert_hidden(block, &schedule, hidden),
            down.launch(tile, block, (&schedule, hidden), gpu),
            schedule.combine_parts(block, number(tile, "part_bytes")),
        ];
        Plan { launches, workspace_bytes: workspace.bytes() }
    }

    fn numerics(&self, _: &Problem, tile: &Tile) -> String {
        let (chain, block_k) = (number(tile, "promote"), number(tile, "block_k"));
        let parts = if number(tile, "part_bytes") == 2 { "/parts=bf16" } else { "" };
        match chain {
            // Where k ends within a chain of 512, stages say how much of it belongs to the last one.
            512 => format!("moe.wgmma.e4m3.k32/chain={chain}/k{block_k}{parts}"),
            _ => format!("moe.wgmma.e4m3.k32/chain={chain}{parts}"),
        }
    }
}

/// Rows of FP8 in the workspace, in the order of operands, and their scales.
#[derive(Clone, Copy)]
struct Fp8Rows {
    codes: u64,
    scales: u64,
}

impl Fp8Rows {
    fn reserve(workspace: &mut Workspace, rows: u32, k: u32) -> Self {
        let rows = u64::from(rows);
        Self { codes: workspace.take(rows * u64::from(k)), scales: workspace.take(4 * rows) }
    }
}

fn convert_tokens(block: &MoeBlock, to: Fp8Rows) -> Launch {
    let rows = Rows {
        from: Param::Operand(Operand::Activations),
        stride: Param::ActivationStride,
        to: [to.codes, to.scales],
        counters: Operand::Counters,
        count: Param::TokensOnDevice,
        most: Param::Tokens,
        k: block.hidden,
    };
    rows_to_fp8(rows, block.m)
}

/// Only slots of this rank's experts have a hidden row: as many as the schedule says.
fn convert_hidden(block: &MoeBlock, schedule: &Schedule, to: Fp8Rows) -> Launch {
    let rows = Rows {
        from: Param::Workspace(schedule.hidden),
        stride: Param::Long(block.intermediate.into()),
        to: [to.codes, to.scales],
        counters: Operand::HiddenCounters,
        count: Param::Workspace(schedule.slot_count(block)),
        most: Param::Int(slots(block) as i32),
        k: block.intermediate,
    };
    let mut launch = rows_to_fp8(rows, slots(block));
    let share = block.local_slots() / f64::from(slots(block));
    launch.work.blocks *= share;
    launch.work.memory_bytes *= share;
    launch.work.l2_bytes *= share;
    launch
}

/// One of the two grouped GEMMs.
struct Step {
    is_down: bool,
    group: GroupA8,
    cut: Cut,
    is_persistent: bool,
    /// Of an element of the result.
    out_bytes: u32,
    n: u32,
    k: u32,
}

/// Down brings its rows with the copy engine: one warp, unless the sums need a warpgroup's registers.
fn steps(tile: &Tile, block: &MoeBlock) -> [Step; 2] {
    let [consumers, promote, gatherers] = ["consumers", "promote", "producers"].map(|name| number(tile, name));
    let down_tokens = number(tile, "down_tokens");
    let down_producers = match (consumers, sums_of(down_tokens, promote)) {
        (2, 96..) | (3, 33..) => 128,
        _ => 32,
    };
    let part_bytes = number(tile, "part_bytes");
    let step = |is_down, tokens, producers, n, k| {
        let out_bytes = if is_down { part_bytes } else { 2 };
        let group = GroupA8 {
            layout: PackedLayout::of(block.weights, block.activations),
            consumers,
            tokens,
            block_k: number(tile, "block_k"),
            stages: number(tile, "stages"),
            promote,
            producers,
            staging_bytes: if is_down && part_bytes == 2 { STAGED_PARTS_BYTES } else { STAGING_BYTES },
            cluster: 1,
        };
        let cut = Cut { most: tokens, step: step_of(tokens, number(tile, "widths")) };
        Step { is_down, group, cut, is_persistent: number(tile, "persistent") == 1, out_bytes, n, k }
    };
    [
        step(false, number(tile, "up_tokens"), gatherers, 2 * block.intermediate, block.hidden),
        step(true, down_tokens, down_producers, block.hidden, block.intermediate),
    ]
}

impl Step {
    fn row_blocks(&self) -> u32 {
        self.group.row_tiles(self.n)
    }

    /// As many blocks as there can be pieces of work, or as fit on the GPU.
    fn grid(&self, block: &MoeBlock, gpu: &GpuSpec) -> u32 {
        let pieces = self.row_blocks() * most_tiles(block, self.group.tokens);
        if self.is_persistent { pieces.min(gpu.sm_count() * self.group.blocks_per_sm(gpu)) } else { pieces }
    }

    fn launch(&self, tile: &Tile, block: &MoeBlock, places: (&Schedule, Fp8Rows), gpu: &GpuSpec) -> Launch {
        let group = &self.group;
        Launch {
            kernel: Request {
                template: "moe_wgmma_a8",
                values: self.values(tile, block, gpu),
                wgmma_tokens: Some(Widths { step: self.cut.step, most: self.cut.most }),
            },
            grid: [self.grid(block, gpu), 1, 1],
            threads: group.threads(),
            smem_bytes: group.smem_bytes(),
            params: self.params(block, places),
            work: self.work(block, gpu),
        }
    }

    fn values(&self, tile: &Tile, block: &MoeBlock, gpu: &GpuSpec) -> Values {
        let tile = tile.with("tokens", self.cut.most).with("step", self.cut.step);
        // Gate-up has no parts: either way its text is one.
        let part = if self.is_down { part_word(self.out_bytes) } else { part_word(4) };
        let problem = BTreeMap::from([
            ("weights", word_of(block.weights).into()),
            ("is_down", self.is_down.into()),
            ("part", part.into()),
        ]);
        let launch = BTreeMap::from([
            ("threads", self.group.threads().into()),
            ("blocks_per_sm", self.group.blocks_per_sm(gpu).into()),
            ("smem_bytes", self.group.smem_bytes().into()),
        ]);
        BTreeMap::from([("problem", problem), ("tile", tile_values(&tile, &AXES)), ("launch", launch)])
    }

    /// `rows` are those that this step multiplies.
    fn params(&self, block: &MoeBlock, (schedule, rows): (&Schedule, Fp8Rows)) -> Vec<Param> {
        // Gate-up takes the map too, and does not use it.
        let map = BoxMap {
            base: BoxBase::Workspace {
                offset: rows.codes,
                rows: if self.is_down { slots(block) } else { block.m }.into(),
            },
            element: Activations::A8,
            k: self.k.into(),
            groups: 1,
            tokens: self.cut.step,
        };
        let (weights, alpha) = match self.is_down {
            false => (Operand::Weights, Operand::UpAlpha),
            true => (Operand::DownWeights, Operand::DownAlpha),
        };
        let (tiles, count) = match self.is_down {
            false => (schedule.up_tiles, schedule.tile_counts),
            true => (schedule.down_tiles, schedule.tile_counts + 4),
        };
        let ld_out = if self.is_down { block.hidden } else { block.intermediate };
        vec![
            Param::Operand(weights),
            Param::Workspace(rows.codes),
            Param::Box(map),
            Param::Workspace(schedule.hidden),
            Param::Workspace(schedule.parts),
            Param::Workspace(tiles),
            Param::Workspace(count),
            Param::Workspace(schedule.slot_of),
            Param::Operand(Operand::Routing),
            Param::Workspace(rows.scales),
            Param::Operand(alpha),
            Param::Long(ld_out.into()),
            Param::Int(self.n as i32),
            Param::Int(self.k as i32),
            Param::Int(block.top_k as i32),
            Param::Limit,
        ]
    }

    fn work(&self, block: &MoeBlock, gpu: &GpuSpec) -> Work {
        let group = &self.group;
        let average = self.cut.average(block);
        let pieces = average.tiles * f64::from(self.row_blocks());
        // A persistent block does several pieces: to the model it is one long block, and some have one piece more.
        let blocks = pieces.min(f64::from(self.grid(block, gpu)));
        let rounds = if pieces > blocks { pieces / blocks + 0.5 } else { 1.0 };
        let k = group.layout.padded_k(self.k as usize) as f64;
        let block_weights = group.weight_bytes_of(k);
        let matrix = block.weights.bytes(self.n.into(), self.k.into()) as f64 * block.touched_experts();
        let columns = f64::from(if self.is_down { self.n } else { self.n / 2 } * self.out_bytes);
        let slots = block.local_slots() / average.tiles;
        let gather = if self.is_down { 0.0 } else { k * slots / 16.0 / 32.0 * GATHER_ISSUES };
        Work {
            blocks,
            memory_bytes: matrix + block.local_slots() * (f64::from(self.k) + columns),
            l2_bytes: pieces * (block_weights + k * if self.is_down { average.width } else { slots }),
            bytes_in_flight: f64::from(group.bytes_in_flight()),
            block_flops: rounds * 2.0 * k * f64::from(group.rows()) * average.width,
            is_wgmma: true,
            is_fp8: true,
            block_issues: rounds * (group.issues(k) + gather),
            tail_steps: 6.0,
            registers: group.registers(),
            is_prefetching: false,
        }
    }
}

/// Instructions of a warp for 32 gathered pieces of 16 bytes.
const GATHER_ISSUES: f64 = 5.0;

/// `kStagingBytes` of the template: 32 rows of 64 bytes and their padding, or the slots of 256 tokens; then 256 scales.
const STAGING_BYTES: u32 = 2560 + 1024;

/// The same for down with parts in BF16: 32 rows of 128 bytes and their padding, slots, scales.
const STAGED_PARTS_BYTES: u32 = 32 * 144 + 2048 + 1024;

/// One chain of this many k is still within what sums on FP8 tensor cores may lose.
const LONGEST_CHAIN: u32 = 8192;

const AXES: [&str; 7] = ["consumers", "tokens", "step", "block_k", "stages", "promote", "signal"];

const RULES: [Rule; 8] = [
    Rule { name: "smem", check: |tile, problem, gpu| each(tile, problem, |group| group.fits_shared_memory(gpu)) },
    Rule { name: "registers", check: |tile, problem, _| each(tile, problem, GroupA8::fits_registers) },
    Rule { name: "block-scales", check: scales_belong_to_chains },
    Rule { name: "promote-moot", check: chains_end_before_k },
    Rule { name: "promote-widths", check: chains_have_one_width },
    Rule { name: "tokens-apart", check: both_see_the_same_counts },
    Rule { name: "gather", check: a_warpgroup_gathers_for_many },
    Rule { name: "widths-moot", check: widths_make_a_difference },
];

fn each(tile: &Tile, problem: &Problem, check: impl Fn(&GroupA8) -> Result<(), String>) -> Result<(), String> {
    steps(tile, block_of(problem)).iter().try_for_each(|step| check(&step.group))
}

fn scales_belong_to_chains(tile: &Tile, problem: &Problem, _: &GpuSpec) -> Result<(), String> {
    match (block_of(problem).weights, number(tile, "promote")) {
        (WeightFormat::Fp8, chain) if chain != 128 => {
            Err(format!("a scale of fp8 weights is for 128 k, a chain of {chain} would need several"))
        }
        _ => Ok(()),
    }
}

fn chains_end_before_k(tile: &Tile, problem: &Problem, _: &GpuSpec) -> Result<(), String> {
    let (block, chain) = (block_of(problem), number(tile, "promote"));
    let k = block.hidden.max(block.intermediate);
    if chain < k || block.weights == WeightFormat::Fp8 {
        return Ok(());
    }
    Err(format!("a chain of {chain} never ends before the {k} k of a block"))
}

/// Between sums that are moved, ptxas no longer sees that all widths name the same registers (C7512).
fn chains_have_one_width(tile: &Tile, _: &Problem, _: &GpuSpec) -> Result<(), String> {
    if number(tile, "promote") == 0 || number(tile, "widths") == 1 {
        return Ok(());
    }
    Err("with sums that are promoted, wgmma of several widths would wait for each other".to_string())
}

fn both_see_the_same_counts(tile: &Tile, _: &Problem, _: &GpuSpec) -> Result<(), String> {
    let (up, down) = (number(tile, "up_tokens"), number(tile, "down_tokens"));
    if up.max(down) <= 2 * up.min(down) {
        return Ok(());
    }
    Err(format!("gate-up and down see the same counts of an expert, tiles of {up} and {down} fit different ones"))
}

fn a_warpgroup_gathers_for_many(tile: &Tile, _: &Problem, _: &GpuSpec) -> Result<(), String> {
    let (tokens, producers) = (number(tile, "up_tokens"), number(tile, "producers"));
    if producers == 64 || tokens >= 64 {
        return Ok(());
    }
    Err(format!("{tokens} tokens are {} pieces of 16 bytes a step, too few for {producers} threads", tokens * 8))
}

fn widths_make_a_difference(tile: &Tile, _: &Problem, _: &GpuSpec) -> Result<(), String> {
    let widest = number(tile, "up_tokens").max(number(tile, "down_tokens"));
    if number(tile, "widths") == 1 || widest > 16 {
        return Ok(());
    }
    Err("a tile of 16 tokens is the narrowest".to_string())
}
