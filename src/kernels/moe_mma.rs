//! Blocks of experts on `mma.sync`: a walk over the slots of each token, or grouped GEMMs from a schedule.
//!
//! `moe_walk` needs no schedule and no combine: gate-up takes one slot a block, down one token a block with k running
//! over all of its slots. Right for a few tokens, whose slots rarely share an expert. `moe_mma` sorts the slots first.
//!
//! Both take FP8 rows too, while the weights' bytes are what takes time: `templates/moe_mma_a8` multiplies the rows'
//! E4M3 values as BF16. Tokens, and between the two GEMMs hidden rows, are rounded by launches of their own.

use std::collections::BTreeMap;

use super::dense_mma::{blocks_per_sm, fits_registers, fits_shared_memory};
use super::moe::{Cut, Schedule, block_of, most_tiles, slots};
use super::plan::{Workspace, word_of};
use super::round_rows::{RoundedRows, hidden_of_schedule, hidden_of_slots, tokens};
use super::space::{first_that_fits, number, tile_values};
use super::stream::Stream;
use super::{Axis, Family, Launch, Operand, Param, Plan, Rule, Work};
use crate::arch::{ArchSpec, GpuSpec};
use crate::codegen::{Request, Values};
use crate::problem::{MoeBlock, Problem, Tile};
use crate::quant::{Activations, PackedLayout};

/// `templates/moe_mma` or `moe_mma_a8`, one token a block.
pub struct MoeWalk;

/// `templates/moe_mma` or `moe_mma_a8`, from a list of tiles.
pub struct MoeMma;

impl Family for MoeWalk {
    fn name(&self) -> &'static str {
        "moe_walk"
    }

    fn serves(&self, problem: &Problem, arch: &ArchSpec) -> Result<(), String> {
        let block = served_block(problem, arch)?;
        if block.top_k > MAX_WALK_SLOTS {
            return Err(format!("expected at most {MAX_WALK_SLOTS} slots a token, found {}", block.top_k));
        }
        if block.m <= MAX_WALK_TOKENS {
            return Ok(());
        }
        Err(format!("expected at most {MAX_WALK_TOKENS} tokens, found {}: their slots share experts", block.m))
    }

    fn axes(&self, _: &Problem, arch: &ArchSpec) -> Vec<Axis> {
        vec![
            Axis::new("up_row_tiles", [1, 2, 4]),
            Axis::new("down_row_tiles", [1, 2, 4]),
            Axis::new("warps", [4, 8, 16]),
            Axis::new("slabs", [1, 2, 4, 8]),
            Axis::new("stages", [1, 3, 4, 6, 8]),
            Axis::new("signal", signals(arch)),
        ]
    }

    fn rules(&self) -> &'static [Rule] {
        &WALK_RULES
    }

    fn default_tile(&self, problem: &Problem, gpu: &GpuSpec) -> Tile {
        let fixed = [("up_row_tiles", 1), ("down_row_tiles", 1), ("slabs", 1), ("signal", 0)];
        let numbers =
            |(warps, stages)| Tile::new(self.name(), fixed.into_iter().chain([("warps", warps), ("stages", stages)]));
        first_that_fits(self, &[(8, 6), (8, 4), (4, 6)].map(numbers), problem, gpu)
    }

    fn plan(&self, problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Plan {
        let block = block_of(problem);
        let mut workspace = Workspace::default();
        let hidden = workspace.take(2 * u64::from(slots(block)) * u64::from(block.intermediate));
        let [x, h] = Rows::of(&mut workspace, block, hidden);
        let [up, down] = walk_steps(tile, block);
        let launches = [
            x.rounded.map(|to| tokens(block, to)),
            Some(Launch {
                grid: [up.row_blocks(), slots(block), 1],
                params: params(block, &up, (x, Param::Workspace(hidden)), None),
                ..up.launch(problem, gpu, true)
            }),
            h.rounded.map(|to| hidden_of_slots(block, hidden, to)),
            Some(Launch {
                grid: [down.row_blocks(), block.m, 1],
                params: params(block, &down, (h, Param::Operand(Operand::Output)), None),
                ..down.launch(problem, gpu, true)
            }),
        ];
        Plan { launches: launches.into_iter().flatten().collect(), workspace_bytes: workspace.bytes() }
    }

    fn numerics(&self, problem: &Problem, tile: &Tile) -> String {
        format!("moe.walk.mma.{}k16/ranges={}", rows_word(problem), number(tile, "warps"))
    }
}

