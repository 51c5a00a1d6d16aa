//! Quantised activations where there are no FP4 tensor cores: inputs are rounded to NVFP4, kept as BF16, and multiplied
//! by the kernels of a16.
//!
//! The value `e2m1 * e4m3 * scale` is rounded to BF16 once, because experts share a product across tokens of different
//! scales; what that adds is what BF16 adds anywhere. Experts run slot by slot in this mode, as one token with one
//! expert each: a file may give every expert a scale of its own, and the input of down has to be rounded between the
//! two launches. That is for reproducing numbers, not for speed.

use super::super::Config;
use super::super::reference::{Activation, RouterWeight, ScaleSource};
use super::device_weights::{DeviceLayer, Projection};
use super::ops::{Kernel, SLOT_CHUNK};
use super::pass::{Pass, Rows};
use super::{ForwardError, Model};
use crate::device::{Buffer, DevicePointer, Gpu, Value};
use crate::dispatch::{Bound, LaunchArgs, Segments};
use crate::engine::{Element, OpId, View};
use crate::kernels::Param;
use crate::kernels::runner::ActivationScale;
use crate::problem::{Dense, Problem};
use crate::quant::{Counters, NonFinite, TensorScale, WeightFormat};

/// Ops whose inputs are rounded, in the order of a layer's places; the last two have a place for each expert.
pub(super) const QUANTISED: [&str; 9] = [
    "attn.wq_a",
    "attn.wkv",
    "attn.wq_b",
    "attn.wo_b",
    "ffn.shared.gate_up",
    "ffn.shared.down",
    INDEX_Q,
    GATE_UP,
    DOWN,
];
const INDEX_Q: &str = "attn.indexer.wq_b";
const GATE_UP: &str = "ffn.experts.gate_up";
const DOWN: &str = "ffn.experts.down";

/// Scales, largest magnitudes and counters of every op of every layer, in device memory.
pub(super) struct ScaleTable {
    scales: Buffer,
    amax_seen: Buffer,
    counters: Buffer,
    /// The amax of all rows of one launch.
    row_amax: Buffer,
    /// Where scales are from.
    pub mode: ActivationScale,
    experts: usize,
    layers: usize,
    known: Vec<f32>,
}

/// Buffers and kernels of the slot-by-slot path.
pub(super) struct Slots {
    pub walk: Bound,
    pub hidden_offset: u64,
    pub workspace: Buffer,
    /// `[most slots, hidden]` twice: inputs and outputs.
    pub x: Buffer,
    pub y: Buffer,
    /// `[SLOT_CHUNK]` ones.
    pub ones: Buffer,
    /// Rounded inputs of dense projections.
    pub rounded: Buffer,
}

impl ScaleTable {
    /// Places for `layers` layers of `experts` experts; scales are 1 until they are set.
    pub fn new(gpu: &Gpu, layers: usize, experts: usize, mode: ActivationScale) -> Result<Self, ForwardError> {
        let per_layer = QUANTISED.len() - 2 + 2 * experts;
        let known = vec![1.0f32; layers * per_layer];
        Ok(Self {
            scales: Buffer::of(gpu, &known)?,
            amax_seen: Buffer::zeros(gpu, 4 * known.len())?,
            counters: Buffer::zeros(gpu, 16 * layers * QUANTISED.len())?,
            row_amax: Buffer::zeros(gpu, 4)?,
            mode,
            experts,
            layers,
            known,
        })
    }

    fn per_layer(&self) -> usize {
        QUANTISED.len() - 2 + 2 * self.experts
    }

    fn op_idx(name: &str) -> usize {
        let name = if name == "attn.fused_wqa_wkv" { QUANTISED[0] } else { name };
        QUANTISED.iter().position(|op| *op == name).expect("only ops of the list are rounded")
    }

