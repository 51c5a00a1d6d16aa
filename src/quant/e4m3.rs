//! E4M3 ("e4m3fn"): eight bits, one of sign, four of exponent with bias 7, three of mantissa.
//!
//! There is no infinity; 0x7F and 0xFF are NaN; the largest value is 448, the smallest normal 2^-6, the smallest
//! subnormal 2^-9. Conversion saturates: a cast that gives NaN above 464 is how checkpoints came to hold NaN scales.
//! Source: OCP 8-bit Floating Point Specification (OFP8) v1.0.

/// Largest magnitude.
pub const MAX: f32 = 448.0;

/// Smallest normal magnitude, 2^-6.
pub const MIN_NORMAL: f32 = 0.015625;

/// Smallest magnitude above zero, 2^-9.
pub const MIN_SUBNORMAL: f32 = 0.001953125;

/// The byte that [`encode`] gives for NaN.
pub const NAN: u8 = 0x7F;

/// True for the two bytes that are NaN.
pub fn is_nan(byte: u8) -> bool {
    byte & 0x7F == NAN
}

/// True if the byte is neither 0 nor -0; NaN counts as something.
pub fn is_nonzero(byte: u8) -> bool {
    byte & 0x7F != 0
}

/// The value of `byte`.
pub fn decode(byte: u8) -> f32 {
    let sign = u32::from(byte & 0x80) << 24;
    let magnitude = u32::from(byte & 0x7F);
    if is_nan(byte) {
        return f32::from_bits(sign | 0x7FC0_0000);
    }
    if magnitude < 8 {
        return f32::from_bits(sign | (magnitude as f32 * MIN_SUBNORMAL).to_bits());
    }
    f32::from_bits(sign | ((magnitude << 20) + EXPONENT_GAP))
}

/// The byte nearest to `value`: ties go to the even byte, everything above 448 (infinity too) to 448, NaN to [`NAN`].
pub fn encode(value: f32) -> u8 {
    if value.is_nan() {
        return NAN;
    }
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs().min(MAX);
    if magnitude < MIN_NORMAL {
        // Counted in steps of 2^-9, which is exact; 8 steps are the smallest normal value, whose byte is 8 as well.
        return sign | (magnitude * (1.0 / MIN_SUBNORMAL)).round_ties_even() as u8;
    }
    let bits = magnitude.to_bits();
    let rounded = bits + HALF_BELOW + (bits >> 20 & 1);
    sign | ((rounded - EXPONENT_GAP) >> 20) as u8
}

/// The f32 exponent field counts from 127, this one from 7.
const EXPONENT_GAP: u32 = (127 - 7) << 23;

/// One less than half of the last place that is kept: with the last kept bit added, a tie goes to even.
const HALF_BELOW: u32 = (1 << 19) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_decodes_to_its_definition_and_back() {
        for byte in 0..=255u8 {
            let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
            if exponent == 15 && mantissa == 7.0 {
                assert!(is_nan(byte) && decode(byte).is_nan());
                assert_eq!(encode(decode(byte)), NAN);
                continue;
            }
            let magnitude = match exponent {
                0 => mantissa / 8.0 * 2f64.powi(-6),
                _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
            };
            let value = if byte < 128 { magnitude } else { -magnitude };
            assert_eq!(f64::from(decode(byte)).to_bits(), value.to_bits(), "byte {byte:#x}");
            assert_eq!(encode(decode(byte)), byte);
            assert_eq!(is_nonzero(byte), value != 0.0);
            assert!(!is_nan(byte));
        }
    }

    #[test]
    fn the_ends_of_the_range() {
        assert_eq!((decode(0x7E), decode(0x08), decode(0x01)), (MAX, MIN_NORMAL, MIN_SUBNORMAL));
        for value in [448.0, 456.0, 464.0, 465.0, 1e30, f32::INFINITY] {
            assert_eq!((encode(value), encode(-value)), (0x7E, 0xFE), "{value}");
        }
        // Half of the smallest subnormal is a tie that goes to zero.
        assert_eq!((encode(0.5 * MIN_SUBNORMAL), encode(0.500_001 * MIN_SUBNORMAL)), (0, 1));
        assert_eq!((encode(f32::NAN), encode(-f32::NAN)), (NAN, NAN));
    }

    /// All 2^16 high halves of f32 (every exponent, every midpoint), each with low halves at and around a tie.
    #[test]
    fn encode_finds_the_nearest_byte_and_the_even_one_of_two() {
        let values: Vec<f64> = (0..0x7Fu8).map(|byte| f64::from(decode(byte))).collect();
        for high in 0..=u32::from(u16::MAX) {
            for low in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let value = f32::from_bits(high << 16 | low);
                if value.is_nan() {
                    assert_eq!(encode(value), NAN);
                    continue;
                }
                let sign = if value.is_sign_negative() { 0x80 } else { 0 };
                assert_eq!(encode(value), sign | nearest(&values, f64::from(value.abs())), "{value:e}");
            }
        }
    }

    /// A walk over the whole table with distances in f64, independent of the bits.
    fn nearest(values: &[f64], magnitude: f64) -> u8 {
        let magnitude = magnitude.min(448.0);
        let mut best = 0;
        for (byte, value) in values.iter().enumerate() {
            let (here, there) = ((value - magnitude).abs(), (values[best] - magnitude).abs());
            if here < there || (here == there && byte % 2 == 0) {
                best = byte;
            }
        }
        best as u8
    }
}
