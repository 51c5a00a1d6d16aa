//! Kernels that make test data and check other kernels. They share no code with what they check.

use std::collections::BTreeMap;

use super::dense_mma::out_word;
use super::plan::word_of;
use crate::codegen::Request;
use crate::problem::{Activations, Output};
use crate::quant::{WeightFormat, e2m1, e4m3, ue8m0};

/// What [`fill`] writes; the numbers are those of `templates/fill`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillKind {
    /// Bytes of every value: E2M1 codes.
    E2m1 = 0,
    /// E4M3 codes of moderate magnitude, both signs.
    E4m3 = 1,
    /// Bytes from `low` to `high`: block scales.
    Range = 2,
    /// BF16, uniform in (-1, 1), never zero.
    Bf16 = 3,
    /// The byte `low`.
    Constant = 4,
}

/// Random data: `(out, count, kind, low, high, seed)`.
pub fn fill() -> Request {
    Request { template: "fill", values: BTreeMap::new(), wgmma_tokens: None }
}

/// How random codes of `format` are filled in: the kind, and how many elements `bytes` of them are.
pub fn random_codes(format: WeightFormat, bytes: usize) -> (FillKind, usize) {
    match format {
        WeightFormat::Nvfp4 | WeightFormat::Mxfp4 => (FillKind::E2m1, bytes),
        WeightFormat::Fp8 => (FillKind::E4m3, bytes),
        WeightFormat::Bf16 => (FillKind::Bf16, bytes / 2),
    }
}

/// Ends of random scale bytes: a few binades, as weights have. `None` where there are no scales.
pub fn random_scales(format: WeightFormat) -> Option<[u8; 2]> {
    match format {
        WeightFormat::Nvfp4 => Some([0x30, 0x47]),
        WeightFormat::Mxfp4 => Some([120, 125]),
        WeightFormat::Fp8 => Some([121, 125]),
        WeightFormat::Bf16 => None,
    }
}

/// Mean square of a random weight, before alpha: codes and scales are independent, so their mean squares multiply.
pub fn random_mean_square(format: WeightFormat) -> f64 {
    let mean = |values: &mut dyn Iterator<Item = f32>| {
        let squares: Vec<f64> = values.map(|value| f64::from(value).powi(2)).collect();
        squares.iter().sum::<f64>() / squares.len() as f64
    };
    let scales = |decode: fn(u8) -> f32| match random_scales(format) {
        Some([low, high]) => mean(&mut (low..=high).map(decode)),
        None => 1.0,
    };
    match format {
        WeightFormat::Nvfp4 => mean(&mut (0..16).map(e2m1::decode)) * scales(e4m3::decode),
        WeightFormat::Mxfp4 => mean(&mut (0..16).map(e2m1::decode)) * scales(ue8m0::decode),
        WeightFormat::Fp8 => random_fp8_token_mean_square() * scales(ue8m0::decode),
        WeightFormat::Bf16 => 1.0 / 3.0,
    }
}

/// The largest random weight, of an ordinary one.
pub fn random_largest(format: WeightFormat) -> f64 {
    let scale = |decode: fn(u8) -> f32| random_scales(format).map_or(1.0, |[_, high]| f64::from(decode(high)));
    let largest = match format {
        WeightFormat::Nvfp4 => 6.0 * scale(e4m3::decode),
        WeightFormat::Mxfp4 => 6.0 * scale(ue8m0::decode),
        WeightFormat::Fp8 => f64::from(e4m3::decode(0x57)) * scale(ue8m0::decode),
        WeightFormat::Bf16 => 1.0,
    };
    largest / random_mean_square(format).sqrt()
}

/// Mean square of random E4M3 codes: what `templates/fill` makes of kind 1, magnitude bytes from 0x10, 0x48 of them.
pub fn random_fp8_token_mean_square() -> f64 {
    (0x10..0x58).map(|byte| f64::from(e4m3::decode(byte)).powi(2)).sum::<f64>() / f64::from(0x48)
}

