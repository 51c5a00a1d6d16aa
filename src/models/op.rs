//! One matrix product that a model launches: its name, its shape on this rank, and the tensors that it is made of.
//!
//! An [`Op`] is everything but the number of tokens; [`Op::problem`] adds that and gives what the tuner works on.

use serde::Serialize;

use crate::problem::{Activations, Dense, Epilogue, MoeBlock, Output, Problem, StreamMix};
use crate::quant::WeightFormat;

/// A product that `count` layers launch with equal shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// Module path of the launch without its layer, such as `attn.wq_b`.
    pub name: &'static str,
    /// Layers that launch it; 1 for what stands behind the last layer.
    pub count: u32,
    /// What is multiplied.
    pub product: Product,
}

/// What an op multiplies, and so who serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Product {
    /// One matrix, or one for each group: a [`Problem::Dense`].
    Gemm(Gemm),
    /// The routed experts of a layer, tuned as one: a [`Problem::MoeBlock`].
    Experts(Experts),
    /// F32 weights of a hyper-connection, multiplied where streams are mixed: a [`Problem::StreamMix`].
    Streams(Streams),
}

/// The weights of a hyper-connection, whose k is that of all four streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Streams {
    /// F32 weights.
    pub matrix: Matrix,
    /// Whether a sublayer stands before it, which it closes.
    pub has_post: bool,
}

/// A matrix with its format and what becomes of the sums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gemm {
    /// The weights.
    pub matrix: Matrix,
    /// Format of the weights.
    pub weights: WeightFormat,
    /// Type of the result.
    pub output: Output,
    /// What happens before the store.
    pub epilogue: Epilogue,
}

/// Both matrices of the routed experts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Gate rows, then up rows; one group for each expert of this rank.
    pub gate_up: Matrix,
    /// Down; one group for each expert of this rank.
    pub down: Matrix,
    /// Format of the weights.
    pub weights: WeightFormat,
    /// Experts of all ranks.
    pub experts: u32,
    /// Slots of a token.
    pub top_k: u32,
}

/// A weight matrix of this rank, or one of equal shape for each group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Row ranges of one group, ascending and without gaps. Each comes from one tensor and has its own alpha.
    pub segments: Vec<Segment>,
    /// Reduction length of one group.
    pub k: u32,
    /// Groups of heads of a grouped projection, experts of this rank; 1 for a plain matrix.
    pub groups: u32,
}

/// Rows of a matrix that come from one tensor of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// Native name without `layers.N.` and `.weight`, such as `attn.wq_a`; `E` stands for each expert.
    pub tensor: &'static str,
    /// First row in the matrix.
    pub first_row: u32,
    /// Number of rows on this rank.
    pub rows: u32,
}

impl Op {
    /// What the tuner works on for `m` tokens.
    pub fn problem(&self, m: u32) -> Problem {
        match &self.product {
            Product::Gemm(gemm) => Problem::Dense(gemm.at(m)),
            Product::Experts(experts) => Problem::MoeBlock(experts.at(m)),
            Product::Streams(streams) => Problem::StreamMix(streams.at(m)),
        }
    }

    /// Bytes of the op's weights on this rank in one layer, codes and scales of all groups: `count` times this in the
    /// model. Scalars of a tensor are not counted.
    pub fn weight_bytes(&self) -> u64 {
        match &self.product {
            Product::Gemm(gemm) => gemm.matrix.bytes(gemm.weights),
            Product::Experts(experts) => experts.gate_up.bytes(experts.weights) + experts.down.bytes(experts.weights),
            Product::Streams(streams) => streams.matrix.f32_bytes(),
        }
    }
}

impl Gemm {
    /// The problem for `m` tokens.
    pub fn at(&self, m: u32) -> Dense {
        let &Self { ref matrix, weights, output, epilogue } = self;
        let activations = Activations::A16;
        Dense { weights, n: matrix.n(), k: matrix.k, groups: matrix.groups, activations, output, epilogue, m }
    }
}

