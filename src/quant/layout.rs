//! Where each weight of a packed matrix stands: one layout for each format and width of activations, the same for every
//! kernel that reads it.
//!
//! Rows are padded to 64 and k to a slab, with zero codes and zero scales:
//!
//! ```text
//! matrix   [row block of 64][slab]                        a slab is slab_k of k: 64, for FP8 128
//! slab     codes, then scale bytes                        contiguous: one bulk copy
//! codes    [row tile of 16][chunk][lane 0..32][16 bytes]  a chunk is 64 k of 4 bits, 32 of 8, 16 of 16
//! scales   [row tile of 16][g 0..8][group][row g, row g + 8]
//! ```
//!
//! Lane `4 g + c` holds rows `g` and `g + 8` of its tile: the A fragment of `mma.sync` m16n8k16, and of `wgmma` with A
//! in registers, which for each 16 of k has the pairs a0 = (row g, k 2c), a1 = (row g + 8, k 2c), a2 = (row g,
//! k 2c + 8), a3 = (row g + 8, k 2c + 8), each of this k and the next. The 16 bytes are four little-endian words:
//!
//! - 4 bits: word `s` is the 16 of k that begin at `16 s`, its low half the even k and its high half the odd k of all
//!   four pairs. Within a half the sign and the magnitude of pairs 0 to 3 stand at bits 15 and 6, 12 and 3, 14 and 0,
//!   13 and 9: one mask, or a shift and a mask, or two of both, bring a pair to where BF16 has its sign and exponent.
//! - 8 bits: words `2 s` and `2 s + 1` are step `s`, k `2c` and `2c + 8`; again even k in the low half. Within a half
//!   row g has its sign at bit 15 and the rest from bit 4, where a BF16 has them; row g + 8 fills the gaps: sign at 11,
//!   the low four bits at 0, the three above them at 12.
//! - 16 bits: word `j` is pair `j`, even k in the low half.
//!
//! For FP8 tensor cores, whose operands are looked up or sorted a byte at a time, codes stay whole: nibbles of pairs 0
//! to 3 at bits 12, 8, 4 and 0 of a half, bytes of rows g and g + 8 at bits 8 and 0.

use super::{Activations, WeightFormat};

/// Rows that the layout pads to, one row block.
pub const BLOCK_ROWS: usize = 64;

/// Rows of a tile: the M of the instruction.
pub const TILE_ROWS: usize = 16;

/// The packed layout of a format for one width of activations. Part of a problem's key: its id changes when a byte
/// moves. Only the place of a code's bits within its half word differs between the two widths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackedLayout {
    format: WeightFormat,
    activations: Activations,
}

/// The place of a code within its slab: a little-endian word of 32 bits, and where in it the bits of the code stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodePosition {
    /// The word's first byte.
    pub byte: usize,
    runs: [BitRun; 3],
}

/// `count` bits of a code from bit `from` on, which stand in the word from bit `to` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BitRun {
    from: u32,
    count: u32,
    to: u32,
}

impl CodePosition {
    /// The word with this code in its place, and zeros elsewhere.
    pub fn word_of(self, code: u16) -> u32 {
        let place = |run: &BitRun| (u32::from(code) >> run.from & run.mask()) << run.to;
        self.runs.iter().map(place).fold(0, |word, bits| word | bits)
    }

    /// The code that `word` holds here.
    pub fn code_of(self, word: u32) -> u16 {
        let take = |run: &BitRun| (word >> run.to & run.mask()) << run.from;
        self.runs.iter().map(take).fold(0, |code, bits| code | bits) as u16
    }

    const fn new(byte: usize, half: usize, runs: [(u32, u32, u32); 3]) -> Self {
        let shift = 16 * half as u32;
        let [a, b, c] = runs;
        let [a, b, c] = [BitRun::new(a, shift), BitRun::new(b, shift), BitRun::new(c, shift)];
        Self { byte, runs: [a, b, c] }
    }
}

impl BitRun {
    const fn new((from, count, to): (u32, u32, u32), shift: u32) -> Self {
        Self { from, count, to: to + shift }
    }

    const fn mask(self) -> u32 {
        (1 << self.count) - 1
    }
}

impl PackedLayout {
    /// The layout of `format` for kernels that take such activations.
    pub const fn of(format: WeightFormat, activations: Activations) -> Self {
        Self { format, activations }
    }

    /// What is packed.
    pub const fn format(self) -> WeightFormat {
        self.format
    }

    /// What its kernels multiply by.
    pub const fn activations(self) -> Activations {
        self.activations
    }

