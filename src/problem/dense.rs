//! One weight matrix times the tokens of a step, and the conversions of activations that go with it.

use serde::{Deserialize, Serialize};

use super::{Activations, BF16_BYTES};
use crate::quant::WeightFormat;

/// Type of the result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// BF16, rounded once from the scaled f32 sum.
    #[default]
    Bf16,
    /// f32: router, compressors, head.
    F32,
}

impl Output {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// The word used in keys and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }
}

/// What happens to the sum before it is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Epilogue {
    /// Nothing but `alpha`.
    #[default]
    Plain,
    /// `silu(min(gate, limit)) * clamp(up, -limit, limit)`: `n` counts gate and up rows, the result has `n / 2`
    /// columns.
    SwiGlu,
}

/// `D[m, g * n + r] = alpha * sum_k A[m, g * k + k'] * W[g][r, k']` for each group `g`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dense {
    /// Format of the weights.
    pub weights: WeightFormat,
    /// Rows of the weight of one group.
    pub n: u32,
    /// Reduction length of one group.
    pub k: u32,
    /// Independent groups that stand side by side in A and D (heads of `wo_a`); 1 for a plain GEMM.
    pub groups: u32,
    /// How activations reach the tensor cores.
    pub activations: Activations,
    /// Type of the result.
    pub output: Output,
    /// What happens before the store.
    pub epilogue: Epilogue,
    /// Tokens of the bucket.
    pub m: u32,
}

impl Dense {
    /// A plain GEMM with BF16 activations and result.
    pub fn new(weights: WeightFormat, n: u32, k: u32, m: u32) -> Self {
        Self {
            weights,
            n,
            k,
            groups: 1,
            activations: Activations::A16,
            output: Output::Bf16,
            epilogue: Epilogue::Plain,
            m,
        }
    }

    /// Bytes of the checkpoint's codes and scales, all groups.
    pub fn weight_bytes(&self) -> u64 {
        u64::from(self.groups) * self.weights.bytes(self.n.into(), self.k.into())
    }

    /// Columns of A: all groups side by side.
    pub fn a_columns(&self) -> u32 {
        self.groups * self.k
    }

    /// Columns of D: all groups side by side, halved by SwiGLU.
    pub fn d_columns(&self) -> u32 {
        match self.epilogue {
            Epilogue::Plain => self.groups * self.n,
            Epilogue::SwiGlu => self.groups * self.n / 2,
        }
    }

    /// Bytes of A read once and D written once.
    pub fn activation_bytes(&self) -> u64 {
        let (m, columns) = (u64::from(self.m), u64::from(self.a_columns()));
        let token = match self.activations {
            Activations::A16 => columns * BF16_BYTES,
            // With the f32 scale of the row.
            Activations::A8 => columns + 4,
        };
        m * (token + u64::from(self.d_columns()) * self.output.bytes())
    }

    /// Floating-point operations of the sum.
    pub fn flops(&self) -> u64 {
        2 * u64::from(self.m) * u64::from(self.groups) * u64::from(self.n) * u64::from(self.k)
    }

    /// `nvfp4 8x1024x4096 a8 f32 swiglu`: defaults are left out.
    pub fn op(&self) -> String {
        let groups = if self.groups == 1 { String::new() } else { format!("{}x", self.groups) };
        let mut op = format!("{} {groups}{}x{}", self.weights, self.n, self.k);
        if self.activations != Activations::A16 {
            op.push_str(&format!(" {}", self.activations));
        }
        if self.output == Output::F32 {
            op.push_str(" f32");
        }
        if self.epilogue == Epilogue::SwiGlu {
            op.push_str(" swiglu");
        }
        op
    }
}

/// A conversion of BF16 activations, one scale for each token.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Convert {
    /// What comes out: NVFP4, or FP8 in the order of `a8` operands ([`a8`](crate::quant::a8)).
    pub to: WeightFormat,
    /// Length of a token's row.
    pub k: u32,
    /// Tokens of the bucket.
    pub m: u32,
}

impl Convert {
    /// Bytes read and written: BF16 in, codes and scales out.
    pub fn bytes(&self) -> u64 {
        let (m, k) = (u64::from(self.m), u64::from(self.k));
        let out = match self.to {
            WeightFormat::Fp8 => m * k,
            format => format.bytes(m, k),
        };
        m * k * BF16_BYTES + out + 4 * m
    }

    /// `quantise nvfp4 k4096`.
    pub fn op(&self) -> String {
        format!("quantise {} k{}", self.to, self.k)
    }
}
