//! How far a result may be from the exact one, derived from the formats: rounding once, and the order of an f32 sum.

use serde::{Deserialize, Serialize};

use crate::problem::Output;
use crate::quant::a8;

/// Sums over every element of a result D and its reference R.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Elements compared.
    pub elements: u64,
    /// Sum of (D - R)^2.
    pub error: f64,
    /// Sum of R^2.
    pub size: f64,
    /// Sum of (bf16(R) - R)^2: what no BF16 result can do better.
    pub rounding: f64,
    /// Largest |D - R| beyond [`slope`] * |R|.
    pub worst: f64,
    /// Elements that are NaN or infinite, unwritten ones among them.
    pub not_finite: u64,
    /// Hash of the bits of D, the same for the same bits.
    pub checksum: u64,
}

/// A result that is not right.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Wrong {
    /// Elements that are NaN, infinite, or were never written.
    #[error("{count} of {elements} elements are not finite or were not written")]
    NotFinite {
        /// How many.
        count: u64,
        /// Of how many.
        elements: u64,
    },
    /// The error of all elements together is too large.
    #[error("relative L2 error {found:.3e} is above {limit:.3e}")]
    Error {
        /// What it is.
        found: f64,
        /// What it may be.
        limit: f64,
    },
    /// One element is off by more than rounding and summation explain.
    #[error("an element is off by {found:.3e} beyond rounding, the limit is {limit:.3e}")]
    Element {
        /// What it is.
        found: f64,
        /// What it may be.
        limit: f64,
    },
}

impl Comparison {
    /// Relative L2 error; infinite if an element is not finite.
    pub fn relative_l2(&self) -> f64 {
        if self.not_finite > 0 { f64::INFINITY } else { (self.error / self.size.max(f64::MIN_POSITIVE)).sqrt() }
    }

    /// Adds what another part of the same result gave.
    pub fn add(&mut self, other: &Self) {
        self.elements += other.elements;
        self.error += other.error;
        self.size += other.size;
        self.rounding += other.rounding;
        self.worst = self.worst.max(other.worst);
        self.not_finite += other.not_finite;
        self.checksum = self.checksum.wrapping_add(other.checksum);
    }
}

/// Share of |R| by which an element may be off: half a unit in the last place of BF16; of f32, the order of the sum.
pub fn slope(output: Output) -> f64 {
    match output {
        Output::Bf16 => 1.0 / 256.0,
        Output::F32 => 1e-5,
    }
}

/// What a result goes through on its way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Path {
    /// One sum over `k`.
    Sum {
        /// Its length.
        k: u32,
    },
    /// One sum on FP8 tensor cores.
    Fp8 {
        /// Whether weights are rounded to FP8: NVFP4.
        is_rounded: bool,
        /// Whether two sums meet in SwiGLU.
        is_swiglu: bool,
    },
    /// Two sums on FP8 tensor cores, and between them `hidden` values that are rounded to BF16 and then to FP8.
    HiddenFp8 {
        /// Whether weights are rounded to FP8: NVFP4.
        is_rounded: bool,
        /// Values in between.
        hidden: u32,
    },
    /// Two sums, and between them `hidden` values that are rounded to BF16.
    Hidden {
        /// Length of the longer sum.
        k: u32,
        /// Values in between.
        hidden: u32,
        /// The largest weight that they are multiplied by, of an ordinary one.
        largest_weight: f64,
    },
}

