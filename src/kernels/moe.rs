//! What the families for blocks of experts share: the schedule before the grouped GEMMs and the combine after them.

use std::collections::BTreeMap;

use super::plan::Workspace;
use super::{Launch, Operand, Param, Work};
use crate::arch::ArchSpec;
use crate::codegen::{Request, Value};
use crate::problem::{MoeBlock, Problem};

/// Places in the workspace that a scheduled plan uses.
pub(super) struct Schedule {
    begin: u64,
    pub slot_of: u64,
    pub up_tiles: u64,
    pub down_tiles: u64,
    pub tile_counts: u64,
    pub hidden: u64,
    pub parts: u64,
    up: Cut,
    down: Cut,
}

/// How the slots of an expert are cut into tiles for one of the GEMMs: as few as hold them, of nearly equal counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Slots of the widest tile, a multiple of `step`.
    pub most: u32,
    /// What a tile is padded to, and begins at a multiple of.
    pub step: u32,
}

/// The block of a problem that `serves` has let through.
pub(super) fn block_of(problem: &Problem) -> &MoeBlock {
    let Problem::MoeBlock(block) = problem else { unreachable!("`serves` has refused other problems") };
    block
}

/// The block of `problem`, if `mma.sync` can serve it.
pub(super) fn block_on_mma<'a>(problem: &'a Problem, arch: &ArchSpec) -> Result<&'a MoeBlock, String> {
    match problem {
        Problem::MoeBlock(block) if !arch.capabilities.mma_sync => {
            Err(format!("{} has no mma.sync on BF16 for {}", arch.name, block.weights))
        }
        Problem::MoeBlock(block) => Ok(block),
        other => Err(format!("expected a block of experts, found `{other}`")),
    }
}

/// Gate-up waits before anything else and down lets go at once or at the end: places between were not worth an axis.
pub(super) fn signals(arch: &ArchSpec) -> Vec<u32> {
    if arch.capabilities.dependent_launch { vec![0, 3] } else { vec![0] }
}

/// Rows of an expert that is touched at all, on average under uniform routing.
pub(super) fn rows_per_expert(problem: &Problem) -> u32 {
    let block = block_of(problem);
    (block.local_slots() / block.touched_experts()).ceil() as u32
}

/// Slots of a step: rows of the hidden buffer.
pub(super) fn slots(block: &MoeBlock) -> u32 {
    block.m * block.top_k
}

/// Most tiles of up to `tokens` slots that any routing can make: each expert may leave one tile in part.
pub(super) fn most_tiles(block: &MoeBlock, tokens: u32) -> u32 {
    let slots = slots(block);
    slots.min(slots / tokens + block.local_experts)
}

/// Tiles on average under uniform routing, and the slots that each is padded to.
pub(super) struct AverageTiles {
    pub tiles: f64,
    pub width: f64,
}

impl Cut {
    /// Every tile padded to `tokens`.
    pub fn whole(tokens: u32) -> Self {
        Self { most: tokens, step: tokens }
    }

    /// What the experts of `block` come to. The rows of an expert vary like a Poisson count.
    pub fn average(self, block: &MoeBlock) -> AverageTiles {
        let touched = block.touched_experts();
        let mean = block.local_slots() / touched;
        let spread = mean.sqrt();
        // Five points of the normal curve, each standing for a fifth of the experts.
        let counts = [-1.4, -0.53, 0.0, 0.53, 1.4].map(|at: f64| (mean + at * spread).max(1.0));
        let tiles_of = |count: f64| (count / f64::from(self.most)).ceil();
        let tiles = counts.iter().map(|&count| tiles_of(count)).sum::<f64>() / 5.0;
        // Each cut falls on a step, so only an expert's last tile is padded.
        let padded = counts.iter().map(|count| self.padded(*count)).sum::<f64>() / 5.0;
        let most = f64::from(most_tiles(block, self.most));
        AverageTiles { tiles: (touched * tiles).min(most), width: padded / tiles }
    }

    fn padded(self, count: f64) -> f64 {
        (count / f64::from(self.step)).ceil() * f64::from(self.step)
    }
}

