//! Tensors that are missing, unexpected, or not of the dtype and shape that they should be; and other people's names.

use super::checkpoint::{Checkpoint, Stored, load, oracle};
use tilekiln::models::dsv4::weights::{Fate, LoadOptions, examine};

const FIRST_LINE: &str = "expected every weight of the model once and nothing else, found ";

#[test]
fn everything_missing_and_everything_unexpected_is_named() {
    let mut checkpoint = Checkpoint::of("small-native");
    checkpoint.tensors.remove("layers.2.attn.wkv.weight");
    checkpoint.tensors.remove("layers.3.attn.indexer.compressor.ape");
    checkpoint.rename("layers.4.ffn.experts.1.w2.scale", "layers.4.ffn.experts.1.w2.scales");
    let bytes = vec![0; 4];
    let stray = Stored { dtype: "F32", shape: vec![1], bytes };
    checkpoint.tensors.insert("layers.1.attn.q_b_norm.weight".to_string(), stray.clone());
    assert_eq!(
        checkpoint.refusal(),
        format!(
            "{FIRST_LINE}3 missing, 3 unexpected, 0 unusable
  missing     `layers.2.attn.wkv.weight`
  missing     `layers.3.attn.indexer.compressor.ape`
  missing     `layers.4.ffn.experts.1.w2.scale`
  unexpected  `layers.1.attn.q_b_norm.weight`
  unexpected  `layers.2.attn.wkv.scale`
  unexpected  `layers.4.ffn.experts.1.w2.scales`"
        )
    );
}

#[test]
fn long_lists_are_cut_with_their_count() {
    let mut checkpoint = Checkpoint::of("small-native");
    checkpoint.tensors.retain(|name, _| !name.contains(".ffn.experts."));
    let refusal = checkpoint.refusal();
    let lines: Vec<&str> = refusal.lines().collect();
    assert_eq!(lines.len(), 22);
    assert_eq!(lines[0], format!("{FIRST_LINE}120 missing, 0 unexpected, 0 unusable"));
    assert_eq!(lines[21], "  missing     and 100 more");
    let examination = examine(checkpoint.write().path());
    assert_eq!(examination.refusal.unwrap().missing.len(), 120, "the examination has all of them");
}

#[test]
fn another_dtype_or_shape_is_refused() {
    let mut checkpoint = Checkpoint::of("small-native");
    checkpoint.tensor("layers.0.attn.wq_a.weight").dtype = "F8_E5M2";
    checkpoint.tensor("layers.0.attn.wq_b.scale").dtype = "U8";
    checkpoint.tensor("layers.0.attn.wo_b.weight").shape = vec![64, 128];
    checkpoint.tensor("layers.0.ffn.experts.0.w1.scale").shape = vec![4, 64];
    checkpoint.tensor("norm.weight").dtype = "F16";
    checkpoint.tensor("layers.0.ffn.gate.tid2eid").shape = vec![512];
    assert_eq!(
        checkpoint.refusal(),
        format!(
            "{FIRST_LINE}0 missing, 1 unexpected, 6 unusable
  unexpected  `layers.0.attn.wq_a.scale`
  unusable    `layers.0.attn.wq_a.weight`: expected dtype BF16, F8_E4M3, U8 or I8, found F8_E5M2
  unusable    `layers.0.attn.wq_b.scale`: expected dtype F8_E8M0, F32 or BF16, found U8
  unusable    `layers.0.attn.wo_b.weight`: expected shape [128, 64] by config.json, found [64, 128]
  unusable    `layers.0.ffn.gate.tid2eid`: expected shape [256, 2] by config.json, found [512]
  unusable    `layers.0.ffn.experts.0.w1.scale`: expected shape [64, 4] by config.json, found [4, 64]
  unusable    `norm.weight`: expected dtype F32 or BF16, found F16"
        )
    );
}

#[test]
fn values_that_cannot_be_are_refused() {
    let mut checkpoint = Checkpoint::of("small-bf16");
    checkpoint.tensor("layers.1.attn_norm.weight").bytes[6..8].copy_from_slice(&0x7FC0u16.to_le_bytes());
    checkpoint.tensor("layers.0.ffn.gate.tid2eid").bytes[24..32].copy_from_slice(&8i64.to_le_bytes());
    assert_eq!(
        checkpoint.refusal(),
        format!(
            "{FIRST_LINE}0 missing, 0 unexpected, 2 unusable
  unusable    `layers.0.ffn.gate.tid2eid`: expected expert numbers below 8, found 8 for token 1
  unusable    `layers.1.attn_norm.weight`: expected finite values, found NaN at 3"
        )
    );
}

