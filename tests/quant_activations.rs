//! The contract of the activation quantiser, one test for each way in which an `input_scale` has broken a model.

use tilekiln::quant::activation::{AMAX_FLOOR, SATURATED_ABOVE};
use tilekiln::quant::{
    Counters, NonFinite, Nvfp4Activations, ScalePolicy, ScaleWarning, TensorScaleError, e2m1, e4m3,
    quantize_activations, scales,
};

const M: usize = 64;
const K: usize = 7168;

/// 64 tokens of N(0, 1) in which 64 channels are 12 times larger: what calibration and reality disagreed about.
fn tokens() -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let mut normal = move || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    let outlier = |idx: usize| if (idx % K).is_multiple_of(112) { 12.0 } else { 1.0 };
    (0..M * K).map(|idx| (normal() * outlier(idx)) as f32).collect()
}

fn amax(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |amax, x| amax.max(x.abs()))
}

fn cosine(x: &[f32], y: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    dot(x, y) / (dot(x, x) * dot(y, y)).sqrt()
}

fn zero_share(quantized: &Nvfp4Activations) -> f64 {
    let zeros = quantized.codes.iter().flat_map(|&byte| e2m1::unpack(byte)).filter(|&code| !e2m1::is_nonzero(code));
    zeros.count() as f64 / (quantized.m * quantized.k) as f64
}

/// A policy, the least and greatest cosine, the least and greatest share of saturated blocks, the largest |value|.
type Case = (ScalePolicy, [f64; 2], [f64; 2], Option<f32>);

#[test]
fn scales_that_are_too_small_cut_and_are_counted() {
    let x = tokens();
    let right = amax(&x) / 2688.0;
    let checkpoint = |scale| ScalePolicy::from_modelopt_input_scale(scale).unwrap();
    let cases: [Case; 8] = [
        (ScalePolicy::PerToken, [0.9950, 0.9962], [0.0, 0.0], None),
        (ScalePolicy::PerTensor, [0.9950, 0.9962], [0.0, 0.0], None),
        (checkpoint(right), [0.9950, 0.9962], [0.0, 0.0], None),
        (ScalePolicy::warmup(amax(&x)).unwrap(), [0.9950, 0.9962], [0.0, 0.0], None),
        (ScalePolicy::fixed(1.0).unwrap(), [0.9950, 0.9962], [0.0, 0.0], None),
        (checkpoint(16.0 * right), [0.9950, 0.9962], [0.0, 0.0], None),
        (checkpoint(2.5141e-4), [0.60, 0.70], [0.999, 1.0], Some(2688.0 * 2.5141e-4)),
        (checkpoint(6.14e-5), [0.55, 0.63], [1.0, 1.0], Some(2688.0 * 6.14e-5)),
    ];
    for (policy, [least, greatest], [least_share, greatest_share], ceiling) in cases {
        let quantized = quantize_activations(&x, M, K, policy).unwrap();
        let back = quantized.decode();
        let cosine = cosine(&x, &back);
        assert!((least..=greatest).contains(&cosine), "{policy}: cosine {cosine}");
        let counters = quantized.counters;
        let share = counters.saturated_blocks as f64 / counters.blocks as f64;
        assert!((least_share..=greatest_share).contains(&share), "{policy}: {share} saturated");
        match counters.warning() {
            None => assert_eq!(ceiling, None, "{policy}"),
            Some(ScaleWarning::TooSmall { percent }) => assert!(ceiling.is_some() && percent > 99.9, "{policy}"),
            Some(warning) => panic!("{policy}: {warning}"),
        }
        if let Some(ceiling) = ceiling {
            assert!((amax(&back) / ceiling - 1.0).abs() < 1e-6, "{policy}: {}", amax(&back));
        }
        assert!(quantized.scales.iter().all(|&scale| scale < e4m3::NAN));
        assert_eq!(counters.non_finite, NonFinite::default());
    }
}

