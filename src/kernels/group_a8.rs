//! Geometry of `templates/lib/warpgroup_multiply_a8.cuh`: the same sizes that the device asserts.

use crate::arch::GpuSpec;
use crate::quant::{PackedLayout, WeightFormat};

/// A block of warpgroups that multiply FP8 on wgmma from a ring of stages.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupA8 {
    pub layout: PackedLayout,
    pub consumers: u32,
    pub tokens: u32,
    pub block_k: u32,
    pub stages: u32,
    /// k of a chain of tensor-core sums; 0: all.
    pub promote: u32,
    /// Threads that feed the ring: a warp, two, or a warpgroup that gives its registers away.
    pub producers: u32,
    /// Room of a consumer for results on their way out; none where they go through the ring.
    pub staging_bytes: u32,
    /// Blocks that share their tokens.
    pub cluster: u32,
}

/// f32 sums of a thread for `tokens`: twice where chains are promoted.
pub(super) fn sums_of(tokens: u32, promote: u32) -> u32 {
    if promote > 0 { tokens } else { tokens / 2 }
}

impl GroupA8 {
    pub fn rows(&self) -> u32 {
        self.consumers * 64
    }

    /// Tiles of rows of one group of heads, whole clusters.
    pub fn row_tiles(&self, n: u32) -> u32 {
        n.div_ceil(64).div_ceil(self.consumers).next_multiple_of(self.cluster)
    }

    pub fn threads(&self) -> u32 {
        self.consumers * 128 + self.producers
    }

    fn slabs(&self) -> u32 {
        self.block_k / self.layout.slab_k() as u32
    }

    fn weight_bytes(&self) -> u32 {
        self.consumers * self.slabs() * self.layout.slab_bytes() as u32
    }

    pub fn stage_bytes(&self) -> u32 {
        (self.block_k * self.tokens + self.weight_bytes()).next_multiple_of(1024)
    }

    /// The products of NVFP4's scales, eight bytes for each.
    fn table_bytes(&self) -> u32 {
        if self.layout.format() == WeightFormat::Nvfp4 { 256 * 8 } else { 0 }
    }

    /// Dynamic shared memory of a block, bytes: the ring, room for results, barriers, room for a flag, the table.
    pub fn smem_bytes(&self) -> u32 {
        self.stages * (self.stage_bytes() + 16) + self.consumers * self.staging_bytes + 16 + self.table_bytes()
    }

    /// Weight and token bytes that one block keeps on their way.
    pub fn bytes_in_flight(&self) -> u32 {
        (self.stages - 1) * (self.block_k * self.tokens + self.weight_bytes())
    }

    pub fn stages_of(&self, k: u32) -> u32 {
        (self.layout.slabs(k as usize) as u32).div_ceil(self.slabs())
    }

    /// Whether a warpgroup of producers gives registers to two or three of consumers.
    fn moves_registers(&self) -> bool {
        self.producers == 128 && self.consumers >= 2
    }

    /// Registers of a thread, from what ptxas has given tiles of every size: sums, twice with promotion.
    pub fn registers(&self) -> u32 {
        let sums = sums_of(self.tokens, self.promote);
        match (self.moves_registers(), self.consumers) {
            (true, 2) => 168,
            (true, _) => 128,
            // A block that goes from tile to tile keeps more beside its sums, and where chains end more still.
            (false, _) if self.staging_bytes > 0 && self.promote > 0 => (88 + sums).next_multiple_of(8),
            (false, _) if self.staging_bytes > 0 => (80 + sums).next_multiple_of(8),
            (false, _) => (72 + sums).next_multiple_of(8),
        }
    }

    pub fn blocks_per_sm(&self, gpu: &GpuSpec) -> u32 {
        let threads = self.threads().next_multiple_of(128);
        gpu.blocks_per_sm(threads, self.registers(), self.smem_bytes()).max(1)
    }

    /// Warp instructions that a block issues for `k` of its rows: decoding, wgmma, promotion.
    pub fn issues(&self, k: f64) -> f64 {
        let decode = match self.layout.format() {
            WeightFormat::Nvfp4 => 2.0 * 17.5,
            WeightFormat::Mxfp4 => 2.0 * 15.0,
            WeightFormat::Fp8 | WeightFormat::Bf16 => 2.0 * 2.5,
        };
        let promotions = match self.promote {
            0 => 0.0,
            chain => k / f64::from(chain) * f64::from(self.tokens) / 2.0,
        };
        f64::from(self.consumers) * 4.0 * (k / 32.0 * (decode + WGMMA_ISSUES) + promotions)
    }

    /// Bytes of `k` of a block's rows.
    pub fn weight_bytes_of(&self, k: f64) -> f64 {
        k / self.layout.slab_k() as f64 * f64::from(self.consumers) * self.layout.slab_bytes() as f64
    }

    pub fn fits_shared_memory(&self, gpu: &GpuSpec) -> Result<(), String> {
        let (need, have) = (self.smem_bytes(), gpu.arch.smem_per_block);
        if need <= have {
            return Ok(());
        }
        Err(format!("{} stages need {need} B of shared memory, {} has {have} B", self.stages, gpu.name))
    }

    /// Refuses more sums than the registers of a block that goes from tile to tile hold beside two sets of operands.
    pub fn fits_registers(&self) -> Result<(), String> {
        let most = match (self.consumers, self.moves_registers()) {
            (1, _) | (2, true) => 128,
            (2, false) => 80,
            (3, true) => 64,
            (3, false) => 32,
            _ => 0,
        };
        let sums = sums_of(self.tokens, self.promote);
        if sums <= most {
            return Ok(());
        }
        Err(format!(
            "{sums} sums a thread take more registers than {} consumers and {} producers share",
            self.consumers, self.producers
        ))
    }
}

/// Descriptor arithmetic, fences and barrier traffic for one step of 32 k.
const WGMMA_ISSUES: f64 = 4.0;
