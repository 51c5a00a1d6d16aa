//! One step through the model: every launch in order, each told to the observer.
//!
//! Section 2 of the specification, op by op; `reference` has the same ops in plain f32. The pass only launches: what it
//! launches was planned, compiled and allocated before, so that it can be captured into a graph as it is. Two ops that
//! need nothing of each other may have changed places, so that one can stand beside the other (`branch`).

use cudarc::driver::sys::CUstream;

use super::super::LayerKind;
use super::super::inventory::{HC_ATTENTION, HC_FFN, HC_FIRST, HC_HEAD};
use super::buffers::{EntryColumns, LayerCache, Part};
use super::device_weights::{DeviceChoice, DeviceCompressor, DeviceLayer, Hyper, Projection, compressor_op};
use super::ops::{Bucket, Kernel};
use super::{ForwardError, Model};
use crate::device::{Buffer, DevicePointer, Stream, Value};
use crate::dispatch::{LaunchArgs, Segments};
use crate::engine::{Element, Observer, OpId, View};
use crate::problem::{Output, Problem};

/// A step of one bucket on its way through the model.
pub(super) struct Pass<'a> {
    pub model: &'a Model,
    pub bucket: &'a Bucket,
    /// Tokens, where the host knows them; in a captured graph the bucket.
    pub tokens: u32,
    pub stream: CUstream,
    pub observer: &'a mut dyn Observer,
    pub layer: Option<usize>,
    pub imposed: Option<&'a Imposed>,
    /// The stream, where launches are captured and may stand beside each other.
    pub branches_of: Option<&'a Stream>,
    /// Whether what is launched now stands beside the others.
    pub is_beside: bool,
}

/// Choices of a layer that are made for it, so that it can be compared with another implementation of the same layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imposed {
    /// `[tokens, top_k]`.
    pub experts: Vec<i32>,
    /// `[tokens, top_k]`, weights of these experts.
    pub routing: Vec<f32>,
    /// `[tokens, index_top_k]`, ascending, then -1.
    pub picks: Vec<i32>,
}

/// Parameters of what is kept of a step.
struct StepRows {
    keys: [Value; 2],
    own: [Value; 3],
    index: [Value; 3],
    strides: [Value; 2],
}

/// The two launches of a connection: a mix of streams by its op in the inventory, and what reads its sums.
#[derive(Clone, Copy)]
struct Connect {
    mix: &'static str,
    pre: Kernel,
}

const FIRST: Connect = Connect { mix: HC_FIRST, pre: Kernel::FirstPre };
const LAYER: Connect = Connect { mix: HC_ATTENTION, pre: Kernel::Pre };
const FEED_FORWARD: Connect = Connect { mix: HC_FFN, pre: Kernel::Pre };
const HEAD: Connect = Connect { mix: HC_HEAD, pre: Kernel::HeadPre };

/// A matrix of activations: where it begins, and elements between rows.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub pointer: DevicePointer,
    pub stride: u32,
}

impl Rows {
    pub fn of(buffer: &Buffer, stride: u32) -> Self {
        Self { pointer: buffer.pointer(), stride }
    }
}

impl<'a> Pass<'a> {
    /// A step of up to `tokens` tokens, one launch behind the other.
    pub fn new(
        model: &'a Model,
        (bucket, tokens): (&'a Bucket, u32),
        stream: CUstream,
        observer: &'a mut dyn Observer,
    ) -> Self {
        Self {
            model,
            bucket,
            tokens,
            stream,
            observer,
            layer: None,
            imposed: None,
            branches_of: None,
            is_beside: false,
        }
    }
}

impl Pass<'_> {
    /// From token ids to the normalised vectors that the head reads, in `x`.
    pub fn run(&mut self) -> Result<(), ForwardError> {
        let (buffers, weights) = (&self.model.buffers, &self.model.weights);
        let ids = Value::Pointer(buffers.ints.pointer(Part::TokenIds));
        let hidden = self.model.config.hidden;
        self.layer = None;
        let streams = self.streams_view();
        self.op(Kernel::Embed, "embed", &[streams], |count, m| {
            vec![(&weights.embed).into(), ids, (&buffers.streams).into(), count, m]
        })?;
        for layer_idx in 0..weights.layers.len() {
            let start = if layer_idx == 0 { FIRST } else { LAYER };
            self.whole_layer(layer_idx, start)?;
        }
        self.layer = None;
        self.connect(HEAD, "hc_head", &weights.hc_head, &weights.norm)?;
        debug_assert_eq!(buffers.x.bytes(), 2 * (self.model.options.chunk * hidden) as usize);
        Ok(())
    }

