//! The runner's own kernels: everything of a forward pass that is no GEMM. Shape and bucket in, [`Op`] out.
//!
//! Model sizes are constants of a kernel; tokens are data: a grid is built for a bucket of `m` tokens, `m_on_device`
//! holds how many there are, and rows beyond them are not written, nor used. Every kernel waits for the launch
//! ahead of it by itself, needs no cleared memory and adds floats in a fixed order, so launches can be chained and
//! captured in a graph. The doc of each function lists the kernel's parameters in order; pointers are 64 bits, `i32`
//! unless another type is named, and arrays are row-major without gaps.

mod attend;
mod compress;
mod fake_quantise;
mod finite;
mod index;
mod norms;
mod routing;
mod sampling;
mod store;
mod streams;

pub use attend::{AttendShape, Compressed, attend, attend_combine, attend_workspace_bytes};
pub use compress::{CompressShape, EntryRounding, compress};
pub use fake_quantise::{ActivationScale, FakeQuantise, amax, fake_quantise, reset_amax};
pub use finite::{FINITE_FIELDS, find_non_finite};
pub use index::{INDEX_TILE, IndexShape, index_score, top_k};
pub use norms::{QkvNorm, Rotate, RotateKind, qkv_norm, rotate};
pub use routing::{Route, SlotRows, combine_slots, expand_rows, route};
pub use sampling::{advance, sample};
pub use store::{StateShape, StoreShape, store_step};
pub use streams::{
    Balance, Connection, MIX_VALUES, STREAMS, embed, gather_rows, hc_mix, hc_pre, hc_pre_of_parts, hc_splits,
};
pub(in crate::kernels) use streams::{MixTile, mix_fields, mix_kernel};

use std::collections::BTreeMap;

use crate::codegen::{Request, Value};

/// A kernel of the runner, ready to be compiled, and how it is launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// What it is rendered from.
    pub kernel: Request,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, bytes.
    pub smem_bytes: u32,
}

/// Type of the elements of a tensor that comes in two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Element {
    /// BF16.
    Bf16,
    /// f32.
    F32,
}

impl Element {
    /// Its bytes.
    pub fn bytes(self) -> u32 {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// Its name in a kernel.
    fn word(self) -> Value {
        match self {
            Self::Bf16 => "bf16".into(),
            Self::F32 => "float".into(),
        }
    }
}

impl Op {
    /// An operation without dynamic shared memory; `fields` are what its template calls `op`.
    fn new<const FIELDS: usize>(
        template: &'static str,
        fields: [(&'static str, Value); FIELDS],
        grid: [u32; 3],
        threads: u32,
    ) -> Self {
        let values = BTreeMap::from([("op", BTreeMap::from(fields))]);
        Self { kernel: Request { template, values, wgmma_tokens: None }, grid, threads, smem_bytes: 0 }
    }
}

/// `value` as a literal that the compiler reads back as these bits.
fn float_word(value: f32) -> Value {
    format!("{value:?}f").into()
}

/// Threads of a block that serves `items` of them: whole warps, at most `most`.
fn threads_for(items: u32, most: u32) -> u32 {
    items.next_multiple_of(32).min(most)
}

/// Entries in a page of compressed keys.
pub const PAGE_ENTRIES: u32 = 64;

/// The request for `template` with `values` as its fields `op.*`.
fn request<const N: usize>(template: &'static str, values: [(&'static str, Value); N]) -> Request {
    Request { template, values: BTreeMap::from([("op", BTreeMap::from(values))]), wgmma_tokens: None }
}
