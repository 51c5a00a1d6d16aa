//! E2M1: four bits, one of sign, two of exponent, one of mantissa; no infinity, no NaN.
//!
//! Codes 0 to 7 are 0, 0.5, 1, 1.5, 2, 3, 4, 6; bit 3 is the sign. Two codes share a byte, the one of even k low.
//! Source: OCP Microscaling Formats v1.0.

/// Largest magnitude.
pub const MAX: f32 = 6.0;

/// The value of each code.
pub const VALUES: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The value of the low four bits of `code`; the others are ignored.
pub fn decode(code: u8) -> f32 {
    VALUES[usize::from(code & 0xF)]
}

/// The code nearest to `value`: ties go to the even code, magnitudes above 6 to 6, and a zero keeps its sign.
///
/// NaN gives code 7, which is 6: so does `cvt.rn.satfinite.e2m1x2`. Who must not hide NaN looks for it first.
pub fn encode(value: f32) -> u8 {
    if value.is_nan() {
        return 7;
    }
    let magnitude = value.abs();
    // Each bound lies halfway between two neighbours; the equal case belongs to the neighbour with the even code.
    let passed = [
        magnitude > 0.25,
        magnitude >= 0.75,
        magnitude > 1.25,
        magnitude >= 1.75,
        magnitude > 2.5,
        magnitude >= 3.5,
        magnitude > 5.0,
    ];
    let code = passed.into_iter().map(u8::from).sum::<u8>();
    if value.is_sign_negative() { code | 8 } else { code }
}

/// One byte of two codes: `even` is the value of even k.
pub fn pack(even: u8, odd: u8) -> u8 {
    (even & 0xF) | odd << 4
}

/// The codes of even and odd k in `byte`.
pub fn unpack(byte: u8) -> [u8; 2] {
    [byte & 0xF, byte >> 4]
}

/// The code of value `idx` in a run of packed codes.
pub fn code_at(codes: &[u8], idx: usize) -> u8 {
    unpack(codes[idx / 2])[idx % 2]
}

/// True if the code is neither 0 nor -0.
pub fn is_nonzero(code: u8) -> bool {
    code & 7 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_decodes_to_its_definition_and_back() {
        for code in 0..16u8 {
            let (exponent, mantissa) = (i32::from(code >> 1 & 3), f64::from(code & 1));
            let magnitude = match exponent {
                0 => mantissa * 0.5,
                _ => (1.0 + mantissa / 2.0) * 2f64.powi(exponent - 1),
            };
            let value = if code & 8 == 0 { magnitude } else { -magnitude };
            assert_eq!(f64::from(decode(code)).to_bits(), value.to_bits(), "code {code}");
            assert_eq!(encode(decode(code)), code);
            assert_eq!(is_nonzero(code), value != 0.0);
        }
        assert_eq!(decode(0xF3), 1.5);
    }

    /// All 2^16 high halves of f32, each with low halves at and around what a midpoint could have.
    #[test]
    fn encode_finds_the_nearest_code_and_the_even_one_of_two() {
        for high in 0..=u32::from(u16::MAX) {
            for low in [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let value = f32::from_bits(high << 16 | low);
                if value.is_nan() {
                    assert_eq!(encode(value), 7);
                    continue;
                }
                assert_eq!(encode(value), nearest(value), "{value:e}");
            }
        }
    }

    /// Distances in f64, to every code of the same sign.
    fn nearest(value: f32) -> u8 {
        let sign = if value.is_sign_negative() { 8 } else { 0 };
        let magnitude = f64::from(value.abs()).min(6.0);
        let distance = |code: u8| (f64::from(decode(code)) - magnitude).abs();
        let best = (0..8u8).map(distance).fold(f64::INFINITY, f64::min);
        let tied: Vec<u8> = (0..8).filter(|&code| distance(code) == best).collect();
        sign | match tied[..] {
            [code] => code,
            _ => *tied.iter().find(|&&code| code % 2 == 0).unwrap(),
        }
    }

    #[test]
    fn the_even_value_is_the_low_nibble() {
        assert_eq!(pack(0x3, 0xA), 0xA3);
        for byte in 0..=255u8 {
            let [even, odd] = unpack(byte);
            assert_eq!(pack(even, odd), byte);
            assert_eq!([code_at(&[0, byte], 2), code_at(&[0, byte], 3)], [even, odd]);
        }
    }
}