#[test]
fn unusable_scales_are_refused_with_a_sentence() {
    type Constructor = fn(f32) -> Result<ScalePolicy, TensorScaleError>;
    let constructors: [Constructor; 4] = [
        ScalePolicy::from_modelopt_input_scale,
        ScalePolicy::from_compressed_tensors_global_scale,
        ScalePolicy::fixed,
        ScalePolicy::warmup,
    ];
    for new in constructors {
        assert_eq!(new(0.0), Err(TensorScaleError::Zero));
        assert_eq!(new(f32::INFINITY), Err(TensorScaleError::Infinite));
        assert_eq!(new(f32::NAN), Err(TensorScaleError::Nan));
        assert!(matches!(new(-1.0), Err(TensorScaleError::Negative { .. })));
        // A divisor may be large, a multiplier small, but neither may be subnormal.
        assert!(matches!(new(1e-39), Err(TensorScaleError::Subnormal { .. })));
        assert!(new(0.5).is_ok());
    }
}

/// The smallest scale that is accepted divides without NaN or infinity in sight.
#[test]
fn the_smallest_scale_saturates_and_stays_finite() {
    let mut x = [0.0; 32];
    (x[0], x[1], x[2]) = (1.0, -f32::MAX, f32::MIN_POSITIVE);
    let policy = ScalePolicy::fixed(f32::MIN_POSITIVE).unwrap();
    let quantized = quantize_activations(&x, 1, 32, policy).unwrap();
    assert_eq!(quantized.scales, [0x7E, 0]);
    assert_eq!(quantized.codes[..2], [0xF7, 0x00]);
    assert_eq!(quantized.counters.saturated_blocks, 1);
    assert!(quantized.decode().iter().all(|value| value.is_finite()));
}

/// Taking ModelOpt's multiplier for a divisor, or the other way round, uses 1 / scale: the smaller the true scale, the
/// more is lost below; the larger, the more is cut above.
#[test]
fn an_inverted_convention_gives_zeros_or_saturation_and_is_flagged() {
    let x = tokens();
    let scaled = |factor: f32| x.iter().map(|x| x * factor).collect::<Vec<f32>>();
    // What calibration wrote for activations of this size, as each producer writes it.
    for (factor, zeros, saturated) in [(0.01, 0.99..=1.0, 0.0..=0.0), (1e5, 0.0..=0.5, 0.99..=1.0)] {
        let x = scaled(factor);
        let (input_scale, global_scale) = (amax(&x) / 2688.0, 2688.0 / amax(&x));
        let right = [
            ScalePolicy::from_modelopt_input_scale(input_scale).unwrap(),
            ScalePolicy::from_compressed_tensors_global_scale(global_scale).unwrap(),
        ];
        let inverted = [
            ScalePolicy::from_modelopt_input_scale(global_scale).unwrap(),
            ScalePolicy::from_compressed_tensors_global_scale(input_scale).unwrap(),
        ];
        for policy in right {
            let quantized = quantize_activations(&x, M, K, policy).unwrap();
            assert_eq!(quantized.counters.warning(), None);
            assert!(cosine(&x, &quantized.decode()) > 0.995);
        }
        for policy in inverted {
            let quantized = quantize_activations(&x, M, K, policy).unwrap();
            let counters = quantized.counters;
            assert!(zeros.contains(&zero_share(&quantized)), "{factor}: {}", zero_share(&quantized));
            let share = counters.saturated_blocks as f64 / counters.blocks as f64;
            assert!(saturated.contains(&share), "{factor}: {share}");
            match counters.warning() {
                Some(ScaleWarning::TooLarge { percent }) => assert!(factor < 1.0 && percent > 99.0),
                Some(ScaleWarning::TooSmall { percent }) => assert!(factor > 1.0 && percent > 99.0),
                None => panic!("{factor}: nothing said"),
            }
        }
    }
    // Tokens as they are: the inverted scale, 49 for 0.02, keeps most values but loses bits in most scales.
    let policy = ScalePolicy::from_compressed_tensors_global_scale(amax(&x) / 2688.0).unwrap();
    let counters = quantize_activations(&x, M, K, policy).unwrap().counters;
    assert!(matches!(counters.warning(), Some(ScaleWarning::TooLarge { .. })), "{counters:?}");
}

