//! What a tensor of the files is called natively. Names of Hugging Face's implementation are turned into DeepSeek's.

/// The native name of the tensor that a file calls `name`; native names stay as they are.
pub(super) fn native(name: &str) -> String {
    let name = name.strip_prefix("model.").unwrap_or(name);
    let renamed = match layer_of(name) {
        Some((layer, rest)) => within_layer(rest).map(|rest| format!("layers.{layer}.{rest}")),
        None => replace_head(name, &OUTSIDE),
    };
    let name = renamed.unwrap_or_else(|| name.to_string());
    // Hugging Face and vLLM call FP8's block scales inverse. They are multipliers, as the native ones.
    match name.strip_suffix(".weight_scale_inv") {
        Some(module) => format!("{module}.scale"),
        None => name,
    }
}

/// The layer of `name` and what follows it, if it starts with `layers.N.`.
pub(super) fn layer_of(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

/// `name` without the numbers of layer and expert, which is what reports count by.
pub(super) fn kind(name: &str) -> String {
    let within = layer_of(name).map_or(name, |(_, rest)| rest);
    match within.strip_prefix(EXPERTS).and_then(|rest| rest.split_once('.')) {
        Some((_, projection)) => format!("{EXPERTS}{projection}"),
        None => within.to_string(),
    }
}

fn within_layer(rest: &str) -> Option<String> {
    if let Some(expert) = rest.strip_prefix("mlp.experts.") {
        let (number, projection) = expert.split_once('.')?;
        number.parse::<usize>().ok()?;
        return Some(format!("{EXPERTS}{number}.{}", replace_head(projection, &PROJECTIONS)?));
    }
    if let Some(shared) = rest.strip_prefix("mlp.shared_experts.") {
        return Some(format!("ffn.shared_experts.{}", replace_head(shared, &PROJECTIONS)?));
    }
    replace_head(rest, &WITHIN_LAYER)
}

/// Replaces the first entry that `name` is, or starts with as whole words.
fn replace_head(name: &str, table: &[(&str, &str)]) -> Option<String> {
    table.iter().find_map(|(other, native)| {
        let rest = name.strip_prefix(other)?;
        (rest.is_empty() || rest.starts_with('.')).then(|| format!("{native}{rest}"))
    })
}

/// Where routed experts stand in a layer.
pub(super) const EXPERTS: &str = "ffn.experts.";

const OUTSIDE: [(&str, &str); 5] = [
    ("embed_tokens", "embed"),
    ("lm_head", "head"),
    ("hc_head.hc_fn", "hc_head_fn"),
    ("hc_head.hc_base", "hc_head_base"),
    ("hc_head.hc_scale", "hc_head_scale"),
];

const PROJECTIONS: [(&str, &str); 3] = [("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")];

/// Longer names first where one is the head of another.
const WITHIN_LAYER: [(&str, &str); 29] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("attn_hc.fn", "hc_attn_fn"),
    ("attn_hc.base", "hc_attn_base"),
    ("attn_hc.scale", "hc_attn_scale"),
    ("ffn_hc.fn", "hc_ffn_fn"),
    ("ffn_hc.base", "hc_ffn_base"),
    ("ffn_hc.scale", "hc_ffn_scale"),
    ("self_attn.sinks", "attn.attn_sink"),
    ("self_attn.q_a_proj", "attn.wq_a"),
    ("self_attn.q_a_norm", "attn.q_norm"),
    ("self_attn.q_b_proj", "attn.wq_b"),
    ("self_attn.kv_proj", "attn.wkv"),
    ("self_attn.kv_norm", "attn.kv_norm"),
    ("self_attn.o_a_proj", "attn.wo_a"),
    ("self_attn.o_b_proj", "attn.wo_b"),
    ("self_attn.compressor.kv_proj", "attn.compressor.wkv"),
    ("self_attn.compressor.gate_proj", "attn.compressor.wgate"),
    ("self_attn.compressor.position_bias", "attn.compressor.ape"),
    ("self_attn.compressor.kv_norm", "attn.compressor.norm"),
    ("self_attn.compressor.indexer.kv_proj", "attn.indexer.compressor.wkv"),
    ("self_attn.compressor.indexer.gate_proj", "attn.indexer.compressor.wgate"),
    ("self_attn.compressor.indexer.position_bias", "attn.indexer.compressor.ape"),
    ("self_attn.compressor.indexer.kv_norm", "attn.indexer.compressor.norm"),
    ("self_attn.compressor.indexer.q_b_proj", "attn.indexer.wq_b"),
    ("self_attn.compressor.indexer.scorer.weights_proj", "attn.indexer.weights_proj"),
    ("self_attn.compressor.indexer.weights_proj", "attn.indexer.weights_proj"),
    ("mlp.gate.e_score_correction_bias", "ffn.gate.bias"),
    ("mlp.gate", "ffn.gate"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_hugging_face_become_native() {
        for (name, expected) in [
            ("model.embed_tokens.weight", "embed.weight"),
            ("lm_head.weight", "head.weight"),
            ("model.norm.weight", "norm.weight"),
            ("model.hc_head.hc_fn", "hc_head_fn"),
            ("model.layers.7.self_attn.q_a_proj.weight_scale_inv", "layers.7.attn.wq_a.scale"),
            ("model.layers.7.self_attn.sinks", "layers.7.attn.attn_sink"),
            ("model.layers.2.self_attn.compressor.indexer.position_bias", "layers.2.attn.indexer.compressor.ape"),
            ("model.layers.2.self_attn.compressor.kv_norm.weight", "layers.2.attn.compressor.norm.weight"),
            ("model.layers.2.attn_hc.fn", "layers.2.hc_attn_fn"),
            ("model.layers.2.mlp.gate.weight", "layers.2.ffn.gate.weight"),
            ("model.layers.2.mlp.gate.tid2eid", "layers.2.ffn.gate.tid2eid"),
            ("model.layers.2.mlp.gate.e_score_correction_bias", "layers.2.ffn.gate.bias"),
            ("model.layers.2.mlp.experts.11.up_proj.weight_scale_2", "layers.2.ffn.experts.11.w3.weight_scale_2"),
            ("model.layers.2.mlp.shared_experts.down_proj.weight", "layers.2.ffn.shared_experts.w2.weight"),
            // Names that mean nothing are kept, so that they are reported as the file has them.
            ("model.layers.2.self_attn.q_b_norm.weight", "layers.2.self_attn.q_b_norm.weight"),
            ("model.layers.2.mlp.gate_proj.weight", "layers.2.mlp.gate_proj.weight"),
            ("mtp.0.attn.wq_a.weight", "mtp.0.attn.wq_a.weight"),
        ] {
            assert_eq!(native(name), expected);
            assert_eq!(native(expected), expected, "native names stay");
        }
    }

    #[test]
    fn kinds_have_no_numbers() {
        for (name, expected) in [
            ("layers.12.attn.wq_a", "attn.wq_a"),
            ("layers.12.ffn.experts.255.w1", "ffn.experts.w1"),
            ("layers.12.ffn.shared_experts.w1", "ffn.shared_experts.w1"),
            ("head", "head"),
        ] {
            assert_eq!(kind(name), expected);
        }
    }
}
