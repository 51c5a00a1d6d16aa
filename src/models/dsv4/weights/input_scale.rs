//! Scales of activations that a file brings along and that nobody should trust.
//!
//! They are no reason to refuse a file: the default policies never read them. Under a scale `s` the largest activation
//! is 6 * 448 * s; whatever is above is clipped to it without a trace.

use std::collections::BTreeMap;

use super::ledger::{Fate, Ledger, Role};
use super::{Linear, Weights};
use crate::quant::{TensorScale, TensorScaleError, WeightFormat, nvfp4};

/// A scale of activations that a policy which trusts the file should not use.
#[derive(Clone, Debug, PartialEq)]
pub struct InputScaleWarning {
    /// Native name of the weight.
    pub weight: String,
    /// As the file calls the scale.
    pub tensor: String,
    /// Why.
    pub problem: Unusable,
}

/// Why a scale of activations is of no use.
#[derive(Clone, Debug, PartialEq)]
pub enum Unusable {
    /// It is zero, negative, subnormal, infinite or NaN, or its reciprocal is.
    NoScale {
        /// As the file has it.
        value: f32,
        /// What is wrong with it.
        error: TensorScaleError,
    },
    /// The root mean square of what it scales is above the largest value that it can represent.
    Clips {
        /// As a multiplier.
        scale: f32,
        /// Root mean square of the input, by the weights of the norm ahead.
        rms: f32,
    },
}

/// The largest magnitude of an activation under `scale`, a multiplier.
pub fn ceiling(scale: f32) -> f32 {
    nvfp4::RANGE * scale
}

/// Scales that must clip. Behind a norm the root mean square of a row is that of the norm's weights, if no element of
/// the row is larger than others as a rule, and the largest element is larger still.
pub(super) fn clipping(weights: &Weights, ledger: &Ledger) -> Vec<InputScaleWarning> {
    let mut warnings = Vec::new();
    for layer in &weights.layers {
        let attention = &layer.attention;
        let of_hidden = [&attention.wq_a, &attention.wkv];
        let of_queries = [Some(&attention.wq_b), attention.indexer.as_ref().map(|indexer| &indexer.wq_b)];
        let experts = layer.feed_forward.experts.iter().chain([&layer.feed_forward.shared]);
        warnings.extend(of_hidden.into_iter().filter_map(|linear| clips(linear, &layer.attn_norm)));
        warnings.extend(of_queries.into_iter().flatten().filter_map(|linear| clips(linear, &attention.q_norm)));
        warnings.extend(
            experts.flat_map(|expert| [&expert.w1, &expert.w3]).filter_map(|linear| clips(linear, &layer.ffn_norm)),
        );
    }
    let tensors = tensors(ledger);
    for warning in &mut warnings {
        if let Some(tensor) = tensors.get(warning.weight.as_str()) {
            warning.tensor = tensor.to_string();
        }
    }
    warnings
}

/// What the file calls each weight's scale of activations.
fn tensors(ledger: &Ledger) -> BTreeMap<&str, &str> {
    let mut tensors = BTreeMap::new();
    for entry in &ledger.entries {
        let Fate::Used(uses) = &entry.fate else { continue };
        let scales = uses.iter().filter(|used| used.role == Role::InputScale);
        tensors.extend(scales.map(|used| (used.weight.as_str(), entry.tensor.as_str())));
    }
    tensors
}

/// The warning of `linear`, whose input is what `norm` gives.
fn clips(linear: &Linear, norm: &[f32]) -> Option<InputScaleWarning> {
    let scale = linear.input_scale.filter(|&scale| TensorScale::multiplier(scale).is_ok())?;
    let squares: f64 = norm.iter().map(|&weight| f64::from(weight).powi(2)).sum();
    let rms = (squares / norm.len() as f64).sqrt() as f32;
    if linear.format != WeightFormat::Nvfp4 || ceiling(scale) >= rms {
        return None;
    }
    Some(InputScaleWarning {
        weight: linear.name.clone(),
        tensor: String::new(),
        problem: Unusable::Clips { scale, rms },
    })
}

impl std::fmt::Display for InputScaleWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tensor = &self.tensor;
        match &self.problem {
            Unusable::NoScale { value, error } => write!(
                f,
                "`{tensor}` is {value:e}, which is no scale ({error}): --scale checkpoint would refuse it, use --scale \
                 per-token"
            ),
            Unusable::Clips { scale, rms } => write!(
                f,
                "`{tensor}` is {scale:e}: activations above {:.3} would be clipped, and the rows that it scales have a \
                 root mean square of about {rms:.2}; use --scale per-token",
                ceiling(*scale)
            ),
        }
    }
}
