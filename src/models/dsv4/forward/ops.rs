//! The kernels of one bucket of tokens: sizes of the model in, launches out.

use std::collections::HashMap;

use super::super::{Config, LayerKind};
use super::ForwardOptions;
use crate::arch::ArchSpec;
use crate::engine::{BoundOp, Kernels};
use crate::kernels::runner::{
    self, ActivationScale, AttendShape, Balance, CompressShape, Compressed, Connection, EntryRounding, FakeQuantise,
    IndexShape, Op, QkvNorm, Rotate, RotateKind, Route, SlotRows, StoreShape,
};
use crate::problem::Problem;

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
    FirstMix,
    Mix,
    HeadMix,
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
    /// Parts that mixing values are summed from.
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
    /// Plans the bucket of `m` tokens.
    pub fn new(
        (config, shapes): (&Config, &Shapes),
        options: &ForwardOptions,
        arch: &ArchSpec,
        problems: HashMap<&'static str, Problem>,
        m: u32,
    ) -> Self {
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
            (Kernel::FirstMix, mix(mix_m, m, &shapes.connection, false)),
            (Kernel::Mix, mix(mix_m, m, &shapes.connection, true)),
            (Kernel::HeadMix, mix(mix_m, m, &shapes.head_connection, true)),
            (Kernel::Pre, pre(mix_m, m, &shapes.connection, balance)),
            (Kernel::HeadPre, pre(mix_m, m, &shapes.head_connection, Balance::Here)),
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

fn mix(tile_m: u32, m: u32, connection: &Connection, has_post: bool) -> Op {
    let op = runner::hc_mix(tile_m, connection, has_post);
    // The smallest bucket's cut with rows of blocks for all tokens: which block a token is in changes no bit.
    if tile_m == m { op } else { Op { grid: [op.grid[0], m.div_ceil(16), 1], ..op } }
}

fn pre(tile_m: u32, m: u32, connection: &Connection, balance: Balance) -> Op {
    let op = runner::hc_pre(tile_m, connection, balance);
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
    use crate::kernels;
    use crate::models::dsv4::{Formats, inventory_of};
    use crate::models::{Checkpoint, Shard};
    use crate::problem::BUCKETS;

    /// A token must get the same bits in every bucket, so all tiles of an op sum in one order.
    #[test]
    fn an_invariant_op_has_one_order_of_sums() {
        let gpu = GpuSpec::named("h100").unwrap();
        let forms = [Checkpoint::Native, Checkpoint::Nvfp4, Checkpoint::Nvfp4Full];
        for (config, form) in [Config::FLASH, Config::PRO].iter().flat_map(|config| forms.map(|form| (config, form))) {
            for op in inventory_of(config, Formats::of(form), Shard::default()).unwrap() {
                let problems: Vec<_> = BUCKETS.into_iter().filter_map(|m| op.problem(m)).collect();
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
}