/// Slots from which another block is worth its reading of all of them.
const SLOTS_OF_BLOCK: u32 = 512;

/// Shared memory that every chip gives a block, bytes.
const ROOM_ANYWHERE: u64 = 48 << 10;

/// What the schedule has in shared memory besides: the sums of each warp.
const STATIC_BYTES: u64 = 12 * 32;

/// The element of parts of so many bytes.
pub(super) fn part_word(part_bytes: u32) -> &'static str {
    if part_bytes == 2 { "bf16" } else { "float" }
}

impl Schedule {
    /// Reserves room for `block` with these tiles.
    pub fn reserve(workspace: &mut Workspace, block: &MoeBlock, up: Cut, down: Cut) -> Self {
        let slots = u64::from(slots(block));
        let tile_bytes = |cut: Cut| 16 * u64::from(most_tiles(block, cut.most));
        Self {
            begin: workspace.take(4 * (u64::from(block.local_experts) + 1)),
            slot_of: workspace.take(4 * slots),
            up_tiles: workspace.take(tile_bytes(up)),
            down_tiles: workspace.take(tile_bytes(down)),
            tile_counts: workspace.take(8),
            hidden: workspace.take(2 * slots * u64::from(block.intermediate)),
            parts: workspace.take(4 * slots * u64::from(block.hidden)),
            up,
            down,
        }
    }

    /// Place of the number of slots that this rank has: where the positions of its last expert end.
    pub fn slot_count(&self, block: &MoeBlock) -> u64 {
        self.begin + 4 * u64::from(block.local_experts)
    }

    /// The list of tiles of gate-up or down, their count, and the slots in the order of their experts.
    pub fn lists(&self, is_down: bool) -> [Param; 3] {
        let (tiles, count) = match is_down {
            false => (self.up_tiles, self.tile_counts),
            true => (self.down_tiles, self.tile_counts + 4),
        };
        [tiles, count, self.slot_of].map(Param::Workspace)
    }

    /// Refuses more experts than the counters of one block of threads have room for.
    pub fn fits(block: &MoeBlock, arch: &ArchSpec) -> Result<(), String> {
        let (need, have) = (Self::smem_bytes(block) + STATIC_BYTES, arch.smem_per_block);
        if need <= u64::from(have) {
            return Ok(());
        }
        let experts = block.local_experts;
        Err(format!("the schedule of {experts} experts needs {need} B of shared memory, {} has {have} B", arch.name))
    }

    /// Warps of a block: threads for the slots and for the experts, which are scanned one a thread, as far as there is
    /// room for the counters of each warp.
    fn warps(block: &MoeBlock) -> u32 {
        let wanted = slots(block).max(block.local_experts).div_ceil(32).next_power_of_two().clamp(4, 32);
        let mut warps = wanted;
        while warps > 4 && Self::smem_of(block, warps) > ROOM_ANYWHERE {
            warps /= 2;
        }
        warps
    }

    /// Blocks that share the experts. Each reads all slots, so a few slots are read by one.
    fn blocks(block: &MoeBlock) -> u32 {
        (slots(block) / SLOTS_OF_BLOCK).clamp(1, block.local_experts.div_ceil(2))
    }

    fn smem_bytes(block: &MoeBlock) -> u64 {
        Self::smem_of(block, Self::warps(block))
    }

    /// Totals of the experts, where their positions and their tiles of both lists begin, counters of each warp and own
    /// expert.
    fn smem_of(block: &MoeBlock, warps: u32) -> u64 {
        let own = block.local_experts.div_ceil(Self::blocks(block));
        let (warps, experts) = (u64::from(warps), u64::from(block.local_experts));
        4 * (warps * u64::from(own) + 3 * (experts + 1) + experts)
    }

