//! `2^x` of a number that is not positive, for the probabilities of attention: fewer steps than [`super::math::exp2`].
//!
//! IEEE operations that round once and integer operations on bits, in the order in which they are written: the device
//! twin is `exp2_of_negative` in `templates/lib/exponential.cuh`.

use super::math::EXP2_COEFFICIENTS;

/// `2^x` for `x` up to 127, meant for `x <= 0`: within 7.1e-8 of the true value from -126 up, 0 below -126.5.
///
/// In this order: `x < -127 ? -127 : x` (a comparison, which keeps NaN); `u = x + 1.5 * 2^23`, whose last bits are
/// `n`, `x` rounded to the nearest integer, ties to even; `f = x - (u - 1.5 * 2^23)`, exact; `p` by Horner from
/// [`EXP2_COEFFICIENTS`], one FMA a step; `p * 2^n`, the power made of exponent bits. For n = -127 these are the bits
/// of 0. Between -126.5 and -126 the result may be subnormal and is rounded once. NaN in is NaN out, of any payload.
pub fn exp2_of_negative(x: f32) -> f32 {
    let x = if x < -127.0 { -127.0 } else { x };
    let u = x + ROUND;
    let f = x - (u - ROUND);
    let mut p = EXP2_COEFFICIENTS[0];
    for c in &EXP2_COEFFICIENTS[1..] {
        p = p.mul_add(f, *c);
    }
    // The bits of a NaN make any power here, and p carries the NaN; added to the exponent of p, they could lose it.
    p * f32::from_bits((u.to_bits() << 23).wrapping_add(ONE))
}

/// Adding this to a number of at most 2^22 rounds it to an integer, which then stands in the last bits.
const ROUND: f32 = 12_582_912.0;

/// The bits of 1.
const ONE: u32 = 0x3F80_0000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::math;

    /// Six million values from -2^-30 down to -126.
    #[test]
    fn it_is_close_to_the_f64_function() {
        let mut worst = 0.0f64;
        for magnitude in (0x3080_0000..=0x42FC_0000u32).step_by(53) {
            let x = -f32::from_bits(magnitude);
            worst = worst.max((f64::from(exp2_of_negative(x)) / f64::from(x).exp2() - 1.0).abs());
        }
        assert!(worst < 7.1e-8, "{worst:e}");
    }

    /// Both scale the same polynomial, and a product with a power of two is exact while it is a normal number.
    #[test]
    fn it_has_the_bits_of_exp2_from_minus_126_to_127() {
        for magnitude in (0x3080_0000..=0x42FC_0000u32).step_by(997) {
            for x in [f32::from_bits(magnitude), -f32::from_bits(magnitude)] {
                assert_eq!(exp2_of_negative(x).to_bits(), math::exp2(x).to_bits(), "{x}");
            }
        }
    }

    #[test]
    fn what_is_not_there_has_no_probability_and_nan_stays() {
        for (x, value) in [
            (0.0, 1.0),
            (-0.0, 1.0),
            (-1.0, 0.5),
            (-126.0, f32::MIN_POSITIVE),
            (-127.0, 0.0),
            (-1e30, 0.0),
            (f32::NEG_INFINITY, 0.0),
        ] {
            assert_eq!(exp2_of_negative(x).to_bits(), f32::to_bits(value), "{x}");
        }
        // Between the last normal result and the first 0 nothing wraps around.
        for bits in (-126.0f32).to_bits()..=(-127.0f32).to_bits() {
            let x = f32::from_bits(bits);
            let (value, truth) = (f64::from(exp2_of_negative(x)), f64::from(x).exp2());
            let expected = if x < -126.5 { 0.0 } else { truth };
            assert!((value - expected).abs() <= truth * 1e-6, "{x}: {value:e} {truth:e}");
        }
        for bits in [0x7FC0_0000, 0xFFC0_0000, 0x7FFF_FFFF, 0x7F80_0001, 0xFFFF_FFFF] {
            assert!(exp2_of_negative(f32::from_bits(bits)).is_nan(), "{bits:x}");
        }
    }
}
