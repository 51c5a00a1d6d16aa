//! Which token follows: the definition, which the device's `sample` kernel matches to the bit.
//!
//! A draw depends on the logits, the [`Sampling`], the sequence's slot and the position, never on what else is in the
//! batch or on how many threads add: a token's weight `2^((logit - largest) * (log2(e) / temperature))` is an f32, its
//! mass the integer part of `weight * 2^40`, and everything after that is integer arithmetic. A token less likely than
//! 2^-40 of the most likely one has no mass and is never drawn.
//!
//! Top-p keeps the most likely tokens whose mass reaches that share of the whole, together with all that tie with the
//! last of them. Among these, masses stand in a row by ascending id; a number from the seed, the slot and the position
//! falls into the range of one token.

use super::Sampling;
use crate::quant::math;

/// The token that follows `logits`, those of the token at `position` of the sequence in `slot`.
///
/// At temperature 0 the largest logit, ties to the lower id. `None` if a logit is NaN or infinite, or there is none.
pub fn sample(logits: &[f32], sampling: &Sampling, slot: u32, position: u32) -> Option<u32> {
    if !logits.iter().all(|logit| logit.is_finite()) {
        return None;
    }
    let is_larger = |largest: usize, id: usize| if logits[id] > logits[largest] { id } else { largest };
    let largest = (0..logits.len()).reduce(is_larger)?;
    if sampling.temperature <= 0.0 || sampling.temperature.is_nan() {
        return Some(largest as u32);
    }
    let scale = math::LOG2_E / sampling.temperature;
    let weight = |&logit: &f32| {
        let below = logit - logits[largest];
        if below == 0.0 { 1.0 } else { math::exp2(below * scale) }
    };
    let weights: Vec<f32> = logits.iter().map(weight).collect();
    let threshold = threshold(&weights, sampling.top_p);
    let nucleus = || weights.iter().enumerate().filter(|(_, weight)| **weight >= threshold);
    let total: u64 = nucleus().map(|(_, weight)| mass(*weight)).sum();
    let mut place = ((u128::from(random(sampling.seed, slot, position)) * u128::from(total)) >> 64) as u64;
    for (id, weight) in nucleus() {
        match place.checked_sub(mass(*weight)) {
            Some(rest) => place = rest,
            None => return Some(id as u32),
        }
    }
    // The place is below the total, so a token is found; the largest has mass whatever else has.
    Some(largest as u32)
}

/// What the device's kernel reads: temperature, top-p and both halves of the seed, as 32-bit words.
pub fn settings(sampling: &Sampling) -> [u32; 4] {
    let seed = sampling.seed;
    [sampling.temperature.to_bits(), sampling.top_p.to_bits(), seed as u32, (seed >> 32) as u32]
}

/// The least weight that is drawn from.
fn threshold(weights: &[f32], top_p: f32) -> f32 {
    if top_p >= 1.0 {
        return 0.0;
    }
    let total: u64 = weights.iter().copied().map(mass).sum();
    let wanted = f64::from(top_p) * total as f64;
    let target = if wanted > 1.0 { (wanted as u64).min(total) } else { 1 };
    let mut descending = weights.to_vec();
    descending.sort_by(|a, b| b.total_cmp(a));
    let mut sum = 0;
    for weight in descending {
        sum += mass(weight);
        if sum >= target {
            return weight;
        }
    }
    0.0
}

/// A weight of at most 1 as an integer.
fn mass(weight: f32) -> u64 {
    (weight * MASS_OF_ONE) as u64
}

/// 64 bits that are the same for the same seed, slot and position: splitmix64's finaliser over a counter.
fn random(seed: u64, slot: u32, position: u32) -> u64 {
    let counter = (u64::from(slot) << 32) | u64::from(position);
    scramble(scramble(seed.wrapping_add(0x9E37_79B9_7F4A_7C15)).wrapping_add(counter))
}

