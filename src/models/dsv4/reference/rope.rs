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
