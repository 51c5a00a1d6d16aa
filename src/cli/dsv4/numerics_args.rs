//! The words that choose how a model's values are rounded. Without any, nothing is rounded beyond the weights' format.

use clap::{Args, ValueEnum};

use crate::cli::CliError;
use crate::kernels::runner::Element;
use crate::quant::ScalePolicy;

/// How values are rounded on their way through the model.
#[derive(Clone, Debug, Args)]
pub struct NumericsArgs {
    /// Inputs of NVFP4 weights: 16 bits as they are, or rounded to NVFP4
    #[arg(long, value_enum, default_value_t = Activation::A16)]
    pub activation: Activation,
    /// With --activation a4: who chooses the scale: per-token, per-tensor, checkpoint, warmup or fixed(X)
    #[arg(long, value_name = "POLICY", value_parser = scale)]
    pub scale: Option<Scale>,
    /// Cached keys: as they are, or as FP8 in groups of 64
    #[arg(long, value_enum, default_value_t = Kv::Bf16)]
    pub kv: Kv,
    /// Indexer: as it is, or rotated and rounded to MXFP4
    #[arg(long, value_enum, default_value_t = Index::Bf16)]
    pub index: Index,
    /// Residual streams: f32, or rounded to BF16 behind every sublayer as in DeepSeek's own code
    #[arg(long, value_enum, default_value_t = Streams::F32)]
    pub streams: Streams,
    /// Where an expert's output meets its routing weight: after w2, or before it as in DeepSeek's own code
    #[arg(long, value_enum, default_value_t = RouterWeight::After)]
    pub router_weight: RouterWeight,
    /// Routed experts in MXFP4: as they are, or turned into NVFP4 without loss
    #[arg(long, value_enum, default_value_t = Experts::AsTheyAre)]
    pub experts: Experts,
}

/// Inputs of NVFP4 weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Activation {
    /// As they are
    A16,
    /// Rounded to NVFP4
    A4,
}

/// Who chooses the scale of activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// Each token from its own largest value.
    PerToken,
    /// All tokens of a step from the largest value among them.
    PerTensor,
    /// The checkpoint's input_scale.
    Checkpoint,
    /// The largest value that a warm-up met.
    Warmup,
    /// Chosen by hand.
    Fixed(f32),
}

/// As on the command line.
impl std::fmt::Display for Scale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PerToken => f.write_str("per-token"),
            Self::PerTensor => f.write_str("per-tensor"),
            Self::Checkpoint => f.write_str("checkpoint"),
            Self::Warmup => f.write_str("warmup"),
            Self::Fixed(scale) => write!(f, "fixed({scale})"),
        }
    }
}

/// Cached keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kv {
    /// As they are
    Bf16,
    /// FP8 in groups of 64
    Fp8,
}

/// The indexer's queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Index {
    /// As they are
    Bf16,
    /// Hadamard, then MXFP4 in groups of 32
    Mxfp4,
}

/// Residual streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Streams {
    /// As they are summed
    F32,
    /// Rounded behind every sublayer: half the bytes, and about twice the error that is left of a layer
    Bf16,
}

/// Where an expert's output meets its routing weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RouterWeight {
    /// After w2
    After,
    /// Before w2
    Before,
}

/// Routed experts of a checkpoint in MXFP4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Experts {
    /// As they are
    AsTheyAre,
    /// Turned into NVFP4 without loss
    Nvfp4,
}

impl NumericsArgs {
    /// What the GPU keeps residual streams as.
    pub fn stream_element(&self) -> Element {
        match self.streams {
            Streams::F32 => Element::F32,
            Streams::Bf16 => Element::Bf16,
        }
    }

    /// The scale policy of a run with 4-bit activations; `None` with 16 bits.
    ///
    /// # Errors
    /// A `--scale` that nobody would look at.
    pub fn scale(&self) -> Result<Option<Scale>, CliError> {
        match (self.activation, self.scale) {
            (Activation::A16, None) => Ok(None),
            (Activation::A16, Some(_)) => Err(CliError::usage(
                "expected `--activation a4` with `--scale`, found a16, which has no scale",
                "add `--activation a4`, or leave `--scale` out",
            )),
            (Activation::A4, scale) => Ok(Some(scale.unwrap_or(Scale::PerToken))),
        }
    }
}

/// A policy by its word.
fn scale(text: &str) -> Result<Scale, String> {
    let inside = |text: &str| text.strip_prefix("fixed(").and_then(|text| text.strip_suffix(')')).map(str::to_string);
    match text {
        "per-token" => Ok(Scale::PerToken),
        "per-tensor" => Ok(Scale::PerTensor),
        "checkpoint" => Ok(Scale::Checkpoint),
        "warmup" => Ok(Scale::Warmup),
        _ => {
            let number = inside(text).and_then(|inside| inside.parse::<f32>().ok());
            let number = number.ok_or_else(|| {
                format!("expected per-token, per-tensor, checkpoint, warmup or fixed(X) for `--scale`, found `{text}`")
            })?;
            ScalePolicy::fixed(number).map(|_| Scale::Fixed(number)).map_err(|error| error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_and_nonsense_is_refused() {
        for (text, expected) in [("per-token", Scale::PerToken), ("fixed(0.5)", Scale::Fixed(0.5))] {
            assert_eq!(scale(text), Ok(expected));
        }
        for text in ["fixed", "fixed()", "fixed(0)", "fixed(nan)", "fixed(-1)", "dynamic"] {
            assert!(scale(text).unwrap_err().starts_with("expected"), "{text}: {:?}", scale(text));
        }
    }
}
