//! DeepSeek-V4's inventory against numbers typed from the releases' tensor shapes, not derived from the code.

use std::collections::{BTreeMap, BTreeSet};

use tilekiln::arch::GpuSpec;
use tilekiln::models::{self, Checkpoint, Op, Product, Row, Shard};
use tilekiln::problem::{BUCKETS, Problem};

/// One row of the table: what the listing must say of an op on one rank.
struct Want {
    name: &'static str,
    /// Native tensors, in the order of the rows.
    tensors: &'static [(&'static str, Rows)],
    /// n, k, groups, count.
    flash: [u32; 4],
    pro: [u32; 4],
    /// Formats in native, nvfp4 and nvfp4_full checkpoints.
    weights: [&'static str; 3],
    output: &'static str,
}

/// Rows of a segment: Flash, Pro.
type Rows = [u32; 2];

const FP8: [&str; 3] = ["fp8"; 3];
const BF16: [&str; 3] = ["bf16"; 3];
const F32: [&str; 3] = ["f32"; 3];
const PROJECTION: [&str; 3] = ["fp8", "fp8", "nvfp4"];
const EXPERT: [&str; 3] = ["mxfp4", "nvfp4", "nvfp4"];

#[rustfmt::skip]
const WANT: [Want; 17] = [
    Want { name: "hc_attn_fn.first", tensors: &[("hc_attn_fn", [24, 24])],
        flash: [24, 16384, 1, 1], pro: [24, 28672, 1, 1], weights: F32, output: "f32" },
    Want { name: "hc_attn_fn", tensors: &[("hc_attn_fn", [24, 24])],
        flash: [24, 16384, 1, 42], pro: [24, 28672, 1, 60], weights: F32, output: "f32" },
    Want { name: "attn.fused_wqa_wkv", tensors: &[("attn.wq_a", [1024, 1536]), ("attn.wkv", [512, 512])],
        flash: [1536, 4096, 1, 43], pro: [2048, 7168, 1, 61], weights: PROJECTION, output: "bf16" },
    Want { name: "attn.wq_b", tensors: &[("attn.wq_b", [32768, 65536])],
        flash: [32768, 1024, 1, 43], pro: [65536, 1536, 1, 61], weights: PROJECTION, output: "bf16" },
    Want { name: "attn.wo_a", tensors: &[("attn.wo_a", [1024, 1024])],
        flash: [1024, 4096, 8, 43], pro: [1024, 4096, 16, 61], weights: FP8, output: "bf16" },
    Want { name: "attn.wo_b", tensors: &[("attn.wo_b", [4096, 7168])],
        flash: [4096, 8192, 1, 43], pro: [7168, 16384, 1, 61], weights: PROJECTION, output: "bf16" },
    Want { name: "attn.compressor.csa.fused_indexer",
        tensors: &[("attn.compressor.wkv", [1024, 1024]), ("attn.compressor.wgate", [1024, 1024]),
            ("attn.indexer.compressor.wkv", [256, 256]), ("attn.indexer.compressor.wgate", [256, 256]),
            ("attn.indexer.weights_proj", [64, 64])],
        flash: [2624, 4096, 1, 21], pro: [2624, 7168, 1, 30], weights: BF16, output: "f32" },
    Want { name: "attn.compressor.hca.fused_wkv_wgate",
        tensors: &[("attn.compressor.wkv", [512, 512]), ("attn.compressor.wgate", [512, 512])],
        flash: [1024, 4096, 1, 20], pro: [1024, 7168, 1, 31], weights: BF16, output: "f32" },
    Want { name: "attn.indexer.wq_b", tensors: &[("attn.indexer.wq_b", [8192, 8192])],
        flash: [8192, 1024, 1, 21], pro: [8192, 1536, 1, 30], weights: FP8, output: "bf16" },
    Want { name: "hc_ffn_fn", tensors: &[("hc_ffn_fn", [24, 24])],
        flash: [24, 16384, 1, 43], pro: [24, 28672, 1, 61], weights: F32, output: "f32" },
    Want { name: "ffn.gate", tensors: &[("ffn.gate", [256, 384])],
        flash: [256, 4096, 1, 43], pro: [384, 7168, 1, 61], weights: BF16, output: "f32" },
    Want { name: "ffn.shared.gate_up",
        tensors: &[("ffn.shared_experts.w1", [2048, 3072]), ("ffn.shared_experts.w3", [2048, 3072])],
        flash: [4096, 4096, 1, 43], pro: [6144, 7168, 1, 61], weights: PROJECTION, output: "bf16" },
    Want { name: "ffn.shared.down", tensors: &[("ffn.shared_experts.w2", [4096, 7168])],
        flash: [4096, 2048, 1, 43], pro: [7168, 3072, 1, 61], weights: PROJECTION, output: "bf16" },
    Want { name: "ffn.experts.gate_up",
        tensors: &[("ffn.experts.E.w1", [2048, 3072]), ("ffn.experts.E.w3", [2048, 3072])],
        flash: [4096, 4096, 256, 43], pro: [6144, 7168, 384, 61], weights: EXPERT, output: "bf16" },
    Want { name: "ffn.experts.down", tensors: &[("ffn.experts.E.w2", [4096, 7168])],
        flash: [4096, 2048, 256, 43], pro: [7168, 3072, 384, 61], weights: EXPERT, output: "bf16" },
    Want { name: "hc_head_fn", tensors: &[("hc_head_fn", [4, 4])],
        flash: [4, 16384, 1, 1], pro: [4, 28672, 1, 1], weights: F32, output: "f32" },
    Want { name: "head", tensors: &[("head", [129280, 129280])],
        flash: [129280, 4096, 1, 1], pro: [129280, 7168, 1, 1], weights: BF16, output: "f32" },
];

