//! What can go wrong on a GPU, with the op that it went wrong in.

use super::super::reference::ReferenceError;
use crate::device::DeviceError;
use crate::dispatch::{LaunchError, PrepareError};
use crate::engine::{EngineError, NoPages, OpId};
use crate::models::InventoryError;
use crate::quant::{TensorScaleError, WeightFormat};

/// Why the model does not answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A shape that cannot be served.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// Too many tokens for the caches.
    #[error(transparent)]
    Pages(#[from] NoPages),
    /// The reference, which lends its checks.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// Parts of a fused projection that would share a block of packed rows.
    #[error("expected rows of `{name}` in multiples of 64, because another part follows, found {rows}")]
    PartRows {
        /// The part.
        name: String,
        /// Its rows.
        rows: usize,
    },
    /// Parts of a fused projection, or experts of a layer, in different formats.
    #[error("expected `{name}` in {expected} like `{first}`, found {found}")]
    MixedFormats {
        /// The first part.
        first: String,
        /// Its format.
        expected: WeightFormat,
        /// The other part.
        name: String,
        /// Its format.
        found: WeightFormat,
    },
    /// A problem that was not prepared: a bug.
    #[error("`{problem}` was launched and not prepared")]
    Unprepared {
        /// The problem.
        problem: String,
    },
    /// A scale of the file that cannot be used.
    #[error("{op}.input_scale (part {part}): {source}")]
    InputScale {
        /// The op.
        op: OpId,
        /// Which of its parts or experts.
        part: usize,
        /// What is wrong with it.
        source: TensorScaleError,
    },
    /// A scale of the file that is used and not there.
    #[error("{op} (part {part}): expected an input_scale in the file, found none")]
    NoInputScale {
        /// The op.
        op: OpId,
        /// Which of its parts or experts.
        part: usize,
    },
    /// Limits that nothing can be planned for.
    #[error("expected {expected}, found {found}")]
    Limits {
        /// What can be.
        expected: &'static str,
        /// What was asked for.
        found: u32,
    },
    /// A sequence twice in one step.
    #[error("expected every sequence once in a step, found sequence {slot} twice")]
    Twice {
        /// The sequence.
        slot: u32,
    },
    /// Nothing to go on from.
    #[error("expected a sampled token that sequence {slot} goes on from, found none")]
    NotSampled {
        /// The sequence.
        slot: u32,
    },
    /// Scales of a run that has not begun.
    #[error("expected tokens before warming up ends, found none")]
    NotWarm,
    /// A slot beyond the limit.
    #[error("expected a sequence below {limit}, found {slot}")]
    Slot {
        /// Sequences that there is room for.
        limit: u32,
        /// What was asked for.
        slot: u32,
    },
    /// No tokens.
    #[error("expected at least one token for sequence {slot}, found none")]
    NoTokens {
        /// The sequence.
        slot: u32,
    },
    /// A token that is not of the vocabulary.
    #[error("expected token ids below {vocabulary}, found {token}")]
    Token {
        /// Tokens of the vocabulary.
        vocabulary: u32,
        /// What was fed.
        token: u32,
    },
    /// A sequence that grew too long.
    #[error("expected at most {limit} tokens in sequence {slot}, found {tokens}")]
    Context {
        /// The sequence.
        slot: u32,
        /// Tokens that there is room for.
        limit: u32,
        /// Tokens that it would have.
        tokens: u32,
    },
    /// Logits that no token can be chosen from.
    #[error("sequence {slot}: the logits behind position {position} are not all finite")]
    Sampling {
        /// The sequence.
        slot: u32,
        /// Position of the token that was fed.
        position: u32,
    },
    /// A model that does not fit.
    #[error(
        "the model needs {:.2} GiB of device memory, found {:.2} GiB free: {layers} of {all} layers would fit",
        *needed as f64 / f64::from(1 << 30),
        *free as f64 / f64::from(1 << 30)
    )]
    Memory {
        /// Bytes of weights, caches and workspaces.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Layers that would fit.
        layers: u32,
        /// Layers of the model.
        all: u32,
    },
}

impl From<DeviceError> for ForwardError {
    fn from(error: DeviceError) -> Self {
        Self::Engine(error.into())
    }
}

impl From<LaunchError> for ForwardError {
    fn from(error: LaunchError) -> Self {
        Self::Engine(error.into())
    }
}

impl From<PrepareError> for ForwardError {
    fn from(error: PrepareError) -> Self {
        Self::Engine(error.into())
    }
}
