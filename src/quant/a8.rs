//! FP8 operands: what `a8` kernels make of packed weights, and the order in which they take the k of tokens.
//!
//! Tokens are E4M3 with an f32 scale each, weights are decoded to E4M3, and the FP8 tensor cores multiply them:
//!
//! - NVFP4: E4M3 nearest to `e2m1 * scale / 6`. The largest product, 6 * 448, becomes 448. Because of the third, 1.5, 3
//!   and 6 times any scale are exact, and 0.5, 1, 2 and 4 times it lose the fourth bit of their product; a power of two
//!   would have it the other way round, and random weights lose 1.4 % of their L2 instead of 2.1 %. Scales below 0.1875
//!   make subnormals, which lose more, of blocks that count for less.
//! - MXFP4: `e2m1 * 2^6` under the largest scale of the tensor, exact as long as scales span at most 11 binades.
//! - FP8: the codes; the scale of 128 k is applied to their f32 sum.
//!
//! A packed word gives a lane k `2c, 2c + 1, 2c + 8, 2c + 9` of each 16, in an order that costs an instruction to undo.
//! A sum does not mind its order, so tokens are stored in that one instead.

use super::{e2m1, e4m3};

/// k that are permuted among themselves.
pub const GROUP: usize = 16;

/// The k, within its 16, that stands at each position of a token's row: position `4c + i` holds
/// `{ 2c + 8, 2c, 2c + 9, 2c + 1 }[i]`.
pub const K_AT: [usize; GROUP] = [8, 0, 9, 1, 10, 2, 11, 3, 12, 4, 13, 5, 14, 6, 15, 7];

/// Codes in natural order to the order of operands.
///
/// # Panics
/// If there are no whole groups of 16.
pub fn in_operand_order(codes: &[u8]) -> Vec<u8> {
    assert!(codes.len().is_multiple_of(GROUP), "rows are whole groups of 16");
    codes.chunks_exact(GROUP).flat_map(|group| K_AT.map(|k| group[k])).collect()
}

/// The E4M3 operand of an E2M1 `code` under the E5M3 byte `scale`, which is not that of a zero block.
pub fn nvfp4_operand(code: u8, scale: u8) -> u8 {
    // The scale is a factor of at least 2^-22, so the first product is exact.
    let factor = f32::from_bits((u32::from(scale) << 20) + (105 << 23));
    e4m3::encode(e2m1::decode(code) * factor * (1.0 / 6.0))
}

/// The E4M3 operand of an E2M1 `code` under the rebased byte `scale`, 242 to 253 or any byte for zero.
pub fn mxfp4_operand(code: u8, scale: u8) -> u8 {
    e4m3::encode(e2m1::decode(code) * 2f32.powi(i32::from(scale) - 247))
}

/// What NVFP4 operands are multiplied by, besides the tensor's own scale, to give the weights, but for rounding.
pub const NVFP4_ALPHA: f32 = 6.0;

/// Binades by which MXFP4 operands lie higher than with BF16 operands.
pub const MXFP4_BINADES: i32 = 6;

/// Binades that the scales of an MXFP4 tensor may span: 0.5 under the smallest is the smallest normal E4M3.
pub const MXFP4_SPREAD: u8 = 11;

/// What rounding NVFP4 operands may add to the relative L2 error.
pub const NVFP4_ERROR: f64 = 0.015;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::rebase::e5m3_from_e4m3;

    #[test]
    fn positions_are_a_permutation_within_16() {
        for c in 0..4 {
            assert_eq!(K_AT[4 * c..][..4], [2 * c + 8, 2 * c, 2 * c + 9, 2 * c + 1]);
        }
        let natural: Vec<u8> = (0..48).collect();
        let permuted = in_operand_order(&natural);
        assert_eq!(permuted[16..24], [24, 16, 25, 17, 26, 18, 27, 19]);
        let mut sorted = permuted.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, natural);
    }

    /// Every code under every scale: nearest in f64, and exact where the head of this module says so.
    #[test]
    fn nvfp4_operands_are_the_nearest() {
        for byte in 1..0x7Fu8 {
            let (scale, stored) = (f64::from(e4m3::decode(byte)), e5m3_from_e4m3(byte).unwrap());
            for code in 0..16u8 {
                let exact = f64::from(e2m1::decode(code)) * scale / 6.0;
                let found = f64::from(e4m3::decode(nvfp4_operand(code, stored)));
                let nearest = (0..0x7Fu8)
                    .map(|byte| (f64::from(e4m3::decode(byte)) - exact.abs()).abs())
                    .fold(f64::INFINITY, f64::min);
                assert_eq!((found - exact).abs(), nearest, "code {code} scale {byte:#x}");
                assert!(found.abs() <= 448.0 && (found == 0.0 || found.is_sign_positive() == (code < 8)));
                if [3, 5, 7].contains(&(code & 7)) && exact.abs() >= 0.015625 {
                    assert_eq!(found, exact, "code {code} scale {byte:#x}");
                }
            }
        }
    }

    #[test]
    fn mxfp4_operands_are_exact_over_their_spread() {
        for scale in 253 - MXFP4_SPREAD..=253 {
            for code in 0..16u8 {
                let exact = f64::from(e2m1::decode(code)) * 2f64.powi(i32::from(scale) - 253 + MXFP4_BINADES);
                assert_eq!(f64::from(e4m3::decode(mxfp4_operand(code, scale))), exact, "code {code} scale {scale}");
            }
        }
    }
}
