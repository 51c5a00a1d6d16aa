//! Every family compiles for every target of every class of GPUs, or says why it does not serve it: no spills, nothing
//! on the stack, the tensor opcode that it is built on. What each kernel needs is counted by its compiler, without a
//! GPU; `examples/compile_all.rs` does the same for whole spaces.

use std::collections::BTreeSet;

use tilekiln::arch::{ArchSpec, GpuSpec};
use tilekiln::codegen::{self, Request, Source};
use tilekiln::environment;
use tilekiln::jit::{Cubin, Jit, JitError, KernelCache, Search};
use tilekiln::kernels::{self, FAMILIES, Family};
use tilekiln::problem::{Output, Problem, Tile};
use tilekiln::quant::{Activations, PackedLayout, WeightFormat};

#[test]
fn default_tiles_compile_for_every_target() {
    let mut job = Job::default();
    for gpu in targets() {
        for text in PROBLEMS {
            let problem: Problem = text.parse().unwrap();
            for family in kernels::serving(&problem, gpu.arch) {
                job.add_tile(&problem, &family.default_tile(&problem, &gpu), &gpu);
            }
        }
    }
    job.compile();
}

#[test]
fn samples_of_whole_spaces_compile_for_hopper() {
    let gpu = GpuSpec::named("h100").unwrap();
    let mut job = Job::default();
    for (text, count) in SAMPLED {
        let problem: Problem = text.parse().unwrap();
        for family in kernels::serving(&problem, gpu.arch) {
            sample(family, &problem, gpu, count).iter().for_each(|tile| job.add_tile(&problem, tile, gpu));
        }
    }
    job.compile();
}

#[test]
fn tools_compile_for_every_class() {
    let mut job = Job::default();
    for arch in ArchSpec::all() {
        for tool in tools() {
            job.add(&tool, arch, &arch.targets[0], tool.template.to_string());
        }
    }
    job.compile();
}

#[test]
fn every_family_is_reached_on_every_class_or_says_why_not() {
    for arch in ArchSpec::all() {
        for family in FAMILIES {
            let problems = || PROBLEMS.iter().map(|text| text.parse::<Problem>().unwrap());
            if problems().any(|problem| family.serves(&problem, arch).is_ok()) {
                continue;
            }
            // Only for what the class lacks may a family refuse all of them, and then it names the class.
            let lacks = format!("{} has no ", arch.name);
            let is_told =
                problems().any(|problem| family.serves(&problem, arch).is_err_and(|why| why.contains(&lacks)));
            assert!(is_told, "{} serves no problem on {} and never says `{lacks}..`", family.name(), arch.name);
        }
    }
    let without: Vec<&str> =
        ArchSpec::all().iter().filter(|arch| !arch.capabilities.wgmma).map(|arch| &arch.name[..]).collect();
    assert_eq!(without, ["sm80", "sm100a", "sm120a"], "classes on which the wgmma families must refuse");
    for family in
        ["dense_wgmma", "dense_persistent", "dense_wgmma_a8", "dense_persistent_a8", "moe_wgmma", "moe_wgmma_a8"]
            .into_iter()
            .filter_map(kernels::family)
    {
        for arch in without.iter().filter_map(|name| ArchSpec::named(name)) {
            let served = PROBLEMS.iter().any(|text| family.serves(&text.parse().unwrap(), arch).is_ok());
            assert!(!served, "{} serves {}, which has no wgmma", family.name(), arch.name);
        }
    }
}

#[test]
fn native_fp4_is_refused_with_a_sentence() {
    assert!(ArchSpec::all().iter().any(|arch| arch.capabilities.fp4_mma), "there are FP4 tensor cores to be asked for");
    for text in ["nvfp4 4096x8192 a4 m16", "moe nvfp4 256 top6 4096x2048 a4 m16"] {
        let error = text.parse::<Problem>().unwrap_err().to_string();
        assert!(error.contains("unsupported"), "{text}: {error}");
    }
}

