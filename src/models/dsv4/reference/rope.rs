//! Rotary positions, with YaRN where a layer has compressed entries (2.4).

use crate::models::dsv4::{Config, LayerKind, Yarn};

/// Angles per position of the pairs `(2i, 2i + 1)` at the end of a head.
#[derive(Clone, Debug)]
pub(in crate::models::dsv4) struct Rope {
    frequencies: Vec<f64>,
}

/// Cosine and sine of each pair at one position.
pub(in crate::models::dsv4) type Turn = Vec<(f32, f32)>;

impl Rope {
    /// The rotation that layers of `kind` use for everything: queries, keys, compressed entries, indexer.
    pub(in crate::models::dsv4) fn new(config: &Config, kind: LayerKind) -> Self {
        let pairs = config.rope_dim / 2;
        let frequency = |base: f64, pair: u32| base.powf(-f64::from(2 * pair) / f64::from(config.rope_dim));
        let frequencies = match kind {
            LayerKind::Swa => (0..pairs).map(|pair| frequency(config.rope_base, pair)).collect(),
            LayerKind::Csa | LayerKind::Hca => {
                let base = config.compressed_rope_base;
                let stretched = |pair| stretch(&config.yarn, base, [config.rope_dim, pair]) * frequency(base, pair);
                (0..pairs).map(stretched).collect()
            }
        };
        Self { frequencies }
    }

    /// What `position` turns by. Angles are f64: at a million tokens an f32 knows them to a sixteenth of a turn.
    pub(in crate::models::dsv4) fn at(&self, position: usize) -> Turn {
        let cos_sin = |frequency: &f64| {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            (cos as f32, sin as f32)
        };
        self.frequencies.iter().map(cos_sin).collect()
    }
}

/// Rotates the last values of `head`: `(a, b) -> (a cos - b sin, a sin + b cos)`.
pub(super) fn rotate(turn: &Turn, head: &mut [f32]) {
    let start = head.len() - 2 * turn.len();
    for (pair, (cos, sin)) in head[start..].chunks_exact_mut(2).zip(turn) {
        (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
    }
}

/// Undoes [`rotate`].
pub(super) fn rotate_back(turn: &Turn, head: &mut [f32]) {
    let back: Turn = turn.iter().map(|&(cos, sin)| (cos, -sin)).collect();
    rotate(&back, head);
}

/// What YaRN multiplies the frequency of `pair` by: 1 for fast pairs, `1 / factor` for slow ones, a ramp between.
fn stretch(yarn: &Yarn, base: f64, [rope_dim, pair]: [u32; 2]) -> f64 {
    let dim = f64::from(rope_dim);
    // The pair that turns `rotations` times over the length that the model was trained on.
    let pair_of = |rotations: f64| {
        dim * (f64::from(yarn.original_tokens) / (std::f64::consts::TAU * rotations)).ln() / (2.0 * base.ln())
    };
    let low = pair_of(yarn.beta_fast).floor().max(0.0);
    let high = pair_of(yarn.beta_slow).ceil().min(dim - 1.0);
    // A ramp without length would divide by zero.
    let length = if high == low { 0.001 } else { high - low };
    let ramp = ((f64::from(pair) - low) / length).clamp(0.0, 1.0);
    1.0 - ramp + ramp / yarn.factor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yarn_slows_what_turns_slowly() {
        // For Flash: 64 * ln(65536 / (2 pi 32)) / (2 ln 160000) = 15.45, and 24.71 for one turn: a ramp from 15 to 25.
        let rope = Rope::new(&Config::FLASH, LayerKind::Csa);
        let plain = |pair: usize| 160_000f64.powf(-(pair as f64) / 32.0);
        for (pair, factor) in [(0, 1.0), (15, 1.0), (20, 0.5 + 0.5 / 16.0), (25, 1.0 / 16.0), (31, 1.0 / 16.0)] {
            let ratio = rope.frequencies[pair] / plain(pair);
            assert!((ratio - factor).abs() < 1e-12, "pair {pair}: {ratio} for {factor}");
        }
        assert_eq!(rope.frequencies.len(), 32);
        let window = Rope::new(&Config::FLASH, LayerKind::Swa);
        assert!((window.frequencies[31] - 10_000f64.powf(-62.0 / 64.0)).abs() < 1e-15);
    }

    #[test]
    fn a_turn_back_undoes_a_turn_and_products_see_distances_alone() {
        let rope = Rope::new(&Config { rope_dim: 8, ..Config::FLASH }, LayerKind::Swa);
        let head: Vec<f32> = (0..12).map(|idx| (idx as f32 * 0.7).cos()).collect();
        let turned = |position| {
            let mut turned = head.clone();
            rotate(&rope.at(position), &mut turned);
            turned
        };
        assert_eq!(turned(9)[..4], head[..4], "what is not rotated stays");
        assert_eq!((turned(9)[4], turned(0)), (head[4] * 9f32.cos() - head[5] * 9f32.sin(), head.clone()));
        let mut back = turned(1000);
        rotate_back(&rope.at(1000), &mut back);
        assert!(back.iter().zip(&head).all(|(back, value)| (back - value).abs() < 1e-6));
        let product = |a: usize, b: usize| turned(a).iter().zip(turned(b)).map(|(a, b)| a * b).sum::<f32>();
        assert!((product(5, 12) - product(1005, 1012)).abs() < 1e-4);
    }
}
