//! Random weights of full shape, made on the device: speed can be measured without 160 GB of files.
//!
//! Every packed byte is a legal code or scale, and alphas keep sums at the size of their inputs, so that activations
//! stay finite through any number of layers. What such a model says means nothing.

use std::sync::Arc;

use super::buffers::EntryColumns;
use super::device_weights::{
    DeviceChoice, DeviceCompressor, DeviceIndexer, DeviceLayer, DeviceWeights, Experts, Hyper, Projection,
};
use super::load::Builder;
use super::{Forward, ForwardError, ForwardOptions, Ledger};
use crate::device::{Buffer, Gpu};
use crate::dispatch::{PrepareOptions, Segments};
use crate::engine::{Alphas, Content, Matrix, Packer};
use crate::kernels::random_mean_square;
use crate::models::dsv4::{Config, Formats, LayerKind};
use crate::quant::{Activations, PackedLayout, WeightFormat};

impl Forward {
    /// A model of `config` with random weights in `formats`.
    ///
    /// # Errors
    /// As [`Forward::load`].
    pub fn synthetic(
        gpu: &Arc<Gpu>,
        (config, formats): (&Config, Formats),
        options: &ForwardOptions,
        kernels: &PrepareOptions,
    ) -> Result<Self, ForwardError> {
        let fill = |gpu: &Arc<Gpu>, packer: &mut Packer, _: &mut Ledger| {
            Synthesiser { gpu, packer, config, formats, seed: SEED }.weights()
        };
        Builder::new(gpu, config, formats, options)?.build(kernels, fill)
    }
}

struct Synthesiser<'a> {
    gpu: &'a Arc<Gpu>,
    packer: &'a mut Packer,
    config: &'a Config,
    formats: Formats,
    seed: u64,
}

