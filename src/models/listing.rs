//! The inventory as rows for people and scripts: one row for each matrix and M-bucket.
//!
//! A block of experts is one problem but two matrices. Their rows share out the block's bytes and FLOPs, so the rows of
//! one bucket add up to the model and count nothing twice.

use serde::Serialize;

use super::op::{Experts, Matrix, Op, Product, Segment};
use crate::arch::GpuSpec;
use crate::problem::{Activations, BF16_BYTES, BUCKETS, Output, Problem};
use crate::quant::WeightFormat;

/// One matrix of an op at one M-bucket. Sizes are those of one launch in one layer on one rank.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The op's name; `<op>.gate_up` and `<op>.down` for a block of experts.
    pub name: String,
    /// Rows of the weight of one group, gate and up both counted.
    pub n: u32,
    /// Reduction length of one group.
    pub k: u32,
    /// Groups of a grouped projection, or experts of this rank.
    pub groups: u32,
    /// Layers that launch it.
    pub count: u32,
    /// Weight format, or `f32`.
    pub weights: &'static str,
    /// How activations enter the product: `a16`, or `f32` beside F32 weights.
    pub activations: String,
    /// Type of the result.
    pub output: Output,
    /// Tensors that the matrix is made of, in the order of its rows.
    pub tensors: Vec<&'static str>,
    /// Row ranges of one group, each with its own alpha.
    pub segments: Vec<Segment>,
    /// The op that is tuned: the row itself, or the block that it belongs to.
    pub tuned_as: &'static str,
    /// The problem that is tuned, as `--problem` takes it.
    pub problem: String,
    /// Codes and scales in one layer, all groups, touched or not: `count` times this in the model.
    pub weight_bytes: u64,
    /// Tokens of the bucket.
    pub m: u32,
    /// Floating-point operations; of experts, the mean under uniform routing.
    pub flops: u64,
    /// Bytes that must move through device memory; of experts, the mean under uniform routing, with each touched
    /// expert's weights once and without the buffer between gate-up and down.
    pub bytes: u64,
    /// Time at the rates that the GPU reaches on large reads and products, microseconds.
    pub floor_us: f64,
}

impl Op {
    /// A row for each of [`BUCKETS`] and each matrix, buckets ascending, with floors for `gpu`.
    pub fn rows(&self, gpu: &GpuSpec) -> Vec<Row> {
        let rows_at = |m| self.parts(m).into_iter().map(move |part| self.row(part, m, gpu));
        BUCKETS.into_iter().flat_map(rows_at).collect()
    }

    fn row(&self, part: Part<'_>, m: u32, gpu: &GpuSpec) -> Row {
        let Part { suffix, matrix, weights, output, cost } = part;
        Row {
            name: format!("{}{suffix}", self.name),
            n: matrix.n(),
            k: matrix.k,
            groups: matrix.groups,
            count: self.count,
            weights: weights.map_or("f32", WeightFormat::name),
            activations: weights.map_or("f32".to_string(), |_| Activations::A16.to_string()),
            output,
            tensors: matrix.segments.iter().map(|segment| segment.tensor).collect(),
            segments: matrix.segments.clone(),
            tuned_as: self.name,
            problem: self.problem(m).to_string(),
            weight_bytes: weights.map_or(matrix.f32_bytes(), |format| matrix.bytes(format)),
            m,
            flops: cost.flops,
            bytes: cost.bytes,
            floor_us: cost.floor_us(gpu),
        }
    }

