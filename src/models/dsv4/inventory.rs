//! Every matrix product of a step, as the runner launches it on one rank: tensors that read the same input are fused.
//!
//! Tensor parallelism cuts heads (`wq_b` by rows, `wo_a` by groups, `wo_b` by k), inner rows of experts (gate and up by
//! rows, down by k) and the vocabulary; expert parallelism deals out whole routed experts. The rest is replicated.

use super::config::{Config, LayerKind};
use crate::models::{Checkpoint, Experts, Gemm, InventoryError, Matrix, Op, Product, Shard, Streams, Whole};
use crate::problem::{Epilogue, Output};
use crate::quant::WeightFormat;

/// The ops of one rank: attention, feed-forward, tail. The first connection of all closes nothing, so it is an op of
/// its own.
///
/// # Errors
/// [`InventoryError`] if `tp` or `ep` is no power of two, if `tp` is above `o_groups`, or if a part is no whole number
/// of heads, of experts, of 64 inner rows (the slab of k that packing pads to), or of FP8's blocks of 128.
pub fn inventory(config: &Config, checkpoint: Checkpoint, shard: Shard) -> Result<Vec<Op>, InventoryError> {
    inventory_of(config, Formats::of(checkpoint), shard)
}

/// As [`inventory`], with the formats that a file was found to have.
///
/// # Errors
/// As [`inventory`].
pub fn inventory_of(config: &Config, formats: Formats, shard: Shard) -> Result<Vec<Op>, InventoryError> {
    shard.check()?;
    if shard.tp > config.o_groups {
        return Err(InventoryError::Groups { op: WO_A, groups: config.o_groups, tp: shard.tp });
    }
    let rank = Rank { config, formats, shard };
    let layers = config.layers();
    let connection = |name, tensor, count, has_post| rank.hyper_connection((name, tensor), count, has_post);
    let mut ops = vec![
        connection(HC_FIRST, HC_ATTENTION, layers.min(1), false),
        connection(HC_ATTENTION, HC_ATTENTION, layers.saturating_sub(1), true),
    ];
    ops.extend(rank.attention()?);
    ops.extend(rank.compressors());
    ops.push(connection(HC_FFN, HC_FFN, layers, true));
    ops.extend(rank.feed_forward()?);
    ops.extend(rank.tail()?);
    Ok(ops)
}

/// Formats of the ops that differ between checkpoints; all others are BF16, or F32, in each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formats {
    /// `wq_a`, `wkv`, `wq_b`, `wo_b`.
    pub attention: WeightFormat,
    /// `wo_a`, which full NVFP4 checkpoints leave as it is.
    pub wo_a: WeightFormat,
    /// `indexer.wq_b`.
    pub index_q: WeightFormat,
    /// The shared expert.
    pub shared: WeightFormat,
    /// Routed experts.
    pub experts: WeightFormat,
}

impl Formats {
    /// Those of a published form.
    pub fn of(checkpoint: Checkpoint) -> Self {
        let (projections, experts) = match checkpoint {
            Checkpoint::Native => (WeightFormat::Fp8, WeightFormat::Mxfp4),
            Checkpoint::Nvfp4 => (WeightFormat::Fp8, WeightFormat::Nvfp4),
            Checkpoint::Nvfp4Full => (WeightFormat::Nvfp4, WeightFormat::Nvfp4),
        };
        let (wo_a, index_q) = (WeightFormat::Fp8, WeightFormat::Fp8);
        Self { attention: projections, wo_a, index_q, shared: projections, experts }
    }
}

/// What one rank holds of a model.
struct Rank<'a> {
    config: &'a Config,
    formats: Formats,
    shard: Shard,
}

