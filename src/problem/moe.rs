//! The routed experts of one layer as one problem: gate-up, SwiGLU, down, routing weight, combine.
//!
//! Gate-up and down share one schedule and one intermediate buffer, so they are tuned together.

use serde::{Deserialize, Serialize};

use super::{Activations, BF16_BYTES};
use crate::quant::WeightFormat;

/// `D[t] = sum_s weight[t, s] * W2[e] * swiglu(W13[e] * A[t])` with `e = expert[t, s]`, over the `top_k` slots of token
/// `t`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MoeBlock {
    /// Format of the expert weights.
    pub weights: WeightFormat,
    /// Experts that routing chooses from.
    pub experts: u32,
    /// Experts that this rank holds; the others' slots are skipped.
    pub local_experts: u32,
    /// Slots of a token.
    pub top_k: u32,
    /// Length of a token's row: `k` of gate-up, `n` of down.
    pub hidden: u32,
    /// Length of an expert's inner row: half of gate-up's `n`, `k` of down.
    pub intermediate: u32,
    /// How activations reach the tensor cores.
    pub activations: Activations,
    /// Tokens of the bucket.
    pub m: u32,
}

impl MoeBlock {
    /// Bytes of one expert's three matrices, codes and scales.
    pub fn expert_bytes(&self) -> u64 {
        let (hidden, intermediate) = (u64::from(self.hidden), u64::from(self.intermediate));
        self.weights.bytes(2 * intermediate, hidden) + self.weights.bytes(hidden, intermediate)
    }

    /// Bytes of all experts that this rank holds.
    pub fn weight_bytes(&self) -> u64 {
        u64::from(self.local_experts) * self.expert_bytes()
    }

    /// Local experts that get at least one of `m` tokens, on average under uniform routing.
    pub fn touched_experts(&self) -> f64 {
        let share = f64::from(self.top_k) / f64::from(self.experts);
        f64::from(self.local_experts) * (1.0 - (1.0 - share).powi(self.m as i32))
    }

    /// Slots that land on this rank, on average under uniform routing.
    pub fn local_slots(&self) -> f64 {
        f64::from(self.m) * f64::from(self.top_k) * f64::from(self.local_experts) / f64::from(self.experts)
    }

    /// Weight bytes that a step must read, on average under uniform routing.
    pub fn touched_weight_bytes(&self) -> u64 {
        (self.touched_experts() * self.expert_bytes() as f64).round() as u64
    }

    /// Bytes of the tokens read once and the result written once.
    pub fn activation_bytes(&self) -> u64 {
        2 * u64::from(self.m) * u64::from(self.hidden) * BF16_BYTES
    }

    /// Floating-point operations of the three products.
    pub fn flops(&self) -> u64 {
        (self.local_slots() * 6.0 * f64::from(self.hidden) * f64::from(self.intermediate)).round() as u64
    }

    /// `moe nvfp4 256/256 top6 4096x2048 a8`: local experts, all experts, slots, hidden by intermediate; `a16` is left
    /// out.
    pub fn op(&self) -> String {
        let Self { weights, experts, local_experts, top_k, hidden, intermediate, activations, .. } = self;
        let op = format!("moe {weights} {local_experts}/{experts} top{top_k} {hidden}x{intermediate}");
        match activations {
            Activations::A16 => op,
            other => format!("{op} {other}"),
        }
    }
}

/// Who goes to which expert while a block is measured. Recorded with the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Routing {
    /// Every set of distinct experts is equally likely.
    #[default]
    Uniform,
    /// Popularity `rank^-s` under a seeded permutation of the experts, drawn without replacement.
    Zipf(f32),
    /// Every token goes to the same experts: a hash layer that sees one token id.
    OneSet,
}

impl std::fmt::Display for Routing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf(s) => write!(f, "zipf({s:.1})"),
            Self::OneSet => f.write_str("one-set"),
        }
    }
}
