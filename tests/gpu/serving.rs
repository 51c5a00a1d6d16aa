//! What a runner relies on: prepare, lookup, launches in a CUDA graph, tokens on the device, a foreign context.

use std::sync::Arc;
use std::time::Instant;

use tilekiln::device::{Buffer, Gpu, Stream};
use tilekiln::dispatch::{ArgsError, LaunchArgs, LaunchError, PrepareOptions, Segments, prepare};
use tilekiln::problem::{BUCKETS, Problem};
use tilekiln::quant::{self, RowOrder, SourceMatrix, bf16};

use crate::context::{Case, Context, Failure};

pub fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&mut Context) -> Result<usize, Failure>| Case {
        name: name.to_string(),
        run: Box::new(run),
    };
    vec![
        case("serving a small projection, every bucket, in a graph", every_bucket_in_a_graph),
        case("serving refuses arguments that would fault", bad_arguments),
        case("serving in a context of somebody else", foreign_context),
        case("serving launches cost little", launch_overhead),
    ]
}

fn options(context: &Context) -> Result<PrepareOptions, Failure> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    Ok(PrepareOptions { snapshot: folder.path().join("none"), jit: context.jit.clone(), threads: 8 })
}

/// W = identity times 2 in the first rows: results are known without a reference.
struct Projection {
    weights: Buffer,
    tokens: Buffer,
    result: Buffer,
    count: Buffer,
    workspace: Buffer,
    alpha: f32,
}

const N: usize = 320;
const K: usize = 512;

impl Projection {
    fn new(context: &Context) -> Result<Self, Failure> {
        let mut values = vec![0u16; N * K];
        (0..N).for_each(|row| values[row * K + row] = bf16::encode(2.0));
        let source = SourceMatrix::Bf16 { n: N, k: K, values: &values };
        let packed = quant::pack(&source, RowOrder::Plain).map_err(|error| error.to_string())?;
        let most = BUCKETS[BUCKETS.len() - 1] as usize;
        let tokens: Vec<u16> = (0..most * K).map(|idx| bf16::encode((idx % 251) as f32)).collect();
        Ok(Self {
            weights: context.buffer(&packed.bytes)?,
            tokens: context.buffer(&tokens)?,
            result: Buffer::new(&context.gpu, 2 * most * N)?,
            count: Buffer::zeros(&context.gpu, 4)?,
            workspace: Buffer::zeros(&context.gpu, 64 << 20)?,
            alpha: packed.alpha,
        })
    }

    fn args(&self, tokens: u32) -> LaunchArgs {
        LaunchArgs {
            activations: self.tokens.pointer(),
            activation_stride: K as u32,
            weights: self.weights.pointer(),
            output: self.result.pointer(),
            output_stride: N as u32,
            tokens,
            segments: Segments::uniform(self.alpha),
            workspace: self.workspace.pointer(),
            ..LaunchArgs::default()
        }
    }

    /// Rows below `m` are twice the tokens, rows from it on are poison.
    fn check(&self, m: usize, rows: usize) -> Result<(), Failure> {
        let found: Vec<u16> = self.result.download(rows * N)?;
        for row in 0..rows {
            for column in 0..N {
                let token = ((row * K + column) % 251) as f32;
                let expected = if row < m { bf16::encode(2.0 * token) } else { 0xFFFF };
                if found[row * N + column] != expected {
                    let found = found[row * N + column];
                    return Err(format!("m {m}: [{row}, {column}] is {found:#x}, expected {expected:#x}").into());
                }
            }
        }
        Ok(())
    }
}

/// One graph for each bucket; the number of tokens is changed on the device between replays.
fn every_bucket_in_a_graph(context: &mut Context) -> Result<usize, Failure> {
    let problems: Vec<Problem> = BUCKETS
        .into_iter()
        .map(|m| format!("bf16 {N}x{K} m{m}").parse().map_err(|error| format!("{error}")))
        .collect::<Result<_, String>>()?;
    let prepared =
        prepare(&context.gpu, problems.iter().cloned(), &options(context)?).map_err(|error| error.to_string())?;
    if prepared.report().problems != problems.len() {
        return Err(format!("prepared {}", prepared.report()).into());
    }
    let projection = Projection::new(context)?;
    let mut checked = 0;
    for problem in &problems {
        let loaded = prepared.lookup(problem).ok_or_else(|| format!("`{problem}` was not prepared"))?;
        if loaded.workspace_bytes() > projection.workspace.bytes() as u64 {
            return Err(format!("`{problem}` needs {} bytes of workspace", loaded.workspace_bytes()).into());
        }
        projection.workspace.set_bytes(0)?;
        let bucket = problem.m();
        let args = LaunchArgs { tokens_on_device: projection.count.pointer(), ..projection.args(bucket) };
        let graph = context.stream.capture(|| -> Result<(), LaunchFailure> {
            // SAFETY: the buffers hold the largest bucket and outlive the waits below.
            unsafe { loaded.launch(&args, context.stream.raw().cast())? };
            Ok(())
        });
        let graph = graph.map_err(|failure| failure.0)?;
        for m in [bucket, bucket.div_ceil(2), 1] {
            projection.count.upload(&[m as i32])?;
            projection.result.set_bytes(0xFF)?;
            graph.launch(&context.stream)?;
            context.stream.synchronize()?;
            projection.check(m as usize, bucket as usize)?;
            checked += 1;
        }
    }
    Ok(checked)
}