impl Family for MoeMma {
    fn name(&self) -> &'static str {
        "moe_mma"
    }

    fn serves(&self, problem: &Problem, arch: &ArchSpec) -> Result<(), String> {
        let block = served_block(problem, arch)?;
        if block.activations == Activations::A8 && block.m > MAX_A8_TOKENS {
            return Err(format!("expected at most {MAX_A8_TOKENS} tokens with a8, found {}", block.m));
        }
        Schedule::fits(block, arch)
    }

    fn axes(&self, problem: &Problem, arch: &ArchSpec) -> Vec<Axis> {
        let whole = rows_per_expert(problem).next_power_of_two().clamp(8, 64);
        let tokens: Vec<u32> = [8, 16, 32, 64].into_iter().filter(|&t| t <= whole && 4 * t >= whole).collect();
        vec![
            Axis::new("row_tiles", [1, 2, 4]),
            Axis::new("tokens", tokens),
            Axis::new("warps", [4, 8]),
            Axis::new("slabs", [1, 2, 4]),
            Axis::new("stages", [1, 3, 4, 6]),
            Axis::new("signal", signals(arch)),
        ]
    }

    fn rules(&self) -> &'static [Rule] {
        &LIST_RULES
    }

    fn default_tile(&self, problem: &Problem, gpu: &GpuSpec) -> Tile {
        let tokens = rows_per_expert(problem).next_power_of_two().clamp(8, 32);
        let numbers = |(row_tiles, warps, stages)| {
            let fixed = [("tokens", tokens), ("slabs", 1), ("signal", 0)];
            let chosen = [("row_tiles", row_tiles), ("warps", warps), ("stages", stages)];
            Tile::new(self.name(), fixed.into_iter().chain(chosen))
        };
        let choices = [(2, 4, 6), (2, 4, 4), (1, 4, 4), (1, 4, 3)].map(numbers);
        first_that_fits(self, &choices, problem, gpu)
    }

    fn plan(&self, problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Plan {
        let block = block_of(problem);
        let mut workspace = Workspace::default();
        let widest = number(tile, "tokens");
        let schedule = Schedule::reserve(&mut workspace, block, Cut::whole(widest), Cut::whole(widest));
        let [x, h] = Rows::of(&mut workspace, block, schedule.hidden);
        let [up, down] = list_steps(tile, block);
        let most = most_tiles(block, widest);
        let launches = [
            x.rounded.map(|to| tokens(block, to)),
            Some(schedule.launch(block)),
            Some(Launch {
                grid: [up.row_blocks(), most, 1],
                params: params(block, &up, (x, Param::Workspace(schedule.hidden)), Some(&schedule)),
                ..up.launch(problem, gpu, false)
            }),
            h.rounded.map(|to| hidden_of_schedule(block, &schedule, to)),
            Some(Launch {
                grid: [down.row_blocks(), most, 1],
                params: params(block, &down, (h, Param::Workspace(schedule.parts)), Some(&schedule)),
                ..down.launch(problem, gpu, false)
            }),
            Some(schedule.combine(block)),
        ];
        Plan { launches: launches.into_iter().flatten().collect(), workspace_bytes: workspace.bytes() }
    }

    fn numerics(&self, problem: &Problem, tile: &Tile) -> String {
        format!("moe.mma.{}k16/ranges={}", rows_word(problem), number(tile, "warps"))
    }
}