    /// `nvfp4@2`, `nvfp4-a8@1`: format, width of activations other than a16, and version.
    pub const fn id(self) -> &'static str {
        match (self.format, self.activations) {
            (WeightFormat::Nvfp4, Activations::A16) => "nvfp4@2",
            (WeightFormat::Mxfp4, Activations::A16) => "mxfp4@2",
            (WeightFormat::Fp8, Activations::A16) => "fp8@2",
            (WeightFormat::Bf16, Activations::A16) => "bf16@1",
            (WeightFormat::Nvfp4, Activations::A8) => "nvfp4-a8@1",
            (WeightFormat::Mxfp4, Activations::A8) => "mxfp4-a8@1",
            (WeightFormat::Fp8, Activations::A8) => "fp8-a8@1",
            (WeightFormat::Bf16, Activations::A8) => "bf16-a8@1",
        }
    }

    /// Bits of a code.
    pub const fn code_bits(self) -> usize {
        match self.format {
            WeightFormat::Nvfp4 | WeightFormat::Mxfp4 => 4,
            WeightFormat::Fp8 => 8,
            WeightFormat::Bf16 => 16,
        }
    }

    /// Values along k that share a scale byte; `None` where there are no scales.
    pub const fn group_k(self) -> Option<usize> {
        match self.format {
            WeightFormat::Nvfp4 => Some(16),
            WeightFormat::Mxfp4 => Some(32),
            WeightFormat::Fp8 => Some(128),
            WeightFormat::Bf16 => None,
        }
    }

    /// k of a slab.
    pub const fn slab_k(self) -> usize {
        match self.format {
            WeightFormat::Fp8 => 128,
            WeightFormat::Nvfp4 | WeightFormat::Mxfp4 | WeightFormat::Bf16 => 64,
        }
    }

    /// k of a chunk: what a lane's 16 bytes hold, of two rows and four columns of lanes.
    pub const fn chunk_k(self) -> usize {
        256 / self.code_bits()
    }

    /// Scale bytes of a row within a slab.
    pub const fn slab_groups(self) -> usize {
        match self.group_k() {
            Some(group_k) => self.slab_k() / group_k,
            None => 0,
        }
    }

    /// Bytes of a slab's codes.
    pub const fn codes_bytes(self) -> usize {
        BLOCK_ROWS * self.slab_k() * self.code_bits() / 8
    }

    /// Bytes of a slab's scales.
    pub const fn scales_bytes(self) -> usize {
        BLOCK_ROWS * self.slab_groups()
    }

    /// Bytes of a slab, codes and scales.
    pub const fn slab_bytes(self) -> usize {
        self.codes_bytes() + self.scales_bytes()
    }

    /// Rows after padding.
    pub const fn padded_rows(self, n: usize) -> usize {
        n.next_multiple_of(BLOCK_ROWS)
    }

    /// k after padding.
    pub const fn padded_k(self, k: usize) -> usize {
        k.next_multiple_of(self.slab_k())
    }

    /// Slabs of a row block.
    pub const fn slabs(self, k: usize) -> usize {
        k.div_ceil(self.slab_k())
    }

    /// Bytes of a packed matrix `[n, k]`.
    pub const fn packed_bytes(self, n: usize, k: usize) -> usize {
        n.div_ceil(BLOCK_ROWS) * self.slabs(k) * self.slab_bytes()
    }

    /// First byte of the slab that holds `row` and `k` of a matrix of `slabs` slabs a row block.
    pub const fn slab_offset(self, row: usize, k: usize, slabs: usize) -> usize {
        (row / BLOCK_ROWS * slabs + k / self.slab_k()) * self.slab_bytes()
    }

    /// Where within its slab the code of `row` and `k` stands; both count from the slab's start or the matrix's.
    pub const fn code_position(self, row: usize, k: usize) -> CodePosition {
        let (row, k) = (row % BLOCK_ROWS, k % self.slab_k());
        let (tile, g, upper) = (row / TILE_ROWS, row % 8, row / 8 % 2);
        let (chunk, step) = (k / self.chunk_k(), k % self.chunk_k() / 16);
        let (upper_k, c, odd) = (k / 8 % 2, k / 2 % 4, k % 2);
        let lane = 4 * g + c;
        let pair = upper + 2 * upper_k;
        let chunks = self.slab_k() / self.chunk_k();
        let bytes = ((tile * chunks + chunk) * 32 + lane) * 16;
        match (self.code_bits(), self.activations) {
            (4, Activations::A16) => CodePosition::new(bytes + 4 * step, odd, E2M1_RUNS[pair]),
            (4, Activations::A8) => CodePosition::new(bytes + 4 * step, odd, E2M1_RUNS_A8[pair]),
            (8, Activations::A16) => CodePosition::new(bytes + 4 * (2 * step + upper_k), odd, E4M3_RUNS[upper]),
            (8, Activations::A8) => CodePosition::new(bytes + 4 * (2 * step + upper_k), odd, E4M3_RUNS_A8[upper]),
            _ => CodePosition::new(bytes + 4 * pair, odd, [(0, 16, 0), NO_RUN, NO_RUN]),
        }
    }

    /// Where within its slab the scale byte of `row` and `k` stands, codes counted; `None` where there are no scales.
    pub const fn scale_position(self, row: usize, k: usize) -> Option<usize> {
        let Some(group_k) = self.group_k() else { return None };
        let (row, group) = (row % BLOCK_ROWS, k % self.slab_k() / group_k);
        let (tile, g, upper) = (row / TILE_ROWS, row % 8, row / 8 % 2);
        Some(self.codes_bytes() + ((tile * 8 + g) * self.slab_groups() + group) * 2 + upper)
    }
}

