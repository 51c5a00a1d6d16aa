//! Our own `exp2` and what is built on it: f32 FMA, multiplication, division and comparison, nothing else.
//!
//! Each is an IEEE operation that rounds once, so a device twin that does the same operations in the same order gives
//! the same bits (compiled with `--fmad=false`, without flushing of subnormals, FMAs written as `__fmaf_rn`). The
//! order in the text of each function is therefore part of its definition. NaN in is NaN out, of any payload.

/// `2^x`, within 7.1e-8 of the true value while that is a normal f32.
///
/// In this order: `x < -150 ? -150 : x`; then `x > 128.5 ? 128.5 : x` (comparisons, which keep NaN); `n` is `x`
/// rounded to the nearest integer, ties to even; `f = x - n`, exact; `p` by Horner from [`EXP2_COEFFICIENTS`], highest
/// power first, one FMA a step: `p = fma(p, f, c)`; the result is `(p * 2^(n >> 1)) * 2^(n - (n >> 1))`, both powers
/// built from exponent bits. Two factors, because 2^128 and 2^-150 are no normal f32 and only the last product may
/// round: so a subnormal result is rounded once. Above 128 it is infinity, below -150 zero.
pub fn exp2(x: f32) -> f32 {
    let x = if x < -150.0 { -150.0 } else { x };
    let x = if x > 128.5 { 128.5 } else { x };
    let rounded = x.round_ties_even();
    let f = x - rounded;
    let mut p = EXP2_COEFFICIENTS[0];
    for c in &EXP2_COEFFICIENTS[1..] {
        p = p.mul_add(f, *c);
    }
    // NaN converts to 0, here and in `__float2int_rn`; p carries it.
    let n = rounded as i32;
    let low = n >> 1;
    p * power_of_two(low) * power_of_two(n - low)
}

/// `x * sigmoid(x)`, within 3.6e-7 and what rounding `x * LOG2_E` costs.
///
/// In this order: `c = x < -86.5 ? -86.5 : x`, which keeps NaN; `t = -c * LOG2_E`, one multiplication by the f32
/// [`LOG2_E`]; `t < -126 ? -126 : t`; `c / (1 + exp2(t))`, [`exp2`], one addition, one IEEE division; plus `x - x`.
/// The divisor stays below 2^126, where a device divides without special cases; below -86.5 the result is
/// -2e-36. An infinite `x` gives NaN: it is no value of a sane model, and a number would hide it.
#[expect(clippy::eq_op, reason = "a number less itself is 0, an infinity NaN")]
pub fn silu(x: f32) -> f32 {
    let c = if x < -86.5 { -86.5 } else { x };
    let t = -c * LOG2_E;
    let t = if t < -126.0 { -126.0 } else { t };
    c / (1.0 + exp2(t)) + (x - x)
}

/// `silu(min(gate, limit)) * clamp(up, -limit, limit)`; a `limit` of infinity clamps nothing.
///
/// In this order: `g = gate > limit ? limit : gate`; `u = up > limit ? limit : up`; `u = u < -limit ? -limit : u`;
/// [`silu`]`(g) * u`. A comparison with NaN is false, so a NaN in either operand stays and comes out as NaN;
/// `f32::min` and `fminf` would replace it by the limit.
pub fn swiglu(gate: f32, up: f32, limit: f32) -> f32 {
    let g = if gate > limit { limit } else { gate };
    let u = if up > limit { limit } else { up };
    let u = if u < -limit { -limit } else { u };
    silu(g) * u
}

/// log2(e) rounded to f32: 0x3FB8AA3B.
pub const LOG2_E: f32 = f32::from_bits(0x3FB8_AA3B);

