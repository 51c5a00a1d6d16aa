//! `quantization_config`: what a checkpoint says of the formats of its weights.
//!
//! Three producers, and two conventions that are inverses of each other: ModelOpt's scales are multipliers, those of
//! compressed-tensors divisors. The name of a tensor says which; this says which names to expect.

use super::ConfigError;
use super::keys::Keys;
use crate::quant::WeightFormat;

/// How the weights of a checkpoint are said to be stored. Embedding, head, router and compressors are BF16 in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// No `quantization_config`: everything is BF16.
    Bf16,
    /// As DeepSeek publishes: FP8, and experts in their own format (`expert_dtype`).
    Native {
        /// MXFP4, or FP8.
        experts: WeightFormat,
    },
    /// Native, with routed experts in NVFP4 in ModelOpt's convention.
    ModelOptExperts,
    /// NVFP4 in ModelOpt's convention but for the modules that match one of these patterns.
    ModelOpt {
        /// Names of modules, with `*` for any text.
        ignore: Vec<String>,
    },
    /// The convention of compressed-tensors; which modules are in which format is said by regular expressions, which
    /// are not evaluated: each of these formats must occur, and no other but BF16.
    CompressedTensors {
        /// NVFP4, FP8, or both.
        formats: Vec<WeightFormat>,
    },
}

impl Quantization {
    /// What it is called in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Native { .. } => "native",
            Self::ModelOptExperts => "modelopt nvfp4 (experts)",
            Self::ModelOpt { .. } => "modelopt nvfp4",
            Self::CompressedTensors { .. } => "compressed-tensors",
        }
    }
}

/// Reads `quantization_config` and `expert_dtype`.
pub(super) fn read(keys: &Keys) -> Result<Quantization, ConfigError> {
    if !keys.has("quantization_config") {
        return Ok(Quantization::Bf16);
    }
    let quantization = keys.object("quantization_config")?;
    let method = quantization.text("quant_method")?;
    match method {
        "fp8" => native(keys, &quantization),
        "modelopt" => modelopt(&quantization),
        "compressed-tensors" => compressed_tensors(&quantization),
        _ => {
            Err(quantization.wrong("quant_method", "fp8, modelopt or compressed-tensors".into(), format!("`{method}`")))
        }
    }
}

fn native(keys: &Keys, quantization: &Keys) -> Result<Quantization, ConfigError> {
    quantization.may_be("fmt", "e4m3")?;
    quantization.must_be("weight_block_size", vec![128, 128])?;
    if quantization.has("moe_quant_algo") {
        quantization.must_be("moe_quant_algo", "NVFP4")?;
        quantization.may_be("group_size", 16)?;
        return Ok(Quantization::ModelOptExperts);
    }
    // The first release left the key out; its experts are MXFP4.
    match keys.has("expert_dtype").then(|| keys.text("expert_dtype")).transpose()? {
        None | Some("fp4") => Ok(Quantization::Native { experts: WeightFormat::Mxfp4 }),
        Some("fp8") => Ok(Quantization::Native { experts: WeightFormat::Fp8 }),
        Some(other) => Err(keys.wrong("expert_dtype", "fp4 or fp8".to_string(), format!("`{other}`"))),
    }
}

fn modelopt(quantization: &Keys) -> Result<Quantization, ConfigError> {
    match quantization.text("quant_algo")? {
        // W4A16 is the same file without usable input scales.
        "NVFP4" | "W4A16_NVFP4" => {
            quantization.may_be("group_size", 16)?;
            Ok(Quantization::ModelOpt { ignore: quantization.texts("ignore")? })
        }
        other => Err(quantization.wrong("quant_algo", "NVFP4 or W4A16_NVFP4".to_string(), format!("`{other}`"))),
    }
}

fn compressed_tensors(quantization: &Keys) -> Result<Quantization, ConfigError> {
    let groups = quantization.object("config_groups")?;
    let mut formats = Vec::new();
    for (name, _) in groups.entries() {
        let weights = groups.object(name)?.object("weights")?;
        weights.must_be("type", "float")?;
        let format = match (weights.count("num_bits")?, weights.text("strategy")?) {
            (4, "tensor_group") => {
                weights.must_be("group_size", 16)?;
                WeightFormat::Nvfp4
            }
            (8, "block") => {
                weights.must_be("block_structure", vec![128, 128])?;
                WeightFormat::Fp8
            }
            (bits, strategy) => {
                let expected = "4 (tensor_group) or 8 (block)".to_string();
                return Err(weights.wrong("num_bits", expected, format!("{bits} ({strategy})")));
            }
        };
        if !formats.contains(&format) {
            formats.push(format);
        }
    }
    Ok(Quantization::CompressedTensors { formats })
}