/// What tensor parallelism changes: name, number of the row, then its value on 2, 4 and 8 ranks.
#[rustfmt::skip]
const SPLIT: [(&str, &str, Rows, Rows, Rows); 8] = [
    ("attn.wq_b",           "n",      [16384, 32768], [8192, 16384], [4096, 8192]),
    ("attn.wo_a",           "groups", [4, 8],         [2, 4],        [1, 2]),
    ("attn.wo_b",           "k",      [4096, 8192],   [2048, 4096],  [1024, 2048]),
    ("ffn.shared.gate_up",  "n",      [2048, 3072],   [1024, 1536],  [512, 768]),
    ("ffn.shared.down",     "k",      [1024, 1536],   [512, 768],    [256, 384]),
    ("ffn.experts.gate_up", "n",      [2048, 3072],   [1024, 1536],  [512, 768]),
    ("ffn.experts.down",    "k",      [1024, 1536],   [512, 768],    [256, 384]),
    ("head",                "n",      [64640, 64640], [32320, 32320],[16160, 16160]),
];

const MODELS: [&str; 2] = ["dsv4", "dsv4-pro"];
const WHOLE: Shard = Shard { tp: 1, ep: 1 };

#[test]
fn one_rank_has_every_row_of_the_table() {
    for (model_idx, model) in MODELS.into_iter().enumerate() {
        for (checkpoint_idx, checkpoint) in Checkpoint::ALL.into_iter().enumerate() {
            let rows = rows_at(1, model, checkpoint, WHOLE);
            let names: Vec<_> = rows.iter().map(|row| &row.name[..]).collect();
            assert_eq!(names, WANT.map(|want| want.name), "{model}");
            for (row, want) in rows.iter().zip(&WANT) {
                let at = format!("{model} {checkpoint} {}", row.name);
                assert_eq!([row.n, row.k, row.groups, row.count], [want.flash, want.pro][model_idx], "{at}");
                assert_eq!(row.weights, want.weights[checkpoint_idx], "{at}");
                assert_eq!(row.activations, if row.weights == "f32" { "f32" } else { "a16" }, "{at}");
                assert_eq!(row.output.name(), want.output, "{at}");
                let tuned_as = match row.name.as_str() {
                    "ffn.experts.gate_up" | "ffn.experts.down" => "ffn.experts",
                    name => name,
                };
                assert_eq!(row.tuned_as, tuned_as, "{at}");
                assert!(row.problem.parse::<Problem>().is_ok(), "{at}");
                assert_eq!(row.tensors, want.tensors.iter().map(|(tensor, _)| *tensor).collect::<Vec<_>>(), "{at}");
                let rows: Vec<_> = row.segments.iter().map(|segment| segment.rows).collect();
                assert_eq!(rows, want.tensors.iter().map(|(_, rows)| rows[model_idx]).collect::<Vec<_>>(), "{at}");
            }
        }
    }
}

