//! Random weights as a checkpoint would hold them, packed on the GPU by the kernels that a loader uses.

use super::LiveError;
use super::tools::{Toolbox, Value};
use crate::device::{Buffer, DevicePointer};
use crate::kernels::{self, FillKind, SCAN_RANGE_START};
use crate::quant::{self, Activations, ExponentRange, PackedLayout, Rebase, WeightFormat};

/// Raw matrices `[groups][n, k]` of one format in device memory.
pub(super) struct RawWeights {
    pub format: WeightFormat,
    pub groups: usize,
    pub n: usize,
    pub k: usize,
    /// Whether gate stands above up, to be interleaved when packed.
    pub is_gate_up: bool,
    pub codes: Buffer,
    pub scales: Buffer,
}

impl RawWeights {
    /// Random weights; equal seeds give equal bytes.
    pub fn random(
        tools: &mut Toolbox,
        format: WeightFormat,
        [groups, n, k]: [usize; 3],
        is_gate_up: bool,
        seed: u64,
    ) -> Result<Self, LiveError> {
        let (code_bytes, scale_bytes) =
            (groups * format.code_bytes(n as u64, k as u64) as usize, groups * scale_bytes(format, n, k, is_gate_up));
        let codes = Buffer::new(&tools.gpu, code_bytes)?;
        let scales = Buffer::new(&tools.gpu, scale_bytes)?;
        let (kind, elements) = kernels::random_codes(format, code_bytes);
        tools.fill(&codes, elements, kind, [0, 0], seed)?;
        if let Some(range) = kernels::random_scales(format) {
            tools.fill(&scales, scale_bytes, FillKind::Range, range, seed ^ 0x5CA1E)?;
        }
        Ok(Self { format, groups, n, k, is_gate_up, codes, scales })
    }

    pub fn group_code_bytes(&self) -> usize {
        self.format.code_bytes(self.n as u64, self.k as u64) as usize
    }

    pub fn group_scale_bytes(&self) -> usize {
        scale_bytes(self.format, self.n, self.k, self.is_gate_up)
    }

    pub fn half_rows(&self) -> usize {
        if self.is_gate_up { self.n / 2 } else { 0 }
    }

    /// Packs all groups into one buffer for such `activations`, with one rebase for all of them. Gives the buffer and
    /// what operands are to be multiplied by, besides a weight's own scale.
    pub fn pack(&self, tools: &mut Toolbox, activations: Activations) -> Result<(Buffer, f32), LiveError> {
        let layout = PackedLayout::of(self.format, activations);
        let in_use_bytes = if self.format == WeightFormat::Fp8 { self.group_scale_bytes() * self.groups } else { 0 };
        let in_use = Buffer::new(&tools.gpu, in_use_bytes)?;
        let rebase = self.scan(tools, layout, &in_use)?;
        let packed = Buffer::new(&tools.gpu, self.groups * layout.packed_bytes(self.n, self.k))?;
        let blocks = kernels::pack_blocks(layout, self.n, self.k);
        for group in 0..self.groups {
            let values = [
                Value::Pointer(self.codes_of(group)),
                Value::Pointer(self.scales_of(group)),
                Value::Pointer(self.in_use_of(&in_use, group)),
                Value::Pointer(packed.pointer() + (group * layout.packed_bytes(self.n, self.k)) as u64),
                Value::Int(self.n as i32),
                Value::Int(self.k as i32),
                Value::Int(i32::from(self.is_gate_up)),
                Value::Int(rebase.shift),
            ];
            tools.run(&kernels::pack(layout), [blocks, 1, 1], &values)?;
        }
        tools.stream.synchronize()?;
        Ok((packed, rebase.alpha))
    }

    /// Looks for scales in use over all groups.
    fn scan(&self, tools: &mut Toolbox, layout: PackedLayout, in_use: &Buffer) -> Result<Rebase, LiveError> {
        let range = Buffer::of(&tools.gpu, &SCAN_RANGE_START)?;
        let n_blocks = match self.format {
            WeightFormat::Bf16 => self.n * self.k,
            _ => self.group_scale_bytes(),
        };
        for group in 0..self.groups {
            let values = [
                Value::Pointer(self.codes_of(group)),
                Value::Pointer(self.scales_of(group)),
                Value::Pointer(self.in_use_of(in_use, group)),
                (&range).into(),
                Value::Long(n_blocks as i64),
                Value::Int(self.n as i32),
                Value::Int(self.k as i32),
                Value::Int(self.half_rows() as i32),
            ];
            tools.run(&kernels::pack_scan(self.format), [1024, 1, 1], &values)?;
        }
        tools.stream.synchronize()?;
        let [largest, smallest, faults, _] = range.download::<i32>(4)?[..] else {
            unreachable!("four numbers were asked for")
        };
        if faults > 0 {
            return Err(LiveError::Data(format!("{faults} random weights or scales are not finite")));
        }
        let range = (largest >= 0).then_some(ExponentRange { largest: largest as u8, smallest: smallest as u8 });
        quant::rebase(layout, range).map_err(|error| LiveError::Data(error.to_string()))
    }

    pub fn codes_of(&self, group: usize) -> DevicePointer {
        self.codes.pointer() + (group * self.group_code_bytes()) as u64
    }

    pub fn scales_of(&self, group: usize) -> DevicePointer {
        self.scales.pointer() + (group * self.group_scale_bytes()) as u64
    }

    fn in_use_of(&self, in_use: &Buffer, group: usize) -> DevicePointer {
        if in_use.bytes() == 0 { 0 } else { in_use.pointer() + (group * self.group_scale_bytes()) as u64 }
    }

    /// Mean square of a weight before alpha.
    pub fn mean_square(&self) -> f64 {
        kernels::random_mean_square(self.format)
    }
}

/// As many copies of `weights`, itself among them, as keep the L2 cold, or as memory has room for. And whether they may
/// come from the L2 for all that.
pub(super) fn copies(tools: &mut Toolbox, weights: Buffer) -> Result<(Vec<Buffer>, bool), LiveError> {
    let bytes = weights.bytes();
    let l2_bytes = tools.gpu.spec().identity.l2_bytes as usize;
    let (free, _) = tools.gpu.memory()?;
    let room = 1 + (free / 2) as usize / bytes;
    let count = (COLD_L2S * l2_bytes).div_ceil(bytes).clamp(1, MOST_COPIES).min(room);
    let mut copies = Vec::with_capacity(count);
    for _ in 1..count {
        let copy = Buffer::new(&tools.gpu, bytes)?;
        copy.copy_from(&weights, bytes, &tools.stream)?;
        copies.push(copy);
    }
    copies.push(weights);
    tools.stream.synchronize()?;
    Ok((copies, count * bytes < WARM_L2S * l2_bytes))
}

/// Copies together are this many times the L2.
const COLD_L2S: usize = 6;

/// Below this many times the L2, weights that are met again may still be there.
pub(super) const WARM_L2S: usize = 3;

/// As many launches as a graph has at most: a launch cannot meet its copy again before the next replay.
const MOST_COPIES: usize = super::MOST_LAUNCHES as usize;

/// Bytes of the scales of one matrix. Gate and up have an FP8 grid each.
fn scale_bytes(format: WeightFormat, n: usize, k: usize, is_gate_up: bool) -> usize {
    let (halves, rows) = if is_gate_up { (2, n / 2) } else { (1, n) };
    halves * format.scale_bytes(rows as u64, k as u64) as usize
}
