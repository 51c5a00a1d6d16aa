//! Every family compiles for every class of GPUs, or says that it does not serve it: no spills, the right tensor
//! opcode.

use tilekiln::arch::GpuSpec;
use tilekiln::codegen::{self, Request};
use tilekiln::environment;
use tilekiln::jit::{Cubin, Jit, KernelCache, Search};
use tilekiln::kernels;
use tilekiln::problem::Problem;

fn jit() -> Jit {
    let cache = KernelCache::new(environment::cache_dir().join("kernels"));
    Jit::new(Search { on_progress: Some(|text| eprintln!("{text}")), ..Search::from_environment() }, cache)
}

fn compile(jit: &Jit, request: &Request, gpu: &'static GpuSpec) -> Cubin {
    let source = codegen::render(request, gpu.arch, &gpu.target).unwrap();
    match jit.compile(&source) {
        Ok((cubin, _)) => cubin,
        Err(error) => panic!("{}: {error}", request.template),
    }
}

#[test]
fn default_tiles_of_every_family_compile_everywhere() {
    let jit = jit();
    for gpu in GpuSpec::all() {
        for text in PROBLEMS {
            let problem: Problem = text.parse().unwrap();
            for family in kernels::serving(&problem, gpu.arch) {
                let tile = family.default_tile(&problem, gpu);
                let plan = kernels::plan(&problem, &tile, gpu).unwrap_or_else(|error| panic!("{text} {tile}: {error}"));
                for request in plan.kernels() {
                    let cubin = compile(&jit, request, gpu);
                    assert!(cubin.resources.is_clean(), "{text} on {}: {tile}: {:?}", gpu.name, cubin.resources);
                    let opcode = if request.wgmma_tokens.is_some() { "wgmma.mma_async" } else { "" };
                    assert!(cubin.ptx.contains(opcode), "{tile} has no {opcode}");
                }
            }
        }
    }
}

const PROBLEMS: [&str; 14] = [
    "nvfp4 1536x4096 m1",
    "nvfp4 4096x8192 m16",
    "mxfp4 4096x4096 swiglu m64",
    "fp8 32768x1024 m1",
    "fp8 8x1024x4096 m256",
    "bf16 129280x4096 f32 m1",
    "bf16 256x4096 f32 m1024",
    "nvfp4 4096x4096 swiglu m4096",
    "moe nvfp4 256/256 top6 4096x2048 m1",
    "moe nvfp4 256/256 top6 4096x2048 m16",
    "moe nvfp4 256/256 top6 4096x2048 m1024",
    "moe mxfp4 48/384 top6 7168x3072 m8192",
    "quantise nvfp4 k4096 m16",
    "quantise fp8 k7168 m1",
];
