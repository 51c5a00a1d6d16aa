//! Device memory of the steps and of the sequences: allocated once, before the first token.

use std::sync::Arc;

use super::super::reference::rope::Rope;
use super::super::{Config, LayerKind};
use super::ops::{Shapes, index_capacity, splits};
use super::{ForwardError, ForwardOptions};
use crate::device::{Buffer, DevicePointer, Gpu};
use crate::kernels::runner::{self, CompressShape, MIX_VALUES, PAGE_ENTRIES, STREAMS};

/// What a step writes and reads again, `[most tokens of a step, columns]` each.
pub(super) struct StepBuffers {
    pub streams: Buffer,
    pub mix: Buffer,
    pub partials: Buffer,
    pub x: Buffer,
    pub qkv: Buffer,
    pub qr: Buffer,
    pub kv_step: Buffer,
    pub q: Buffer,
    pub compressed: Buffer,
    pub index_q: Buffer,
    pub scores: Buffer,
    pub picks: Buffer,
    pub attention_parts: Buffer,
    pub o: Buffer,
    pub z: Buffer,
    /// Output of attention, then of the routed experts.
    pub y: Buffer,
    pub shared_y: Buffer,
    pub gate_logits: Buffer,
    pub experts: Buffer,
    pub routing: Buffer,
    pub shared_h: Buffer,
    /// Rows that the head reads.
    pub head_x: Buffer,
    pub logits: Buffer,
    pub sampled: Buffer,
    pub ints: StepInts,
    /// 16 bytes: temperature, top_p, seed.
    pub sampling: Buffer,
}

/// The step's description, one buffer of int32.
pub(super) struct StepInts {
    buffer: Buffer,
    tokens: usize,
    slots: usize,
}

/// Which part of the description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    TokenIds,
    Positions,
    Sequences,
    StepStart,
    FirstRow,
    HeadRows,
    /// Tokens of the step, then rows of the head.
    Counts,
}

/// What a layer keeps of every sequence.
pub(super) struct LayerCache {
    pub kv_ring: Buffer,
    pub pool: Buffer,
    pub state: Buffer,
    pub index_pool: Buffer,
    pub index_state: Buffer,
}

/// What all layers keep, and the tables that they share.
pub(super) struct Caches {
    pub layers: Vec<LayerCache>,
    pub csa_table: Buffer,
    pub hca_table: Buffer,
    /// `[context, rope_dim / 2, 2]` f32: SWA layers, then the others.
    pub rope: [Buffer; 2],
}

/// Allocates buffers, or only counts what they would take.
pub(super) struct Allocator {
    gpu: Arc<Gpu>,
    is_counting: bool,
    bytes: u64,
}

impl Allocator {
    pub fn new(gpu: &Arc<Gpu>) -> Self {
        Self { gpu: gpu.clone(), is_counting: false, bytes: 0 }
    }

