//! Checkpoint matrices to the packed layout, on the GPU; byte for byte what [`quant::pack`](crate::quant::pack())
//! makes.

use std::collections::BTreeMap;

use super::plan::word_of;
use crate::codegen::Request;
use crate::quant::{Activations, PackedLayout, WeightFormat};

/// The kernel that packs to `layout`, 256 threads a block: `(codes, scales, in_use, packed, n, k, is_gate_up, shift)`.
pub fn pack(layout: PackedLayout) -> Request {
    let mut request = request("pack", layout.format());
    let is_a8 = ("is_a8", (layout.activations() == Activations::A8).into());
    request.values.entry("problem").or_default().extend([is_a8]);
    request
}

/// Blocks of [`pack`] for a matrix `[n, k]`: a thread writes the 16 bytes of a lane, or one scale byte.
pub fn pack_blocks(layout: PackedLayout, n: usize, k: usize) -> u32 {
    let units = layout.slab_bytes() - layout.codes_bytes() + layout.codes_bytes() / 16;
    (n.div_ceil(64) * layout.slabs(k) * units).div_ceil(256) as u32
}

/// The kernel that looks for scales in use and for what is not finite:
/// `(codes, scales, in_use, range, n_blocks, n, k, half_rows)`.
pub fn pack_scan(format: WeightFormat) -> Request {
    request("pack_scan", format)
}

/// What `range` of [`pack_scan`] must hold before the launch: largest and smallest exponent byte in use, number of
/// faults, place of the first.
pub const SCAN_RANGE_START: [i32; 4] = [-1, 256, 0, i32::MAX];

fn request(template: &'static str, format: WeightFormat) -> Request {
    let problem = BTreeMap::from([("weights", word_of(format).into())]);
    Request { template, values: BTreeMap::from([("problem", problem)]), wgmma_tokens: None }
}
