//! Compiles every tile of every space: a job for a night.
//!
//! `cargo run --release --example compile_all -- [--gpu NAME]... [--problem TEXT]...`. Each problem ends in one line
//! that counts its kernels, what spills and what does not compile; the exit code is 1 if there is any of it. A second
//! run finds everything in the cache of kernels.

use std::collections::BTreeSet;
use std::error::Error;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tilekiln::arch::GpuSpec;
use tilekiln::codegen::{self, Request};
use tilekiln::environment;
use tilekiln::jit::{Jit, KernelCache, Search};
use tilekiln::kernels;
use tilekiln::problem::Problem;

/// For which GPUs which spaces are compiled.
#[derive(Default)]
struct Asked {
    gpus: Vec<&'static GpuSpec>,
    problems: Vec<Problem>,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let Asked { gpus, problems } = arguments()?;
    let search = Search { on_progress: Some(|text| eprintln!("{text}")), ..Search::from_environment() };
    let jit = Jit::new(search, KernelCache::new(environment::cache_dir().join("kernels")));
    jit.nvrtc()?;
    let (mut seen, mut n_faults) = (BTreeSet::new(), 0);
    for gpu in gpus {
        for problem in &problems {
            n_faults += compile(&jit, problem, gpu, &mut seen)?;
        }
    }
    Ok(if n_faults == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What `--gpu` and `--problem` ask for; without them an H100 and [`PROBLEMS`].
fn arguments() -> Result<Asked, Box<dyn Error>> {
    let Asked { mut gpus, mut problems } = Asked::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("`{word}` needs a value"))?;
        match word.as_str() {
            "--gpu" => gpus.push(GpuSpec::named(&value)?),
            "--problem" => problems.push(value.parse()?),
            _ => return Err(format!("expected --gpu or --problem, found `{word}`").into()),
        }
    }
    if gpus.is_empty() {
        gpus.push(GpuSpec::named("h100")?);
    }
    if problems.is_empty() {
        problems = PROBLEMS.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    }
    Ok(Asked { gpus, problems })
}

/// Compiles what `seen` does not hold yet, on all cores, and gives the number of kernels that spill or do not compile.
fn compile(
    jit: &Jit,
    problem: &Problem,
    gpu: &'static GpuSpec,
    seen: &mut BTreeSet<(String, Request)>,
) -> Result<usize, Box<dyn Error>> {
    let (mut n_tiles, mut requests) = (0, Vec::new());
    for family in kernels::serving(problem, gpu.arch) {
        for tile in kernels::space(family, problem, gpu).tiles {
            n_tiles += 1;
            let kernels = kernels::plan(problem, &tile, gpu)?.launches.into_iter().map(|launch| launch.kernel);
            requests.extend(kernels.filter(|kernel| seen.insert((gpu.target.clone(), kernel.clone()))));
        }
    }
    let started = Instant::now();
    let (next, faults) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        let mut told = Instant::now();
        loop {
            let idx = next.fetch_add(1, Ordering::Relaxed);
            let Some(request) = requests.get(idx) else { return };
            if let Err(fault) = is_clean(jit, request, gpu) {
                eprintln!("{fault}");
                faults.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(fault);
            }
            if told.elapsed() > Duration::from_secs(10) {
                told = Instant::now();
                eprintln!("{problem}: {} of {} kernels", idx + 1, requests.len());
            }
        }
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        (0..cores).for_each(|_| drop(scope.spawn(work)));
    });
    let faults = faults.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (n_kernels, n_faults, seconds) = (requests.len(), faults.len(), started.elapsed().as_secs_f64());
    println!(
        "{} {problem}: {n_tiles} tiles, {n_kernels} new kernels, {n_faults} not clean, {seconds:.1} s",
        gpu.target
    );
    Ok(n_faults)
}

/// Refuses a kernel that does not compile, spills, or keeps an array on the stack.
fn is_clean(jit: &Jit, request: &Request, gpu: &'static GpuSpec) -> Result<(), String> {
    let source = codegen::render(request, gpu.arch, &gpu.target).map_err(|error| error.to_string())?;
    let (cubin, _) = jit.compile(&source).map_err(|error| error.to_string())?;
    let values = || format!("{:?}", request.values.get("tile").and_then(|tile| tile.get("id")));
    if cubin.resources.is_clean() { Ok(()) } else { Err(format!("{}: {:?}", values(), cubin.resources)) }
}

/// Spaces that together hold every family, format and size of token tile.
const PROBLEMS: [&str; 12] = [
    "nvfp4 4096x8192 m1",
    "nvfp4 4096x8192 m16",
    "nvfp4 4096x8192 m256",
    "mxfp4 4096x4096 swiglu m64",
    "fp8 8x1024x4096 m16",
    "fp8 32768x1024 m1024",
    "bf16 256x4096 f32 m64",
    "moe nvfp4 256 top6 4096x2048 m1",
    "moe nvfp4 256 top6 4096x2048 m64",
    "moe nvfp4 256 top6 4096x2048 m4096",
    "moe mxfp4 48/384 top6 7168x3072 m64",
    "quantise nvfp4 k4096 m16",
];