/// Coefficients of the polynomial for `2^f` on [-0.5, 0.5], from f^6 down to f^0, as f32 bits.
///
/// Minimax in the relative error with p(0) = 1, so that powers of two are exact; each coefficient was rounded to f32
/// before the next ones were fitted. The polynomial itself is within 7.1e-9.
pub const EXP2_COEFFICIENTS: [f32; 7] = [
    f32::from_bits(0x3926_093E), // 1.583_443_7e-4
    f32::from_bits(0x3AAF_DFD1), // 1.341_814_3e-3
    f32::from_bits(0x3C1D_90E4), // 9.617_064e-3
    f32::from_bits(0x3D63_56D4), // 5.550_272_8e-2
    f32::from_bits(0x3E75_FDF3), // 2.402_265_5e-1
    f32::from_bits(0x3F31_7219), // 6.931_472_4e-1
    f32::from_bits(0x3F80_0000), // 1
];

/// `2^exponent` for -126 to 127.
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) << 23) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_constants_are_what_the_comments_say() {
        assert_eq!(LOG2_E, std::f32::consts::LOG2_E);
        let decimals =
            [1.583_443_7e-4, 1.341_814_3e-3, 9.617_064e-3, 5.550_272_8e-2, 2.402_265_5e-1, 0.693_147_24, 1.0];
        assert_eq!(EXP2_COEFFICIENTS, decimals);
        // The polynomial in f64 arithmetic, apart from the rounding of f32 steps.
        let worst = (-50_000..=50_000).map(|step| {
            let f = f64::from(step) / 100_000.0;
            let p = EXP2_COEFFICIENTS.iter().fold(0.0, |p, &c| p * f + f64::from(c));
            (p / f.exp2() - 1.0).abs()
        });
        assert!(worst.fold(0.0, f64::max) < 7.1e-9);
    }

    /// Ten million f32 values of both signs, from 2^-30 up, and the subnormal results with their coarser step.
    #[test]
    fn exp2_is_close_to_the_f64_function() {
        let mut worst = 0.0f64;
        for magnitude in (0x3080_0000..0x4316_0000u32).step_by(59) {
            for bits in [magnitude, magnitude | 0x8000_0000] {
                let x = f32::from_bits(bits);
                let (value, truth) = (f64::from(exp2(x)), f64::from(x).exp2());
                if x >= 128.0 {
                    assert_eq!(value, f64::INFINITY, "{x}");
                } else if x >= -126.0 {
                    worst = worst.max((value / truth - 1.0).abs());
                } else {
                    let step = 2f64.powi(-149);
                    assert!((value - truth).abs() <= step * 0.5001 + truth * 7.1e-8, "{x}: {value:e} {truth:e}");
                }
            }
        }
        assert!(worst < 7.1e-8, "{worst:e}");
    }

    #[test]
    fn exp2_of_integers_is_exact_and_the_ends_are_defined() {
        for n in -149..=127 {
            assert_eq!(f64::from(exp2(n as f32)), 2f64.powi(n), "{n}");
        }
        for (x, value) in [
            (128.0, f32::INFINITY),
            (1e30, f32::INFINITY),
            (f32::INFINITY, f32::INFINITY),
            (-150.0, 0.0),
            (-1e30, 0.0),
            (f32::NEG_INFINITY, 0.0),
            (0.0, 1.0),
            (-0.0, 1.0),
        ] {
            assert_eq!(exp2(x).to_bits(), value.to_bits(), "{x}");
        }
        assert!(exp2(127.999_99).is_finite());
        assert!(exp2(f32::NAN).is_nan() && exp2(-f32::NAN).is_nan());
    }

    #[test]
    fn silu_is_close_to_the_f64_function() {
        for step in -86_500..=86_500 {
            let x = step as f32 / 1000.0;
            let truth = f64::from(x) / (1.0 + (-f64::from(x)).exp());
            // The argument of exp2 carries two roundings (constant and product), worth |x| * 2^-23 in the result.
            let bound = truth.abs() * (f64::from(x.abs()) * 1.2e-7 + 3.6e-7) + 1e-44;
            assert!((f64::from(silu(x)) - truth).abs() <= bound, "{x}: {} {truth}", silu(x));
        }
        assert_eq!(silu(0.0).to_bits(), 0);
        assert_eq!(silu(-200.0), silu(-86.5));
        assert_eq!(silu(f32::MIN), silu(-86.5));
        assert!(silu(-86.5) < 0.0 && silu(-86.5) > -3e-36);
        assert_eq!(silu(f32::MAX), f32::MAX);
        for x in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(silu(x).is_nan(), "{x}");
        }
    }

    /// What `templates/lib/swiglu.cuh` does in place of rounding, scaling and dividing, from any estimate of the
    /// reciprocal that is within one unit in the last place.
    #[test]
    fn the_division_without_branches_gives_the_same_bits() {
        for x in (0..=u32::MAX).step_by(1009).map(f32::from_bits) {
            let bounded = if x < -86.5 { -86.5 } else { x };
            let t = -bounded * LOG2_E;
            let t = if t < -126.0 { -126.0 } else { t };
            let shifted = t + 12_582_912.0;
            let f = t - (shifted - 12_582_912.0);
            let p = EXP2_COEFFICIENTS[1..].iter().fold(EXP2_COEFFICIENTS[0], |p, c| p.mul_add(f, *c));
            let divisor = 1.0 + f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
            for units in -1i32..=1 {
                let estimate = f32::from_bits((1.0 / divisor).to_bits().wrapping_add_signed(units));
                let inverse = estimate.mul_add((-divisor).mul_add(estimate, 1.0), estimate);
                let quotient = bounded * inverse;
                let rounded = (-divisor).mul_add(quotient, bounded).mul_add(inverse, quotient);
                let (value, expected) = (rounded + (x - x), silu(x));
                assert!(value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan(), "{x:e} {units}");
            }
        }
    }

    #[test]
    fn swiglu_clamps_and_keeps_nan() {
        for (gate, up, gate_clamped, up_clamped) in [
            (1.0, 2.0, 1.0, 2.0),
            (11.0, 12.0, 10.0, 10.0),
            (-11.0, -12.0, -11.0, -10.0),
            (f32::INFINITY, f32::NEG_INFINITY, 10.0, -10.0),
        ] {
            assert_eq!(swiglu(gate, up, 10.0), silu(gate_clamped) * up_clamped, "{gate} {up}");
        }
        assert_eq!(swiglu(50.0, -50.0, f32::INFINITY), -2500.0);
        for (gate, up) in [(f32::NAN, 1.0), (1.0, f32::NAN), (0.0, f32::NAN), (-200.0, f32::NAN), (f32::NAN, 0.0)] {
            assert!(swiglu(gate, up, 10.0).is_nan(), "{gate} {up}");
        }
    }

    /// Bits that a device twin must reproduce. A change here is a change of every kernel's numbers.
    #[test]
    fn bits_are_pinned() {
        for (x, exp2_bits, silu_bits) in PINNED {
            let x = f32::from_bits(x);
            assert_eq!((exp2(x).to_bits(), silu(x).to_bits()), (exp2_bits, silu_bits), "{x}");
        }
    }

    /// x, exp2(x), silu(x), as bits.
    const PINNED: [(u32, u32, u32); 8] = [
        (0x3F00_0000, 0x3FB5_04F3, 0x3E9F_597F), // 0.5
        (0xBF00_0000, 0x3F35_04F3, 0xBE41_4D03), // -0.5
        (0x3EAA_AAAB, 0x3FA1_4518, 0x3E46_D9C4), // 1/3
        (0x4048_F5C3, 0x410D_0B3B, 0x4040_9F6D), // 3.14
        (0xC048_F5C3, 0x3DE8_532C, 0xBE05_6561), // -3.14
        (0x4120_0000, 0x4480_0000, 0x411F_FE24), // 10
        (0xC2AF_0000, 0x13B5_04F3, 0x8447_ACB2), // -87.5: silu of -86.5
        (0xC303_4000, 0x0003_5D14, 0x8447_ACB2), // -131.25: a subnormal
    ];
}
