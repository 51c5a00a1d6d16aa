//! The weights of a checkpoint, by what they are for. Large ones stay where they lie in the files.

mod agreement;
mod examine;
mod faults;
mod input_scale;
mod ledger;
mod linear;
mod load;
mod names;
mod parts;
mod reader;

pub use examine::{Examination, InputScales, MatrixKind, Refusal, UnusableTensor, UnusedTensors, examine};
pub use faults::{Fault, Faults, MOST_LINES, Reason, WeightsError};
pub use input_scale::{InputScaleWarning, Unusable, ceiling};
pub use ledger::{Fate, Ledger, LedgerEntry, Role, Unused, Use};
pub use linear::Linear;
pub use load::{LoadOptions, Loaded};

use super::LayerKind;

/// All weights of a model. Names in errors and ledgers are the native ones, whatever the files call them.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights<'a> {
    /// `[vocabulary, hidden]`, BF16.
    pub embed: Linear<'a>,
    /// One entry a layer.
    pub layers: Vec<Layer<'a>>,
    /// What mixes the streams into one behind the last layer; `function` is `[streams, streams * hidden]`.
    pub hc_head: HyperConnection,
    /// Norm behind the last layer, `[hidden]`.
    pub norm: Vec<f32>,
    /// `[vocabulary, hidden]`, BF16.
    pub head: Linear<'a>,
}

/// One layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer<'a> {
    /// What its attention looks at.
    pub kind: LayerKind,
    /// Around attention.
    pub hc_attn: HyperConnection,
    /// `[hidden]`.
    pub attn_norm: Vec<f32>,
    /// Attention.
    pub attention: Attention<'a>,
    /// Around the experts.
    pub hc_ffn: HyperConnection,
    /// `[hidden]`.
    pub ffn_norm: Vec<f32>,
    /// Experts.
    pub feed_forward: FeedForward<'a>,
}

/// What mixes the streams around a sublayer, in F32.
#[derive(Clone, Debug, PartialEq)]
pub struct HyperConnection {
    /// `[24, streams * hidden]` around a sublayer: weights in, weights out, and the mixing matrix.
    pub function: Vec<f32>,
    /// `[24]`.
    pub base: Vec<f32>,
    /// `[3]`; of the head `[1]`.
    pub scale: Vec<f32>,
}

/// Attention of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention<'a> {
    /// `[heads]`.
    pub sink: Vec<f32>,
    /// `[q_rank, hidden]`.
    pub wq_a: Linear<'a>,
    /// `[q_rank]`.
    pub q_norm: Vec<f32>,
    /// `[heads * head_dim, q_rank]`.
    pub wq_b: Linear<'a>,
    /// `[head_dim, hidden]`.
    pub wkv: Linear<'a>,
    /// `[head_dim]`.
    pub kv_norm: Vec<f32>,
    /// `[o_groups * o_rank, heads * head_dim / o_groups]`.
    pub wo_a: Linear<'a>,
    /// `[hidden, o_groups * o_rank]`.
    pub wo_b: Linear<'a>,
    /// CSA and HCA layers.
    pub compressor: Option<Compressor<'a>>,
    /// CSA layers.
    pub indexer: Option<Indexer<'a>>,
}

/// What makes one entry of several tokens. `width` is `series * head_dim`: two series in CSA layers, one in HCA.
#[derive(Clone, Debug, PartialEq)]
pub struct Compressor<'a> {
    /// `[width, hidden]`.
    pub wkv: Linear<'a>,
    /// `[width, hidden]`.
    pub wgate: Linear<'a>,
    /// `[ratio, width]`.
    pub ape: Vec<f32>,
    /// `[head_dim]`.
    pub norm: Vec<f32>,
}

/// What chooses among CSA's entries.
#[derive(Clone, Debug, PartialEq)]
pub struct Indexer<'a> {
    /// `[index_heads * index_head_dim, q_rank]`.
    pub wq_b: Linear<'a>,
    /// `[index_heads, hidden]`.
    pub weights_proj: Linear<'a>,
    /// Entries of its own, `index_head_dim` long.
    pub compressor: Compressor<'a>,
}

/// Router, routed experts and shared expert of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedForward<'a> {
    /// `[experts, hidden]`.
    pub gate: Linear<'a>,
    /// How experts are chosen.
    pub choice: Choice,
    /// One entry a routed expert.
    pub experts: Vec<Expert<'a>>,
    /// The expert that every token goes to.
    pub shared: Expert<'a>,
}

/// How the experts of a token are chosen.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// The largest scores with this bias added, `[experts]`.
    Score(Vec<f32>),
    /// By token id: `[vocabulary, top_k]`.
    Hash(Vec<i32>),
}

/// One expert.
#[derive(Clone, Debug, PartialEq)]
pub struct Expert<'a> {
    /// Gate, `[intermediate, hidden]`.
    pub w1: Linear<'a>,
    /// Up, `[intermediate, hidden]`.
    pub w3: Linear<'a>,
    /// Down, `[hidden, intermediate]`.
    pub w2: Linear<'a>,
}

impl<'a> Weights<'a> {
    /// Every matrix, in the order in which a step meets them; those of an expert as gate, up, down.
    pub fn linears(&self) -> impl Iterator<Item = &Linear<'a>> {
        [&self.embed].into_iter().chain(self.layers.iter().flat_map(Layer::linears)).chain([&self.head])
    }
}

impl<'a> Layer<'a> {
    /// Every matrix of the layer.
    pub fn linears(&self) -> impl Iterator<Item = &Linear<'a>> {
        let Attention { wq_a, wq_b, wkv, wo_a, wo_b, compressor, indexer, .. } = &self.attention;
        let compressor = compressor.iter().flat_map(|compressor| [&compressor.wkv, &compressor.wgate]);
        let indexer = indexer.iter().flat_map(|indexer| {
            [&indexer.wq_b, &indexer.weights_proj, &indexer.compressor.wkv, &indexer.compressor.wgate]
        });
        let experts = self.feed_forward.experts.iter().chain([&self.feed_forward.shared]);
        let experts = experts.flat_map(|expert| [&expert.w1, &expert.w3, &expert.w2]);
        let attention = [wq_a, wkv, wq_b].into_iter().chain(compressor).chain(indexer).chain([wo_a, wo_b]);
        attention.chain([&self.feed_forward.gate]).chain(experts)
    }
}