/// What a capture may fail with.
struct LaunchFailure(String);

impl From<LaunchError> for LaunchFailure {
    fn from(error: LaunchError) -> Self {
        Self(error.to_string())
    }
}

impl From<tilekiln::device::DeviceError> for LaunchFailure {
    fn from(error: tilekiln::device::DeviceError) -> Self {
        Self(error.to_string())
    }
}

fn bad_arguments(context: &mut Context) -> Result<usize, Failure> {
    let problem: Problem = format!("bf16 {N}x{K} m8").parse().map_err(|error| format!("{error}"))?;
    let prepared = prepare(&context.gpu, [problem.clone()], &options(context)?).map_err(|error| error.to_string())?;
    let loaded = prepared.lookup(&problem).ok_or_else(|| "not prepared".to_string())?;
    let projection = Projection::new(context)?;
    let good = projection.args(8);
    let bad = [
        LaunchArgs { weights: 0, ..good },
        LaunchArgs { activations: good.activations + 2, ..good },
        LaunchArgs { activation_stride: K as u32 + 4, ..good },
        LaunchArgs { activation_stride: K as u32 - 8, ..good },
        LaunchArgs { output_stride: N as u32 - 1, ..good },
        LaunchArgs { tokens: 9, ..good },
    ];
    for args in bad {
        // SAFETY: each is refused before anything is launched, which is what is shown here.
        match unsafe { loaded.launch(&args, context.stream.raw().cast()) } {
            Err(LaunchError::Args(error)) => drop::<ArgsError>(error),
            other => return Err(format!("{args:?} gave {other:?}").into()),
        }
    }
    Ok(bad.len())
}

/// The primary context, as another library would have made it current.
fn foreign_context(context: &mut Context) -> Result<usize, Failure> {
    let gpu = Arc::new(Gpu::of_current_context()?);
    let problem: Problem = format!("bf16 {N}x{K} m16").parse().map_err(|error| format!("{error}"))?;
    let prepared = prepare(&gpu, [problem.clone()], &options(context)?).map_err(|error| error.to_string())?;
    let loaded = prepared.lookup(&problem).ok_or_else(|| "not prepared".to_string())?;
    let projection = Projection::new(context)?;
    projection.result.set_bytes(0xFF)?;
    let stream = Stream::new(&gpu)?;
    // SAFETY: the buffers hold 16 tokens and outlive the wait below.
    unsafe { loaded.launch(&projection.args(13), stream.raw().cast()) }.map_err(|error| error.to_string())?;
    stream.synchronize()?;
    projection.check(13, 16)?;
    Ok(1)
}

/// Nanoseconds of a launch through `dispatch`, beside the driver's own; printed, and no more than a few times as much.
fn launch_overhead(context: &mut Context) -> Result<usize, Failure> {
    const LAUNCHES: u32 = 2000;
    let problem: Problem = format!("bf16 64x{K} m1").parse().map_err(|error| format!("{error}"))?;
    let prepared = prepare(&context.gpu, [problem.clone()], &options(context)?).map_err(|error| error.to_string())?;
    let projection = Projection::new(context)?;
    let args = LaunchArgs { output_stride: 64, ..projection.args(1) };
    let time = |launch: &mut dyn FnMut() -> Result<(), Failure>| -> Result<f64, Failure> {
        (0..100).try_for_each(|_| launch())?;
        context.stream.synchronize()?;
        let mut nanoseconds = f64::INFINITY;
        for _ in 0..LAUNCHES / 100 {
            let round = Instant::now();
            (0..100).try_for_each(|_| launch())?;
            nanoseconds = nanoseconds.min(round.elapsed().as_nanos() as f64 / 100.0);
            context.stream.synchronize()?;
        }
        Ok(nanoseconds)
    };
    let through_dispatch = time(&mut || {
        let loaded = prepared.lookup(&problem).ok_or_else(|| "not prepared".to_string())?;
        // SAFETY: the buffers outlive the waits of `time`.
        unsafe { loaded.launch(&args, context.stream.raw().cast()) }.map_err(|error| error.to_string().into())
    })?;
    let source =
        tilekiln::codegen::render(&tilekiln::kernels::fill(), context.gpu.spec().arch, &context.gpu.spec().target);
    let (cubin, _) = context.jit.compile(&source.map_err(|e| e.to_string())?).map_err(|error| error.to_string())?;
    let kernel = tilekiln::device::Kernel::load(&context.gpu, &cubin, 0)?;
    let geometry = tilekiln::device::Geometry { grid: [1, 1, 1], threads: 256, smem_bytes: 0, is_dependent: false };
    let bare = time(&mut || {
        let mut words = [projection.result.pointer(), 1, 4, 0, 0, 0];
        let mut pointers: Vec<_> = words.iter_mut().map(|word| (word as *mut u64).cast()).collect();
        // SAFETY: `fill` writes one byte of a buffer that outlives the waits of `time`.
        unsafe { kernel.launch(&geometry, &mut pointers, context.stream.raw())? };
        Ok(())
    })?;
    println!("        launch through dispatch {through_dispatch:.0} ns, bare cuLaunchKernelEx {bare:.0} ns");
    if through_dispatch > 3.0 * bare + 1000.0 {
        return Err(format!("a launch takes {through_dispatch:.0} ns, a bare one {bare:.0} ns").into());
    }
    Ok(1)
}
