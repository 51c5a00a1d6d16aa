//! Rows of a block of experts to the values that FP8 makes of them, kept in BF16; one block of threads a row.

use std::collections::BTreeMap;

use super::moe::{Schedule, slots};
use super::plan::Workspace;
use super::{Launch, Operand, Param, Work};
use crate::codegen::Request;
use crate::problem::MoeBlock;

/// Rows in the workspace: BF16 numbers that are E4M3 values, and a scale for each row.
#[derive(Clone, Copy)]
pub(super) struct RoundedRows {
    pub values: u64,
    pub scales: u64,
}

impl RoundedRows {
    pub fn reserve(workspace: &mut Workspace, rows: u32, k: u32) -> Self {
        let rows = u64::from(rows);
        Self { values: workspace.take(2 * rows * u64::from(k)), scales: workspace.take(4 * rows) }
    }
}

/// Rounds the tokens.
pub(super) fn tokens(block: &MoeBlock, to: RoundedRows) -> Launch {
    let params = [
        Param::Operand(Operand::Activations),
        Param::Workspace(to.values),
        Param::Workspace(to.scales),
        Param::Operand(Operand::Counters),
        Param::Null,
        Param::TokensOnDevice,
        Param::ActivationStride,
        Param::Tokens,
        Param::Int(block.hidden as i32),
        Param::Int(1),
        Param::Int(0),
        Param::Int(0),
    ];
    launch(block.hidden, block.m, f64::from(block.m), params)
}

/// Rounds the hidden rows of a walk, which stand at their slots: only those of this rank's experts have any.
pub(super) fn hidden_of_slots(block: &MoeBlock, hidden: u64, to: RoundedRows) -> Launch {
    let params = [
        Param::Workspace(hidden),
        Param::Workspace(to.values),
        Param::Workspace(to.scales),
        Param::Operand(Operand::HiddenCounters),
        Param::Operand(Operand::Experts),
        Param::TokensOnDevice,
        Param::Long(block.intermediate.into()),
        Param::Tokens,
        Param::Int(block.intermediate as i32),
        Param::Int(block.top_k as i32),
        Param::ExpertOffset,
        Param::Int(block.local_experts as i32),
    ];
    hidden_launch(block, params)
}

/// Rounds the hidden rows of a schedule, which are as many as it says.
pub(super) fn hidden_of_schedule(block: &MoeBlock, schedule: &Schedule, to: RoundedRows) -> Launch {
    let params = [
        Param::Workspace(schedule.hidden),
        Param::Workspace(to.values),
        Param::Workspace(to.scales),
        Param::Operand(Operand::HiddenCounters),
        Param::Null,
        Param::Workspace(schedule.slot_count(block)),
        Param::Long(block.intermediate.into()),
        Param::Int(slots(block) as i32),
        Param::Int(block.intermediate as i32),
        Param::Int(1),
        Param::Int(0),
        Param::Int(0),
    ];
    hidden_launch(block, params)
}

fn hidden_launch(block: &MoeBlock, params: [Param; 12]) -> Launch {
    launch(block.intermediate, slots(block), block.local_slots(), params)
}

/// A launch over `most` rows, of which `rows` are there on average.
fn launch(k: u32, most: u32, rows: f64, params: [Param; 12]) -> Launch {
    let threads = (k / PIECE).next_power_of_two().clamp(64, 512);
    let bytes = rows * f64::from(4 * k);
    Launch {
        kernel: Request {
            template: "round_rows",
            values: BTreeMap::from([("tile", BTreeMap::from([("threads", threads.into())]))]),
            wgmma_tokens: None,
        },
        grid: [most, 1, 1],
        threads,
        smem_bytes: 0,
        params: params.into(),
        work: Work {
            blocks: rows,
            memory_bytes: bytes,
            l2_bytes: bytes,
            // What is read and what is written.
            bytes_in_flight: f64::from(threads * 4 * PIECE),
            block_issues: f64::from(k.div_ceil(PIECE)) / 32.0 * PIECE_ISSUES,
            tail_steps: 4.0,
            registers: 32,
            ..Work::default()
        },
    }
}

/// Values that a thread takes at once: 16 bytes.
const PIECE: u32 = 8;

/// Instructions for the eight values of a lane: as `templates/quantise` has for its sixteen, half of them.
const PIECE_ISSUES: f64 = 350.0;
