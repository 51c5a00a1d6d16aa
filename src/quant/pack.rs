//! Checkpoint matrices to the packed layout, on the CPU: what the device's pack kernels must reproduce byte for byte.
//!
//! A weight is `operand * alpha`, and times `scale_2` for NVFP4, exactly; an operand is a normal bf16 or zero. What
//! would break that (NaN, a scale with a sign, scales too far apart) is refused with its place. BF16 passes as
//! it is, subnormals too.

use super::layout::{PackedLayout, RowOrder};
use super::rebase::{ExponentRange, Rebase, SpreadError, e5m3_factor, e5m3_from_e4m3, rebase, rebased_factor};
use super::shape::Shape;
use super::{Activations, ShapeError, WeightFormat, WeightScaleError, a8, bf16, e2m1, e4m3, fp8, mxfp4, nvfp4, ue8m0};

/// One weight matrix `[n, k]` as a checkpoint holds it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SourceMatrix<'a> {
    /// `e2m1 * e4m3`; the f32 of the tensor is the caller's to apply.
    Nvfp4 {
        /// Rows.
        n: usize,
        /// Values in a row, a multiple of 16.
        k: usize,
        /// `[n, k / 2]`, low nibble first.
        codes: &'a [u8],
        /// `[n, k / 16]`, E4M3.
        scales: &'a [u8],
    },
    /// `e2m1 * ue8m0`.
    Mxfp4 {
        /// Rows.
        n: usize,
        /// Values in a row, a multiple of 32.
        k: usize,
        /// `[n, k / 2]`, low nibble first.
        codes: &'a [u8],
        /// `[n, k / 32]`, UE8M0.
        scales: &'a [u8],
    },
    /// `e4m3 * ue8m0`.
    Fp8 {
        /// Rows.
        n: usize,
        /// Values in a row, a multiple of 8.
        k: usize,
        /// `[n, k]`, E4M3.
        codes: &'a [u8],
        /// `[ceil(n / 128), ceil(k / 128)]`, UE8M0. Under [`RowOrder::GateUp`] the two halves have a grid each, one
        /// above the other: `[2 * ceil(n / 2 / 128), ceil(k / 128)]`, which is the same where n / 2 is a multiple of
        /// 128.
        scales: &'a [u8],
    },
    /// The values themselves.
    Bf16 {
        /// Rows.
        n: usize,
        /// Values in a row, a multiple of 8.
        k: usize,
        /// `[n, k]`.
        values: &'a [u16],
    },
}

/// A matrix in its packed layout.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedWeights {
    /// Where what stands.
    pub layout: PackedLayout,
    /// Rows, padding not counted.
    pub n: usize,
    /// Values in a row, padding not counted.
    pub k: usize,
    /// [`PackedLayout::packed_bytes`] of them.
    pub bytes: Vec<u8>,
    /// What operands are multiplied by to give the weights; without the `scale_2` of NVFP4.
    pub alpha: f32,
}

