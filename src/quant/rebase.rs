//! Block scales as kernels multiply by them: one byte that, with the code, makes a normal bf16.
//!
//! A kernel turns bits into bf16 by shifts: a code becomes `value * 2^-126` (E2M1) or `value * 2^-120` (E4M3), a scale
//! byte the bf16 that has it as exponent, and their product is the MMA operand. A lifted code may be subnormal, so
//! that multiplication must not flush (`mul.rn.bf16x2` does not); the operand never is.
//!
//! For that, power-of-two scales are moved by one shift for the whole tensor and the rest goes to alpha; E4M3 scales
//! get a fifth exponent bit ("E5M3"), which leaves no subnormals. Zero blocks, which have no scale worth keeping, get
//! byte 0.

use super::{Activations, PackedLayout, WeightFormat, a8, ue8m0};

/// The block scales of a tensor that matter: those of blocks with at least one nonzero code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExponentRange {
    /// The largest UE8M0 byte.
    pub largest: u8,
    /// The smallest UE8M0 byte.
    pub smallest: u8,
}

/// How the UE8M0 scales of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rebase {
    /// The largest byte of a block with a nonzero code; 127 if there is none.
    pub e_max: u8,
    /// Added to the byte of each block with a nonzero code; all others are stored as 0.
    pub shift: i32,
    /// What an operand is multiplied by to give the weight: `2^(e_max - 127)`, for MXFP4 in FP8 `2^(e_max - 133)`;
    /// [`NVFP4_ALPHA`] for NVFP4, or [`a8::NVFP4_ALPHA`], without the tensor's own scale; 1 for BF16.
    pub alpha: f32,
}

impl Rebase {
    /// The stored byte of a block whose scale is `e`; `in_use` says that it has a nonzero code.
    pub fn stored(self, e: u8, in_use: bool) -> u8 {
        match in_use {
            true => (i32::from(e) + self.shift) as u8,
            false => 0,
        }
    }
}

/// Block scales too far apart for bf16 operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected the block scales of a tensor within {limit} binades, found {} (2^{} to 2^{})",
    range.largest - range.smallest,
    i32::from(range.smallest) - 127,
    i32::from(range.largest) - 127
)]
pub struct SpreadError {
    /// The ends of the spread.
    pub range: ExponentRange,
    /// What the format can hold.
    pub limit: u8,
}

/// Chooses the shift for a tensor in `layout`, MXFP4 or FP8, whose blocks in use span `range`; `None` if all are zero.
///
/// The largest scale is stored as 253 (MXFP4) or 247 (FP8), which makes its operands the values of the codes
/// themselves. The smallest must then be at least 128 or 130, the byte under which the smallest nonzero code is still
/// 2^-126. Formats without UE8M0 scales get a shift of 0.
///
/// # Errors
/// [`SpreadError`] if `range` spans more than 125 (MXFP4; 11 for operands in FP8) or 117 (FP8) binades.
pub fn rebase(layout: PackedLayout, range: Option<ExponentRange>) -> Result<Rebase, SpreadError> {
    let unmoved = |alpha| Ok(Rebase { e_max: 127, shift: 0, alpha });
    let (top, bottom, lifted) = match (layout.format(), layout.activations()) {
        (WeightFormat::Mxfp4, Activations::A16) => (MXFP4_TOP, 128, 0),
        (WeightFormat::Mxfp4, Activations::A8) => (MXFP4_TOP, MXFP4_TOP - a8::MXFP4_SPREAD, a8::MXFP4_BINADES),
        (WeightFormat::Fp8, _) => (FP8_TOP, 130, 0),
        (WeightFormat::Nvfp4, Activations::A16) => return unmoved(NVFP4_ALPHA),
        (WeightFormat::Nvfp4, Activations::A8) => return unmoved(a8::NVFP4_ALPHA),
        (WeightFormat::Bf16, _) => return unmoved(1.0),
    };
    let limit = top - bottom;
    let e_max = match range {
        Some(range) if range.largest - range.smallest > limit => return Err(SpreadError { range, limit }),
        Some(range) => range.largest,
        None => 127,
    };
    // At least 2^-133, which f32 holds as a subnormal.
    let alpha = (f64::from(ue8m0::decode(e_max)) * 2f64.powi(-lifted)) as f32;
    Ok(Rebase { e_max, shift: i32::from(top) - i32::from(e_max), alpha })
}

/// The E5M3 byte of an E4M3 scale: `2^x * (1 + m / 8)` is `(x + 22) << 3 | m`, zero is 0.
///
/// `None` for NaN and for bytes with a sign, which no weight scale may have.
pub fn e5m3_from_e4m3(byte: u8) -> Option<u8> {
    let (exponent, mantissa) = (byte >> 3, byte & 7);
    match byte {
        0 => Some(0),
        // A subnormal is mantissa * 2^-9: its highest bit becomes the hidden one, with exponent -9, -8 or -7.
        1..8 => {
            let highest = mantissa.ilog2() as u8;
            Some((highest + 22 - 9) << 3 | (mantissa << (3 - highest) & 7))
        }
        8..0x7F => Some((exponent + 22 - 7) << 3 | mantissa),
        _ => None,
    }
}