/// Kernels to be compiled, each text once, with what asked for it first.
#[derive(Default)]
struct Job {
    kernels: Vec<(Source, String)>,
    seen: BTreeSet<String>,
}

impl Job {
    fn add_tile(&mut self, problem: &Problem, tile: &Tile, gpu: &GpuSpec) {
        let asked_by = format!("`{problem}` with {tile} on {}", gpu.target);
        let plan = kernels::plan(problem, tile, gpu).unwrap_or_else(|error| panic!("{asked_by}: {error}"));
        for request in plan.kernels() {
            self.add(request, gpu.arch, &gpu.target, asked_by.clone());
        }
    }

    fn add(&mut self, request: &Request, arch: &'static ArchSpec, target: &str, asked_by: String) {
        let source = codegen::render(request, arch, target).unwrap_or_else(|error| panic!("{asked_by}: {error}"));
        if self.seen.insert(source.hash.clone()) {
            self.kernels.push((source, asked_by));
        }
    }

    /// Compiles all of them on all cores, and panics with everything that is wrong.
    fn compile(&self) {
        let cache = KernelCache::new(environment::cache_dir().join("kernels"));
        let search = Search { on_progress: Some(|text| eprintln!("{text}")), ..Search::from_environment() };
        let jit = Jit::new(search, cache);
        let sources: Vec<Source> = self.kernels.iter().map(|(source, _)| source.clone()).collect();
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let compiled = jit.compile_all(&sources, cores).into_iter().zip(&self.kernels);
        let faults: Vec<String> = compiled
            .filter_map(|(compiled, (source, asked_by))| {
                let fault = fault(source, compiled.map(|(cubin, _)| cubin))?;
                Some(format!("{} of {asked_by}: {fault}", source.entry))
            })
            .collect();
        println!("{} kernels", self.kernels.len());
        assert!(faults.is_empty(), "{} of {} kernels:\n  {}", faults.len(), self.kernels.len(), faults.join("\n  "));
    }
}

/// What is wrong with what became of `source`: it does not compile, or is slow without being wrong.
fn fault(source: &Source, compiled: Result<Cubin, JitError>) -> Option<String> {
    let cubin = match compiled {
        Ok(cubin) => cubin,
        Err(error) => return Some(error.to_string()),
    };
    if !cubin.resources.is_clean() {
        return Some(format!("{:?}", cubin.resources));
    }
    let opcode = match source.entry {
        "dense_mma" | "moe_mma" | "moe_staged" | "hc_mix_mma" => "mma.sync.aligned.m16n8k16",
        "dense_wgmma_a8" | "dense_persistent_a8" | "moe_wgmma_a8" => "k32.f32.e4m3.e4m3",
        "dense_wgmma" | "dense_persistent" | "moe_wgmma" => "wgmma.mma_async.sync.aligned.m64n",
        _ => return None,
    };
    (!cubin.ptx.contains(opcode)).then(|| format!("its PTX has no {opcode}"))
}

/// Each known GPU, once for each target of its class.
fn targets() -> impl Iterator<Item = GpuSpec> {
    let of_gpu =
        |gpu: &'static GpuSpec| gpu.arch.targets.iter().map(|target| GpuSpec { target: target.clone(), ..gpu.clone() });
    GpuSpec::all().iter().flat_map(of_gpu)
}

/// About `count` tiles at even distances through the space, and for each value of an axis that they miss the first tile
/// that has it.
fn sample(family: &dyn Family, problem: &Problem, gpu: &GpuSpec, count: usize) -> BTreeSet<Tile> {
    let space = kernels::space(family, problem, gpu).tiles;
    let picks = count.min(space.len());
    let mut tiles: BTreeSet<Tile> = (0..picks).map(|idx| space[idx * space.len() / picks].clone()).collect();
    let mut values: BTreeSet<(String, u32)> = tiles.iter().flat_map(values_of).collect();
    for tile in &space {
        if values_of(tile).any(|value| values.insert(value)) {
            tiles.insert(tile.clone());
        }
    }
    tiles
}

