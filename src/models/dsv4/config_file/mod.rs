//! A model directory's `config.json`: the architecture, and how its weights are said to be stored.
//!
//! Everything that forward depends on must be there and must be what this implementation computes: a key that is
//! missing, or that asks for another scoring function or for biases, is refused by name, never filled in.

mod keys;
mod quantization;

pub use keys::ConfigError;
pub use quantization::Quantization;

use std::path::Path;

use super::{Config, LayerKind, Yarn};
use keys::Keys;

/// What `config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigFile {
    /// The architecture.
    pub config: Config,
    /// How weights are said to be stored. The tensors decide; a contradiction is refused at load.
    pub quantization: Quantization,
    /// Token that opens a prompt (`bos_token_id`).
    pub bos: Option<u32>,
    /// Tokens that end an answer (`eos_token_id`: one, or a list).
    pub eos: Vec<u32>,
}

impl ConfigFile {
    /// Reads `config.json` of `directory`.
    ///
    /// # Errors
    /// [`ConfigError`] if it cannot be read or parsed, a key is missing or has another type, or it describes a model
    /// that this is no implementation of.
    pub fn read(directory: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(directory.join("config.json"))
            .map_err(|error| ConfigError::Unreadable { reason: error.to_string() })?;
        Self::parse(&text)
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// As [`ConfigFile::read`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|error| ConfigError::Malformed { reason: error.to_string() })?;
        let keys = Keys::new("", &value)?;
        keys.must_be("model_type", "deepseek_v4")?;
        check_fixed(&keys)?;
        let config = architecture(&keys)?;
        check_sizes(&config)?;
        let quantization = quantization::read(&keys)?;
        Ok(Self { config, quantization, bos: keys.optional_u32("bos_token_id")?, eos: keys.u32s("eos_token_id")? })
    }
}

/// What is computed in one way only. Where a release may leave a key out, leaving it out means this value.
fn check_fixed(keys: &Keys) -> Result<(), ConfigError> {
    keys.must_be("num_key_value_heads", 1)?;
    keys.must_be("n_shared_experts", 1)?;
    keys.must_be("hc_mult", 4)?;
    keys.must_be("scoring_func", "sqrtsoftplus")?;
    for (key, value) in [("topk_method", "noaux_tc"), ("hidden_act", "silu")] {
        keys.may_be(key, value)?;
    }
    for (key, value) in [("norm_topk_prob", true), ("attention_bias", false), ("tie_word_embeddings", false)] {
        keys.may_be(key, value)?;
    }
    Ok(())
}

fn architecture(keys: &Keys) -> Result<Config, ConfigError> {
    Ok(Config {
        vocabulary: keys.u32("vocab_size")?,
        hidden: keys.u32("hidden_size")?,
        streams: keys.u32("hc_mult")?,
        sinkhorn_rounds: keys.u32("hc_sinkhorn_iters")?,
        hc_epsilon: keys.f64("hc_eps")? as f32,
        norm_epsilon: keys.f64("rms_norm_eps")? as f32,
        layer_kinds: layer_kinds(keys)?.into(),
        heads: keys.u32("num_attention_heads")?,
        head_dim: keys.u32("head_dim")?,
        rope_dim: keys.u32("qk_rope_head_dim")?,
        q_rank: keys.u32("q_lora_rank")?,
        o_groups: keys.u32("o_groups")?,
        o_rank: keys.u32("o_lora_rank")?,
        window: keys.u32("sliding_window")?,
        index_heads: keys.u32("index_n_heads")?,
        index_head_dim: keys.u32("index_head_dim")?,
        index_top_k: keys.u32("index_topk")?,
        rope_base: keys.f64("rope_theta")?,
        compressed_rope_base: keys.f64("compress_rope_theta")?,
        yarn: yarn(keys)?,
        max_tokens: keys.u32("max_position_embeddings")?,
        experts: keys.u32("n_routed_experts")?,
        top_k: keys.u32("num_experts_per_tok")?,
        shared_experts: keys.u32("n_shared_experts")?,
        intermediate: keys.u32("moe_intermediate_size")?,
        hash_layers: keys.count("num_hash_layers")?,
        routing_scale: keys.f64("routed_scaling_factor")? as f32,
        swiglu_limit: keys.f64("swiglu_limit")? as f32,
    })
}

/// One kind a layer. Entries behind the last layer belong to draft heads.
fn layer_kinds(keys: &Keys) -> Result<Vec<LayerKind>, ConfigError> {
    let layers = keys.u32("num_hidden_layers")? as usize;
    let ratios = keys.counts("compress_ratios")?;
    if ratios.len() < layers {
        let expected = format!("one entry for each of {layers} layers");
        return Err(keys.wrong("compress_ratios", expected, format!("{} entries", ratios.len())));
    }
    let kind = |ratio: &u32| match ratio {
        0 => Ok(LayerKind::Swa),
        4 => Ok(LayerKind::Csa),
        128 => Ok(LayerKind::Hca),
        _ => Err(keys.wrong("compress_ratios", "entries 0, 4 or 128".to_string(), ratio.to_string())),
    };
    ratios[..layers].iter().map(kind).collect()
}

fn yarn(keys: &Keys) -> Result<Yarn, ConfigError> {
    let keys = keys.object("rope_scaling")?;
    // The key changed its name in Hugging Face's files; both are in use.
    keys.must_be(if keys.has("rope_type") { "rope_type" } else { "type" }, "yarn")?;
    for key in ["mscale", "mscale_all_dim", "attention_factor"] {
        keys.may_be(key, 1)?;
    }
    Ok(Yarn {
        factor: keys.f64("factor")?,
        original_tokens: keys.u32("original_max_position_embeddings")?,
        beta_fast: keys.f64("beta_fast")?,
        beta_slow: keys.f64("beta_slow")?,
    })
}

/// Numbers that must fit each other, before any of them is a divisor or a shape.
fn check_sizes(config: &Config) -> Result<(), ConfigError> {
    let rules = [
        (
            config.heads.is_multiple_of(config.o_groups),
            format!("num_attention_heads a multiple of o_groups, found {} and {}", config.heads, config.o_groups),
        ),
        (
            config.rope_dim <= config.head_dim && config.rope_dim.is_multiple_of(2),
            format!("qk_rope_head_dim even and at most head_dim, found {} and {}", config.rope_dim, config.head_dim),
        ),
        (
            config.rope_dim <= config.index_head_dim,
            format!("qk_rope_head_dim at most index_head_dim, found {} and {}", config.rope_dim, config.index_head_dim),
        ),
        (config.experts <= MOST_EXPERTS, format!("n_routed_experts at most {MOST_EXPERTS}, found {}", config.experts)),
        (
            config.top_k <= config.experts,
            format!("num_experts_per_tok at most n_routed_experts, found {} and {}", config.top_k, config.experts),
        ),
        (
            config.yarn.factor > 0.0 && config.rope_base > 1.0 && config.compressed_rope_base > 1.0,
            format!(
                "factor above 0 and rope bases above 1, found {}, {} and {}",
                config.yarn.factor, config.rope_base, config.compressed_rope_base
            ),
        ),
    ];
    match rules.into_iter().find(|(holds, _)| !holds) {
        None => Ok(()),
        Some((_, rule)) => Err(ConfigError::Contradiction { rule }),
    }
}

/// Ten times what the largest release has: a number beyond it is a mistake, and each expert takes memory to miss.
const MOST_EXPERTS: u32 = 4096;
