//! `autotune render`: the CUDA of a tile as NVRTC gets it, and on request its PTX or what it needs.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::args::{CommonArgs, RenderArgs};
use super::context::{self, Paths};
use super::table::Table;
use super::voice::{answer, talk};
use super::winners::Winners;
use super::{CliError, Exit, select};
use crate::arch::GpuSpec;
use crate::codegen::{self, Source};
use crate::jit::{Cubin, Jit};
use crate::kernels::{self, Launch, Plan};
use crate::problem::{Problem, Tile};
use crate::store::FileError;

/// Renders the kernels of one tile.
pub fn run(common: &CommonArgs, args: &RenderArgs, paths: &Paths) -> Result<Exit, CliError> {
    let (problem, gpu) = (problem(args)?, context::spec(common)?);
    let tile = tile(args, &problem, &gpu, paths)?;
    let plan = plan(&problem, &tile, &gpu)?;
    talk(&format!("{problem} on {}: {tile}", gpu.name));
    let is_wanted = chosen(args, &plan)?;
    let jit = paths.jit();
    let mut kernels = Vec::new();
    for (launch_idx, launch) in plan.launches.iter().enumerate().filter(|(idx, _)| is_wanted(*idx)) {
        let source = codegen::render(&launch.kernel, gpu.arch, &gpu.target)
            .map_err(|error| CliError::failed(error.to_string(), None))?;
        let kernel = Kernel::of(launch_idx, launch, source);
        kernels.push(if args.ptx || args.resources { kernel.compiled(&jit)? } else { kernel });
    }
    let form = match (args.ptx, args.resources) {
        (true, _) => Form::Ptx,
        (_, true) => Form::Resources,
        _ => Form::Cuda,
    };
    let rendered = Rendered { problem: problem.to_string(), gpu: gpu.name.clone(), tile, form, kernels };
    match &args.out {
        Some(folder) => rendered.write(folder, common.json)?,
        None => answer(common.json, &rendered)?,
    }
    Ok(Exit::Done)
}

fn problem(args: &RenderArgs) -> Result<Problem, CliError> {
    let problems = select::problems_of(&args.problem)?;
    match &problems[..] {
        [problem] => Ok(problem.clone()),
        _ => Err(CliError::usage(
            format!("expected one bucket, found {}", problems.len()),
            "kernels are rendered for one `--m` at a time",
        )),
    }
}

/// The tile that is named, or the one that would be used.
fn tile(args: &RenderArgs, problem: &Problem, gpu: &GpuSpec, paths: &Paths) -> Result<Tile, CliError> {
    let hint = "`autotune explain` lists tiles of a problem, `autotune show space` its axes and rules";
    match &args.tile {
        Some(text) => text.parse().map_err(|error| CliError::usage(format!("{error}"), hint)),
        None => Ok(Winners::open(paths, gpu.clone()).ask(problem)?.tile),
    }
}

fn plan(problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Result<Plan, CliError> {
    kernels::plan(problem, tile, gpu).map_err(|rejection| {
        let hint = "`autotune show space --problem PROBLEM` lists its axes and rules";
        CliError::usage(format!("expected a tile of `{problem}`, found one that is refused: {rejection}"), hint)
    })
}

/// Which launches are wanted: all, or the one of `--launch`.
fn chosen(args: &RenderArgs, plan: &Plan) -> Result<impl Fn(usize) -> bool + use<>, CliError> {
    let (launch, count) = (args.launch, plan.launches.len());
    match launch {
        Some(idx) if idx >= count => Err(CliError::usage(
            format!("expected a launch from 0 to {}, found --launch {idx}", count - 1),
            "without `--launch` every kernel is rendered",
        )),
        _ => Ok(move |idx| launch.is_none_or(|launch| launch == idx)),
    }
}

#[derive(Serialize)]
struct Rendered {
    problem: String,
    gpu: String,
    tile: Tile,
    #[serde(skip)]
    form: Form,
    kernels: Vec<Kernel>,
}

/// What is wanted of each kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Cuda,
    Ptx,
    Resources,
}

#[derive(Serialize)]
struct Kernel {
    launch: usize,
    entry: &'static str,
    target: String,
    /// Its name in every cache.
    hash: String,
    grid: [u32; 3],
    threads: u32,
    dynamic_smem_bytes: u32,
    text: String,
    #[serde(flatten)]
    compiled: Option<Compiled>,
    #[serde(skip)]
    source: Source,
}