/// Judges a comparison.
///
/// BF16: at most 1.3 times the error of rounding the exact result. f32: at most 1e-5 for k up to 8192 and 1.3e-9 * k
/// above: tensor cores accumulate with 25 bits and truncate. One element may be off by what its own rounding and the
/// summation of values of ordinary size give, and by one hidden value that was rounded the other way.
///
/// # Errors
/// [`Wrong`] says which limit was passed, and by how much.
pub fn judge(comparison: &Comparison, output: Output, path: Path) -> Result<f64, Wrong> {
    let &Comparison { elements, not_finite, worst, .. } = comparison;
    if not_finite > 0 {
        return Err(Wrong::NotFinite { count: not_finite, elements });
    }
    let (k, flipped) = match path {
        Path::Sum { k } => (k, 0.0),
        Path::Hidden { k, hidden, largest_weight } => (k, LARGEST_STEP * largest_weight / f64::from(hidden).sqrt()),
        Path::Fp8 { is_rounded, is_swiglu } => {
            let averages = if is_swiglu { SWIGLU_AVERAGES } else { AVERAGES };
            return judge_fp8(comparison, output, fp8_sum(is_rounded, is_swiglu), averages, 0.0);
        }
        Path::HiddenFp8 { is_rounded, hidden } => {
            // SwiGLU first; what it lets through may put every hidden value on another side of a rounding.
            let hidden_rows = fp8_sum(is_rounded, true).hypot(FP8_TWICE_ROUNDED);
            let sums = hidden_rows.hypot(fp8_sum(is_rounded, false));
            let flipped = LARGEST_HIDDEN / 16.0 / f64::from(hidden).sqrt();
            return judge_fp8(comparison, output, sums, AVERAGES, flipped);
        }
    };
    let summation = if k <= 8192 { 1e-5 } else { 1.3e-9 * f64::from(k) };
    let found = comparison.relative_l2();
    let limit = match output {
        Output::Bf16 => 1.3 * (comparison.rounding / comparison.size.max(f64::MIN_POSITIVE)).sqrt(),
        Output::F32 => summation,
    };
    if is_above(found, limit) {
        return Err(Wrong::Error { found, limit });
    }
    let ordinary = (comparison.size / elements.max(1) as f64).sqrt();
    let limit = (ELEMENT_FACTOR * summation + flipped) * ordinary;
    if is_above(worst, limit) {
        return Err(Wrong::Element { found: worst, limit });
    }
    Ok(found)
}

/// FP8 tensor cores keep 13 bits behind the point of the largest of 33 terms and cut the rest, which a model of them
/// puts at 1e-4 to 6e-4 of the L2 where chains end after 128 to 512 k, and at 2.5e-3 for one chain of 8192. The limit
/// is above all of these and a ninth of what FP8 activations cost (2.65 %): a longer chain is refused by its result.
/// Rounded weights add at most [`a8::NVFP4_ERROR`], SwiGLU lets the errors of two sums through.
fn fp8_sum(is_rounded: bool, is_swiglu: bool) -> f64 {
    let weights = if is_rounded { a8::NVFP4_ERROR } else { 0.0 };
    let sums = if is_swiglu { 2.0 } else { 1.0 };
    sums * FP8_SUM.hypot(weights)
}

/// `share` is what may be lost of the L2. It is lost in thousands of independent roundings, so that no element is off
/// by more than `averages` times the average, and by `flipped` ordinary ones besides.
fn judge_fp8(comparison: &Comparison, output: Output, share: f64, averages: f64, flipped: f64) -> Result<f64, Wrong> {
    // A few elements are a small sample of the errors, and of the sizes that these are divided by.
    let sample = 1.0 + 4.0 / (comparison.elements.max(1) as f64).sqrt();
    let sums = share * sample;
    let rounding = match output {
        Output::Bf16 => 1.3 * (comparison.rounding / comparison.size.max(f64::MIN_POSITIVE)).sqrt(),
        Output::F32 => 0.0,
    };
    let (found, limit) = (comparison.relative_l2(), sums.hypot(rounding));
    if is_above(found, limit) {
        return Err(Wrong::Error { found, limit });
    }
    let ordinary = (comparison.size / comparison.elements.max(1) as f64).sqrt();
    let limit = (averages * sums + flipped) * ordinary;
    if is_above(comparison.worst, limit) {
        return Err(Wrong::Element { found: comparison.worst, limit });
    }
    Ok(found)
}

/// An element may be off by this many times what elements lose on average.
const AVERAGES: f64 = 10.0;

/// The same behind SwiGLU, where what a sum lost is multiplied by the other one. Of sums whose errors have the
/// deviation d, the result's has at most `d * sqrt(L^2 + (1.1 L)^2)`, where both are near the clamp L: 1.1 is the
/// steepest slope of silu. With L = 10 and sums of 3.5 an ordinary result is 7, so that this is 7 times what a sum
/// lost, of an ordinary result, or 3.5 times the share, which has room for two sums. Of 16 million elements none is
/// six deviations off.
const SWIGLU_AVERAGES: f64 = 21.0;

