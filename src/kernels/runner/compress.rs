//! Tokens to compressed entries: attention's, and the keys of the indexer.

use super::{Op, PAGE_ENTRIES, request};

/// Sizes of one compressor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressShape {
    /// Numbers of an entry: a power of two up to 512.
    pub head_dim: u32,
    /// The last of them that are rotated.
    pub rope_dim: u32,
    /// Tokens of an entry: 4 or 128.
    pub ratio: u32,
    /// 2: entries overlap, one half of the columns for each of an entry's two windows. 1: they do not.
    pub series: u32,
    /// What becomes of an entry before it is stored.
    pub rounding: EntryRounding,
}

/// What becomes of an entry before its one rounding to BF16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryRounding {
    /// Nothing.
    Bf16,
    /// The columns that are not rotated to E4M3 and back, in groups of 64 with power-of-two scales.
    FakeFp8,
    /// An orthonormal Hadamard transform, then E2M1 and back in groups of 32 with power-of-two scales.
    HadamardMxfp4,
}

impl CompressShape {
    /// Columns of c, and of g: `head_dim` for each series.
    pub fn width(&self) -> u32 {
        self.series * self.head_dim
    }

    /// Positions that the state ring holds.
    pub fn state_rows(&self) -> u32 {
        self.series * self.ratio
    }
}

/// Entries that close with one of up to `m` tokens, to their pages (spec 2.5): `(cg, ape, norm, rope, state, pool,
/// table, positions, sequences, step_start, first_row, m_on_device, ld_cg, m, max_pages, norm_eps)`.
///
/// | parameter | shape | element |
/// |---|---|---|
/// | cg | [m, 2 * width], row stride ld_cg: c (wkv), then g (wgate) | f32 |
/// | ape | [ratio, width] | f32 |
/// | norm | `[head_dim]` | f32 |
/// | rope | [positions, rope_dim / 2] (cos, sin) | f32 pairs |
/// | state | [slots, state_rows, 2 * width]: c, then g + ape, of position p in row p % state_rows | f32 |
/// | pool | [pages, 64, head_dim], written | bf16 |
/// | table | [slots, max_pages] | i32 |
/// | positions, sequences | `[m]` | i32 |
/// | step_start, first_row | `[slots]` | i32 |
/// | m_on_device | one, or null for m | i32 |
/// | ld_cg | by value | i64 |
/// | m, max_pages | by value | i32 |
/// | norm_eps | by value | f32 |
pub fn compress(shape: &CompressShape, m: u32) -> Op {
    let parts = (MOST_THREADS / shape.head_dim).min(shape.state_rows() / 8).max(1);
    let rounding = match shape.rounding {
        EntryRounding::Bf16 => "Rounding::kBf16",
        EntryRounding::FakeFp8 => "Rounding::kFakeFp8",
        EntryRounding::HadamardMxfp4 => "Rounding::kHadamardMxfp4",
    };
    let values = [
        ("head_dim", shape.head_dim.into()),
        ("page_entries", PAGE_ENTRIES.into()),
        ("parts", parts.into()),
        ("ratio", shape.ratio.into()),
        ("rope_dim", shape.rope_dim.into()),
        ("rounding", rounding.into()),
        ("series", shape.series.into()),
    ];
    Op { kernel: request("compress", values), grid: [m, 1, 1], threads: parts * shape.head_dim, smem_bytes: 0 }
}

/// Most threads of a block.
const MOST_THREADS: u32 = 1024;
