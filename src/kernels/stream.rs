//! Geometry of `templates/lib/warp_stream.cuh` and `block_sum.cuh`: the same sizes that the device asserts.

use super::space::number;
use crate::problem::Tile;
use crate::quant::{Activations, PackedLayout, WeightFormat};

/// A block of warps that stream packed weights, each its own range of slabs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    pub layout: PackedLayout,
    pub row_tiles: u32,
    pub tokens: u32,
    pub warps: u32,
    pub slabs: u32,
    pub stages: u32,
}

impl Stream {
    /// The block that `tile` describes, its numbers named `<prefix>row_tiles` and so on.
    pub fn of(tile: &Tile, format: WeightFormat) -> Self {
        Self {
            layout: PackedLayout::of(format, Activations::A16),
            row_tiles: number(tile, "row_tiles"),
            tokens: number(tile, "tokens"),
            warps: number(tile, "warps"),
            slabs: number(tile, "slabs"),
            stages: number(tile, "stages"),
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
        (self.slabs * (self.slab_bytes() + token_bytes)).next_multiple_of(128)
    }

    /// Dynamic shared memory of a block, bytes.
    pub fn smem_bytes(&self) -> u32 {
        let rings = self.warps * self.stages * self.stage_bytes();
        let sums = self.warps * self.token_tiles() * 8 * (self.rows() + 4) * 4;
        rings.max(sums)
    }

    /// Weight bytes that one block keeps on their way.
    pub fn bytes_in_flight(&self) -> u32 {
        self.warps * (self.stages - 1) * self.slabs * self.slab_bytes()
    }

    /// Registers of a thread, from what ptxas has given tiles of every size.
    pub fn registers(&self) -> u32 {
        let (rows, tokens) = (self.row_tiles, self.token_tiles());
        (48 + 4 * rows * tokens + 6 * tokens + 10 * rows).next_multiple_of(8)
    }

    /// Warp instructions that a block issues for `slabs` slabs of each of its row tiles.
    pub fn issues(&self, slabs: f64) -> f64 {
        let steps = f64::from(self.layout.slab_k() as u32 / 16);
        let decode = decode_issues(self.layout.format());
        let tokens = f64::from(self.token_tiles());
        let copies = f64::from(self.slab_bytes()) / 512.0 + f64::from(self.tokens) * steps / 16.0 * 4.0;
        let per_slab = f64::from(self.row_tiles) * steps * (decode + tokens) + steps / 2.0 * tokens + copies;
        slabs * per_slab + slabs / f64::from(self.slabs) * STAGE_ISSUES
    }
}

/// Instructions for the eight weights of a lane in one step of 16 k, counted in SASS: docs/packed_layout.md.
pub(super) fn decode_issues(format: WeightFormat) -> f64 {
    match format {
        WeightFormat::Nvfp4 => 23.5,
        WeightFormat::Mxfp4 => 21.5,
        WeightFormat::Fp8 => 19.1,
        WeightFormat::Bf16 => 1.0,
    }
}

/// Waiting, refilling and addressing of one stage.
const STAGE_ISSUES: f64 = 30.0;