    /// First place of an op of a layer.
    fn place(&self, layer: usize, name: &str) -> usize {
        let op_idx = Self::op_idx(name);
        let experts_before = op_idx.saturating_sub(QUANTISED.len() - 2);
        layer * self.per_layer() + op_idx.min(QUANTISED.len() - 2) + experts_before * self.experts
    }

    /// Sets scales, multipliers, of an op from `scale_of(expert)`.
    pub fn set(&mut self, layer: usize, name: &str, scales: &[TensorScale]) {
        let place = self.place(layer, name);
        for (idx, scale) in scales.iter().enumerate() {
            self.known[place + idx] = scale.value();
        }
    }

    /// Writes what was set to the device.
    pub fn upload(&self) -> Result<(), ForwardError> {
        Ok(self.scales.upload(&self.known)?)
    }

    /// Scales from the largest magnitudes so far, one for each op of each layer; from now on they are used.
    pub fn end_warmup(&mut self) -> Result<(), ForwardError> {
        let seen: Vec<f32> = self.amax_seen.download(self.known.len())?;
        if seen.iter().all(|amax| *amax == 0.0) {
            return Err(ForwardError::NotWarm);
        }
        let (per_layer, experts) = (self.per_layer(), self.experts);
        for (known, seen) in self.known.chunks_exact_mut(per_layer).zip(seen.chunks_exact(per_layer)) {
            known.copy_from_slice(&warm_scales(known, seen, experts));
        }
        self.mode = ActivationScale::Static;
        self.upload()
    }

    /// What each op of each layer has met since the last time.
    pub fn read_counters(&self, config: &Config) -> Result<Vec<(OpId, Counters)>, ForwardError> {
        let numbers: Vec<u32> = self.counters.download(4 * self.layers * QUANTISED.len())?;
        self.counters.set_bytes(0)?;
        let mut all = Vec::new();
        for (idx, found) in numbers.as_chunks().0.iter().enumerate() {
            let name = QUANTISED[idx % QUANTISED.len()];
            let counters = counters_of(found, columns_of(config, name));
            if counters.blocks > 0 {
                all.push((OpId { name, layer: Some(idx / QUANTISED.len()) }, counters));
            }
        }
        Ok(all)
    }

    fn scale_address(&self, place: usize) -> DevicePointer {
        self.scales.pointer() + 4 * place as u64
    }

    fn amax_address(&self, place: usize) -> DevicePointer {
        self.amax_seen.pointer() + 4 * place as u64
    }

    fn counter_address(&self, layer: usize, name: &str) -> DevicePointer {
        self.counters.pointer() + 16 * (layer * QUANTISED.len() + Self::op_idx(name)) as u64
    }
}

/// Columns of the rows that `name`, one of [`QUANTISED`], reads.
fn columns_of(config: &Config, name: &str) -> u32 {
    match name {
        "attn.wq_b" | INDEX_Q => config.q_rank,
        "attn.wo_b" => config.o_groups * config.o_rank,
        "ffn.shared.down" => config.shared_experts * config.intermediate,
        DOWN => config.intermediate,
        _ => config.hidden,
    }
}

/// What a kernel counted: blocks, saturated ones, values that are not finite, and the complement of the place of the
/// first of these, so that the largest is the first and 0 is none.
fn counters_of(&[blocks, saturated_blocks, count, complement]: &[u32; 4], columns: u32) -> Counters {
    let place = (complement != 0).then_some(!complement);
    let first = place.map(|place| ((place / columns) as usize, (place % columns) as usize));
    Counters {
        blocks: blocks.into(),
        saturated_blocks: saturated_blocks.into(),
        non_finite: NonFinite { count: count.into(), first },
        ..Counters::default()
    }
}