/// The factor that a kernel makes of an E5M3 byte, times 2^-126: the scale divided by [`NVFP4_ALPHA`].
///
/// Byte 0 gives 2^-29 like any other byte of exponent 0: a zero scale is zero only because its codes were made so.
pub fn e5m3_factor(byte: u8) -> f32 {
    (1.0 + f32::from(byte & 7) / 8.0) * power_of_two(i32::from(byte >> 3) - 29)
}

/// The factor that a kernel makes of a rebased byte, times what it lifts codes by: 1 for a tensor's largest scale.
pub fn rebased_factor(format: WeightFormat, byte: u8) -> f32 {
    let top = if format == WeightFormat::Fp8 { FP8_TOP } else { MXFP4_TOP };
    match byte {
        0 => 0.0,
        _ => power_of_two(i32::from(byte) - i32::from(top)),
    }
}

/// What NVFP4 operands are multiplied by, besides the tensor's own scale, to give the weights.
pub const NVFP4_ALPHA: f32 = 128.0;

/// 126 + 127: E2M1 codes are lifted by 2^-126, exponents count from 127.
const MXFP4_TOP: u8 = 253;

/// 120 + 127: E4M3 codes are lifted by 2^-120.
const FP8_TOP: u8 = 247;

/// `2^exponent` for -126 to 127.
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) << 23) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::e4m3;

    #[test]
    fn e5m3_holds_every_scale_and_no_subnormal() {
        for byte in 0..=255u8 {
            let stored = e5m3_from_e4m3(byte);
            if byte >= 0x7F {
                assert_eq!(stored, None);
                continue;
            }
            let stored = stored.unwrap();
            assert_eq!(stored == 0, byte == 0);
            if byte != 0 {
                assert_eq!(e5m3_factor(stored) * NVFP4_ALPHA, e4m3::decode(byte), "{byte:#x}");
                // Exponents -9 to 8, as five bits of 13 to 30.
                assert!((13..=30).contains(&(stored >> 3)));
            }
        }
    }

    #[test]
    fn the_largest_scale_is_one_and_the_smallest_must_fit() {
        for (format, top, bottom, limit) in [(WeightFormat::Mxfp4, 253, 128, 125), (WeightFormat::Fp8, 247, 130, 117)] {
            let layout = PackedLayout::of(format, Activations::A16);
            for largest in 0..=254u8 {
                for smallest in 0..=largest {
                    let range = ExponentRange { largest, smallest };
                    let Ok(choice) = rebase(layout, Some(range)) else {
                        assert!(largest - smallest > limit);
                        continue;
                    };
                    assert!(largest - smallest <= limit);
                    assert_eq!(choice.e_max, largest);
                    assert_eq!(f64::from(choice.alpha), 2f64.powi(i32::from(largest) - 127));
                    assert_eq!(choice.stored(largest, true), top);
                    assert!(choice.stored(smallest, true) >= bottom);
                    assert_eq!(choice.stored(smallest, false), 0);
                }
            }
            let nothing = rebase(layout, None).unwrap();
            assert_eq!((nothing.e_max, nothing.alpha, nothing.stored(7, false)), (127, 1.0, 0));
        }
        let range = ExponentRange { largest: 130, smallest: 3 };
        assert_eq!(
            rebase(PackedLayout::of(WeightFormat::Mxfp4, Activations::A16), Some(range)).unwrap_err().to_string(),
            "expected the block scales of a tensor within 125 binades, found 127 (2^-124 to 2^3)"
        );
        let mxfp4_a8 = PackedLayout::of(WeightFormat::Mxfp4, Activations::A8);
        assert_eq!(
            rebase(mxfp4_a8, Some(ExponentRange { largest: 127, smallest: 115 })).unwrap_err().to_string(),
            "expected the block scales of a tensor within 11 binades, found 12 (2^-12 to 2^0)"
        );
        let found = rebase(mxfp4_a8, Some(ExponentRange { largest: 127, smallest: 116 })).unwrap();
        assert_eq!((found.shift, found.alpha), (126, 1.0 / 64.0));
        let least = rebase(mxfp4_a8, Some(ExponentRange { largest: 0, smallest: 0 })).unwrap();
        assert_eq!(f64::from(least.alpha), 2f64.powi(-133));
        let nvfp4 = PackedLayout::of(WeightFormat::Nvfp4, Activations::A16);
        assert_eq!(rebase(nvfp4, None).unwrap(), Rebase { e_max: 127, shift: 0, alpha: NVFP4_ALPHA });
    }
}
