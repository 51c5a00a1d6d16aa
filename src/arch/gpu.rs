//! One GPU product: who it is (for keys) and how fast it is (for floors and predictions).

use std::sync::LazyLock;

use include_dir::{Dir, include_dir};
use serde::{Deserialize, Serialize};

use super::ArchSpec;

/// What tells two GPUs apart when a winner is kept: a record of one says nothing certain about another.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GpuIdentity {
    /// The driver's product name.
    pub product: String,
    /// Streaming multiprocessors.
    pub sm_count: u32,
    /// L2 cache, bytes.
    pub l2_bytes: u64,
    /// Width of the memory bus, bits.
    pub memory_bus_bits: u32,
    /// Default power limit, watts; 0 when it is not known.
    pub power_limit_watts: u32,
    /// Whether the device is a slice of a GPU.
    pub is_mig: bool,
}

impl std::fmt::Display for GpuIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { product, sm_count, l2_bytes, memory_bus_bits, power_limit_watts, is_mig } = self;
        let mig = if *is_mig { "/mig" } else { "" };
        write!(f, "{product}/{sm_count}sm/{}MiB/{memory_bus_bits}b/{power_limit_watts}W{mig}", l2_bytes >> 20)
    }
}

/// Plain facts about one GPU: enough to render, compile, count and predict without it.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuSpec {
    /// Folder name in `tuning_db/`, such as `h100-sxm`.
    pub name: String,
    /// Other names that `--gpu` accepts.
    pub aliases: Vec<String>,
    /// Who it is.
    pub identity: GpuIdentity,
    /// Its class.
    pub arch: &'static ArchSpec,
    /// The NVRTC target to ask for, such as `sm_90a`.
    pub target: String,
    /// Device memory, bytes.
    pub memory_bytes: u64,
    /// SM clock under load, MHz.
    pub clock_mhz: u32,
    /// Read bandwidth of large transfers, GB/s.
    pub read_gbs: f64,
    /// Read bandwidth of a chain of dependent launches, GB/s.
    pub chain_gbs: f64,
    /// Dense BF16 rate of a large product, TFLOP/s.
    pub bf16_tflops: f64,
    /// Dense FP8 rate of a large product, TFLOP/s, where there is one that kernels reach.
    pub fp8_tflops: Option<f64>,
}

/// No GPU of that name is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected the name of a known GPU ({}), found `{name}`", known.join(", "))]
pub struct UnknownGpu {
    /// What was asked for.
    pub name: String,
    /// What there is.
    pub known: Vec<String>,
}

impl GpuSpec {
    /// Every GPU with a `gpu.toml` in `tuning_db/`, by name.
    pub fn all() -> &'static [GpuSpec] {
        &GPUS
    }

    /// The GPU called `name`, by folder name or alias, in any case.
    ///
    /// # Errors
    /// [`UnknownGpu`] lists the names there are.
    pub fn named(name: &str) -> Result<&'static GpuSpec, UnknownGpu> {
        let wanted = name.to_ascii_lowercase();
        GPUS.iter().find(|gpu| gpu.name == wanted || gpu.aliases.contains(&wanted)).ok_or_else(|| UnknownGpu {
            name: name.to_string(),
            known: GPUS.iter().map(|gpu| gpu.name.clone()).collect(),
        })
    }

    /// The GPU that the driver calls `product`.
    pub fn of_product(product: &str) -> Option<&'static GpuSpec> {
        GPUS.iter().find(|gpu| gpu.identity.product == product)
    }

    /// Streaming multiprocessors.
    pub fn sm_count(&self) -> u32 {
        self.identity.sm_count
    }

    /// How many blocks of these resources fit on one SM at a time.
    pub fn blocks_per_sm(&self, threads: u32, registers_per_thread: u32, smem_bytes: u32) -> u32 {
        let arch = self.arch;
        // Registers are handed out to warps in units of 256.
        let registers_per_warp = (registers_per_thread.max(16) * 32).next_multiple_of(256);
        let by_registers = arch.registers_per_sm / (registers_per_warp * threads.div_ceil(32).max(1));
        let by_smem = arch.smem_per_sm / (smem_bytes + arch.smem_reserved_per_block);
        let by_threads = arch.threads_per_sm / threads.max(1);
        by_registers.min(by_smem).min(by_threads).min(arch.blocks_per_sm)
    }
}