/// Scales of a layer's places from the largest magnitudes that these have met; a place without any keeps what is
/// `known`. Experts share the scale of their op, so that one that no token has gone to yet has one too. The parts of
/// the first projection read one input, which is noted with the first.
fn warm_scales(known: &[f32], seen: &[f32], experts: usize) -> Vec<f32> {
    let singles = QUANTISED.len() - 2;
    let mut seen = seen.to_vec();
    seen[1] = seen[0].max(seen[1]);
    for of_op in seen[singles..].chunks_exact_mut(experts) {
        let largest = of_op.iter().copied().fold(0.0, f32::max);
        of_op.fill(largest);
    }
    let scale = |(known, amax): (&f32, f32)| TensorScale::from_amax(amax).map_or(*known, TensorScale::value);
    known.iter().zip(seen).map(scale).collect()
}

/// Rows that are rounded in one launch.
struct Rounding {
    name: &'static str,
    k: u32,
    rows_per_token: u32,
    /// Scale of each row through this array of indices; 0 for one scale.
    scale_of_row: DevicePointer,
    /// Rows, where the host cuts them itself; `None` for the step's tokens.
    count: Option<u32>,
}

impl Rounding {
    /// Address and bound of the number of tokens, as kernels take them.
    fn rows(&self, device: Value, m: Value) -> (Value, Value) {
        match self.count {
            Some(count) => (Value::Pointer(0), Value::Int(count as i32)),
            None => (device, m),
        }
    }
}