fn values_of(tile: &Tile) -> impl Iterator<Item = (String, u32)> {
    tile.numbers().map(|(name, value)| (name.to_string(), value))
}

fn tools() -> Vec<Request> {
    let of_format = |format| {
        [kernels::pack(PackedLayout::of(format, Activations::A16)), kernels::pack_scan(format), kernels::probe(format)]
    };
    let of_outputs =
        [Output::Bf16, Output::F32].into_iter().flat_map(|o| [kernels::compare(o), kernels::reference_mix(o)]);
    let plain =
        [kernels::fill(), kernels::reference_fp8(), kernels::reference_moe(), kernels::sabotage(), kernels::stream(8)];
    let formats = WeightFormat::ALL.into_iter();
    let references =
        formats.clone().flat_map(|format| [Activations::A16, Activations::A8].map(|a| kernels::reference(format, a)));
    formats.flat_map(of_format).chain(references).chain(of_outputs).chain(plain).collect()
}

/// Each reaches a kernel, a format or an epilogue that the others do not.
const PROBLEMS: [&str; 26] = [
    "nvfp4 1536x4096 m1",
    "nvfp4 4096x8192 m16",
    "mxfp4 4096x4096 swiglu m64",
    "fp8 32768x1024 m1",
    "fp8 8x1024x4096 m256",
    "bf16 129280x4096 f32 m1",
    "bf16 256x4096 f32 m1024",
    "nvfp4 4096x4096 swiglu m4096",
    "nvfp4 4096x8192 a8 m16",
    "mxfp4 4096x4096 a8 swiglu m1024",
    "fp8 1024x4096 a8 f32 m64",
    "moe nvfp4 256/256 top6 4096x2048 m1",
    "moe nvfp4 256/256 top6 4096x2048 m16",
    "moe nvfp4 256/256 top6 4096x2048 m1024",
    "moe mxfp4 48/384 top6 7168x3072 m8192",
    "moe nvfp4 256/256 top6 4096x2048 a8 m16",
    "moe mxfp4 256/256 top6 4096x2048 a8 m1",
    "moe mxfp4 48/384 top6 7168x3072 a8 m64",
    "moe fp8 256/256 top6 4096x2048 a8 m4",
    "moe mxfp4 256/256 top6 4096x2048 a8 m8192",
    "moe fp8 48/384 top6 7168x3072 a8 m1024",
    "quantise nvfp4 k4096 m16",
    "quantise fp8 k7168 m1",
    "hc f32 24x16384 m1",
    "hc bf16 24x28672 first m1024",
    "hc f32 4x16384 m64",
];

/// Whole spaces that are sampled, with the number of tiles of each family.
const SAMPLED: [(&str, usize); 15] = [
    ("nvfp4 4096x8192 m64", 24),
    ("fp8 4096x4096 swiglu m1024", 12),
    ("mxfp4 4096x2048 m2", 12),
    ("nvfp4 4096x8192 a8 m1024", 24),
    ("fp8 4096x4096 a8 swiglu m256", 12),
    ("moe nvfp4 256/256 top6 4096x2048 m32", 12),
    ("moe nvfp4 256/256 top6 4096x2048 m4096", 12),
    ("moe mxfp4 256/256 top6 4096x2048 a8 m64", 12),
    ("moe nvfp4 256/256 top6 4096x2048 a8 m4", 12),
    ("moe fp8 256/256 top6 4096x2048 a8 m16", 12),
    ("moe nvfp4 256/256 top6 4096x2048 a8 m4096", 24),
    ("moe fp8 256/256 top6 4096x2048 a8 m1024", 12),
    ("hc f32 24x16384 m64", 24),
    ("hc bf16 24x28672 m8192", 24),
    ("hc f32 4x28672 m1024", 24),
];
