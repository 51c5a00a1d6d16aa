//! Attention over a sliding window and compressed entries, with sinks: the key is also the value.

use super::store::ring_values;
use super::streams::balance_values;
use super::{Connection, Op, PAGE_ENTRIES, StoreShape, float_word, request};
use crate::arch::ArchSpec;

/// Sizes of one layer's attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttendShape {
    /// Query heads; they share one key.
    pub heads: u32,
    /// Numbers of a key: a multiple of 64.
    pub head_dim: u32,
    /// The last of them that are rotated, a multiple of 8.
    pub rope_dim: u32,
    /// Added to the mean square of a query.
    pub norm_epsilon: f32,
    /// Positions of the sliding window, the token's own among them.
    pub window: u32,
    /// What is attended beyond the window.
    pub compressed: Compressed,
}

/// Which compressed entries a token attends. Entry w is visible at position t if w < (t + 1) / ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compressed {
    /// None: the window is all.
    None,
    /// Those of its list, which holds the first min(visible, `top_k`) numbers of the row.
    Listed {
        /// Tokens of an entry.
        ratio: u32,
        /// Length of a list.
        top_k: u32,
    },
    /// All visible ones.
    All {
        /// Tokens of an entry.
        ratio: u32,
    },
}

impl AttendShape {
    /// Keys that are fetched together, of what fits in the shared memory of `arch`. Splits end on such tiles.
    fn key_tile(&self, arch: &ArchSpec) -> u32 {
        if self.smem_bytes(16, 64) <= arch.smem_per_block { 64 } else { 32 }
    }

    /// Heads of a block: as many as fit, but enough blocks to fill a chip. Their number changes no bit of the result.
    fn head_tile(&self, arch: &ArchSpec, rows: u32) -> u32 {
        let key_tile = self.key_tile(arch);
        let suits = |tile: &u32| {
            self.smem_bytes(*tile, key_tile) <= arch.smem_per_block
                && *tile < self.heads + 16
                && rows * self.heads.div_ceil(*tile) >= FEW_BLOCKS
        };
        [64, 32].into_iter().find(suits).unwrap_or(16)
    }

    /// Queries, two tiles of keys, probabilities, and for each head 16 sums and 3 numbers.
    fn smem_bytes(&self, head_tile: u32, key_tile: u32) -> u32 {
        2 * self.head_dim * (head_tile + 2 * key_tile) + 2 * head_tile * key_tile + 4 * 19 * head_tile
    }

    /// Kind, ratio and list length as the templates take them.
    fn compressed_numbers(&self) -> (&'static str, u32, u32) {
        match self.compressed {
            Compressed::None => ("Compressed::kNone", 1, 0),
            Compressed::Listed { ratio, top_k } => ("Compressed::kListed", ratio, top_k),
            Compressed::All { ratio } => ("Compressed::kAll", ratio, 0),
        }
    }
}

/// Attention of up to `m` tokens, each over its own keys, rotated back (spec 2.7 and 2.8): `(q, kv_step, kv_ring, pool,
/// table, picks, sinks, rope, positions, sequences, step_start, first_row, o, workspace, m_on_device, m, max_pages,
/// mix)`.
///
/// | parameter | shape | element |
/// |---|---|---|
/// | q | [m, heads * head_dim], before norm and rotation | bf16 |
/// | kv_step | [m, head_dim] | bf16 |
/// | kv_ring | [slots, window, head_dim] | bf16 |
/// | pool, table | [pages, 64, head_dim], [slots, max_pages]; null without entries | bf16, i32 |
/// | picks | [m, top_k]; null unless listed | i32 |
/// | sinks | `[heads]` | f32 |
/// | rope | [positions, rope_dim / 2] (cos, sin) | f32 pairs |
/// | positions, sequences | `[m]` | i32 |
/// | step_start, first_row | `[slots]` | i32 |
/// | o | [m, heads * head_dim], written if `splits` is 1 | bf16 |
/// | workspace | [`attend_workspace_bytes`], written if `splits` > 1, else null | f32 |
/// | m_on_device | one, or null for m | i32 |
/// | m, max_pages | by value | i32 |
/// | mix | [m, 20], or null | f32 |
///
/// With `splits` > 1 [`attend_combine`] follows. One split of keys of 512 numbers runs on warpgroup MMA where the chip
/// has it (`templates/attend_wgmma`), all else on `mma.sync` (`templates/attend`). The bits of a row depend on its
/// position and on `splits`, on nothing else in the batch.
///
/// Several splits also balance the mixing matrices in `mix`, if `connection` says how.
pub fn attend(shape: &AttendShape, arch: &ArchSpec, m: u32, splits: u32, connection: Option<&Connection>) -> Op {
    if splits == 1 && shape.head_dim == 512 && arch.capabilities.wgmma {
        return attend_wgmma(shape, m);
    }
    let (key_tile, head_tile) = (shape.key_tile(arch), shape.head_tile(arch, m * splits));
    let (compressed, ratio, top_k) = shape.compressed_numbers();
    let smem_bytes = shape.smem_bytes(head_tile, key_tile);
    let values = [
        ("compressed", compressed.into()),
        ("head_dim", shape.head_dim.into()),
        ("head_tile", head_tile.into()),
        ("heads", shape.heads.into()),
        ("is_partial", (splits > 1).into()),
        ("key_tile", key_tile.into()),
        ("norm_epsilon", float_word(shape.norm_epsilon)),
        ("page_entries", PAGE_ENTRIES.into()),
        ("ratio", ratio.into()),
        ("rope_dim", shape.rope_dim.into()),
        ("smem_bytes", smem_bytes.into()),
        ("top_k", top_k.into()),
        ("window", shape.window.into()),
    ];
    let mut kernel = request("attend", values);
    kernel.values.entry("op").or_default().extend(balance_values(connection));
    let grid = [m, shape.heads.div_ceil(head_tile), splits + u32::from(connection.is_some())];
    Op { kernel, grid, threads: 256, smem_bytes }
}

