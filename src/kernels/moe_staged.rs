//! Experts with few rows each: rows staged once in shared memory, and warps that stream row tiles of their own.
//!
//! `moe_walk` needs no schedule and no combine: gate-up takes one slot a block, down one token a block with k running
//! over all of its slots. Right for a few tokens, whose slots rarely share an expert. `moe_staged` sorts them first.
//!
//! Both take FP8 rows too, while the weights' bytes are what takes time: each block rounds the rows that it stages, and
//! multiplies their E4M3 values as BF16.

use std::collections::BTreeMap;

use super::moe::{Cut, Schedule, block_of, block_on_mma, most_tiles, rows_per_expert, signals, slots};
use super::plan::{Workspace, word_of};
use super::space::{first_that_fits, number, tile_values};
use super::stream::decode_issues;
use super::{Axis, Family, Launch, Operand, Param, Plan, Rule, Work};
use crate::arch::{ArchSpec, GpuSpec};
use crate::codegen::{Request, Values};
use crate::problem::{MoeBlock, Problem, Tile};
use crate::quant::{Activations, PackedLayout};

/// `templates/moe_staged`, one token a block.
pub struct MoeWalk;

/// `templates/moe_staged`, from a list of tiles.
pub struct MoeStaged;

impl Family for MoeWalk {
    fn name(&self) -> &'static str {
        "moe_walk"
    }

    fn serves(&self, problem: &Problem, arch: &ArchSpec) -> Result<(), String> {
        let block = served_block(problem, arch, MAX_WALK_TOKENS)?;
        if block.top_k > MAX_WALK_SLOTS {
            return Err(format!("expected at most {MAX_WALK_SLOTS} slots a token, found {}", block.top_k));
        }
        have_room(&walk_steps(&smallest(self, SMALLEST_WALK), block), arch)
    }

    fn axes(&self, _: &Problem, arch: &ArchSpec) -> Vec<Axis> {
        vec![
            Axis::new("up_tiles", [4, 6, 8, 12, 16]),
            Axis::new("up_ranges", [1, 2, 4]),
            Axis::new("down_tiles", [1, 2, 4]),
            Axis::new("down_ranges", [4, 6, 8, 12, 16]),
            Axis::new("slabs", [1, 2, 4]),
            Axis::new("stages", [3, 4, 6, 8]),
            Axis::new("signal", signals(arch)),
        ]
    }

    fn rules(&self) -> &'static [Rule] {
        &WALK_RULES
    }

    fn default_tile(&self, problem: &Problem, gpu: &GpuSpec) -> Tile {
        let smallest = smallest(self, SMALLEST_WALK);
        let of = |numbers: [u32; 6]| Tile::new(self.name(), WALK_NAMES.into_iter().zip(numbers).chain([("signal", 0)]));
        first_that_fits(self, &[of([6, 2, 2, 8, 4, 3]), of([4, 1, 2, 4, 2, 3]), smallest], problem, gpu)
    }

    fn plan(&self, problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Plan {
        let block = block_of(problem);
        let mut workspace = Workspace::default();
        let hidden = Param::Workspace(workspace.take(2 * u64::from(slots(block)) * u64::from(block.intermediate)));
        let [up, down] = walk_steps(tile, block);
        let launches = vec![
            Launch { grid: [up.row_groups(), slots(block), 1], ..up.launch(block, gpu, hidden.clone(), None) },
            Launch { grid: [down.row_groups(), block.m, 1], ..down.launch(block, gpu, hidden, None) },
        ];
        Plan { launches, workspace_bytes: workspace.bytes() }
    }

    fn numerics(&self, problem: &Problem, tile: &Tile) -> String {
        numerics(problem, tile, "walk")
    }
}

