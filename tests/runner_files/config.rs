//! A config.json that lacks something, asks for another model, or contradicts the tensors.

use serde_json::{Value, json};

use super::checkpoint::{Checkpoint, oracle};
use tilekiln::models::dsv4::Config;
use tilekiln::models::dsv4::config_file::{ConfigFile, Quantization};
use tilekiln::quant::WeightFormat;

/// The config of an oracle with one key set, or taken out with null at the end of `path`.
fn parse_with(oracle_name: &str, path: &str, value: Value) -> Result<ConfigFile, String> {
    let mut config = Checkpoint::of(oracle_name).config;
    *config.pointer_mut(path).unwrap_or_else(|| panic!("no {path}")) = value;
    ConfigFile::parse(&config.to_string()).map_err(|error| error.to_string())
}

#[test]
fn the_oracles_are_described_as_they_are() {
    let read = |name: &str| ConfigFile::read(&oracle(name)).unwrap();
    let small = read("small-native");
    assert_eq!(small.quantization, Quantization::Native { experts: WeightFormat::Mxfp4 });
    assert_eq!((small.bos, &small.eos[..]), (Some(0), &[1][..]));
    let Config { hidden, heads, head_dim, rope_dim, experts, window, hash_layers, .. } = small.config;
    assert_eq!([hidden, heads, head_dim, rope_dim, experts, window, hash_layers], [128, 4, 64, 16, 8, 16, 1]);
    assert_eq!(small.config.layer_kinds.iter().map(|kind| kind.ratio()).collect::<Vec<_>>(), [0, 4, 128, 4, 0]);
    assert_eq!(read("small-bf16").quantization, Quantization::Bf16);
    assert_eq!(read("small-nvfp4").quantization, Quantization::ModelOptExperts);
    assert!(matches!(read("small-nvfp4_full").quantization, Quantization::ModelOpt { ignore } if ignore.len() == 5));
    assert_eq!(
        read("small-nvfp4_ct").quantization,
        Quantization::CompressedTensors { formats: vec![WeightFormat::Fp8, WeightFormat::Nvfp4] }
    );
}

#[test]
fn entries_of_draft_heads_are_no_layers() {
    let config = parse_with("small-native", "/compress_ratios", json!([0, 4, 128, 4, 0, 0, 0])).unwrap();
    assert_eq!(config.config.layers(), 5);
}

#[test]
fn what_is_no_deepseek_v4_is_refused_by_key() {
    for (path, value, sentence) in [
        (
            "/model_type",
            json!("deepseek_v41"),
            "`model_type` in config.json to be \"deepseek_v4\", found \"deepseek_v41\"",
        ),
        ("/scoring_func", json!("softmax"), "`scoring_func` in config.json to be \"sqrtsoftplus\", found \"softmax\""),
        ("/hidden_size", json!(null), "`hidden_size` in config.json, found no such key"),
        ("/hidden_size", json!("128"), "`hidden_size` in config.json to be a whole number, found \"128\""),
        ("/head_dim", json!(0), "`head_dim` in config.json to be above 0, found 0"),
        ("/hc_mult", json!(2), "`hc_mult` in config.json to be 4, found 2"),
        ("/tie_word_embeddings", json!(true), "`tie_word_embeddings` in config.json to be false, found true"),
        (
            "/num_hidden_layers",
            json!(6),
            "`compress_ratios` in config.json to be one entry for each of 6 layers, found 5 entries",
        ),
        ("/compress_ratios/1", json!(8), "`compress_ratios` in config.json to be entries 0, 4 or 128, found 8"),
        ("/rope_scaling/type", json!("linear"), "`rope_scaling.type` in config.json to be \"yarn\", found \"linear\""),
        ("/rope_scaling/factor", json!(null), "`rope_scaling.factor` in config.json, found no such key"),
        ("/rope_scaling", json!(null), "`rope_scaling` in config.json, found no such key"),
        ("/o_groups", json!(3), "num_attention_heads a multiple of o_groups, found 4 and 3 in config.json"),
        (
            "/num_experts_per_tok",
            json!(9),
            "num_experts_per_tok at most n_routed_experts, found 9 and 8 in config.json",
        ),
        (
            "/n_routed_experts",
            json!(4_000_000_000u32),
            "n_routed_experts at most 4096, found 4000000000 in config.json",
        ),
    ] {
        assert_eq!(parse_with("small-native", path, value).unwrap_err(), format!("expected {sentence}"), "{path}");
    }
    assert!(ConfigFile::parse("{").unwrap_err().to_string().starts_with("expected JSON in config.json, found: EOF"));
}

