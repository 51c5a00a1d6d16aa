//! Blocks of experts on `mma.sync`: grouped GEMMs from a schedule, for any number of tokens.

use std::collections::BTreeMap;

use super::dense_mma::{blocks_per_sm, fits_registers, fits_shared_memory};
use super::moe::{Cut, Schedule, block_of, block_on_mma, most_tiles, rows_per_expert, signals};
use super::plan::{Workspace, word_of};
use super::space::{first_that_fits, number, tile_values};
use super::stream::Stream;
use super::{Axis, Family, Launch, Operand, Param, Plan, Rule, Work};
use crate::arch::{ArchSpec, GpuSpec};
use crate::codegen::{Request, Values};
use crate::problem::{MoeBlock, Problem, Tile};
use crate::quant::{Activations, PackedLayout};

/// `templates/moe_mma`.
pub struct MoeMma;

impl Family for MoeMma {
    fn name(&self) -> &'static str {
        "moe_mma"
    }

    fn serves(&self, problem: &Problem, arch: &ArchSpec) -> Result<(), String> {
        let block = block_on_mma(problem, arch)?;
        if block.activations != Activations::A16 {
            return Err(format!("expected a16 activations, found {}", block.activations));
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
        &RULES
    }

    fn default_tile(&self, problem: &Problem, gpu: &GpuSpec) -> Tile {
        let tokens = rows_per_expert(problem).next_power_of_two().clamp(8, 32);
        let numbers = |(row_tiles, warps, stages)| {
            let fixed = [("tokens", tokens), ("slabs", 1), ("signal", 0)];
            let chosen = [("row_tiles", row_tiles), ("warps", warps), ("stages", stages)];
            Tile::new(self.name(), fixed.into_iter().chain(chosen))
        };
        // With eight tokens it won on an H100 (MXFP4 at m of 64 and 128, NVFP4 at 128) and on an H200 (NVFP4 at 64).
        let first = if tokens == 8 { (4, 4, 3) } else { (2, 4, 6) };
        let choices = [first, (2, 4, 6), (2, 4, 4), (1, 4, 4), (1, 4, 3)].map(numbers);
        first_that_fits(self, &choices, problem, gpu)
    }

    fn plan(&self, problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Plan {
        let block = block_of(problem);
        let mut workspace = Workspace::default();
        let widest = number(tile, "tokens");
        let schedule = Schedule::reserve(&mut workspace, block, Cut::whole(widest), Cut::whole(widest));
        let [up, down] = steps(tile, block);
        let most = most_tiles(block, widest);
        let launches = vec![
            schedule.launch(block),
            Launch { grid: [up.row_blocks(), most, 1], ..up.launch(block, gpu, &schedule) },
            Launch { grid: [down.row_blocks(), most, 1], ..down.launch(block, gpu, &schedule) },
            schedule.combine(block),
        ];
        Plan { launches, workspace_bytes: workspace.bytes() }
    }

    fn numerics(&self, _: &Problem, tile: &Tile) -> String {
        format!("moe.mma.k16/ranges={}", number(tile, "warps"))
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

    /// One launch; the caller sets the grid.
    fn launch(&self, block: &MoeBlock, gpu: &GpuSpec, schedule: &Schedule) -> Launch {
        let tile = tile_values(&self.values_id, &["row_tiles", "tokens", "warps", "slabs", "stages", "signal"]);
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
            kernel: Request { template: "moe_mma", values, wgmma_tokens: None },
            grid: [1, 1, 1],
            threads: self.stream.threads(),
            smem_bytes: self.stream.smem_bytes(),
            params: self.params(block, schedule),
            work: self.work(block),
        }
    }

    /// The kernel's parameters, in its order.
    fn params(&self, block: &MoeBlock, schedule: &Schedule) -> Vec<Param> {
        let hidden = Param::Workspace(schedule.hidden);
        let inner = Param::Long(block.intermediate.into());
        let (weights, alpha, [from, ld_from], [h, parts, ld_out]) = match self.is_down {
            false => {
                let rows = [Param::Operand(Operand::Activations), Param::ActivationStride];
                (Operand::Weights, Operand::UpAlpha, rows, [hidden, Param::Null, inner])
            }
            true => {
                let parts = Param::Workspace(schedule.parts);
                let out = [Param::Null, parts, Param::Long(block.hidden.into())];
                (Operand::DownWeights, Operand::DownAlpha, [hidden, inner], out)
            }
        };
        let [tiles, tile_count, slot_of] = schedule.lists(self.is_down);
        vec![
            Param::Operand(weights),
            from,
            h,
            parts,
            tiles,
            tile_count,
            slot_of,
            Param::Operand(Operand::Routing),
            Param::Operand(alpha),
            ld_from,
            ld_out,
            Param::Int(self.n as i32),
            Param::Int(self.k as i32),
            Param::Int(block.top_k as i32),
            Param::Limit,
        ]
    }

    fn work(&self, block: &MoeBlock) -> Work {
        let stream = &self.stream;
        let local_slots = block.local_slots();
        let tiles = Cut::whole(stream.tokens).average(block).tiles;
        let slabs = stream.layout.slabs(self.k as usize) as f64;
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

fn steps(tile: &Tile, block: &MoeBlock) -> [Step; 2] {
    let step = |is_down, n, k| Step { is_down, stream: stream_of(tile, block), n, k, values_id: tile.clone() };
    [step(false, 2 * block.intermediate, block.hidden), step(true, block.hidden, block.intermediate)]
}

fn stream_of(tile: &Tile, block: &MoeBlock) -> Stream {
    Stream::of(tile, PackedLayout::of(block.weights, block.activations))
}

/// Bytes that a warp can have on their way with profit: more would wait behind the loads of others.
const MOST_IN_FLIGHT: f64 = 4_608.0;

const RULES: [Rule; 4] = [
    Rule { name: "way", check: |tile, problem, _| stream_of(tile, block_of(problem)).fits_its_way() },
    Rule { name: "smem", check: |tile, problem, gpu| fits_shared_memory(&stream_of(tile, block_of(problem)), gpu) },
    Rule { name: "registers", check: |tile, problem, gpu| fits_registers(&stream_of(tile, block_of(problem)), gpu) },
    Rule { name: "k-ranges", check: |tile, problem, _| every_warp_has_a_slab(tile, problem) },
];

fn every_warp_has_a_slab(tile: &Tile, problem: &Problem) -> Result<(), String> {
    let block = block_of(problem);
    let stream = stream_of(tile, block);
    let slabs = stream.layout.slabs(block.hidden.min(block.intermediate) as usize) as u32;
    // The smallest tile must do for any k.
    if stream.warps <= slabs || stream.warps == 4 {
        return Ok(());
    }
    Err(format!("the shorter k has {slabs} slabs, fewer than {} warps", stream.warps))
}