impl Family for MoeStaged {
    fn name(&self) -> &'static str {
        "moe_staged"
    }

    fn serves(&self, problem: &Problem, arch: &ArchSpec) -> Result<(), String> {
        let block = served_block(problem, arch, MAX_STAGED_TOKENS)?;
        have_room(&list_steps(&smallest(self, SMALLEST_LIST), block), arch)?;
        Schedule::fits(block, arch)
    }

    fn axes(&self, _: &Problem, arch: &ArchSpec) -> Vec<Axis> {
        vec![
            Axis::new("up_tiles", [4, 8, 12, 16]),
            Axis::new("up_ranges", [1, 2]),
            Axis::new("down_tiles", [4, 8, 12, 16]),
            Axis::new("down_ranges", [1, 2]),
            Axis::new("tokens", [2, 4, 8]),
            Axis::new("slabs", [1, 2, 4]),
            Axis::new("stages", [3, 4, 6, 8]),
            Axis::new("signal", signals(arch)),
        ]
    }

    fn rules(&self) -> &'static [Rule] {
        &LIST_RULES
    }

    fn default_tile(&self, problem: &Problem, gpu: &GpuSpec) -> Tile {
        let wanted = (2 * rows_per_expert(problem)).next_power_of_two().clamp(4, 8);
        let smallest = smallest(self, SMALLEST_LIST);
        let of = |tiles, slabs, stages, tokens| {
            let chosen = [("up_tiles", tiles), ("down_tiles", tiles), ("slabs", slabs), ("stages", stages)];
            chosen.into_iter().fold(smallest.with("tokens", tokens), |tile, (name, value)| tile.with(name, value))
        };
        let choices = [of(8, 4, 3, wanted), of(8, 2, 4, 2), smallest.clone()];
        first_that_fits(self, &choices, problem, gpu)
    }

    fn plan(&self, problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Plan {
        let block = block_of(problem);
        let mut workspace = Workspace::default();
        let widest = number(tile, "tokens");
        let schedule = Schedule::reserve(&mut workspace, block, Cut::whole(widest), Cut::whole(widest));
        let hidden = Param::Workspace(schedule.hidden);
        let [up, down] = list_steps(tile, block);
        let most = most_tiles(block, widest);
        let launches = vec![
            schedule.launch(block),
            Launch { grid: [up.row_groups(), most, 1], ..up.launch(block, gpu, hidden.clone(), Some(&schedule)) },
            Launch { grid: [down.row_groups(), most, 1], ..down.launch(block, gpu, hidden, Some(&schedule)) },
            schedule.combine(block),
        ];
        Plan { launches, workspace_bytes: workspace.bytes() }
    }

    fn numerics(&self, problem: &Problem, tile: &Tile) -> String {
        numerics(problem, tile, "staged")
    }
}

/// One of the two grouped GEMMs.
struct Step {
    is_down: bool,
    layout: PackedLayout,
    n: u32,
    k: u32,
    tiles: u32,
    ranges: u32,
    /// Slots of a block: in a walk 1, which no list has.
    tokens: u32,
    slabs: u32,
    stages: u32,
    signal: u32,
    /// Slots of a token, where k runs over all of them.
    crossed: Option<u32>,
}

impl Step {
    fn row_groups(&self) -> u32 {
        (self.n.next_multiple_of(64) / ROW_TILE).div_ceil(self.tiles)
    }

    fn threads(&self) -> u32 {
        self.tiles * self.ranges * 32
    }

    /// Slabs of one expert.
    fn slabs_of_expert(&self) -> u32 {
        self.layout.slabs(self.k as usize) as u32
    }

    /// Shared memory for rows, or the sums of all ranges but the first, bytes: what stands before the rings.
    fn rows_bytes(&self) -> u32 {
        let row_bytes = (self.slabs_of_expert() * self.layout.slab_k() as u32 + 8) * 2;
        let rows = self.crossed.unwrap_or(self.tokens) * row_bytes;
        let sums = (self.ranges - 1) * self.tiles * 32 * 16;
        rows.max(sums).next_multiple_of(128)
    }

    /// Codes and scales of one slab of a row tile, bytes.
    fn slab_bytes(&self) -> u32 {
        self.layout.slab_bytes() as u32 / 4
    }

    /// A warp's ring, bytes.
    fn ring_bytes(&self) -> u32 {
        self.stages * self.slabs * self.slab_bytes()
    }

    /// Dynamic shared memory of a block, bytes.
    fn smem_bytes(&self) -> u32 {
        self.rows_bytes() + self.tiles * self.ranges * self.ring_bytes()
    }

    /// Threads of a block that ptxas is told, so that a thread gets no more registers than it needs:
    /// what one launch leaves is where the blocks of the next begin.
    fn bound_threads(&self, gpu: &GpuSpec) -> u32 {
        (gpu.arch.registers_per_sm / REGISTERS).clamp(self.threads(), 1024)
    }