/// Matrices are not read by a load, which would read the whole file; an examination does.
#[test]
fn an_examination_finds_weights_that_are_not_finite() {
    let mut checkpoint = Checkpoint::of("small-native");
    checkpoint.tensor("layers.1.attn.wo_a.weight").bytes[128 + 3] = 0xFF;
    checkpoint.tensor("head.weight").bytes[2 * (128 + 5)..][..2].copy_from_slice(&0xFF80u16.to_le_bytes());
    let directory = checkpoint.write();
    load(directory.path(), LoadOptions::default(), |_| ()).unwrap();
    assert_eq!(
        examine(directory.path()).refusal.unwrap().message,
        format!(
            "{FIRST_LINE}0 missing, 0 unexpected, 2 unusable
  unusable    `layers.1.attn.wo_a.weight`: expected finite weights, found NaN in row 1, k = 3
  unusable    `head.weight`: expected finite weights, found -inf in row 1, k = 5"
        )
    );
}

#[test]
fn matrices_of_one_launch_have_one_format() {
    let mut checkpoint = Checkpoint::of("small-nvfp4_full");
    checkpoint.config["quantization_config"]["ignore"][0] = "*.attn.w*a*".into();
    let bytes = vec![0x38; 64 * 128];
    let fp8 = Stored { dtype: "F8_E4M3", shape: vec![64, 128], bytes };
    for layer in 0..5 {
        checkpoint.tensors.retain(|name, _| !name.starts_with(&format!("layers.{layer}.attn.wq_a")));
        checkpoint.tensors.insert(format!("layers.{layer}.attn.wq_a.weight"), fp8.clone());
        let bytes = vec![127];
        let scale = Stored { dtype: "F8_E8M0", shape: vec![1, 1], bytes };
        checkpoint.tensors.insert(format!("layers.{layer}.attn.wq_a.scale"), scale);
    }
    let refusal = checkpoint.refusal();
    assert_eq!(
        refusal.lines().take(2).collect::<Vec<_>>(),
        [
            &format!("{FIRST_LINE}0 missing, 0 unexpected, 5 unusable")[..],
            "  unusable    `layers.0.attn.wkv.weight`: expected fp8, the format of `layers.0.attn.wq_a.weight`, found \
             nvfp4"
        ]
    );
}

#[test]
fn drafts_and_cache_scales_are_left_out_with_a_reason() {
    let mut checkpoint = Checkpoint::of("small-native");
    let bytes = vec![0; 4];
    let stray = Stored { dtype: "F32", shape: vec![1], bytes };
    for name in ["mtp.0.attn.wq_a.weight", "mtp.2.markov_head.markov_w1", "layers.0.attn.k_scale"] {
        checkpoint.tensors.insert(name.to_string(), stray.clone());
    }
    let directory = checkpoint.write();
    load(directory.path(), LoadOptions::default(), |loaded| {
        let unused: Vec<_> = loaded.ledger.unused().map(|(entry, why)| (&entry.tensor[..], why.reason())).collect();
        let draft = "draft head, which is not run";
        assert_eq!(
            unused,
            [
                ("layers.0.attn.k_scale", "scale of a KV cache, which has its own"),
                ("mtp.0.attn.wq_a.weight", draft),
                ("mtp.2.markov_head.markov_w1", draft)
            ]
        );
    })
    .unwrap();
}

/// Groups of rows that share a block of FP8 scales could not be products of their own.
#[test]
fn grouped_rows_do_not_share_fp8_scales() {
    let mut checkpoint = Checkpoint::of("small-native");
    checkpoint.config["o_lora_rank"] = 96.into();
    for layer in 0..5 {
        let at = format!("layers.{layer}.attn");
        let (a, b) = (vec![0x38; 192 * 128], vec![0x38; 128 * 192]);
        *checkpoint.tensor(&format!("{at}.wo_a.weight")) = Stored { dtype: "F8_E4M3", shape: vec![192, 128], bytes: a };
        *checkpoint.tensor(&format!("{at}.wo_b.weight")) = Stored { dtype: "F8_E4M3", shape: vec![128, 192], bytes: b };
        let two = |shape: [usize; 2]| Stored { dtype: "F8_E8M0", shape: shape.to_vec(), bytes: vec![127; 2] };
        *checkpoint.tensor(&format!("{at}.wo_a.scale")) = two([2, 1]);
        *checkpoint.tensor(&format!("{at}.wo_b.scale")) = two([1, 2]);
    }
    let refusal = checkpoint.refusal();
    assert_eq!(
        refusal.lines().take(2).collect::<Vec<_>>(),
        [
            &format!("{FIRST_LINE}0 missing, 0 unexpected, 5 unusable")[..],
            "  unusable    `layers.0.attn.wo_a.weight`: expected groups of a multiple of 128 rows in fp8, or at most \
             128 rows together, found 2 groups of 96"
        ]
    );
}

