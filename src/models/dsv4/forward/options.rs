//! How a model runs on a GPU: its limits, its numerics, and what is given up for what.

use super::super::LayerKind;
use super::super::reference::{Activation, IndexFormat, KvFormat, Options, RouterWeight, ScaleSource};
use super::ForwardError;
use crate::kernels::runner::{ActivationScale, Element};
use crate::problem::{BUCKETS, Output};

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
    /// These options, with a chunk that a decode step of all sequences fits in.
    ///
    /// # Errors
    /// [`ForwardError::Limits`] for what no bucket can serve.
    pub(super) fn checked(&self) -> Result<Self, ForwardError> {
        let largest = BUCKETS[BUCKETS.len() - 1];
        let refused = |expected, found| Err(ForwardError::Limits { expected, found });
        if self.context == 0 {
            return refused("a context of at least one token", self.context);
        }
        if !(1..=largest).contains(&self.sequences) {
            return refused("1 to 8192 sequences at a time", self.sequences);
        }
        if !BUCKETS.contains(&self.chunk) {
            return refused("a chunk of 1, 2, 4 or another power of two up to 8192 tokens", self.chunk);
        }
        Ok(Self { chunk: self.chunk.max(self.sequences.next_power_of_two()), ..self.clone() })
    }

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

    /// What streams are kept as, in the words of a problem.
    pub(super) fn stream_output(&self) -> Output {
        match self.streams {
            Element::Bf16 => Output::Bf16,
            Element::F32 => Output::F32,
        }
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

    /// Whether a captured decode step has branches: rounded inputs lie in one buffer, so there launches stand in a row.
    pub(super) fn has_branches(&self) -> bool {
        !self.has_slots()
    }

    /// Tokens of a page of compressed entries of layers of `kind`.
    pub(super) fn page_tokens(kind: LayerKind) -> u32 {
        kind.ratio() * crate::kernels::runner::PAGE_ENTRIES
    }
}

/// Logits of a prompt are made this many rows at a time.
const LEAST_HEAD_ROWS: u32 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_no_bucket_serves_are_refused() {
        let of = |context, sequences, chunk| ForwardOptions { context, sequences, chunk, ..ForwardOptions::default() };
        let refusal = |options: ForwardOptions| options.checked().unwrap_err().to_string();
        assert_eq!(refusal(of(0, 1, 64)), "expected a context of at least one token, found 0");
        assert_eq!(refusal(of(64, 0, 64)), "expected 1 to 8192 sequences at a time, found 0");
        assert_eq!(refusal(of(64, 8193, 64)), "expected 1 to 8192 sequences at a time, found 8193");
        assert!(refusal(of(64, 1, 3000)).ends_with("up to 8192 tokens, found 3000"));
    }

    #[test]
    fn a_chunk_has_room_for_a_decode_step_and_the_head() {
        for (sequences, chunk, expected) in [(64, 16, 64), (33, 64, 64), (65, 64, 128), (1, 1, 1), (8192, 1, 8192)] {
            let options = ForwardOptions { sequences, chunk, ..ForwardOptions::default() }.checked().unwrap();
            assert_eq!(options.chunk, expected);
            assert!(options.head_rows() <= options.chunk && options.head_rows() >= sequences);
            assert!(options.buckets().contains(&options.head_rows()), "the head's rows are a bucket");
        }
    }
}