#[derive(Serialize)]
struct Compiled {
    registers: u32,
    stack_bytes: u32,
    spill_bytes: u32,
    static_smem_bytes: u32,
    warnings: Vec<String>,
    cubin_bytes: usize,
    compile_ms: u32,
    nvrtc: String,
    ptx: String,
}

impl Kernel {
    fn of(launch_idx: usize, launch: &Launch, source: Source) -> Self {
        Self {
            launch: launch_idx,
            entry: source.entry,
            target: source.target.clone(),
            hash: source.hash.clone(),
            grid: launch.grid,
            threads: launch.threads,
            dynamic_smem_bytes: launch.smem_bytes,
            text: source.text.clone(),
            compiled: None,
            source,
        }
    }

    fn compiled(self, jit: &Jit) -> Result<Self, CliError> {
        let (cubin, _) = jit.compile(&self.source)?;
        Ok(Self { compiled: Some(cubin.into()), ..self })
    }

    /// What `form` shows of it in a file of its own.
    fn contents(&self, form: Form) -> &str {
        match (form, &self.compiled) {
            (Form::Ptx, Some(compiled)) => &compiled.ptx,
            _ => &self.text,
        }
    }
}

impl From<Cubin> for Compiled {
    fn from(cubin: Cubin) -> Self {
        let Cubin { image, ptx, resources, compile_ms, nvrtc, .. } = cubin;
        Self {
            registers: resources.registers,
            stack_bytes: resources.stack_bytes,
            spill_bytes: resources.spill_bytes,
            static_smem_bytes: resources.static_smem_bytes,
            warnings: resources.warnings,
            cubin_bytes: image.len(),
            compile_ms,
            nvrtc,
            ptx,
        }
    }
}

impl Rendered {
    /// Writes a file for each kernel into `folder`, and answers with their paths.
    fn write(&self, folder: &Path, is_json: bool) -> Result<(), CliError> {
        let fault = |path: &Path, error: std::io::Error| CliError::from(FileError::new(path, "write", &error));
        std::fs::create_dir_all(folder).map_err(|error| fault(folder, error))?;
        let ending = if self.form == Form::Ptx { "ptx" } else { "cu" };
        let mut files = Files(Vec::new());
        for kernel in &self.kernels {
            let path = folder.join(format!("{}-{}.{ending}", kernel.launch, kernel.entry));
            std::fs::write(&path, kernel.contents(self.form)).map_err(|error| fault(&path, error))?;
            files.0.push(path);
        }
        if self.form == Form::Resources {
            return answer(is_json, self);
        }
        answer(is_json, &files)
    }

    fn resources(&self) -> Table {
        let mut table = Table::new([
            ">launch",
            "kernel",
            ">regs",
            ">spills",
            ">stack",
            ">static smem",
            ">dynamic smem",
            ">threads",
            ">cubin",
            ">ms",
            "warnings",
        ]);
        for (kernel, compiled) in self.kernels.iter().filter_map(|kernel| Some((kernel, kernel.compiled.as_ref()?))) {
            table.row([
                kernel.launch.to_string(),
                kernel.entry.to_string(),
                compiled.registers.to_string(),
                compiled.spill_bytes.to_string(),
                compiled.stack_bytes.to_string(),
                compiled.static_smem_bytes.to_string(),
                kernel.dynamic_smem_bytes.to_string(),
                kernel.threads.to_string(),
                compiled.cubin_bytes.to_string(),
                compiled.compile_ms.to_string(),
                compiled.warnings.join("; "),
            ]);
        }
        table
    }
}

impl fmt::Display for Rendered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.form == Form::Resources {
            return self.resources().fmt(f);
        }
        for kernel in &self.kernels {
            if self.kernels.len() > 1 {
                let Kernel { launch, entry, grid: [x, y, z], threads, .. } = kernel;
                writeln!(f, "// ==== launch {launch}: {entry}, grid {x} x {y} x {z}, {threads} threads ====")?;
            }
            f.write_str(kernel.contents(self.form))?;
        }
        Ok(())
    }
}

/// Where the kernels were written.
#[derive(Serialize)]
#[serde(transparent)]
struct Files(Vec<PathBuf>);

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|path| writeln!(f, "{}", path.display()))
    }
}
