//! Blocks of experts on `wgmma`: schedule, gate-up with gathered rows, down, combine. For many tokens on Hopper.

use std::collections::BTreeMap;

use super::group::Group;
use super::moe::{Cut, Schedule, block_of, most_tiles, rows_per_expert, slots};
use super::plan::{BoxBase, Workspace, word_of};
use super::space::{first_that_fits, number, tile_values};
use super::{Axis, BoxMap, Family, Launch, Operand, Param, Plan, Rule, Work};
use crate::arch::{ArchSpec, GpuSpec};
use crate::codegen::{Request, Values, Widths};
use crate::problem::{Activations, MoeBlock, Problem, Tile};
use crate::quant::PackedLayout;

/// `templates/moe_wgmma`.
pub struct MoeWgmma;

impl Family for MoeWgmma {
    fn name(&self) -> &'static str {
        "moe_wgmma"
    }

    fn serves(&self, problem: &Problem, arch: &ArchSpec) -> Result<(), String> {
        match problem {
            Problem::MoeBlock(block) if block.activations != Activations::A16 => {
                Err(format!("expected a16 activations, found {}", block.activations))
            }
            Problem::MoeBlock(block) if arch.capabilities.wgmma => Schedule::fits(block, arch),
            Problem::MoeBlock(_) => Err(format!("{} has no wgmma", arch.name)),
            other => Err(format!("expected a block of experts, found `{other}`")),
        }
    }

    fn axes(&self, problem: &Problem, _: &ArchSpec) -> Vec<Axis> {
        let rows = rows_per_expert(problem);
        // An expert's own count chooses among the widths below these; a popular one has more rows than the average.
        let most = if rows < 4 { 16 } else { 2 * rows.max(16) };
        let near = |tokens: &u32| *tokens <= most && 3 * *tokens >= rows.min(256);
        let tokens: Vec<u32> = [16, 32, 48, 64, 96, 128, 160, 192, 256].into_iter().filter(near).collect();
        vec![
            Axis::new("consumers", [1, 2, 3, 4]),
            Axis::new("up_tokens", tokens.clone()),
            Axis::new("down_tokens", tokens),
            Axis::new("widths", [1, 8]),
            Axis::new("block_k", [128, 256]),
            Axis::new("stages", [3, 4, 6]),
            Axis::new("producers", [64, 128]),
            Axis::new("persistent", [0, 1]),
            Axis::new("signal", [0, 3]),
        ]
    }

    fn rules(&self) -> &'static [Rule] {
        &RULES
    }

    fn default_tile(&self, problem: &Problem, gpu: &GpuSpec) -> Tile {
        let widest = rows_per_expert(problem).next_power_of_two().clamp(16, 256);
        let numbers = |(tokens, stages, producers)| {
            let fixed = [("consumers", 2), ("up_tokens", tokens), ("down_tokens", tokens), ("widths", 8)];
            let chosen = [("block_k", 128), ("stages", stages), ("producers", producers)];
            let numbers = fixed.into_iter().chain(chosen).chain([("signal", 0), ("persistent", 1)]);
            Tile::new(self.name(), numbers)
        };
        let narrower = widest.min(128);
        let choices = [(widest, 4, 64), (widest, 3, 64), (widest, 3, 128), (narrower, 3, 64), (narrower, 3, 128)];
        let choices = choices.map(numbers);
        first_that_fits(self, &choices, problem, gpu)
    }

    fn plan(&self, problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Plan {
        let block = block_of(problem);
        let [up, down] = steps(tile, block);
        let mut workspace = Workspace::default();
        let schedule = Schedule::reserve(&mut workspace, block, up.cut, down.cut);
        let launches = vec![
            schedule.launch(block),
            up.launch(tile, block, &schedule, gpu),
            down.launch(tile, block, &schedule, gpu),
            schedule.combine(block),
        ];
        Plan { launches, workspace_bytes: workspace.bytes() }
    }

    fn numerics(&self, _: &Problem, _: &Tile) -> String {
        "moe.wgmma.k16".to_string()
    }
}

/// One of the two grouped GEMMs.
struct Step {
    is_down: bool,
    group: Group,
    cut: Cut,
    is_persistent: bool,
    n: u32,
    k: u32,
}

/// Down brings its rows with the copy engine: one warp, unless the sums need a warpgroup's registers.
fn steps(tile: &Tile, block: &MoeBlock) -> [Step; 2] {
    let (consumers, gatherers) = (number(tile, "consumers"), number(tile, "producers"));
    let down_tokens = number(tile, "down_tokens");
    let down_producers = match (consumers, down_tokens) {
        (2, 192..) | (3, 65..) => 128,
        _ => 32,
    };
    let step = |is_down, tokens, producers, n, k| {
        let layout = PackedLayout::of(block.weights, block.activations);
        let (block_k, stages) = (number(tile, "block_k"), number(tile, "stages"));
        let group = Group { layout, consumers, tokens, block_k, stages, producers, staging_bytes: STAGING_BYTES };
        let cut = Cut { most: tokens, step: step_of(tokens, number(tile, "widths")) };
        Step { is_down, group, cut, is_persistent: number(tile, "persistent") == 1, n, k }
    };
    [
        step(false, number(tile, "up_tokens"), gatherers, 2 * block.intermediate, block.hidden),
        step(true, down_tokens, down_producers, block.hidden, block.intermediate),
    ]
}

