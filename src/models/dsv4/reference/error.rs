//! What can go wrong in the reference.

use crate::models::dsv4::LayerKind;
use crate::quant::{ShapeError, TensorScaleError};

use super::Op;

/// Why the reference did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// A weight that does not fit the config.
    #[error("{name}: expected {expected:?} by the config, found {found:?}")]
    Weight {
        /// Native name.
        name: String,
        /// Shape that follows from the config.
        expected: Vec<usize>,
        /// Shape that it has.
        found: Vec<usize>,
    },
    /// A checkpoint's scale that is used and cannot be.
    #[error("{linear}.input_scale: {source}")]
    InputScale {
        /// Native name without `.weight`.
        linear: String,
        /// What is wrong with it.
        source: TensorScaleError,
    },
    /// A checkpoint's scale that is used and not there.
    #[error("{linear}.input_scale: expected one for the checkpoint's activation scales, found none")]
    NoInputScale {
        /// Native name without `.weight`.
        linear: String,
    },
    /// A layer without what its kind needs.
    #[error("{name}: expected one in a layer of kind {kind:?}, found none")]
    Part {
        /// Native name.
        name: String,
        /// What the layer's attention looks at.
        kind: LayerKind,
    },
    /// A scale of warming up that cannot be used.
    #[error("{op}: the activations seen while warming up give no scale: {source}")]
    Warmup {
        /// The op.
        op: Op,
        /// What is wrong with it.
        source: TensorScaleError,
    },
    /// An op that warming up has not met.
    #[error("{op}: expected activations while warming up, found none")]
    NotWarm {
        /// The op.
        op: Op,
    },
    /// Rows that have no whole blocks of 16.
    #[error("{linear}: {source}")]
    Shape {
        /// Native name without `.weight`.
        linear: String,
        /// What is wrong.
        source: ShapeError,
    },
    /// A length of which there is no Hadamard matrix here.
    #[error("expected an index_head_dim that is a power of two for the Hadamard transform, found {found}")]
    Hadamard {
        /// What the config has.
        found: usize,
    },
    /// No such token.
    #[error("expected token ids below {vocabulary}, found {token} at position {position}")]
    Token {
        /// What was found.
        token: u32,
        /// Where.
        position: usize,
        /// Tokens that there are.
        vocabulary: u32,
    },
    /// A sequence that is too long.
    #[error("expected at most {limit} tokens in a sequence, found {tokens}")]
    Context {
        /// Tokens that it would have.
        tokens: usize,
        /// Tokens that it may have.
        limit: usize,
    },
    /// A slot that there is not.
    #[error("expected a slot below {sequences}, found {slot}")]
    Slot {
        /// What was asked for.
        slot: u32,
        /// Slots that there are.
        sequences: u32,
    },
    /// A slot that cannot be continued.
    #[error("expected a sequence with a sampled token in slot {slot}, found none")]
    EmptySlot {
        /// The slot.
        slot: u32,
    },
    /// Nothing to continue.
    #[error("expected at least one token for slot {slot}, found none")]
    NoTokens {
        /// The slot.
        slot: u32,
    },
    /// A choice that cannot be made among values that are no numbers.
    #[error("{op}: expected finite values to choose by, found {value} for token {position}, column {column}")]
    NotFinite {
        /// The op.
        op: Op,
        /// Position of the token in its sequence.
        position: usize,
        /// Column of the op's output.
        column: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// An expert or entry that there is not, imposed or by a table of the checkpoint.
    #[error("{op}: expected choices below {limit}, found {found} for token {position}")]
    Imposed {
        /// The op.
        op: Op,
        /// Position of the token in its sequence.
        position: usize,
        /// What was chosen.
        found: u32,
        /// How many there are to choose among.
        limit: usize,
    },
    /// An observer stopped the pass.
    #[error(transparent)]
    Observer(Box<dyn std::error::Error + Send + Sync>),
}
