//! Bits to values and back, on the CPU: the definition of truth for every number format.
//!
//! Device code is tested against this module, never the other way round. Formats: E2M1 codes in blocks that share an
//! E4M3 scale (NVFP4) or an E8M0 scale (MXFP4), E4M3 with 128x128 E8M0 blocks (FP8), and BF16.

pub mod a8;
pub mod activation;
pub mod bf16;
pub mod e2m1;
pub mod e4m3;
pub mod exponential;
pub mod fp8;
pub mod layout;
pub mod math;
pub mod mxfp4;
pub mod nvfp4;
pub mod pack;
pub mod rebase;
pub mod scales;
mod shape;
mod tensor_scale;
pub mod ue8m0;

pub use activation::{Counters, NonFinite, Nvfp4Activations, ScalePolicy, ScaleWarning, quantize_activations};
pub use fp8::{Fp8Activations, Fp8Matrix};
pub use layout::{CodePosition, PackedLayout, RowOrder};
pub use mxfp4::{ConvertError, Mxfp4Matrix};
pub use nvfp4::{Nvfp4Matrix, WeightScaleError, quantize_weights, validate_weight_scales};
pub use pack::{PackError, PackedWeights, SourceMatrix, pack, pack_for, rebase_of, unpack_operand};
pub use rebase::{ExponentRange, Rebase, SpreadError, rebase};
pub use shape::{QuantizeError, ShapeError};
pub use tensor_scale::{TensorScale, TensorScaleError};

use serde::{Deserialize, Serialize};

/// How a weight matrix `[n, k]` is stored in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightFormat {
    /// E2M1 codes, one E4M3 scale for every 16 along k, one f32 for the tensor.
    Nvfp4,
    /// E2M1 codes, one E8M0 scale for every 32 along k.
    Mxfp4,
    /// E4M3 codes, one E8M0 scale for every 128x128 block.
    Fp8,
    /// BF16, no scales.
    Bf16,
}

/// How activations reach the tensor cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activations {
    /// BF16; weights are decoded to BF16, exactly.
    #[default]
    A16,
    /// FP8 with one f32 scale for each token; weights are decoded to FP8.
    A8,
}

impl std::fmt::Display for Activations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::A16 => "a16",
            Self::A8 => "a8",
        })
    }
}

impl WeightFormat {
    /// Every format, in the order of the enum.
    pub const ALL: [WeightFormat; 4] = [Self::Nvfp4, Self::Mxfp4, Self::Fp8, Self::Bf16];

    /// The word used in keys, on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nvfp4 => "nvfp4",
            Self::Mxfp4 => "mxfp4",
            Self::Fp8 => "fp8",
            Self::Bf16 => "bf16",
        }
    }

    /// The format called `name`, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// What `k` must be a multiple of so that every block of scales is whole.
    pub fn k_multiple(self) -> u32 {
        match self {
            Self::Nvfp4 => 16,
            Self::Mxfp4 => 32,
            Self::Fp8 | Self::Bf16 => 8,
        }
    }

    /// Bytes of one checkpoint matrix `[n, k]`, codes and scales, without per-tensor scalars.
    pub fn bytes(self, n: u64, k: u64) -> u64 {
        self.code_bytes(n, k) + self.scale_bytes(n, k)
    }

    /// Bytes of the codes of one checkpoint matrix `[n, k]`.
    pub fn code_bytes(self, n: u64, k: u64) -> u64 {
        match self {
            Self::Nvfp4 | Self::Mxfp4 => n * k / 2,
            Self::Fp8 => n * k,
            Self::Bf16 => 2 * n * k,
        }
    }

    /// Bytes of the block scales of one checkpoint matrix `[n, k]`. Gate and up have an FP8 grid each.
    pub fn scale_bytes(self, n: u64, k: u64) -> u64 {
        match self {
            Self::Nvfp4 => n * k / 16,
            Self::Mxfp4 => n * k / 32,
            Self::Fp8 => n.div_ceil(128) * k.div_ceil(128),
            Self::Bf16 => 0,
        }
    }
}

impl std::fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
