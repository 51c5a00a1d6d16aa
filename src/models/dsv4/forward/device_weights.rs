//! The weights of a model in device memory, packed, each with the name of what launches it.
//!
//! Parts of a fused projection are packed one below the other, each with its own alpha: what their scales were moved by
//! when packed, times the tensor scale of NVFP4. A part keeps its own scales whatever its neighbour has.

use std::sync::Arc;

use super::super::weights::{Choice, Compressor, Expert, HyperConnection, Indexer, Layer, Linear, Weights};
use super::super::{Config, LayerKind};
use super::{ForwardError, Ledger, Progress};
use crate::device::{Buffer, DevicePointer, Gpu};
use crate::dispatch::Segments;
use crate::engine::{Alphas, Content, EngineError, Matrix, Packer};
use crate::quant::{Activations, PackedLayout, WeightFormat};

/// A packed projection.
pub(super) struct Projection {
    packed: Buffer,
    pub segments: Segments,
    /// Scale of the file for activations of each part, as it stands there.
    pub input_scales: Vec<Option<f32>>,
    pub format: WeightFormat,
}

/// The routed experts of a layer.
pub(super) struct Experts {
    gate_up: Buffer,
    down: Buffer,
    up_alpha: Buffer,
    down_alpha: Buffer,
    /// Scales of the file for the activations of gate, of up and of down, by expert.
    pub input_scales: Vec<[Option<f32>; 3]>,
    pub format: WeightFormat,
}

/// Hyper-connection weights.
pub(super) struct Hyper {
    pub function: Buffer,
    pub base: Buffer,
    pub scale: Buffer,
}

/// A compressor's weights beside those of its projections.
pub(super) struct DeviceCompressor {
    pub ape: Buffer,
    pub norm: Buffer,
}

/// The indexer's weights.
pub(super) struct DeviceIndexer {
    pub wq_b: Projection,
    pub compressor: DeviceCompressor,
}

/// How experts are chosen.
pub(super) enum DeviceChoice {
    Score(Buffer),
    Hash(Buffer),
}

/// One layer.
pub(super) struct DeviceLayer {
    pub kind: LayerKind,
    pub hc_attn: Hyper,
    pub attn_norm: Buffer,
    pub sink: Buffer,
    pub wqa_wkv: Projection,
    pub q_norm: Buffer,
    pub kv_norm: Buffer,
    pub wq_b: Projection,
    pub wo_a: Projection,
    pub wo_b: Projection,
    /// Projections of the compressor, then of the indexer's with its weights, where the layer has them.
    pub compressor_inputs: Option<Projection>,
    pub compressor: Option<DeviceCompressor>,
    pub indexer: Option<DeviceIndexer>,
    pub hc_ffn: Hyper,
    pub ffn_norm: Buffer,
    pub gate: Projection,
    pub choice: DeviceChoice,
    pub experts: Experts,
    pub shared_gate_up: Projection,
    pub shared_down: Projection,
}

/// All weights.
pub(super) struct DeviceWeights {
    pub embed: Buffer,
    pub layers: Vec<DeviceLayer>,
    pub hc_head: Hyper,
    pub norm: Buffer,
    pub head: Projection,
}

impl Projection {
    pub fn new(packed: Buffer, segments: Segments, input_scales: Vec<Option<f32>>, format: WeightFormat) -> Self {
        Self { packed, segments, input_scales, format }
    }

    pub fn pointer(&self) -> DevicePointer {
        self.packed.pointer()
    }
}

impl Experts {
    /// Of gate-up and down, their alphas, and each expert's scales of activations.
    pub fn new(
        [gate_up, down]: [Buffer; 2],
        [up_alpha, down_alpha]: [Buffer; 2],
        input_scales: Vec<[Option<f32>; 3]>,
        format: WeightFormat,
    ) -> Self {
        Self { gate_up, down, up_alpha, down_alpha, input_scales, format }
    }

    pub fn gate_up(&self) -> DevicePointer {
        self.gate_up.pointer()
    }

    pub fn down(&self) -> DevicePointer {
        self.down.pointer()
    }

    pub fn up_alpha(&self) -> DevicePointer {
        self.up_alpha.pointer()
    }

    pub fn down_alpha(&self) -> DevicePointer {
        self.down_alpha.pointer()
    }
}

/// Uploads and packs; writes down where everything went.
pub(super) struct Uploader<'a> {
    pub gpu: &'a Arc<Gpu>,
    pub packer: &'a mut Packer,
    pub config: &'a Config,
    pub ledger: &'a mut Ledger,
    pub progress: &'a mut dyn Progress,
    /// Whether MXFP4 experts are packed as NVFP4.
    pub has_nvfp4_experts: bool,
}

