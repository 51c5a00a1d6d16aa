//! MXFP4: E2M1 codes in blocks of 32 along k that share a UE8M0 scale; there is no scale of the tensor.
//!
//! A value is `e2m1(code) * 2^(scale - 127)`, exact in f32 but for codes above 2 (1.5) under scale 253 (254), which
//! overflow to infinity. Most MXFP4 tensors are NVFP4 tensors in another coat: [`to_nvfp4`] changes scales only.
//! Source: OCP Microscaling Formats v1.0.

use super::shape::Shape;
use super::{Nvfp4Matrix, QuantizeError, ShapeError, WeightFormat, e2m1, e4m3, nvfp4, ue8m0};

/// Values that share a scale.
pub const GROUP: usize = 32;

/// A weight matrix `[n, k]` as checkpoints hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mxfp4Matrix {
    /// Rows.
    pub n: usize,
    /// Values in a row.
    pub k: usize,
    /// `[n, k / 2]`: byte `i` of a row holds value `2i` low and `2i + 1` high.
    pub codes: Vec<u8>,
    /// `[n, k / 32]`, UE8M0.
    pub scales: Vec<u8>,
}

impl Mxfp4Matrix {
    /// The values `[n, k]`; see [`decode`].
    ///
    /// # Errors
    /// [`ShapeError`] if the fields do not fit each other.
    pub fn decode(&self) -> Result<Vec<f32>, ShapeError> {
        decode(self.n, self.k, &self.codes, &self.scales)
    }
}

/// Decodes a matrix to `[n, k]`.
///
/// # Shapes
/// - `codes`: `[n, k / 2]`, low nibble first.
/// - `scales`: `[n, k / 32]`, UE8M0; byte 255 makes its 32 values NaN.
///
/// # Errors
/// [`ShapeError`] if `k` is no multiple of 32 or a slice has another length.
pub fn decode(n: usize, k: usize, codes: &[u8], scales: &[u8]) -> Result<Vec<f32>, ShapeError> {
    check(n, k, codes, scales)?;
    let value = |idx: usize| e2m1::decode(e2m1::code_at(codes, idx)) * ue8m0::decode(scales[idx / GROUP]);
    Ok((0..n * k).map(value).collect())
}

/// Quantises weights `[n, k]`: scale `2^ceil(log2(max(amax, 6 * 2^-126) / 6))`, code nearest to `x / scale`.
///
/// # Errors
/// [`QuantizeError`] if `k` is no multiple of 32, `x` is not `[n, k]`, or a weight is not finite.
pub fn quantize_weights(x: &[f32], n: usize, k: usize) -> Result<Mxfp4Matrix, QuantizeError> {
    Shape { rows: n, k }.whole_blocks(WeightFormat::Mxfp4)?.finite_weights(x)?;
    let mut codes = Vec::with_capacity(x.len() / 2);
    let mut scales = Vec::with_capacity(x.len() / GROUP);
    for block in x.chunks_exact(GROUP) {
        let byte = ue8m0::encode_up(nvfp4::amax(block).max(e2m1::MAX * f32::MIN_POSITIVE) / e2m1::MAX);
        scales.push(byte);
        let scale = ue8m0::decode(byte);
        let code = |value: f32| e2m1::encode(value / scale);
        codes.extend(block.chunks_exact(2).map(|pair| e2m1::pack(code(pair[0]), code(pair[1]))));
    }
    Ok(Mxfp4Matrix { n, k, codes, scales })
}

/// MXFP4 weights that NVFP4 cannot hold without loss.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// The slices do not fit the shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// Byte 255.
    #[error("expected ue8m0 weight scales below 255, found NaN (0xff) in row {row}, block {block}")]
    Nan {
        /// Row of the weight.
        row: usize,
        /// Block of 32 along the row.
        block: usize,
    },
    /// E4M3 has 18 powers of two, 2^-9 to 2^8.
    #[error(
        "expected scales within {MAX_SPREAD} binades of the largest, 2^{}, found 2^{} in row {row}, block {block}",
        i32::from(*largest) - 127,
        i32::from(*scale) - 127
    )]
    Spread {
        /// Row of the weight.
        row: usize,
        /// Block of 32 along the row.
        block: usize,
        /// Its scale.
        scale: u8,
        /// The largest scale of a block that is not all zero.
        largest: u8,
    },
    /// `scale_2` would not be a normal f32.
    #[error(
        "expected a largest block scale of at least 2^{}, found 2^{}",
        i32::from(MIN_LARGEST) - 127,
        i32::from(*largest) - 127
    )]
    Tiny {
        /// The largest scale of a block that is not all zero.
        largest: u8,
    },
}

