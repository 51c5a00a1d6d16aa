//! From weights to a model that is ready: planned, compiled, allocated, uploaded, in this order.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::a4::{ScaleTable, SharedScale, Slots, hidden_offset};
use super::branch::{Workspaces, on_both_branches};
use super::buffers::{Allocator, Caches, StepBuffers, layer_bytes, pages};
use super::device_weights::{DeviceWeights, Uploader};
use super::ops::{Bucket, BucketPlan, BucketProblems, MixSplits, SLOT_CHUNK, Shapes};
use super::{Forward, ForwardError, ForwardOptions, Ledger, Model, Progress, Sequences};
use crate::device::{Buffer, Gpu, Stream};
use crate::dispatch::{Bound, PrepareOptions, PrepareReport, Prepared, prepare, prepare_invariant};
use crate::engine::{EngineError, Kernels, KernelsReport, Packer, PageTable};
use crate::kernels::{self, Plan};
use crate::models::dsv4::inventory::{HC_ATTENTION, HC_FIRST, HC_HEAD};
use crate::models::dsv4::weights::{Linear, Weights};
use crate::models::dsv4::{Config, Formats, LayerKind, inventory_of};
use crate::models::{Op, Product, Shard};
use crate::problem::{Activations, Dense, MoeBlock, Problem};
use crate::quant::{PackedLayout, WeightFormat};

/// What loading took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadReport {
    /// Tuned kernels.
    pub prepared: PrepareReport,
    /// The runner's own kernels.
    pub kernels: KernelsReport,
    /// Bytes of packed weights.
    pub weight_bytes: u64,
    /// Bytes of caches, buffers and workspaces.
    pub buffer_bytes: u64,
    /// Ops whose gate and up are given different scales of activations, where these are used.
    pub shared_scales: Vec<SharedScale>,
    /// Uploading and packing.
    pub uploading: Duration,
    /// Everything.
    pub took: Duration,
}

impl Forward {
    /// Loads `weights` of a model of `config`.
    ///
    /// # Errors
    /// [`ForwardError`]: no memory for all of it (nothing is uploaded then), kernels that cannot be made, weights that
    /// cannot be packed.
    pub fn load(
        gpu: &Arc<Gpu>,
        (config, weights): (&Config, &Weights<'_>),
        options: &ForwardOptions,
        kernels: &PrepareOptions,
        progress: &mut dyn Progress,
    ) -> Result<Self, ForwardError> {
        let mut formats = formats_of(weights)?;
        let has_nvfp4_experts = options.has_nvfp4_experts;
        if has_nvfp4_experts && formats.experts == WeightFormat::Mxfp4 {
            formats.experts = WeightFormat::Nvfp4;
        }
        let upload = |gpu: &Arc<Gpu>, packer: &mut Packer, ledger: &mut Ledger| {
            Uploader { gpu, packer, config, ledger, progress, has_nvfp4_experts }.weights(weights)
        };
        Builder::new(gpu, config, formats, options)?.build(kernels, upload)
    }
}

/// What is made before the weights are there.
pub(super) struct Builder<'a> {
    gpu: &'a Arc<Gpu>,
    config: &'a Config,
    options: ForwardOptions,
    formats: Formats,
    ops: Vec<Op>,
    shapes: Shapes,
}

impl<'a> Builder<'a> {
    pub fn new(
        gpu: &'a Arc<Gpu>,
        config: &'a Config,
        formats: Formats,
        options: &ForwardOptions,
    ) -> Result<Self, ForwardError> {
        let ops = inventory_of(config, formats, Shard::default())?;
        let options = options.checked()?;
        let shapes = Shapes::of(config, &options);
        Ok(Self { gpu, config, options, formats, ops, shapes })
    }