    /// Kernel, geometry and work; the caller sets the grid.
    fn launch(&self, block: &MoeBlock, gpu: &GpuSpec, hidden: Param, schedule: Option<&Schedule>) -> Launch {
        let weights = match block.activations {
            Activations::A16 => word_of(block.weights).to_string(),
            Activations::A8 => format!("{}OfA8", word_of(block.weights)),
        };
        let numbers = [
            ("tiles", self.tiles),
            ("ranges", self.ranges),
            ("tokens", self.tokens),
            ("slabs", self.slabs),
            ("stages", self.stages),
            ("signal", self.signal),
        ];
        let mut tile = tile_values(&Tile::new("moe_staged", numbers), &numbers.map(|(name, _)| name));
        tile.insert("walk", schedule.is_none().into());
        let problem = BTreeMap::from([
            ("weights", weights.into()),
            ("is_down", self.is_down.into()),
            ("rounds", (block.activations == Activations::A8).into()),
        ]);
        let launch = BTreeMap::from([
            ("bound_threads", self.bound_threads(gpu).into()),
            ("most_slots", MAX_WALK_SLOTS.into()),
            ("ring_bytes", self.ring_bytes().into()),
            ("static_bytes", STATIC_BYTES.into()),
        ]);
        let values: Values = BTreeMap::from([("problem", problem), ("tile", tile), ("launch", launch)]);
        Launch {
            kernel: Request { template: "moe_staged", values, wgmma_tokens: None },
            grid: [1, 1, 1],
            threads: self.threads(),
            smem_bytes: self.smem_bytes(),
            params: self.params(block, hidden, schedule),
            work: self.work(block),
        }
    }

    /// The kernel's parameters, in its order.
    fn params(&self, block: &MoeBlock, hidden: Param, schedule: Option<&Schedule>) -> Vec<Param> {
        let parts = schedule.map_or(Param::Null, |schedule| Param::Workspace(schedule.parts));
        let (weights, alpha, counters, from, ld_from) = match self.is_down {
            false => {
                let tokens = Param::Operand(Operand::Activations);
                (Operand::Weights, Operand::UpAlpha, Operand::Counters, tokens, Param::ActivationStride)
            }
            true => {
                let stride = Param::Long(block.intermediate.into());
                (Operand::DownWeights, Operand::DownAlpha, Operand::HiddenCounters, hidden.clone(), stride)
            }
        };
        let (h, parts, d, ld_out) = match (self.is_down, schedule) {
            (false, _) => (hidden, Param::Null, Param::Null, Param::Long(block.intermediate.into())),
            (true, Some(_)) => (Param::Null, parts, Param::Null, Param::Long(block.hidden.into())),
            (true, None) => (Param::Null, Param::Null, Param::Operand(Operand::Output), Param::OutputStride),
        };
        let is_rounding = block.activations == Activations::A8;
        let nulls = [Param::Null, Param::Null, Param::Null];
        let [tiles, tile_count, slot_of] = schedule.map_or(nulls, |schedule| schedule.lists(self.is_down));
        vec![
            Param::Operand(weights),
            from,
            if is_rounding { Param::Operand(counters) } else { Param::Null },
            h,
            parts,
            d,
            tiles,
            tile_count,
            slot_of,
            Param::Operand(Operand::Experts),
            Param::Operand(Operand::Routing),
            Param::Operand(alpha),
            Param::TokensOnDevice,
            ld_from,
            ld_out,
            Param::Tokens,
            Param::Int(self.n as i32),
            Param::Int(self.k as i32),
            Param::Int(block.top_k as i32),
            Param::ExpertOffset,
            Param::Int(block.local_experts as i32),
            Param::Int(self.rows_bytes() as i32),
            Param::Limit,
        ]
    }

    fn work(&self, block: &MoeBlock) -> Work {
        let local_slots = block.local_slots();
        // A walk takes each slot, or in down each token with all of its slots, to a block of its own.
        let (tiles, experts_of_tile) = match (self.tokens, self.crossed) {
            (_, Some(_)) => (f64::from(block.m), local_slots / f64::from(block.m)),
            (1, None) => (local_slots, 1.0),
            (tokens, None) => (Cut::whole(tokens).average(block).tiles, 1.0),
        };
        let slabs = f64::from(self.slabs_of_expert()) * experts_of_tile * f64::from(self.tiles);
        let blocks = tiles * f64::from(self.row_groups());
        let slab_bytes = f64::from(self.slab_bytes());
        let staged = local_slots / tiles * f64::from(2 * self.k);
        let matrix = block.weights.bytes(self.n.into(), self.k.into()) as f64 * block.touched_experts();
        let columns = if self.is_down { 4.0 * f64::from(self.n) } else { f64::from(self.n) };
        let steps = f64::from(self.layout.slab_k() as u32 / 16);
        let (unsorting, staging) = match block.activations {
            Activations::A16 => (0.0, STAGING_ISSUES),
            Activations::A8 => (UNSORTING_ISSUES, ROUNDING_ISSUES),
        };
        let issues = slabs * (steps * (decode_issues(block.weights) + unsorting + 1.5) + SLAB_ISSUES)
            + staged / 512.0 * staging
            + f64::from(self.tiles * self.ranges) * WARP_ISSUES;
        Work {
            blocks,
            memory_bytes: matrix + local_slots * (2.0 * f64::from(self.k) + columns),
            l2_bytes: blocks * (slabs * slab_bytes + staged),
            bytes_in_flight: f64::from(self.tiles * self.ranges * self.slabs * (self.stages - 1)) * slab_bytes,
            // Products of eight tokens are among the instructions.
            block_flops: 0.0,
            block_issues: issues * ISSUE_SHARE,
            tail_steps: 3.0,
            registers: REGISTERS,
            is_prefetching: self.is_down,
            ..Work::default()
        }
    }
}