    /// The matrices of the op, each with its share of what `m` tokens cost.
    fn parts(&self, m: u32) -> Vec<Part<'_>> {
        match &self.product {
            Product::Gemm(gemm) => vec![Part {
                suffix: "",
                matrix: &gemm.matrix,
                weights: Some(gemm.weights),
                output: gemm.output,
                cost: Cost::of(&Problem::Dense(gemm.at(m))),
            }],
            Product::Experts(experts) => {
                let [gate_up, down] = Cost::of_experts(experts, m);
                let part = |suffix, matrix, cost| {
                    let (weights, output) = (Some(experts.weights), Output::Bf16);
                    Part { suffix, matrix, weights, output, cost }
                };
                vec![part(".gate_up", &experts.gate_up, gate_up), part(".down", &experts.down, down)]
            }
            Product::Streams(streams) => {
                let cost = Cost::of(&Problem::StreamMix(streams.at(m)));
                vec![Part { suffix: "", matrix: &streams.matrix, weights: None, output: Output::F32, cost }]
            }
        }
    }
}

/// One matrix of an op on its way to a row.
struct Part<'a> {
    suffix: &'static str,
    matrix: &'a Matrix,
    /// `None` for F32.
    weights: Option<WeightFormat>,
    output: Output,
    cost: Cost,
}

/// What a launch must move and compute at least.
#[derive(Clone, Copy)]
struct Cost {
    bytes: u64,
    flops: u64,
}

impl Cost {
    fn of(problem: &Problem) -> Self {
        Self { bytes: problem.bytes(), flops: problem.flops() }
    }

    /// Gate-up's and down's shares of the block: tokens are read by gate-up, results written by down.
    fn of_experts(experts: &Experts, m: u32) -> [Self; 2] {
        let block = experts.at(m);
        let (n, k) = (u64::from(experts.gate_up.n()), u64::from(experts.gate_up.k));
        let weight_bytes = block.touched_experts() * experts.weights.bytes(n, k) as f64;
        let gate_up = Self {
            bytes: weight_bytes.round() as u64 + u64::from(m) * k * BF16_BYTES,
            flops: (block.local_slots() * 2.0 * n as f64 * k as f64).round() as u64,
        };
        // Down is the rest, not rounded on its own, so that the two add up to the problem to the byte.
        let block = Self::of(&Problem::MoeBlock(block));
        [gate_up, Self { bytes: block.bytes - gate_up.bytes, flops: block.flops - gate_up.flops }]
    }