/// Magnitude and sign of an E2M1 code in its half, for each pair: `(bit of the code, count, bit of the half)`.
const E2M1_RUNS: [[(u32, u32, u32); 3]; 4] = [
    [(0, 3, 6), (3, 1, 15), NO_RUN],
    [(0, 3, 3), (3, 1, 12), NO_RUN],
    [(0, 3, 0), (3, 1, 14), NO_RUN],
    [(0, 3, 9), (3, 1, 13), NO_RUN],
];

/// Bits of an E4M3 code in its half, for rows g and g + 8.
const E4M3_RUNS: [[(u32, u32, u32); 3]; 2] = [[(0, 7, 4), (7, 1, 15), NO_RUN], [(0, 4, 0), (4, 3, 12), (7, 1, 11)]];

/// The same for FP8 tensor cores: whole nibbles, which `prmt` takes as selectors.
const E2M1_RUNS_A8: [[(u32, u32, u32); 3]; 4] = [
    [(0, 4, 12), NO_RUN, NO_RUN],
    [(0, 4, 8), NO_RUN, NO_RUN],
    [(0, 4, 4), NO_RUN, NO_RUN],
    [(0, 4, 0), NO_RUN, NO_RUN],
];

/// Whole bytes, rows g and g + 8 in the high and the low one of a half.
const E4M3_RUNS_A8: [[(u32, u32, u32); 3]; 2] = [[(0, 8, 8), NO_RUN, NO_RUN], [(0, 8, 0), NO_RUN, NO_RUN]];

const NO_RUN: (u32, u32, u32) = (0, 0, 0);

impl std::fmt::Display for PackedLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.id())
    }
}

/// Which source row stands in which packed row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RowOrder {
    /// As they come.
    #[default]
    Plain,
    /// The source is gate `[i, k]` above up `[i, k]`; packed tile `t` has gate rows `8t..8t + 8`, then the same up
    /// rows. A thread that holds rows g and g + 8 of a tile thereby holds gate and up of one channel.
    GateUp,
}

