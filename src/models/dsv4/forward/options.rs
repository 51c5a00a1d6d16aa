//! How a model runs on a GPU: its limits, its numerics, and what is given up for what.

use super::super::LayerKind;
use super::super::reference::{Activation, IndexFormat, KvFormat, Options, RouterWeight, ScaleSource};
use crate::kernels::runner::{ActivationScale, Element};
use crate::problem::BUCKETS;

/// How a model runs.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardOptions {
    /// Quantisation of activations and caches.
    pub numerics: Options,
    /// Most tokens of a sequence.
    pub context: u32,
    /// Most sequences at a time.
    pub sequences: u32,
    /// Most tokens of a step: longer prompts are fed in parts. One of [`BUCKETS`].
    pub chunk: u32,
    /// What residual streams are kept as. DeepSeek's own code has BF16; f32 costs bandwidth in long prompts and halves
    /// the error that is left of a layer.
    pub streams: Element,
    /// Whether a sequence gives the same bits in any company. Slower: every bucket must sum in one order.
    pub is_batch_invariant: bool,
    /// Experts that are MXFP4 in the file are packed as NVFP4.
    pub has_nvfp4_experts: bool,
}

impl Default for ForwardOptions {
    fn default() -> Self {
        Self {
            numerics: Options::default(),
            context: 8192,
            sequences: 1,
            chunk: 2048,
            streams: Element::F32,
            is_batch_invariant: false,
            has_nvfp4_experts: false,
        }
    }
}

impl ForwardOptions {
    /// Buckets of tokens that a step may have.
    pub fn buckets(&self) -> Vec<u32> {
        BUCKETS.into_iter().filter(|&m| m <= self.chunk).collect()
    }

    /// Rows of logits that are made at a time.
    pub(super) fn head_rows(&self) -> u32 {
        self.sequences.next_power_of_two().max(LEAST_HEAD_ROWS.min(self.chunk))
    }

    /// The bucket whose cut of the mixing sums a step of bucket `m` has: the smallest where sums must not depend on it.
    pub(super) fn mix_bucket(&self, m: u32) -> u32 {
        if self.is_batch_invariant { 1 } else { m }
    }

    pub(super) fn has_fp8_kv(&self) -> bool {
        self.numerics.kv == KvFormat::Fp8
    }

    pub(super) fn has_mxfp4_index(&self) -> bool {
        self.numerics.index == IndexFormat::Mxfp4
    }

    /// Where the scales of quantised activations are from at first, if activations are quantised.
    pub(super) fn activation_scale(&self) -> Option<ActivationScale> {
        match self.numerics.activation {
            Activation::A16 => None,
            Activation::A4(ScaleSource::PerToken | ScaleSource::Warmup) => Some(ActivationScale::PerToken),
            Activation::A4(ScaleSource::PerTensor) => Some(ActivationScale::PerTensor),
            Activation::A4(ScaleSource::Checkpoint | ScaleSource::Fixed(_)) => Some(ActivationScale::Static),
        }
    }

    /// Every place that scales are from in the course of a run.
    pub(super) fn activation_scales(&self) -> Vec<ActivationScale> {
        let mut scales: Vec<_> = self.activation_scale().into_iter().collect();
        if self.numerics.activation == Activation::A4(ScaleSource::Warmup) {
            scales.push(ActivationScale::Static);
        }
        scales
    }

    /// Whether experts may run slot by slot.
    pub(super) fn has_slots(&self) -> bool {
        self.numerics.activation != Activation::A16 || self.numerics.router_weight == RouterWeight::BeforeW2
    }

    /// Tokens of a page of compressed entries of layers of `kind`.
    pub(super) fn page_tokens(kind: LayerKind) -> u32 {
        kind.ratio() * crate::kernels::runner::PAGE_ENTRIES
    }
}

/// Logits of a prompt are made this many rows at a time.
const LEAST_HEAD_ROWS: u32 = 256;
