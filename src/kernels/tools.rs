//! Kernels that make test data and check other kernels. They share no code with what they check.

use std::collections::BTreeMap;

use super::dense_mma::out_word;
use super::plan::word_of;
use crate::codegen::Request;
use crate::problem::Output;
use crate::quant::WeightFormat;

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

/// The f64 product of raw weights: `(codes, scales, a, row_of, tiles, r, lda, ldr, group_code_bytes, group_scale_bytes,
/// m, n, k, half_rows, alphas, parts)`.
pub fn reference(format: WeightFormat) -> Request {
    let problem = BTreeMap::from([("weights", word_of(format).into())]);
    Request { template: "reference", values: BTreeMap::from([("problem", problem)]), wgmma_tokens: None }
}

/// SwiGLU and combine in f64: `(step, sums, row_of, weight, hidden, result, rows, columns, top_k, limit)`.
pub fn reference_moe() -> Request {
    Request { template: "reference_moe", values: BTreeMap::new(), wgmma_tokens: None }
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
