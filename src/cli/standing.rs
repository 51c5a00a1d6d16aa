//! How a record stands today: what is known of its GPU, whether its tile is still one, whether its kernels changed.

use super::context::Paths;
use crate::arch::{GpuIdentity, GpuSpec};
use crate::dispatch::kernels_hash;
use crate::kernels;
use crate::problem::{Problem, Tile};
use crate::store::{Current, Entry, Record};

/// What can be said of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its kernels are those of today.
    Current,
    /// It is still used, and is to be measured again: why.
    Stale(String),
    /// Its tile is none any more: why.
    Broken(String),
    /// Its GPU is not known to this version.
    Unknown,
}

/// How `record` stands, with the NVRTC of `nvrtc` if there is one.
pub fn standing(record: &Record, nvrtc: Option<&str>) -> Standing {
    let Some(gpu) = spec_of(&record.gpu) else { return Standing::Unknown };
    if let Err(rejection) = kernels::plan(&record.problem, &record.tile, &gpu) {
        return Standing::Broken(format!("expected a tile of {}, found `{}`: {rejection}", gpu.name, record.tile));
    }
    if record.layout != record.problem.layout() {
        let (expected, found) = (record.problem.layout(), &record.layout);
        return Standing::Stale(format!("weights are packed as {expected} now, it was measured with {found}"));
    }
    match current(nvrtc, &gpu, |current| Entry::of(record).stale(current)) {
        Some(stale) => Standing::Stale(stale.to_string()),
        None => Standing::Current,
    }
}

/// What `ask` answers, told what this version makes of tiles on `gpu` with the NVRTC of `nvrtc` if there is one.
pub fn current<T>(nvrtc: Option<&str>, gpu: &GpuSpec, ask: impl FnOnce(&Current<'_>) -> T) -> T {
    let kernels = |problem: &Problem, tile: &Tile| kernels_hash(problem, tile, gpu);
    let is_valid = |problem: &Problem, tile: &Tile| kernels::plan(problem, tile, gpu).is_ok();
    ask(&Current { nvrtc, kernels: &kernels, is_valid: &is_valid })
}

/// Whether the kernels of `record` have changed since it was written. Of an unknown GPU nobody can say.
pub fn is_stale(record: &Record) -> bool {
    !matches!(standing(record, None), Standing::Current | Standing::Unknown)
}

/// Version of the NVRTC that a run here would use; nothing is fetched.
pub fn nvrtc(paths: &Paths) -> Option<String> {
    paths.search.find().ok().flatten().map(|(nvrtc, _)| nvrtc.version())
}

/// Facts about the GPU that a record names; `None` for a product that this version does not know.
pub fn spec_of(gpu: &GpuIdentity) -> Option<GpuSpec> {
    GpuSpec::of_product(&gpu.product).map(|known| GpuSpec { identity: gpu.clone(), ..known.clone() })
}