impl Rank<'_> {
    /// Projections into and out of attention.
    fn attention(&self) -> Result<[Op; 4], InventoryError> {
        let &Config { hidden, heads, head_dim, q_rank, o_groups, o_rank, .. } = self.config;
        let count = self.config.layers();
        let (q_rows, z_len) = (heads * head_dim, o_groups * o_rank);
        let q_part = self.shard.tp_part(Whole { op: WQ_B, axis: "n", size: q_rows }, head_dim)?;
        let groups_part = self.shard.tp_part(Whole { op: WO_A, axis: "groups", size: o_groups }, 1)?;
        let z_part = self.shard.tp_part(Whole { op: WO_B, axis: "k", size: z_len }, o_rank)?;

        let wqa_wkv = Matrix::new(&[("attn.wq_a", q_rank), ("attn.wkv", head_dim)], hidden);
        let wq_b = Matrix::new(&[(WQ_B, q_part)], q_rank);
        let wo_a = Matrix::new(&[(WO_A, o_rank)], q_rows / o_groups).grouped(groups_part);
        let wo_b = Matrix::new(&[(WO_B, hidden)], z_part);
        let Formats { attention, wo_a: wo_a_format, .. } = self.formats;
        Ok([
            gemm("attn.fused_wqa_wkv", count, attention, wqa_wkv),
            gemm(WQ_B, count, attention, wq_b),
            gemm(WO_A, count, wo_a_format, wo_a),
            gemm(WO_B, count, attention, wo_b),
        ])
    }

    /// Compressors of both kinds, and the indexer that chooses among CSA's entries: all replicated.
    fn compressors(&self) -> [Op; 3] {
        let &Config { hidden, head_dim, q_rank, index_heads, index_head_dim, .. } = self.config;
        let [csa, hca] = [LayerKind::Csa, LayerKind::Hca];
        let [csa_count, hca_count] = [csa, hca].map(|kind| self.config.layers_of(kind));
        let own = |kind: LayerKind| {
            let rows = kind.series() * head_dim;
            [("attn.compressor.wkv", rows), ("attn.compressor.wgate", rows)]
        };
        let index_rows = csa.series() * index_head_dim;
        let of_index = [
            ("attn.indexer.compressor.wkv", index_rows),
            ("attn.indexer.compressor.wgate", index_rows),
            ("attn.indexer.weights_proj", index_heads),
        ];
        let csa_rows = Matrix::new(&[&own(csa)[..], &of_index].concat(), hidden);
        let hca_rows = Matrix::new(&own(hca), hidden);
        let wq_b = Matrix::new(&[("attn.indexer.wq_b", index_heads * index_head_dim)], q_rank);
        [
            gemm_f32("attn.compressor.csa.fused_indexer", csa_count, csa_rows),
            gemm_f32("attn.compressor.hca.fused_wkv_wgate", hca_count, hca_rows),
            gemm("attn.indexer.wq_b", csa_count, self.formats.index_q, wq_b),
        ]
    }

    /// Router, shared expert and routed experts.
    fn feed_forward(&self) -> Result<[Op; 4], InventoryError> {
        let &Config { hidden, experts, shared_experts, intermediate, .. } = self.config;
        let count = self.config.layers();
        let shared = self.formats.shared;
        let inner = Whole { op: SHARED_DOWN, axis: "k", size: shared_experts * intermediate };
        let inner_part = self.shard.tp_part(inner, inner_multiple(shared))?;

        let gate = Matrix::new(&[("ffn.gate", experts)], hidden);
        let gate_up = [("ffn.shared_experts.w1", inner_part), ("ffn.shared_experts.w3", inner_part)];
        let down = Matrix::new(&[("ffn.shared_experts.w2", hidden)], inner_part);
        Ok([
            gemm_f32("ffn.gate", count, gate),
            swiglu("ffn.shared.gate_up", count, shared, Matrix::new(&gate_up, hidden)),
            gemm(SHARED_DOWN, count, shared, down),
            self.routed_experts()?,
        ])
    }

    /// The routed experts that this rank holds, each cut like the shared one.
    fn routed_experts(&self) -> Result<Op, InventoryError> {
        let &Config { hidden, experts, top_k, intermediate, .. } = self.config;
        let weights = self.formats.experts;
        let local_experts = self.shard.ep_part(Whole { op: EXPERTS, axis: "experts", size: experts })?;
        let inner = Whole { op: EXPERTS, axis: "intermediate", size: intermediate };
        let inner_part = self.shard.tp_part(inner, inner_multiple(weights))?;

        let gate_up = [("ffn.experts.E.w1", inner_part), ("ffn.experts.E.w3", inner_part)];
        let product = Product::Experts(Experts {
            gate_up: Matrix::new(&gate_up, hidden).grouped(local_experts),
            down: Matrix::new(&[("ffn.experts.E.w2", hidden)], inner_part).grouped(local_experts),
            weights,
            experts,
            top_k,
        });
        Ok(Op { name: EXPERTS, count: self.config.layers(), product })
    }

    /// What mixes the streams before attention (or the experts): weights of each stream in, out, and to each other.
    fn hyper_connection(&self, (name, tensor): (&'static str, &'static str), count: u32, has_post: bool) -> Op {
        let &Config { hidden, streams, .. } = self.config;
        let matrix = Matrix::new(&[(tensor, streams * (2 + streams))], streams * hidden);
        Op { name, count, product: Product::Streams(Streams { matrix, has_post }) }
    }

    /// What stands once behind the last layer.
    fn tail(&self) -> Result<[Op; 2], InventoryError> {
        let &Config { hidden, streams, vocabulary, .. } = self.config;
        let vocabulary_part = self.shard.tp_part(Whole { op: HEAD, axis: "n", size: vocabulary }, 1)?;
        let mix = Matrix::new(&[(HC_HEAD, streams)], streams * hidden);
        let head = Matrix::new(&[(HEAD, vocabulary_part)], hidden);
        let mix = Product::Streams(Streams { matrix: mix, has_post: true });
        Ok([Op { name: HC_HEAD, count: 1, product: mix }, gemm_f32(HEAD, 1, head)])
    }
}

