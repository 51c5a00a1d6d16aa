//! What caches and the indexer do to a row: quantise it and give back the values that are left.
//!
//! NaN and infinities pass through as they are: what is broken stays so, and is found.

use crate::quant::{bf16, e2m1, e4m3, ue8m0};

use super::{IndexFormat, KvFormat};

/// A key as the cache holds it; the last `rope_dim` values are the rotated ones (2.4).
pub(super) fn store_key(format: KvFormat, rope_dim: usize, key: &mut [f32]) {
    let (plain, rotated) = key.split_at_mut(key.len() - rope_dim);
    match format {
        KvFormat::Exact => {}
        KvFormat::Bf16 => round_to_bf16(key),
        KvFormat::Fp8 => {
            fp8(plain);
            round_to_bf16(rotated);
        }
    }
}

/// A row of the indexer's query or key (2.6).
pub(super) fn store_index(format: IndexFormat, row: &mut [f32]) {
    match format {
        IndexFormat::Exact => {}
        IndexFormat::Bf16 => round_to_bf16(row),
        IndexFormat::Mxfp4 => {
            hadamard(row);
            mxfp4(row);
        }
    }
}

/// Rounds every value to BF16.
pub(super) fn round_to_bf16(values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value = bf16::round(*value));
}

/// E4M3 in groups of 64 with the scale `2^ceil(log2(max(amax, 1e-4) / 448))`.
fn fp8(values: &mut [f32]) {
    for group in values.chunks_mut(KV_GROUP) {
        let scale = ue8m0::decode(ue8m0::encode_up(finite_amax(group).max(KV_AMAX_FLOOR) / e4m3::MAX));
        for value in group.iter_mut().filter(|value| value.is_finite()) {
            *value = e4m3::decode(e4m3::encode(*value / scale)) * scale;
        }
    }
}

/// E2M1 in groups of 32 with the scale `2^ceil(log2(max(amax, 6 * 2^-126) / 6))`.
fn mxfp4(values: &mut [f32]) {
    for group in values.chunks_mut(INDEX_GROUP) {
        let amax = finite_amax(group).max(e2m1::MAX * f32::MIN_POSITIVE);
        let scale = ue8m0::decode(ue8m0::encode_up(amax / e2m1::MAX));
        for value in group.iter_mut().filter(|value| value.is_finite()) {
            *value = e2m1::decode(e2m1::encode(*value / scale)) * scale;
        }
    }
}

/// Multiplies by the orthonormal Hadamard matrix of Sylvester's order; the length is a power of two.
fn hadamard(values: &mut [f32]) {
    let mut half = 1;
    while half < values.len() {
        for block in values.chunks_exact_mut(2 * half) {
            let (low, high) = block.split_at_mut(half);
            for (low, high) in low.iter_mut().zip(high) {
                (*low, *high) = (*low + *high, *low - *high);
            }
        }
        half *= 2;
    }
    let factor = 1.0 / (values.len() as f32).sqrt();
    values.iter_mut().for_each(|value| *value *= factor);
}

/// Largest magnitude of a finite value.
fn finite_amax(values: &[f32]) -> f32 {
    values.iter().filter(|value| value.is_finite()).fold(0.0, |amax, value| amax.max(value.abs()))
}

/// Values of a key that share a scale.
const KV_GROUP: usize = 64;

/// The least amax that a key's scale is made from.
const KV_AMAX_FLOOR: f32 = 1e-4;

