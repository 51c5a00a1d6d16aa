//! The kernels that make data and check results, loaded once, launched with plain values.

use std::collections::HashMap;
use std::sync::Arc;

use super::LiveError;
use crate::check::{Comparison, slope};
use crate::codegen::{self, Request};
pub(super) use crate::device::Value;
use crate::device::{Buffer, DevicePointer, Geometry, Gpu, Kernel, Stream};
use crate::jit::Jit;
use crate::kernels::{self, COMPARE_BLOCKS, COMPARE_FIELDS, FillKind};
use crate::problem::Output;

/// Loads kernels by request, each once.
pub(super) struct Toolbox {
    pub stream: Stream,
    jit: Arc<Jit>,
    loaded: HashMap<Request, Arc<Kernel>>,
    // Last: what is above is destroyed in a context that must still be there.
    pub gpu: Arc<Gpu>,
}

impl Toolbox {
    pub fn new(gpu: Arc<Gpu>, jit: Arc<Jit>) -> Result<Self, LiveError> {
        let stream = Stream::new(&gpu)?;
        Ok(Self { gpu, stream, jit, loaded: HashMap::new() })
    }

    /// The kernel of `request`, compiled or taken from the cache, and loaded.
    pub fn kernel(&mut self, request: &Request, smem_bytes: u32) -> Result<Arc<Kernel>, LiveError> {
        if let Some(kernel) = self.loaded.get(request) {
            return Ok(kernel.clone());
        }
        let spec = self.gpu.spec();
        let source = codegen::render(request, spec.arch, &spec.target)?;
        let (cubin, _) = self.jit.compile(&source)?;
        let kernel = Arc::new(Kernel::load(&self.gpu, &cubin, smem_bytes)?);
        self.loaded.insert(request.clone(), kernel.clone());
        Ok(kernel)
    }

    /// Launches the tool `request` with `values`, in order on this toolbox's stream.
    pub fn run(&mut self, request: &Request, grid: [u32; 3], values: &[Value]) -> Result<(), LiveError> {
        let kernel = self.kernel(request, 0)?;
        let geometry = Geometry { grid, threads: TOOL_THREADS, smem_bytes: 0, is_dependent: false };
        // SAFETY: the tools are our own; each caller passes the values that the tool's doc lists, and buffers that it
        // keeps until it has waited for the stream.
        unsafe { kernel.launch_values(&geometry, values, self.stream.raw())? };
        Ok(())
    }

    /// Fills `buffer` with `count` elements of `kind`.
    pub fn fill(
        &mut self,
        buffer: &Buffer,
        count: usize,
        kind: FillKind,
        range: [u8; 2],
        seed: u64,
    ) -> Result<(), LiveError> {
        let blocks = (count.div_ceil(256)).clamp(1, 4096) as u32;
        let [low, high] = range.map(i32::from);
        let values = [
            buffer.into(),
            Value::Long(count as i64),
            Value::Int(kind as i32),
            Value::Int(low),
            Value::Int(high),
            Value::Long(seed as i64),
        ];
        self.run(&kernels::fill(), [blocks, 1, 1], &values)
    }

    /// Compares `rows` x `columns` elements of a result at `d` with the reference at `r`.
    pub fn compare(
        &mut self,
        output: Output,
        [d, r]: [(DevicePointer, usize); 2],
        rows: u32,
        columns: u32,
    ) -> Result<Comparison, LiveError> {
        let report = Buffer::zeros(&self.gpu, (COMPARE_BLOCKS * COMPARE_FIELDS * 8) as usize)?;
        let values = [
            Value::Pointer(d.0),
            Value::Pointer(r.0),
            (&report).into(),
            Value::Long(d.1 as i64),
            Value::Long(r.1 as i64),
            Value::Int(rows as i32),
            Value::Int(columns as i32),
            Value::Double(slope(output)),
        ];
        self.run(&kernels::compare(output), [COMPARE_BLOCKS, 1, 1], &values)?;
        let numbers: Vec<f64> = report.download((COMPARE_BLOCKS * COMPARE_FIELDS) as usize)?;
        let mut all = Comparison::default();
        for block in numbers.chunks_exact(COMPARE_FIELDS as usize) {
            all.add(&Comparison {
                elements: 0,
                error: block[0],
                size: block[1],
                rounding: block[2],
                worst: block[3],
                not_finite: block[4] as u64,
                checksum: block[5].to_bits(),
            });
        }
        all.elements = u64::from(rows) * u64::from(columns);
        Ok(all)
    }
}

/// Threads of a block of every tool.
const TOOL_THREADS: u32 = 256;