/// The f64 product of raw weights: `(codes, scales, a, row_of, tiles, r, lda, ldr, group_code_bytes, group_scale_bytes,
/// m, n, k, half_rows, alphas, parts, row_scales)`; tokens are BF16, or E4M3 in the order of operands.
pub fn reference(format: WeightFormat, activations: Activations) -> Request {
    let tokens = match activations {
        Activations::A16 => "Bf16",
        Activations::A8 => "E4m3",
    };
    let problem = BTreeMap::from([("weights", word_of(format).into()), ("tokens", tokens.into())]);
    Request { template: "reference", values: BTreeMap::from([("problem", problem)]), wgmma_tokens: None }
}

/// What FP8 keeps of rows of BF16: `(values, rounded, scales, rows, columns)`.
pub fn reference_fp8() -> Request {
    Request { template: "reference_fp8", values: BTreeMap::new(), wgmma_tokens: None }
}

/// SwiGLU and combine in f64: `(step, sums, row_of, weight, hidden, result, rows, columns, top_k, limit)`.
pub fn reference_moe() -> Request {
    Request { template: "reference_moe", values: BTreeMap::new(), wgmma_tokens: None }
}

/// A mix of residual streams in f64: `(step, streams, y0, y1, mixing, weights, parts, result, m, hidden, n, splits)`.
/// Step 0 gives mixed streams, step 1 sums of streams, step 2 sums of a candidate's parts.
pub fn reference_mix(element: Output) -> Request {
    let problem = BTreeMap::from([("element", out_word(element).into())]);
    Request { template: "reference_mix", values: BTreeMap::from([("problem", problem)]), wgmma_tokens: None }
}

/// Every element of a result against the reference: `(d, r, report, ldd, ldr, m, columns, slope)`.
pub fn compare(output: Output) -> Request {
    let problem = BTreeMap::from([("out", out_word(output).into())]);
    Request { template: "compare", values: BTreeMap::from([("problem", problem)]), wgmma_tokens: None }
}

/// What device code makes of bits: `(step, packed, operands, row_tiles, n_slabs, gate, up, out, count, limit)`.
pub fn probe(format: WeightFormat) -> Request {
    let problem = BTreeMap::from([("weights", word_of(format).into())]);
    Request { template: "probe", values: BTreeMap::from([("problem", problem)]), wgmma_tokens: None }
}

/// A pure read with `in_flight` loads on their way in each thread: `(from, n_pieces, sink)`.
pub fn stream(in_flight: u32) -> Request {
    let tile = BTreeMap::from([("in_flight", in_flight.into())]);
    Request { template: "stream", values: BTreeMap::from([("tile", tile)]), wgmma_tokens: None }
}

/// A kernel that faults or hangs, for tests of recovery: `(flag, hangs)`.
pub fn sabotage() -> Request {
    Request { template: "sabotage", values: BTreeMap::new(), wgmma_tokens: None }
}

/// Blocks that [`compare`] is launched with.
pub const COMPARE_BLOCKS: u32 = 512;

/// Numbers that each block of [`compare`] reports.
pub const COMPARE_FIELDS: u32 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    /// Uniform codes of E2M1 have a mean square of 137 / 16; MXFP4's scales are 2^-7 to 2^-2, alike often.
    #[test]
    fn the_largest_random_weight_is_a_few_ordinary_ones() {
        let scales = (2..=7).map(|n| 0.25_f64.powi(n)).sum::<f64>() / 6.0;
        let mxfp4 = 6.0 * 0.25 / (137.0 / 16.0 * scales).sqrt();
        assert!((random_largest(WeightFormat::Mxfp4) - mxfp4).abs() < 1e-9, "{mxfp4}");
        assert!((random_largest(WeightFormat::Bf16) - 3.0_f64.sqrt()).abs() < 1e-9);
        assert!((3.9..4.0).contains(&random_largest(WeightFormat::Nvfp4)));
        assert!((6.4..6.5).contains(&random_largest(WeightFormat::Fp8)));
    }
}