impl Experts {
    /// The problem for `m` tokens.
    pub fn at(&self, m: u32) -> MoeBlock {
        let &Self { ref gate_up, ref down, weights, experts, top_k } = self;
        MoeBlock {
            weights,
            experts,
            local_experts: gate_up.groups,
            top_k,
            hidden: gate_up.k,
            intermediate: down.k,
            activations: Activations::A16,
            m,
        }
    }
}

impl Streams {
    /// The problem for `m` tokens, with streams of f32.
    pub fn at(&self, m: u32) -> StreamMix {
        let Self { matrix, has_post } = self;
        StreamMix { element: Output::F32, n: matrix.n(), hidden: matrix.k / 4, has_post: *has_post, m }
    }
}

impl Matrix {
    /// The matrix of these tensors, one below the other, each with its rows on this rank.
    pub fn new(tensors: &[(&'static str, u32)], k: u32) -> Self {
        let mut first_row = 0;
        let mut segments = Vec::with_capacity(tensors.len());
        for &(tensor, rows) in tensors {
            segments.push(Segment { tensor, first_row, rows });
            first_row += rows;
        }
        Self { segments, k, groups: 1 }
    }

    /// `groups` matrices of this shape.
    pub fn grouped(self, groups: u32) -> Self {
        Self { groups, ..self }
    }

    /// Rows of one group.
    pub fn n(&self) -> u32 {
        self.segments.iter().map(|segment| segment.rows).sum()
    }

    /// Bytes of codes and scales in `format`, all groups.
    pub fn bytes(&self, format: WeightFormat) -> u64 {
        u64::from(self.groups) * format.bytes(self.n().into(), self.k.into())
    }

    /// Bytes of the values as F32, all groups.
    pub fn f32_bytes(&self) -> u64 {
        4 * u64::from(self.groups) * u64::from(self.n()) * u64::from(self.k)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_follow_one_another() {
        let matrix = Matrix::new(&[("a", 1024), ("b", 512)], 64).grouped(3);
        let ranges: Vec<_> = matrix.segments.iter().map(|s| (s.tensor, s.first_row, s.rows)).collect();
        assert_eq!(ranges, [("a", 0, 1024), ("b", 1024, 512)]);
        assert_eq!((matrix.n(), matrix.k, matrix.groups), (1536, 64, 3));
        assert_eq!(matrix.bytes(WeightFormat::Bf16), 3 * 1536 * 64 * 2);
        assert_eq!(matrix.f32_bytes(), 3 * 1536 * 64 * 4);
    }

    #[test]
    fn a_problem_weighs_what_its_op_weighs() {
        let (weights, output, epilogue) = (WeightFormat::Fp8, Output::F32, Epilogue::Plain);
        let gemm = Gemm { matrix: Matrix::new(&[("a", 256)], 128).grouped(4), weights, output, epilogue };
        assert_eq!(Problem::Dense(gemm.at(8)).to_string(), "fp8 4x256x128 f32 m8");
        let (dense_bytes, op) = (gemm.at(1).weight_bytes(), Op { name: "a", count: 2, product: Product::Gemm(gemm) });
        assert_eq!(op.weight_bytes(), dense_bytes);

        let gate_up = Matrix::new(&[("gate", 64), ("up", 64)], 192).grouped(8);
        let down = Matrix::new(&[("down", 192)], 64).grouped(8);
        let experts = Experts { gate_up, down, weights: WeightFormat::Nvfp4, experts: 16, top_k: 2 };
        assert_eq!(Problem::MoeBlock(experts.at(4)).to_string(), "moe nvfp4 8/16 top2 192x64 m4");
        let (block_bytes, product) = (experts.at(1).weight_bytes(), Product::Experts(experts));
        assert_eq!(Op { name: "experts", count: 1, product }.weight_bytes(), block_bytes);
    }

    #[test]
    fn a_connection_is_a_mix_of_four_streams() {
        let matrix = Matrix::new(&[("a", 24)], 16384);
        let op = Op { name: "a", count: 1, product: Product::Streams(Streams { matrix, has_post: false }) };
        assert_eq!(op.problem(2).to_string(), "hc f32 24x16384 first m2");
        assert_eq!(op.weight_bytes(), 24 * 16384 * 4);
    }
}
