//! Geometry of `templates/lib/warpgroup_multiply.cuh`: the same sizes that the device asserts.

use super::stream::decode_issues;
use crate::arch::GpuSpec;
use crate::quant::PackedLayout;

/// A block of warpgroups that multiply on wgmma from a ring of stages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub layout: PackedLayout,
    pub consumers: u32,
    pub tokens: u32,
    pub block_k: u32,
    pub stages: u32,
    /// Threads that feed the ring: a warp, two, or a warpgroup that gives its registers away.
    pub producers: u32,
    /// Room of a consumer for results on their way out; none where they go through the ring.
    pub staging_bytes: u32,
}

impl Group {
    pub fn rows(&self) -> u32 {
        self.consumers * 64
    }

    pub fn threads(&self) -> u32 {
        self.consumers * 128 + self.producers
    }

    /// Slabs of a stage.
    fn slabs(&self) -> u32 {
        self.block_k / self.layout.slab_k() as u32
    }

    fn weight_bytes(&self) -> u32 {
        self.consumers * self.slabs() * self.layout.slab_bytes() as u32
    }

    fn stage_bytes(&self) -> u32 {
        (self.block_k / 64 * self.tokens * 128 + self.weight_bytes()).next_multiple_of(1024)
    }

    /// Dynamic shared memory of a block, bytes: the ring, room for results, barriers, and room for a flag.
    pub fn smem_bytes(&self) -> u32 {
        self.stages * (self.stage_bytes() + 16) + self.consumers * self.staging_bytes + 16
    }

    /// Weight and token bytes that one block keeps on their way.
    pub fn bytes_in_flight(&self) -> u32 {
        (self.stages - 1) * (self.block_k * self.tokens * 2 + self.weight_bytes())
    }

    /// Stages for a reduction over `k`.
    pub fn stages_of(&self, k: u32) -> u32 {
        (self.layout.slabs(k as usize) as u32).div_ceil(self.slabs())
    }

    /// Registers of a thread, from what ptxas has given tiles of every size.
    pub fn registers(&self) -> u32 {
        // The blocks of a stage are unrolled, and ptxas works ahead on them.
        let ahead = if self.block_k > 128 { 16 } else { 0 };
        match (self.moves_registers(), self.consumers) {
            (true, 2) => 168,
            (true, _) => 128,
            // A block that goes from tile to tile keeps more beside its sums.
            (false, _) if self.staging_bytes > 0 => (88 + ahead + self.tokens / 2).next_multiple_of(8),
            (false, _) => (72 + ahead + self.tokens / 2).next_multiple_of(8),
        }
    }

    /// Whether a warpgroup of producers gives registers to two or three of consumers.
    fn moves_registers(&self) -> bool {
        self.producers == 128 && self.consumers >= 2
    }

    /// Blocks that fit on an SM side by side, for `__launch_bounds__`.
    pub fn blocks_per_sm(&self, gpu: &GpuSpec) -> u32 {
        // A warp scheduler has a quarter of the registers: an odd warp fills a whole row of four.
        let threads = self.threads().next_multiple_of(128);
        gpu.blocks_per_sm(threads, self.registers(), self.smem_bytes()).max(1)
    }

    /// Warp instructions that a block issues for decoding `k` of its rows and launching wgmma.
    pub fn issues(&self, k: f64) -> f64 {
        let steps = k / 16.0;
        f64::from(self.consumers) * 4.0 * steps * (decode_issues(self.layout.format()) + WGMMA_ISSUES)
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

    pub fn fits_registers(&self) -> Result<(), String> {
        let most = match (self.consumers, self.moves_registers()) {
            (1, _) | (2, true) => 256,
            (2, false) => 192,
            (3, true) => 160,
            (3, false) => 64,
            (4, _) if self.block_k > 128 => 0,
            (4, false) if self.staging_bytes == 0 => 64,
            (4, false) => 32,
            _ => 0,
        };
        if self.tokens <= most {
            return Ok(());
        }
        Err(format!(
            "{} tokens take more registers than {} consumers and {} producers share",
            self.tokens, self.consumers, self.producers
        ))
    }

    pub fn k_is_whole_slabs(&self) -> Result<(), String> {
        if self.block_k.is_multiple_of(self.layout.slab_k() as u32) {
            return Ok(());
        }
        Err(format!("a stage of {} k is no whole number of slabs of {}", self.block_k, self.layout.slab_k()))
    }
}

/// Tokens of a block that make sense for about `m` tokens.
pub(super) fn token_choices(m: u32) -> Vec<u32> {
    let whole = m.next_power_of_two().clamp(16, 256);
    let choices: &[u32] = match whole {
        16 => &[16],
        32 => &[16, 32],
        64 => &[32, 64],
        128 => &[32, 64, 128],
        _ if m <= 256 => &[64, 96, 128, 256],
        // Steps of 32: which one fills the last wave of blocks depends on n.
        _ => &[64, 96, 128, 160, 192, 224, 256],
    };
    choices.to_vec()
}

/// Descriptor arithmetic, fences and barrier traffic for one step of 16 k.
const WGMMA_ISSUES: f64 = 4.0;