fn served_block<'a>(problem: &'a Problem, arch: &ArchSpec, most_tokens: u32) -> Result<&'a MoeBlock, String> {
    let block = block_on_mma(problem, arch)?;
    if block.m <= most_tokens {
        return Ok(block);
    }
    Err(format!("expected at most {most_tokens} tokens, found {}", block.m))
}

/// Ranges are cut between stages. Rows that are rounded to E4M3 give other bits.
fn numerics(problem: &Problem, tile: &Tile, way: &str) -> String {
    let rows = match block_of(problem).activations {
        Activations::A16 => "",
        Activations::A8 => "e4m3.",
    };
    let [up, down, slabs] = ["up_ranges", "down_ranges", "slabs"].map(|name| number(tile, name));
    format!("moe.{way}.{rows}k16/ranges={up}.{down}x{slabs}")
}

/// The tile of a family that needs least.
fn smallest(family: &dyn Family, numbers: &[(&'static str, u32)]) -> Tile {
    Tile::new(family.name(), numbers.iter().copied())
}

/// Whether a chip has shared memory for the rows and rings of both steps.
fn have_room(steps: &[Step; 2], arch: &ArchSpec) -> Result<(), String> {
    steps.iter().try_for_each(|step| {
        let (need, have) = (step.smem_bytes() + STATIC_BYTES, arch.smem_per_block);
        if need <= have {
            return Ok(());
        }
        Err(format!("rows and rings need {need} B of shared memory, {} has {have} B", arch.name))
    })
}

fn walk_steps(tile: &Tile, block: &MoeBlock) -> [Step; 2] {
    let [up, down] = steps(tile, block, 1);
    [up, Step { crossed: Some(block.top_k), ..down }]
}

fn list_steps(tile: &Tile, block: &MoeBlock) -> [Step; 2] {
    steps(tile, block, number(tile, "tokens"))
}

fn steps(tile: &Tile, block: &MoeBlock, tokens: u32) -> [Step; 2] {
    let step = |is_down, [tiles, ranges]: [&str; 2], n, k| Step {
        is_down,
        layout: PackedLayout::of(block.weights, block.activations),
        n,
        k,
        tiles: number(tile, tiles),
        ranges: number(tile, ranges),
        tokens,
        slabs: number(tile, "slabs"),
        stages: number(tile, "stages"),
        signal: number(tile, "signal"),
        crossed: None,
    };
    [
        step(false, ["up_tiles", "up_ranges"], 2 * block.intermediate, block.hidden),
        step(true, ["down_tiles", "down_ranges"], block.hidden, block.intermediate),
    ]
}

const WALK_NAMES: [&str; 6] = ["up_tiles", "up_ranges", "down_tiles", "down_ranges", "slabs", "stages"];

const SMALLEST_WALK: &[(&str, u32)] = &[
    ("up_tiles", 4),
    ("up_ranges", 1),
    ("down_tiles", 1),
    ("down_ranges", 4),
    ("slabs", 1),
    ("stages", 3),
    ("signal", 0),
];

const SMALLEST_LIST: &[(&str, u32)] = &[
    ("up_tiles", 4),
    ("up_ranges", 1),
    ("down_tiles", 4),
    ("down_ranges", 1),
    ("tokens", 2),
    ("slabs", 1),
    ("stages", 3),
    ("signal", 0),
];

/// Rows of a warp.
const ROW_TILE: u32 = 16;

/// Beyond, the slots of many tokens share experts, whose weights a walk reads again for each.
const MAX_WALK_TOKENS: u32 = 64;

/// Beyond, an expert of 256 with six slots a token has more rows than one block of eight, and each block reads weights.
const MAX_STAGED_TOKENS: u32 = 256;

/// Slots of a token in a walk: each is found by a lane of one warp.
const MAX_WALK_SLOTS: u32 = 32;

/// Registers of a thread: what ptxas needs for any format and depth of the ring.
const REGISTERS: u32 = 64;

/// Threads of a block: with [`REGISTERS`] each they leave a quarter of an SM to others.
const MAX_THREADS: u32 = 768;

/// At most what `Work` and `RowScales` of the template take in static shared memory, bytes.
const STATIC_BYTES: u32 = 1024;

/// The model's factor for instructions stands for those that other families do not count, and here all are. Of 380
/// tiles of six problems that were timed by hand, the first predicted was 1.6 to 8.9 % behind the best, the best of the
/// first nine at most 2.2 % (docs/hopper.md).
const ISSUE_SHARE: f64 = 0.6;

/// Fetching, addressing and waiting for one slab, counted in SASS.
const SLAB_ISSUES: f64 = 16.0;

/// What the decode of a step of 16 k costs more with codes that stand where FP8 tensor cores want them: signs and
/// magnitudes are brought to their places one by one. Counted in the text of `lib/format_a8_bf16.cuh`.
const UNSORTING_ISSUES: f64 = 4.0;

/// 32 pieces of 16 bytes to shared memory. This and the next two are estimates.
const STAGING_ISSUES: f64 = 20.0;

/// The same, and to E4M3 under the scale of their row.
const ROUNDING_ISSUES: f64 = 250.0;

/// A warp's start and end.
const WARP_ISSUES: f64 = 250.0;

const WALK_RULES: [Rule; 3] = [
    Rule { name: "threads", check: |tile, problem, _| each(&walk_steps(tile, block_of(problem)), fits_threads) },
    Rule { name: "smem", check: |tile, problem, gpu| have_room(&walk_steps(tile, block_of(problem)), gpu.arch) },
    Rule { name: "k-ranges", check: |tile, problem, _| each(&walk_steps(tile, block_of(problem)), have_stages) },
];

const LIST_RULES: [Rule; 3] = [
    Rule { name: "threads", check: |tile, problem, _| each(&list_steps(tile, block_of(problem)), fits_threads) },
    Rule { name: "smem", check: |tile, problem, gpu| have_room(&list_steps(tile, block_of(problem)), gpu.arch) },
    Rule { name: "k-ranges", check: |tile, problem, _| each(&list_steps(tile, block_of(problem)), have_stages) },
];

fn each(steps: &[Step; 2], check: impl Fn(&Step) -> Result<(), String>) -> Result<(), String> {
    steps.iter().try_for_each(check)
}

fn fits_threads(step: &Step) -> Result<(), String> {
    if step.threads() <= MAX_THREADS {
        return Ok(());
    }
    let (tiles, ranges) = (step.tiles, step.ranges);
    Err(format!("{tiles} row tiles of {ranges} warps are {} threads, more than {MAX_THREADS}", step.threads()))
}

/// Warps without a stage are of no use, but the fewest ranges must do for any k.
fn have_stages(step: &Step) -> Result<(), String> {
    let stages = step.slabs_of_expert().div_ceil(step.slabs) * step.crossed.unwrap_or(1);
    let fewest = if step.crossed.is_some() { 4 } else { 1 };
    if step.ranges <= stages.max(fewest) {
        return Ok(());
    }
    Err(format!("k has {stages} stages of {} slabs, fewer than {} ranges", step.slabs, step.ranges))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;

    #[test]
    fn what_has_no_room_is_refused_before_it_has_a_tile() {
        let long =
            ["moe nvfp4 64 top8 4096x14336 m1", "moe nvfp4 64 top32 4096x4096 m1", "moe fp8 16 top4 6144x10752 m1"];
        let longer =
            ["moe nvfp4 8 top2 6144x32768 m16", "moe nvfp4 16 top2 8192x24576 m1", "moe bf16 8 top2 65536x512 m4"];
        for problem in long.into_iter().chain(longer).map(|text| text.parse::<Problem>().unwrap()) {
            for gpu in GpuSpec::all() {
                for family in kernels::serving(&problem, gpu.arch) {
                    let tile = family.default_tile(&problem, gpu);
                    assert!(kernels::plan(&problem, &tile, gpu).is_ok(), "{problem} on {}: {tile}", gpu.name);
                }
            }
        }
        // The slots of a token are 32 rows of 8 KB; those of an expert are staged by eights.
        let many: Problem = "moe nvfp4 64 top32 4096x4096 m1".parse().unwrap();
        let arch = GpuSpec::named("h100").unwrap().arch;
        let refusal = MoeWalk.serves(&many, arch).unwrap_err();
        assert!(refusal.contains("B of shared memory, sm90a has"), "{refusal}");
        assert!(MoeStaged.serves(&many, arch).is_ok());
    }
}