    /// Prepares, checks the memory, allocates and uploads.
    pub fn build(
        mut self,
        kernel_options: &PrepareOptions,
        upload: impl FnOnce(&Arc<Gpu>, &mut Packer, &mut Ledger) -> Result<DeviceWeights, ForwardError>,
    ) -> Result<Forward, ForwardError> {
        let started = Instant::now();
        let (gpu, jit, threads) = (self.gpu, kernel_options.jit.as_ref(), kernel_options.threads);
        let of_buckets = self.bucket_problems();
        let mut problems: Vec<Problem> = of_buckets.iter().flat_map(|of| of.by_name.values().cloned()).collect();
        problems.extend(self.part_problems());
        problems.sort();
        problems.dedup();
        let prepared = match self.options.is_batch_invariant {
            true => prepare_invariant(gpu, problems.iter().cloned(), kernel_options)?,
            false => prepare(gpu, problems.iter().cloned(), kernel_options)?,
        };
        let on_both = if self.options.has_branches() { on_both_branches(&of_buckets) } else { BTreeSet::new() };
        let plans = self.plans(of_buckets, &prepared);
        let mut loaded = Kernels::new(gpu);
        loaded.load(plans.iter().flat_map(BucketPlan::ops), jit, threads)?;
        let workspace_bytes = |problem: &Problem| prepared.lookup(problem).map_or(0, |loaded| loaded.workspace_bytes());
        let sized: Vec<(Problem, u64)> = problems.into_iter().map(|p| (p.clone(), workspace_bytes(&p))).collect();
        let buffer_bytes = self.check_memory(Workspaces::bytes(&sized, &on_both))?;

        let (mut packer, mut ledger) = (Packer::new(gpu, jit, threads)?, Ledger::default());
        let uploading = Instant::now();
        let weights = upload(gpu, &mut packer, &mut ledger)?;
        drop(packer);
        let uploading = uploading.elapsed();
        let workspaces = Workspaces::new(gpu, &sized, &on_both)?;
        let model = self.model(weights, prepared, workspaces, kernel_options)?;
        let report = LoadReport {
            prepared: model.prepared.report().clone(),
            kernels: loaded.report(),
            weight_bytes: self.weight_bytes(self.config.layers()),
            buffer_bytes,
            shared_scales: Vec::new(),
            uploading,
            took: started.elapsed(),
        };
        let buckets: HashMap<u32, Bucket> = plans.into_iter().map(|plan| (plan.m, plan.bind(&loaded))).collect();
        let stream = Stream::new(gpu)?;
        let sequences = self.sequences();
        let gpu = gpu.clone();
        let mut forward = Forward { graphs: HashMap::new(), buckets, stream, model, sequences, ledger, report, gpu };
        forward.report.shared_scales = forward.model.set_scales()?;
        Ok(forward)
    }

    fn bucket_problems(&self) -> Vec<BucketProblems> {
        let mut buckets = self.options.buckets();
        // The head's rows may be more than a step's tokens, where a step is short.
        buckets.retain(|&m| m <= self.options.chunk);
        buckets.into_iter().map(|m| BucketProblems::of(&self.ops, &self.options, m)).collect()
    }

    /// The buckets with the runner's own kernels, which follow the tiles that mixes of streams were prepared with.
    fn plans(&mut self, buckets: Vec<BucketProblems>, prepared: &Prepared) -> Vec<BucketPlan> {
        let tile_of =
            |problem: &Problem| prepared.lookup(problem).expect("every bucket's problems were prepared").tile().clone();
        let parts: Vec<MixSplits> = buckets.iter().map(|of| MixSplits::of(of, tile_of)).collect();
        let rows = buckets.iter().zip(&parts).map(|(of, parts)| (of.m * parts.most()) as usize);
        self.shapes.partial_rows = rows.max().unwrap_or(0);
        let arch = self.gpu.spec().arch;
        let plan = |(of, parts)| BucketPlan::new((self.config, &self.shapes), &self.options, arch, of, parts);
        buckets.into_iter().zip(parts).map(plan).collect()
    }

    /// Parts of the fused projection one by one, for scales of their own.
    fn part_problems(&self) -> Vec<Problem> {
        if !self.options.has_slots() || self.formats.attention != WeightFormat::Nvfp4 {
            return Vec::new();
        }
        let &Config { hidden, q_rank, head_dim, .. } = self.config;
        let parts = |m| [q_rank, head_dim].map(|n| Problem::Dense(Dense::new(self.formats.attention, n, hidden, m)));
        self.options.buckets().into_iter().flat_map(parts).collect()
    }

    /// Refuses a model that does not fit, and says how much of it would. Gives the bytes beside the weights.
    fn check_memory(&self, workspace_bytes: u64) -> Result<u64, ForwardError> {
        let mut count = Allocator::counting(self.gpu);
        StepBuffers::new(&mut count, self.config, &self.options, &self.shapes)?;
        Caches::new(&mut count, self.config, &self.options, &self.shapes)?;
        let slots: usize = if self.options.has_slots() { self.slot_bytes().iter().sum() } else { 0 };
        let beside = count.bytes() + workspace_bytes + slots as u64;
        let (free, _) = self.gpu.memory()?;
        let all = self.config.layers();
        // Staging, modules of kernels, and what the driver keeps for itself.
        let unused = |layers| later_cache_bytes(self.config, &self.options, &self.shapes, layers);
        let needed = |layers| self.weight_bytes(layers) + beside - unused(layers) + MARGIN_BYTES;
        if needed(all) <= free {
            return Ok(beside);
        }
        Err(ForwardError::Memory { needed: needed(all), free, layers: layers_within(free, all, needed), all })
    }