    /// The launch that sorts the slots.
    pub fn launch(&self, block: &MoeBlock) -> Launch {
        let slots = slots(block);
        let warps = Self::warps(block);
        let numbers = BTreeMap::from([("warps", Value::from(warps))]);
        Launch {
            kernel: Request {
                template: "moe_schedule",
                values: BTreeMap::from([("tile", numbers)]),
                wgmma_tokens: None,
            },
            grid: [Self::blocks(block), 1, 1],
            threads: warps * 32,
            smem_bytes: Self::smem_bytes(block) as u32,
            params: vec![
                Param::Operand(Operand::Experts),
                Param::Workspace(self.begin),
                Param::Workspace(self.slot_of),
                Param::Workspace(self.up_tiles),
                Param::Workspace(self.down_tiles),
                Param::Workspace(self.tile_counts),
                Param::TokensOnDevice,
                Param::Tokens,
                Param::Int(block.top_k as i32),
                Param::ExpertOffset,
                Param::Int(block.local_experts as i32),
                Param::Int(self.up.most as i32),
                Param::Int(self.up.step as i32),
                Param::Int(self.down.most as i32),
                Param::Int(self.down.step as i32),
            ],
            work: Work {
                blocks: f64::from(Self::blocks(block)),
                memory_bytes: 12.0 * f64::from(slots),
                l2_bytes: 12.0 * f64::from(slots) * f64::from(Self::blocks(block)),
                bytes_in_flight: f64::from(warps * 128),
                // Walking twice; placing the slots of its own experts.
                block_issues: f64::from(slots.div_ceil(32)) * (40.0 + 80.0 / f64::from(Self::blocks(block)))
                    + f64::from(block.local_experts),
                tail_steps: 3.0,
                registers: 32,
                ..Work::default()
            },
        }
    }

    /// The launch that adds the slots of each token, whose parts are f32.
    pub fn combine(&self, block: &MoeBlock) -> Launch {
        self.combine_parts(block, 4)
    }

    /// The same for parts of `part_bytes`: f32, or BF16.
    pub fn combine_parts(&self, block: &MoeBlock, part_bytes: u32) -> Launch {
        let part = BTreeMap::from([("part", Value::from(part_word(part_bytes)))]);
        let threads = (block.hidden / 4).next_multiple_of(32).clamp(32, 256);
        let numbers = BTreeMap::from([("threads", Value::from(threads))]);
        let columns = block.hidden.div_ceil(4 * threads);
        let bytes = f64::from(slots(block)) * f64::from(block.hidden) * f64::from(part_bytes);
        Launch {
            kernel: Request {
                template: "moe_combine",
                values: BTreeMap::from([("problem", part), ("tile", numbers)]),
                wgmma_tokens: None,
            },
            grid: [columns, block.m, 1],
            threads,
            smem_bytes: 0,
            params: vec![
                Param::Workspace(self.parts),
                Param::Operand(Operand::Experts),
                Param::Operand(Operand::Output),
                Param::TokensOnDevice,
                Param::OutputStride,
                Param::Tokens,
                Param::Int(block.top_k as i32),
                Param::Int(block.hidden as i32),
                Param::ExpertOffset,
                Param::Int(block.local_experts as i32),
            ],
            work: Work {
                blocks: f64::from(columns * block.m),
                memory_bytes: bytes,
                l2_bytes: bytes,
                bytes_in_flight: f64::from(threads * 4 * part_bytes * block.top_k),
                block_issues: f64::from(threads / 32 * block.top_k * 12),
                tail_steps: 1.0,
                registers: 32,
                ..Work::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::GpuSpec;

    #[test]
    fn many_experts_cost_the_schedule_warps_and_not_its_room() {
        let arch = GpuSpec::named("h100").unwrap().arch;
        let warps = ["moe nvfp4 256 top4 4096x2048 m128", "moe nvfp4 768 top4 4096x2048 m128"].map(|text| {
            let problem: Problem = text.parse().unwrap();
            let block = block_of(&problem);
            assert!(Schedule::smem_bytes(block) <= ROOM_ANYWHERE && Schedule::fits(block, arch).is_ok(), "{text}");
            Schedule::warps(block)
        });
        assert_eq!(warps, [16, 8]);
        let most: Problem = "moe nvfp4 2048 top4 4096x2048 m128".parse().unwrap();
        assert!(Schedule::fits(block_of(&most), arch).is_ok());
    }
}