/// Turns MXFP4 into NVFP4 of exactly the same values; codes stay as they are.
///
/// With `k_max` the largest exponent, `scale_2 = 2^(k_max - 8)`, and both blocks of 16 of each block of 32 get the
/// E4M3 scale `2^(k_j - k_max + 8)`. Blocks without a nonzero code have no say in `k_max` and get scale 1, as
/// [`nvfp4::quantize_weights`] gives them. Gate and up, which share a `scale_2`, are passed as one stacked matrix.
///
/// # Errors
/// [`ConvertError`] for slices that do not fit, NaN scales, and a spread of more than 17 binades; it names the block.
pub fn to_nvfp4(n: usize, k: usize, codes: &[u8], scales: &[u8]) -> Result<Nvfp4Matrix, ConvertError> {
    let (scales, scale_2) = nvfp4_scales(n, k, codes, scales)?;
    Ok(Nvfp4Matrix { n, k, codes: codes.to_vec(), scales, scale_2 })
}

/// The E4M3 block scales and the `scale_2` of [`to_nvfp4`], for codes that stay where they are.
///
/// # Errors
/// As [`to_nvfp4`].
pub fn nvfp4_scales(n: usize, k: usize, codes: &[u8], scales: &[u8]) -> Result<(Vec<u8>, f32), ConvertError> {
    check(n, k, codes, scales)?;
    let place = |idx: usize| (idx / (k / GROUP), idx % (k / GROUP));
    if let Some((row, block)) = scales.iter().position(|&scale| scale == ue8m0::NAN).map(place) {
        return Err(ConvertError::Nan { row, block });
    }
    let in_use: Vec<bool> = codes.chunks_exact(GROUP / 2).map(|bytes| bytes.iter().any(|b| b & 0x77 != 0)).collect();
    let largest = scales.iter().zip(&in_use).filter(|&(_, &in_use)| in_use).map(|(&scale, _)| scale).max();
    let largest = largest.unwrap_or(ONE + EXPONENT_OF_MAX);
    if largest < MIN_LARGEST {
        return Err(ConvertError::Tiny { largest });
    }
    let mut block_scales = Vec::with_capacity(2 * scales.len());
    for (idx, (&scale, &in_use)) in scales.iter().zip(&in_use).enumerate() {
        let (row, block) = place(idx);
        let e4m3_scale = match in_use {
            false => 1.0,
            true if largest - scale <= MAX_SPREAD => ue8m0::decode(ONE + EXPONENT_OF_MAX - (largest - scale)),
            true => return Err(ConvertError::Spread { row, block, scale, largest }),
        };
        block_scales.extend([e4m3::encode(e4m3_scale); 2]);
    }
    Ok((block_scales, ue8m0::decode(largest - EXPONENT_OF_MAX)))
}

/// Refuses slices that are not those of an `[n, k]` matrix.
pub(super) fn check(n: usize, k: usize, codes: &[u8], scales: &[u8]) -> Result<(), ShapeError> {
    Shape { rows: n, k }.whole_blocks(WeightFormat::Mxfp4)?.holds("bytes of codes", n * k / 2, codes.len())?.holds(
        "block scales",
        n * k / GROUP,
        scales.len(),
    )?;
    Ok(())
}

/// The byte of 2^0.
const ONE: u8 = 127;

/// The largest power of two in E4M3 is 2^8.
const EXPONENT_OF_MAX: u8 = 8;

/// From 2^8 down to 2^-9, the smallest power of two in E4M3.
const MAX_SPREAD: u8 = 17;

/// The smallest byte whose `scale_2`, eight binades below, is a normal f32.
const MIN_LARGEST: u8 = EXPONENT_OF_MAX + 1;

#[cfg(test)]
mod tests {
    use super::*;

