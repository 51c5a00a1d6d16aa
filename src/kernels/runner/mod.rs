//! Kernels that only the runner launches: no search, one rendering for each model, sizes in the text.
//!
//! Each function gives an [`Op`]; its doc lists the parameters in the order in which the kernel takes them. Every one
//! waits for the launch before it by itself and leaves rows beyond `*m_on_device` alone.

mod attend;
mod compress;
mod index;
mod store;

pub use attend::{AttendShape, Compressed, attend, attend_combine, attend_workspace_bytes};
pub use compress::{CompressShape, EntryRounding, compress};
pub use index::{INDEX_TILE, IndexShape, index_score, top_k};
pub use store::{StateShape, StoreShape, store_step};

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

/// Entries in a page of compressed keys.
pub const PAGE_ENTRIES: u32 = 64;

/// The request for `template` with `values` as its fields `op.*`.
fn request<const N: usize>(template: &'static str, values: [(&'static str, Value); N]) -> Request {
    Request { template, values: BTreeMap::from([("op", BTreeMap::from(values))]), wgmma_tokens: None }
}
