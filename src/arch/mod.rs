//! What a GPU can do: plain facts, read from `arch.toml` (a class of chips) and `gpu.toml` (one product).
//!
//! No CUDA call is made here. Rules ask the fields of [`ArchSpec`], never its name, so a new architecture is a new
//! folder in `templates/arch/` and a new product a new folder in `tuning_db/`, and no line of Rust.

mod gpu;

pub(crate) use gpu::TUNING_DB;
pub use gpu::{GpuIdentity, GpuSpec, UnknownGpu};

use std::sync::LazyLock;

use include_dir::{Dir, include_dir};
use serde::Deserialize;

/// What one class of chips offers a kernel. Source of every number: the comment beside it in `arch.toml`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchSpec {
    /// Folder name in `templates/arch/`, such as `sm90a`.
    pub name: String,
    /// NVIDIA's name of the generation.
    pub generation: String,
    /// The class whose headers are used where this one has none of its own.
    #[serde(default)]
    pub inherits: Option<String>,
    /// NVRTC targets of the class, such as `sm_100a` and `sm_103a`.
    pub targets: Vec<String>,
    /// Major compute capability, to find the class of a live device.
    pub compute_major: u32,
    /// Largest dynamic shared memory of one block, bytes.
    pub smem_per_block: u32,
    /// Shared memory of one SM, bytes.
    pub smem_per_sm: u32,
    /// Shared memory that the driver adds to each block, bytes.
    pub smem_reserved_per_block: u32,
    /// 32-bit registers of one SM.
    pub registers_per_sm: u32,
    /// Resident threads of one SM.
    pub threads_per_sm: u32,
    /// Resident blocks of one SM.
    pub blocks_per_sm: u32,
    /// Dense BF16 FLOPs a clock and SM.
    pub bf16_flops_per_clock_per_sm: u32,
    /// Dense FP8 FLOPs a clock and SM of the instructions that our kernels use, if there are any.
    #[serde(default)]
    pub fp8_flops_per_clock_per_sm: Option<u32>,
    /// What instructions there are.
    pub capabilities: Capabilities,
}

/// Instructions and launch features that a family may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    /// `mma.sync` on BF16 and `cp.async`.
    pub mma_sync: bool,
    /// `griddepcontrol` and launches that overlap the one before.
    pub dependent_launch: bool,
    /// `cp.async.bulk`, tensor maps and mbarriers with byte counts.
    pub bulk_copy: bool,
    /// Warpgroup MMA with operands in shared memory.
    pub wgmma: bool,
    /// Thread-block clusters.
    pub clusters: bool,
    /// Block-scaled FP4 tensor cores.
    pub fp4_mma: bool,
}

impl ArchSpec {
    /// Every architecture with a folder in `templates/arch/`, by name.
    pub fn all() -> &'static [ArchSpec] {
        &ARCHS
    }

    /// The architecture called `name`.
    pub fn named(name: &str) -> Option<&'static ArchSpec> {
        ARCHS.iter().find(|arch| arch.name == name)
    }

    /// The architecture of a device with this major compute capability.
    pub fn of_compute_capability(major: u32) -> Option<&'static ArchSpec> {
        ARCHS.iter().find(|arch| arch.compute_major == major)
    }

    /// This class and those that it inherits headers from, nearest first.
    pub fn lineage(&'static self) -> Vec<&'static ArchSpec> {
        let parent = |arch: &ArchSpec| arch.inherits.as_deref().and_then(ArchSpec::named);
        std::iter::successors(Some(self), |arch| parent(arch)).collect()
    }
}

static ARCH_DIR: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/templates/arch");

static ARCHS: LazyLock<Vec<ArchSpec>> = LazyLock::new(|| {
    let mut archs: Vec<ArchSpec> = ARCH_DIR
        .dirs()
        .filter_map(|dir| dir.get_file(dir.path().join("arch.toml")))
        .map(|file| {
            let text = file.contents_utf8().expect("arch.toml is UTF-8: it is compiled in and a test reads it");
            toml::from_str(text).expect("arch.toml holds every field: it is compiled in and a test reads it")
        })
        .collect();
    archs.sort_by(|a, b| a.compute_major.cmp(&b.compute_major).then(a.name.cmp(&b.name)));
    archs
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_folder_is_an_architecture_named_like_it() {
        for dir in ARCH_DIR.dirs() {
            let folder = dir.path().file_name().and_then(|name| name.to_str()).unwrap();
            let arch = ArchSpec::named(folder).unwrap_or_else(|| panic!("templates/arch/{folder} has no arch.toml"));
            assert!(!arch.targets.is_empty(), "{folder} names no target");
            if let Some(parent) = &arch.inherits {
                assert!(ArchSpec::named(parent).is_some(), "{folder} inherits from {parent}, which is not there");
            }
        }
    }

    #[test]
    fn lineage_ends_at_the_root() {
        let names: Vec<&str> = ArchSpec::named("sm120a").unwrap().lineage().iter().map(|arch| &arch.name[..]).collect();
        assert_eq!(names, ["sm120a", "sm90a", "sm80"]);
    }
}
