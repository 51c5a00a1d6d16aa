//! What config.json says of formats, held against what the tensors are. The tensors decide how they are read, because
//! their names and dtypes leave no doubt; a config that says otherwise belongs to another checkpoint, so it is refused.

use std::collections::BTreeMap;

use super::faults::{Fault, Reason};
use super::names;
use super::reader::{Convention, Found};
use crate::models::dsv4::config_file::Quantization;
use crate::quant::WeightFormat;

/// Matrices that are not what `quantization` says, and those launched together whose formats differ.
pub(super) fn faults(quantization: &Quantization, found: &[Found]) -> Vec<Fault> {
    let mut faults: Vec<Fault> = found.iter().filter_map(|found| contradiction(quantization, found)).collect();
    if let Quantization::CompressedTensors { formats } = quantization {
        let is_absent = |format: &&WeightFormat| found.iter().all(|found| found.format != **format);
        faults.extend(formats.iter().filter(is_absent).map(|format| Fault {
            tensor: "config_groups".to_string(),
            reason: contradicts(format!("matrices in {format}"), "none".to_string()),
        }));
    }
    faults.extend(mixed(found));
    faults
}

fn contradiction(quantization: &Quantization, found: &Found) -> Option<Fault> {
    let is_inverse = match quantization {
        Quantization::CompressedTensors { .. } => found.convention == Convention::ModelOpt,
        _ => found.convention == Convention::CompressedTensors,
    };
    let reason = if is_inverse {
        let (expected, other) = match found.convention {
            Convention::ModelOpt => ("scales of compressed-tensors, which are divisors", "multipliers of ModelOpt"),
            _ => ("scales that are multipliers", "divisors of compressed-tensors"),
        };
        contradicts(expected.to_string(), other.to_string())
    } else {
        let expected = expected(quantization, found)?;
        contradicts(expected, found.format.to_string())
    };
    Some(Fault { tensor: found.tensor.clone(), reason })
}

/// What `quantization` says that `found` should be, if it is something else.
fn expected(quantization: &Quantization, found: &Found) -> Option<String> {
    let kind = names::kind(&found.weight);
    let is_expert = kind.starts_with(names::EXPERTS);
    // DeepSeek's own converter writes wo_a in BF16, so both are native.
    let native: &[WeightFormat] = match kind.as_str() {
        "attn.wo_a" => &[WeightFormat::Fp8, WeightFormat::Bf16],
        kind if is_projection(kind) => &[WeightFormat::Fp8],
        _ => &[WeightFormat::Bf16],
    };
    let listed = |formats: &[WeightFormat]| {
        let names: Vec<&str> = formats.iter().map(|format| format.name()).collect();
        (!formats.contains(&found.format)).then(|| names.join(" or "))
    };
    match quantization {
        Quantization::Bf16 => listed(&[WeightFormat::Bf16]),
        Quantization::Native { experts } if is_expert => listed(&[*experts]),
        Quantization::ModelOptExperts if is_expert => listed(&[WeightFormat::Nvfp4]),
        Quantization::Native { .. } | Quantization::ModelOptExperts => listed(native),
        Quantization::ModelOpt { ignore } => {
            let is_ignored = is_ignored(ignore, found);
            match found.format == WeightFormat::Nvfp4 {
                true => is_ignored.then(|| "another format than nvfp4, as `ignore` lists it".to_string()),
                // Routers, compressors and the like are no linear layers to every exporter: nothing is said of them.
                false if is_ignored || !(is_expert || is_projection(&kind)) => None,
                false => Some("nvfp4, as `ignore` does not list it".to_string()),
            }
        }
        Quantization::CompressedTensors { formats } => {
            let mut formats = formats.clone();
            formats.push(WeightFormat::Bf16);
            listed(&formats)
        }
    }
}

/// Projections of attention and of the shared expert, which DeepSeek publishes in FP8.
fn is_projection(kind: &str) -> bool {
    let attention = ["wq_a", "wq_b", "wkv", "wo_a", "wo_b", "indexer.wq_b"];
    let within = kind.strip_prefix("attn.");
    within.is_some_and(|within| attention.contains(&within)) || kind.starts_with("ffn.shared_experts.")
}

/// True if a pattern of `ignore` is the name of the module, as the file or as DeepSeek calls it.
fn is_ignored(ignore: &[String], found: &Found) -> bool {
    let module = found.tensor.strip_suffix(".weight").unwrap_or(&found.tensor);
    ignore.iter().any(|pattern| matches(pattern, module) || matches(pattern, &found.weight))
}

/// True if `name` is `pattern`, in which `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(behind) = name.strip_prefix(head) else { return false };
    (0..=behind.len()).any(|at| behind.is_char_boundary(at) && matches(rest, &behind[at..]))
}

/// The first of those launched together decides.
fn mixed(found: &[Found]) -> Vec<Fault> {
    let mut firsts: BTreeMap<String, &Found> = BTreeMap::new();
    let mut faults = Vec::new();
    for found in found {
        let Some(launch) = launch(&found.weight) else { continue };
        let first = *firsts.entry(launch).or_insert(found);
        if first.format != found.format {
            let (expected, first, found_format) = (first.format, first.tensor.clone(), found.format);
            let reason = Reason::MixedFormats { expected, first, found: found_format };
            faults.push(Fault { tensor: found.tensor.clone(), reason });
        }
    }
    faults
}

/// The launch that a matrix shares with others: they are packed into one buffer, so they have one format.
fn launch(weight: &str) -> Option<String> {
    let (module, projection) = weight.rsplit_once('.')?;
    let together = match projection {
        "wq_a" => true,
        "wkv" | "wgate" => true,
        "w1" | "w3" => true,
        // All experts of a layer are one problem, down included; the shared expert's down is a launch of its own.
        "w2" => !module.ends_with("shared_experts"),
        _ => false,
    };
    let expert = module.rsplit_once('.').filter(|(experts, _)| experts.ends_with("ffn.experts"));
    together.then(|| expert.map_or(module, |(experts, _)| experts).to_string())
}

fn contradicts(expected: String, found: String) -> Reason {
    Reason::ContradictsConfig { expected, found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, name, expected) in [
            ("head", "head", true),
            ("head", "layers.0.head", false),
            ("*.attn.*", "layers.0.attn.wq_a", true),
            ("*.attn.wo_a", "layers.0.attn.wo_a", true),
            ("*.attn.wo_a", "layers.0.attn.wo_ab", false),
            ("model.layers.1*", "model.layers.12.mlp.gate", true),
            ("*", "", true),
            ("a*b*c", "a1b2b3c", true),
            ("a*b*c", "a1c2b", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_packed_together_has_one_launch() {
        for (weight, expected) in [
            ("layers.0.attn.wq_a", Some("layers.0.attn")),
            ("layers.0.attn.wkv", Some("layers.0.attn")),
            ("layers.0.attn.wq_b", None),
            ("layers.0.attn.indexer.compressor.wgate", Some("layers.0.attn.indexer.compressor")),
            ("layers.0.ffn.experts.3.w2", Some("layers.0.ffn.experts")),
            ("layers.0.ffn.experts.4.w1", Some("layers.0.ffn.experts")),
            ("layers.0.ffn.shared_experts.w3", Some("layers.0.ffn.shared_experts")),
            ("layers.0.ffn.shared_experts.w2", None),
            ("head", None),
        ] {
            assert_eq!(launch(weight).as_deref(), expected, "{weight}");
        }
    }
}
