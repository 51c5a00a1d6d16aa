//! UE8M0: eight bits of exponent and nothing else; byte `e` is `2^(e - 127)`, 255 is NaN, zero does not exist.
//!
//! The byte is never a number: casting it to one instead of reinterpreting it is a known way to garbled output.
//! Source: OCP Microscaling Formats v1.0 (E8M0).

/// The byte that is NaN.
pub const NAN: u8 = 255;

/// The value of `byte`: a power of two from 2^-127 (subnormal in f32) to 2^127, or NaN.
pub fn decode(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(0x0040_0000),
        NAN => f32::NAN,
        _ => f32::from_bits(u32::from(byte) << 23),
    }
}

/// The byte of the smallest power of two that is not below `|value|`: `2^ceil(log2 |value|)`, on bits alone.
///
/// Magnitudes up to 2^-127, zero among them, give byte 0; those above 2^127, infinity among them, give 254; NaN gives
/// [`NAN`].
pub fn encode_up(value: f32) -> u8 {
    if value.is_nan() {
        return NAN;
    }
    let bits = value.to_bits() & 0x7FFF_FFFF;
    let (exponent, mantissa) = (bits >> 23, bits & 0x007F_FFFF);
    let above = match exponent {
        0 => mantissa > 0x0040_0000,
        _ => mantissa > 0,
    };
    (exponent + u32::from(above)).min(254) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_its_power_of_two() {
        for byte in 0..255u8 {
            assert_eq!(f64::from(decode(byte)), 2f64.powi(i32::from(byte) - 127), "byte {byte}");
            assert_eq!(encode_up(decode(byte)), byte);
            assert_eq!(encode_up(-decode(byte)), byte);
        }
        assert!(decode(NAN).is_nan());
        assert_eq!(encode_up(f32::NAN), NAN);
    }

    /// Every exponent, with mantissas at and around the powers of two.
    #[test]
    fn encode_finds_the_smallest_power_that_is_not_below() {
        let powers: Vec<f64> = (0..255).map(|byte| 2f64.powi(byte - 127)).collect();
        for exponent in 0..255u32 {
            for mantissa in [0, 1, 2, 0x003F_FFFF, 0x0040_0000, 0x0040_0001, 0x007F_FFFF] {
                let value = f32::from_bits(exponent << 23 | mantissa);
                let expected = powers.iter().position(|&power| power >= f64::from(value)).unwrap_or(254);
                assert_eq!(usize::from(encode_up(value)), expected, "{value:e}");
            }
        }
        assert_eq!(encode_up(f32::INFINITY), 254);
        assert_eq!(encode_up(0.0), 0);
    }
}