impl Uploader<'_> {
    /// Everything.
    pub fn weights(&mut self, weights: &Weights<'_>) -> Result<DeviceWeights, ForwardError> {
        let embed = Buffer::of(self.gpu, weights.embed.codes)?;
        self.note(&[&weights.embed], "embed", embed.pointer());
        let mut layers = Vec::with_capacity(weights.layers.len());
        for (layer_idx, layer) in weights.layers.iter().enumerate() {
            layers.push(self.layer(layer_idx, layer)?);
        }
        let hc_head = self.hyper(&weights.hc_head)?;
        let norm = Buffer::of(self.gpu, &weights.norm)?;
        let head = self.projection("head", &[&weights.head])?;
        Ok(DeviceWeights { embed, layers, hc_head, norm, head })
    }

    fn layer(&mut self, layer_idx: usize, layer: &Layer<'_>) -> Result<DeviceLayer, ForwardError> {
        let at = |op: &str| format!("layers.{layer_idx}.{op}");
        let (attention, ffn) = (&layer.attention, &layer.feed_forward);
        let compressor = attention.compressor.as_ref();
        let indexer = attention.indexer.as_ref();
        let compressor_inputs = compressor.map(|own| self.compressor_inputs(layer.kind, own, indexer, &at));
        Ok(DeviceLayer {
            kind: layer.kind,
            hc_attn: self.hyper(&layer.hc_attn)?,
            attn_norm: Buffer::of(self.gpu, &layer.attn_norm)?,
            sink: Buffer::of(self.gpu, &attention.sink)?,
            wqa_wkv: self.projection(&at("attn.fused_wqa_wkv"), &[&attention.wq_a, &attention.wkv])?,
            q_norm: Buffer::of(self.gpu, &attention.q_norm)?,
            kv_norm: Buffer::of(self.gpu, &attention.kv_norm)?,
            wq_b: self.projection(&at("attn.wq_b"), &[&attention.wq_b])?,
            wo_a: self.grouped(&at("attn.wo_a"), &attention.wo_a)?,
            wo_b: self.projection(&at("attn.wo_b"), &[&attention.wo_b])?,
            compressor_inputs: compressor_inputs.transpose()?,
            compressor: compressor.map(|compressor| self.compressor(compressor)).transpose()?,
            indexer: match indexer {
                Some(indexer) => Some(DeviceIndexer {
                    wq_b: self.projection(&at("attn.indexer.wq_b"), &[&indexer.wq_b])?,
                    compressor: self.compressor(&indexer.compressor)?,
                }),
                None => None,
            },
            hc_ffn: self.hyper(&layer.hc_ffn)?,
            ffn_norm: Buffer::of(self.gpu, &layer.ffn_norm)?,
            gate: self.projection(&at("ffn.gate"), &[&ffn.gate])?,
            choice: match &ffn.choice {
                Choice::Score(bias) => DeviceChoice::Score(Buffer::of(self.gpu, bias)?),
                Choice::Hash(table) => DeviceChoice::Hash(Buffer::of(self.gpu, table)?),
            },
            experts: self.experts(&at("ffn.experts"), &ffn.experts)?,
            shared_gate_up: self.gate_up(&at("ffn.shared.gate_up"), &ffn.shared)?,
            shared_down: self.projection(&at("ffn.shared.down"), &[&ffn.shared.w2])?,
        })
    }

    fn hyper(&mut self, hyper: &HyperConnection) -> Result<Hyper, ForwardError> {
        Ok(Hyper {
            function: Buffer::of(self.gpu, &hyper.function)?,
            base: Buffer::of(self.gpu, &hyper.base)?,
            scale: Buffer::of(self.gpu, &hyper.scale)?,
        })
    }

    /// All of a layer's products that entries are made and chosen from: they read the same input.
    fn compressor_inputs(
        &mut self,
        kind: LayerKind,
        own: &Compressor<'_>,
        indexer: Option<&Indexer<'_>>,
        at: &dyn Fn(&str) -> String,
    ) -> Result<Projection, ForwardError> {
        let mut parts = vec![&own.wkv, &own.wgate];
        if let Some(indexer) = indexer {
            parts.extend([&indexer.compressor.wkv, &indexer.compressor.wgate, &indexer.weights_proj]);
        }
        self.projection(&at(compressor_op(kind)), &parts)
    }

    fn compressor(&mut self, compressor: &Compressor<'_>) -> Result<DeviceCompressor, ForwardError> {
        Ok(DeviceCompressor {
            ape: Buffer::of(self.gpu, &compressor.ape)?,
            norm: Buffer::of(self.gpu, &compressor.norm)?,
        })
    }

    /// Parts that read the same input, one below the other.
    fn projection(&mut self, op: &str, parts: &[&Linear<'_>]) -> Result<Projection, ForwardError> {
        let format = same_format(parts)?;
        let layout = PackedLayout::of(format, Activations::A16);
        let bytes = parts.iter().map(|part| layout.packed_bytes(part.n, part.k)).sum();
        let packed = self.buffer(op, bytes)?;
        let (mut at, mut ranges) = (packed.pointer(), Vec::new());
        for (part_idx, part) in parts.iter().enumerate() {
            if part_idx + 1 < parts.len() && !part.n.is_multiple_of(64) {
                return Err(ForwardError::PartRows { name: part.name.clone(), rows: part.n });
            }
            let alpha = self.packer.pack(&[matrix(part)], Alphas::Own, at)?[0];
            ranges.push((part.n as u32, alpha * part.tensor_scale));
            at += layout.packed_bytes(part.n, part.k) as u64;
        }
        self.note(parts, op, packed.pointer());
        let input_scales = parts.iter().map(|part| part.input_scale).collect();
        Ok(Projection { packed, segments: Segments::of(&ranges), input_scales, format })
    }

    /// `o_groups` matrices that stand one below the other in the file, with one alpha.
    fn grouped(&mut self, op: &str, linear: &Linear<'_>) -> Result<Projection, ForwardError> {
        let groups = self.config.o_groups as usize;
        let (n, layout) = (linear.n / groups, PackedLayout::of(linear.format, Activations::A16));
        let code_bytes = linear.codes.len() / groups;
        let matrices: Vec<Matrix<'_>> = (0..groups)
            .map(|group| Matrix {
                n,
                content: Content::File {
                    codes: vec![&linear.codes[group * code_bytes..(group + 1) * code_bytes]],
                    scales: vec![scales_of_rows(linear, group * n, n)],
                },
                ..matrix(linear)
            })
            .collect();
        let packed = self.buffer(op, groups * layout.packed_bytes(n, linear.k))?;
        let alpha = self.packer.pack(&matrices, Alphas::Joint, packed.pointer())?[0];
        self.note(&[linear], op, packed.pointer());
        let segments = Segments::uniform(alpha * linear.tensor_scale);
        Ok(Projection { packed, segments, input_scales: vec![linear.input_scale], format: linear.format })
    }

    fn gate_up(&mut self, op: &str, expert: &Expert<'_>) -> Result<Projection, ForwardError> {
        let parts = [&expert.w1, &expert.w3];
        let format = same_format(&parts)?;
        let bytes = PackedLayout::of(format, Activations::A16).packed_bytes(2 * expert.w1.n, expert.w1.k);
        let packed = self.buffer(op, bytes)?;
        let alpha = self.packer.pack(&[gate_up_matrix(expert)], Alphas::Own, packed.pointer())?[0];
        self.note(&parts, op, packed.pointer());
        let segments = Segments::gate_up(alpha * expert.w1.tensor_scale, alpha * expert.w3.tensor_scale);
        let input_scales = parts.map(|part| part.input_scale).to_vec();
        Ok(Projection { packed, segments, input_scales, format })
    }

    fn experts(&mut self, op: &str, experts: &[Expert<'_>]) -> Result<Experts, ForwardError> {
        // A layer at a time, for the new scales take memory.
        let converted;
        let is_mxfp4 = experts.iter().all(|expert| expert.w1.format == WeightFormat::Mxfp4);
        let experts = match self.has_nvfp4_experts && is_mxfp4 {
            true => {
                converted = experts.iter().map(as_nvfp4).collect::<Result<Vec<_>, _>>()?;
                &converted
            }
            false => experts,
        };
        let all: Vec<&Linear<'_>> = experts.iter().flat_map(|expert| [&expert.w1, &expert.w3, &expert.w2]).collect();
        let format = same_format(&all)?;
        let (layout, first) = (PackedLayout::of(format, Activations::A16), &experts[0]);
        let up_bytes = experts.len() * layout.packed_bytes(2 * first.w1.n, first.w1.k);
        let gate_up = self.buffer(op, up_bytes)?;
        let down = self.buffer(op, experts.len() * layout.packed_bytes(first.w2.n, first.w2.k))?;
        let up_matrices: Vec<_> = experts.iter().map(gate_up_matrix).collect();
        let down_matrices: Vec<_> = experts.iter().map(|expert| matrix(&expert.w2)).collect();
        let up = self.packer.pack(&up_matrices, Alphas::Own, gate_up.pointer())?;
        let downs = self.packer.pack(&down_matrices, Alphas::Own, down.pointer())?;
        let scaled = experts.iter().zip(&up);
        let up_alpha: Vec<f32> = scaled
            .flat_map(|(expert, alpha)| [alpha * expert.w1.tensor_scale, alpha * expert.w3.tensor_scale])
            .collect();
        let down_alpha: Vec<f32> =
            experts.iter().zip(&downs).map(|(expert, alpha)| alpha * expert.w2.tensor_scale).collect();
        for expert in experts {
            self.note(&[&expert.w1, &expert.w3], op, gate_up.pointer());
            self.note(&[&expert.w2], op, down.pointer());
        }
        Ok(Experts {
            gate_up,
            down,
            up_alpha: Buffer::of(self.gpu, &up_alpha)?,
            down_alpha: Buffer::of(self.gpu, &down_alpha)?,
            input_scales: experts.iter().map(input_scales).collect(),
            format,
        })
    }

    fn buffer(&self, op: &str, bytes: usize) -> Result<Buffer, ForwardError> {
        let (free, _) = self.gpu.memory()?;
        Buffer::new(self.gpu, bytes)
            .map_err(|_| EngineError::Memory { what: format!("`{op}`"), needed: bytes as u64, free }.into())
    }

    /// Writes down that `parts` went to `op`'s buffer, and tells the progress.
    fn note(&mut self, parts: &[&Linear<'_>], op: &str, buffer: DevicePointer) {
        for part in parts {
            self.ledger.add(&part.name, op, buffer);
            self.progress.add((part.codes.len() + part.scales.len()) as u64);
        }
    }
}

/// The op that launches a layer's [`DeviceLayer::compressor_inputs`].
pub(super) fn compressor_op(kind: LayerKind) -> &'static str {
    match kind {
        LayerKind::Hca => "attn.compressor.hca.fused_wkv_wgate",
        _ => "attn.compressor.csa.fused_indexer",
    }
}

fn input_scales(expert: &Expert<'_>) -> [Option<f32>; 3] {
    [&expert.w1, &expert.w3, &expert.w2].map(|linear| linear.input_scale)
}

/// An expert whose scales are two NVFP4 scales each; the values are the same.
fn as_nvfp4<'a>(expert: &Expert<'a>) -> Result<Expert<'a>, ForwardError> {
    let convert = |linear: &Linear<'a>| {
        linear.to_nvfp4().map_err(|error| EngineError::Packing { name: linear.name.clone(), reason: error.to_string() })
    };
    Ok(Expert { w1: convert(&expert.w1)?, w3: convert(&expert.w3)?, w2: convert(&expert.w2)? })
}