impl Pass<'_> {
    /// `a`, rounded; the buffer is free again at the next call.
    pub(super) fn quantised(&mut self, name: &'static str, a: Rows) -> Result<Rows, ForwardError> {
        let slots = self.model.slots();
        let k = a.stride;
        let out = Rows::of(&slots.rounded, k);
        let rounding = Rounding { name, k, rows_per_token: 1, scale_of_row: 0, count: None };
        self.round(&rounding, a.pointer, out.pointer)?;
        Ok(out)
    }

    /// A fused projection. Parts with scales of their own are multiplied one by one where these are used.
    pub(super) fn split_linear(
        &mut self,
        [fused, first, second]: [&'static str; 3],
        projection: &Projection,
        a: Rows,
        d: Rows,
    ) -> Result<(), ForwardError> {
        // Any other policy gives both parts one scale, for they read one input.
        let is_split = self.model.options.numerics.activation == Activation::A4(ScaleSource::Checkpoint)
            && self.model.quantises(projection.format)
            && projection.input_scales.windows(2).any(|pair| pair[0] != pair[1]);
        if !is_split {
            return self.linear(fused, projection, a, d);
        }
        let config = &self.model.config;
        let layout = crate::quant::PackedLayout::of(projection.format, crate::quant::Activations::A16);
        let (mut weights, mut at) = (projection.pointer(), d.pointer);
        for (part_idx, (name, n)) in [(first, config.q_rank), (second, config.head_dim)].into_iter().enumerate() {
            let rounded = self.quantised(name, a)?;
            let problem = Problem::Dense(Dense::new(projection.format, n, config.hidden, self.bucket.m));
            let segments = Segments::uniform(projection.segments.alpha[part_idx]);
            self.gemm(name, &problem, (weights, segments), [rounded, Rows { pointer: at, ..d }])?;
            weights += layout.packed_bytes(n as usize, config.hidden as usize) as u64;
            at += 2 * u64::from(n);
        }
        // Neither part wrote whole rows: who looks on sees both as one.
        let view =
            View { name: "out", pointer: d.pointer, element: Element::Bf16, rows: self.tokens, columns: d.stride };
        Ok(self.observer.launched(OpId { name: fused, layer: self.layer }, &[view])?)
    }

    /// Rounds rows, by the amax of all of them where one scale serves the tensor.
    fn round(&mut self, rounding: &Rounding, x: DevicePointer, out: DevicePointer) -> Result<(), ForwardError> {
        if self.model.scales().mode == ActivationScale::PerTensor {
            self.reset_amax()?;
            self.raise_amax(rounding, x)?;
        }
        self.convert(rounding, x, out)
    }

    fn reset_amax(&mut self) -> Result<(), ForwardError> {
        let amax = Value::Pointer(self.model.scales().row_amax.pointer());
        let nothing = Value::Pointer(0);
        self.op(Kernel::ResetAmax, "quantise.reset", &[], |_, _| {
            vec![nothing, amax, nothing, Value::Long(0), Value::Int(0)]
        })
    }

    /// Raises the tensor's amax to that of these rows.
    fn raise_amax(&mut self, rounding: &Rounding, x: DevicePointer) -> Result<(), ForwardError> {
        let &Rounding { k, rows_per_token, .. } = rounding;
        let amax = Value::Pointer(self.model.scales().row_amax.pointer());
        self.op(Kernel::Amax(k, rows_per_token), "quantise.amax", &[], |device, m| {
            let (device, m) = rounding.rows(device, m);
            vec![Value::Pointer(x), amax, device, Value::Long(k.into()), m]
        })
    }

    /// Rounds rows by scales that are known.
    fn convert(&mut self, rounding: &Rounding, x: DevicePointer, out: DevicePointer) -> Result<(), ForwardError> {
        let (scales, layer) = (self.model.scales(), self.layer.unwrap_or(0));
        let &Rounding { name, k, rows_per_token, scale_of_row, .. } = rounding;
        let place = scales.place(layer, name);
        let ld = Value::Long(k.into());
        let row_amax = Value::Pointer(scales.row_amax.pointer());
        let scale = match scales.mode {
            ActivationScale::PerToken => Value::Pointer(0),
            ActivationScale::PerTensor => row_amax,
            ActivationScale::Static => Value::Pointer(scales.scale_address(place)),
        };
        let kernel = Kernel::FakeQuantise(k, rows_per_token, scales.mode);
        let counters = Value::Pointer(scales.counter_address(layer, name));
        let amax_seen = Value::Pointer(scales.amax_address(place));
        self.op(kernel, "quantise", &[], |device, m| {
            let (device, m) = rounding.rows(device, m);
            let pointers = [Value::Pointer(x), Value::Pointer(out), scale, Value::Pointer(scale_of_row)];
            [&pointers[..], &[amax_seen, counters, device, ld, ld, m]].concat()
        })
    }

    /// The routed experts, each slot a token of its own: rounded inputs, rounded hidden rows, sums in slot order.
    pub(super) fn experts_by_slot(&mut self, layer: &DeviceLayer, x: Rows) -> Result<(), ForwardError> {
        let (config, buffers, slots) = (&self.model.config, &self.model.buffers, self.model.slots());
        let is_rounded = self.model.quantises(layer.experts.format);
        self.op(Kernel::ExpandRows, "ffn.experts.expand", &[], |count, m| {
            vec![Value::Pointer(x.pointer), (&slots.x).into(), count, m]
        })?;
        let is_static = is_rounded && self.model.scales().mode == ActivationScale::Static;
        let scale_of = |first_slot: u32| {
            if is_static { buffers.experts.pointer() + 4 * u64::from(first_slot) } else { 0 }
        };
        if is_rounded {
            let rounding = Rounding {
                name: GATE_UP,
                k: config.hidden,
                rows_per_token: config.top_k,
                scale_of_row: scale_of(0),
                count: None,
            };
            self.round(&rounding, slots.x.pointer(), slots.x.pointer())?;
        }
        let total = self.tokens * config.top_k;
        let chunks = (0..total).step_by(SLOT_CHUNK as usize).map(|first| (first, SLOT_CHUNK.min(total - first)));
        let hidden = slots.workspace.pointer() + slots.hidden_offset;
        let down = |(first_slot, count)| {
            let (k, scale_of_row) = (config.intermediate, scale_of(first_slot));
            Rounding { name: DOWN, k, rows_per_token: 1, scale_of_row, count: Some(count) }
        };
        if is_rounded && self.model.scales().mode == ActivationScale::PerTensor {
            // The scale is that of all slots, whose hidden rows are not kept: they are made once more below.
            self.reset_amax()?;
            for chunk in chunks.clone() {
                self.hidden_rows(layer, chunk)?;
                self.raise_amax(&down(chunk), hidden)?;
            }
        }
        for chunk in chunks {
            self.hidden_rows(layer, chunk)?;
            if is_rounded {
                self.convert(&down(chunk), hidden, hidden)?;
            }
            self.walk_step(1, &self.slot_args(layer, chunk))?;
        }
        let weights = match self.model.options.numerics.router_weight {
            RouterWeight::AfterW2 => (&buffers.routing).into(),
            RouterWeight::BeforeW2 => (&slots.ones).into(),
        };
        let y = self.view("y", &buffers.y, config.hidden, Element::Bf16);
        self.op(Kernel::CombineSlots, "ffn.experts", &[y], |count, m| {
            vec![(&slots.y).into(), weights, (&buffers.y).into(), count, m]
        })
    }

    /// Hidden rows of `count` slots from `first_slot` on, weighed if that comes before down.
    fn hidden_rows(&mut self, layer: &DeviceLayer, (first_slot, count): (u32, u32)) -> Result<(), ForwardError> {
        let (buffers, slots) = (&self.model.buffers, self.model.slots());
        self.walk_step(0, &self.slot_args(layer, (first_slot, count)))?;
        if self.model.options.numerics.router_weight == RouterWeight::AfterW2 {
            return Ok(());
        }
        let hidden = slots.workspace.pointer() + slots.hidden_offset;
        let weights = buffers.routing.pointer() + 4 * u64::from(first_slot);
        self.op(Kernel::ScaleRows, "ffn.experts.weigh", &[], |_, _| {
            let pointers = [hidden, weights, hidden, 0].map(Value::Pointer);
            [&pointers[..], &[Value::Int(count as i32)]].concat()
        })
    }

    fn slot_args(&self, layer: &DeviceLayer, (first_slot, count): (u32, u32)) -> LaunchArgs {
        let (config, buffers, slots) = (&self.model.config, &self.model.buffers, self.model.slots());
        let row_bytes = 2 * u64::from(config.hidden);
        LaunchArgs {
            activations: slots.x.pointer() + u64::from(first_slot) * row_bytes,
            activation_stride: config.hidden,
            weights: layer.experts.gate_up(),
            down_weights: layer.experts.down(),
            output: slots.y.pointer() + u64::from(first_slot) * row_bytes,
            output_stride: config.hidden,
            tokens: count,
            limit: config.swiglu_limit,
            experts: buffers.experts.pointer() + 4 * u64::from(first_slot),
            routing: slots.ones.pointer(),
            up_alpha: layer.experts.up_alpha(),
            down_alpha: layer.experts.down_alpha(),
            workspace: slots.workspace.pointer(),
            ..LaunchArgs::default()
        }
    }

    /// One of the walk's two launches.
    fn walk_step(&mut self, idx: usize, args: &LaunchArgs) -> Result<(), ForwardError> {
        let id = OpId { name: "ffn.experts.walk", layer: self.layer };
        if !self.observer.wants(id) {
            return Ok(());
        }
        let walk = &self.model.slots().walk;
        self.observer.launches(id, walk.problem(), &[if idx == 0 { args.weights } else { args.down_weights }]);
        // SAFETY: every address is a buffer of the model that lives as long as the model.
        unsafe { walk.launch_one(idx, args, self.stream.cast(), true)? };
        Ok(self.observer.launched(id, &[])?)
    }
}