#[test]
fn tensor_parallelism_cuts_these_numbers_and_no_others() {
    for (model_idx, model) in MODELS.into_iter().enumerate() {
        for checkpoint in Checkpoint::ALL {
            for (tp_idx, tp) in [2, 4, 8].into_iter().enumerate() {
                let mut expected = numbers(&rows_at(1, model, checkpoint, WHOLE));
                for (name, axis, tp2, tp4, tp8) in SPLIT {
                    let values = [tp2, tp4, tp8][tp_idx];
                    expected.insert((name.to_string(), axis), values[model_idx]);
                }
                let found = numbers(&rows_at(1, model, checkpoint, Shard { tp, ep: 1 }));
                assert_eq!(found, expected, "{model} {checkpoint} tp = {tp}");
            }
        }
    }
}

#[test]
fn expert_parallelism_deals_out_whole_experts() {
    for (model, per_rank) in [("dsv4", [256, 128, 64, 32]), ("dsv4-pro", [384, 192, 96, 48])] {
        for (ep, local) in [1, 2, 4, 8].into_iter().zip(per_rank) {
            let mut expected = numbers(&rows_at(1, model, Checkpoint::Nvfp4, WHOLE));
            for name in ["ffn.experts.gate_up", "ffn.experts.down"] {
                expected.insert((name.to_string(), "groups"), local);
            }
            assert_eq!(numbers(&rows_at(1, model, Checkpoint::Nvfp4, Shard { tp: 1, ep })), expected);
        }
    }
}

#[test]
fn segments_fill_the_rows_of_every_shard() {
    for_every_shard(|model, checkpoint, shard| {
        for row in rows_at(1, model, checkpoint, shard) {
            let mut end = 0;
            for segment in &row.segments {
                assert_eq!(segment.first_row, end, "{model} {shard:?} {}", row.name);
                end += segment.rows;
            }
            assert_eq!(end, row.n, "{model} {shard:?} {}", row.name);
        }
    });
}

#[test]
fn problems_survive_the_command_line_and_rows_add_up_to_them() {
    for_every_shard(|model, checkpoint, shard| {
        for op in ops(model, checkpoint, shard) {
            let rows = op.rows(h100());
            for m in BUCKETS {
                let of_bucket: Vec<_> = rows.iter().filter(|row| row.m == m).collect();
                let weight_bytes: u64 = of_bucket.iter().map(|row| row.weight_bytes).sum();
                assert_eq!(weight_bytes, op.weight_bytes(), "{}", op.name);
                let problem = op.problem(m);
                assert_eq!(problem.to_string().parse::<Problem>().as_ref(), Ok(&problem));
                assert_eq!(of_bucket.iter().map(|row| row.bytes).sum::<u64>(), problem.bytes(), "{problem}");
                assert_eq!(of_bucket.iter().map(|row| row.flops).sum::<u64>(), problem.flops(), "{problem}");
                assert!(of_bucket.iter().all(|row| row.floor_us > 0.0), "{problem}");
            }
        }
    });
}

