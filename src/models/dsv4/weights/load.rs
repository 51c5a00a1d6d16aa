//! The weights of a model out of its files: every weight found, every tensor accounted for, or nothing.

use super::agreement;
use super::faults::{Reason, WeightsError};
use super::input_scale::{self, InputScaleWarning};
use super::ledger::Ledger;
use super::parts::Parts;
use super::reader::Reader;
use super::{Attention, Choice, Compressor, Expert, FeedForward, HyperConnection, Indexer, Layer, Linear, Weights};
use crate::engine::TensorFiles;
use crate::models::dsv4::config_file::ConfigFile;
use crate::models::dsv4::{Config, LayerKind};
use crate::quant::{WeightFormat, fp8};

/// What is loaded, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// The first layers only; `None` is all of them.
    pub layers: Option<u32>,
    /// Turns routed experts in MXFP4 into NVFP4 of exactly the same values. Their new scales take 1/16 byte of host
    /// memory for each weight, all at a time: who streams a large model calls [`Linear::to_nvfp4`] expert by expert.
    pub experts_as_nvfp4: bool,
}

/// Weights with the account of their tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded<'a> {
    /// The weights.
    pub weights: Weights<'a>,
    /// The architecture, with as many layers as were loaded.
    pub config: Config,
    /// What became of each tensor.
    pub ledger: Ledger,
    /// Scales of activations that should not be trusted.
    pub warnings: Vec<InputScaleWarning>,
}