/// `gpu.toml` as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GpuFile {
    name: String,
    aliases: Vec<String>,
    product: String,
    arch: String,
    target: String,
    sm_count: u32,
    l2_bytes: u64,
    memory_bytes: u64,
    memory_bus_bits: u32,
    power_limit_watts: u32,
    clock_mhz: u32,
    read_gbs: f64,
    chain_gbs: f64,
    bf16_tflops: f64,
    #[serde(default)]
    fp8_tflops: Option<f64>,
}

impl From<GpuFile> for GpuSpec {
    fn from(file: GpuFile) -> Self {
        let arch = ArchSpec::named(&file.arch).expect("gpu.toml names an architecture: a test reads every file");
        Self {
            name: file.name,
            aliases: file.aliases,
            identity: GpuIdentity {
                product: file.product,
                sm_count: file.sm_count,
                l2_bytes: file.l2_bytes,
                memory_bus_bits: file.memory_bus_bits,
                power_limit_watts: file.power_limit_watts,
                is_mig: false,
            },
            arch,
            target: file.target,
            memory_bytes: file.memory_bytes,
            clock_mhz: file.clock_mhz,
            read_gbs: file.read_gbs,
            chain_gbs: file.chain_gbs,
            bf16_tflops: file.bf16_tflops,
            fp8_tflops: file.fp8_tflops,
        }
    }
}

/// What is known of each GPU: a folder with its facts, its packs and its recorded trials.
pub(crate) static TUNING_DB: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/tuning_db");

static GPUS: LazyLock<Vec<GpuSpec>> = LazyLock::new(|| {
    let mut gpus: Vec<GpuSpec> = TUNING_DB
        .dirs()
        .filter_map(|dir| dir.get_file(dir.path().join("gpu.toml")))
        .map(|file| {
            let text = file.contents_utf8().expect("gpu.toml is UTF-8: it is compiled in and a test reads it");
            let file: GpuFile = toml::from_str(text).expect("gpu.toml holds every field: a test reads it");
            file.into()
        })
        .collect();
    gpus.sort_by(|a, b| a.name.cmp(&b.name));
    gpus
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gpu_has_a_target_of_its_class() {
        assert!(GpuSpec::all().len() >= 5);
        for gpu in GpuSpec::all() {
            assert!(gpu.arch.targets.contains(&gpu.target), "{}: {} is not of {}", gpu.name, gpu.target, gpu.arch.name);
        }
    }

    #[test]
    fn names_aliases_and_products_find_the_same_gpu() {
        let by_name = GpuSpec::named("h100-sxm").unwrap();
        assert_eq!(GpuSpec::named("H100").unwrap(), by_name);
        assert_eq!(GpuSpec::of_product("NVIDIA H100 80GB HBM3").unwrap(), by_name);
        let error = GpuSpec::named("voodoo2").unwrap_err().to_string();
        assert!(error.contains("h100-sxm") && error.ends_with("found `voodoo2`"), "{error}");
    }

    #[test]
    fn occupancy_is_the_tightest_of_four_limits() {
        let h100 = GpuSpec::named("h100").unwrap();
        assert_eq!(h100.blocks_per_sm(256, 64, 0), 4);
        assert_eq!(h100.blocks_per_sm(256, 32, 100_000), 2);
        assert_eq!(h100.blocks_per_sm(1024, 32, 0), 2);
        assert_eq!(h100.blocks_per_sm(32, 16, 0), 32);
    }
}
