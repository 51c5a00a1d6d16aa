//! BF16: the high half of an f32.

/// The value of `bits`, exactly.
pub fn decode(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The nearest BF16, ties to even; overflow is infinity, and a NaN stays one: quiet, with its sign and high payload.
pub fn encode(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        // The payload may lie in the low half alone: the quiet bit keeps the rest from reading as infinity.
        return (bits >> 16) as u16 | 0x0040;
    }
    ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
}

/// `value` rounded to BF16.
pub fn round(value: f32) -> f32 {
    decode(encode(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_comes_back() {
        for bits in 0..=u16::MAX {
            let value = decode(bits);
            match value.is_nan() {
                true => assert_eq!(encode(value), bits | 0x40),
                false => assert_eq!(encode(value), bits),
            }
        }
        assert!(decode(encode(f32::from_bits(0x7F80_0001))).is_nan());
        assert!(decode(encode(f32::from_bits(0xFF80_0001))).is_nan());
    }

    /// The two neighbours of every pattern, with distances in f64; the step above the largest finite one is 2^128.
    #[test]
    fn encode_finds_the_nearest_and_the_even_one_of_two() {
        let distance_to = |bits: u32| match bits {
            0x7F80 => 2f64.powi(128),
            _ => f64::from(f32::from_bits(bits << 16)),
        };
        for high in 0..0x7F80u32 {
            for low in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let value = f32::from_bits(high << 16 | low);
                let below = f64::from(value) - distance_to(high);
                let above = distance_to(high + 1) - f64::from(value);
                let expected = match below.total_cmp(&above) {
                    std::cmp::Ordering::Less => high,
                    std::cmp::Ordering::Greater => high + 1,
                    std::cmp::Ordering::Equal => high + high % 2,
                };
                assert_eq!(u32::from(encode(value)), expected, "{value:e}");
                assert_eq!(u32::from(encode(-value)), expected | 0x8000, "-{value:e}");
                assert_eq!(round(value).to_bits(), expected << 16);
            }
        }
    }
}
