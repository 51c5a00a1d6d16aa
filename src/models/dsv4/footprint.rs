//! How much of a GPU's memory a model takes, how many layers of it fit, and how fast a step could be at best.
//!
//! Weights are counted from the inventory, caches from the page layout: norms, biases and routing tables are left out,
//! which together are less than a thousandth.

use std::borrow::Cow;

use super::inventory::{Formats, inventory_of};
use super::{Config, LayerKind};
use crate::arch::GpuSpec;
use crate::models::{InventoryError, Op, Product, Shard};
use crate::problem::bucket_of;

/// What a model is asked to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// First layers of the model that run.
    pub layers: u32,
    /// Tokens of each sequence.
    pub context: u32,
    /// Sequences at a time.
    pub sequences: u32,
    /// Most tokens of one step, all sequences together.
    pub step_tokens: u32,
    /// How cached keys are stored.
    pub kv: KvFormat,
    /// How keys of the indexer are stored.
    pub index: IndexFormat,
}

/// How cached keys are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvFormat {
    /// All elements in BF16.
    Bf16,
    /// E4M3 in groups of 64 with a byte of scale; what is rotated stays BF16.
    Fp8,
}

/// How keys of the indexer are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexFormat {
    /// BF16.
    Bf16,
    /// E2M1 in groups of 32 with a byte of scale.
    Mxfp4,
}

/// Bytes of device memory, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Packed weights and the embedding.
    pub weights: u64,
    /// Keys, compressed entries, index keys and compressor states of all sequences.
    pub caches: u64,
    /// Activations of one step.
    pub workspace: u64,
}

impl Footprint {
    /// What `load` takes of a model.
    ///
    /// # Errors
    /// [`InventoryError`] as [`inventory_of`] gives it.
    pub fn of(config: &Config, formats: Formats, load: &Load) -> Result<Self, InventoryError> {
        let config = first_layers(config, load.layers);
        let ops = inventory_of(&config, formats, Shard::default())?;
        let embedding = 2 * u64::from(config.vocabulary) * u64::from(config.hidden);
        let weights = ops.iter().map(|op| u64::from(op.count) * op.weight_bytes()).sum::<u64>() + embedding;
        let caches = u64::from(load.sequences)
            * config.layer_kinds.iter().map(|&kind| cache_bytes(&config, kind, load)).sum::<u64>();
        Ok(Self { weights, caches, workspace: workspace_bytes(&config, load) })
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.caches + self.workspace
    }
}

/// The most of the first layers that `memory_bytes` hold under `load`, whose own number of layers is the most that is
/// wanted; 0 if not even one fits.
///
/// # Errors
/// [`InventoryError`] as [`inventory_of`] gives it.
pub fn layers_that_fit(
    config: &Config,
    formats: Formats,
    load: &Load,
    memory_bytes: u64,
) -> Result<u32, InventoryError> {
    for layers in (1..=load.layers.min(config.layers())).rev() {
        if Footprint::of(config, formats, &Load { layers, ..*load })?.total() <= memory_bytes {
            return Ok(layers);
        }
    }
    Ok(0)
}

/// Time of the weights' products for `tokens` tokens of `sequences` sequences in the first `layers` layers at the rates
/// that `gpu` reaches, in microseconds: each product its bytes or its FLOPs, whichever takes longer. Only the last
/// token of a sequence meets the head. Attention and caches are not counted.
///
/// # Errors
/// [`InventoryError`] as [`inventory_of`] gives it.
pub fn floor_us(
    (config, formats): (&Config, Formats),
    layers: u32,
    tokens: u32,
    sequences: u32,
    gpu: &GpuSpec,
) -> Result<f64, InventoryError> {
    let ops = inventory_of(&first_layers(config, layers), formats, Shard::default())?;
    let us = |op: &Op| {
        let m = if op.name == HEAD { sequences } else { tokens };
        f64::from(op.count) * chunks(m).map(|m| op_floor_us(op, m, gpu)).sum::<f64>()
    };
    Ok(ops.iter().map(us).sum())
}

fn op_floor_us(op: &Op, m: u32, gpu: &GpuSpec) -> f64 {
    match &op.product {
        // Its weights: streams are not counted, as other activations between products are not.
        Product::Streams(streams) => streams.matrix.f32_bytes() as f64 / (gpu.read_gbs * 1e3),
        _ => op.problem(m).floor_us(gpu),
    }
}

/// `tokens` cut into steps that have a bucket.
fn chunks(tokens: u32) -> impl Iterator<Item = u32> {
    let whole = tokens / MOST_STEP_TOKENS;
    let rest = tokens % MOST_STEP_TOKENS;
    std::iter::repeat_n(MOST_STEP_TOKENS, whole as usize).chain((bucket_of(rest).is_some() && rest > 0).then_some(rest))
}