#[test]
fn nan_and_infinity_are_counted_and_disturb_nothing_else() {
    let clean: Vec<f32> = (0..64).map(|idx| (idx as f32 - 31.5) / 8.0).collect();
    let mut zeroed = clean.clone();
    let mut dirty = clean.clone();
    for (idx, value) in [(37, f32::NAN), (40, f32::INFINITY), (63, f32::NEG_INFINITY)] {
        zeroed[idx] = 0.0;
        dirty[idx] = value;
    }
    for policy in [ScalePolicy::PerToken, ScalePolicy::PerTensor, ScalePolicy::fixed(0.01).unwrap()] {
        let expected = quantize_activations(&zeroed, 2, 32, policy).unwrap();
        let quantized = quantize_activations(&dirty, 2, 32, policy).unwrap();
        assert_eq!(quantized.counters.non_finite, NonFinite { count: 3, first: Some((1, 5)) });
        assert_eq!(expected.counters.non_finite, NonFinite { count: 0, first: None });
        assert_eq!((&quantized.codes, &quantized.scales), (&expected.codes, &expected.scales));
        assert_eq!(quantized.row_scales, expected.row_scales);
    }
    let nothing_else = quantize_activations(&[f32::NAN; 16], 1, 16, ScalePolicy::PerToken).unwrap();
    assert_eq!((nothing_else.codes, nothing_else.scales), (vec![0; 8], vec![0]));
    assert_eq!(nothing_else.counters.non_finite.count, 16);
}

#[test]
fn a_zero_block_has_zero_codes_and_a_zero_scale() {
    let mut x = [0.0; 48];
    x[0] = 1.0;
    x[16..32].fill(-0.0);
    x[32] = 1e-9; // vanishes beside 1: 448e-9 is below half of 2^-9
    let quantized = quantize_activations(&x, 1, 48, ScalePolicy::PerToken).unwrap();
    assert_eq!(quantized.scales, [0x7E, 0, 0]);
    assert_eq!(quantized.codes[8..], [0; 16]);
    let expected = Counters { blocks: 3, underflowing_blocks: 1, vanished_blocks: 1, ..Counters::default() };
    assert_eq!(quantized.counters, expected);
    let zeros = quantize_activations(&[0.0; 32], 2, 16, ScalePolicy::PerTensor).unwrap();
    assert_eq!(zeros.row_scales, [AMAX_FLOOR / 2688.0; 2]);
    assert_eq!((zeros.codes, zeros.scales), (vec![0; 16], vec![0; 2]));
    assert_eq!(zeros.counters, Counters { blocks: 2, ..Counters::default() });
}

/// The amax that calibration saw is no saturation, whatever the roundings between it and 448; a little more is.
#[test]
fn an_amax_of_exactly_the_range_is_kept() {
    for step in 0..4096 {
        let amax = 1e-3 * 1.0049f32.powi(step);
        let mut x = [0.0; 16];
        (x[3], x[4]) = (amax, -amax);
        for policy in [ScalePolicy::PerToken, ScalePolicy::PerTensor, ScalePolicy::warmup(amax).unwrap()] {
            let quantized = quantize_activations(&x, 1, 16, policy).unwrap();
            assert_eq!(quantized.scales, [0x7E], "{amax:e}");
            assert_eq!(quantized.codes[1..3], [0x70, 0x0F], "{amax:e}");
            assert_eq!(quantized.counters.saturated_blocks, 0, "{amax:e}");
        }
        let policy = ScalePolicy::warmup(amax / 1.001).unwrap();
        assert_eq!(quantize_activations(&x, 1, 16, policy).unwrap().counters.saturated_blocks, 1, "{amax:e}");
    }
    let exact = ScalePolicy::fixed(0.0625).unwrap();
    let counters = |amax: f32| quantize_activations(&[amax; 16], 1, 16, exact).unwrap().counters;
    assert_eq!(counters(448.0 * 6.0 * 0.0625).saturated_blocks, 0);
    assert_eq!(counters(SATURATED_ABOVE * 6.0 * 0.0625).saturated_blocks, 0);
    assert_eq!(counters(f32::from_bits((SATURATED_ABOVE * 6.0 * 0.0625).to_bits() + 1)).saturated_blocks, 1);
}