/// Rows that a GEMM multiplies.
struct Rows {
    values: Param,
    /// Elements between rows.
    stride: Param,
    /// Where they are rounded to, if they are.
    rounded: Option<RoundedRows>,
}

impl Rows {
    /// Tokens and hidden rows, with room for what they are rounded to.
    fn of(workspace: &mut Workspace, block: &MoeBlock, hidden: u64) -> [Self; 2] {
        match block.activations {
            Activations::A16 => {
                let (x, stride) = (Param::Operand(Operand::Activations), Param::ActivationStride);
                let (h, inner) = (Param::Workspace(hidden), Param::Long(block.intermediate.into()));
                [(x, stride), (h, inner)].map(|(values, stride)| Self { values, stride, rounded: None })
            }
            Activations::A8 => [(block.m, block.hidden), (slots(block), block.intermediate)].map(|(rows, k)| {
                let rounded = RoundedRows::reserve(workspace, rows, k);
                let (values, stride) = (Param::Workspace(rounded.values), Param::Long(k.into()));
                Self { values, stride, rounded: Some(rounded) }
            }),
        }
    }
}

/// One of the two grouped GEMMs.
struct Step {
    is_down: bool,
    stream: Stream,
    n: u32,
    k: u32,
    values_id: Tile,
}

impl Step {
    fn row_blocks(&self) -> u32 {
        self.n.next_multiple_of(64).div_ceil(self.stream.rows())
    }

    /// Kernel, geometry and work; the caller sets grid and parameters.
    fn launch(&self, problem: &Problem, gpu: &GpuSpec, is_walk: bool) -> Launch {
        let block = block_of(problem);
        let mut tile = tile_values(&self.values_id, &["row_tiles", "tokens", "warps", "slabs", "stages", "signal"]);
        tile.insert("walk", is_walk.into());
        let values: Values = BTreeMap::from([
            ("problem", BTreeMap::from([("weights", word_of(block.weights).into()), ("is_down", self.is_down.into())])),
            ("tile", tile),
            (
                "launch",
                BTreeMap::from([
                    ("blocks_per_sm", blocks_per_sm(&self.stream, gpu).into()),
                    ("smem_bytes", self.stream.smem_bytes().into()),
                ]),
            ),
        ]);
        Launch {
            kernel: Request { template: template_for(block.activations), values, wgmma_tokens: None },
            grid: [1, 1, 1],
            threads: self.stream.threads(),
            smem_bytes: self.stream.smem_bytes(),
            params: Vec::new(),
            work: self.work(block, is_walk),
        }
    }

    fn work(&self, block: &MoeBlock, is_walk: bool) -> Work {
        let stream = &self.stream;
        let local_slots = block.local_slots();
        // A walk takes each slot, or in down each token with all of its slots, to a block of its own.
        let (tiles, slabs_factor) = match (is_walk, self.is_down) {
            (false, _) => (Cut::whole(stream.tokens).average(block).tiles, 1.0),
            (true, false) => (local_slots, 1.0),
            (true, true) => (f64::from(block.m), local_slots / f64::from(block.m)),
        };
        let slabs = stream.layout.slabs(self.k as usize) as f64 * slabs_factor;
        let blocks = tiles * f64::from(self.row_blocks());
        let slab_bytes = f64::from(stream.row_tiles) * stream.layout.slab_bytes() as f64 / 4.0;
        let tokens = (local_slots / tiles).max(1.0).min(f64::from(stream.tokens));
        let matrix = block.weights.bytes(self.n.into(), self.k.into()) as f64 * block.touched_experts();
        let columns = if self.is_down { 4.0 * f64::from(self.n) } else { f64::from(self.n) };
        // Measured where nothing was fetched before the wait: registers have no head start over a ring here.
        let in_flight = f64::from(stream.bytes_in_flight()) / if stream.is_in_registers() { 2.0 } else { 1.0 };
        Work {
            blocks,
            memory_bytes: matrix + local_slots * (2.0 * f64::from(self.k) + columns),
            l2_bytes: blocks * slabs * (slab_bytes + tokens * 2.0 * stream.layout.slab_k() as f64),
            bytes_in_flight: in_flight.min(MOST_IN_FLIGHT * f64::from(stream.warps)),
            block_flops: 2.0 * slabs * stream.layout.slab_k() as f64 * f64::from(stream.rows() * stream.tokens.max(8)),
            is_wgmma: false,
            is_fp8: false,
            block_issues: stream.issues(slabs),
            tail_steps: 4.0,
            registers: stream.registers(),
            is_prefetching: self.is_down,
        }
    }
}