    /// 32 codes: each of the 16 twice.
    fn all_codes() -> Vec<u8> {
        (0..16).map(|byte| e2m1::pack(2 * byte, 2 * byte + 1)).collect()
    }

    #[test]
    fn every_product_is_exact() {
        for scale in 0..255u8 {
            let values = decode(1, 32, &all_codes(), &[scale]).unwrap();
            for (idx, value) in values.into_iter().enumerate() {
                let exact = f64::from(e2m1::VALUES[idx % 16]) * 2f64.powi(i32::from(scale) - 127);
                match exact.abs() >= 2f64.powi(128) {
                    true => assert_eq!(f64::from(value), exact.signum() * f64::INFINITY),
                    false => assert_eq!(f64::from(value).to_bits(), exact.to_bits(), "code {idx} scale {scale}"),
                }
            }
        }
        assert!(decode(1, 32, &all_codes(), &[255]).unwrap().iter().all(|value| value.is_nan()));
        assert!(decode(1, 32, &all_codes(), &[1, 1]).is_err());
        assert!(decode(1, 48, &[0; 24], &[1]).is_err());
    }

    #[test]
    fn what_fits_is_kept_and_the_scale_is_the_smallest_that_holds_the_amax() {
        // 253 and 254 excepted (6 overflows), the largest code brings back scale and codes; -0 keeps its sign.
        for scale in 1..253u8 {
            let matrix = Mxfp4Matrix { n: 1, k: 32, codes: all_codes(), scales: vec![scale] };
            assert_eq!(quantize_weights(&matrix.decode().unwrap(), 1, 32), Ok(matrix));
        }
        let mut x = [0.0f32; 32];
        for (amax, scale) in [(6.0f32, 127), (6.000_001, 128), (5.999_999, 127), (3.0, 126), (3.000_001, 127), (0.0, 1)]
        {
            x[9] = -amax;
            let matrix = quantize_weights(&x, 1, 32).unwrap();
            assert_eq!(matrix.scales, [scale], "{amax}");
            let back = matrix.decode().unwrap()[9];
            assert!((back + amax).abs() <= amax / 6.0, "{amax} {back}");
        }
        x[0] = f32::INFINITY;
        assert!(quantize_weights(&x, 1, 32).is_err());
    }

    /// All spreads that fit, at the ends of the exponent range and in the middle, and the first that does not.
    #[test]
    fn conversion_keeps_every_value_or_names_the_block() {
        for largest in [MIN_LARGEST + MAX_SPREAD, 127, 200, 252] {
            for spread in 0..=MAX_SPREAD + 1 {
                let mut codes = vec![0; 32];
                codes.extend(all_codes().repeat(2));
                let scales = vec![255 - 1, 0, largest, largest - spread];
                let converted = to_nvfp4(2, 64, &codes, &scales);
                if spread > MAX_SPREAD {
                    let (row, block, scale) = (1, 1, largest - spread);
                    assert_eq!(converted, Err(ConvertError::Spread { row, block, scale, largest }));
                    continue;
                }
                let converted = converted.unwrap();
                assert_eq!(converted.codes, codes);
                assert_eq!(converted.scales[..4], [0x38; 4]);
                assert_eq!(converted.scale_2, ue8m0::decode(largest - 8));
                assert_eq!(converted.decode(), decode(2, 64, &codes, &scales));
            }
        }
        assert_eq!(
            to_nvfp4(2, 32, &all_codes().repeat(2), &[100, 118]).unwrap_err().to_string(),
            "expected scales within 17 binades of the largest, 2^-9, found 2^-27 in row 0, block 0"
        );
    }

    #[test]
    fn conversion_refuses_nan_and_what_would_be_subnormal() {
        let codes = all_codes();
        assert_eq!(to_nvfp4(1, 32, &codes, &[255]), Err(ConvertError::Nan { row: 0, block: 0 }));
        assert_eq!(to_nvfp4(1, 32, &codes, &[8]), Err(ConvertError::Tiny { largest: 8 }));
        assert_eq!(to_nvfp4(1, 32, &codes, &[9]).unwrap().scale_2, f32::MIN_POSITIVE);
        let zeros = to_nvfp4(1, 32, &[0x80; 16], &[0]).unwrap();
        assert_eq!((zeros.scale_2, zeros.scales), (1.0, vec![0x38; 2]));
    }
}