/// What sums on FP8 tensor cores may lose of the L2.
const FP8_SUM: f64 = 3e-3;

/// What two values differ by after E4M3 if they differ a little before: rounding costs 2.65 % of the L2, and at worst
/// both are rounded independently. Values that differ by the share d are rounded to different codes as often as d is of
/// a step, and a step is 9 %, so that sums that are 0.1 % off already make 1 %.
const FP8_TWICE_ROUNDED: f64 = 0.0375;

/// A NaN is above every limit.
fn is_above(found: f64, limit: f64) -> bool {
    found.is_nan() || found > limit
}

/// An element of ordinary size may collect this many times the average error of a sum.
const ELEMENT_FACTOR: f64 = 50.0;

/// What one hidden value that BF16 rounds the other way moves an element by, of an ordinary element, times the root of
/// how many hidden values there are, for a weight of ordinary size. The step of BF16 is 0.5 where SwiGLU's two factors
/// are near their clamp at 10, and an ordinary hidden value is 11; one slot of six has at most 1.03 of the routing
/// weight where ordinary ones have 0.67 together; its expert's alpha is 1.2 where an ordinary one is 1.11. Of these
/// 0.5 / 11 * 1.03 / 0.67 * 1.2 / 1.11 = 0.076, and an ordinary element may be a few per cent smaller than computed.
const LARGEST_STEP: f64 = 0.08;

