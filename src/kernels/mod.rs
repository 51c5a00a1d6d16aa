//! What serves a problem: families of kernels, each with its axes, its rules and its launches.
//!
//! A family declares a space (axes times rules) and turns a tile of it into a [`Plan`]: launches with their geometry,
//! parameters by name, workspace, and what each block has to do (for prediction). Nothing here touches a GPU.

mod convert;
mod dense_mma;
mod dense_persistent;
mod dense_persistent_a8;
mod dense_wgmma;
mod dense_wgmma_a8;
mod group;
mod group_a8;
mod hc_mix;
mod hc_mix_mma;
mod moe;
mod moe_mma;
mod moe_staged;
mod moe_wgmma;
mod moe_wgmma_a8;
mod pack;
mod plan;
pub mod runner;
mod space;
mod stream;
mod tools;

pub use convert::Quantise;
pub use dense_mma::DenseMma;
pub use dense_persistent::DensePersistent;
pub use dense_persistent_a8::DensePersistentA8;
pub use dense_wgmma::DenseWgmma;
pub use dense_wgmma_a8::DenseWgmmaA8;
pub use hc_mix::{HcMix, mix_splits};
pub use hc_mix_mma::HcMixMma;
pub use moe_mma::MoeMma;
pub use moe_staged::{MoeStaged, MoeWalk};
pub use moe_wgmma::MoeWgmma;
pub use moe_wgmma_a8::MoeWgmmaA8;
pub use pack::{SCAN_RANGE_START, pack, pack_blocks, pack_scan};
pub use plan::{BoxBase, BoxMap, Launch, Operand, Param, Plan, Work};
pub use space::{Axis, Rejection, Rule, Space, space};
pub use tools::{
    COMPARE_BLOCKS, COMPARE_FIELDS, FillKind, compare, fill, probe, random_codes, random_fp8_token_mean_square,
    random_largest, random_mean_square, random_scales, reference, reference_fp8, reference_mix, reference_moe,
    sabotage, stream,
};

use crate::arch::{ArchSpec, GpuSpec};
use crate::problem::{Activations, BUCKETS, Problem, Tile};

/// Kernels that share a template and a search space.
pub trait Family: Sync {
    /// First word of its tiles.
    fn name(&self) -> &'static str;

    /// Whether it can serve `problem` on chips of class `arch`.
    ///
    /// # Errors
    /// The reason, as a sentence.
    fn serves(&self, problem: &Problem, arch: &ArchSpec) -> Result<(), String>;

    /// The freedoms of a tile for `problem`. A value that only makes sense for another problem is left out here; what
    /// depends on several axes or on the GPU is a rule.
    fn axes(&self, problem: &Problem, arch: &ArchSpec) -> Vec<Axis>;

    /// What a tile must satisfy, each with a name and a sentence.
    fn rules(&self) -> &'static [Rule];

    /// The tile to start from, without any measurement: never the worst, always valid.
    fn default_tile(&self, problem: &Problem, gpu: &GpuSpec) -> Tile;

    /// The launches of `tile`, which has passed the rules.
    fn plan(&self, problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Plan;

    /// Tiles with the same id give the same bits for a problem of the same n and k.
    fn numerics(&self, problem: &Problem, tile: &Tile) -> String;
}

/// Every family. A new one is a file here, a folder in `templates/` and a line in this list.
pub static FAMILIES: [&dyn Family; 13] = [
    &DenseMma,
    &DenseWgmma,
    &DensePersistent,
    &DenseWgmmaA8,
    &DensePersistentA8,
    &MoeWalk,
    &MoeStaged,
    &MoeMma,
    &MoeWgmma,
    &MoeWgmmaA8,
    &Quantise,
    &HcMix,
    &HcMixMma,
];

/// The family of that name.
pub fn family(name: &str) -> Option<&'static dyn Family> {
    FAMILIES.into_iter().find(|family| family.name() == name)
}

/// The families that serve `problem` on `arch`, in the order of [`FAMILIES`].
pub fn serving(problem: &Problem, arch: &ArchSpec) -> Vec<&'static dyn Family> {
    FAMILIES.into_iter().filter(|family| family.serves(problem, arch).is_ok()).collect()
}

/// Why no family serves `problem` on `arch`: each family's sentence.
pub fn refusals(problem: &Problem, arch: &ArchSpec) -> Vec<String> {
    let refusal = |family: &&dyn Family| Some(format!("{}: {}", family.name(), family.serves(problem, arch).err()?));
    FAMILIES.iter().filter_map(refusal).collect()
}

/// The tile that is used where nothing is known: the default of the family that suits the problem's size.
pub fn default_tile(problem: &Problem, gpu: &GpuSpec) -> Option<Tile> {
    let families = serving(problem, gpu.arch);
    let preferred = families.iter().find(|family| match problem {
        Problem::Dense(dense) => match dense.activations {
            Activations::A8 => family.name() == "dense_wgmma_a8",
            _ => (family.name() == "dense_wgmma") == (dense.m > 32),
        },
        Problem::MoeBlock(block) => match block.m {
            0..=4 => family.name() == "moe_walk",
            5..=32 => family.name() == "moe_staged",
            33..=128 => family.name() == "moe_mma",
            _ => family.name() == "moe_wgmma",
        },
        Problem::Convert(_) | Problem::StreamMix(_) => true,
    });
    Some(preferred.or(families.last())?.default_tile(problem, gpu))
}

/// The tile that is used where a token must get the same bits whatever `m` is: that of all buckets of `problem` has one
/// [numerics](Family::numerics). Slower where another family or cut would suit the size better.
pub fn invariant_tile(problem: &Problem, gpu: &GpuSpec) -> Option<Tile> {
    let name = match problem {
        Problem::Dense(_) => "dense_mma",
        Problem::MoeBlock(_) => "moe_mma",
        // Rows are converted one by one.
        Problem::Convert(_) => return default_tile(problem, gpu),
        Problem::StreamMix(mix) => return Some(HcMix::invariant_tile(mix)),
    };
    let family = family(name).filter(|family| family.serves(problem, gpu.arch).is_ok())?;
    let own = family.default_tile(problem, gpu);
    // Ranges of k follow from the warps, so these are what the largest bucket has room for.
    let largest = problem.with_m(BUCKETS[BUCKETS.len() - 1]);
    family.serves(&largest, gpu.arch).ok()?;
    let largest = family.default_tile(&largest, gpu);
    let warps = largest.number("warps")?;
    let stages = [own.number("stages")?, 6, 4, 3];
    let tiles = stages.map(|stages| own.with("warps", warps).with("stages", stages));
    tiles.into_iter().find(|tile| plan(problem, tile, gpu).is_ok())
}

/// Checks `tile` against its family's rules and plans it.
///
/// # Errors
/// [`Rejection`] names the rule, or says that the family or a number is not there.
pub fn plan(problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Result<Plan, Rejection> {
    let family = family(tile.family()).ok_or_else(|| Rejection::unknown_family(tile))?;
    family.serves(problem, gpu.arch).map_err(|reason| Rejection { rule: "serves", reason })?;
    space::check(family, problem, tile, gpu)?;
    Ok(family.plan(problem, tile, gpu))
}
