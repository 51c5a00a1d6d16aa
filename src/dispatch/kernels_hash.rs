//! What a tile's kernels are, in sixteen digits: a record with other digits is stale.

use crate::arch::GpuSpec;
use crate::codegen;
use crate::kernels;
use crate::problem::{Problem, Tile};

/// Hash of the rendered texts of all kernels of `tile`; `None` if the tile is not valid any more.
pub fn kernels_hash(problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Option<String> {
    let plan = kernels::plan(problem, tile, gpu).ok()?;
    let mut hasher = blake3::Hasher::new();
    for request in plan.kernels() {
        let source = codegen::render(request, gpu.arch, &gpu.target).ok()?;
        hasher.update(source.hash.as_bytes());
    }
    Some(hasher.finalize().to_hex()[..16].to_string())
}