/// The model without the layers behind the first `layers`.
fn first_layers(config: &Config, layers: u32) -> Config {
    let kinds = &config.layer_kinds[..config.layer_kinds.len().min(layers as usize)];
    Config { layer_kinds: Cow::Owned(kinds.to_vec()), ..config.clone() }
}

/// Bytes that one sequence keeps in one layer.
fn cache_bytes(config: &Config, kind: LayerKind, load: &Load) -> u64 {
    let (head_dim, index_dim) = (u64::from(config.head_dim), u64::from(config.index_head_dim));
    let plain = head_dim - u64::from(config.rope_dim);
    let key = match load.kv {
        KvFormat::Bf16 => 2 * head_dim,
        KvFormat::Fp8 => (plain + 2 * u64::from(config.rope_dim) + plain.div_ceil(64)).next_multiple_of(8),
    };
    let index_key = match load.index {
        IndexFormat::Bf16 => 2 * index_dim,
        IndexFormat::Mxfp4 => index_dim / 2 + index_dim.div_ceil(32),
    };
    let window = u64::from(config.window) * key;
    let entries = match kind.ratio() {
        0 => 0,
        ratio => u64::from(load.context / ratio).next_multiple_of(PAGE),
    };
    // Values and gates, f32, of the tokens that may still become part of an entry.
    let state = |width: u64, rows: u64| rows * 2 * u64::from(kind.series()) * width * 4;
    match kind {
        LayerKind::Swa => window,
        LayerKind::Csa => window + entries * (key + index_key) + state(head_dim, 8) + state(index_dim, 8),
        LayerKind::Hca => window + entries * key + state(head_dim, u64::from(kind.ratio())),
    }
}

/// Bytes of one step's activations in BF16: streams before and after, queries and what attention gives, the experts'
/// inner rows and outputs; and the logits of the last tokens in f32.
fn workspace_bytes(config: &Config, load: &Load) -> u64 {
    let wide = |value: u32| u64::from(value);
    let streams = 2 * wide(config.streams) * wide(config.hidden);
    let attention = 2 * wide(config.heads) * wide(config.head_dim) + wide(config.o_groups) * wide(config.o_rank);
    let experts = wide(config.top_k + config.shared_experts) * (wide(config.intermediate) + wide(config.hidden));
    let step = 2 * (streams + attention + experts) * wide(load.step_tokens);
    step + 4 * wide(load.sequences) * wide(config.vocabulary)
}

/// Entries of a page of the caches.
const PAGE: u64 = 64;
/// Tokens of the largest bucket.
const MOST_STEP_TOKENS: u32 = 8192;
const HEAD: &str = "head";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Checkpoint;

    fn nvfp4() -> Formats {
        Formats::of(Checkpoint::Nvfp4)
    }

    fn load(layers: u32) -> Load {
        let (kv, index) = (KvFormat::Fp8, IndexFormat::Mxfp4);
        Load { layers, context: 8192, sequences: 1, step_tokens: 8192, kv, index }
    }

    #[test]
    fn sizes_are_those_that_were_counted_by_hand() {
        // The backbone of Flash in NVFP4 is 164.7 GB, and 20 layers of it are said to fit in 80 GB.
        let whole = Footprint::of(&Config::FLASH, nvfp4(), &load(43)).unwrap();
        assert!((whole.weights as f64 / 1e9 - 164.7).abs() < 0.2, "{}", whole.weights);
        let fits = layers_that_fit(&Config::FLASH, nvfp4(), &load(43), 80 << 30).unwrap();
        assert!((19..=22).contains(&fits), "{fits}");
        assert_eq!(layers_that_fit(&Config::FLASH, nvfp4(), &load(43), 1 << 30).unwrap(), 0);
    }

    #[test]
    fn a_sequence_grows_by_what_each_token_adds() {
        // 3514 bytes a token with FP8 keys and MXFP4 index keys, but for the bytes of alignment.
        let bytes = |context| {
            let load = Load { context, ..load(43) };
            Footprint::of(&Config::FLASH, nvfp4(), &load).unwrap().caches
        };
        let growth = (bytes(1 << 20) - bytes(1 << 19)) as f64 / f64::from(1 << 19);
        assert!((growth - 3514.0).abs() < 5.0, "{growth}");
    }

    #[test]
    fn a_token_takes_at_least_the_bytes_of_its_weights() {
        let h100 = GpuSpec::named("h100").unwrap();
        let flash = (&Config::FLASH, nvfp4());
        let decode = floor_us(flash, 43, 1, 1, h100).unwrap();
        // 11.4 GB a token.
        assert!((decode / 1e3 - 11.4e3 / h100.read_gbs).abs() < 0.4, "{decode}");
        let prefill = floor_us(flash, 43, 8192, 1, h100).unwrap();
        let twice = floor_us(flash, 43, 16_384, 1, h100).unwrap();
        assert!(prefill > 20.0 * decode && twice > 1.9 * prefill, "{decode} {prefill} {twice}");
    }
}