fn gemm(name: &'static str, count: u32, weights: WeightFormat, matrix: Matrix) -> Op {
    let (output, epilogue) = (Output::Bf16, Epilogue::Plain);
    Op { name, count, product: Product::Gemm(Gemm { matrix, weights, output, epilogue }) }
}

/// Gate and up rows in, SwiGLU of them out.
fn swiglu(name: &'static str, count: u32, weights: WeightFormat, matrix: Matrix) -> Op {
    let (output, epilogue) = (Output::Bf16, Epilogue::SwiGlu);
    Op { name, count, product: Product::Gemm(Gemm { matrix, weights, output, epilogue }) }
}

/// BF16 weights in every checkpoint, and an f32 result: it is compared, sampled or put through a softmax.
fn gemm_f32(name: &'static str, count: u32, matrix: Matrix) -> Op {
    let (weights, output, epilogue) = (WeightFormat::Bf16, Output::F32, Epilogue::Plain);
    Op { name, count, product: Product::Gemm(Gemm { matrix, weights, output, epilogue }) }
}

/// What a rank's inner rows of an expert must be a multiple of: FP8's blocks are not cut, and packing works on 64 k.
fn inner_multiple(format: WeightFormat) -> u32 {
    match format {
        WeightFormat::Fp8 => 128,
        WeightFormat::Nvfp4 | WeightFormat::Mxfp4 | WeightFormat::Bf16 => 64,
    }
}

/// The connection that starts the first sublayer of all.
pub(super) const HC_FIRST: &str = "hc_attn_fn.first";
/// Connections that close the layer before and start attention.
pub(super) const HC_ATTENTION: &str = "hc_attn_fn";
/// Connections between attention and the experts.
pub(super) const HC_FFN: &str = "hc_ffn_fn";
/// The connection behind the last layer.
pub(super) const HC_HEAD: &str = "hc_head_fn";

// Ops that errors name; those with one tensor are called like it.
const EXPERTS: &str = "ffn.experts";
const HEAD: &str = "head";
const SHARED_DOWN: &str = "ffn.shared.down";
const WO_A: &str = "attn.wo_a";
const WO_B: &str = "attn.wo_b";
const WQ_B: &str = "attn.wq_b";