    /// [`Problem::floor_us`] of a share. F32 rows have the tensor rate of BF16 too: a bound, if a loose one.
    fn floor_us(self, gpu: &GpuSpec) -> f64 {
        let memory_us = self.bytes as f64 / (gpu.read_gbs * 1e3);
        let math_us = self.flops as f64 / (gpu.bf16_tflops * 1e6);
        memory_us.max(math_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::op::{Gemm, Streams};
    use crate::problem::Epilogue;

    fn h100() -> &'static GpuSpec {
        GpuSpec::named("h100").unwrap()
    }

    fn gemm() -> Op {
        let matrix = Matrix::new(&[("wo_b", 4096)], 8192);
        let (weights, output, epilogue) = (WeightFormat::Nvfp4, Output::Bf16, Epilogue::Plain);
        Op { name: "wo_b", count: 43, product: Product::Gemm(Gemm { matrix, weights, output, epilogue }) }
    }

    fn experts(local: u32) -> Op {
        let gate_up = Matrix::new(&[("w1", 2048), ("w3", 2048)], 4096).grouped(local);
        let down = Matrix::new(&[("w2", 4096)], 2048).grouped(local);
        let experts = Experts { gate_up, down, weights: WeightFormat::Nvfp4, experts: 256, top_k: 6 };
        Op { name: "experts", count: 43, product: Product::Experts(experts) }
    }

    #[test]
    fn a_row_for_each_bucket_has_the_numbers_of_its_problem() {
        let rows = gemm().rows(h100());
        assert_eq!(rows.iter().map(|row| row.m).collect::<Vec<_>>(), BUCKETS);
        for row in rows {
            let problem: Problem = row.problem.parse().unwrap();
            assert_eq!((row.bytes, row.flops), (problem.bytes(), problem.flops()), "{problem}");
            assert_eq!(row.floor_us, problem.floor_us(h100()), "{problem}");
        }
    }

    #[test]
    fn floors_are_memory_at_small_m_and_math_at_large() {
        let rows = gemm().rows(h100());
        // 4096 * 8192 * 9 / 16 bytes at 3050 GB/s; 2 * 8192 * 4096 * 8192 FLOPs at 787 TFLOP/s.
        assert!((rows[0].floor_us - 6.2).abs() < 0.02, "{}", rows[0].floor_us);
        assert!((rows[13].floor_us - 698.5).abs() < 0.5, "{}", rows[13].floor_us);
    }

    #[test]
    fn experts_share_out_the_block() {
        for op in [experts(256), experts(32)] {
            let rows = op.rows(h100());
            assert_eq!(rows.len(), 2 * BUCKETS.len());
            for pair in rows.chunks(2) {
                let [gate_up, down] = pair else { panic!("two rows a bucket") };
                assert_eq!((&gate_up.name[..], &down.name[..]), ("experts.gate_up", "experts.down"));
                assert_eq!((gate_up.tuned_as, down.tuned_as), ("experts", "experts"));
                let block = op.problem(gate_up.m);
                assert_eq!(gate_up.bytes + down.bytes, block.bytes(), "{block}");
                assert_eq!(gate_up.flops + down.flops, block.flops(), "{block}");
                assert_eq!(gate_up.weight_bytes + down.weight_bytes, op.weight_bytes());
                // Gate-up has two of an expert's three equal matrices, and either has a row of BF16 a token.
                let activation_bytes = u64::from(gate_up.m) * 4096 * 2;
                let weight_bytes = [gate_up, down].map(|row| (row.bytes - activation_bytes) as f64);
                assert!((weight_bytes[0] / weight_bytes[1] - 2.0).abs() < 1e-6, "{block}");
                assert!((gate_up.flops as f64 / down.flops as f64 - 2.0).abs() < 1e-6, "{block}");
                let floor_us = block.floor_us(h100());
                assert!((gate_up.floor_us + down.floor_us) / floor_us < 1.01, "{block}");
            }
        }
    }

    #[test]
    fn a_connection_has_f32_weights_and_the_bytes_of_its_streams() {
        let matrix = Matrix::new(&[("fn", 24)], 16384);
        let op = Op { name: "fn", count: 1, product: Product::Streams(Streams { matrix, has_post: false }) };
        let row = &op.rows(h100())[2];
        assert_eq!((row.weights, &row.activations[..], row.output), ("f32", "f32", Output::F32));
        assert_eq!((row.tuned_as, &row.problem[..]), ("fn", "hc f32 24x16384 first m4"));
        assert_eq!(row.weight_bytes, 24 * 16384 * 4);
        // Four bytes a value read, 24 sums and that of the squares written.
        assert_eq!(row.bytes, 24 * 16384 * 4 + 4 * (16384 * 4 + 25 * 4));
        assert_eq!(row.flops, 2 * 4 * 25 * 16384);
    }

    #[test]
    fn rows_are_objects_with_the_names_that_scripts_read() {
        let json = serde_json::to_value(&experts(256).rows(h100())[0]).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "name": "experts.gate_up", "n": 4096, "k": 4096, "groups": 256, "count": 43,
                "weights": "nvfp4", "activations": "a16", "output": "bf16",
                "tensors": ["w1", "w3"],
                "segments": [
                    { "tensor": "w1", "first_row": 0, "rows": 2048 },
                    { "tensor": "w3", "first_row": 2048, "rows": 2048 },
                ],
                "tuned_as": "experts", "problem": "moe nvfp4 256/256 top6 4096x2048 m1",
                "weight_bytes": 256 * 4096 * 4096 / 16 * 9_u64, "m": 1,
                "flops": 6 * 2 * 4096 * 4096, "bytes": 6 * 4096 * 4096 / 16 * 9 + 2 * 4096,
                "floor_us": json["floor_us"],
            })
        );
    }
}