/// The same for one split on warpgroup MMA, whatever `m`: the choice of a kernel must not follow the batch. A block
/// takes every so many tokens; how many blocks there are changes no bit.
fn attend_wgmma(shape: &AttendShape, m: u32) -> Op {
    let (head_tile, key_tile) = (64, 64);
    let (compressed, ratio, top_k) = shape.compressed_numbers();
    // Queries and two tiles of keys; P and factors of two tiles, denominators, for each of 128 threads; six barriers.
    let smem_bytes = 2 * shape.head_dim * (head_tile + 2 * key_tile) + 128 * (2 * (64 + 8) + 8) + 6 * 8;
    let values = [
        ("compressed", compressed.into()),
        ("head_dim", shape.head_dim.into()),
        ("head_tile", head_tile.into()),
        ("heads", shape.heads.into()),
        ("key_tile", key_tile.into()),
        ("norm_epsilon", float_word(shape.norm_epsilon)),
        ("page_entries", PAGE_ENTRIES.into()),
        ("ratio", ratio.into()),
        ("rope_dim", shape.rope_dim.into()),
        ("smem_bytes", smem_bytes.into()),
        ("top_k", top_k.into()),
        ("window", shape.window.into()),
    ];
    let head_tiles = shape.heads.div_ceil(head_tile);
    let grid = [m.min((WGMMA_BLOCKS / head_tiles).max(1)), head_tiles, 1];
    Op { kernel: request("attend_wgmma", values), grid, threads: 384, smem_bytes }
}

/// Merges the splits of [`attend`] in ascending order: `(workspace, sinks, rope, positions, o, m_on_device, m, splits,
/// kv_step, kv_ring, cg, ape, state, index_cg, index_ape, index_state, sequences, ld_cg, ld_index_cg)`, the arrays as
/// there and in [`super::store_step`], whose work it does beside its own if `store` says what; m and splits are i32.
pub fn attend_combine(shape: &AttendShape, arch: &ArchSpec, m: u32, store: Option<&StoreShape>) -> Op {
    let (compressed, ratio, top_k) = shape.compressed_numbers();
    let nothing = StoreShape { head_dim: shape.head_dim, window: shape.window, state: None, index_state: None };
    let values = [
        ("compressed", compressed.into()),
        ("head_dim", shape.head_dim.into()),
        ("heads", shape.heads.into()),
        ("key_tile", shape.key_tile(arch).into()),
        ("ratio", ratio.into()),
        ("rope_dim", shape.rope_dim.into()),
        ("stores", store.is_some().into()),
        ("top_k", top_k.into()),
        ("window", shape.window.into()),
    ];
    let mut kernel = request("attend_combine", values);
    kernel.values.entry("op").or_default().extend(ring_values(store.unwrap_or(&nothing)));
    let threads = (shape.head_dim / 4).next_multiple_of(32);
    let rows = shape.heads + u32::from(store.is_some());
    Op { kernel, grid: [m, rows, 1], threads, smem_bytes: 0 }
}

/// Bytes of the workspace of [`attend`]: for each split, token and head an f32 sum of values, a maximum and a sum.
pub fn attend_workspace_bytes(shape: &AttendShape, m: u32, splits: u32) -> u64 {
    if splits > 1 { 4 * u64::from(m) * u64::from(splits * shape.heads) * u64::from(shape.head_dim + 2) } else { 0 }
}

/// Four rounds of the 132 SMs of an H100 or H200, which hold a block each. In a block the next token's loads run beside
/// the work on this one, which one round would do best; four are as even on a chip that has fewer SMs.
const WGMMA_BLOCKS: u32 = 528;

/// Fewer blocks than this leave a large chip with nothing to do.
const FEW_BLOCKS: u32 = 120;