    /// Buffers of this one have no memory.
    pub fn counting(gpu: &Arc<Gpu>) -> Self {
        Self { is_counting: true, ..Self::new(gpu) }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Zeros, so that rows of a bucket beyond the step's tokens are finite wherever a GEMM may read them.
    fn take(&mut self, elements: usize, element_bytes: usize) -> Result<Buffer, ForwardError> {
        let bytes = elements * element_bytes;
        self.bytes += bytes as u64;
        Ok(Buffer::zeros(&self.gpu, if self.is_counting { 0 } else { bytes })?)
    }
}

impl StepBuffers {
    pub fn new(
        allocator: &mut Allocator,
        config: &Config,
        options: &ForwardOptions,
        shapes: &Shapes,
    ) -> Result<Self, ForwardError> {
        let (m, slots) = (options.chunk as usize, options.sequences as usize);
        let head_rows = options.head_rows() as usize;
        let mut bf16 = |rows: usize, columns: u32| allocator.take(rows * columns as usize, 2);
        let (hidden, heads_row) = (config.hidden, config.heads * config.head_dim);
        let x = bf16(m, hidden)?;
        let qkv = bf16(m, config.q_rank + config.head_dim)?;
        let qr = bf16(m, config.q_rank)?;
        let kv_step = bf16(m, config.head_dim)?;
        let (q, o) = (bf16(m, heads_row)?, bf16(m, heads_row)?);
        let index_q = bf16(m, config.index_heads * config.index_head_dim)?;
        let z = bf16(m, config.o_groups * config.o_rank)?;
        let (y, shared_y) = (bf16(m, hidden)?, bf16(m, hidden)?);
        let shared_h = bf16(m, config.shared_experts * config.intermediate)?;
        let head_x = bf16(head_rows, hidden)?;
        let streams = allocator.take(m * (STREAMS * hidden) as usize, options.streams.bytes() as usize)?;
        let mut words = |rows: usize, columns: u32| allocator.take(rows * columns as usize, 4);
        let kinds = [LayerKind::Csa, LayerKind::Hca].into_iter();
        let entry_columns = kinds.map(|kind| EntryColumns::of(config, kind).all()).max().unwrap_or(0);
        let capacity = if config.layers_of(LayerKind::Csa) == 0 { 0 } else { index_capacity(options.context) };
        Ok(Self {
            mix: words(m, MIX_VALUES)?,
            partials: words(shapes.partial_rows, STREAMS * (STREAMS + 2) + 1)?,
            compressed: words(m, entry_columns)?,
            scores: words(m, capacity)?,
            picks: words(m, config.index_top_k)?,
            attention_parts: words(attention_parts(config, options, shapes), 1)?,
            gate_logits: words(m, config.experts)?,
            experts: words(m, config.top_k)?,
            routing: words(m, config.top_k)?,
            logits: words(head_rows, config.vocabulary)?,
            sampled: words(head_rows, 1)?,
            sampling: words(4, 1)?,
            ints: StepInts { buffer: words(StepInts::length(m, slots), 1)?, tokens: m, slots },
            streams,
            x,
            qkv,
            qr,
            kv_step,
            q,
            index_q,
            o,
            z,
            y,
            shared_y,
            shared_h,
            head_x,
        })
    }
}

/// Columns of what a layer's entries are made and chosen from, in the order in which they stand in a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryColumns {
    /// Of the compressor.
    pub own: u32,
    /// Of the indexer's compressor.
    pub index: u32,
    /// Of the weights of the indexer's heads.
    pub weights: u32,
}

impl EntryColumns {
    pub fn of(config: &Config, kind: LayerKind) -> Self {
        let of_dim = |dim: u32| 2 * kind.series() * dim;
        let own = of_dim(config.head_dim);
        match kind {
            LayerKind::Swa => Self { own: 0, index: 0, weights: 0 },
            LayerKind::Hca => Self { own, index: 0, weights: 0 },
            LayerKind::Csa => Self { own, index: of_dim(config.index_head_dim), weights: config.index_heads },
        }
    }

    /// Of a row.
    pub fn all(&self) -> u32 {
        self.own + self.index + self.weights
    }

    /// As rows of the projections: each compressor's are two.
    pub fn parts(&self) -> Vec<u32> {
        let parts = [self.own / 2, self.own / 2, self.index / 2, self.index / 2, self.weights];
        parts.into_iter().filter(|rows| *rows > 0).collect()
    }
}

/// f32 numbers that split attention writes, in the bucket that writes most.
fn attention_parts(config: &Config, options: &ForwardOptions, shapes: &Shapes) -> usize {
    let shape = shapes.attend(LayerKind::Csa);
    let bytes = |&m: &u32| runner::attend_workspace_bytes(&shape, m, splits(config, options, m));
    (options.buckets().iter().map(bytes).max().unwrap_or(0) / 4) as usize
}

impl StepInts {
    fn length(tokens: usize, slots: usize) -> usize {
        4 * tokens + 2 * slots + 2
    }

    /// First int32 of `part`.
    fn place(&self, part: Part) -> usize {
        let (tokens, slots) = (self.tokens, self.slots);
        match part {
            Part::TokenIds => 0,
            Part::Positions => tokens,
            Part::Sequences => 2 * tokens,
            Part::HeadRows => 3 * tokens,
            Part::StepStart => 4 * tokens,
            Part::FirstRow => 4 * tokens + slots,
            Part::Counts => 4 * tokens + 2 * slots,
        }
    }

    pub fn pointer(&self, part: Part) -> DevicePointer {
        self.buffer.pointer() + 4 * self.place(part) as u64
    }

