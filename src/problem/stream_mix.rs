//! A hyper-connection between two sublayers: residual streams mixed, and the sums that the next mix is made from.
//!
//! `h'[j] = post[j] * (y0 + y1) + sum over i of C[i][j] * h[i]` for each of four streams, then `n` products of the
//! streams, taken as one row of k = 4 * hidden, with f32 weights, and the sum of their squares.

use serde::{Deserialize, Serialize};

use super::{BF16_BYTES, Output};

/// What stands between two sublayers of a model with four residual streams.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamMix {
    /// What streams are stored as.
    pub element: Output,
    /// Rows of the f32 weight, mixing values of a token: 24, or 4 for a head's.
    pub n: u32,
    /// Length of one of the four streams.
    pub hidden: u32,
    /// Whether a sublayer is closed: without it the streams are only read.
    pub has_post: bool,
    /// Tokens of the bucket.
    pub m: u32,
}

impl StreamMix {
    /// The reduction: all streams of a token.
    pub fn k(&self) -> u32 {
        STREAMS * self.hidden
    }

    /// Bytes of the f32 weight.
    pub fn weight_bytes(&self) -> u64 {
        F32_BYTES * u64::from(self.n) * u64::from(self.k())
    }

    /// Bytes of one part of every sum.
    pub fn part_bytes(&self) -> u64 {
        F32_BYTES * u64::from(self.m) * u64::from(self.n + 1)
    }

    /// Bytes of all tokens' streams.
    pub fn stream_bytes(&self) -> u64 {
        u64::from(self.m) * u64::from(self.k()) * self.element.bytes()
    }

    /// Bytes that must move: weights and streams once, streams once back where a sublayer is closed, with its two
    /// results and the values that they are mixed by, and the sums. Behind attention there is one result: a few per
    /// cent less.
    pub fn bytes(&self) -> u64 {
        let closing = match self.has_post {
            true => {
                let token = 2 * u64::from(self.hidden) * BF16_BYTES + u64::from(MIX_VALUES) * F32_BYTES;
                self.stream_bytes() + u64::from(self.m) * token
            }
            false => 0,
        };
        self.weight_bytes() + self.stream_bytes() + closing + self.part_bytes()
    }

    /// Floating-point operations: the products, the squares, and per value of a mixed stream five products.
    pub fn flops(&self) -> u64 {
        let of_value = 2 * (u64::from(self.n) + 1) + if self.has_post { 2 * u64::from(STREAMS + 1) } else { 0 };
        u64::from(self.m) * u64::from(self.k()) * of_value
    }

    /// `hc f32 24x16384`, and `first` where no sublayer is closed.
    pub fn op(&self) -> String {
        let first = if self.has_post { "" } else { " first" };
        format!("hc {} {}x{}{first}", self.element.name(), self.n, self.k())
    }
}

/// Residual streams of a token.
pub(super) const STREAMS: u32 = 4;

/// What a token is mixed by: `post[4]` and `C[4][4]`.
const MIX_VALUES: u32 = STREAMS * (STREAMS + 1);

const F32_BYTES: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_operations_are_those_that_were_counted_by_hand() {
        let mix = StreamMix { element: Output::F32, n: 24, hidden: 4096, has_post: true, m: 1 };
        // Weights of 1.5 MiB; a token: 64 KiB read, 64 KiB written, two rows of BF16, 20 values, 25 sums.
        assert_eq!(mix.weight_bytes(), 24 * 16384 * 4);
        assert_eq!(mix.bytes() - mix.weight_bytes(), 65536 + 65536 + 2 * 8192 + 80 + 100);
        assert_eq!(mix.flops(), 16384 * (2 * 25 + 2 * 5));
        let first = StreamMix { element: Output::Bf16, has_post: false, m: 8, ..mix };
        assert_eq!(first.bytes() - first.weight_bytes(), 8 * (32768 + 100));
        assert_eq!(first.flops(), 8 * 16384 * 50);
    }
}