impl Model {
    /// Whether inputs of projections in `format` are rounded.
    pub(super) fn quantises(&self, format: WeightFormat) -> bool {
        format == WeightFormat::Nvfp4 && self.options.numerics.activation != Activation::A16
    }

    /// Whether experts in `format` run slot by slot.
    pub(super) fn runs_by_slot(&self, format: WeightFormat) -> bool {
        self.quantises(format) || self.options.numerics.router_weight == RouterWeight::BeforeW2
    }

    /// Sets the scales that the policy asks for. Gives the ops where gate and up would have had different ones.
    ///
    /// # Errors
    /// [`ForwardError::InputScale`] and [`ForwardError::NoInputScale`] where the policy needs the file's.
    pub(super) fn set_scales(&mut self) -> Result<Vec<SharedScale>, ForwardError> {
        let mut shared = Vec::new();
        let Activation::A4(source) = self.options.numerics.activation else { return Ok(shared) };
        let Some(table) = &mut self.scales else { return Ok(shared) };
        let fixed = match source {
            ScaleSource::Fixed(scale) => Some(scale),
            ScaleSource::Checkpoint => None,
            _ => return Ok(shared),
        };
        for (layer_idx, layer) in self.weights.layers.iter().enumerate() {
            let find = |name: &'static str, found: &[Option<f32>]| {
                scales_of(OpId { name, layer: Some(layer_idx) }, found, fixed)
            };
            let wqa_wkv = &layer.wqa_wkv;
            if wqa_wkv.format == WeightFormat::Nvfp4 {
                table.set(layer_idx, QUANTISED[0], &find(QUANTISED[0], &wqa_wkv.input_scales[..1])?);
                table.set(layer_idx, QUANTISED[1], &find(QUANTISED[1], &wqa_wkv.input_scales[1..])?);
            }
            let whole = [&layer.wq_b, &layer.wo_b, &layer.shared_gate_up, &layer.shared_down];
            for (name, projection) in QUANTISED[2..6].iter().zip(whole) {
                if projection.format == WeightFormat::Nvfp4 {
                    let mut scales = find(name, &projection.input_scales)?;
                    if let [gate, up] = scales[..] {
                        let id = OpId { name, layer: Some(layer_idx) };
                        scales = larger_of(id, (&[gate], &[up]), &mut shared);
                    }
                    table.set(layer_idx, name, &scales);
                }
            }
            if let Some(indexer) = layer.indexer.as_ref().filter(|i| i.wq_b.format == WeightFormat::Nvfp4) {
                table.set(layer_idx, INDEX_Q, &find(INDEX_Q, &indexer.wq_b.input_scales)?);
            }
            if layer.experts.format == WeightFormat::Nvfp4 {
                let part = |idx: usize| layer.experts.input_scales.iter().map(|scales| scales[idx]).collect::<Vec<_>>();
                let (gate, up) = (find(GATE_UP, &part(0))?, find(GATE_UP, &part(1))?);
                let id = OpId { name: GATE_UP, layer: Some(layer_idx) };
                table.set(layer_idx, GATE_UP, &larger_of(id, (&gate, &up), &mut shared));
                table.set(layer_idx, DOWN, &find(DOWN, &part(2))?);
            }
        }
        table.upload()?;
        Ok(shared)
    }
}

