//! The constants of DeepSeek-V4. Each names its key in the release's `config.json`, which is where its value is from.
//!
//! Both constants are the preview releases of 2026; later ones changed weights and draft heads, not these numbers. What
//! follows from other numbers is a function, not a field.

use std::borrow::Cow;

/// One model of the family.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Tokens of the vocabulary (`vocab_size`).
    pub vocabulary: u32,
    /// Length of a residual stream, D (`hidden_size`).
    pub hidden: u32,
    /// Residual streams that hyper-connections mix (`hc_mult`).
    pub streams: u32,
    /// Rounds of normalising the mixing matrix, the first one counted (`hc_sinkhorn_iters`).
    pub sinkhorn_rounds: u32,
    /// Added to mixing weights and to the sums they are divided by (`hc_eps`).
    pub hc_epsilon: f32,
    /// Added to the mean square of every RMS norm (`rms_norm_eps`).
    pub norm_epsilon: f32,

    /// What each layer's attention looks at (`compress_ratios` without the entries of the draft head behind the last
    /// layer; its length is `num_hidden_layers`).
    pub layer_kinds: Cow<'static, [LayerKind]>,
    /// Query heads (`num_attention_heads`); keys and values have one head, and are one vector.
    pub heads: u32,
    /// Length of a head (`head_dim`).
    pub head_dim: u32,
    /// Last elements of a head that are rotated (`qk_rope_head_dim`).
    pub rope_dim: u32,
    /// Length of the compressed query (`q_lora_rank`).
    pub q_rank: u32,
    /// Groups of heads that share a first output projection (`o_groups`).
    pub o_groups: u32,
    /// Length of what that projection gives for one group (`o_lora_rank`).
    pub o_rank: u32,
    /// Latest tokens that every layer sees uncompressed (`sliding_window`).
    pub window: u32,
    /// Heads of the indexer, in CSA layers (`index_n_heads`).
    pub index_heads: u32,
    /// Length of a head of the indexer (`index_head_dim`).
    pub index_head_dim: u32,
    /// Compressed entries that the indexer lets a query see (`index_topk`).
    pub index_top_k: u32,
    /// Base of the rotation in SWA layers (`rope_theta`).
    pub rope_base: f64,
    /// Base of the rotation in CSA and HCA layers, which use [`Yarn`] as well (`compress_rope_theta`).
    pub compressed_rope_base: f64,
    /// Stretching of the rotation in CSA and HCA layers (`rope_scaling`).
    pub yarn: Yarn,
    /// Longest sequence (`max_position_embeddings`).
    pub max_tokens: u32,

    /// Routed experts of a layer, E (`n_routed_experts`).
    pub experts: u32,
    /// Routed experts of a token (`num_experts_per_tok`).
    pub top_k: u32,
    /// Experts that every token goes to (`n_shared_experts`).
    pub shared_experts: u32,
    /// Length of an expert's inner row, I, routed or shared (`moe_intermediate_size`).
    pub intermediate: u32,
    /// First layers, which route by token id instead of score (`num_hash_layers`).
    pub hash_layers: u32,
    /// What normalised routing weights are multiplied by (`routed_scaling_factor`).
    pub routing_scale: f32,
    /// Clamp of gate (above) and up (both sides) before SwiGLU (`swiglu_limit`).
    pub swiglu_limit: f32,
}

/// What a layer's attention looks at beside the sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// Nothing (`compress_ratios` entry 0).
    Swa,
    /// Overlapping entries of 4 tokens, chosen by the indexer (entry 4).
    Csa,
    /// Every entry of 128 tokens (entry 128).
    Hca,
}

/// `rope_scaling`, of type `yarn`; no `mscale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// By how much slow rotations are slowed (`factor`).
    pub factor: f64,
    /// Length that the model was trained on before stretching (`original_max_position_embeddings`).
    pub original_tokens: u32,
    /// Rotations over that length above which nothing changes (`beta_fast`).
    pub beta_fast: f64,
    /// Rotations over that length below which everything is slowed (`beta_slow`).
    pub beta_slow: f64,
}

