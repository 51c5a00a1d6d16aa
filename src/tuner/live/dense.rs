//! Dense GEMMs: weights in rotating copies, tokens that each launch of a chain reads from the one before.

use super::tools::{Toolbox, Value};
use super::weights::{RawWeights, copies};
use super::{Candidate, LiveError, Mode, launch_with};
use crate::check::{Comparison, Path};
use crate::device::{Buffer, Stream};
use crate::dispatch::{LaunchArgs, Segments};
use crate::kernels::{self, FillKind, random_fp8_token_mean_square, random_mean_square};
use crate::problem::{Activations, Dense, Epilogue, Output};
use crate::quant::WeightFormat;

pub(super) struct DenseSubject {
    dense: Dense,
    /// Packed weights, the same in every copy.
    copies: Vec<Buffer>,
    is_warm: bool,
    segments: Segments,
    /// Random tokens, `[m, stride]`.
    pristine: Buffer,
    /// `[m]` f32, with FP8 tokens.
    row_scales: Buffer,
    /// What a chain reads and writes in turn, `[m, stride]` each; the first is also where checks write.
    buffers: [Buffer; 2],
    /// `[m, d_columns]` f32.
    reference: Buffer,
}

impl DenseSubject {
    pub fn new(tools: &mut Toolbox, dense: &Dense, seed: u64) -> Result<Self, LiveError> {
        let [groups, n, k] = [dense.groups, dense.n, dense.k].map(|size| size as usize);
        let is_gate_up = dense.epilogue == Epilogue::SwiGlu;
        let raw = RawWeights::random(tools, dense.weights, [groups, n, k], is_gate_up, seed)?;
        let (packed, packed_alpha) = raw.pack(tools, dense.activations)?;
        // Two parts with alphas of their own, so that a kernel that takes the wrong one is found out. One keeps sums at
        // the size of the tokens, so that a chain neither grows nor dies out; gate and up are larger, so that clamps
        // are met.
        let size = if is_gate_up { 6.0 } else { 0.97 };
        let alpha = (size / (k as f64 * raw.mean_square()).sqrt()) as f32;
        let parts = if n.is_multiple_of(2) { vec![alpha, 0.9 * alpha] } else { vec![alpha] };
        let segments = match parts[..] {
            [gate, up] if is_gate_up => Segments::gate_up(gate * packed_alpha, up * packed_alpha),
            [first, second] => {
                let half = dense.n / 2;
                Segments::of(&[(half, first * packed_alpha), (dense.n - half, second * packed_alpha)])
            }
            _ => Segments::uniform(alpha * packed_alpha),
        };
        let mut subject = Self {
            dense: dense.clone(),
            copies: Vec::new(),
            is_warm: false,
            segments,
            pristine: Buffer::new(&tools.gpu, 0)?,
            row_scales: Buffer::new(&tools.gpu, 0)?,
            buffers: [Buffer::new(&tools.gpu, 0)?, Buffer::new(&tools.gpu, 0)?],
            reference: Buffer::new(&tools.gpu, 0)?,
        };
        subject.make_tokens(tools, seed)?;
        subject.reference = subject.make_reference(tools, &raw, &parts)?;
        drop(raw);
        (subject.copies, subject.is_warm) = copies(tools, packed)?;
        Ok(subject)
    }

    pub fn is_warm(&self) -> bool {
        self.is_warm
    }

    pub fn judged_by(&self) -> (Output, Path) {
        let dense = &self.dense;
        let path = match dense.activations {
            Activations::A16 => Path::Sum { k: dense.k },
            Activations::A8 => Path::Fp8 {
                is_rounded: dense.weights == WeightFormat::Nvfp4,
                is_swiglu: dense.epilogue == Epilogue::SwiGlu,
            },
        };
        (dense.output, path)
    }

    /// Elements between rows: wide enough for A and D, so that one can stand where the other was.
    fn stride(&self) -> u32 {
        self.dense.a_columns().max(self.dense.d_columns()).next_multiple_of(16)
    }

    /// A BF16 result without SwiGLU can be the next launch's tokens. SwiGLU squares the size of what it is fed, an f32
    /// result is no operand, and FP8 tokens would have to be converted: those launches only follow each other.
    fn feeds_itself(&self) -> bool {
        let Dense { output, epilogue, activations, .. } = self.dense;
        output == Output::Bf16 && epilogue == Epilogue::Plain && activations == Activations::A16
    }

    fn make_tokens(&mut self, tools: &mut Toolbox, seed: u64) -> Result<(), LiveError> {
        let elements = self.dense.m as usize * self.stride() as usize;
        let (kind, element_bytes) = match self.dense.activations {
            Activations::A16 => (FillKind::Bf16, 2),
            Activations::A8 => (FillKind::E4m3, 1),
        };
        self.pristine = Buffer::new(&tools.gpu, element_bytes * elements)?;
        tools.fill(&self.pristine, elements, kind, [0, 0], seed ^ 0xA)?;
        if self.dense.activations == Activations::A8 {
            // The size of BF16 tokens, and no two neighbours alike.
            let size = (random_mean_square(WeightFormat::Bf16) / random_fp8_token_mean_square()).sqrt() as f32;
            let scales: Vec<f32> = (0..self.dense.m).map(|token| size * (0.75 + 0.0625 * (token % 9) as f32)).collect();
            self.row_scales = Buffer::of(&tools.gpu, &scales)?;
        }
        let bytes = elements * self.dense.output.bytes() as usize;
        let second = if self.feeds_itself() { bytes } else { 0 };
        self.buffers = [Buffer::new(&tools.gpu, bytes)?, Buffer::new(&tools.gpu, second)?];
        self.reset(&tools.stream)
    }

