//! What is asked: a GEMM, a block of experts, a conversion, a mix of residual streams. Not how, and not where.
//!
//! `D[m, n] = alpha[segment(n)] * sum_k A[m, k] * W[n, k]`: `m` tokens, `n` rows of the weight, `k` the reduction, and
//! these letters mean this everywhere. A [`Problem`] knows its key, bytes, FLOPs and floor; a [`Tile`] is an answer.

mod bucket;
mod dense;
mod moe;
mod parse;
mod stream_mix;
mod tile;

pub use bucket::{BUCKETS, bucket_of};
pub use dense::{Convert, Dense, Epilogue, Output};
pub use moe::{MoeBlock, Routing};
pub use parse::ParseProblemError;
pub use stream_mix::StreamMix;
pub use tile::{ParseTileError, Tile};

use serde::{Deserialize, Serialize};

use crate::arch::GpuSpec;
pub use crate::quant::Activations;
use crate::quant::PackedLayout;

/// One thing to be done on a GPU, for one bucket of tokens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// One weight matrix, or one a group of heads.
    Dense(Dense),
    /// Gate-up, SwiGLU, down and combine of the routed experts of a layer.
    MoeBlock(MoeBlock),
    /// Conversion of activations.
    Convert(Convert),
    /// Hyper-connection: residual streams mixed, and the sums that the next mix is made from. Behind the others, for
    /// snapshots know kinds by their place.
    StreamMix(StreamMix),
}

impl Problem {
    /// Tokens of the bucket.
    pub fn m(&self) -> u32 {
        match self {
            Self::Dense(dense) => dense.m,
            Self::MoeBlock(block) => block.m,
            Self::Convert(convert) => convert.m,
            Self::StreamMix(mix) => mix.m,
        }
    }

    /// The same problem for another number of tokens.
    pub fn with_m(&self, m: u32) -> Self {
        let mut problem = self.clone();
        match &mut problem {
            Self::Dense(dense) => dense.m = m,
            Self::MoeBlock(block) => block.m = m,
            Self::Convert(convert) => convert.m = m,
            Self::StreamMix(mix) => mix.m = m,
        }
        problem
    }

    /// Bytes that must move through device memory: each input read once, each output written once.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Dense(dense) => dense.weight_bytes() + dense.activation_bytes(),
            Self::MoeBlock(block) => block.touched_weight_bytes() + block.activation_bytes(),
            Self::Convert(convert) => convert.bytes(),
            Self::StreamMix(mix) => mix.bytes(),
        }
    }

    /// Floating-point operations, a multiply and an add counted as two.
    pub fn flops(&self) -> u64 {
        match self {
            Self::Dense(dense) => dense.flops(),
            Self::MoeBlock(block) => block.flops(),
            Self::Convert(_) => 0,
            Self::StreamMix(mix) => mix.flops(),
        }
    }

    /// Time at the rates that `gpu` reaches, in microseconds: bytes over the bandwidth of a large read, or FLOPs over
    /// the measured tensor rate, whichever is longer. A stream mix multiplies in f32: for it the tensor rate is a bound
    /// that its bytes are always above.
    pub fn floor_us(&self, gpu: &GpuSpec) -> f64 {
        let memory_us = self.bytes() as f64 / (gpu.read_gbs * 1e3);
        let tflops = match self {
            Self::Dense(Dense { activations: Activations::A8, .. })
            | Self::MoeBlock(MoeBlock { activations: Activations::A8, .. }) => {
                gpu.fp8_tflops.unwrap_or(gpu.bf16_tflops)
            }
            _ => gpu.bf16_tflops,
        };
        let math_us = self.flops() as f64 / (tflops * 1e6);
        memory_us.max(math_us)
    }

    /// Id of the packed layout that its weights have, such as `nvfp4@2`; a conversion has none, and a stream mix reads
    /// its f32 as a checkpoint has them.
    pub fn layout(&self) -> &'static str {
        match self {
            Self::Dense(dense) => PackedLayout::of(dense.weights, dense.activations).id(),
            Self::MoeBlock(block) => PackedLayout::of(block.weights, block.activations).id(),
            Self::Convert(_) | Self::StreamMix(_) => "none",
        }
    }

    /// The op without its bucket: problems that differ only in `m` share it.
    pub fn op(&self) -> String {
        match self {
            Self::Dense(dense) => dense.op(),
            Self::MoeBlock(block) => block.op(),
            Self::Convert(convert) => convert.op(),
            Self::StreamMix(mix) => mix.op(),
        }
    }
}

/// `nvfp4 4096x8192 m64`: what the command line accepts, and the problem's part of every key.
impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} m{}", self.op(), self.m())
    }
}

impl std::str::FromStr for Problem {
    type Err = ParseProblemError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse::problem(text)
    }
}

/// Bytes of a BF16 value.
pub(crate) const BF16_BYTES: u64 = 2;