impl RowOrder {
    /// The source row of packed row `row` in a matrix of `n` rows, gate and up counted together.
    pub const fn source_row(self, row: usize, n: usize) -> usize {
        match self {
            Self::Plain => row,
            Self::GateUp => row / 16 * 8 + row % 8 + row / 8 % 2 * (n / 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUTS: [PackedLayout; 4] = [
        PackedLayout::of(WeightFormat::Nvfp4, Activations::A16),
        PackedLayout::of(WeightFormat::Mxfp4, Activations::A16),
        PackedLayout::of(WeightFormat::Fp8, Activations::A16),
        PackedLayout::of(WeightFormat::Bf16, Activations::A16),
    ];

    /// Of both widths of activations.
    fn all() -> impl Iterator<Item = PackedLayout> {
        LAYOUTS.into_iter().flat_map(|layout| {
            [Activations::A16, Activations::A8].map(|activations| PackedLayout::of(layout.format(), activations))
        })
    }

    #[test]
    fn sizes_are_those_of_the_formats() {
        let sizes = LAYOUTS.map(|layout| (layout.id(), layout.slab_k(), layout.codes_bytes(), layout.scales_bytes()));
        assert_eq!(
            sizes,
            [("nvfp4@2", 64, 2048, 256), ("mxfp4@2", 64, 2048, 128), ("fp8@2", 128, 8192, 64), ("bf16@1", 64, 8192, 0)]
        );
        let nvfp4 = LAYOUTS[0];
        assert_eq!((nvfp4.padded_rows(65), nvfp4.padded_k(65), nvfp4.slabs(65)), (128, 128, 2));
        assert_eq!(nvfp4.packed_bytes(65, 65), 4 * 2304);
        let offsets = [(63, 63), (63, 64), (64, 63), (64, 64)].map(|(row, k)| nvfp4.slab_offset(row, k, 2));
        assert_eq!(offsets, [0, 2304, 2 * 2304, 3 * 2304]);
        assert_eq!(nvfp4.packed_bytes(0, 64), 0);
        assert_eq!(nvfp4.to_string(), "nvfp4@2");
        let of_a8 = LAYOUTS.map(|layout| PackedLayout::of(layout.format(), Activations::A8).id());
        assert_eq!(of_a8, ["nvfp4-a8@1", "mxfp4-a8@1", "fp8-a8@1", "bf16-a8@1"]);
    }

    /// Walks the slab as a kernel does: lane by lane, word by word, fragment register by fragment register.
    #[test]
    fn positions_are_those_of_the_mma_fragments() {
        for layout in all() {
            let bits = layout.code_bits();
            let chunks = layout.slab_k() / layout.chunk_k();
            for (tile, chunk, lane) in (0..4 * chunks * 32).map(|idx| (idx / 32 / chunks, idx / 32 % chunks, idx % 32))
            {
                let lane_byte = ((tile * chunks + chunk) * 32 + lane) * 16;
                let (g, c) = (lane / 4, lane % 4);
                for (step, register, odd) in (0..layout.chunk_k() / 2).map(|idx| (idx / 8, idx / 2 % 4, idx % 2)) {
                    // a0 to a3 as PTX draws them.
                    let row = tile * 16 + g + [0, 8, 0, 8][register];
                    let k = chunk * layout.chunk_k() + step * 16 + 2 * c + [0, 0, 8, 8][register] + odd;
                    let word = match bits {
                        4 => step,
                        8 => 2 * step + [0, 0, 1, 1][register],
                        _ => register,
                    };
                    let position = layout.code_position(row, k);
                    assert_eq!(position.byte, lane_byte + 4 * word, "{layout} row {row} k {k}");
                    let half = if odd == 0 { 0xFFFF } else { 0xFFFF_0000 };
                    assert_eq!(position.word_of(u16::MAX) & !half, 0, "{layout} row {row} k {k}");
                }
            }
        }
    }

    #[test]
    fn codes_and_scales_fill_a_slab_once() {
        for layout in all() {
            let mut bits_used = vec![0u8; layout.slab_bytes()];
            for (row, k) in (0..64 * layout.slab_k()).map(|idx| (idx / layout.slab_k(), idx % layout.slab_k())) {
                let position = layout.code_position(row, k);
                let all = (1u32 << layout.code_bits()) - 1;
                let mask = position.word_of(all as u16);
                assert_eq!(mask.count_ones(), layout.code_bits() as u32, "{layout} row {row} k {k}");
                let word = &mut bits_used[position.byte..position.byte + 4];
                let used = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                assert_eq!(used & mask, 0, "{layout} row {row} k {k}");
                word.copy_from_slice(&(used | mask).to_le_bytes());
                for code in [0x5u16, 0xA, 0x5A, 0xA5, 0x1234].map(|code| code & all as u16) {
                    assert_eq!(position.code_of(position.word_of(code) | !mask), code, "{layout} row {row} k {k}");
                }
                let scale = layout.scale_position(row, k);
                assert_eq!(scale.is_some(), layout.format() != WeightFormat::Bf16);
                if let Some(byte) = scale {
                    // All of a group share the byte: it is claimed by the first of them.
                    let first = k.is_multiple_of(layout.group_k().unwrap());
                    assert_eq!(bits_used[byte], if first { 0 } else { 0xFF });
                    bits_used[byte] = 0xFF;
                }
            }
            assert!(bits_used.iter().all(|&bits| bits == 0xFF), "{layout}");
        }
    }

    #[test]
    fn scale_bytes_follow_each_other_by_tile_lane_group_and_row() {
        for layout in &LAYOUTS[..3] {
            let mut expected = layout.codes_bytes();
            for (tile, g) in (0..32).map(|idx| (idx / 8, idx % 8)) {
                for group in 0..layout.slab_groups() {
                    for upper in [0, 8] {
                        let k = group * layout.group_k().unwrap();
                        assert_eq!(layout.scale_position(16 * tile + g + upper, k), Some(expected));
                        expected += 1;
                    }
                }
            }
            assert_eq!(expected, layout.slab_bytes());
        }
    }

    #[test]
    fn gate_and_up_of_a_channel_share_a_lane() {
        let n = 48;
        let rows: Vec<usize> = (0..n).map(|row| RowOrder::GateUp.source_row(row, n)).collect();
        let expected: Vec<usize> =
            (0..3).flat_map(|tile| (8 * tile..8 * tile + 8).chain(24 + 8 * tile..32 + 8 * tile)).collect();
        assert_eq!(rows, expected);
        assert_eq!(RowOrder::Plain.source_row(17, n), 17);
    }
}