/// The kernel's parameters, with the rows that it reads and where its results go; without a schedule it walks.
fn params(block: &MoeBlock, step: &Step, (rows, out): (Rows, Param), schedule: Option<&Schedule>) -> Vec<Param> {
    let (weights, alpha) = match step.is_down {
        false => (Operand::Weights, Operand::UpAlpha),
        true => (Operand::DownWeights, Operand::DownAlpha),
    };
    let (h, parts, d) = match (step.is_down, schedule) {
        (false, _) => (out, Param::Null, Param::Null),
        (true, Some(_)) => (Param::Null, out, Param::Null),
        (true, None) => (Param::Null, Param::Null, out),
    };
    let in_schedule = |place: fn(&Schedule, bool) -> u64| match schedule {
        Some(schedule) => Param::Workspace(place(schedule, step.is_down)),
        None => Param::Null,
    };
    let ld_out = match (step.is_down, schedule) {
        (false, _) => Param::Long(block.intermediate.into()),
        (true, Some(_)) => Param::Long(block.hidden.into()),
        (true, None) => Param::OutputStride,
    };
    let mut params = vec![Param::Operand(weights), rows.values];
    params.extend(rows.rounded.map(|rounded| Param::Workspace(rounded.scales)));
    params.extend([
        h,
        parts,
        d,
        in_schedule(|schedule, is_down| if is_down { schedule.down_tiles } else { schedule.up_tiles }),
        in_schedule(|schedule, is_down| schedule.tile_counts + if is_down { 4 } else { 0 }),
        in_schedule(|schedule, _| schedule.slot_of),
        Param::Operand(Operand::Experts),
        Param::Operand(Operand::Routing),
        Param::Operand(alpha),
        Param::TokensOnDevice,
        rows.stride,
        ld_out,
        Param::Tokens,
        Param::Int(step.n as i32),
        Param::Int(step.k as i32),
        Param::Int(block.top_k as i32),
        Param::ExpertOffset,
        Param::Int(block.local_experts as i32),
        Param::Limit,
    ]);
    params
}

fn served_block<'a>(problem: &'a Problem, arch: &ArchSpec) -> Result<&'a MoeBlock, String> {
    match problem {
        Problem::MoeBlock(block) if !arch.capabilities.mma_sync => {
            Err(format!("{} has no mma.sync on BF16 for {}", arch.name, block.weights))
        }
        Problem::MoeBlock(block) => Ok(block),
        other => Err(format!("expected a block of experts, found `{other}`")),
    }
}

/// Gate-up waits before anything else and down lets go at once or at the end: places between were not worth an axis.
fn signals(arch: &ArchSpec) -> Vec<u32> {
    if arch.capabilities.dependent_launch { vec![0, 3] } else { vec![0] }
}

fn template_for(activations: Activations) -> &'static str {
    match activations {
        Activations::A16 => "moe_mma",
        Activations::A8 => "moe_mma_a8",
    }
}