    fn make_reference(&self, tools: &mut Toolbox, raw: &RawWeights, parts: &[f32]) -> Result<Buffer, LiveError> {
        let dense = &self.dense;
        let (m, columns) = (dense.m as usize, (dense.groups * dense.n) as usize);
        let sums = Buffer::new(&tools.gpu, 4 * m * columns)?;
        let all_alphas: Vec<f32> = (0..dense.groups).flat_map(|_| parts.iter().copied()).collect();
        let alphas = Buffer::of(&tools.gpu, &all_alphas)?;
        let grid = [dense.n.div_ceil(64), dense.m.div_ceil(64), dense.groups];
        let values = [
            (&raw.codes).into(),
            (&raw.scales).into(),
            (&self.pristine).into(),
            Value::Pointer(0),
            Value::Pointer(0),
            (&sums).into(),
            Value::Long(self.stride().into()),
            Value::Long(columns as i64),
            Value::Long(raw.group_code_bytes() as i64),
            Value::Long(raw.group_scale_bytes() as i64),
            Value::Int(dense.m as i32),
            Value::Int(dense.n as i32),
            Value::Int(dense.k as i32),
            Value::Int(raw.half_rows() as i32),
            (&alphas).into(),
            Value::Int(parts.len() as i32),
            if self.row_scales.bytes() == 0 { Value::Pointer(0) } else { (&self.row_scales).into() },
        ];
        tools.run(&kernels::reference(dense.weights, dense.activations), grid, &values)?;
        tools.stream.synchronize()?;
        if dense.epilogue == Epilogue::Plain {
            return Ok(sums);
        }
        let result = Buffer::new(&tools.gpu, 4 * m * dense.d_columns() as usize)?;
        let values = [
            Value::Int(0),
            (&sums).into(),
            Value::Pointer(0),
            Value::Pointer(0),
            Value::Pointer(0),
            (&result).into(),
            Value::Int(dense.m as i32),
            Value::Int(dense.d_columns() as i32),
            Value::Int(0),
            Value::Double(f64::from(LIMIT)),
        ];
        tools.run(&kernels::reference_moe(), [2048, 1, 1], &values)?;
        tools.stream.synchronize()?;
        Ok(result)
    }

    /// Arguments of launch `idx` for `m` tokens.
    pub fn args(&self, m: u32, idx: u32, mode: Mode) -> LaunchArgs {
        let (from, to) = match (mode, self.feeds_itself()) {
            (Mode::Chained, true) => (&self.buffers[idx as usize % 2], &self.buffers[(idx as usize + 1) % 2]),
            _ => (&self.pristine, &self.buffers[0]),
        };
        LaunchArgs {
            activations: from.pointer(),
            activation_stride: self.stride(),
            weights: self.copies[idx as usize % self.copies.len()].pointer(),
            output: to.pointer(),
            output_stride: self.stride(),
            tokens: m,
            segments: self.segments,
            row_scales: self.row_scales.pointer(),
            limit: LIMIT,
            ..LaunchArgs::default()
        }
    }

    pub fn compare(&mut self, tools: &mut Toolbox, candidate: &Candidate) -> Result<Comparison, LiveError> {
        let m = candidate.bound.problem().m();
        self.buffers[0].set_bytes(POISON)?;
        launch_with(candidate, self.args(m, 0, Mode::Unchained), tools.stream.raw().cast(), Mode::Unchained)?;
        tools.stream.synchronize()?;
        let d = (self.buffers[0].pointer(), self.stride() as usize);
        let r = (self.reference.pointer(), self.dense.d_columns() as usize);
        tools.compare(self.dense.output, [d, r], m, self.dense.d_columns())
    }

    /// Poisoned bytes that a launch changes outside of D.
    pub fn stray_writes(&mut self, tools: &mut Toolbox, candidate: &Candidate) -> Result<usize, LiveError> {
        let m = candidate.bound.problem().m() as usize;
        self.compare(tools, candidate)?;
        let element = self.dense.output.bytes() as usize;
        let row_bytes = self.stride() as usize * element;
        let written = self.dense.d_columns() as usize * element;
        let bytes: Vec<u8> = self.buffers[0].download(self.buffers[0].bytes())?;
        let strays = |(row, bytes): (usize, &[u8])| {
            let outside = if row < m { &bytes[written..] } else { bytes };
            outside.iter().filter(|&&byte| byte != POISON).count()
        };
        Ok(bytes.chunks_exact(row_bytes).enumerate().map(strays).sum())
    }

    /// Checksum of what launch `launches - 1` of a chain has written.
    pub fn checksum(&mut self, tools: &mut Toolbox, m: u32, launches: u32) -> Result<u64, LiveError> {
        let last = if self.feeds_itself() { launches as usize % 2 } else { 0 };
        let d = (self.buffers[last].pointer(), self.stride() as usize);
        let r = (self.reference.pointer(), self.dense.d_columns() as usize);
        Ok(tools.compare(self.dense.output, [d, r], m, self.dense.d_columns())?.checksum)
    }

    /// Puts the random tokens back where a chain begins.
    pub fn reset(&self, stream: &Stream) -> Result<(), LiveError> {
        if self.feeds_itself() {
            for buffer in &self.buffers {
                buffer.copy_from(&self.pristine, self.pristine.bytes(), stream)?;
            }
        }
        Ok(())
    }
}

/// NaN in BF16 and f32: what was not written is found.
pub(super) const POISON: u8 = 0xFF;

/// dsv4's `swiglu_limit`.
pub(super) const LIMIT: f32 = 10.0;