    /// Bytes of packed weights of the first `layers` layers, the embedding and the head.
    pub fn weight_bytes(&self, layers: u32) -> u64 {
        let kinds = &self.config.layer_kinds[..layers as usize];
        let bytes = |op: &Op| packed_bytes(op) * u64::from(layers_with(op.name, op.count, kinds));
        let embed = 2 * u64::from(self.config.vocabulary) * u64::from(self.config.hidden);
        self.ops.iter().map(bytes).sum::<u64>() + embed
    }

    fn model(
        &self,
        weights: DeviceWeights,
        prepared: Prepared,
        workspaces: Workspaces,
        kernels: &PrepareOptions,
    ) -> Result<Model, ForwardError> {
        let (gpu, config, options) = (self.gpu, self.config, &self.options);
        let mut allocator = Allocator::new(gpu);
        let scale_table = |mode| ScaleTable::new(gpu, config.layers() as usize, config.experts as usize, mode);
        Ok(Model {
            config: config.clone(),
            options: options.clone(),
            formats: self.formats,
            weights,
            buffers: StepBuffers::new(&mut allocator, config, options, &self.shapes)?,
            caches: Caches::new(&mut allocator, config, options, &self.shapes)?,
            workspaces,
            scales: options.activation_scale().map(scale_table).transpose()?,
            slots: if options.has_slots() { Some(self.slots(kernels)?) } else { None },
            prepared,
            gpu: gpu.clone(),
        })
    }

    /// The walk over slots: one token with one expert each.
    fn slots(&self, options: &PrepareOptions) -> Result<Slots, ForwardError> {
        let (gpu, config, spec) = (self.gpu, self.config, self.gpu.spec());
        let block = MoeBlock {
            weights: self.formats.experts,
            experts: config.experts,
            local_experts: config.experts,
            top_k: 1,
            hidden: config.hidden,
            intermediate: config.intermediate,
            activations: Activations::A16,
            m: SLOT_CHUNK,
        };
        let problem = Problem::MoeBlock(block);
        let family = kernels::family("moe_walk").expect("the walk is one of the families");
        let plan = kernels::plan(&problem, &family.default_tile(&problem, spec), spec)
            .map_err(|rejection| EngineError::Packing { name: problem.to_string(), reason: rejection.to_string() })?;
        let walk = bind(gpu, problem, plan, options)?;
        let [x, y, ones, rounded] = self.slot_bytes();
        Ok(Slots {
            hidden_offset: hidden_offset(&walk),
            workspace: Buffer::zeros(gpu, walk.workspace_bytes() as usize)?,
            walk,
            x: Buffer::zeros(gpu, x)?,
            y: Buffer::zeros(gpu, y)?,
            ones: Buffer::of(gpu, &vec![1.0f32; ones / 4])?,
            rounded: Buffer::zeros(gpu, rounded)?,
        })
    }

    /// Bytes of the buffers of [`Slots`]: inputs, outputs, ones, rounded inputs.
    fn slot_bytes(&self) -> [usize; 4] {
        let config = self.config;
        let rows = self.options.chunk as usize * config.top_k as usize;
        let widest = config.hidden.max(config.q_rank).max(config.o_groups * config.o_rank);
        let widest = widest.max(config.shared_experts * config.intermediate) as usize;
        let of_slots = 2 * rows * config.hidden as usize;
        [of_slots, of_slots, 4 * rows.max(SLOT_CHUNK as usize), 2 * self.options.chunk as usize * widest]
    }

    fn sequences(&self) -> Sequences {
        let &ForwardOptions { sequences, context, .. } = &self.options;
        let table = |kind: LayerKind| {
            let all = sequences * pages(context, kind);
            PageTable::new(
                sequences as usize,
                context as usize,
                all as usize,
                ForwardOptions::page_tokens(kind) as usize,
            )
        };
        Sequences {
            lengths: vec![0; sequences as usize],
            sampled: vec![None; sequences as usize],
            csa_pages: table(LayerKind::Csa),
            hca_pages: table(LayerKind::Hca),
            decoding: Vec::new(),
            sampling: None,
        }
    }
}

/// Bytes that the layers from `first` on keep of every sequence: what a model without them does not need.
fn later_cache_bytes(config: &Config, options: &ForwardOptions, shapes: &Shapes, first: u32) -> u64 {
    let kinds = &config.layer_kinds[first as usize..];
    kinds.iter().flat_map(|kind| layer_bytes(config, options, shapes, *kind)).map(|bytes| bytes as u64).sum()
}

/// The most layers, fewer than `all`, that need no more than `free` bytes; 0 if not even what stands beside them fits.
fn layers_within(free: u64, all: u32, needed: impl Fn(u32) -> u64) -> u32 {
    (0..all).rev().find(|&layers| needed(layers) <= free).unwrap_or(0)
}