impl<'a> Weights<'a> {
    /// Finds every weight that `config` asks for in `files`. Matrices stay where they lie.
    ///
    /// # Errors
    /// [`WeightsError::Tensors`] with everything that is missing, unexpected or unusable, config.json's contradictions
    /// included.
    pub fn load(files: &'a TensorFiles, config: &ConfigFile, options: LoadOptions) -> Result<Loaded<'a>, WeightsError> {
        let quantization = &config.quantization;
        let config = first_layers(&config.config, options.layers);
        let mut unusable = Vec::new();
        let has_more_layers = options.layers.is_some();
        let parts = Parts::new(files, config.layers() as usize, has_more_layers, &mut unusable);
        let mut load = Load { reader: Reader::new(parts, unusable), config: &config };
        let mut weights = load.model();
        if options.experts_as_nvfp4 {
            load.convert_experts(&mut weights);
        }
        let mut read = load.reader.finish();
        read.faults.unusable.extend(agreement::faults(quantization, &read.found));
        if !read.faults.is_empty() {
            return Err(read.faults.into());
        }
        let mut warnings = read.warnings;
        warnings.extend(input_scale::clipping(&weights, &read.ledger));
        Ok(Loaded { weights, config, ledger: read.ledger, warnings })
    }
}

/// The model of `config` cut behind its first `layers`.
fn first_layers(config: &Config, layers: Option<u32>) -> Config {
    let layers = layers.unwrap_or(u32::MAX).min(config.layers()) as usize;
    Config { layer_kinds: config.layer_kinds[..layers].to_vec().into(), ..config.clone() }
}

struct Load<'a, 'b> {
    reader: Reader<'a>,
    config: &'b Config,
}

impl<'a> Load<'a, '_> {
    fn model(&mut self) -> Weights<'a> {
        let Config { vocabulary, hidden, streams, .. } = *self.config;
        let (vocabulary, hidden, streams) = (vocabulary as usize, hidden as usize, streams as usize);
        let kinds = self.config.layer_kinds.to_vec();
        Weights {
            embed: self.reader.bf16("embed", vocabulary, hidden),
            layers: kinds.into_iter().enumerate().map(|(layer_idx, kind)| self.layer(layer_idx, kind)).collect(),
            hc_head: self.hyper_connection("hc_head", streams, 1),
            norm: self.reader.values("norm.weight", &[hidden]),
            head: self.reader.bf16("head", vocabulary, hidden),
        }
    }

    fn layer(&mut self, layer_idx: usize, kind: LayerKind) -> Layer<'a> {
        let at = format!("layers.{layer_idx}");
        let (hidden, streams) = (self.config.hidden as usize, self.config.streams as usize);
        // One weight a stream in, one out, and the matrix that mixes them.
        let rows = (2 + streams) * streams;
        Layer {
            kind,
            hc_attn: self.hyper_connection(&format!("{at}.hc_attn"), rows, 3),
            attn_norm: self.reader.values(&format!("{at}.attn_norm.weight"), &[hidden]),
            attention: self.attention(&format!("{at}.attn"), kind),
            hc_ffn: self.hyper_connection(&format!("{at}.hc_ffn"), rows, 3),
            ffn_norm: self.reader.values(&format!("{at}.ffn_norm.weight"), &[hidden]),
            feed_forward: self.feed_forward(&format!("{at}.ffn"), layer_idx < self.config.hash_layers as usize),
        }
    }

    fn hyper_connection(&mut self, at: &str, rows: usize, scales: usize) -> HyperConnection {
        let k = self.config.streams as usize * self.config.hidden as usize;
        HyperConnection {
            function: self.reader.values(&format!("{at}_fn"), &[rows, k]),
            base: self.reader.values(&format!("{at}_base"), &[rows]),
            scale: self.reader.values(&format!("{at}_scale"), &[scales]),
        }
    }

    fn attention(&mut self, at: &str, kind: LayerKind) -> Attention<'a> {
        let Config { heads, head_dim, q_rank, o_groups, o_rank, hidden, .. } = *self.config;
        let (q_rank, hidden, head_dim) = (q_rank as usize, hidden as usize, head_dim as usize);
        let (heads, groups, o_rank) = (heads as usize, o_groups as usize, o_rank as usize);
        let index_head_dim = self.config.index_head_dim as usize;
        Attention {
            sink: self.reader.values(&format!("{at}.attn_sink"), &[heads]),
            wq_a: self.reader.linear(&format!("{at}.wq_a"), q_rank, hidden),
            q_norm: self.reader.values(&format!("{at}.q_norm.weight"), &[q_rank]),
            wq_b: self.reader.linear(&format!("{at}.wq_b"), heads * head_dim, q_rank),
            wkv: self.reader.linear(&format!("{at}.wkv"), head_dim, hidden),
            kv_norm: self.reader.values(&format!("{at}.kv_norm.weight"), &[head_dim]),
            wo_a: self.grouped(&format!("{at}.wo_a"), [groups, o_rank], heads * head_dim / groups),
            wo_b: self.reader.linear(&format!("{at}.wo_b"), hidden, groups * o_rank),
            compressor: (kind != LayerKind::Swa).then(|| self.compressor(&format!("{at}.compressor"), kind, head_dim)),
            indexer: (kind == LayerKind::Csa).then(|| Indexer {
                wq_b: self.indexer_queries(at, q_rank),
                weights_proj: self.reader.linear(
                    &format!("{at}.indexer.weights_proj"),
                    self.config.index_heads as usize,
                    hidden,
                ),
                compressor: self.compressor(&format!("{at}.indexer.compressor"), kind, index_head_dim),
            }),
        }
    }

    fn indexer_queries(&mut self, at: &str, q_rank: usize) -> Linear<'a> {
        let n = self.config.index_heads as usize * self.config.index_head_dim as usize;
        self.reader.linear(&format!("{at}.indexer.wq_b"), n, q_rank)
    }

    /// Rows of several groups in one matrix. Each group is a product of its own, so no block of scales may belong to
    /// two of them, unless all rows share the one row of blocks there is.
    fn grouped(&mut self, name: &str, [groups, rows]: [usize; 2], k: usize) -> Linear<'a> {
        let linear = self.reader.linear(name, groups * rows, k);
        let is_shared = !rows.is_multiple_of(fp8::BLOCK) && groups * rows > fp8::BLOCK;
        if linear.format == WeightFormat::Fp8 && is_shared {
            self.reader.fault(name, Reason::GroupsShareScales { groups, rows });
        }
        linear
    }

    fn compressor(&mut self, at: &str, kind: LayerKind, head_dim: usize) -> Compressor<'a> {
        let (hidden, width) = (self.config.hidden as usize, kind.series() as usize * head_dim);
        Compressor {
            wkv: self.reader.linear(&format!("{at}.wkv"), width, hidden),
            wgate: self.reader.linear(&format!("{at}.wgate"), width, hidden),
            ape: self.reader.values(&format!("{at}.ape"), &[kind.ratio() as usize, width]),
            norm: self.reader.values(&format!("{at}.norm.weight"), &[head_dim]),
        }
    }

    fn feed_forward(&mut self, at: &str, is_hash: bool) -> FeedForward<'a> {
        let Config { vocabulary, top_k, experts, hidden, .. } = *self.config;
        let choice = match is_hash {
            true => {
                let shape = [vocabulary as usize, top_k as usize];
                Choice::Hash(self.reader.expert_table(&format!("{at}.gate.tid2eid"), shape, experts))
            }
            false => Choice::Score(self.reader.values(&format!("{at}.gate.bias"), &[experts as usize])),
        };
        FeedForward {
            gate: self.reader.bf16(&format!("{at}.gate"), experts as usize, hidden as usize),
            choice,
            experts: (0..experts).map(|expert_idx| self.expert(&format!("{at}.experts.{expert_idx}"))).collect(),
            shared: self.expert(&format!("{at}.shared_experts")),
        }
    }

    fn expert(&mut self, at: &str) -> Expert<'a> {
        let (intermediate, hidden) = (self.config.intermediate as usize, self.config.hidden as usize);
        Expert {
            w1: self.reader.linear(&format!("{at}.w1"), intermediate, hidden),
            w3: self.reader.linear(&format!("{at}.w3"), intermediate, hidden),
            w2: self.reader.linear(&format!("{at}.w2"), hidden, intermediate),
        }
    }

    fn convert_experts(&mut self, weights: &mut Weights<'a>) {
        let experts = weights.layers.iter_mut().flat_map(|layer| &mut layer.feed_forward.experts);
        for linear in experts.flat_map(|expert| [&mut expert.w1, &mut expert.w3, &mut expert.w2]) {
            // What was not read has its fault already.
            if linear.format != WeightFormat::Mxfp4 || linear.codes.is_empty() || linear.scales.is_empty() {
                continue;
            }
            match linear.to_nvfp4() {
                Ok(converted) => *linear = converted,
                Err(error) => self.reader.fault(&linear.name, error.into()),
            }
        }
    }
}