fn matrix<'a>(linear: &'a Linear<'_>) -> Matrix<'a> {
    let content = Content::File { codes: vec![linear.codes], scales: vec![&linear.scales] };
    Matrix { name: &linear.name, format: linear.format, n: linear.n, k: linear.k, is_gate_up: false, content }
}

fn gate_up_matrix<'a>(expert: &'a Expert<'_>) -> Matrix<'a> {
    let content = Content::File {
        codes: vec![expert.w1.codes, expert.w3.codes],
        scales: vec![&expert.w1.scales, &expert.w3.scales],
    };
    Matrix { n: 2 * expert.w1.n, is_gate_up: true, content, ..matrix(&expert.w1) }
}

/// Block scales of some rows. FP8's blocks have 128 rows: the loader has seen to it that they do not straddle groups,
/// unless all groups share one.
fn scales_of_rows<'a>(linear: &'a Linear<'_>, first_row: usize, rows: usize) -> &'a [u8] {
    let (first, count, columns) = match linear.format {
        WeightFormat::Nvfp4 => (first_row, rows, linear.k / 16),
        WeightFormat::Mxfp4 => (first_row, rows, linear.k / 32),
        WeightFormat::Fp8 => (first_row / 128, rows.div_ceil(128), linear.k.div_ceil(128)),
        WeightFormat::Bf16 => (0, 0, 0),
    };
    &linear.scales[first * columns..(first + count) * columns]
}

fn same_format(parts: &[&Linear<'_>]) -> Result<WeightFormat, ForwardError> {
    let first = parts[0];
    match parts.iter().find(|part| part.format != first.format) {
        None => Ok(first.format),
        Some(other) => Err(ForwardError::MixedFormats {
            first: first.name.clone(),
            expected: first.format,
            name: other.name.clone(),
            found: other.format,
        }),
    }
}