    /// One layer by itself, on the streams that lie in their buffer, which then has what it gives.
    pub fn run_layer(&mut self, layer_idx: usize) -> Result<(), ForwardError> {
        self.whole_layer(layer_idx, FIRST)?;
        // Any connection closes the layer; what it starts is of no use here.
        let weights = &self.model.weights;
        self.connect(HEAD, "hc_head", &weights.hc_head, &weights.norm)
    }

    fn whole_layer(&mut self, layer_idx: usize, start: Connect) -> Result<(), ForwardError> {
        self.layer = Some(layer_idx);
        self.attention_layer(layer_idx, start)?;
        self.feed_forward_layer(layer_idx)
    }

    fn attention_layer(&mut self, layer_idx: usize, start: Connect) -> Result<(), ForwardError> {
        let (model, buffers) = (self.model, &self.model.buffers);
        let (layer, cache) = (&model.weights.layers[layer_idx], &model.caches.layers[layer_idx]);
        let config = &model.config;
        self.connect(start, "hc_attn", &layer.hc_attn, &layer.attn_norm)?;
        let connected = self.place()?;
        let x = Rows::of(&buffers.x, config.hidden);
        let entries = self.beside(connected, |pass| pass.entries(layer, cache))?;
        let qkv = Rows::of(&buffers.qkv, config.q_rank + config.head_dim);
        self.split_linear(["attn.fused_wqa_wkv", "attn.wq_a", "attn.wkv"], &layer.wqa_wkv, x, qkv)?;
        self.qkv_norm(layer)?;
        let (qr, q) = (Rows::of(&buffers.qr, config.q_rank), Rows::of(&buffers.q, config.heads * config.head_dim));
        let others = match &layer.indexer {
            Some(indexer) => {
                let index_q = Rows::of(&buffers.index_q, config.index_heads * config.index_head_dim);
                self.linear("attn.indexer.wq_b", &indexer.wq_b, qr, index_q)?;
                let asked = self.place()?;
                self.beside(asked, |pass| {
                    pass.join(entries)?;
                    pass.pick(layer, cache)
                })?
            }
            None => entries,
        };
        self.linear("attn.wq_b", &layer.wq_b, qr, q)?;
        self.join(others)?;
        self.attend(layer, cache)?;

        let (o, z) = (Rows::of(&buffers.o, q.stride), Rows::of(&buffers.z, config.o_groups * config.o_rank));
        // Weights only in every mode: its input is never rounded.
        let wo_a = self.problem("attn.wo_a").clone();
        self.gemm("attn.wo_a", &wo_a, (layer.wo_a.pointer(), layer.wo_a.segments), [o, z])?;
        self.linear("attn.wo_b", &layer.wo_b, z, Rows::of(&buffers.y, config.hidden))
    }

    fn feed_forward_layer(&mut self, layer_idx: usize) -> Result<(), ForwardError> {
        let (model, buffers) = (self.model, &self.model.buffers);
        let layer = &model.weights.layers[layer_idx];
        let config = &model.config;
        self.connect(FEED_FORWARD, "hc_ffn", &layer.hc_ffn, &layer.ffn_norm)?;
        let x = Rows::of(&buffers.x, config.hidden);
        self.linear("ffn.gate", &layer.gate, x, Rows::of(&buffers.gate_logits, config.experts))?;
        let scored = self.place()?;
        self.route(layer)?;
        if let Some(imposed) = self.imposed {
            // The launches write first.
            self.model.gpu.synchronize()?;
            self.model.buffers.experts.upload(&imposed.experts)?;
            self.model.buffers.routing.upload(&imposed.routing)?;
        }
        let shared = self.beside(scored, |pass| {
            let inner = Rows::of(&buffers.shared_h, config.shared_experts * config.intermediate);
            pass.linear("ffn.shared.gate_up", &layer.shared_gate_up, x, inner)?;
            pass.linear("ffn.shared.down", &layer.shared_down, inner, Rows::of(&buffers.shared_y, config.hidden))
        })?;
        self.experts(layer, x)?;
        self.join(shared)
    }