impl Config {
    /// DeepSeek-V4-Flash.
    pub const FLASH: Self = Self {
        vocabulary: 129_280,
        hidden: 4096,
        streams: 4,
        sinkhorn_rounds: 20,
        hc_epsilon: 1e-6,
        norm_epsilon: 1e-6,
        layer_kinds: Cow::Borrowed(&layer_kinds::<43>(LayerKind::Swa)),
        heads: 64,
        head_dim: 512,
        rope_dim: 64,
        q_rank: 1024,
        o_groups: 8,
        o_rank: 1024,
        window: 128,
        index_heads: 64,
        index_head_dim: 128,
        index_top_k: 512,
        rope_base: 10_000.0,
        compressed_rope_base: 160_000.0,
        yarn: Yarn { factor: 16.0, original_tokens: 65_536, beta_fast: 32.0, beta_slow: 1.0 },
        max_tokens: 1_048_576,
        experts: 256,
        top_k: 6,
        shared_experts: 1,
        intermediate: 2048,
        hash_layers: 3,
        routing_scale: 1.5,
        swiglu_limit: 10.0,
    };

    /// DeepSeek-V4-Pro: what is not named here is as in Flash.
    pub const PRO: Self = Self {
        hidden: 7168,
        layer_kinds: Cow::Borrowed(&layer_kinds::<61>(LayerKind::Hca)),
        heads: 128,
        q_rank: 1536,
        o_groups: 16,
        index_top_k: 1024,
        experts: 384,
        intermediate: 3072,
        routing_scale: 2.5,
        ..Self::FLASH
    };

    /// Layers, L (`num_hidden_layers`).
    pub fn layers(&self) -> u32 {
        self.layer_kinds.len() as u32
    }

    /// Layers of one kind.
    pub fn layers_of(&self, kind: LayerKind) -> u32 {
        self.layer_kinds.iter().filter(|&&other| other == kind).count() as u32
    }
}

impl LayerKind {
    /// Tokens of one compressed entry; 0 where there are none.
    pub fn ratio(self) -> u32 {
        match self {
            Self::Swa => 0,
            Self::Csa => 4,
            Self::Hca => 128,
        }
    }

    /// Series of entries that a compressor computes: CSA's overlap, so each entry mixes two.
    pub fn series(self) -> u32 {
        match self {
            Self::Swa => 0,
            Self::Csa => 2,
            Self::Hca => 1,
        }
    }
}

/// Two layers of kind `first`, then CSA and HCA in turn.
const fn layer_kinds<const LAYERS: usize>(first: LayerKind) -> [LayerKind; LAYERS] {
    let mut kinds = [first; LAYERS];
    let mut layer_idx = 2;
    while layer_idx < LAYERS {
        kinds[layer_idx] = if layer_idx % 2 == 0 { LayerKind::Csa } else { LayerKind::Hca };
        layer_idx += 1;
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_as_compress_ratios_lists_them() {
        for (config, first, pairs) in [(Config::FLASH, 0, 20), (Config::PRO, 128, 29)] {
            let listed = [vec![first, first], [4, 128].repeat(pairs), vec![4]].concat();
            assert_eq!(config.layer_kinds.iter().map(|kind| kind.ratio()).collect::<Vec<_>>(), listed);
        }
    }

    #[test]
    fn layers_of_each_kind_add_up() {
        let counts =
            |config: Config| [LayerKind::Swa, LayerKind::Csa, LayerKind::Hca].map(|kind| config.layers_of(kind));
        assert_eq!(counts(Config::FLASH), [2, 21, 20]);
        assert_eq!(counts(Config::PRO), [0, 30, 31]);
        assert_eq!((Config::FLASH.layers(), Config::PRO.layers()), (43, 61));
    }
}
