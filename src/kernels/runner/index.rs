//! The indexer: a score for every visible entry, and the best of them.

use super::{Op, PAGE_ENTRIES, request};

/// Sizes of the indexer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexShape {
    /// Query heads: a multiple of 16.
    pub heads: u32,
    /// Numbers of a key: a multiple of 32.
    pub head_dim: u32,
    /// Tokens of an entry. Entry w is visible at position t if w < (t + 1) / ratio.
    pub ratio: u32,
    /// Entries that are picked.
    pub top_k: u32,
}

/// Scores of up to `m` tokens for up to `capacity` entries (spec 2.6): `(qi, wt, pool, table, positions, sequences,
/// scores, m_on_device, ld_wt, m, max_pages, capacity)`.
///
/// | parameter | shape | element |
/// |---|---|---|
/// | qi | [m, heads * head_dim], rotated | bf16 |
/// | wt | [m, heads], row stride ld_wt, as weights_proj gives it | f32 |
/// | pool | [pages, 64, head_dim] | bf16 |
/// | table | [slots, max_pages] | i32 |
/// | positions, sequences | `[m]` | i32 |
/// | scores | [m, capacity], written where an entry is visible | f32 |
/// | m_on_device | one, or null for m | i32 |
/// | ld_wt | by value | i64 |
/// | m, max_pages, capacity | by value | i32 |
///
/// Rows with at most `top_k` visible entries are left out: [`top_k`] takes all of these without looking.
pub fn index_score(shape: &IndexShape, m: u32, capacity: u32) -> Op {
    let tokens = if m >= 512 {
        16
    } else if m >= 64 {
        4
    } else {
        1
    };
    // A tile of keys and two tokens' queries.
    let smem_bytes = 2 * shape.head_dim * (INDEX_TILE + 2 * shape.heads);
    let values = [
        ("head_dim", shape.head_dim.into()),
        ("heads", shape.heads.into()),
        ("page_entries", PAGE_ENTRIES.into()),
        ("ratio", shape.ratio.into()),
        ("smem_bytes", smem_bytes.into()),
        ("tokens", tokens.into()),
        ("top_k", shape.top_k.into()),
    ];
    let grid = [m.div_ceil(tokens), capacity.div_ceil(INDEX_TILE), 1];
    Op { kernel: request("index_score", values), grid, threads: 128, smem_bytes }
}

/// The `top_k` best visible entries of up to `m` tokens, in ascending order of the entries, then -1: `(scores,
/// positions, picks, m_on_device, m, capacity)` with scores f32 [m, capacity], positions i32 `[m]` and picks i32
/// [m, top_k]; m and capacity are i32.
///
/// Of equal scores the lower entries win; NaN counts as the largest, so that it is not lost.
pub fn top_k(shape: &IndexShape, m: u32) -> Op {
    let threads = if m >= 264 { 256 } else { 1024 };
    let values = [("ratio", shape.ratio.into()), ("threads", threads.into()), ("top_k", shape.top_k.into())];
    Op { kernel: request("top_k", values), grid: [m, 1, 1], threads, smem_bytes: 0 }
}

/// Entries that a block of [`index_score`] scores.
pub const INDEX_TILE: u32 = 128;
