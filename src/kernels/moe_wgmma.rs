//! Blocks of experts on `wgmma`: schedule, gate-up with gathered rows, down, combine. For many tokens on Hopper.

use std::collections::BTreeMap;

use super::group::Group;
use super::moe::{Schedule, average_tiles, block_of, most_tiles, slots};
use super::moe_mma::rows_per_expert;
use super::plan::{BoxBase, Workspace, word_of};
use super::space::{first_that_fits, number, tile_values};
use super::{Axis, BoxMap, Family, Launch, Operand, Param, Plan, Rule, Work};
use crate::arch::{ArchSpec, GpuSpec};
use crate::codegen::{Request, Values};
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
            Problem::MoeBlock(block) if arch.capabilities.wgmma => Schedule::fits(block, arch),
            Problem::MoeBlock(_) => Err(format!("{} has no wgmma", arch.name)),
            other => Err(format!("expected a block of experts, found `{other}`")),
        }
    }

    fn axes(&self, problem: &Problem, _: &ArchSpec) -> Vec<Axis> {
        let rows = rows_per_expert(problem);
        let near = |tokens: &u32| *tokens == 16 || (*tokens <= 2 * rows && 6 * *tokens >= rows);
        let tokens: Vec<u32> = [16, 32, 48, 64, 96, 128, 192, 256].into_iter().filter(near).collect();
        vec![
            Axis::new("consumers", [1, 2]),
            Axis::new("up_tokens", tokens.clone()),
            Axis::new("down_tokens", tokens),
            Axis::new("block_k", [128, 256]),
            Axis::new("stages", [3, 4, 6]),
            Axis::new("producers", [64, 128]),
            Axis::new("signal", [0, 3]),
        ]
    }

    fn rules(&self) -> &'static [Rule] {
        &RULES
    }

    fn default_tile(&self, problem: &Problem, gpu: &GpuSpec) -> Tile {
        let tokens = rows_per_expert(problem).next_power_of_two().clamp(16, 128);
        let numbers = |(stages, producers)| {
            let fixed =
                [("consumers", 2), ("up_tokens", tokens), ("down_tokens", tokens), ("block_k", 128), ("signal", 0)];
            Tile::new(self.name(), fixed.into_iter().chain([("stages", stages), ("producers", producers)]))
        };
        let choices = [(4, 64), (3, 64), (3, 128)].map(numbers);
        first_that_fits(self, &choices, problem, gpu)
    }

    fn plan(&self, problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Plan {
        let block = block_of(problem);
        let [up, down] = steps(tile, block);
        let mut workspace = Workspace::default();
        let schedule = Schedule::reserve(&mut workspace, block, up.group.tokens, down.group.tokens);
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
    n: u32,
    k: u32,
}

/// Down brings its rows with the copy engine: one warp, unless the sums need a warpgroup's registers.
fn steps(tile: &Tile, block: &MoeBlock) -> [Step; 2] {
    let (consumers, gatherers) = (number(tile, "consumers"), number(tile, "producers"));
    let down_tokens = number(tile, "down_tokens");
    let down_producers = if consumers == 2 && down_tokens > 192 { 128 } else { 32 };
    let step = |is_down, tokens, producers, n, k| {
        let layout = PackedLayout::of(block.weights, block.activations);
        let (block_k, stages) = (number(tile, "block_k"), number(tile, "stages"));
        Step { is_down, group: Group { layout, consumers, tokens, block_k, stages, producers }, n, k }
    };
    [
        step(false, number(tile, "up_tokens"), gatherers, 2 * block.intermediate, block.hidden),
        step(true, down_tokens, down_producers, block.hidden, block.intermediate),
    ]
}

impl Step {
    fn row_blocks(&self) -> u32 {
        self.n.div_ceil(64).div_ceil(self.group.consumers)
    }

    fn launch(&self, tile: &Tile, block: &MoeBlock, schedule: &Schedule, gpu: &GpuSpec) -> Launch {
        let group = &self.group;
        Launch {
            kernel: Request {
                template: "moe_wgmma",
                values: self.values(tile, block, gpu),
                wgmma_tokens: Some(group.tokens),
            },
            grid: [self.row_blocks(), most_tiles(block, group.tokens), 1],
            threads: group.threads(),
            smem_bytes: group.smem_bytes(),
            params: self.params(block, schedule),
            work: self.work(block),
        }
    }

    fn values(&self, tile: &Tile, block: &MoeBlock, gpu: &GpuSpec) -> Values {
        let tile = tile.with("tokens", self.group.tokens);
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
        let map = BoxMap {
            base,
            element: Activations::A16,
            k: block.intermediate.into(),
            groups: 1,
            tokens: self.group.tokens,
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

    fn work(&self, block: &MoeBlock) -> Work {
        let group = &self.group;
        let tiles = average_tiles(block, group.tokens);
        let blocks = tiles * f64::from(self.row_blocks());
        let k = group.layout.padded_k(self.k as usize) as f64;
        let block_weights =
            k / group.layout.slab_k() as f64 * f64::from(group.consumers) * group.layout.slab_bytes() as f64;
        let matrix = block.weights.bytes(self.n.into(), self.k.into()) as f64 * block.touched_experts();
        let columns = if self.is_down { 4.0 * f64::from(self.n) } else { f64::from(self.n) };
        let gather = if self.is_down { 0.0 } else { k * f64::from(group.tokens) / 8.0 / 32.0 * GATHER_ISSUES };
        Work {
            blocks,
            memory_bytes: matrix + block.local_slots() * (2.0 * f64::from(self.k) + columns),
            l2_bytes: blocks * (block_weights + k * 2.0 * f64::from(group.tokens)),
            bytes_in_flight: f64::from(group.bytes_in_flight()),
            block_flops: 2.0 * k * f64::from(group.rows() * group.tokens),
            is_wgmma: true,
            is_fp8: false,
            block_issues: group.issues(k) + gather,
            tail_steps: 6.0,
            registers: group.registers(),
            is_prefetching: false,
        }
    }
}

/// Instructions of a warp for 32 gathered pieces of 16 bytes.
const GATHER_ISSUES: f64 = 5.0;

const AXES: [&str; 5] = ["consumers", "tokens", "block_k", "stages", "signal"];

const RULES: [Rule; 4] = [
    Rule { name: "smem", check: |tile, problem, gpu| each(tile, problem, |group| group.fits_shared_memory(gpu)) },
    Rule { name: "registers", check: |tile, problem, _| each(tile, problem, Group::fits_registers) },
    Rule { name: "slabs", check: |tile, problem, _| each(tile, problem, Group::k_is_whole_slabs) },
    Rule { name: "gather", check: a_warpgroup_gathers_for_many },
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