/// Attention's and the experts' connections are one shape, tuned once; the first closes nothing, the head's has 4 rows.
#[test]
fn connections_are_three_problems_for_each_bucket() {
    for (model, layers, k) in [("dsv4", 43, 16384), ("dsv4-pro", 61, 28672)] {
        let ops = ops(model, Checkpoint::Native, WHOLE);
        let of = |op: &Op| matches!(op.product, Product::Streams(_)).then(|| (op.name, op.problem(64), op.count));
        let found: Vec<_> = ops.iter().filter_map(of).collect();
        let want = |name, text: &str, count| (name, text.replace('k', k.to_string().as_str()).parse().unwrap(), count);
        let expected = [
            want("hc_attn_fn.first", "hc f32 24xk first m64", 1),
            want("hc_attn_fn", "hc f32 24xk m64", layers - 1),
            want("hc_ffn_fn", "hc f32 24xk m64", layers),
            want("hc_head_fn", "hc f32 4xk m64", 1),
        ];
        assert_eq!(found, expected, "{model}");
        let problems: BTreeSet<Problem> =
            BUCKETS.into_iter().flat_map(|m| ops.iter().map(move |op| op.problem(m))).collect();
        let mixes = problems.iter().filter(|problem| matches!(problem, Problem::StreamMix(_))).count();
        assert_eq!(mixes, 3 * BUCKETS.len(), "{model}");
    }
}

/// Sizes of whole backbones as published hold more than matrices: the embedding, and `small`, in this order: norms,
/// compressors' position tables, sinks, bases and scales of hyper-connections, gate biases, hash tables.
#[test]
fn weights_add_up_to_the_published_checkpoints() {
    let embedding = [2 * 129280 * 4096_u64, 2 * 129280 * 7168];
    #[rustfmt::skip]
    let small = [
        892_160 + 5_672_960 + 11_008 + 9_308 + 40_960 + 18_616_320_u64,
        2_083_328 + 8_740_864 + 31_232 + 13_196 + 89_088 + 18_616_320,
    ];
    // The published full export keeps wo_a in BF16; ours is FP8 with a byte for each of its 128x128 blocks.
    let wo_a_values = [43 * 8 * 1024 * 4096_u64, 61 * 16 * 1024 * 4096];
    let as_fp8 = wo_a_values.map(|values| 2 * values - (values + values / (128 * 128)));
    for (checkpoint, gib, added) in [
        (Checkpoint::Native, [145.3, 792.3], [0, 0]),
        (Checkpoint::Nvfp4, [153.4, 837.4], [0, 0]),
        (Checkpoint::Nvfp4Full, [153.0, 833.7], as_fp8),
    ] {
        for (idx, model) in MODELS.into_iter().enumerate() {
            let bytes = model_bytes(model, checkpoint, WHOLE) + embedding[idx] + small[idx] + added[idx];
            let found = bytes as f64 / f64::from(1 << 30);
            assert!((found - gib[idx]).abs() <= 0.05, "{model} {checkpoint}: {found} GiB, published {}", gib[idx]);
        }
    }
}

#[test]
fn values_add_up_to_the_published_parameters() {
    // Billions with the embedding, without biases and norms.
    for (model, embedding, billions) in [("dsv4", 129280 * 4096_u64, 284.3), ("dsv4-pro", 129280 * 7168, 1573.0)] {
        let rows = rows_at(1, model, Checkpoint::Native, WHOLE);
        let of_row = |row: &Row| [row.n, row.k, row.groups, row.count].into_iter().map(u64::from).product::<u64>();
        let found = (rows.iter().map(of_row).sum::<u64>() + embedding) as f64 / 1e9;
        assert!((found - billions).abs() <= 0.05, "{model}: {found} B, published {billions} B");
    }
}

