//! The kernels of one bucket of tokens: sizes of the model in, launches out.

use std::collections::HashMap;

use super::super::inventory::{HC_ATTENTION, HC_FIRST, HC_HEAD};
use super::super::{Config, LayerKind};
use super::ForwardOptions;
use crate::arch::ArchSpec;
use crate::engine::{BoundOp, Kernels};
use crate::kernels;
use crate::kernels::runner::{
    self, ActivationScale, AttendShape, Balance, CompressShape, Compressed, Connection, EntryRounding, FakeQuantise,
    IndexShape, Op, QkvNorm, Rotate, RotateKind, Route, SlotRows, StoreShape,
};
use crate::models;
use crate::problem::{Problem, StreamMix, Tile};

/// Shapes of the runner's kernels for one model.
#[derive(Clone, Debug)]
pub(super) struct Shapes {
    pub connection: Connection,
    pub head_connection: Connection,
    qkv_norm: QkvNorm,
    rotate_index: Rotate,
    pub compress_csa: CompressShape,
    pub compress_hca: CompressShape,
    pub compress_index: CompressShape,
    index: IndexShape,
    route: Route,
    hidden: u32,
    vocabulary: u32,
    window: u32,
    head_dim: u32,
    heads: u32,
    rope_dim: u32,
    norm_epsilon: f32,
    top_k: u32,
    index_top_k: u32,
    /// Rows of partial sums that the largest of all buckets writes; known once the mixes of streams are prepared.
    pub partial_rows: usize,
}

/// What the steps of a bucket ask of the tuner's kernels.
pub(super) struct BucketProblems {
    pub m: u32,
    /// By the names of the inventory's ops.
    pub by_name: HashMap<&'static str, Problem>,
}

impl BucketProblems {
    /// Those of `ops` for `m` tokens, with streams as `options` keep them. The head has no more rows than are sampled.
    pub fn of(ops: &[models::Op], options: &ForwardOptions, m: u32) -> Self {
        let has_head = m <= options.head_rows();
        let wanted = ops.iter().filter(|op| has_head || op.name != "head");
        let problem = |op: &models::Op| match op.problem(m) {
            Problem::StreamMix(mix) => Problem::StreamMix(StreamMix { element: options.stream_output(), ..mix }),
            other => other,
        };
        Self { m, by_name: wanted.map(|op| (op.name, problem(op))).collect() }
    }
}

/// Parts that each mix of streams leaves its sums in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MixSplits {
    first: u32,
    layer: u32,
    head: u32,
}

impl MixSplits {
    /// Those of the tiles that `tile_of` gives for a bucket's problems.
    pub fn of(problems: &BucketProblems, tile_of: impl Fn(&Problem) -> Tile) -> Self {
        let splits = |name| match problems.by_name.get(name) {
            Some(problem @ Problem::StreamMix(mix)) => kernels::mix_splits(mix, &tile_of(problem)),
            _ => unreachable!("the inventory has a mix of streams called {name}"),
        };
        Self { first: splits(HC_FIRST), layer: splits(HC_ATTENTION), head: splits(HC_HEAD) }
    }

    /// The most.
    pub fn most(self) -> u32 {
        self.first.max(self.layer).max(self.head)
    }
}