/// Compiles and loads the kernels of one plan.
fn bind(gpu: &Arc<Gpu>, problem: Problem, plan: Plan, options: &PrepareOptions) -> Result<Bound, ForwardError> {
    let spec = gpu.spec();
    let mut bound = Vec::with_capacity(plan.launches.len());
    for launch in &plan.launches {
        let source = crate::codegen::render(&launch.kernel, spec.arch, &spec.target).map_err(EngineError::from)?;
        let (cubin, _) = options.jit.compile(&source).map_err(EngineError::from)?;
        bound.push(Arc::new(crate::device::Kernel::load(gpu, &cubin, launch.smem_bytes)?));
    }
    Ok(Bound::new(problem, plan, bound, spec))
}

/// Bytes of an op's packed weights in one layer.
fn packed_bytes(op: &Op) -> u64 {
    let matrix_bytes = |matrix: &crate::models::Matrix, format| {
        let layout = PackedLayout::of(format, Activations::A16);
        matrix.groups as usize * layout.packed_bytes(matrix.n() as usize, matrix.k as usize)
    };
    let bytes = match &op.product {
        Product::Gemm(gemm) => matrix_bytes(&gemm.matrix, gemm.weights),
        Product::Experts(experts) => {
            matrix_bytes(&experts.gate_up, experts.weights) + matrix_bytes(&experts.down, experts.weights)
        }
        Product::Streams(streams) => streams.matrix.f32_bytes() as usize,
    };
    bytes as u64
}

/// How many of the layers `kinds` launch the op, which `count` layers of the whole model do.
fn layers_with(name: &str, count: u32, kinds: &[LayerKind]) -> u32 {
    let of = |kind| kinds.iter().filter(|&&other| other == kind).count() as u32;
    match name {
        "head" | HC_HEAD => count,
        HC_FIRST => kinds.len().min(1) as u32,
        HC_ATTENTION => kinds.len().saturating_sub(1) as u32,
        _ if name.starts_with("attn.compressor.hca") => of(LayerKind::Hca),
        _ if name.starts_with("attn.compressor.csa") || name.starts_with("attn.indexer") => of(LayerKind::Csa),
        _ => kinds.len() as u32,
    }
}

/// The formats of the ops, which all layers must share.
fn formats_of(weights: &Weights<'_>) -> Result<Formats, ForwardError> {
    let same = |linears: Vec<&Linear<'_>>| -> Result<Option<WeightFormat>, ForwardError> {
        let Some(first) = linears.first() else { return Ok(None) };
        match linears.iter().find(|linear| linear.format != first.format) {
            None => Ok(Some(first.format)),
            Some(other) => Err(ForwardError::MixedFormats {
                first: first.name.clone(),
                expected: first.format,
                name: other.name.clone(),
                found: other.format,
            }),
        }
    };
    let layers = &weights.layers;
    let projections = layers.iter().map(|layer| &layer.attention);
    let attention = same(projections.clone().flat_map(|a| [&a.wq_a, &a.wkv, &a.wq_b, &a.wo_b]).collect())?;
    let wo_a = same(projections.clone().map(|a| &a.wo_a).collect())?;
    let index_q = same(projections.filter_map(|a| a.indexer.as_ref()).map(|indexer| &indexer.wq_b).collect())?;
    let ffn = layers.iter().map(|layer| &layer.feed_forward);
    let shared = same(ffn.clone().flat_map(|f| [&f.shared.w1, &f.shared.w3, &f.shared.w2]).collect())?;
    let experts = same(ffn.flat_map(|f| &f.experts).flat_map(|e| [&e.w1, &e.w3, &e.w2]).collect())?;
    let or_bf16 = |format: Option<WeightFormat>| format.unwrap_or(WeightFormat::Bf16);
    Ok(Formats {
        attention: or_bf16(attention),
        wo_a: or_bf16(wo_a),
        index_q: or_bf16(index_q),
        shared: or_bf16(shared),
        experts: or_bf16(experts),
    })
}

/// Left free beside everything that is counted.
const MARGIN_BYTES: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_fit_bring_only_their_own_caches() {
        let config = Config::FLASH;
        let options = ForwardOptions { sequences: 64, context: 65536, ..ForwardOptions::default() };
        let shapes = Shapes::of(&config, &options);
        let (all, weights) = (config.layers(), 10);
        let later = |first| later_cache_bytes(&config, &options, &shapes, first);
        let beside = 1_000 + later(0);
        let needed = |layers: u32| u64::from(layers) * weights + beside - later(layers);
        assert_eq!((needed(0), later(all)), (1_000, 0));
        for layers in 0..all {
            let cache: usize =
                layer_bytes(&config, &options, &shapes, config.layer_kinds[layers as usize]).iter().sum();
            assert_eq!(needed(layers + 1) - needed(layers), weights + cache as u64);
            assert_eq!(layers_within(needed(layers), all, needed), layers);
            assert_eq!(layers_within(needed(layers + 1) - 1, all, needed), layers);
        }
        assert_eq!(layers_within(999, all, needed), 0);
    }
}