    /// Address of the number of head rows.
    pub fn head_count(&self) -> DevicePointer {
        self.pointer(Part::Counts) + 4
    }

    /// Says how many head rows there are.
    pub fn upload_head_count(&self, count: i32) -> Result<(), ForwardError> {
        Ok(self.buffer.upload_at(4 * (self.place(Part::Counts) + 1), &[count])?)
    }

    /// Writes `values` to the beginning of `part`.
    pub fn upload(&self, part: Part, values: &[i32]) -> Result<(), ForwardError> {
        Ok(self.buffer.upload_at(4 * self.place(part), values)?)
    }
}

impl Caches {
    pub fn new(
        allocator: &mut Allocator,
        config: &Config,
        options: &ForwardOptions,
        shapes: &Shapes,
    ) -> Result<Self, ForwardError> {
        let mut layers = Vec::with_capacity(config.layer_kinds.len());
        for kind in config.layer_kinds.iter() {
            let [kv_ring, pool, state, index_pool, index_state] = layer_bytes(config, options, shapes, *kind);
            layers.push(LayerCache {
                kv_ring: allocator.take(kv_ring, 1)?,
                pool: allocator.take(pool, 1)?,
                state: allocator.take(state, 1)?,
                index_pool: allocator.take(index_pool, 1)?,
                index_state: allocator.take(index_state, 1)?,
            });
        }
        let mut table = |kind| allocator.take((options.sequences * pages(options.context, kind)) as usize, 4);
        let (csa_table, hca_table) = (table(LayerKind::Csa)?, table(LayerKind::Hca)?);
        let rope_numbers = (options.context * config.rope_dim) as usize;
        let mut rope = |kind| {
            let buffer = allocator.take(rope_numbers, 4)?;
            if !allocator.is_counting {
                buffer.upload(&rope_table(config, kind, options.context))?;
            }
            Ok::<_, ForwardError>(buffer)
        };
        Ok(Self { layers, csa_table, hca_table, rope: [rope(LayerKind::Swa)?, rope(LayerKind::Csa)?] })
    }

    /// The rotation of a layer's queries and keys.
    pub fn rope(&self, kind: LayerKind) -> &Buffer {
        &self.rope[usize::from(kind != LayerKind::Swa)]
    }

    pub fn table(&self, kind: LayerKind) -> &Buffer {
        if kind == LayerKind::Hca { &self.hca_table } else { &self.csa_table }
    }
}

/// Bytes of [`LayerCache`]'s buffers for one layer.
pub(super) fn layer_bytes(config: &Config, options: &ForwardOptions, shapes: &Shapes, kind: LayerKind) -> [usize; 5] {
    let slots = options.sequences as usize;
    let pool_entries = slots * (pages(options.context, kind) * PAGE_ENTRIES) as usize;
    let entry = |shape: &CompressShape| pool_entries * shape.head_dim as usize * 2;
    let state = |shape: &CompressShape| slots * (shape.state_rows() * 2 * shape.width()) as usize * 4;
    let ring = slots * (config.window * config.head_dim) as usize * 2;
    match kind {
        LayerKind::Swa => [ring, 0, 0, 0, 0],
        LayerKind::Csa => {
            let (shape, index) = (&shapes.compress_csa, &shapes.compress_index);
            [ring, entry(shape), state(shape), entry(index), state(index)]
        }
        LayerKind::Hca => [ring, entry(&shapes.compress_hca), state(&shapes.compress_hca), 0, 0],
    }
}

/// Pages of one sequence of `context` tokens.
pub(super) fn pages(context: u32, kind: LayerKind) -> u32 {
    match kind.ratio() {
        0 => 0,
        ratio => context.div_ceil(ratio * PAGE_ENTRIES).max(1),
    }
}

/// Cosines and sines of every position, `[context, rope_dim / 2, 2]`, computed in f64 (spec 2.4).
pub(super) fn rope_table(config: &Config, kind: LayerKind, context: u32) -> Vec<f32> {
    let rope = Rope::new(config, kind);
    (0..context as usize).flat_map(|position| rope.at(position)).flat_map(|(cos, sin)| [cos, sin]).collect()
}