impl Shapes {
    pub fn of(config: &Config, options: &ForwardOptions) -> Self {
        let &Config { hidden, heads, head_dim, rope_dim, q_rank, index_heads, index_head_dim, .. } = config;
        let connection = Connection {
            hidden,
            element: options.streams,
            is_head: false,
            norm_epsilon: config.norm_epsilon,
            hc_epsilon: config.hc_epsilon,
            sinkhorn_rounds: config.sinkhorn_rounds,
        };
        let rounding = if options.has_fp8_kv() { EntryRounding::FakeFp8 } else { EntryRounding::Bf16 };
        let index_rounding = if options.has_mxfp4_index() { EntryRounding::HadamardMxfp4 } else { EntryRounding::Bf16 };
        let compress = |kind: LayerKind, head_dim, rounding| CompressShape {
            head_dim,
            rope_dim,
            ratio: kind.ratio(),
            series: kind.series(),
            rounding,
        };
        let rotate_kind = if options.has_mxfp4_index() { RotateKind::HadamardMxfp4 } else { RotateKind::Plain };
        Self {
            connection,
            head_connection: Connection { is_head: true, ..connection },
            qkv_norm: QkvNorm {
                q_rank,
                head_dim,
                rope_dim,
                norm_epsilon: config.norm_epsilon,
                has_fake_fp8: options.has_fp8_kv(),
            },
            rotate_index: Rotate { heads: index_heads, dim: index_head_dim, rope_dim, kind: rotate_kind },
            compress_csa: compress(LayerKind::Csa, head_dim, rounding),
            compress_hca: compress(LayerKind::Hca, head_dim, rounding),
            compress_index: compress(LayerKind::Csa, index_head_dim, index_rounding),
            index: IndexShape {
                heads: index_heads,
                head_dim: index_head_dim,
                ratio: LayerKind::Csa.ratio(),
                top_k: config.index_top_k,
            },
            route: Route {
                experts: config.experts,
                top_k: config.top_k,
                scale: config.routing_scale,
                hashed_vocabulary: None,
            },
            hidden,
            vocabulary: config.vocabulary,
            window: config.window,
            head_dim,
            heads,
            rope_dim,
            norm_epsilon: config.norm_epsilon,
            top_k: config.top_k,
            index_top_k: config.index_top_k,
            partial_rows: 0,
        }
    }

    pub fn attend(&self, kind: LayerKind) -> AttendShape {
        let ratio = kind.ratio();
        let compressed = match kind {
            LayerKind::Swa => Compressed::None,
            LayerKind::Csa => Compressed::Listed { ratio, top_k: self.index_top_k },
            LayerKind::Hca => Compressed::All { ratio },
        };
        let &Self { heads, head_dim, rope_dim, window, norm_epsilon, .. } = self;
        AttendShape { heads, head_dim, rope_dim, norm_epsilon, window, compressed }
    }

    fn store(&self, kind: LayerKind) -> StoreShape {
        let (state, index_state) = match kind {
            LayerKind::Swa => (None, None),
            LayerKind::Csa => (Some((&self.compress_csa).into()), Some((&self.compress_index).into())),
            LayerKind::Hca => (Some((&self.compress_hca).into()), None),
        };
        StoreShape { head_dim: self.head_dim, window: self.window, state, index_state }
    }
}

/// Name of one of the runner's kernels, with what tells its variants apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kernel {
    Embed,
    FirstPre,
    Pre,
    HeadPre,
    QkvNorm,
    RotateIndex,
    CompressCsa,
    CompressHca,
    CompressIndex,
    IndexScore,
    TopK,
    Attend(LayerKind),
    AttendCombine(LayerKind),
    Store(LayerKind),
    RouteByScore,
    RouteByHash,
    Gather,
    Sample,
    Advance,
    /// Rows of this many columns, several for each token.
    FakeQuantise(u32, u32, ActivationScale),
    Amax(u32, u32),
    ResetAmax,
    ExpandRows,
    CombineSlots,
    ScaleRows,
}

/// Everything that steps of up to `m` tokens launch.
pub(super) struct Bucket {
    pub m: u32,
    /// Splits of attention's keys, by kind of layer.
    pub splits: u32,
    pub problems: HashMap<&'static str, Problem>,
    bound: HashMap<Kernel, BoundOp>,
}

/// The ops of a bucket before their kernels are loaded.
pub(super) struct BucketPlan {
    pub m: u32,
    pub splits: u32,
    pub problems: HashMap<&'static str, Problem>,
    ops: Vec<(Kernel, Op)>,
}

