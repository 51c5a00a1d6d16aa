//! Checkpoint matrices to packed weights on the GPU: uploaded as they lie in the file, scanned and packed there.

use std::sync::Arc;

use super::{EngineError, Kernels};
use crate::device::{Buffer, DeviceError, DevicePointer, Gpu, Stream, Value};
use crate::jit::Jit;
use crate::kernels::runner::Op;
use crate::kernels::{self, FillKind, SCAN_RANGE_START};
use crate::quant::{self, Activations, ExponentRange, PackedLayout, Rebase, WeightFormat};

/// One matrix `[n, k]` on its way to the GPU.
#[derive(Clone, Debug)]
pub struct Matrix<'a> {
    /// Native name, for errors.
    pub name: &'a str,
    /// How it is stored.
    pub format: WeightFormat,
    /// Rows of all parts together.
    pub n: usize,
    /// Values in a row.
    pub k: usize,
    /// Whether gate stands above up, to be interleaved.
    pub is_gate_up: bool,
    /// Where its bytes come from.
    pub content: Content<'a>,
}

/// Codes and block scales of a matrix.
#[derive(Clone, Debug)]
pub enum Content<'a> {
    /// As they lie in a file: one part, or gate and then up.
    File {
        /// Codes of each part, row-major.
        codes: Vec<&'a [u8]>,
        /// Block scales of each part.
        scales: Vec<&'a [u8]>,
    },
    /// Made on the GPU; equal seeds give equal bytes.
    Random(u64),
}

/// Packs matrices through staging buffers that grow to the largest batch.
pub struct Packer {
    codes: Buffer,
    scales: Buffer,
    in_use: Buffer,
    ranges: Buffer,
    kernels: Kernels,
    stream: Stream,
    gpu: Arc<Gpu>,
}

/// Whether matrices share one rebase, and so one alpha.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alphas {
    /// Groups of one projection.
    Joint,
    /// Experts, parts of a fused projection.
    Own,
}

