//! Conversions of activations: every byte against the CPU's.

use super::dense::POISON;
use super::tools::Toolbox;
use super::{Candidate, LiveError, Mode, launch_with};
use crate::check::Comparison;
use crate::device::Buffer;
use crate::dispatch::LaunchArgs;
use crate::kernels::FillKind;
use crate::problem::Convert;
use crate::quant::{self, ScalePolicy, WeightFormat, a8, bf16, fp8};

pub(super) struct ConvertSubject {
    convert: Convert,
    tokens: Buffer,
    codes: Buffer,
    block_scales: Buffer,
    row_scales: Buffer,
    counters: Buffer,
}

impl ConvertSubject {
    pub fn new(tools: &mut Toolbox, convert: &Convert, seed: u64) -> Result<Self, LiveError> {
        let elements = convert.m as usize * convert.k as usize;
        let tokens = Buffer::new(&tools.gpu, 2 * elements)?;
        tools.fill(&tokens, elements, FillKind::Bf16, [0, 0], seed)?;
        let code_bytes = if convert.to == WeightFormat::Nvfp4 { elements / 2 } else { elements };
        Ok(Self {
            convert: convert.clone(),
            tokens,
            codes: Buffer::new(&tools.gpu, code_bytes)?,
            block_scales: Buffer::new(&tools.gpu, elements / 16)?,
            row_scales: Buffer::new(&tools.gpu, 4 * convert.m as usize)?,
            counters: Buffer::zeros(&tools.gpu, 12)?,
        })
    }

    pub fn args(&self, m: u32) -> LaunchArgs {
        LaunchArgs {
            activations: self.tokens.pointer(),
            activation_stride: self.convert.k,
            output: self.codes.pointer(),
            tokens: m,
            block_scales: self.block_scales.pointer(),
            row_scales: self.row_scales.pointer(),
            counters: self.counters.pointer(),
            ..LaunchArgs::default()
        }
    }

    /// A comparison whose "elements that are not finite" are the bytes that differ.
    pub fn compare(&mut self, tools: &mut Toolbox, candidate: &Candidate) -> Result<Comparison, LiveError> {
        let m = candidate.bound.problem().m();
        for buffer in [&self.codes, &self.block_scales, &self.row_scales] {
            buffer.set_bytes(POISON)?;
        }
        launch_with(candidate, self.args(m), tools.stream.raw().cast(), Mode::Unchained)?;
        tools.stream.synchronize()?;
        let (m, k) = (m as usize, self.convert.k as usize);
        let x: Vec<f32> = self.tokens.download::<u16>(m * k)?.into_iter().map(bf16::decode).collect();
        let row_scales: Vec<f32> = self.row_scales.download(m)?;
        let shape = |error: quant::ShapeError| LiveError::Data(error.to_string());
        let (codes, block_scales, expected_rows) = match self.convert.to {
            WeightFormat::Nvfp4 => {
                let expected = quant::quantize_activations(&x, m, k, ScalePolicy::PerToken).map_err(shape)?;
                (expected.codes, expected.scales, expected.row_scales)
            }
            _ => {
                let expected = fp8::quantize_activations(&x, m, k).map_err(shape)?;
                (a8::in_operand_order(&expected.codes), Vec::new(), expected.row_scales)
            }
        };
        let differing = |found: &[u8], expected: &[u8]| found.iter().zip(expected).filter(|(a, b)| a != b).count();
        let mut wrong = differing(&self.codes.download(codes.len())?, &codes);
        wrong += differing(&self.block_scales.download(block_scales.len())?, &block_scales);
        wrong += row_scales.iter().zip(&expected_rows).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        let elements = (codes.len() + block_scales.len() + m) as u64;
        Ok(Comparison { elements, size: 1.0, not_finite: wrong as u64, ..Comparison::default() })
    }
}