impl BucketPlan {
    /// Plans the bucket of `problems`, whose mixes leave their sums in `parts`.
    pub fn new(
        (config, shapes): (&Config, &Shapes),
        options: &ForwardOptions,
        arch: &ArchSpec,
        problems: BucketProblems,
        parts: MixSplits,
    ) -> Self {
        let BucketProblems { m, by_name: problems } = problems;
        let splits = splits(config, options, m);
        let mix_m = options.mix_bucket(m);
        let by_hash = Route { hashed_vocabulary: Some(config.vocabulary), ..shapes.route };
        let slot_rows = SlotRows { top_k: shapes.top_k, hidden: shapes.hidden };
        let capacity = index_capacity(options.context);
        // A short step waits for the matrices; a long one would for the blocks that balance them elsewhere.
        let later = (splits > 1 && m <= FEW_TOKENS).then_some(&shapes.connection);
        let balance = if later.is_some() { Balance::Later } else { Balance::Here };
        let mut ops = vec![
            (Kernel::Embed, runner::embed(m, shapes.vocabulary, &shapes.connection)),
            (Kernel::FirstPre, pre((mix_m, m), parts.first, &shapes.connection, balance)),
            (Kernel::Pre, pre((mix_m, m), parts.layer, &shapes.connection, balance)),
            (Kernel::HeadPre, pre((mix_m, m), parts.head, &shapes.head_connection, Balance::Here)),
            (Kernel::QkvNorm, runner::qkv_norm(m, &shapes.qkv_norm)),
            (Kernel::RotateIndex, runner::rotate(m, &shapes.rotate_index)),
            (Kernel::CompressCsa, runner::compress(&shapes.compress_csa, m)),
            (Kernel::CompressHca, runner::compress(&shapes.compress_hca, m)),
            (Kernel::CompressIndex, runner::compress(&shapes.compress_index, m)),
            (Kernel::IndexScore, runner::index_score(&shapes.index, m, capacity)),
            (Kernel::TopK, runner::top_k(&shapes.index, m)),
            (Kernel::RouteByScore, runner::route(m, &shapes.route, later)),
            (Kernel::RouteByHash, runner::route(m, &by_hash, later)),
            (Kernel::Gather, runner::gather_rows(m, shapes.hidden)),
            (Kernel::Sample, runner::sample(m, shapes.vocabulary)),
            (Kernel::Advance, runner::advance(m)),
        ];
        for kind in [LayerKind::Swa, LayerKind::Csa, LayerKind::Hca] {
            let shape = shapes.attend(kind);
            ops.push((Kernel::Attend(kind), runner::attend(&shape, arch, m, splits, later)));
            let store = shapes.store(kind);
            ops.push((Kernel::AttendCombine(kind), runner::attend_combine(&shape, arch, m, Some(&store))));
            ops.push((Kernel::Store(kind), runner::store_step(&store, m)));
        }
        if options.has_slots() {
            let single = SlotRows { top_k: 1, hidden: config.intermediate };
            ops.push((Kernel::ExpandRows, runner::expand_rows(m, slot_rows)));
            ops.push((Kernel::CombineSlots, runner::combine_slots(m, slot_rows)));
            ops.push((Kernel::ScaleRows, runner::combine_slots(SLOT_CHUNK, single)));
            ops.push((Kernel::ResetAmax, runner::reset_amax()));
        }
        for scale in options.activation_scales() {
            for (k, rows_per_token) in quantised_rows(config) {
                let rows = if k == config.intermediate && rows_per_token == 1 { m.max(SLOT_CHUNK) } else { m };
                let shape = FakeQuantise { k, rows_per_token, scale };
                ops.push((Kernel::FakeQuantise(k, rows_per_token, scale), runner::fake_quantise(rows, &shape)));
                ops.push((Kernel::Amax(k, rows_per_token), runner::amax(rows, &shape)));
            }
        }
        Self { m, splits, problems, ops }
    }

    /// What has to be compiled.
    pub fn ops(&self) -> impl Iterator<Item = &Op> {
        self.ops.iter().map(|(_, op)| op)
    }