impl Packer {
    /// Compiles or takes from the cache what packing launches.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn new(gpu: &Arc<Gpu>, jit: &Jit, threads: usize) -> Result<Self, EngineError> {
        let mut kernels = Kernels::new(gpu);
        let layout = |format| PackedLayout::of(format, Activations::A16);
        let ops = WeightFormat::ALL.map(|format| [scan_op(format), pack_op(layout(format), 1)]);
        kernels.load(ops.iter().flatten().chain([&fill_op(1)]), jit, threads)?;
        let empty = || Buffer::new(gpu, 0);
        let (codes, scales, in_use, ranges) = (empty()?, empty()?, empty()?, empty()?);
        Ok(Self { codes, scales, in_use, ranges, kernels, stream: Stream::new(gpu)?, gpu: gpu.clone() })
    }

    /// Packs `matrices`, all of one shape and format, one behind the other at `to`. Gives what the operands of each are
    /// multiplied by; the `weight_scale_2` of NVFP4 comes on top.
    ///
    /// # Errors
    /// [`EngineError::Packing`] names the matrix with a weight or scale that cannot be packed.
    ///
    /// # Panics
    /// If there are none.
    pub fn pack(
        &mut self,
        matrices: &[Matrix<'_>],
        alphas: Alphas,
        to: DevicePointer,
    ) -> Result<Vec<f32>, EngineError> {
        let first = &matrices[0];
        let packed_bytes = PackedLayout::of(first.format, Activations::A16).packed_bytes(first.n, first.k);
        let row_bytes = first.code_bytes() / first.n;
        if matrices.len() == 1 && first.format == WeightFormat::Bf16 && first.code_bytes() > MOST_STAGED {
            return self.pack_rows(first, MOST_STAGED / row_bytes / 64 * 64, to);
        }
        let per_batch = match alphas {
            Alphas::Joint => matrices.len(),
            Alphas::Own => (MOST_STAGED / first.code_bytes().max(1)).clamp(1, matrices.len()),
        };
        let mut all = Vec::with_capacity(matrices.len());
        for (batch_idx, batch) in matrices.chunks(per_batch).enumerate() {
            let at = to + (batch_idx * per_batch * packed_bytes) as u64;
            all.extend(self.pack_batch(batch, alphas, at)?);
        }
        Ok(all)
    }

    /// A BF16 matrix that is larger than the staging buffer, some rows at a time: it has no scales to agree on.
    fn pack_rows(&mut self, matrix: &Matrix<'_>, rows: usize, to: DevicePointer) -> Result<Vec<f32>, EngineError> {
        let (layout, row_bytes) = (PackedLayout::of(matrix.format, Activations::A16), matrix.code_bytes() / matrix.n);
        for first_row in (0..matrix.n).step_by(rows) {
            let n = rows.min(matrix.n - first_row);
            let content = match &matrix.content {
                Content::File { codes, .. } => {
                    let codes = vec![&codes[0][first_row * row_bytes..(first_row + n) * row_bytes]];
                    Content::File { codes, scales: Vec::new() }
                }
                Content::Random(seed) => Content::Random(seed ^ first_row as u64),
            };
            let part = Matrix { n, content, ..matrix.clone() };
            let at = to + layout.packed_bytes(first_row, matrix.k) as u64;
            self.pack_batch(&[part], Alphas::Own, at)?;
        }
        Ok(vec![1.0])
    }

    /// Fills `buffer` with random BF16 numbers between -1 and 1.
    ///
    /// # Errors
    /// [`EngineError`] if the GPU is lost.
    pub fn fill_bf16(&self, buffer: &Buffer, seed: u64) -> Result<(), EngineError> {
        self.launch_fill(buffer.pointer(), (buffer.bytes() / 2, FillKind::Bf16), [0, 0], seed)?;
        Ok(self.stream.synchronize()?)
    }

    fn pack_batch(
        &mut self,
        matrices: &[Matrix<'_>],
        alphas: Alphas,
        to: DevicePointer,
    ) -> Result<Vec<f32>, EngineError> {
        self.stage(matrices)?;
        let ranges = self.scan(matrices)?;
        let rebases = rebases(matrices, &ranges, alphas)?;
        for (idx, (matrix, rebase)) in matrices.iter().zip(&rebases).enumerate() {
            let layout = PackedLayout::of(matrix.format, Activations::A16);
            let values = [
                Value::Pointer(self.codes.pointer() + (idx * matrix.code_bytes()) as u64),
                Value::Pointer(self.scales.pointer() + (idx * matrix.scale_bytes()) as u64),
                Value::Pointer(self.in_use.pointer() + (idx * matrix.scale_bytes()) as u64),
                Value::Pointer(to + (idx * layout.packed_bytes(matrix.n, matrix.k)) as u64),
                Value::Int(matrix.n as i32),
                Value::Int(matrix.k as i32),
                Value::Int(i32::from(matrix.is_gate_up)),
                Value::Int(rebase.shift),
            ];
            let blocks = kernels::pack_blocks(layout, matrix.n, matrix.k);
            let op = self.kernels.bind(&pack_op(layout, blocks));
            // SAFETY: the values are those that `kernels::pack` lists; the buffers outlive the wait below.
            unsafe { op.launch(&values, self.stream.raw())? };
        }
        self.stream.synchronize()?;
        Ok(rebases.iter().map(|rebase| rebase.alpha).collect())
    }

    /// Uploads codes and scales of all `matrices`, one behind the other.
    fn stage(&mut self, matrices: &[Matrix<'_>]) -> Result<(), EngineError> {
        let count = matrices.len();
        let (code_bytes, scale_bytes) = (matrices[0].code_bytes(), matrices[0].scale_bytes());
        grow(&self.gpu, &mut self.codes, count * code_bytes)?;
        grow(&self.gpu, &mut self.scales, count * scale_bytes)?;
        grow(&self.gpu, &mut self.in_use, count * scale_bytes)?;
        grow(&self.gpu, &mut self.ranges, count * size_of_val(&SCAN_RANGE_START))?;
        for (idx, matrix) in matrices.iter().enumerate() {
            match &matrix.content {
                Content::File { codes, scales } => {
                    upload_parts(&self.codes, idx * code_bytes, codes)?;
                    upload_parts(&self.scales, idx * scale_bytes, scales)?;
                }
                Content::Random(seed) => self.fill(matrix, idx, *seed)?,
            }
        }
        Ok(self.ranges.upload(&SCAN_RANGE_START.repeat(count))?)
    }

    /// Random codes and scales of one matrix at its place in the staging buffers.
    fn fill(&self, matrix: &Matrix<'_>, idx: usize, seed: u64) -> Result<(), EngineError> {
        let (kind, elements) = kernels::random_codes(matrix.format, matrix.code_bytes());
        let codes = self.codes.pointer() + (idx * matrix.code_bytes()) as u64;
        let scales = self.scales.pointer() + (idx * matrix.scale_bytes()) as u64;
        self.launch_fill(codes, (elements, kind), [0, 0], seed)?;
        if let Some(range) = kernels::random_scales(matrix.format) {
            self.launch_fill(scales, (matrix.scale_bytes(), FillKind::Range), range, seed ^ SCALES_SEED)?;
        }
        Ok(())
    }

    fn launch_fill(
        &self,
        to: DevicePointer,
        (count, kind): (usize, FillKind),
        [low, high]: [u8; 2],
        seed: u64,
    ) -> Result<(), EngineError> {
        let values = [
            Value::Pointer(to),
            Value::Long(count as i64),
            Value::Int(kind as i32),
            Value::Int(i32::from(low)),
            Value::Int(i32::from(high)),
            Value::Long(seed as i64),
        ];
        let op = self.kernels.bind(&fill_op(count));
        // SAFETY: the values are those that `kernels::fill` lists; the buffers outlive the caller's wait.
        unsafe { op.launch(&values, self.stream.raw()) }
    }

    /// For each matrix the range of its scales in use; refuses what is not finite.
    fn scan(&mut self, matrices: &[Matrix<'_>]) -> Result<Vec<Option<ExponentRange>>, EngineError> {
        for (idx, matrix) in matrices.iter().enumerate() {
            let n_blocks = if matrix.format == WeightFormat::Bf16 { matrix.n * matrix.k } else { matrix.scale_bytes() };
            let half_rows = if matrix.is_gate_up { matrix.n / 2 } else { 0 };
            let values = [
                Value::Pointer(self.codes.pointer() + (idx * matrix.code_bytes()) as u64),
                Value::Pointer(self.scales.pointer() + (idx * matrix.scale_bytes()) as u64),
                Value::Pointer(self.in_use.pointer() + (idx * matrix.scale_bytes()) as u64),
                Value::Pointer(self.ranges.pointer() + (idx * size_of_val(&SCAN_RANGE_START)) as u64),
                Value::Long(n_blocks as i64),
                Value::Int(matrix.n as i32),
                Value::Int(matrix.k as i32),
                Value::Int(half_rows as i32),
            ];
            let op = self.kernels.bind(&scan_op(matrix.format));
            // SAFETY: the values are those that `kernels::pack_scan` lists; the buffers outlive the download below.
            unsafe { op.launch(&values, self.stream.raw())? };
        }
        self.stream.synchronize()?;
        let found: Vec<i32> = self.ranges.download(4 * matrices.len())?;
        matrices.iter().zip(found.chunks_exact(4)).map(|(matrix, range)| matrix.range(range)).collect()
    }
}

impl Matrix<'_> {
    fn code_bytes(&self) -> usize {
        self.format.code_bytes(self.n as u64, self.k as u64) as usize
    }

    fn scale_bytes(&self) -> usize {
        let (halves, rows) = if self.is_gate_up { (2, self.n / 2) } else { (1, self.n) };
        halves * self.format.scale_bytes(rows as u64, self.k as u64) as usize
    }

    /// What the scan wrote, as a range.
    fn range(&self, scanned: &[i32]) -> Result<Option<ExponentRange>, EngineError> {
        let [largest, smallest, faults, first] = scanned else { unreachable!("four numbers a matrix") };
        if *faults > 0 {
            let what = if self.format == WeightFormat::Bf16 { "value" } else { "block" };
            let reason =
                format!("expected finite weights and scales, found {faults} that are not, first in {what} {first}");
            return Err(EngineError::Packing { name: self.name.to_string(), reason });
        }
        let range = ExponentRange { largest: *largest as u8, smallest: *smallest as u8 };
        Ok((*largest >= 0).then_some(range))
    }
}

/// The rebase of each matrix, or of all of them together.
fn rebases(
    matrices: &[Matrix<'_>],
    ranges: &[Option<ExponentRange>],
    alphas: Alphas,
) -> Result<Vec<Rebase>, EngineError> {
    let refused = |matrix: &Matrix<'_>, error: quant::rebase::SpreadError| EngineError::Packing {
        name: matrix.name.to_string(),
        reason: error.to_string(),
    };
    let layout = PackedLayout::of(matrices[0].format, Activations::A16);
    if alphas == Alphas::Own {
        let each = matrices.iter().zip(ranges);
        return each.map(|(m, range)| quant::rebase(layout, *range).map_err(|error| refused(m, error))).collect();
    }
    let all = ranges
        .iter()
        .flatten()
        .copied()
        .reduce(|a, b| ExponentRange { largest: a.largest.max(b.largest), smallest: a.smallest.min(b.smallest) });
    let rebase = quant::rebase(layout, all).map_err(|error| refused(&matrices[0], error))?;
    Ok(vec![rebase; matrices.len()])
}

fn upload_parts(to: &Buffer, mut offset: usize, parts: &[&[u8]]) -> Result<(), DeviceError> {
    for part in parts {
        to.upload_at(offset, part)?;
        offset += part.len();
    }
    Ok(())
}

/// Makes `buffer` hold at least `bytes`; what it held is lost.
fn grow(gpu: &Gpu, buffer: &mut Buffer, bytes: usize) -> Result<(), DeviceError> {
    if buffer.bytes() < bytes {
        // The old one first: both may not fit.
        *buffer = Buffer::new(gpu, 0)?;
        *buffer = Buffer::new(gpu, bytes)?;
    }
    Ok(())
}

fn pack_op(layout: PackedLayout, blocks: u32) -> Op {
    Op { kernel: kernels::pack(layout), grid: [blocks, 1, 1], threads: 256, smem_bytes: 0 }
}

fn scan_op(format: WeightFormat) -> Op {
    Op { kernel: kernels::pack_scan(format), grid: [1024, 1, 1], threads: 256, smem_bytes: 0 }
}

fn fill_op(count: usize) -> Op {
    let blocks = count.div_ceil(256).clamp(1, 4096) as u32;
    Op { kernel: kernels::fill(), grid: [blocks, 1, 1], threads: 256, smem_bytes: 0 }
}

/// Scales are not made from the same numbers as their codes.
const SCALES_SEED: u64 = 0x5CA1E;

/// Bytes of codes that are uploaded before they are packed.
const MOST_STAGED: usize = 256 << 20;
