//! Compiles kernels for GPUs that are not here: `cargo run --example 02_compile_without_gpu -- "nvfp4 4096x8192 m64"`.
//!
//! NVRTC is found, or fetched into our own cache on first use. What a kernel needs is counted by its compiler: spills
//! and shared memory that does not fit show before anything has run.

use std::error::Error;

use tilekiln::arch::{ArchSpec, GpuSpec};
use tilekiln::codegen;
use tilekiln::environment;
use tilekiln::jit::{CameFrom, Jit, KernelCache, Search};
use tilekiln::kernels::{self, FAMILIES, Family};
use tilekiln::problem::Problem;

fn main() -> Result<(), Box<dyn Error>> {
    let problem: Problem = std::env::args().nth(1).as_deref().unwrap_or("nvfp4 4096x8192 m64").parse()?;
    let search = Search { on_progress: Some(|text| eprintln!("{text}")), ..Search::from_environment() };
    let jit = Jit::new(search, KernelCache::new(environment::cache_dir().join("kernels")));
    for name in GPUS {
        compile(&jit, &problem, GpuSpec::named(name)?)?;
    }
    println!("NVRTC {}; kernels are kept in {}", jit.nvrtc()?.version(), jit.cache().root().display());
    Ok(())
}

/// Compiles the default kernels of every family that serves `problem` on `gpu`, and says why others do not.
fn compile(jit: &Jit, problem: &Problem, gpu: &GpuSpec) -> Result<(), Box<dyn Error>> {
    println!("{problem} for {} ({})", gpu.identity.product, gpu.target);
    for family in kernels::serving(problem, gpu.arch) {
        let tile = family.default_tile(problem, gpu);
        println!("  {tile}");
        for launch in kernels::plan(problem, &tile, gpu)?.launches {
            let source = codegen::render(&launch.kernel, gpu.arch, &gpu.target)?;
            let (cubin, came_from) = jit.compile(&source)?;
            let resources = &cubin.resources;
            let smem_bytes = resources.static_smem_bytes + launch.smem_bytes;
            let (registers, spill_bytes) = (resources.registers, resources.spill_bytes);
            let cached = if came_from == CameFrom::Cache { ", cached" } else { "" };
            print!("    {:<12} {registers:>3} registers, {spill_bytes} B of spills, ", cubin.entry);
            println!("{smem_bytes} B of shared memory; compiled in {} ms{cached}", cubin.compile_ms);
        }
    }
    // A family for another kind of problem has nothing to say here.
    let serves_somewhere =
        |family: &&dyn Family| ArchSpec::all().iter().any(|arch| family.serves(problem, arch).is_ok());
    for family in FAMILIES.into_iter().filter(serves_somewhere) {
        if let Err(reason) = family.serves(problem, gpu.arch) {
            println!("  not {}: {reason}", family.name());
        }
    }
    Ok(())
}

/// A Hopper, which has wgmma, and a workstation's Blackwell, which has not.
const GPUS: [&str; 2] = ["h100", "rtx-pro-6000"];