    /// The bucket with its kernels, which were loaded.
    pub fn bind(self, kernels: &Kernels) -> Bucket {
        let bound = self.ops.iter().map(|(name, op)| (*name, kernels.bind(op))).collect();
        Bucket { m: self.m, splits: self.splits, problems: self.problems, bound }
    }
}

impl Bucket {
    /// The op called `kernel`.
    pub fn op(&self, kernel: Kernel) -> &BoundOp {
        self.bound.get(&kernel).expect("a bucket is planned with every kernel that its steps launch")
    }
}

/// Rows that linears read: their length, and how many there are for each token.
pub(super) fn quantised_rows(config: &Config) -> Vec<(u32, u32)> {
    let z_len = config.o_groups * config.o_rank;
    let mut rows = vec![
        (config.hidden, 1),
        (config.q_rank, 1),
        (z_len, 1),
        (config.shared_experts * config.intermediate, 1),
        (config.hidden, config.top_k),
        (config.intermediate, 1),
    ];
    rows.sort_unstable();
    rows.dedup();
    rows
}

/// Entries that an indexer's scores have room for.
pub(super) fn index_capacity(context: u32) -> u32 {
    (context / LayerKind::Csa.ratio()).max(1).next_multiple_of(runner::INDEX_TILE)
}

/// Parts that the keys of a token are cut into: a few tokens leave most of a chip idle otherwise.
pub(super) fn splits(config: &Config, options: &ForwardOptions, m: u32) -> u32 {
    if options.is_batch_invariant {
        return INVARIANT_SPLITS;
    }
    let blocks = m * config.heads.div_ceil(16);
    let keys = config.window + config.index_top_k.max(options.context / LayerKind::Hca.ratio());
    (CHIP_BLOCKS / blocks.max(1)).clamp(1, keys.div_ceil(64).max(1)).min(MOST_SPLITS)
}

fn pre((tile_m, m): (u32, u32), splits: u32, connection: &Connection, balance: Balance) -> Op {
    let op = runner::hc_pre_of_parts(tile_m, splits, connection, balance);
    // The smallest bucket's cut with a block for each token: which block a token is in changes no bit.
    if tile_m == m { op } else { Op { grid: [m, 1, 1], ..op } }
}

/// Slots that one pair of launches serves where experts run slot by slot.
pub(super) const SLOT_CHUNK: u32 = 64;

