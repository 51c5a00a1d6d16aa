//! FP8 as DeepSeek stores it: E4M3 codes with one UE8M0 scale for every 128x128 block of a weight.
//!
//! A weight is `e4m3(code) * 2^(scale - 127)`. Rows and columns beyond the last whole block have a scale of their own,
//! so any shape is allowed. Activations are quantised a token at a time, with an f32 scale.

use super::activation::NonFinite;
use super::shape::Shape;
use super::{QuantizeError, ShapeError, e4m3, nvfp4, ue8m0};

/// Rows, and values along k, that share a scale.
pub const BLOCK: usize = 128;

/// A weight matrix `[n, k]` as checkpoints hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fp8Matrix {
    /// Rows.
    pub n: usize,
    /// Values in a row.
    pub k: usize,
    /// `[n, k]`, E4M3.
    pub codes: Vec<u8>,
    /// `[ceil(n / 128), ceil(k / 128)]`, UE8M0.
    pub scales: Vec<u8>,
}

impl Fp8Matrix {
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
/// - `codes`: `[n, k]`, E4M3.
/// - `scales`: `[ceil(n / 128), ceil(k / 128)]`, UE8M0; byte 255 makes its block NaN.
///
/// # Errors
/// [`ShapeError`] if a slice has another length.
pub fn decode(n: usize, k: usize, codes: &[u8], scales: &[u8]) -> Result<Vec<f32>, ShapeError> {
    let columns = k.div_ceil(BLOCK);
    Shape { rows: n, k }.holds("bytes of codes", n * k, codes.len())?.holds(
        "block scales",
        n.div_ceil(BLOCK) * columns,
        scales.len(),
    )?;
    let scale = |idx: usize| ue8m0::decode(scales[idx / k / BLOCK * columns + idx % k / BLOCK]);
    Ok(codes.iter().enumerate().map(|(idx, &code)| e4m3::decode(code) * scale(idx)).collect())
}

/// Quantises weights `[n, k]`: scale `2^ceil(log2(max(amax, 448 * 2^-126) / 448))` of the block, code nearest to
/// `x / scale`.
///
/// # Errors
/// [`QuantizeError`] if `x` is not `[n, k]` or a weight is not finite.
pub fn quantize_weights(x: &[f32], n: usize, k: usize) -> Result<Fp8Matrix, QuantizeError> {
    Shape { rows: n, k }.finite_weights(x)?;
    let columns = k.div_ceil(BLOCK);
    let mut amaxes = vec![e4m3::MAX * f32::MIN_POSITIVE; n.div_ceil(BLOCK) * columns];
    let block = |idx: usize| idx / k / BLOCK * columns + idx % k / BLOCK;
    for (idx, value) in x.iter().enumerate() {
        let amax = &mut amaxes[block(idx)];
        *amax = amax.max(value.abs());
    }
    let scales: Vec<u8> = amaxes.iter().map(|amax| ue8m0::encode_up(amax / e4m3::MAX)).collect();
    let code = |(idx, value): (usize, &f32)| e4m3::encode(value / ue8m0::decode(scales[block(idx)]));
    Ok(Fp8Matrix { n, k, codes: x.iter().enumerate().map(code).collect(), scales })
}

/// Tokens in FP8, one scale each.
#[derive(Clone, Debug, PartialEq)]
pub struct Fp8Activations {
    /// Tokens.
    pub m: usize,
    /// Values of a token.
    pub k: usize,
    /// `[m, k]`, E4M3, never NaN.
    pub codes: Vec<u8>,
    /// `[m]`: a value is `e4m3(code) * row_scale`.
    pub row_scales: Vec<f32>,
    /// What there was of NaN and infinity, whose codes are 0.
    pub non_finite: NonFinite,
}

impl Fp8Activations {
    /// The values `[m, k]`.
    pub fn decode(&self) -> Vec<f32> {
        self.codes.iter().enumerate().map(|(idx, &code)| e4m3::decode(code) * self.row_scales[idx / self.k]).collect()
    }
}

/// Quantises activations `[m, k]` to FP8, a token at a time.
///
/// In this order, all f32: `scale = max(amax, 1e-30) / 448`, code nearest to `x / scale`. NaN and infinities take no
/// part in `amax`, get code 0 and are counted: the same rule as [`super::activation::quantize_activations`].
///
/// # Errors
/// [`ShapeError`] if `x` is not `[m, k]`.
pub fn quantize_activations(x: &[f32], m: usize, k: usize) -> Result<Fp8Activations, ShapeError> {
    Shape { rows: m, k }.holds("values", m * k, x.len())?;
    let mut codes = Vec::with_capacity(x.len());
    let mut row_scales = Vec::with_capacity(m);
    let mut non_finite = NonFinite::default();
    let mut finite = Vec::with_capacity(k);
    for row in 0..m {
        non_finite.replace(row, &x[row * k..][..k], &mut finite);
        let scale = nvfp4::amax(&finite).max(super::activation::AMAX_FLOOR) / e4m3::MAX;
        row_scales.push(scale);
        codes.extend(finite.iter().map(|value| e4m3::encode(value / scale)));
    }
    Ok(Fp8Activations { m, k, codes, row_scales, non_finite })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code under every scale, against f64.
    #[test]
    fn every_product_is_exact() {
        let codes: Vec<u8> = (0..=255).collect();
        for scale in 0..=255u8 {
            let values = decode(2, 128, &codes, &[scale]).unwrap();
            for (&code, value) in codes.iter().zip(values) {
                if e4m3::is_nan(code) || scale == 255 {
                    assert!(value.is_nan());
                    continue;
                }
                let exact = f64::from(e4m3::decode(code)) * 2f64.powi(i32::from(scale) - 127);
                match exact.abs() >= 2f64.powi(128) {
                    true => assert_eq!(f64::from(value), exact.signum() * f64::INFINITY),
                    false => assert_eq!(f64::from(value).to_bits(), exact.to_bits(), "code {code} scale {scale}"),
                }
            }
        }
    }

    #[test]
    fn each_element_has_the_scale_of_its_block() {
        let (n, k) = (130, 264);
        let scales = [127, 128, 129, 130, 131, 132];
        let values = decode(n, k, &vec![0x38; n * k], &scales).unwrap();
        for row in 0..n {
            for column in 0..k {
                let block = 3 * usize::from(row >= 128) + usize::from(column >= 128) + usize::from(column >= 256);
                assert_eq!(values[row * k + column], (1u32 << block) as f32, "{row} {column}");
            }
        }
        assert!(decode(n, k, &vec![0; n * k], &scales[..5]).is_err());
        assert!(decode(n, k, &vec![0; n * k - 1], &scales).is_err());
    }

    #[test]
    fn weights_that_fit_come_back_and_the_rest_is_near() {
        let (n, k) = (129, 136);
        let value = |idx: usize| ((idx * 7919 % 4001) as f32 - 2000.0) * if idx % k < 128 { 0.01 } else { 40.0 };
        let x: Vec<f32> = (0..n * k).map(value).collect();
        let matrix = quantize_weights(&x, n, k).unwrap();
        // amax 20 and 80,000 over 448 lie in (2^-5, 2^-4] and (2^7, 2^8].
        assert_eq!(matrix.scales, [123, 135, 123, 135]);
        let back = matrix.decode().unwrap();
        for (x, back) in x.iter().zip(&back) {
            assert!((x - back).abs() <= x.abs() / 16.0 + 1e-4, "{x} {back}");
        }
        assert_eq!(quantize_weights(&back, n, k).unwrap(), matrix);
        assert_eq!(quantize_weights(&[0.0; 9], 3, 3).unwrap().scales, [1]);
        assert!(quantize_weights(&[f32::NAN], 1, 1).is_err());
    }

    #[test]
    fn the_scale_is_the_smallest_power_of_two_that_holds_the_amax() {
        for (amax, scale) in [(448.0f32, 127), (448.000_03, 128), (447.999_97, 127), (224.0, 126)] {
            assert_eq!(quantize_weights(&[amax], 1, 1).unwrap().scales, [scale], "{amax}");
        }
    }

    #[test]
    fn a_token_fills_the_range_and_hides_nothing() {
        let x = [1.0, -3.5, 0.5, 0.0, f32::NAN, 7.0, f32::NEG_INFINITY, -7.0, 0.0, -0.0, 0.0, 0.0];
        let tokens = quantize_activations(&x, 3, 4).unwrap();
        assert_eq!(tokens.row_scales, [3.5 / 448.0, 7.0 / 448.0, 1e-30 / 448.0]);
        assert_eq!(tokens.non_finite, NonFinite { count: 2, first: Some((1, 0)) });
        assert_eq!(tokens.codes, [0x70, 0xFE, 0x68, 0, 0, 0x7E, 0, 0xFE, 0, 0x80, 0, 0]);
        assert_eq!(tokens.decode(), [1.0, -3.5, 0.5, 0.0, 0.0, 7.0, 0.0, -7.0, 0.0, -0.0, 0.0, 0.0]);
        assert!(quantize_activations(&x, 3, 5).is_err());
    }
}