fn scramble(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// 2^40: 2^17 tokens of the largest mass are still a u64.
const MASS_OF_ONE: f32 = 1_099_511_627_776.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f32, top_p: f32) -> Sampling {
        Sampling { temperature, top_p, seed: 7 }
    }

    #[test]
    fn temperature_zero_takes_the_lowest_of_the_largest() {
        assert_eq!(sample(&[1.0, 3.0, 3.0, -2.0], &sampling(0.0, 1.0), 0, 0), Some(1));
        assert_eq!(sample(&[-0.0, 0.0], &sampling(0.0, 1.0), 0, 0), Some(0));
        assert_eq!(sample(&[], &sampling(0.0, 1.0), 0, 0), None);
    }

    #[test]
    fn what_is_not_finite_gives_no_token() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(sample(&[1.0, bad, 0.0], &sampling(0.0, 1.0), 0, 0), None, "{bad}");
            assert_eq!(sample(&[1.0, bad, 0.0], &sampling(1.0, 0.9), 0, 0), None, "{bad}");
        }
    }

    /// 20000 draws against the softmax: each share within five standard deviations.
    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        let logits = [0.5f32, -1.0, 2.0, 0.0, 1.5, -3.0];
        let temperature = 0.8f32;
        let mut counts = [0u32; 6];
        let draws = 20_000u32;
        for position in 0..draws {
            counts[sample(&logits, &sampling(temperature, 1.0), 3, position).unwrap() as usize] += 1;
        }
        let exps: Vec<f64> = logits.iter().map(|logit| (f64::from(*logit) / f64::from(temperature)).exp()).collect();
        let total: f64 = exps.iter().sum();
        for (id, (count, exp)) in counts.iter().zip(&exps).enumerate() {
            let share = exp / total;
            let deviation = (share * (1.0 - share) * f64::from(draws)).sqrt();
            let off = (f64::from(*count) - share * f64::from(draws)).abs();
            assert!(off < 5.0 * deviation, "token {id}: {count} of {draws}, expected a share of {share}");
        }
    }

    #[test]
    fn top_p_keeps_the_likeliest_and_their_ties() {
        // Shares 1/2, 1/4, 1/8, 1/8.
        let logits = [0.0f32, 2.0, 0.0, 1.0].map(|halvings| (halvings - 2.0) * std::f32::consts::LN_2);
        let drawn = |top_p: f32| -> Vec<u32> {
            let mut ids: Vec<u32> =
                (0..2000).map(|position| sample(&logits, &sampling(1.0, top_p), 0, position).unwrap()).collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        assert_eq!(drawn(0.0), [1]);
        assert_eq!(drawn(0.49), [1]);
        assert_eq!(drawn(0.6), [1, 3]);
        assert_eq!(drawn(0.8), [0, 1, 2, 3]);
        assert_eq!(drawn(1.0), [0, 1, 2, 3]);
    }

    #[test]
    fn draws_differ_by_seed_slot_and_position_only() {
        let logits: Vec<f32> = (0..1000).map(|id| (id % 17) as f32 * 0.1).collect();
        let draw = |seed, slot, position| {
            sample(&logits, &Sampling { temperature: 1.0, top_p: 0.95, seed }, slot, position).unwrap()
        };
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        let all: std::collections::BTreeSet<u32> =
            (0..10).flat_map(|i| [draw(i, 0, 0), draw(0, i as u32, 1)]).collect();
        assert!(all.len() > 10, "{all:?}");
    }

    /// Numbers that the device must draw too; a change here is a change of every generated text.
    #[test]
    fn draws_are_pinned() {
        assert_eq!(random(0, 0, 0), scramble(scramble(0x9E37_79B9_7F4A_7C15)));
        assert_eq!(scramble(0x9E37_79B9_7F4A_7C15), 0xE220_A839_7B1D_CDAF);
        assert_eq!(
            settings(&Sampling { temperature: 1.0, top_p: 0.5, seed: (3 << 32) | 9 }),
            [0x3F80_0000, 0x3F00_0000, 9, 3]
        );
    }

    /// A temperature so small that the scale overflows still takes the largest.
    #[test]
    fn a_tiny_temperature_takes_the_largest() {
        for temperature in [1e-3, 1e-38, f32::MIN_POSITIVE / 4.0] {
            assert_eq!(sample(&[1.0, 2.0, 1.9], &sampling(temperature, 1.0), 0, 5), Some(1), "{temperature:e}");
        }
    }
}