/// An op whose gate and up have different scales in the file: one input cannot be rounded by both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedScale {
    /// The op.
    pub op: OpId,
    /// Experts that differ.
    pub differing: usize,
    /// Experts of the op.
    pub experts: usize,
}

impl std::fmt::Display for SharedScale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { op, differing, experts } = self;
        write!(
            f,
            "{op}: gate and up have different input_scales in {differing} of {experts} experts; the larger one is used \
             for both"
        )
    }
}

/// The scale of each expert's input of gate and up: the larger of the two cuts nothing that the other would keep.
/// Differences are noted in `shared`.
fn larger_of(
    op: OpId,
    (gate, up): (&[TensorScale], &[TensorScale]),
    shared: &mut Vec<SharedScale>,
) -> Vec<TensorScale> {
    let pairs = gate.iter().zip(up);
    let differing = pairs.clone().filter(|(gate, up)| gate != up).count();
    if differing > 0 {
        shared.push(SharedScale { op, differing, experts: gate.len() });
    }
    pairs.map(|(gate, up)| if up > gate { *up } else { *gate }).collect()
}

/// The scales of an op's parts or experts: `fixed`, or the file's, which must be usable.
fn scales_of(id: OpId, found: &[Option<f32>], fixed: Option<TensorScale>) -> Result<Vec<TensorScale>, ForwardError> {
    let scale = |(part, scale): (usize, &Option<f32>)| match (fixed, scale) {
        (Some(fixed), _) => Ok(fixed),
        (None, Some(scale)) => {
            TensorScale::multiplier(*scale).map_err(|source| ForwardError::InputScale { op: id, part, source })
        }
        (None, None) => Err(ForwardError::NoInputScale { op: id, part }),
    };
    found.iter().enumerate().map(scale).collect()
}