/// The definition again, in f64 where nothing rounds but what the contract rounds.
#[test]
fn codes_are_the_nearest_to_the_quotient() {
    let x = &tokens()[..K];
    let quantized = quantize_activations(x, 1, K, ScalePolicy::PerToken).unwrap();
    let row_scale = quantized.row_scales[0];
    assert_eq!(row_scale, amax(x) / 2688.0);
    for (idx, (&x, &scale)) in
        x.iter().zip(quantized.scales.iter().flat_map(|scale| [scale; 16].map(|_| scale))).enumerate()
    {
        let unit = f64::from(e4m3::decode(scale) * row_scale);
        let code = e2m1::code_at(&quantized.codes, idx);
        let distance = |code: u8| (f64::from(e2m1::decode(code)) * unit - f64::from(x)).abs();
        let nearest = (0..16).map(distance).fold(f64::INFINITY, f64::min);
        assert!(distance(code) <= nearest + 1e-6 * unit, "{idx}");
    }
}

/// The share of blocks that warns is more than one in a hundred.
#[test]
fn one_saturated_block_in_a_hundred_is_let_pass() {
    let mut x = vec![1.0f32; 1600];
    let policy = ScalePolicy::fixed(1.0 / 2688.0).unwrap();
    x[5] = 2.0;
    assert_eq!(quantize_activations(&x, 1, 1600, policy).unwrap().counters.warning(), None);
    x[1599] = -2.0;
    let warning = quantize_activations(&x, 1, 1600, policy).unwrap().counters.warning().unwrap();
    assert_eq!(
        warning.to_string(),
        "activation scale too small: 2.0 % of blocks saturate and lose their largest values"
    );
    assert!(warning.hint().contains("per-token"));
    assert_eq!(Counters::default().warning(), None);
}

#[test]
fn scale_padding_is_written_as_zero() {
    let quantized = quantize_activations(&[1.0; 3 * 80], 3, 80, ScalePolicy::PerToken).unwrap();
    let swizzled = quantized.swizzled_scales();
    assert_eq!(swizzled.len(), 128 * 8);
    for row in 0..128 {
        for column in 0..8 {
            let expected = if row < 3 && column < 5 { 0x7E } else { 0 };
            assert_eq!(swizzled[scales::offset(row, column, 5)], expected, "{row} {column}");
        }
    }
}

#[test]
fn rows_have_scales_of_their_own_only_when_asked() {
    let mut x = vec![1.0f32; 32];
    x[16..].fill(100.0);
    let scales = |policy| quantize_activations(&x, 2, 16, policy).unwrap().row_scales;
    assert_eq!(scales(ScalePolicy::PerToken), [1.0 / 2688.0, 100.0 / 2688.0]);
    assert_eq!(scales(ScalePolicy::PerTensor), [100.0 / 2688.0; 2]);
    assert_eq!(scales(ScalePolicy::fixed(0.5).unwrap()), [0.5; 2]);
    assert_eq!(ScalePolicy::default(), ScalePolicy::PerToken);
    assert!(quantize_activations(&x, 2, 24, ScalePolicy::PerToken).is_err());
    assert!(quantize_activations(&x, 3, 16, ScalePolicy::PerToken).is_err());
}

#[test]
fn policies_have_the_words_of_the_command_line() {
    let words = [
        ScalePolicy::PerToken,
        ScalePolicy::PerTensor,
        ScalePolicy::from_modelopt_input_scale(0.5).unwrap(),
        ScalePolicy::warmup(2688.0).unwrap(),
        ScalePolicy::fixed(0.5).unwrap(),
    ];
    assert_eq!(
        words.map(|policy| policy.to_string()),
        ["per-token", "per-tensor", "checkpoint", "warmup", "fixed(0.5)"]
    );
}
