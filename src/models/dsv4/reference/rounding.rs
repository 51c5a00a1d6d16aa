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