/// Tokens of a step that leaves most of a chip idle between its products.
const FEW_TOKENS: u32 = 16;
/// What fills a large chip: one block for each SM.
const CHIP_BLOCKS: u32 = 132;
const MOST_SPLITS: u32 = 16;
/// Few, because every split of every row of a long step has sums of its own in memory.
const INVARIANT_SPLITS: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::GpuSpec;
    use crate::models::dsv4::{Formats, inventory_of};
    use crate::models::{Checkpoint, Shard};
    use crate::problem::{BUCKETS, Output};

    /// A token must get the same bits in every bucket, so all tiles of an op sum in one order.
    #[test]
    fn an_invariant_op_has_one_order_of_sums() {
        let gpu = GpuSpec::named("h100").unwrap();
        let forms = [Checkpoint::Native, Checkpoint::Nvfp4, Checkpoint::Nvfp4Full];
        for (config, form) in [Config::FLASH, Config::PRO].iter().flat_map(|config| forms.map(|form| (config, form))) {
            for op in inventory_of(config, Formats::of(form), Shard::default()).unwrap() {
                let problems: Vec<_> = BUCKETS.into_iter().map(|m| op.problem(m)).collect();
                let orders: std::collections::BTreeSet<String> = problems
                    .iter()
                    .map(|problem| {
                        let tile = kernels::invariant_tile(problem, gpu).expect("every bucket has a tile");
                        kernels::family(tile.family()).unwrap().numerics(problem, &tile)
                    })
                    .collect();
                assert!(orders.len() <= 1, "{}: {orders:?}", op.name);
            }
        }
    }

    fn bucket(options: &ForwardOptions, m: u32) -> BucketProblems {
        let ops = inventory_of(&Config::FLASH, Formats::of(Checkpoint::Nvfp4), Shard::default()).unwrap();
        BucketProblems::of(&ops, options, m)
    }

    /// Template values of a kernel that `plan` launches.
    fn value(plan: &BucketPlan, kernel: Kernel, field: &str) -> String {
        let (_, op) = plan.ops.iter().find(|(name, _)| *name == kernel).unwrap();
        format!("{:?}", op.kernel.values["op"][field])
    }

    #[test]
    fn streams_are_asked_for_as_they_are_kept() {
        for (streams, element) in [(runner::Element::F32, Output::F32), (runner::Element::Bf16, Output::Bf16)] {
            let options = ForwardOptions { streams, ..ForwardOptions::default() };
            for name in [HC_FIRST, HC_ATTENTION, HC_HEAD] {
                let Problem::StreamMix(mix) = &bucket(&options, 64).by_name[name] else { panic!("{name}") };
                assert_eq!((mix.element, mix.m, mix.has_post), (element, 64, name != HC_FIRST), "{name}");
            }
        }
    }

    #[test]
    fn what_reads_the_sums_reads_as_many_parts_as_the_tile_leaves() {
        let (gpu, config) = (GpuSpec::named("h100").unwrap(), &Config::FLASH);
        let options = ForwardOptions { chunk: 8192, ..ForwardOptions::default() };
        let shapes = Shapes::of(config, &options);
        let default = |problem: &Problem| kernels::default_tile(problem, gpu).unwrap();
        let plan = |m, tile_of: &dyn Fn(&Problem) -> Tile| {
            let problems = bucket(&options, m);
            let parts = MixSplits::of(&problems, tile_of);
            (BucketPlan::new((config, &shapes), &options, gpu.arch, problems, parts), parts)
        };
        for m in BUCKETS {
            // Without winners everything is as the rule of thumb has it.
            let (usual, parts) = plan(m, &default);
            let splits = runner::hc_splits(m, config.hidden);
            assert_eq!(parts, MixSplits { first: splits, layer: splits, head: splits });
            let by_thumb = runner::hc_pre(m, &shapes.head_connection, Balance::Here);
            let (_, head) = usual.ops.iter().find(|(name, _)| *name == Kernel::HeadPre).unwrap();
            assert_eq!(*head, by_thumb, "m {m}");
        }
        // A winner of one of the mixes changes its own reader alone.
        let winner = |problem: &Problem| match problem {
            Problem::StreamMix(mix) if mix.has_post && mix.n == 24 => default(problem).with("slice", 1024),
            _ => default(problem),
        };
        let (tuned, parts) = plan(8192, &winner);
        assert_eq!((parts, parts.most()), (MixSplits { first: 8, layer: 4, head: 8 }, 8));
        let found = [Kernel::FirstPre, Kernel::Pre, Kernel::HeadPre].map(|kernel| value(&tuned, kernel, "splits"));
        assert_eq!(found, ["Number(8)", "Number(4)", "Number(8)"]);
    }

    #[test]
    fn an_invariant_step_mixes_as_it_did_before_mixes_were_tuned() {
        let gpu = GpuSpec::named("h100").unwrap();
        let options = ForwardOptions { is_batch_invariant: true, chunk: 8192, ..ForwardOptions::default() };
        for m in BUCKETS {
            for problem in bucket(&options, m).by_name.values() {
                let Problem::StreamMix(mix) = problem else { continue };
                let tile = kernels::invariant_tile(problem, gpu).unwrap();
                let plan = kernels::plan(problem, &tile, gpu).unwrap();
                assert_eq!(plan.launches[0].grid, [mix.hidden / 32, m.div_ceil(16), 1], "{problem}");
                assert_eq!((plan.launches[0].threads, kernels::mix_splits(mix, &tile)), (32, 128), "{problem}");
            }
        }
    }
}
