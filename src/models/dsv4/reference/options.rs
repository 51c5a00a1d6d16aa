//! How far the reference imitates what a GPU or DeepSeek's own code rounds. The default imitates nothing.

use crate::quant::TensorScale;

/// What is rounded, and how. [`Options::default`] rounds nothing: plain f32.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Options {
    /// Inputs of the NVFP4 linears.
    pub activation: Activation,
    /// Keys and compressed entries, as the cache holds them.
    pub kv: KvFormat,
    /// Queries and keys of the indexer.
    pub index: IndexFormat,
    /// Where an expert's output gets its routing weight.
    pub router_weight: RouterWeight,
    /// Inputs and outputs of every linear.
    pub linear_rounding: LinearRounding,
}

impl Options {
    /// What DeepSeek's own inference code quantises: the cache to FP8, the indexer to MXFP4 behind a Hadamard
    /// transform, and the routing weight before w2.
    pub const DEEPSEEK: Self = Self {
        activation: Activation::A16,
        kv: KvFormat::Fp8,
        index: IndexFormat::Mxfp4,
        router_weight: RouterWeight::BeforeW2,
        linear_rounding: LinearRounding::Exact,
    };
}

/// The inputs of NVFP4 linears. `wo_a` keeps its input in every mode, as kernels do that hold it in FP8.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// As they are.
    #[default]
    A16,
    /// Quantised to NVFP4 and back.
    A4(ScaleSource),
}

/// Who chooses the f32 scale of NVFP4 activations. [`quant::ScalePolicy`](crate::quant::ScalePolicy) for a model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum ScaleSource {
    /// Each token from its own amax.
    #[default]
    PerToken,
    /// All tokens of a pass from the largest amax among them.
    PerTensor,
    /// The file's `input_scale` of that very linear: each part of a fused projection has its own.
    Checkpoint,
    /// Per token until [`Reference::end_warmup`](super::Reference::end_warmup); then, for each op of each layer, the
    /// largest amax that was seen.
    Warmup,
    /// This one everywhere.
    Fixed(TensorScale),
}

/// What a key loses in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    /// Nothing.
    #[default]
    Exact,
    /// Rounded to BF16.
    Bf16,
    /// E4M3 in groups of 64 with power-of-two scales; the rotated part in BF16.
    Fp8,
}

/// What the indexer compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IndexFormat {
    /// f32.
    #[default]
    Exact,
    /// Both sides rounded to BF16.
    Bf16,
    /// Both sides through a Hadamard transform to MXFP4.
    Mxfp4,
}

/// Where an expert's output gets its routing weight: the same in exact arithmetic, not if the input of w2 is quantised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RouterWeight {
    /// The output of w2.
    #[default]
    AfterW2,
    /// Its input, as DeepSeek's code does.
    BeforeW2,
}

/// What a linear rounds: the yardstick of the oracles, which a GPU may exceed by little.
///
/// There, as in the oracles, the products of hyper-connections are linears too (their input is the normalised
/// streams), and the grouped `wo_a` is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinearRounding {
    /// Nothing.
    #[default]
    Exact,
    /// Input and output to BF16.
    Bf16,
}