/// The largest product of a hidden value and a weight, in units of ordinary ones, behind FP8: SwiGLU has a heavy tail.
const LARGEST_HIDDEN: f64 = 60.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded_once() -> Comparison {
        Comparison { elements: 100, error: 1e-4, size: 100.0, rounding: 1e-4, ..Comparison::default() }
    }

    #[test]
    fn rounding_once_is_right_and_rounding_twice_is_not() {
        assert_eq!(judge(&rounded_once(), Output::Bf16, Path::Sum { k: 4096 }), Ok(1e-3));
        let twice = Comparison { error: 2e-4, ..rounded_once() };
        assert!(matches!(judge(&twice, Output::Bf16, Path::Sum { k: 4096 }), Err(Wrong::Error { .. })));
        assert!(matches!(judge(&rounded_once(), Output::F32, Path::Sum { k: 4096 }), Err(Wrong::Error { .. })));
    }

    #[test]
    fn one_bad_element_is_enough() {
        let unwritten = Comparison { not_finite: 1, ..rounded_once() };
        assert_eq!(
            judge(&unwritten, Output::Bf16, Path::Sum { k: 64 }),
            Err(Wrong::NotFinite { count: 1, elements: 100 })
        );
        let off = Comparison { worst: 0.01, ..rounded_once() };
        assert!(matches!(judge(&off, Output::Bf16, Path::Sum { k: 64 }), Err(Wrong::Element { .. })));
        // The same off by a hidden value that was rounded the other way.
        assert!(judge(&off, Output::Bf16, Path::Hidden { k: 64, hidden: 64, largest_weight: 4.35 }).is_ok());
        let nan = Comparison { error: f64::NAN, ..rounded_once() };
        assert!(judge(&nan, Output::Bf16, Path::Sum { k: 64 }).is_err());
    }

    /// Experts of DeepSeek-V4-Pro in MXFP4: the largest flip that their random data can have is let through, a missing
    /// product of a hidden value and a weight of ordinary size is not.
    #[test]
    fn one_flipped_hidden_value_is_right_and_a_missing_product_is_not() {
        let (slots, hidden, largest_weight) = (6.0_f64, 3072, 4.35);
        let path = Path::Hidden { k: 7168, hidden, largest_weight };
        let of = |worst: f64| judge(&Comparison { worst, ..rounded_once() }, Output::Bf16, path);
        let root = f64::from(hidden).sqrt();
        let flip = 0.5 / 10.98 * (1.03 / 0.674) * (1.2 / 1.112) * largest_weight / root;
        assert!(of(flip).is_ok());
        assert!(matches!(of(1.0 / (slots.sqrt() * root)), Err(Wrong::Element { .. })));
    }

    #[test]
    fn fp8_sums_may_lose_what_is_stated_and_no_more() {
        let plain = Path::Fp8 { is_rounded: false, is_swiglu: false };
        let rounded = Path::Fp8 { is_rounded: true, is_swiglu: false };
        let of = |relative: f64| {
            let (elements, size) = (1_000_000, 1e6);
            Comparison { elements, error: size * relative * relative, size, ..Comparison::default() }
        };
        assert!(judge(&of(2.9e-3), Output::F32, plain).is_ok() && judge(&of(3.1e-3), Output::F32, plain).is_err());
        assert!(judge(&of(0.0152), Output::F32, rounded).is_ok() && judge(&of(0.0155), Output::F32, rounded).is_err());
        let off = Comparison { worst: 0.031, ..of(1e-3) };
        assert!(matches!(judge(&off, Output::F32, plain), Err(Wrong::Element { .. })));
        assert!(judge(&off, Output::F32, rounded).is_ok());
    }

    /// Sums of the size that checks feed, with the error of rounded weights: ten averages refuse what is right.
    #[test]
    fn swiglu_of_right_sums_is_right_in_every_element() {
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            ((state >> 33) as f64 + 0.5) / 2f64.powi(31)
        };
        let mut normal = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
        let swiglu = |gate: f64, up: f64| {
            let gate = gate.min(10.0);
            gate / (1.0 + (-gate).exp()) * up.clamp(-10.0, 10.0)
        };
        let (mut found, elements, share) = (Comparison::default(), 4_000_000, FP8_SUM.hypot(a8::NVFP4_ERROR));
        for idx in 0..elements {
            // The size of the token that it is of.
            let size = 0.75 + 0.0625 * f64::from(idx % 9);
            let (gate, up) = (3.46 * size * normal(), 3.12 * size * normal());
            let exact = swiglu(gate, up);
            let off = swiglu(gate + 3.46 * size * share * normal(), up + 3.12 * size * share * normal()) - exact;
            found.elements += 1;
            found.size += exact * exact;
            found.error += off * off;
            found.worst = found.worst.max(off.abs() - slope(Output::Bf16) * exact.abs());
        }
        let path = Path::Fp8 { is_rounded: true, is_swiglu: true };
        assert!(judge(&found, Output::Bf16, path).is_ok(), "{found:?}");
        assert!(judge_fp8(&found, Output::Bf16, fp8_sum(true, true), AVERAGES, 0.0).is_err(), "{found:?}");
        // An element that another token's is taken for.
        let ordinary = (found.size / found.elements as f64).sqrt();
        let other = Comparison { worst: 1.5 * ordinary, ..found };
        assert!(matches!(judge(&other, Output::Bf16, path), Err(Wrong::Element { .. })));
    }

    #[test]
    fn experts_with_fp8_rows_may_lose_two_roundings_and_no_token() {
        let of = |relative: f64| {
            let (elements, size) = (1_000_000, 1e6);
            Comparison { elements, error: size * relative * relative, size, ..Comparison::default() }
        };
        for (is_rounded, limit) in [(false, 0.0383), (true, 0.0510)] {
            let path = Path::HiddenFp8 { is_rounded, hidden: 2048 };
            assert!(judge(&of(limit - 5e-4), Output::Bf16, path).is_ok(), "{limit}");
            assert!(judge(&of(limit + 5e-4), Output::Bf16, path).is_err(), "{limit}");
        }
        // A 16 k of 4096 that are left out are 6 % of the L2.
        let path = Path::HiddenFp8 { is_rounded: true, hidden: 2048 };
        assert!(judge(&of((16.0f64 / 4096.0).sqrt()), Output::Bf16, path).is_err());
    }

    #[test]
    fn a_long_f32_sum_may_be_less_exact() {
        let comparison = Comparison { elements: 1, error: 4e-10, size: 1.0, ..Comparison::default() };
        assert!(judge(&comparison, Output::F32, Path::Sum { k: 8192 }).is_err());
        assert!(judge(&comparison, Output::F32, Path::Sum { k: 16384 }).is_ok());
    }
}