/// small-bf16 as Hugging Face's implementation would save it: other names, experts stacked.
#[test]
fn names_of_hugging_face_give_the_same_weights() {
    let mut checkpoint = Checkpoint::of("small-bf16");
    stack_experts(&mut checkpoint);
    let names: Vec<String> = checkpoint.tensors.keys().cloned().collect();
    for name in names {
        checkpoint.rename(&name, &hugging_face(&name));
    }
    assert!(checkpoint.tensors.contains_key("model.layers.1.self_attn.compressor.indexer.scorer.weights_proj.weight"));
    let directory = checkpoint.write();
    load(&oracle("small-bf16"), LoadOptions::default(), |native| {
        load(directory.path(), LoadOptions::default(), |renamed| {
            assert!(native.weights == renamed.weights);
            let Some(Fate::Used(uses)) = renamed.ledger.fate("model.layers.3.mlp.experts.gate_up_proj") else {
                panic!("it is used")
            };
            let weights: Vec<&str> = uses.iter().map(|used| &used.weight[..]).collect();
            assert_eq!(weights.len(), 16);
            assert_eq!(weights[..2], ["layers.3.ffn.experts.0.w1", "layers.3.ffn.experts.0.w3"]);
        })
        .unwrap();
    })
    .unwrap();
    // A stack of more experts than config.json says is not used in part.
    checkpoint.config["n_routed_experts"] = 7.into();
    assert!(checkpoint.refusal().contains(
        "`model.layers.0.mlp.experts.down_proj`: expected no more than the weights that config.json asks for, found \
         `layers.0.ffn.experts.7.w2.weight` in it as well"
    ));
}

/// Puts `w1` above `w3` for every expert, and all experts of a layer behind each other.
fn stack_experts(checkpoint: &mut Checkpoint) {
    for layer in 0..5 {
        let mut take = |expert: usize, projection: &str| {
            let name = format!("layers.{layer}.ffn.experts.{expert}.{projection}.weight");
            checkpoint.tensors.remove(&name).unwrap().bytes
        };
        let gate_up: Vec<u8> = (0..8).flat_map(|expert| [take(expert, "w1"), take(expert, "w3")].concat()).collect();
        let down: Vec<u8> = (0..8).flat_map(|expert| take(expert, "w2")).collect();
        for (name, shape, bytes) in [("gate_up_proj", [8, 128, 128], gate_up), ("down_proj", [8, 128, 64], down)] {
            let stored = Stored { dtype: "BF16", shape: shape.to_vec(), bytes };
            checkpoint.tensors.insert(format!("model.layers.{layer}.mlp.experts.{name}"), stored);
        }
    }
}

/// The name map of dsv4.md, the other way round than the loader has it.
fn hugging_face(name: &str) -> String {
    const RENAMED: [(&str, &str); 28] = [
        ("embed.", "model.embed_tokens."),
        ("head.", "lm_head."),
        ("hc_head_", "model.hc_head.hc_"),
        (".hc_attn_", ".attn_hc."),
        (".hc_ffn_", ".ffn_hc."),
        (".attn_norm.", ".input_layernorm."),
        (".ffn_norm.", ".post_attention_layernorm."),
        (".attn.indexer.compressor.wkv.", ".self_attn.compressor.indexer.kv_proj."),
        (".attn.indexer.compressor.wgate.", ".self_attn.compressor.indexer.gate_proj."),
        (".attn.indexer.compressor.ape", ".self_attn.compressor.indexer.position_bias"),
        (".attn.indexer.compressor.norm.", ".self_attn.compressor.indexer.kv_norm."),
        (".attn.indexer.wq_b.", ".self_attn.compressor.indexer.q_b_proj."),
        (".attn.indexer.weights_proj.", ".self_attn.compressor.indexer.scorer.weights_proj."),
        (".attn.compressor.wkv.", ".self_attn.compressor.kv_proj."),
        (".attn.compressor.wgate.", ".self_attn.compressor.gate_proj."),
        (".attn.compressor.ape", ".self_attn.compressor.position_bias"),
        (".attn.compressor.norm.", ".self_attn.compressor.kv_norm."),
        (".attn.attn_sink", ".self_attn.sinks"),
        (".attn.wq_a.", ".self_attn.q_a_proj."),
        (".attn.q_norm.", ".self_attn.q_a_norm."),
        (".attn.wq_b.", ".self_attn.q_b_proj."),
        (".attn.wkv.", ".self_attn.kv_proj."),
        (".attn.kv_norm.", ".self_attn.kv_norm."),
        (".attn.wo_a.", ".self_attn.o_a_proj."),
        (".attn.wo_b.", ".self_attn.o_b_proj."),
        (".ffn.gate.bias", ".mlp.gate.e_score_correction_bias"),
        (".ffn.gate.", ".mlp.gate."),
        (".ffn.shared_experts.", ".mlp.shared_experts."),
    ];
    let renamed = RENAMED.iter().find(|(native, _)| match native.starts_with('.') {
        true => name.contains(native),
        false => name.starts_with(native),
    });
    let mut other = renamed.map_or(name.to_string(), |(native, other)| name.replacen(native, other, 1));
    if other.contains(".shared_experts.") {
        for (native, projection) in [(".w1.", ".gate_proj."), (".w3.", ".up_proj."), (".w2.", ".down_proj.")] {
            other = other.replace(native, projection);
        }
    }
    let is_inside = other.starts_with("layers.") || other.starts_with("norm.");
    if is_inside { format!("model.{other}") } else { other }
}