/// Part of a numerics id: rows that are rounded to E4M3 give other bits.
fn rows_word(problem: &Problem) -> &'static str {
    match block_of(problem).activations {
        Activations::A16 => "",
        Activations::A8 => "e4m3.",
    }
}

/// Rows of an expert that is touched at all, on average under uniform routing.
pub(super) fn rows_per_expert(problem: &Problem) -> u32 {
    let block = block_of(problem);
    (block.local_slots() / block.touched_experts()).ceil() as u32
}

/// Both GEMMs of a tile whose row tiles have names of their own.
fn walk_steps(tile: &Tile, block: &MoeBlock) -> [Step; 2] {
    let single = |name: &str| tile.with("row_tiles", number(tile, name)).with("tokens", 1);
    steps([single("up_row_tiles"), single("down_row_tiles")], block)
}

fn list_steps(tile: &Tile, block: &MoeBlock) -> [Step; 2] {
    steps([tile.clone(), tile.clone()], block)
}

fn steps([up, down]: [Tile; 2], block: &MoeBlock) -> [Step; 2] {
    let step = |is_down, tile: Tile, n, k| Step {
        is_down,
        stream: Stream::of(&tile, layout_of(block)),
        n,
        k,
        values_id: tile,
    };
    [step(false, up, 2 * block.intermediate, block.hidden), step(true, down, block.hidden, block.intermediate)]
}

/// Bytes that a warp can have on their way with profit: more would wait behind the loads of others.
const MOST_IN_FLIGHT: f64 = 4_608.0;

const MAX_WALK_TOKENS: u32 = 64;

/// From more tokens on it is products that take time, which FP8 tensor cores do in half of it.
const MAX_A8_TOKENS: u32 = 64;

/// `kMaxSlots` of the template.
const MAX_WALK_SLOTS: u32 = 32;

const WALK_RULES: [Rule; 4] = [
    Rule { name: "way", check: |tile, problem, _| each_walk_step(tile, problem, Stream::fits_its_way) },
    Rule {
        name: "smem",
        check: |tile, problem, gpu| each_walk_step(tile, problem, |stream| fits_shared_memory(stream, gpu)),
    },
    Rule {
        name: "registers",
        check: |tile, problem, gpu| each_walk_step(tile, problem, |stream| fits_registers(stream, gpu)),
    },
    Rule {
        name: "k-ranges",
        check: |tile, problem, _| each_walk_step(tile, problem, |stream| walk_ranges(stream, problem)),
    },
];

const LIST_RULES: [Rule; 4] = [
    Rule { name: "way", check: |tile, problem, _| list_stream(tile, problem).fits_its_way() },
    Rule { name: "smem", check: |tile, problem, gpu| fits_shared_memory(&list_stream(tile, problem), gpu) },
    Rule { name: "registers", check: |tile, problem, gpu| fits_registers(&list_stream(tile, problem), gpu) },
    Rule { name: "k-ranges", check: |tile, problem, _| walk_ranges(&list_stream(tile, problem), problem) },
];

fn each_walk_step(tile: &Tile, problem: &Problem, check: impl Fn(&Stream) -> Result<(), String>) -> Result<(), String> {
    walk_steps(tile, block_of(problem)).iter().try_for_each(|step| check(&step.stream))
}

fn list_stream(tile: &Tile, problem: &Problem) -> Stream {
    Stream::of(tile, layout_of(block_of(problem)))
}

fn layout_of(block: &MoeBlock) -> PackedLayout {
    PackedLayout::of(block.weights, block.activations)
}

fn walk_ranges(stream: &Stream, problem: &Problem) -> Result<(), String> {
    let block = block_of(problem);
    let slabs = stream.layout.slabs(block.hidden.min(block.intermediate) as usize) as u32;
    // The smallest tile must do for any k.
    if stream.warps <= slabs || stream.warps == 4 {
        return Ok(());
    }
    Err(format!("the shorter k has {slabs} slabs, fewer than {} warps", stream.warps))
}
