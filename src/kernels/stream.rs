//! Geometry of `templates/lib/warp_stream.cuh` and `block_sum.cuh`: the same sizes that the device asserts.

use super::space::number;
use crate::problem::Tile;
use crate::quant::{PackedLayout, WeightFormat};

/// A block of warps that stream packed weights, each its own range of slabs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    pub layout: PackedLayout,
    pub row_tiles: u32,
    pub tokens: u32,
    pub warps: u32,
    pub slabs: u32,
    pub stages: u32,
    /// What other blocks of a cluster send, behind everything else.
    pub received_bytes: u32,
}

impl Stream {
    /// The block that `tile` describes, its numbers named `<prefix>row_tiles` and so on.
    pub fn of(tile: &Tile, layout: PackedLayout) -> Self {
        Self {
            layout,
            row_tiles: number(tile, "row_tiles"),
            tokens: number(tile, "tokens"),
            warps: number(tile, "warps"),
            slabs: number(tile, "slabs"),
            stages: number(tile, "stages"),
            received_bytes: 0,
        }
    }

    pub fn rows(&self) -> u32 {
        self.row_tiles * 16
    }

    pub fn threads(&self) -> u32 {
        self.warps * 32
    }

    /// Token tiles of the tensor-core instruction, eight tokens each.
    fn token_tiles(&self) -> u32 {
        self.tokens.div_ceil(8)
    }

    /// Codes and scales of one slab for this block's rows, bytes.
    fn slab_bytes(&self) -> u32 {
        self.row_tiles * self.layout.slab_bytes() as u32 / 4
    }

    fn stage_bytes(&self) -> u32 {
        let token_bytes = self.tokens * (self.layout.slab_k() as u32 * 2 + 16);
        let weight_bytes = if self.is_in_registers() { 0 } else { self.slab_bytes() };
        (self.slabs * (weight_bytes + token_bytes)).next_multiple_of(128)
    }

    /// Dynamic shared memory of a block, bytes.
    pub fn smem_bytes(&self) -> u32 {
        let rings = self.warps * self.stages * self.stage_bytes();
        let sums = self.warps * self.token_tiles() * 8 * (self.rows() + 4) * 4;
        rings.max(sums) + self.received_bytes
    }

    /// Whether codes go from memory to registers, without a ring.
    pub fn is_in_registers(&self) -> bool {
        self.stages == 1
    }

    /// Weight bytes that one block keeps on their way. What goes straight to registers arrives sooner than what passes
    /// a ring, and is asked for again at once: measured, it counts twice.
    pub fn bytes_in_flight(&self) -> u32 {
        let deep = if self.is_in_registers() { 2 } else { self.stages - 1 };
        self.warps * deep * self.slabs * self.slab_bytes()
    }

    /// Registers of a thread, from what ptxas has given tiles of every size.
    pub fn registers(&self) -> u32 {
        let (rows, tokens) = (self.row_tiles, self.token_tiles());
        if self.is_in_registers() {
            let multiplying = 28 + self.slab_registers() + 4 * rows * tokens + 4 * tokens + self.first_pieces();
            return multiplying.max(self.placing_registers()).next_multiple_of(8);
        }
        (48 + 4 * rows * tokens + 6 * tokens + 10 * rows).next_multiple_of(8)
    }

    /// Registers of a thread for the slabs that are on their way: 16 bytes a chunk, and scales.
    fn slab_registers(&self) -> u32 {
        self.slabs * self.row_tiles * (4 * self.chunks() + 2)
    }

    /// Registers of a thread while the first tokens, too, are on their way: below this ptxas spills.
    fn placing_registers(&self) -> u32 {
        let scales = (2 * self.layout.slab_groups() as u32).div_ceil(4);
        let slabs = self.slabs * self.row_tiles * (4 * self.chunks() + scales);
        let sums = 4 * self.row_tiles * self.token_tiles();
        slabs + 4 * self.first_pieces() + sums + 5 * self.token_tiles() + 2 * self.slabs
    }

    /// Pieces of 16 bytes that a lane brings of the first tokens.
    fn first_pieces(&self) -> u32 {
        (self.slabs * self.tokens * self.layout.slab_k() as u32 / 8).div_ceil(32)
    }

    /// Chunks of 16 bytes that a lane has of a slab and row tile.
    fn chunks(&self) -> u32 {
        (self.layout.slab_k() / self.layout.chunk_k()) as u32
    }

    /// What does not go together with or without a ring.
    pub fn fits_its_way(&self) -> Result<(), String> {
        match (self.is_in_registers(), self.slabs) {
            (false, 1 | 2) => Ok(()),
            (false, slabs) => Err(format!("a stage of {slabs} slabs is no better than more stages")),
            (true, 1) => Err("with one slab on its way a warp waits for each".to_string()),
            (true, _) if self.slab_registers() > MAX_SLAB_REGISTERS => {
                Err(format!("the slabs of a warp need {} registers a thread", self.slab_registers()))
            }
            (true, slabs) if slabs * self.tokens > MAX_FIRST_TOKENS => {
                Err(format!("{slabs} slabs of {} tokens are too much to bring through registers", self.tokens))
            }
            (true, _) => Ok(()),
        }
    }

    /// Warp instructions that a block issues for `slabs` slabs of each of its row tiles.
    pub fn issues(&self, slabs: f64) -> f64 {
        let steps = f64::from(self.layout.slab_k() as u32 / 16);
        let decode = decode_issues(self.layout.format());
        let tokens = f64::from(self.token_tiles());
        let copies = f64::from(self.slab_bytes()) / 512.0 + f64::from(self.tokens) * steps / 16.0 * 4.0;
        let stage_issues = if self.is_in_registers() { STAGE_ISSUES / 2.0 } else { STAGE_ISSUES };
        let per_slab = f64::from(self.row_tiles) * steps * (decode + tokens) + steps / 2.0 * tokens + copies;
        slabs * per_slab + slabs / f64::from(self.slabs) * stage_issues
    }
}

/// Instructions for the eight weights of a lane in one step of 16 k, counted in SASS: docs/packed_layout.md.
pub(super) fn decode_issues(format: WeightFormat) -> f64 {
    match format {
        WeightFormat::Nvfp4 => 17.5,
        WeightFormat::Mxfp4 => 16.5,
        WeightFormat::Fp8 => 15.1,
        WeightFormat::Bf16 => 1.0,
    }
}

/// Waiting, refilling and addressing of one stage.
const STAGE_ISSUES: f64 = 30.0;

/// Registers of a thread for slabs beyond which nothing else has room.
const MAX_SLAB_REGISTERS: u32 = 112;

/// Slabs times tokens that a warp brings at once before its first multiplication.
const MAX_FIRST_TOKENS: u32 = 32;
