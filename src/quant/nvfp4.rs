//! NVFP4: E2M1 codes in blocks of 16 along k that share an E4M3 scale, and one f32 for the tensor.
//!
//! A value is `(e2m1(code) * e4m3(scale)) * scale_2`. The first product has at most six significant bits and is exact,
//! so a value is rounded once. [`quantize_weights`] gives the bits of NVIDIA ModelOpt 0.47 (a fixture of its output is
//! tested); activations follow another contract and live in [`super::activation`].

use super::shape::Shape;
use super::{QuantizeError, ShapeError, WeightFormat, e2m1, e4m3};

/// Values that share a scale.
pub const GROUP: usize = 16;

/// What the largest magnitude of a tensor is divided by for its f32 scale: 6 * 448, the largest code times the largest
/// block scale.
pub const RANGE: f32 = e2m1::MAX * e4m3::MAX;

/// A weight matrix `[n, k]` as checkpoints hold it.
#[derive(Clone, Debug, PartialEq)]
pub struct Nvfp4Matrix {
    /// Rows.
    pub n: usize,
    /// Values in a row.
    pub k: usize,
    /// `[n, k / 2]`: byte `i` of a row holds value `2i` low and `2i + 1` high.
    pub codes: Vec<u8>,
    /// `[n, k / 16]`, E4M3.
    pub scales: Vec<u8>,
    /// Multiplies every value.
    pub scale_2: f32,
}

impl Nvfp4Matrix {
    /// The values `[n, k]`; see [`decode`].
    ///
    /// # Errors
    /// [`ShapeError`] if the fields do not fit each other.
    pub fn decode(&self) -> Result<Vec<f32>, ShapeError> {
        decode(self.n, self.k, &self.codes, &self.scales, self.scale_2)
    }
}

/// Decodes a matrix to `[n, k]`, in the unit of `scale_2`.
///
/// # Shapes
/// - `codes`: `[n, k / 2]`, low nibble first.
/// - `scales`: `[n, k / 16]`, E4M3; a NaN byte makes its 16 values NaN ([`validate_weight_scales`] finds it first).
///
/// # Errors
/// [`ShapeError`] if `k` is no multiple of 16 or a slice has another length.
pub fn decode(n: usize, k: usize, codes: &[u8], scales: &[u8], scale_2: f32) -> Result<Vec<f32>, ShapeError> {
    check(n, k, codes, scales)?;
    let value = |idx: usize| e2m1::decode(e2m1::code_at(codes, idx)) * e4m3::decode(scales[idx / GROUP]) * scale_2;
    Ok((0..n * k).map(value).collect())
}

/// Quantises weights `[n, k]` as ModelOpt does.
///
/// In this order, all f32: `scale_2 = amax / 2688`; for each block `ratio = amax_block / (6 * scale_2)`, a ratio of
/// zero becomes 1, one below 2^-9 becomes 2^-9, and E4M3 rounds it; a code is the E2M1 nearest to
/// `x / (e4m3(scale) * scale_2)`, where zeros lose their sign and small negative values do not (code 8).
///
/// One departure: `scale_2` is at least the smallest normal f32. ModelOpt writes 0 for a tensor of zeros, which
/// loaders rightly refuse; no tensor with a magnitude above 3.2e-35 is concerned.
///
/// # Errors
/// [`QuantizeError`] if `k` is no multiple of 16, `x` is not `[n, k]`, or a weight is not finite.
pub fn quantize_weights(x: &[f32], n: usize, k: usize) -> Result<Nvfp4Matrix, QuantizeError> {
    Shape { rows: n, k }.whole_blocks(WeightFormat::Nvfp4)?.finite_weights(x)?;
    let scale_2 = (amax(x) / RANGE).max(f32::MIN_POSITIVE);
    let mut codes = Vec::with_capacity(x.len() / 2);
    let mut scales = Vec::with_capacity(x.len() / GROUP);
    for block in x.chunks_exact(GROUP) {
        let ratio = match amax(block) / (e2m1::MAX * scale_2) {
            0.0 => 1.0,
            ratio => ratio.max(e4m3::MIN_SUBNORMAL),
        };
        let scale = e4m3::encode(ratio);
        scales.push(scale);
        let divisor = e4m3::decode(scale) * scale_2;
        // Adding zero turns -0 into 0 and nothing else: ModelOpt takes the sign from `value < 0`.
        let code = |value: f32| e2m1::encode(value / divisor + 0.0);
        codes.extend(block.chunks_exact(2).map(|pair| e2m1::pack(code(pair[0]), code(pair[1]))));
    }
    Ok(Nvfp4Matrix { n, k, codes, scales, scale_2 })
}

/// A block scale that no weight may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeightScaleError {
    /// Exporters that cast without saturation write these; every token's output of the row would be NaN.
    #[error("expected finite e4m3 weight scales, found NaN ({byte:#04x}) in row {row}, block {block}")]
    Nan {
        /// Row of the weight.
        row: usize,
        /// Block of 16 along the row.
        block: usize,
        /// 0x7F or 0xFF.
        byte: u8,
    },
    /// The sign belongs to the codes.
    #[error("expected e4m3 weight scales without a sign, found {byte:#04x} in row {row}, block {block}")]
    Negative {
        /// Row of the weight.
        row: usize,
        /// Block of 16 along the row.
        block: usize,
        /// The scale, 0x80 or above.
        byte: u8,
    },
}

