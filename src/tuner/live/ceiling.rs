//! How fast bytes can come at all, and kernels that misbehave: what is measured beside candidates.

use std::ffi::c_void;
use std::sync::Arc;

use super::LiveError;
use crate::codegen;
use crate::device::{Buffer, Event, Geometry, Gpu, Kernel, Stream};
use crate::jit::Jit;
use crate::kernels;

/// Time of a pure read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::tuner) struct Ceiling {
    /// In a chain of dependent launches, microseconds a launch.
    pub chained_us: f64,
    /// Without overlap.
    pub unchained_us: f64,
}

impl Ceiling {
    /// Times the read of `bytes` from rotating buffers, over several grids, and takes the fastest.
    pub fn measure(gpu: Arc<Gpu>, jit: Arc<Jit>, bytes: u64) -> Result<Self, LiveError> {
        let bytes = (bytes as usize).next_multiple_of(4096);
        let copies = (COLD_BYTES / bytes).clamp(2, LAUNCHES as usize);
        let buffers = (0..copies).map(|_| Buffer::new(&gpu, bytes)).collect::<Result<Vec<_>, _>>()?;
        buffers.iter().try_for_each(|buffer| buffer.set_bytes(1))?;
        let sink = Buffer::zeros(&gpu, 4)?;
        let stream = Stream::new(&gpu)?;
        let kernels = [4, 8].map(|in_flight| load(&gpu, &jit, &kernels::stream(in_flight)));
        let [few, many] = kernels;
        let (few, many) = (few?, many?);
        let read = |kernel, blocks_per_sm| {
            let blocks = gpu.spec().sm_count() * blocks_per_sm;
            Read { gpu: &gpu, kernel, blocks, buffers: &buffers, sink: &sink }
        };
        let grids = grids(copies);
        let of_kernel = |kernel| grids.iter().map(move |&blocks| read(kernel, blocks));
        let reads: Vec<Read<'_>> = [&few, &many].into_iter().flat_map(of_kernel).collect();
        let best = |overlaps| fastest(&reads, &stream, overlaps);
        Ok(Self { chained_us: best(true)?, unchained_us: best(false)? })
    }
}

/// Blocks an SM to try. Launches that are on the SMs together must not read the same of `copies` buffers: the later
/// ones would find it in the L2.
fn grids(copies: usize) -> Vec<u32> {
    [1, 2, 3, 4, 6, 8].into_iter().filter(|blocks| copies as u32 > BLOCKS_OF_AN_SM / blocks).collect()
}

/// Median of the fastest of `reads`. Two replays of each find the two that are measured longer.
fn fastest(reads: &[Read<'_>], stream: &Stream, overlaps: bool) -> Result<f64, LiveError> {
    let mut scanned = Vec::new();
    for read in reads {
        scanned.push((read.median_us(stream, overlaps, 2)?, read));
    }
    scanned.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut best = f64::INFINITY;
    for (_, read) in scanned.into_iter().take(2) {
        best = best.min(read.median_us(stream, overlaps, REPLAYS)?);
    }
    Ok(best)
}

/// A read of one grid, from buffers in turn.
struct Read<'a> {
    gpu: &'a Gpu,
    kernel: &'a Kernel,
    blocks: u32,
    buffers: &'a [Buffer],
    sink: &'a Buffer,
}

impl Read<'_> {
    /// Median time of one launch in a graph of many, over `replays`; the first is not counted.
    fn median_us(&self, stream: &Stream, overlaps: bool, replays: usize) -> Result<f64, LiveError> {
        let is_dependent = overlaps && self.gpu.spec().arch.capabilities.dependent_launch;
        let launches = (GRAPH_BYTES / self.buffers[0].bytes()).clamp(self.buffers.len(), LAUNCHES as usize);
        let geometry = Geometry { grid: [self.blocks, 1, 1], threads: 256, smem_bytes: 0, is_dependent };
        let graph = stream.capture(|| -> Result<(), LiveError> {
            for launch in 0..launches {
                let from = &self.buffers[launch % self.buffers.len()];
                let mut words = [from.pointer(), (from.bytes() / 16) as u64, self.sink.pointer()];
                let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|word| (word as *mut u64).cast()).collect();
                // SAFETY: the values are those of `templates/stream`, and the buffers outlive the replays below.
                unsafe { self.kernel.launch(&geometry, &mut pointers, stream.raw())? };
            }
            Ok(())
        })?;
        let (start, end) = (Event::new(self.gpu)?, Event::new(self.gpu)?);
        let mut times = Vec::new();
        for _ in 0..replays {
            start.record(stream)?;
            graph.launch(stream)?;
            end.record(stream)?;
            times.push(end.microseconds_since(&start)? / launches as f64);
        }
        Ok(crate::tuner::race::median(&times[1..]))
    }
}

/// Runs a kernel that faults or never ends.
pub(in crate::tuner) fn run_sabotage(gpu: &Gpu, jit: &Jit, hangs: bool) -> Result<(), LiveError> {
    let flag = Buffer::zeros(gpu, 4)?;
    let stream = Stream::new(gpu)?;
    let kernel = load(gpu, jit, &kernels::sabotage())?;
    let mut words = [flag.pointer(), u64::from(hangs)];
    let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|word| (word as *mut u64).cast()).collect();
    let geometry = Geometry { grid: [1, 1, 1], threads: 32, smem_bytes: 0, is_dependent: false };
    // SAFETY: the values are those of `templates/sabotage`, which misbehaves inside the GPU's own address space; this
    // process has nothing to lose but its context.
    unsafe { kernel.launch(&geometry, &mut pointers, stream.raw())? };
    Ok(stream.synchronize()?)
}

fn load(gpu: &Gpu, jit: &Jit, request: &codegen::Request) -> Result<Kernel, LiveError> {
    let spec = gpu.spec();
    let source = codegen::render(request, spec.arch, &spec.target)?;
    let (cubin, _) = jit.compile(&source)?;
    Ok(Kernel::load(gpu, &cubin, 0)?)
}

/// Buffers together are at least this large, several times any L2.
const COLD_BYTES: usize = 400 << 20;

/// Blocks of 256 threads that an SM holds.
const BLOCKS_OF_AN_SM: u32 = 8;

const LAUNCHES: u32 = 200;

/// What one graph reads, if that is not fewer launches than there are buffers: a few milliseconds.
const GRAPH_BYTES: usize = 8 << 30;

const REPLAYS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_that_run_together_read_different_buffers() {
        assert_eq!(grids(200), [1, 2, 3, 4, 6, 8]);
        assert_eq!(grids(4), [3, 4, 6, 8]);
        assert_eq!(grids(2), [6, 8]);
    }
}