/// Where the walk keeps its hidden rows.
pub(super) fn hidden_offset(bound: &Bound) -> u64 {
    let offset = |param: &Param| if let Param::Workspace(offset) = param { Some(*offset) } else { None };
    bound.plan().launches[0].params.iter().find_map(offset).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_and_up_share_the_larger_scale_and_it_is_said() {
        let scales = |values: [f32; 3]| values.map(|value| TensorScale::multiplier(value).unwrap());
        let (gate, up) = (scales([0.5, 0.25, 2.0]), scales([0.5, 1.0, 0.125]));
        let (op, mut shared) = (OpId { name: GATE_UP, layer: Some(3) }, Vec::new());
        assert_eq!(larger_of(op, (&gate, &up), &mut shared), scales([0.5, 1.0, 2.0]));
        assert_eq!(shared.len(), 1);
        assert_eq!(
            shared[0].to_string(),
            "layers.3.ffn.experts.gate_up: gate and up have different input_scales in 2 of 3 experts; the larger one \
             is used for both"
        );
        shared.clear();
        assert_eq!(larger_of(op, (&gate, &gate), &mut shared), gate);
        assert!(shared.is_empty(), "equal scales are no news");
    }

    #[test]
    fn the_first_place_is_a_row_and_a_column() {
        let first = |place: u32| counters_of(&[64, 2, 3, !place], 32).non_finite;
        assert_eq!(first(0), NonFinite { count: 3, first: Some((0, 0)) });
        assert_eq!(first(5 * 32 + 31), NonFinite { count: 3, first: Some((5, 31)) });
        let clean = counters_of(&[64, 2, 0, 0], 32);
        assert_eq!((clean.blocks, clean.saturated_blocks), (64, 2));
        assert_eq!(clean.non_finite, NonFinite::default());
    }

    #[test]
    fn every_op_has_the_columns_that_its_rows_are_rounded_in() {
        for config in [Config::FLASH, Config::PRO] {
            let known = super::super::ops::quantised_rows(&config);
            for name in QUANTISED {
                let k = columns_of(&config, name);
                assert!(known.iter().any(|(columns, _)| *columns == k), "{name}: no kernel rounds rows of {k}");
            }
        }
    }

    #[test]
    fn warm_scales_are_one_for_each_op() {
        let experts = 3;
        let places = QUANTISED.len() - 2 + 2 * experts;
        let (known, mut seen) = (vec![1.0f32; places], vec![0.0f32; places]);
        // Fed: the fused projection, and experts, which note everything with the first or each with its own.
        (seen[0], seen[7], seen[11]) = (2688.0, 5376.0, 1344.0);
        let warm = warm_scales(&known, &seen, experts);
        assert_eq!(warm[..2], [1.0, 1.0]);
        assert_eq!(warm[2..7], [1.0; 5], "what has met nothing keeps its scale");
        assert_eq!((&warm[7..10], &warm[10..13]), (&[2.0; 3][..], &[0.5; 3][..]));
    }
}