    /// Closes the sublayer before and starts the next: streams, mixing values, and the normalised input in `x`.
    fn connect(
        &mut self,
        Connect { mix, pre }: Connect,
        name: &'static str,
        hyper: &Hyper,
        norm: &Buffer,
    ) -> Result<(), ForwardError> {
        let buffers = &self.model.buffers;
        let (mix_name, pre_name) = match name {
            "hc_attn" => ("hc_attn.mix", "hc_attn.pre"),
            "hc_ffn" => ("hc_ffn.mix", "hc_ffn.pre"),
            _ => ("hc_head.mix", "hc_head.pre"),
        };
        // Behind attention there is one output, behind the experts there are two.
        let second = if name == "hc_ffn" { 0 } else { buffers.shared_y.pointer() };
        let (streams, partials) = (buffers.streams.pointer(), buffers.partials.pointer());
        let args = LaunchArgs {
            streams,
            mixed_streams: streams,
            activations: buffers.y.pointer(),
            more_activations: second,
            mixing: buffers.mix.pointer(),
            weights: hyper.function.pointer(),
            output: partials,
            tokens: self.bucket.m,
            tokens_on_device: self.count(),
            ..LaunchArgs::default()
        };
        let (problem, streams_view) = (self.problem(mix).clone(), self.streams_view());
        self.launch(mix_name, &problem, args, &[streams_view])?;
        let (streams, partials) = (Value::Pointer(streams), Value::Pointer(partials));
        let x = self.view("x", &buffers.x, self.model.config.hidden, Element::Bf16);
        self.op(pre, pre_name, &[x], |count, m| {
            let mix_out = if pre == Kernel::HeadPre { Value::Pointer(0) } else { (&buffers.mix).into() };
            let (base, scale) = ((&hyper.base).into(), (&hyper.scale).into());
            vec![streams, partials, base, scale, norm.into(), (&buffers.x).into(), mix_out, count, m]
        })
    }

    fn qkv_norm(&mut self, layer: &DeviceLayer) -> Result<(), ForwardError> {
        let (model, buffers) = (self.model, &self.model.buffers);
        let (rope, positions) = (model.caches.rope(layer.kind), self.ints(Part::Positions));
        let views = [
            self.view("qr", &buffers.qr, model.config.q_rank, Element::Bf16),
            self.view("kv", &buffers.kv_step, model.config.head_dim, Element::Bf16),
        ];
        self.op(Kernel::QkvNorm, "attn.qkv_norm", &views, |count, m| {
            let norms = [(&layer.q_norm).into(), (&layer.kv_norm).into()];
            let outputs = [(&buffers.qr).into(), (&buffers.kv_step).into(), count, m];
            [&[(&buffers.qkv).into()], &norms[..], &[rope.into(), positions], &outputs].concat()
        })
    }

    fn rotate(
        &mut self,
        kernel: Kernel,
        name: &'static str,
        kind: LayerKind,
        (q, columns): (&Buffer, u32),
    ) -> Result<(), ForwardError> {
        let (rope, positions) = (self.model.caches.rope(kind), self.ints(Part::Positions));
        let view = self.view("q", q, columns, Element::Bf16);
        self.op(kernel, name, &[view], |count, m| vec![q.into(), rope.into(), positions, count, m])
    }

    /// Entries that close in this step, of attention's compressor and of the indexer's, to their pages.
    fn entries(&mut self, layer: &DeviceLayer, cache: &LayerCache) -> Result<(), ForwardError> {
        let (buffers, config, kind) = (&self.model.buffers, &self.model.config, layer.kind);
        let columns = EntryColumns::of(config, kind);
        let compressed = buffers.compressed.pointer();
        if let Some(inputs) = &layer.compressor_inputs {
            let (x, d) = (Rows::of(&buffers.x, config.hidden), Rows::of(&buffers.compressed, columns.all()));
            self.linear(compressor_op(kind), inputs, x, d)?;
        }
        if let Some(compressor) = &layer.compressor {
            let close = match kind {
                LayerKind::Hca => (Kernel::CompressHca, "attn.compressor.hca"),
                _ => (Kernel::CompressCsa, "attn.compressor.csa"),
            };
            self.close_entries(close, kind, compressor, (compressed, &cache.state, &cache.pool))?;
        }
        if let Some(indexer) = &layer.indexer {
            let keys = compressed + 4 * u64::from(columns.own);
            let close = (Kernel::CompressIndex, "attn.indexer.compressor");
            self.close_entries(close, kind, &indexer.compressor, (keys, &cache.index_state, &cache.index_pool))?;
        }
        Ok(())
    }