#[test]
fn ranks_together_hold_the_split_ops_once() {
    for model in MODELS {
        let experts = |shard| {
            let ops = ops(model, Checkpoint::Nvfp4, shard);
            ops.iter().find(|op| op.name == "ffn.experts").map(Op::weight_bytes).unwrap()
        };
        for shard in [Shard { tp: 8, ep: 1 }, Shard { tp: 1, ep: 8 }, Shard { tp: 2, ep: 4 }] {
            assert_eq!(8 * experts(shard), experts(WHOLE), "{model} {shard:?}");
        }
    }
    // A rank's whole share with eight ways of dealing out experts and everything else replicated, embedding included.
    let gib = model_bytes("dsv4", Checkpoint::Nvfp4, Shard { tp: 1, ep: 8 }) as f64 / f64::from(1 << 30);
    assert!((gib + 1.01 - 26.4).abs() <= 0.05, "{gib}");
}

#[test]
fn one_token_touches_the_weights_that_a_roofline_counts() {
    // GB of a decode step at M = 1, by part. Compressors are 0.53 with their position tables of 0.006.
    let parts = [
        ("attn.fused_wqa_wkv attn.wq_b attn.wo_a attn.wo_b", 4.6, 0.05),
        ("ffn.experts.gate_up ffn.experts.down", 3.45, 0.005),
        ("ffn.shared.gate_up ffn.shared.down", 1.08, 0.005),
        ("head", 1.06, 0.005),
        // Compressors 0.524, and 0.28 of the indexer.
        ("attn.compressor.csa.fused_indexer attn.compressor.hca.fused_wkv_wgate attn.indexer.wq_b", 0.804, 0.01),
        ("hc_attn_fn.first hc_attn_fn hc_ffn_fn hc_head_fn", 0.15, 0.005),
        ("ffn.gate", 0.09, 0.005),
    ];
    let rows = rows_at(1, "dsv4", Checkpoint::Native, WHOLE);
    for (names, gb, rounding) in parts {
        let found = moved_gb(rows.iter().filter(|row| names.split(' ').any(|name| name == row.name)));
        assert!((found - gb).abs() <= rounding, "{names}: {found} GB, expected {gb}");
    }
    for (model, checkpoint, gb, rounding) in [
        ("dsv4", Checkpoint::Native, 11.2, 0.05),
        ("dsv4", Checkpoint::Nvfp4, 11.4, 0.05),
        ("dsv4-pro", Checkpoint::Native, 40.0, 0.5),
    ] {
        let found = moved_gb(rows_at(1, model, checkpoint, WHOLE).iter());
        assert!((found - gb).abs() <= rounding, "{model} {checkpoint}: {found} GB, expected {gb}");
    }
}

#[test]
fn experts_are_touched_as_uniform_routing_has_it() {
    // Experts of Flash and Pro that get a token, of T tokens.
    for (m, flash, pro) in [(1, 6, 6), (8, 44, 45), (32, 136, 152), (64, 200, 244), (128, 244, 333), (2048, 256, 384)] {
        for (model, touched) in [("dsv4", flash), ("dsv4-pro", pro)] {
            let rows = rows_at(m, model, Checkpoint::Nvfp4, WHOLE);
            let row = rows.iter().find(|row| row.name == "ffn.experts.gate_up").unwrap();
            let weight_bytes = row.bytes - u64::from(m) * u64::from(row.k) * 2;
            let found = weight_bytes as f64 / (row.weight_bytes / u64::from(row.groups)) as f64;
            assert_eq!(found.round() as u32, touched, "{model} m = {m}");
        }
    }
}

#[test]
fn floors_are_the_time_to_read_or_to_multiply() {
    // 4096 x 8192 NVFP4 (9/16 byte a value) and 8 x 1024 x 4096 FP8 at 3050 GB/s; 2 * 8192 * 4096 * 8192 FLOPs at 787
    // TFLOP/s.
    for (name, m, floor_us) in [("attn.wo_b", 1, 6.2), ("attn.wo_a", 1, 11.03), ("attn.wo_b", 8192, 698.5)] {
        let rows = rows_at(m, "dsv4", Checkpoint::Nvfp4Full, WHOLE);
        let row = rows.iter().find(|row| row.name == name).unwrap();
        assert!((row.floor_us / floor_us - 1.0).abs() < 0.005, "{name} m{m}: {} us", row.floor_us);
    }
}