impl Synthesiser<'_> {
    fn weights(&mut self) -> Result<DeviceWeights, ForwardError> {
        let &Config { vocabulary, hidden, streams, .. } = self.config;
        let embed = self.embedding(vocabulary, hidden)?;
        let kinds = self.config.layer_kinds.clone();
        let layers = kinds.iter().map(|kind| self.layer(*kind)).collect::<Result<_, _>>()?;
        Ok(DeviceWeights {
            embed,
            layers,
            hc_head: self.hyper(streams, 1)?,
            norm: self.ones(hidden)?,
            head: self.projection(WeightFormat::Bf16, &[vocabulary], hidden)?,
        })
    }

    fn layer(&mut self, kind: LayerKind) -> Result<DeviceLayer, ForwardError> {
        let config = self.config.clone();
        let (hidden, rows) = (config.hidden, config.streams * (2 + config.streams));
        let Formats { attention, wo_a, index_q, shared, .. } = self.formats;
        let z_len = config.o_groups * config.o_rank;
        let inner = config.shared_experts * config.intermediate;
        Ok(DeviceLayer {
            kind,
            hc_attn: self.hyper(rows, 3)?,
            attn_norm: self.ones(hidden)?,
            sink: Buffer::zeros(self.gpu, 4 * config.heads as usize)?,
            wqa_wkv: self.projection(attention, &[config.q_rank, config.head_dim], hidden)?,
            q_norm: self.ones(config.q_rank)?,
            kv_norm: self.ones(config.head_dim)?,
            wq_b: self.projection(attention, &[config.heads * config.head_dim], config.q_rank)?,
            wo_a: self
                .grouped(wo_a, [config.o_groups, config.o_rank, config.heads * config.head_dim / config.o_groups])?,
            wo_b: self.projection(attention, &[hidden], z_len)?,
            compressor_inputs: match kind {
                LayerKind::Swa => None,
                _ => Some(self.projection(WeightFormat::Bf16, &EntryColumns::of(&config, kind).parts(), hidden)?),
            },
            compressor: match kind {
                LayerKind::Swa => None,
                _ => Some(self.compressor(kind, config.head_dim)?),
            },
            indexer: match kind {
                LayerKind::Csa => Some(DeviceIndexer {
                    wq_b: self.projection(index_q, &[config.index_heads * config.index_head_dim], config.q_rank)?,
                    compressor: self.compressor(kind, config.index_head_dim)?,
                }),
                _ => None,
            },
            hc_ffn: self.hyper(rows, 3)?,
            ffn_norm: self.ones(hidden)?,
            gate: self.projection(WeightFormat::Bf16, &[config.experts], hidden)?,
            choice: self.choice()?,
            experts: self.experts()?,
            shared_gate_up: self.gate_up(shared, inner)?,
            shared_down: self.projection(shared, &[hidden], inner)?,
        })
    }

    fn next_seed(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.seed
    }

    fn ones(&self, count: u32) -> Result<Buffer, ForwardError> {
        Ok(Buffer::of(self.gpu, &vec![1.0f32; count as usize])?)
    }

    /// The raw rows of the embedding are not packed: the first rows, over and over, would do, but each is its own.
    fn embedding(&mut self, vocabulary: u32, hidden: u32) -> Result<Buffer, ForwardError> {
        let table = Buffer::new(self.gpu, 2 * vocabulary as usize * hidden as usize)?;
        let seed = self.next_seed();
        self.packer.fill_bf16(&table, seed)?;
        Ok(table)
    }

    fn hyper(&mut self, rows: u32, scales: usize) -> Result<Hyper, ForwardError> {
        let columns = self.config.streams * self.config.hidden;
        // Small numbers of either sign: mixing weights near those of zero products, none the same.
        let mut state = self.next_seed() as u32 | 1;
        let function: Vec<f32> = (0..rows * columns)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                (state as f32 / u32::MAX as f32 - 0.5) / (columns as f32).sqrt()
            })
            .collect();
        Ok(Hyper {
            function: Buffer::of(self.gpu, &function)?,
            base: Buffer::zeros(self.gpu, 4 * rows as usize)?,
            scale: Buffer::of(self.gpu, &vec![1.0f32; scales])?,
        })
    }

    fn compressor(&mut self, kind: LayerKind, head_dim: u32) -> Result<DeviceCompressor, ForwardError> {
        let width = kind.series() * head_dim;
        Ok(DeviceCompressor {
            ape: Buffer::zeros(self.gpu, 4 * (kind.ratio() * width) as usize)?,
            norm: self.ones(head_dim)?,
        })
    }

    /// Every layer routes by token id, to experts drawn at random: a random gate would send most tokens to the same
    /// few, which no trained model does. The gate's product is computed all the same, for its weights.
    fn choice(&mut self) -> Result<DeviceChoice, ForwardError> {
        let &Config { vocabulary, experts, top_k, .. } = self.config;
        let mut state = self.next_seed();
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((u64::from(experts) * (state >> 32)) >> 32) as i32
        };
        let mut table: Vec<i32> = Vec::with_capacity((vocabulary * top_k) as usize);
        for _ in 0..vocabulary {
            let first = table.len();
            while table.len() < first + top_k as usize {
                let expert = draw();
                if !table[first..].contains(&expert) {
                    table.push(expert);
                }
            }
        }
        Ok(DeviceChoice::Hash(Buffer::of(self.gpu, &table)?))
    }

    fn projection(&mut self, format: WeightFormat, parts: &[u32], k: u32) -> Result<Projection, ForwardError> {
        let n: u32 = parts.iter().sum();
        let packed =
            Buffer::new(self.gpu, PackedLayout::of(format, Activations::A16).packed_bytes(n as usize, k as usize))?;
        let alpha = self.pack(&[self.matrix(format, [n, k], false)], &packed)?[0] * size_of_sum(format, k);
        let segments = Segments::of(&parts.iter().map(|rows| (*rows, alpha)).collect::<Vec<_>>());
        Ok(Projection::new(packed, segments, vec![None; parts.len()], format))
    }

    fn grouped(&mut self, format: WeightFormat, [groups, n, k]: [u32; 3]) -> Result<Projection, ForwardError> {
        let bytes = PackedLayout::of(format, Activations::A16).packed_bytes(n as usize, k as usize);
        let packed = Buffer::new(self.gpu, groups as usize * bytes)?;
        let matrices: Vec<_> = (0..groups).map(|_| self.matrix(format, [n, k], false)).collect();
        let seeded = self.seeded(matrices);
        let alpha = self.packer.pack(&seeded, Alphas::Joint, packed.pointer())?[0] * size_of_sum(format, k);
        Ok(Projection::new(packed, Segments::uniform(alpha), vec![None], format))
    }

    fn gate_up(&mut self, format: WeightFormat, inner: u32) -> Result<Projection, ForwardError> {
        let hidden = self.config.hidden;
        let packed = Buffer::new(
            self.gpu,
            PackedLayout::of(format, Activations::A16).packed_bytes(2 * inner as usize, hidden as usize),
        )?;
        let alpha = self.pack(&[self.matrix(format, [2 * inner, hidden], true)], &packed)?[0];
        let alpha = alpha * size_of_sum(format, hidden);
        Ok(Projection::new(packed, Segments::gate_up(alpha, alpha), vec![None; 2], format))
    }

    fn experts(&mut self) -> Result<Experts, ForwardError> {
        let &Config { experts, hidden, intermediate, .. } = self.config;
        let (format, count) = (self.formats.experts, experts as usize);
        let layout = PackedLayout::of(format, Activations::A16);
        let gate_up = Buffer::new(self.gpu, count * layout.packed_bytes(2 * intermediate as usize, hidden as usize))?;
        let down = Buffer::new(self.gpu, count * layout.packed_bytes(hidden as usize, intermediate as usize))?;
        let ups: Vec<_> = (0..count).map(|_| self.matrix(format, [2 * intermediate, hidden], true)).collect();
        let downs: Vec<_> = (0..count).map(|_| self.matrix(format, [hidden, intermediate], false)).collect();
        let up_alpha = self.pack(&ups, &gate_up)?;
        let down_alpha = self.pack(&downs, &down)?;
        let (up_size, down_size) = (size_of_sum(format, hidden), size_of_sum(format, intermediate));
        let up_alpha: Vec<f32> = up_alpha.iter().flat_map(|alpha| [alpha * up_size; 2]).collect();
        let down_alpha: Vec<f32> = down_alpha.iter().map(|alpha| alpha * down_size).collect();
        let alphas = [Buffer::of(self.gpu, &up_alpha)?, Buffer::of(self.gpu, &down_alpha)?];
        Ok(Experts::new([gate_up, down], alphas, vec![[None; 3]; count], format))
    }

    fn matrix(&self, format: WeightFormat, [n, k]: [u32; 2], is_gate_up: bool) -> Matrix<'static> {
        let content = Content::Random(0);
        Matrix { name: "random weights", format, n: n as usize, k: k as usize, is_gate_up, content }
    }

    /// The same matrices, each with a seed of its own.
    fn seeded(&mut self, mut matrices: Vec<Matrix<'static>>) -> Vec<Matrix<'static>> {
        matrices.iter_mut().for_each(|matrix| matrix.content = Content::Random(self.next_seed()));
        matrices
    }

    fn pack(&mut self, matrices: &[Matrix<'static>], to: &Buffer) -> Result<Vec<f32>, ForwardError> {
        let seeded = self.seeded(matrices.to_vec());
        Ok(self.packer.pack(&seeded, Alphas::Own, to.pointer())?)
    }
}

/// What keeps a sum over `k` random weights at the size of what is summed.
fn size_of_sum(format: WeightFormat, k: u32) -> f32 {
    (1.0 / (f64::from(k) * random_mean_square(format)).sqrt()) as f32
}

const SEED: u64 = 20_261_123;
