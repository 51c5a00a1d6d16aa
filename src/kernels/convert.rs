//! Activations to NVFP4, or to FP8 in the order of `a8` operands; one block of threads a token.

use std::collections::BTreeMap;

use super::space::{number, tile_values};
use super::{Axis, Family, Launch, Operand, Param, Plan, Rule, Work};
use crate::arch::{ArchSpec, GpuSpec};
use crate::codegen::Request;
use crate::problem::{Convert, Problem, Tile};
use crate::quant::WeightFormat;

/// `templates/quantise`.
pub struct Quantise;

impl Family for Quantise {
    fn name(&self) -> &'static str {
        "quantise"
    }

    fn serves(&self, problem: &Problem, _: &ArchSpec) -> Result<(), String> {
        match problem {
            Problem::Convert(convert) if matches!(convert.to, WeightFormat::Nvfp4 | WeightFormat::Fp8) => Ok(()),
            Problem::Convert(convert) => Err(format!("expected nvfp4 or fp8, found {}", convert.to)),
            other => Err(format!("expected a conversion of activations, found `{other}`")),
        }
    }

    fn axes(&self, _: &Problem, _: &ArchSpec) -> Vec<Axis> {
        vec![Axis::new("threads", [64, 128, 256, 512])]
    }

    fn rules(&self) -> &'static [Rule] {
        &RULES
    }

    fn default_tile(&self, problem: &Problem, _: &GpuSpec) -> Tile {
        let Problem::Convert(convert) = problem else { unreachable!("`serves` has refused other problems") };
        Tile::new(self.name(), [("threads", threads_for(convert.k))])
    }

    fn plan(&self, problem: &Problem, tile: &Tile, _: &GpuSpec) -> Plan {
        let Problem::Convert(convert) = problem else { unreachable!("`serves` has refused other problems") };
        let params = vec![
            Param::Operand(Operand::Activations),
            Param::Operand(Operand::Output),
            Param::Operand(Operand::BlockScales),
            Param::Operand(Operand::RowScales),
            Param::Operand(Operand::Counters),
            Param::TokensOnDevice,
            Param::ActivationStride,
            Param::Tokens,
            Param::Int(convert.k as i32),
            Param::Int(0),
        ];
        Plan::single(launch(convert, tile, params))
    }

    fn numerics(&self, _: &Problem, _: &Tile) -> String {
        "quantise".to_string()
    }
}

/// The launch of `templates/quantise` that does `convert` with `params`.
fn launch(convert: &Convert, tile: &Tile, params: Vec<Param>) -> Launch {
    let threads = number(tile, "threads");
    let is_nvfp4 = BTreeMap::from([("is_nvfp4", (convert.to == WeightFormat::Nvfp4).into())]);
    let values = BTreeMap::from([("problem", is_nvfp4), ("tile", tile_values(tile, &["threads"]))]);
    Launch {
        kernel: Request { template: "quantise", values, wgmma_tokens: None },
        grid: [convert.m, 1, 1],
        threads,
        smem_bytes: 0,
        params,
        work: Work {
            blocks: f64::from(convert.m),
            memory_bytes: convert.bytes() as f64,
            l2_bytes: convert.bytes() as f64,
            bytes_in_flight: f64::from(threads * 32),
            block_issues: f64::from(convert.k.div_ceil(16)) / 32.0 * 700.0,
            tail_steps: 4.0,
            registers: 40,
            ..Work::default()
        },
    }
}

/// Rows of BF16 that a block of experts converts to FP8 on its way.
pub(super) struct Rows {
    pub from: Param,
    /// Elements between rows of `from`.
    pub stride: Param,
    /// Places of the codes and of the scales in the workspace.
    pub to: [u64; 2],
    pub counters: Operand,
    /// Address of the number of rows, or null for `most`.
    pub count: Param,
    /// The most rows that there may be.
    pub most: Param,
    pub k: u32,
}

/// Converts `rows`, up to `most` of them.
pub(super) fn rows_to_fp8(rows: Rows, most: u32) -> Launch {
    let convert = Convert { to: WeightFormat::Fp8, k: rows.k, m: most };
    let tile = Tile::new("quantise", [("threads", threads_for(rows.k))]);
    let [codes, scales] = rows.to;
    let params = vec![
        rows.from,
        Param::Workspace(codes),
        Param::Null,
        Param::Workspace(scales),
        Param::Operand(rows.counters),
        rows.count,
        rows.stride,
        rows.most,
        Param::Int(rows.k as i32),
        Param::Int(0),
    ];
    launch(&convert, &tile, params)
}

/// Threads for a row of `k`: one for each block of 16, as far as that makes sense.
fn threads_for(k: u32) -> u32 {
    k.div_ceil(16).next_power_of_two().clamp(64, 256)
}

const RULES: [Rule; 1] = [Rule {
    name: "idle",
    check: |tile, problem, _| {
        let (threads, blocks) = (number(tile, "threads"), blocks_of_16(problem));
        if threads == 64 || threads <= blocks.next_power_of_two() {
            return Ok(());
        }
        Err(format!("a token has {blocks} blocks of 16, fewer than {threads} threads"))
    },
}];

fn blocks_of_16(problem: &Problem) -> u32 {
    let Problem::Convert(convert) = problem else { unreachable!("`serves` has refused other problems") };
    convert.k.div_ceil(16)
}