#[test]
fn shards_that_do_not_divide_are_refused_with_a_sentence() {
    for (model, checkpoint, shard, sentence) in [
        ("dsv4", "native", (0, 1), "expected tp to be a power of two, found tp = 0"),
        ("dsv4", "native", (6, 1), "expected tp to be a power of two, found tp = 6"),
        ("dsv4", "native", (1, 3), "expected ep to be a power of two, found ep = 3"),
        ("dsv4", "nvfp4", (16, 1), "expected tp to be at most 8 (the groups of `attn.wo_a`), found tp = 16"),
        ("dsv4-pro", "nvfp4", (32, 1), "expected tp to be at most 16 (the groups of `attn.wo_a`), found tp = 32"),
        (
            "dsv4-pro",
            "nvfp4",
            (16, 1),
            "expected k = 3072 of `ffn.shared.down` to split over tp = 16 in multiples of 128, found 192 a rank",
        ),
        (
            "dsv4",
            "nvfp4",
            (1, 512),
            "expected experts = 256 of `ffn.experts` to split over ep = 512 in multiples of 1, found 0.5 a rank",
        ),
        (
            "dsv4-pro",
            "nvfp4",
            (1, 256),
            "expected experts = 384 of `ffn.experts` to split over ep = 256 in multiples of 1, found 1.5 a rank",
        ),
    ] {
        let (tp, ep) = shard;
        let result = models::named(model).unwrap().inventory(checkpoint.parse().unwrap(), Shard { tp, ep });
        assert_eq!(result.unwrap_err().to_string(), sentence);
    }
}

#[test]
fn sixteen_ranks_of_pro_are_served_where_no_fp8_block_is_cut() {
    let rows = rows_at(1, "dsv4-pro", Checkpoint::Nvfp4Full, Shard { tp: 16, ep: 1 });
    let down = rows.iter().find(|row| row.name == "ffn.shared.down").unwrap();
    assert_eq!((down.n, down.k), (7168, 192));
}

fn ops(model: &str, checkpoint: Checkpoint, shard: Shard) -> Vec<Op> {
    models::named(model).unwrap().inventory(checkpoint, shard).unwrap()
}

fn rows_at(m: u32, model: &str, checkpoint: Checkpoint, shard: Shard) -> Vec<Row> {
    let rows = ops(model, checkpoint, shard).into_iter().flat_map(|op| op.rows(h100()));
    rows.filter(|row| row.m == m).collect()
}

fn numbers(rows: &[Row]) -> BTreeMap<(String, &'static str), u32> {
    let of_row = |row: &Row| {
        [("n", row.n), ("k", row.k), ("groups", row.groups), ("count", row.count)]
            .map(|(axis, value)| ((row.name.clone(), axis), value))
    };
    rows.iter().flat_map(of_row).collect()
}

/// GB that a step moves, activations included: at M = 1 they are below the rounding.
fn moved_gb<'a>(rows: impl Iterator<Item = &'a Row>) -> f64 {
    rows.map(|row| (row.bytes * u64::from(row.count)) as f64).sum::<f64>() / 1e9
}

fn model_bytes(model: &str, checkpoint: Checkpoint, shard: Shard) -> u64 {
    ops(model, checkpoint, shard).iter().map(|op| op.weight_bytes() * u64::from(op.count)).sum()
}

fn for_every_shard(check: impl Fn(&str, Checkpoint, Shard)) {
    for model in MODELS {
        for checkpoint in Checkpoint::ALL {
            for tp in [1, 2, 4, 8] {
                for ep in [1, 2, 4, 8] {
                    check(model, checkpoint, Shard { tp, ep });
                }
            }
        }
    }
}

fn h100() -> &'static GpuSpec {
    GpuSpec::named("h100").unwrap()
}