/// Refuses the first NaN (0x7F, 0xFF) or negative E4M3 scale among `scales`, `[n, k / 16]`.
///
/// # Errors
/// [`WeightScaleError`], which names row and block.
pub fn validate_weight_scales(scales: &[u8], k: usize) -> Result<(), WeightScaleError> {
    // The largest byte is found many bytes at a time, its place is not: a checkpoint has gigabytes of scales to pass.
    if scales.iter().fold(0, |largest, &byte| byte.max(largest)) < e4m3::NAN {
        return Ok(());
    }
    let Some(idx) = scales.iter().position(|&byte| byte >= e4m3::NAN) else { return Ok(()) };
    let blocks = (k / GROUP).max(1);
    let (row, block, byte) = (idx / blocks, idx % blocks, scales[idx]);
    Err(match e4m3::is_nan(byte) {
        true => WeightScaleError::Nan { row, block, byte },
        false => WeightScaleError::Negative { row, block, byte },
    })
}

/// The largest magnitude; 0 of nothing. NaN is passed over.
pub(super) fn amax(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |amax, value| amax.max(value.abs()))
}

/// Refuses slices that are not those of an `[n, k]` matrix.
pub(super) fn check(n: usize, k: usize, codes: &[u8], scales: &[u8]) -> Result<(), ShapeError> {
    Shape { rows: n, k }.whole_blocks(WeightFormat::Nvfp4)?.holds("bytes of codes", n * k / 2, codes.len())?.holds(
        "block scales",
        n * k / GROUP,
        scales.len(),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code under every scale, against the definition in f64, under a scale_2 with all its bits in use.
    #[test]
    fn every_product_is_rounded_once() {
        let scale_2 = 0.001_486_313_3f32;
        for scale in (0..=255u8).filter(|&scale| !e4m3::is_nan(scale)) {
            let codes: Vec<u8> = (0..8).map(|byte| e2m1::pack(2 * byte, 2 * byte + 1)).collect();
            let values = decode(1, 16, &codes, &[scale], scale_2).unwrap();
            for (code, value) in (0..16).zip(values) {
                // Both factors are exact in f64 and their product has 6 + 24 bits: the cast is the only rounding.
                let exact = f64::from(e2m1::decode(code)) * f64::from(e4m3::decode(scale)) * f64::from(scale_2);
                assert_eq!(value.to_bits(), (exact as f32).to_bits(), "code {code} scale {scale:#x}");
            }
        }
        assert!(decode(1, 16, &[0; 8], &[0x7F], 1.0).unwrap().iter().all(|value| value.is_nan()));
    }

    #[test]
    fn rows_and_blocks_do_not_mix() {
        let mut codes = vec![0; 2 * 16];
        codes[16 + 8] = 0x20; // row 1, k = 17: code 2, value 1
        let values = decode(2, 32, &codes, &[0x38, 0x38, 0x38, 0x40], 3.0).unwrap();
        let set: Vec<(usize, f32)> = values.into_iter().enumerate().filter(|(_, value)| *value != 0.0).collect();
        assert_eq!(set, [(32 + 17, 6.0)]);
    }

    #[test]
    fn zeros_get_scale_one_and_a_usable_tensor_scale() {
        let zeros = quantize_weights(&[-0.0; 32], 1, 32).unwrap();
        assert_eq!((zeros.codes, zeros.scales), (vec![0; 16], vec![0x38; 2]));
        assert_eq!(zeros.scale_2, f32::MIN_POSITIVE);
        let mut x = [0.0; 32];
        x[3] = 2688.0;
        let matrix = quantize_weights(&x, 1, 32).unwrap();
        assert_eq!((&matrix.scales[..], matrix.scale_2), (&[0x7E, 0x38][..], 1.0));
        assert_eq!(matrix.decode().unwrap(), x);
    }

    #[test]
    fn a_small_block_keeps_the_smallest_scale() {
        let mut x = [0.0; 32];
        (x[0], x[16], x[17]) = (2688.0, 1e-4, -1e-4);
        let matrix = quantize_weights(&x, 1, 32).unwrap();
        assert_eq!(matrix.scales, [0x7E, 0x01]);
        // 1e-4 / 2^-9 is below a quarter: zero, the negative one with its sign.
        assert_eq!(matrix.codes[8], 0x80);
    }

    #[test]
    fn what_cannot_be_quantised_or_read_is_refused() {
        let mut x = [1.0; 32];
        x[21] = f32::NAN;
        let error = quantize_weights(&x, 2, 16).unwrap_err().to_string();
        assert_eq!(error, "expected finite weights, found NaN in row 1, k = 5");
        assert!(matches!(quantize_weights(&[1.0; 24], 1, 24), Err(QuantizeError::Shape(ShapeError::K { .. }))));
        assert!(decode(1, 16, &[0; 7], &[0], 1.0).is_err());
        assert!(decode(1, 16, &[0; 8], &[0; 2], 1.0).is_err());
    }

    #[test]
    fn bad_weight_scales_are_named() {
        assert_eq!(validate_weight_scales(&(0..0x7F).collect::<Vec<u8>>(), 16), Ok(()));
        for byte in 0x7F..=0xFFu8 {
            let mut scales = [0x38; 12];
            scales[7] = byte;
            let (row, block) = (1, 3);
            let expected = match byte {
                0x7F | 0xFF => WeightScaleError::Nan { row, block, byte },
                _ => WeightScaleError::Negative { row, block, byte },
            };
            assert_eq!(validate_weight_scales(&scales, 64), Err(expected));
        }
        assert_eq!(
            validate_weight_scales(&[0x38, 0x7F], 16).unwrap_err().to_string(),
            "expected finite e4m3 weight scales, found NaN (0x7f) in row 1, block 0"
        );
    }
}