/// Values of the indexer that share a scale.
const INDEX_GROUP: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    /// The description in f64 and by search: the least power of two, then the nearest value there is.
    fn searched(group: &[f32], (floor, largest): (f64, f64), steps: &[f32]) -> Vec<f64> {
        let amax = group.iter().fold(floor, |amax, value| amax.max(f64::from(value.abs())));
        let scale = (-126..128).map(|exponent| 2f64.powi(exponent)).find(|scale| amax / largest <= *scale).unwrap();
        let distance = |value: f32, step: f32| (f64::from(step) * scale - f64::from(value)).abs();
        let nearest = |&value: &f32| {
            let step = steps.iter().copied().min_by(|a, b| distance(value, *a).total_cmp(&distance(value, *b)));
            f64::from(step.unwrap()) * scale
        };
        group.iter().map(nearest).collect()
    }

    /// Values of both signs over several binades, none of them beside a tie.
    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|idx| (idx as f32 * 0.737 + 0.1).sin() * 1.37f32.powi((idx % 19) as i32 - 9)).collect()
    }

    #[test]
    fn fp8_keys_are_the_nearest_values_on_the_least_power_of_two() {
        let e4m3_values: Vec<f32> = (0..=255).filter(|&byte| !e4m3::is_nan(byte)).map(e4m3::decode).collect();
        // 112 plain values make a whole group and a short one; the 16 rotated ones are BF16.
        for factor in [1.0, 1e-7, 3e5] {
            let key: Vec<f32> = values(128).iter().map(|value| value * factor).collect();
            let mut stored = key.clone();
            store_key(KvFormat::Fp8, 16, &mut stored);
            let expected: Vec<f64> =
                key[..112].chunks(64).flat_map(|group| searched(group, (1e-4, 448.0), &e4m3_values)).collect();
            assert_eq!(stored[..112].iter().map(|&value| f64::from(value)).collect::<Vec<_>>(), expected);
            assert!(stored[112..].iter().zip(&key[112..]).all(|(stored, value)| *stored == bf16::round(*value)));
        }
        let mut zeros = vec![0.0; 128];
        store_key(KvFormat::Fp8, 16, &mut zeros);
        assert_eq!(zeros, vec![0.0; 128]);
    }

    #[test]
    fn mxfp4_rows_are_the_nearest_values_on_the_least_power_of_two() {
        for factor in [1.0, 1e-20, 1e20] {
            let row: Vec<f32> = values(128).iter().map(|value| value * factor).collect();
            let mut stored = row.clone();
            mxfp4(&mut stored);
            let floor = 6.0 * f64::from(f32::MIN_POSITIVE);
            let expected: Vec<f64> =
                row.chunks(32).flat_map(|group| searched(group, (floor, 6.0), &e2m1::VALUES)).collect();
            assert_eq!(stored.iter().map(|&value| f64::from(value)).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn the_hadamard_matrix_is_orthonormal() {
        let length = 32;
        for column in 0..length {
            let mut unit = vec![0.0; length];
            unit[column] = 1.0;
            hadamard(&mut unit);
            // Sylvester's matrix: the sign is the parity of the bits that row and column share.
            let sign = |row: usize| if (row & column).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
            let expected: Vec<f32> = (0..length).map(|row| sign(row) / (length as f32).sqrt()).collect();
            assert_eq!(unit, expected);
        }
        // So products survive it, and applying it twice gives the row back.
        let row = values(128);
        let mut twice = row.clone();
        hadamard(&mut twice);
        hadamard(&mut twice);
        assert!(row.iter().zip(&twice).all(|(before, after)| (before - after).abs() < 1e-5 * before.abs().max(1.0)));
    }

    #[test]
    fn what_is_not_finite_stays() {
        for (kv, index) in [(KvFormat::Bf16, IndexFormat::Bf16), (KvFormat::Fp8, IndexFormat::Mxfp4)] {
            let mut key = values(128);
            (key[3], key[70], key[120]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
            store_key(kv, 16, &mut key);
            assert!(key[3].is_nan() && key[70] == f32::INFINITY && key[120] == f32::NEG_INFINITY);
            assert_eq!(key.iter().filter(|value| !value.is_finite()).count(), 3);
            let mut row = values(64);
            row[40] = f32::NAN;
            store_index(index, &mut row);
            assert!(row[40].is_nan());
        }
    }
}
