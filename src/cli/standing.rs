//! How a record stands today: what is known of its GPU, whether its tile is still one, whether its kernels changed.

use crate::arch::{GpuIdentity, GpuSpec};
use crate::dispatch::kernels_hash;
use crate::store::Record;

/// Facts about the GPU that a record names; `None` for a product that this version does not know.
pub fn spec_of(gpu: &GpuIdentity) -> Option<GpuSpec> {
    GpuSpec::of_product(&gpu.product).map(|known| GpuSpec { identity: gpu.clone(), ..known.clone() })
}

/// Whether the kernels of `record` have changed since it was written. Of an unknown GPU nobody can say.
pub fn is_stale(record: &Record) -> bool {
    let kernels = |gpu: GpuSpec| kernels_hash(&record.problem, &record.tile, &gpu).unwrap_or_default();
    spec_of(&record.gpu).is_some_and(|gpu| kernels(gpu) != record.toolchain.kernels)
}