    fn close_entries(
        &mut self,
        (kernel, name): (Kernel, &'static str),
        kind: LayerKind,
        compressor: &DeviceCompressor,
        (compressed, state, pool): (DevicePointer, &Buffer, &Buffer),
    ) -> Result<(), ForwardError> {
        let caches = &self.model.caches;
        let columns = EntryColumns::of(&self.model.config, kind).all();
        let max_pages = self.model.max_pages(kind);
        let [positions, sequences, step_start, first_row] = self.step_arrays();
        let epsilon = self.model.config.norm_epsilon;
        self.op(kernel, name, &[], |count, m| {
            let weights = [(&compressor.ape).into(), (&compressor.norm).into(), caches.rope(kind).into()];
            let pages = [state.into(), pool.into(), caches.table(kind).into()];
            let arrays = [positions, sequences, step_start, first_row, count];
            let numbers = [Value::Long(columns.into()), m, Value::Int(max_pages as i32), Value::Float(epsilon)];
            [&[Value::Pointer(compressed)], &weights[..], &pages, &arrays, &numbers].concat()
        })
    }

    /// The entries that each token of a CSA layer looks at, by the indexer's queries.
    fn pick(&mut self, layer: &DeviceLayer, cache: &LayerCache) -> Result<(), ForwardError> {
        let (model, buffers) = (self.model, &self.model.buffers);
        let config = &model.config;
        let q_columns = config.index_heads * config.index_head_dim;
        self.rotate(Kernel::RotateIndex, "attn.indexer.rotate", layer.kind, (&buffers.index_q, q_columns))?;

        let columns = EntryColumns::of(config, layer.kind);
        let weights = buffers.compressed.pointer() + 4 * u64::from(columns.own + columns.index);
        let capacity = Value::Int(super::ops::index_capacity(model.options.context) as i32);
        let max_pages = Value::Int(model.max_pages(layer.kind) as i32);
        let [positions, sequences, ..] = self.step_arrays();
        self.op(Kernel::IndexScore, "attn.indexer.score", &[], |count, m| {
            let queries = [(&buffers.index_q).into(), Value::Pointer(weights), (&cache.index_pool).into()];
            let places = [model.caches.table(layer.kind).into(), positions, sequences, (&buffers.scores).into(), count];
            [&queries[..], &places, &[Value::Long(columns.all().into()), m, max_pages, capacity]].concat()
        })?;
        let picks = self.view("picks", &buffers.picks, config.index_top_k, Element::I32);
        self.op(Kernel::TopK, "attn.indexer.top_k", &[picks], |count, m| {
            vec![(&buffers.scores).into(), positions, (&buffers.picks).into(), count, m, capacity]
        })?;
        if let Some(imposed) = self.imposed {
            self.model.gpu.synchronize()?;
            buffers.picks.upload(&imposed.picks)?;
        }
        Ok(())
    }

    fn attend(&mut self, layer: &DeviceLayer, cache: &LayerCache) -> Result<(), ForwardError> {
        let (model, buffers, kind) = (self.model, &self.model.buffers, layer.kind);
        let columns = model.config.heads * model.config.head_dim;
        let arrays = self.step_arrays();
        let (rope, max_pages) = (model.caches.rope(kind), Value::Int(model.max_pages(kind) as i32));
        let is_split = self.bucket.splits > 1;
        let o = self.view("o", &buffers.o, columns, Element::Bf16);
        let whole: &[View] = if is_split { &[] } else { &[o] };
        self.op(Kernel::Attend(kind), "attn.attend", whole, |count, m| {
            let keys = [(&buffers.q).into(), (&buffers.kv_step).into(), (&cache.kv_ring).into(), (&cache.pool).into()];
            let chosen = [model.caches.table(kind).into(), (&buffers.picks).into(), (&layer.sink).into(), rope.into()];
            let mix = (&buffers.mix).into();
            let outputs = [(&buffers.o).into(), (&buffers.attention_parts).into(), count, m, max_pages, mix];
            [&keys[..], &chosen, &arrays, &outputs].concat()
        })?;
        if !is_split {
            return self.store(layer, cache);
        }
        let splits = Value::Int(self.bucket.splits as i32);
        let StepRows { keys, own, index, strides } = self.step_rows(layer, cache);
        self.op(Kernel::AttendCombine(kind), "attn.combine", &[o], |count, m| {
            let inputs = [(&buffers.attention_parts).into(), (&layer.sink).into(), rope.into(), arrays[0]];
            let outputs = [(&buffers.o).into(), count, m, splits];
            [&inputs[..], &outputs, &keys, &own, &index, &[arrays[1]], &strides].concat()
        })
    }

    /// What later steps need of this one, where no launch does it by the way.
    fn store(&mut self, layer: &DeviceLayer, cache: &LayerCache) -> Result<(), ForwardError> {
        let [positions, sequences, ..] = self.step_arrays();
        let StepRows { keys, own, index, strides } = self.step_rows(layer, cache);
        self.op(Kernel::Store(layer.kind), "attn.store", &[], |count, m| {
            [&keys[..], &own, &index, &[positions, sequences, count], &strides, &[m]].concat()
        })
    }

    /// Rows of the step with the rings that they go to.
    fn step_rows(&self, layer: &DeviceLayer, cache: &LayerCache) -> StepRows {
        let buffers = &self.model.buffers;
        let ape = |compressor: Option<&DeviceCompressor>| compressor.map_or(Value::Pointer(0), |c| (&c.ape).into());
        let own = ape(layer.compressor.as_ref());
        let index = ape(layer.indexer.as_ref().map(|indexer| &indexer.compressor));
        let columns = EntryColumns::of(&self.model.config, layer.kind);
        let index_compressed = buffers.compressed.pointer() + 4 * u64::from(columns.own);
        StepRows {
            keys: [(&buffers.kv_step).into(), (&cache.kv_ring).into()],
            own: [(&buffers.compressed).into(), own, (&cache.state).into()],
            index: [Value::Pointer(index_compressed), index, (&cache.index_state).into()],
            strides: [Value::Long(columns.all().into()); 2],
        }
    }

    fn route(&mut self, layer: &DeviceLayer) -> Result<(), ForwardError> {
        let (config, buffers) = (&self.model.config, &self.model.buffers);
        let (kernel, bias, table) = match &layer.choice {
            DeviceChoice::Score(bias) => (Kernel::RouteByScore, bias.into(), Value::Pointer(0)),
            DeviceChoice::Hash(table) => (Kernel::RouteByHash, Value::Pointer(0), table.into()),
        };
        let ids = self.ints(Part::TokenIds);
        let views = [
            self.view("experts", &buffers.experts, config.top_k, Element::I32),
            self.view("routing", &buffers.routing, config.top_k, Element::F32),
        ];
        self.op(kernel, "ffn.route", &views, |count, m| {
            let outputs = [(&buffers.experts).into(), (&buffers.routing).into(), count, m, (&buffers.mix).into()];
            [&[(&buffers.gate_logits).into(), bias, table, ids], &outputs[..]].concat()
        })
    }

    /// The routed experts as one problem, into `y`.
    fn experts(&mut self, layer: &DeviceLayer, x: Rows) -> Result<(), ForwardError> {
        if self.model.runs_by_slot(layer.experts.format) {
            return self.experts_by_slot(layer, x);
        }
        let (config, buffers, experts) = (&self.model.config, &self.model.buffers, &layer.experts);
        let problem = self.problem("ffn.experts").clone();
        let args = LaunchArgs {
            activations: x.pointer,
            activation_stride: x.stride,
            weights: experts.gate_up(),
            down_weights: experts.down(),
            output: buffers.y.pointer(),
            output_stride: config.hidden,
            tokens: self.bucket.m,
            tokens_on_device: self.count(),
            limit: config.swiglu_limit,
            experts: buffers.experts.pointer(),
            routing: buffers.routing.pointer(),
            up_alpha: experts.up_alpha(),
            down_alpha: experts.down_alpha(),
            ..LaunchArgs::default()
        };
        let view = self.view("y", &buffers.y, config.hidden, Element::Bf16);
        self.launch("ffn.experts", &problem, args, &[view])
    }

    /// A projection of `a` into `d`. Its input is rounded before, if it is an NVFP4 one and activations are quantised.
    pub(super) fn linear(
        &mut self,
        name: &'static str,
        projection: &Projection,
        a: Rows,
        d: Rows,
    ) -> Result<(), ForwardError> {
        let a = if self.model.quantises(projection.format) { self.quantised(name, a)? } else { a };
        let problem = self.problem(name).clone();
        self.gemm(name, &problem, (projection.pointer(), projection.segments), [a, d])
    }

    /// One GEMM, told to the observer.
    pub(super) fn gemm(
        &mut self,
        name: &'static str,
        problem: &Problem,
        weights: (DevicePointer, Segments),
        operands: [Rows; 2],
    ) -> Result<(), ForwardError> {
        self.gemm_of(name, problem, weights, operands, self.count())
    }

    /// As [`Pass::gemm`], with the address of the number of rows.
    pub(super) fn gemm_of(
        &mut self,
        name: &'static str,
        problem: &Problem,
        (weights, segments): (DevicePointer, Segments),
        [a, d]: [Rows; 2],
        count: DevicePointer,
    ) -> Result<(), ForwardError> {
        let Problem::Dense(dense) = problem else { unreachable!("projections are dense problems") };
        let args = LaunchArgs {
            activations: a.pointer,
            activation_stride: a.stride,
            weights,
            output: d.pointer,
            output_stride: d.stride,
            tokens: self.bucket.m,
            tokens_on_device: count,
            segments,
            limit: self.model.config.swiglu_limit,
            ..LaunchArgs::default()
        };
        let element = if dense.output == Output::F32 { Element::F32 } else { Element::Bf16 };
        let is_whole = dense.d_columns() == d.stride;
        let view = View { name: "out", pointer: d.pointer, element, rows: self.tokens, columns: d.stride };
        self.launch(name, problem, args, if is_whole { std::slice::from_ref(&view) } else { &[] })
    }

    /// Launches a tuned problem.
    pub(super) fn launch(
        &mut self,
        name: &'static str,
        problem: &Problem,
        args: LaunchArgs,
        views: &[View],
    ) -> Result<(), ForwardError> {
        let id = OpId { name, layer: self.layer };
        if !self.observer.wants(id) {
            return Ok(());
        }
        let prepared = self.model.prepared.lookup(problem);
        let loaded = prepared.ok_or_else(|| ForwardError::Unprepared { problem: problem.to_string() })?;
        let args = LaunchArgs { workspace: self.workspace(name, problem), ..args };
        let weights = [args.weights, args.down_weights];
        match problem {
            Problem::MoeBlock(_) => self.observer.launches(id, problem, &weights),
            // Its weights are not packed, and the bytes of its streams are no floor of a product.
            Problem::StreamMix(_) => {}
            _ => self.observer.launches(id, problem, &weights[..1]),
        }
        // SAFETY: every address is a buffer of the model, made for the largest bucket, that lives as long as the model,
        // which outlives its graphs.
        unsafe { loaded.launch(&args, self.stream.cast())? };
        Ok(self.observer.launched(id, views)?)
    }

    /// Launches one of the runner's kernels. `values` gets the address of the number of tokens, and the bucket.
    pub(super) fn op(
        &mut self,
        kernel: Kernel,
        name: &'static str,
        views: &[View],
        values: impl FnOnce(Value, Value) -> Vec<Value>,
    ) -> Result<(), ForwardError> {
        let id = OpId { name, layer: self.layer };
        if !self.observer.wants(id) {
            return Ok(());
        }
        let values = values(Value::Pointer(self.count()), Value::Int(self.bucket.m as i32));
        // SAFETY: each caller passes what the op's doc lists; every address is a buffer of the model, made for the
        // largest bucket, that lives as long as the model, which outlives its graphs.
        unsafe { self.bucket.op(kernel).launch(&values, self.stream)? };
        Ok(self.observer.launched(id, views)?)
    }

    pub(super) fn problem(&self, name: &'static str) -> &Problem {
        self.bucket.problems.get(name).expect("a bucket has a problem for each op of the inventory")
    }

    pub(super) fn view(&self, name: &'static str, buffer: &Buffer, columns: u32, element: Element) -> View {
        View { name, pointer: buffer.pointer(), element, rows: self.tokens, columns }
    }

    fn streams_view(&self) -> View {
        let element = match self.model.options.streams {
            crate::kernels::runner::Element::Bf16 => Element::Bf16,
            crate::kernels::runner::Element::F32 => Element::F32,
        };
        let columns = crate::kernels::runner::STREAMS * self.model.config.hidden;
        self.view("streams", &self.model.buffers.streams, columns, element)
    }

    /// Where the number of tokens stands; null for a step that has room for one: it has one, and every launch would
    /// wait for that number before it asks for anything else.
    fn count(&self) -> DevicePointer {
        if self.bucket.m == 1 { 0 } else { self.model.buffers.ints.pointer(Part::Counts) }
    }

    pub(super) fn ints(&self, part: Part) -> Value {
        Value::Pointer(self.model.buffers.ints.pointer(part))
    }

    /// Positions, sequences, step_start, first_row.
    fn step_arrays(&self) -> [Value; 4] {
        [Part::Positions, Part::Sequences, Part::StepStart, Part::FirstRow].map(|part| self.ints(part))
    }
}