#[test]
fn formats_that_nothing_here_reads_are_refused_by_name() {
    for (oracle, key, value, sentence) in [
        ("small-native", "quant_method", json!("awq"), "to be fp8, modelopt or compressed-tensors, found `awq`"),
        ("small-native", "weight_block_size", json!([32, 32]), "to be [128,128], found [32,32]"),
        ("small-nvfp4", "moe_quant_algo", json!("W4A8"), "to be \"NVFP4\", found \"W4A8\""),
        ("small-nvfp4_full", "quant_algo", json!("FP8"), "to be NVFP4 or W4A16_NVFP4, found `FP8`"),
        ("small-nvfp4_full", "group_size", json!(32), "to be 16, found 32"),
        (
            "small-nvfp4_ct",
            "config_groups/group_1/weights/num_bits",
            json!(8),
            "to be 4 (tensor_group) or 8 (block), found 8 (tensor_group)",
        ),
    ] {
        let path = format!("/quantization_config/{key}");
        let key = key.replace('/', ".");
        let sentence = format!("expected `quantization_config.{key}` in config.json {sentence}");
        assert_eq!(parse_with(oracle, &path, value).unwrap_err(), sentence);
    }
}

/// The refusal of an oracle with another config: how many tensors it names, and the first line about one.
fn contradiction(oracle_name: &str, path: &str, value: Value) -> (String, String) {
    let mut checkpoint = Checkpoint::of(oracle_name);
    *checkpoint.config.pointer_mut(path).unwrap_or_else(|| panic!("no {path}")) = value;
    let refusal = checkpoint.refusal();
    let mut lines = refusal.lines();
    let counts = lines.next().unwrap().split_once("found ").unwrap().1.to_string();
    (counts, lines.next().unwrap().trim().to_string())
}

#[test]
fn formats_that_contradict_the_tensors_are_refused() {
    let config = "by quantization_config in config.json, found";
    for (oracle, path, value, counts, first) in [
        (
            "small-native",
            "/quantization_config",
            json!(null),
            "0 missing, 0 unexpected, 162 unusable",
            format!("`layers.0.attn.wq_a.weight`: expected bf16 {config} fp8"),
        ),
        (
            "small-nvfp4",
            "/quantization_config/moe_quant_algo",
            json!(null),
            "0 missing, 0 unexpected, 120 unusable",
            format!("`layers.0.ffn.experts.0.w1.weight`: expected mxfp4 {config} nvfp4"),
        ),
        (
            "small-nvfp4_full",
            "/quantization_config/ignore/0",
            json!("nothing"),
            "0 missing, 0 unexpected, 5 unusable",
            format!("`layers.0.attn.wo_a.weight`: expected nvfp4, as `ignore` does not list it {config} fp8"),
        ),
        (
            "small-nvfp4_full",
            "/quantization_config/ignore/0",
            json!("*.attn.w*"),
            "0 missing, 0 unexpected, 20 unusable",
            format!(
                "`layers.0.attn.wq_a.weight`: expected another format than nvfp4, as `ignore` lists it {config} nvfp4"
            ),
        ),
        (
            "small-nvfp4_ct",
            "/quantization_config",
            json!({ "quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["*.attn.*", "*.shared_experts.*"] }),
            "0 missing, 0 unexpected, 120 unusable",
            format!(
                "`layers.0.ffn.experts.0.w1.weight_packed`: expected scales that are multipliers {config} divisors of \
                 compressed-tensors"
            ),
        ),
    ] {
        let found = contradiction(oracle, path, value);
        let strip = found.1.trim_start_matches("unusable").trim().to_string();
        assert_eq!((&found.0[..], strip), (counts, first), "{oracle} {path}");
    }
}

#[test]
fn sizes_that_contradict_the_tensors_are_refused() {
    let shape = "expected shape";
    for (path, value, counts, first) in [
        (
            "/q_lora_rank",
            json!(32),
            "0 missing, 0 unexpected, 17 unusable",
            format!("unusable    `layers.0.attn.wq_a.weight`: {shape} [32, 128] by config.json, found [64, 128]"),
        ),
        (
            "/n_routed_experts",
            json!(7),
            "0 missing, 30 unexpected, 10 unusable",
            "unexpected  `layers.0.ffn.experts.7.w1.scale`".to_string(),
        ),
        (
            "/compress_ratios/4",
            json!(4),
            "10 missing, 0 unexpected, 0 unusable",
            "missing     `layers.4.attn.compressor.wkv.weight`".to_string(),
        ),
        (
            "/compress_ratios/2",
            json!(0),
            "0 missing, 4 unexpected, 0 unusable",
            "unexpected  `layers.2.attn.compressor.ape`".to_string(),
        ),
    ] {
        assert_eq!(contradiction("small-native", path, value), (counts.to_string(), first), "{path}");
    }
}
