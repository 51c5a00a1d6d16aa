//! Ops by name, and who looks at what they give.

use super::Matrix;

/// Where in the model a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Op {
    /// The layer; none before the first and behind the last.
    pub layer: Option<usize>,
    /// One of the names in [`OPS`].
    pub name: &'static str,
}

/// `layers.3.attn.wq_b`, `head`.
impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "layers.{layer}.{}", self.name),
            None => f.write_str(self.name),
        }
    }
}

/// Sees what every op gives, and may impose what the model would choose.
///
/// Every method has a body that does nothing, so an observer is as long as what it wants to know. `()` wants nothing.
pub trait Observer {
    /// The output of an op: a row a token, unless [`OPS`] says otherwise. Positions start at `first_position`.
    ///
    /// # Errors
    /// Whatever ends the pass, as [`ReferenceError::Observer`](super::ReferenceError::Observer).
    fn output(&mut self, op: Op, first_position: usize, output: &Matrix) -> Observed {
        let _ = (op, first_position, output);
        Ok(())
    }

    /// The streams that `layer` is about to read, `[m, streams * hidden]`: what is written there is what it reads.
    fn streams(&mut self, layer: usize, streams: &mut Matrix) {
        let _ = (layer, streams);
    }

    /// The experts that were chosen in `layer`, `[m, top_k]`: what is written there is what runs. Their weights are
    /// then those of the model's own scores.
    fn experts(&mut self, layer: usize, experts: &mut [u32]) {
        let _ = (layer, experts);
    }

    /// The compressed entries that the indexer of `layer` chose, ascending, one list a token; replaceable as well.
    fn picks(&mut self, layer: usize, picks: &mut [Vec<u32>]) {
        let _ = (layer, picks);
    }
}

impl Observer for () {}

/// What an observer answers: nothing, or why the pass ends here.
pub type Observed = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Every op in the order of a pass, with the ops whose outputs it reads. `streams` of a layer is what the layer before
/// it gave; caches are read as well and not listed.
///
/// Rows: `attn.compressor` and `attn.indexer.compressor` have one for each entry that was closed in the pass, and the
/// ops of `ffn.experts` one for each slot (token-major, `top_k` slots a token). All others have one for each token.
pub const OPS: &[(&str, &[&str])] = &[
    ("embed", &[]),
    ("hc_attn.mix", &["streams"]),
    ("hc_attn", &["hc_attn.mix", "streams"]),
    ("attn_norm", &["hc_attn"]),
    ("attn.wq_a", &["attn_norm"]),
    ("attn.q_norm", &["attn.wq_a"]),
    ("attn.wq_b", &["attn.q_norm"]),
    ("attn.q", &["attn.wq_b"]),
    ("attn.wkv", &["attn_norm"]),
    ("attn.kv", &["attn.wkv"]),
    ("attn.compressor.wkv", &["attn_norm"]),
    ("attn.compressor.wgate", &["attn_norm"]),
    ("attn.compressor", &["attn.compressor.wkv", "attn.compressor.wgate"]),
    ("attn.indexer.compressor.wkv", &["attn_norm"]),
    ("attn.indexer.compressor.wgate", &["attn_norm"]),
    ("attn.indexer.compressor", &["attn.indexer.compressor.wkv", "attn.indexer.compressor.wgate"]),
    ("attn.indexer.wq_b", &["attn.q_norm"]),
    ("attn.indexer.q", &["attn.indexer.wq_b"]),
    ("attn.indexer.weights_proj", &["attn_norm"]),
    ("attn.indexer.scores", &["attn.indexer.q", "attn.indexer.compressor", "attn.indexer.weights_proj"]),
    ("attn.core", &["attn.q", "attn.kv", "attn.compressor"]),
    ("attn.wo_a", &["attn.core"]),
    ("attn.wo_b", &["attn.wo_a"]),
    ("hc_attn.post", &["attn.wo_b", "hc_attn.mix", "streams"]),
    ("hc_ffn.mix", &["hc_attn.post"]),
    ("hc_ffn", &["hc_ffn.mix", "hc_attn.post"]),
    ("ffn_norm", &["hc_ffn"]),
    ("ffn.gate", &["ffn_norm"]),
    ("ffn.route", &["ffn.gate"]),
    ("ffn.experts.w1", &["ffn_norm"]),
    ("ffn.experts.w3", &["ffn_norm"]),
    ("ffn.experts.swiglu", &["ffn.experts.w1", "ffn.experts.w3"]),
    ("ffn.experts.w2", &["ffn.experts.swiglu"]),
    ("ffn.shared_experts.w1", &["ffn_norm"]),
    ("ffn.shared_experts.w3", &["ffn_norm"]),
    ("ffn.shared_experts.swiglu", &["ffn.shared_experts.w1", "ffn.shared_experts.w3"]),
    ("ffn.shared_experts.w2", &["ffn.shared_experts.swiglu"]),
    ("ffn", &["ffn.experts.w2", "ffn.route", "ffn.shared_experts.w2"]),
    ("streams", &["ffn", "hc_ffn.mix", "hc_attn.post"]),
    ("hc_head.mix", &["streams"]),
    ("hc_head", &["hc_head.mix", "streams"]),
    ("norm", &["hc_head"]),
    ("head", &["norm"]),
];