/// The smallest multiple of 16 that cuts `tokens` into at most `widths` equal steps.
pub(super) fn step_of(tokens: u32, widths: u32) -> u32 {
    let steps = (16..=tokens).step_by(16).filter(|step| tokens.is_multiple_of(*step));
    steps.filter(|step| tokens / step <= widths).min().unwrap_or(tokens)
}

impl Step {
    fn row_blocks(&self) -> u32 {
        self.n.div_ceil(64).div_ceil(self.group.consumers)
    }

    /// As many blocks as there can be pieces of work, or as fit on the GPU.
    fn grid(&self, block: &MoeBlock, gpu: &GpuSpec) -> u32 {
        let pieces = self.row_blocks() * most_tiles(block, self.group.tokens);
        if self.is_persistent { pieces.min(gpu.sm_count() * self.group.blocks_per_sm(gpu)) } else { pieces }
    }

    fn launch(&self, tile: &Tile, block: &MoeBlock, schedule: &Schedule, gpu: &GpuSpec) -> Launch {
        let group = &self.group;
        Launch {
            kernel: Request {
                template: "moe_wgmma",
                values: self.values(tile, block, gpu),
                wgmma_tokens: Some(Widths { step: self.cut.step, most: self.cut.most }),
            },
            grid: [self.grid(block, gpu), 1, 1],
            threads: group.threads(),
            smem_bytes: group.smem_bytes(),
            params: self.params(block, schedule),
            work: self.work(block, gpu),
        }
    }

    fn values(&self, tile: &Tile, block: &MoeBlock, gpu: &GpuSpec) -> Values {
        let tile = tile.with("tokens", self.cut.most).with("step", self.cut.step);
        let problem = BTreeMap::from([("weights", word_of(block.weights).into()), ("is_down", self.is_down.into())]);
        let launch = BTreeMap::from([
            ("threads", self.group.threads().into()),
            ("blocks_per_sm", self.group.blocks_per_sm(gpu).into()),
            ("smem_bytes", self.group.smem_bytes().into()),
        ]);
        BTreeMap::from([("problem", problem), ("tile", tile_values(&tile, &AXES)), ("launch", launch)])
    }

    fn params(&self, block: &MoeBlock, schedule: &Schedule) -> Vec<Param> {
        let rows = slots(block).into();
        let base = BoxBase::Workspace { offset: schedule.hidden, rows };
        // Gate-up takes the map too, and does not use it.
        let map =
            BoxMap { base, element: Activations::A16, k: block.intermediate.into(), groups: 1, tokens: self.cut.step };
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
            Param::Operand(Operand::Activations),
            Param::Box(map),
            Param::Workspace(schedule.hidden),
            Param::Workspace(schedule.parts),
            Param::Workspace(tiles),
            Param::Workspace(count),
            Param::Workspace(schedule.slot_of),
            Param::Operand(Operand::Routing),
            Param::Operand(alpha),
            Param::ActivationStride,
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
        let columns = if self.is_down { 4.0 * f64::from(self.n) } else { f64::from(self.n) };
        let slots = block.local_slots() / average.tiles;
        let gather = if self.is_down { 0.0 } else { k * slots / 8.0 / 32.0 * GATHER_ISSUES };
        Work {
            blocks,
            memory_bytes: matrix + block.local_slots() * (2.0 * f64::from(self.k) + columns),
            l2_bytes: pieces * (block_weights + k * 2.0 * if self.is_down { average.width } else { slots }),
            bytes_in_flight: f64::from(group.bytes_in_flight()),
            block_flops: rounds * 2.0 * k * f64::from(group.rows()) * average.width,
            is_wgmma: true,
            is_fp8: false,
            block_issues: rounds * (group.issues(k) + gather),
            tail_steps: 6.0,
            registers: group.registers(),
            is_prefetching: false,
        }
    }
}

/// Instructions of a warp for 32 gathered pieces of 16 bytes.
const GATHER_ISSUES: f64 = 5.0;

/// `kStagingBytes` of the template: 32 rows of 64 bytes and their padding, or eight f32 rows for each of four warps.
const STAGING_BYTES: u32 = 2560;

const AXES: [&str; 6] = ["consumers", "tokens", "step", "block_k", "stages", "signal"];

const RULES: [Rule; 5] = [
    Rule { name: "smem", check: |tile, problem, gpu| each(tile, problem, |group| group.fits_shared_memory(gpu)) },
    Rule { name: "registers", check: |tile, problem, _| each(tile, problem, Group::fits_registers) },
    Rule { name: "slabs", check: |tile, problem, _| each(tile, problem, Group::k_is_whole_slabs) },
    Rule { name: "gather", check: a_warpgroup_gathers_for_many },
    Rule { name: "widths-moot", check: widths_make_a_difference },
];

fn each(tile: &Tile, problem: &Problem, check: impl Fn(&Group) -> Result<(), String>) -> Result<(), String> {
    steps(tile, block_of(problem)).iter().try_for_each(|step| check(&step.group))
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
