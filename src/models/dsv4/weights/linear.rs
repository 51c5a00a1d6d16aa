//! One weight matrix as a checkpoint holds it.

use std::borrow::Cow;

use crate::quant::{ConvertError, WeightFormat, bf16, e2m1, e4m3, mxfp4, ue8m0};

/// A matrix `[n, k]` with everything that belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear<'a> {
    /// Native name without `.weight`, such as `layers.3.attn.wq_a`.
    pub name: String,
    /// How it is stored.
    pub format: WeightFormat,
    /// Rows.
    pub n: usize,
    /// Values in a row.
    pub k: usize,
    /// Codes row-major: `n * k / 2` bytes (low nibble first), `n * k`, or for BF16 `2 * n * k`, little-endian.
    pub codes: &'a [u8],
    /// Block scales as [`quant::SourceMatrix`](crate::quant::SourceMatrix) has them; empty for BF16.
    pub scales: Cow<'a, [u8]>,
    /// What all weights are multiplied by: the `weight_scale_2` of NVFP4, otherwise 1.
    pub tensor_scale: f32,
    /// The file's scale of activations, as a multiplier (ModelOpt's convention), unvalidated: it may be anything.
    pub input_scale: Option<f32>,
}

impl<'a> Linear<'a> {
    /// The same values as NVFP4: scales of its own, codes where they lie. What is no MXFP4 stays as it is.
    ///
    /// # Errors
    /// [`ConvertError`] for scales that are NaN or too far apart; it names the block.
    pub fn to_nvfp4(&self) -> Result<Linear<'a>, ConvertError> {
        if self.format != WeightFormat::Mxfp4 {
            return Ok(self.clone());
        }
        let (scales, tensor_scale) = mxfp4::nvfp4_scales(self.n, self.k, self.codes, &self.scales)?;
        let scales = Cow::Owned(scales);
        Ok(Linear { format: WeightFormat::Nvfp4, scales, tensor_scale, ..self.clone() })
    }

    /// Row, place along the row and value of the first weight that is NaN or infinite by its code. Codes of four bits
    /// are always finite.
    pub fn first_non_finite(&self) -> Option<(usize, usize, f32)> {
        let (idx, value) = match self.format {
            WeightFormat::Nvfp4 | WeightFormat::Mxfp4 => return None,
            WeightFormat::Fp8 => (first(self.codes, |&code| e4m3::is_nan(code))?, f32::NAN),
            WeightFormat::Bf16 => {
                let (values, _) = self.codes.as_chunks();
                let value = |bytes: &[u8; 2]| bf16::decode(u16::from_le_bytes(*bytes));
                let idx = first(values, |bytes| !value(bytes).is_finite())?;
                (idx, value(&values[idx]))
            }
        };
        Some((idx / self.k, idx % self.k, value))
    }

    /// The weights `[n, k]` as f32.
    pub fn dequantized(&self) -> Vec<f32> {
        let value = |row: usize, k: usize| {
            let idx = row * self.k + k;
            let nibble = || e2m1::decode(self.codes[idx / 2] >> (idx % 2 * 4) & 0xF);
            match self.format {
                WeightFormat::Nvfp4 => nibble() * e4m3::decode(self.scales[idx / 16]) * self.tensor_scale,
                WeightFormat::Mxfp4 => nibble() * ue8m0::decode(self.scales[idx / 32]),
                WeightFormat::Fp8 => {
                    let scale = self.scales[row / 128 * self.k.div_ceil(128) + k / 128];
                    e4m3::decode(self.codes[idx]) * ue8m0::decode(scale)
                }
                WeightFormat::Bf16 => bf16::decode(u16::from_le_bytes([self.codes[2 * idx], self.codes[2 * idx + 1]])),
            }
        };
        (0..self.n).flat_map(|row| (0..self.k).map(move |k| (row, k))).map(|(row, k)| value(row, k)).collect()
    }
}

/// The first element for which `is_bad` holds. Most matrices have none, and whether a stretch has one is found many
/// elements at a time, as its place is not.
fn first<T>(elements: &[T], is_bad: impl Fn(&T) -> bool) -> Option<usize> {
    const STRETCH: usize = 4096;
    let has_bad = |stretch: &[T]| stretch.iter().fold(false, |found, element| found | is_bad(element));
    let stretch = elements.chunks(STRETCH).position(has_bad)? * STRETCH;
    Some(stretch + elements[stretch..].iter().position(is_bad)?)
}