/// A matrix that cannot be packed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PackError {
    /// The slices do not fit the shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// Gate and up are interleaved by eights.
    #[error("expected gate and up rows in multiples of 8 each, found n = {n} together")]
    GateUpRows {
        /// Rows of gate and up together.
        n: usize,
    },
    /// An E4M3 scale that is NaN or has a sign.
    #[error(transparent)]
    WeightScale(#[from] WeightScaleError),
    /// UE8M0 byte 255.
    #[error("expected ue8m0 weight scales below 255, found NaN (0xff) in scale row {row}, column {column}")]
    ScaleNan {
        /// Row of the scale matrix.
        row: usize,
        /// Column of the scale matrix.
        column: usize,
    },
    /// An E4M3 or BF16 weight that is NaN or infinite.
    #[error("expected finite weights, found {bits:#04x} in row {row}, k = {k}")]
    NonFinite {
        /// Row of the source.
        row: usize,
        /// Its place along the row.
        k: usize,
        /// The code.
        bits: u16,
    },
    /// UE8M0 scales too far apart.
    #[error(transparent)]
    Spread(#[from] SpreadError),
}

/// Packs `source` for BF16 activations, its rows in `order`. Grouped weights are packed a group at a time and
/// concatenated.
///
/// # Errors
/// [`PackError`] for slices that do not fit, rows that cannot be interleaved, weights or scales that are not finite,
/// scales with a sign, and UE8M0 scales too far apart.
pub fn pack(source: &SourceMatrix<'_>, order: RowOrder) -> Result<PackedWeights, PackError> {
    pack_for(Activations::A16, source, order)
}

/// As [`pack`], for kernels that take such `activations`.
///
/// # Errors
/// As [`pack`]; MXFP4 scales may span fewer binades for FP8.
pub fn pack_for(
    activations: Activations,
    source: &SourceMatrix<'_>,
    order: RowOrder,
) -> Result<PackedWeights, PackError> {
    source.validate(order)?;
    let in_use = source.blocks_in_use(order);
    let layout = PackedLayout::of(source.format(), activations);
    let choice = rebase(layout, exponent_range(source, &in_use))?;
    let (n, k) = source.shape();
    let mut bytes = vec![0; layout.packed_bytes(n, k)];
    for row in 0..n {
        let source_row = order.source_row(row, n);
        source.pack_codes(layout, source_row, row, &mut bytes);
        let Some(group_k) = layout.group_k() else { continue };
        for k_start in (0..k).step_by(group_k) {
            let scale_idx = source.scale_idx(order, source_row, k_start);
            let byte = source.stored_scale(scale_idx, in_use[scale_idx], choice);
            let position = layout.scale_position(row, k_start).expect("a format with groups has scale bytes");
            bytes[layout.slab_offset(row, k_start, layout.slabs(k)) + position] = byte;
        }
    }
    Ok(PackedWeights { layout, n, k, bytes, alpha: choice.alpha })
}

/// The shift and alpha with which [`pack`] stores the UE8M0 scales of `source`: arguments of a pack kernel.
///
/// # Errors
/// As [`pack`].
pub fn rebase_of(source: &SourceMatrix<'_>, order: RowOrder) -> Result<Rebase, PackError> {
    source.validate(order)?;
    let layout = PackedLayout::of(source.format(), Activations::A16);
    Ok(rebase(layout, exponent_range(source, &source.blocks_in_use(order)))?)
}

/// The MMA operand that a kernel makes of the packed weight of packed row `row`, exactly; padding gives 0.
///
/// `operand * alpha` is the weight, which for NVFP4 is still to be multiplied by the tensor's `scale_2`, and which for
/// NVFP4 in FP8 is rounded: see [`a8`]. For FP8 weights the kernel applies the scale to sums; it is part of this.
///
/// # Panics
/// If `row` or `k` lies beyond the padding.
pub fn unpack_operand(packed: &PackedWeights, row: usize, k: usize) -> f32 {
    let format = packed.layout.format();
    let code = packed.code(row, k);
    let scale = packed.scale(row, k);
    if packed.layout.activations() == Activations::A8 {
        match (format, scale) {
            (WeightFormat::Nvfp4, Some(byte)) => return e4m3::decode(a8::nvfp4_operand(code as u8, byte)),
            (WeightFormat::Mxfp4, Some(byte)) => return e4m3::decode(a8::mxfp4_operand(code as u8, byte)),
            _ => {}
        }
    }
    match (format, scale) {
        (WeightFormat::Nvfp4, Some(byte)) => e2m1::decode(code as u8) * e5m3_factor(byte),
        (WeightFormat::Mxfp4, Some(byte)) => e2m1::decode(code as u8) * rebased_factor(format, byte),
        (WeightFormat::Fp8, Some(byte)) => e4m3::decode(code as u8) * rebased_factor(format, byte),
        _ => bf16::decode(code),
    }
}

impl PackedWeights {
    /// The code of packed row `row` at `k`, padding included.
    pub fn code(&self, row: usize, k: usize) -> u16 {
        let position = self.layout.code_position(row, k);
        let byte = self.slab_offset(row, k) + position.byte;
        position.code_of(word_at(&self.bytes, byte))
    }

    /// The scale byte of packed row `row` at `k`, padding included; `None` for BF16.
    pub fn scale(&self, row: usize, k: usize) -> Option<u8> {
        let position = self.layout.scale_position(row, k)?;
        Some(self.bytes[self.slab_offset(row, k) + position])
    }

    fn slab_offset(&self, row: usize, k: usize) -> usize {
        assert!(k < self.layout.padded_k(self.k), "k = {k} lies beyond the padding");
        self.layout.slab_offset(row, k, self.layout.slabs(self.k))
    }
}

impl SourceMatrix<'_> {
    /// What the matrix is stored as.
    pub fn format(&self) -> WeightFormat {
        match self {
            Self::Nvfp4 { .. } => WeightFormat::Nvfp4,
            Self::Mxfp4 { .. } => WeightFormat::Mxfp4,
            Self::Fp8 { .. } => WeightFormat::Fp8,
            Self::Bf16 { .. } => WeightFormat::Bf16,
        }
    }

    /// `n` and `k`.
    pub fn shape(&self) -> (usize, usize) {
        match *self {
            Self::Nvfp4 { n, k, .. } | Self::Mxfp4 { n, k, .. } | Self::Fp8 { n, k, .. } | Self::Bf16 { n, k, .. } => {
                (n, k)
            }
        }
    }

    /// Refuses what cannot be packed; what passes has finite codes, finite scales and slices of the right length.
    fn validate(&self, order: RowOrder) -> Result<(), PackError> {
        let (n, k) = self.shape();
        if order == RowOrder::GateUp && !n.is_multiple_of(16) {
            return Err(PackError::GateUpRows { n });
        }
        match *self {
            Self::Nvfp4 { codes, scales, .. } => {
                nvfp4::check(n, k, codes, scales)?;
                Ok(nvfp4::validate_weight_scales(scales, k)?)
            }
            Self::Mxfp4 { codes, scales, .. } => {
                mxfp4::check(n, k, codes, scales)?;
                finite_scales(scales, k / mxfp4::GROUP)
            }
            Self::Fp8 { codes, scales, .. } => {
                let (rows, columns) = (fp8_scale_rows(order, n), k.div_ceil(fp8::BLOCK));
                let shape = Shape { rows: n, k }.whole_blocks(WeightFormat::Fp8)?;
                shape.holds("bytes of codes", n * k, codes.len())?.holds(
                    "block scales",
                    rows * columns,
                    scales.len(),
                )?;
                finite_codes(codes.iter().map(|&code| (u16::from(code), !e4m3::is_nan(code))), k)?;
                finite_scales(scales, columns)
            }
            Self::Bf16 { values, .. } => {
                Shape { rows: n, k }.whole_blocks(WeightFormat::Bf16)?.holds("values", n * k, values.len())?;
                finite_codes(values.iter().map(|&bits| (bits, bf16::decode(bits).is_finite())), k)
            }
        }
    }

    /// For each scale: does its block have a nonzero code? Empty where there are no scales.
    fn blocks_in_use(&self, order: RowOrder) -> Vec<bool> {
        let any_nonzero = |bytes: &[u8]| bytes.iter().any(|&byte| byte & 0x77 != 0);
        match *self {
            Self::Nvfp4 { codes, .. } => codes.chunks_exact(nvfp4::GROUP / 2).map(any_nonzero).collect(),
            Self::Mxfp4 { codes, .. } => codes.chunks_exact(mxfp4::GROUP / 2).map(any_nonzero).collect(),
            Self::Fp8 { k, codes, scales, .. } => {
                let mut in_use = vec![false; scales.len()];
                for (idx, _) in codes.iter().enumerate().filter(|&(_, &code)| e4m3::is_nonzero(code)) {
                    in_use[self.scale_idx(order, idx / k, idx % k)] = true;
                }
                in_use
            }
            Self::Bf16 { .. } => Vec::new(),
        }
    }

    /// Which scale the weight of source row `row` at `k` has.
    fn scale_idx(&self, order: RowOrder, row: usize, k: usize) -> usize {
        match *self {
            Self::Nvfp4 { k: row_k, .. } => (row * row_k + k) / nvfp4::GROUP,
            Self::Mxfp4 { k: row_k, .. } => (row * row_k + k) / mxfp4::GROUP,
            Self::Fp8 { n, k: row_k, .. } => fp8_scale_row(order, n, row) * row_k.div_ceil(fp8::BLOCK) + k / fp8::BLOCK,
            Self::Bf16 { .. } => 0,
        }
    }

    /// The stored byte of scale `idx`.
    fn stored_scale(&self, idx: usize, in_use: bool, choice: Rebase) -> u8 {
        match *self {
            Self::Nvfp4 { scales, .. } => e5m3_from_e4m3(scales[idx]).expect("scales were validated"),
            Self::Mxfp4 { scales, .. } | Self::Fp8 { scales, .. } => choice.stored(scales[idx], in_use),
            Self::Bf16 { .. } => 0,
        }
    }

    /// Writes the codes of `source_row` to packed row `row`, where `bytes` are still zero.
    fn pack_codes(&self, layout: PackedLayout, source_row: usize, row: usize, bytes: &mut [u8]) {
        let (_, row_k) = self.shape();
        for k in 0..row_k {
            let idx = source_row * row_k + k;
            let code = match *self {
                // Under a zero scale any code is zero; the kernel's factor for byte 0 is not, so the code must be.
                Self::Nvfp4 { scales, .. } if scales[idx / nvfp4::GROUP] == 0 => 0,
                Self::Nvfp4 { codes, .. } | Self::Mxfp4 { codes, .. } => u16::from(e2m1::code_at(codes, idx)),
                Self::Fp8 { codes, .. } => u16::from(codes[idx]),
                Self::Bf16 { values, .. } => values[idx],
            };
            let position = layout.code_position(row, k);
            let byte = layout.slab_offset(row, k, layout.slabs(row_k)) + position.byte;
            let word = word_at(bytes, byte) | position.word_of(code);
            bytes[byte..byte + 4].copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// The little-endian word that begins at `byte`.
fn word_at(bytes: &[u8], byte: usize) -> u32 {
    u32::from_le_bytes([bytes[byte], bytes[byte + 1], bytes[byte + 2], bytes[byte + 3]])
}

/// The UE8M0 scales of the blocks in use; `None` if there are none.
fn exponent_range(source: &SourceMatrix<'_>, in_use: &[bool]) -> Option<ExponentRange> {
    let (SourceMatrix::Mxfp4 { scales, .. } | SourceMatrix::Fp8 { scales, .. }) = *source else { return None };
    let used = || scales.iter().zip(in_use).filter(|&(_, &in_use)| in_use).map(|(&scale, _)| scale);
    Some(ExponentRange { largest: used().max()?, smallest: used().min()? })
}

/// Rows of the scale matrix of `n` FP8 rows.
fn fp8_scale_rows(order: RowOrder, n: usize) -> usize {
    match order {
        RowOrder::Plain => n.div_ceil(fp8::BLOCK),
        RowOrder::GateUp => 2 * (n / 2).div_ceil(fp8::BLOCK),
    }
}

/// The row of the scale matrix that source row `row` of `n` belongs to.
fn fp8_scale_row(order: RowOrder, n: usize, row: usize) -> usize {
    match order {
        RowOrder::GateUp if row >= n / 2 => (n / 2).div_ceil(fp8::BLOCK) + (row - n / 2) / fp8::BLOCK,
        _ => row / fp8::BLOCK,
    }
}

/// Refuses the first of the codes `[n, k]` that is not finite.
fn finite_codes(codes: impl Iterator<Item = (u16, bool)>, k: usize) -> Result<(), PackError> {
    match codes.enumerate().find(|(_, (_, is_finite))| !is_finite) {
        None => Ok(()),
        Some((idx, (bits, _))) => Err(PackError::NonFinite { row: idx / k, k: idx % k, bits }),
    }
}

/// Refuses the first UE8M0 NaN among scales of `columns` a row.
fn finite_scales(scales: &[u8], columns: usize) -> Result<(), PackError> {
    match scales.iter().position(|&scale| scale == ue8m0::NAN) {
        None => Ok(()),
        Some(idx) => Err(PackError::ScaleNan { row: idx / columns, column: idx % columns }),
    }
}
