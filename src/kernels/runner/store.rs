//! What later steps need of this one: the last keys and compressor inputs of each sequence, to their rings.

use super::{CompressShape, Op, request};
use crate::codegen::Value;

/// Sizes of what one layer keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreShape {
    /// Numbers of a key.
    pub head_dim: u32,
    /// Positions of the window ring.
    pub window: u32,
    /// The state of attention's compressor, where the layer has one.
    pub state: Option<StateShape>,
    /// The state of the indexer's compressor, where the layer has one.
    pub index_state: Option<StateShape>,
}

/// Sizes of one compressor's state ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateShape {
    /// Columns of c, and of g: a multiple of 4.
    pub width: u32,
    /// Positions that the ring holds.
    pub rows: u32,
    /// Tokens of an entry: rows of ape.
    pub ratio: u32,
}

impl From<&CompressShape> for StateShape {
    fn from(shape: &CompressShape) -> Self {
        Self { width: shape.width(), rows: shape.state_rows(), ratio: shape.ratio }
    }
}

/// Copies the last rows of each sequence among up to `m` tokens to its rings, after everything that reads these:
/// `(kv_step, kv_ring, cg, ape, state, index_cg, index_ape, index_state, positions, sequences, m_on_device, ld_cg,
/// ld_index_cg, m)`. Arrays are those of [`super::attend()`] and [`super::compress()`]; the ones of a compressor that
/// the layer lacks are null, their strides (i64, as ld_cg) anything; m is i32.
pub fn store_step(shape: &StoreShape, m: u32) -> Op {
    let mut kernel = request("store_step", [("head_dim", shape.head_dim.into()), ("window", shape.window.into())]);
    kernel.values.entry("op").or_default().extend(ring_values(shape));
    Op { kernel, grid: [m, 1, 1], threads: 256, smem_bytes: 0 }
}

/// Sizes of the state rings as the templates take them.
pub(super) fn ring_values(shape: &StoreShape) -> [(&'static str, Value); 6] {
    const ABSENT: StateShape = StateShape { width: 0, rows: 1, ratio: 1 };
    let (state, index) = (shape.state.unwrap_or(ABSENT), shape.index_state.unwrap_or(ABSENT));
    [
        ("index_ratio", index.ratio.into()),
        ("index_rows", index.rows.into()),
        ("index_width", index.width.into()),
        ("state_ratio", state.ratio.into()),
        ("state_rows", state.rows.into()),
        ("state_width", state.width.into()),
    ]
}
