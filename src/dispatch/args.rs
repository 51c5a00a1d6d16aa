//! What the caller brings to a launch: raw device addresses, strides and scales.

use crate::device::DevicePointer;
use crate::kernels::{Operand, Param, Plan};
use crate::problem::{Activations, Problem};

/// Row ranges of a weight with their own alpha: rows below `end[0]` have `alpha[0]`, and so on. Under SwiGLU gate and
/// up rows alternate, and `alpha[0]` is gate's, `alpha[1]` up's.
///
/// The same bytes as `Segments` in `templates/lib/epilogue.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segments {
    /// First row behind each range, ascending; the last is at least n.
    pub end: [i32; 4],
    /// What the sums of each range are multiplied by.
    pub alpha: [f32; 4],
}

impl Segments {
    /// One range: all rows have `alpha`.
    pub fn uniform(alpha: f32) -> Self {
        Self { end: [i32::MAX; 4], alpha: [alpha; 4] }
    }

    /// Alphas of gate and up, for SwiGLU.
    pub fn gate_up(gate: f32, up: f32) -> Self {
        Self { end: [i32::MAX; 4], alpha: [gate, up, up, up] }
    }

    /// Ranges of `(rows, alpha)` in the order of the rows; neighbours with the same alpha count as one, at most four.
    ///
    /// # Panics
    /// If there are none, or more than four.
    pub fn of(ranges: &[(u32, f32)]) -> Self {
        let mut merged: Vec<(u32, f32)> = Vec::with_capacity(ranges.len());
        for (rows, alpha) in ranges {
            match merged.last_mut() {
                Some((before, same)) if same.to_bits() == alpha.to_bits() => *before += rows,
                _ => merged.push((*rows, *alpha)),
            }
        }
        let ranges = merged;
        assert!((1..=4).contains(&ranges.len()), "expected one to four row ranges, found {}", ranges.len());
        let mut segments = Self::uniform(ranges[ranges.len() - 1].1);
        let mut end = 0;
        for (idx, (rows, alpha)) in ranges.iter().enumerate() {
            end += *rows as i32;
            segments.alpha[idx] = *alpha;
            // The last range is open, so that padding rows have an alpha too.
            segments.end[idx] = if idx + 1 == ranges.len() { i32::MAX } else { end };
        }
        segments
    }
}

/// Everything that a plan may need. Fields that a problem does not use stay as [`LaunchArgs::default`] has them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LaunchArgs {
    /// A: `[tokens, k]` BF16, on 16 bytes.
    pub activations: DevicePointer,
    /// Elements between rows of A, a multiple of 8.
    pub activation_stride: u32,
    /// Packed weights, on 16 bytes; of experts: gate-up, all local experts one behind the other.
    pub weights: DevicePointer,
    /// Packed down weights of the experts.
    pub down_weights: DevicePointer,
    /// D: `[tokens, n]`; of a conversion: the codes.
    pub output: DevicePointer,
    /// Elements between rows of D.
    pub output_stride: u32,
    /// Tokens of this step, at most the problem's bucket.
    pub tokens: u32,
    /// Address of an int32 with the number of tokens, or 0. With it `tokens` is only an upper bound, and A must have as
    /// many readable rows.
    pub tokens_on_device: DevicePointer,
    /// Alphas of the rows.
    pub segments: Segments,
    /// Clamp of SwiGLU; infinity for none.
    pub limit: f32,
    /// `[tokens, top_k]` int32.
    pub experts: DevicePointer,
    /// `[tokens, top_k]` f32.
    pub routing: DevicePointer,
    /// `[local experts, 2]` f32.
    pub up_alpha: DevicePointer,
    /// `[local experts]` f32.
    pub down_alpha: DevicePointer,
    /// First expert of this rank.
    pub expert_offset: u32,
    /// Block scales of a conversion to NVFP4.
    pub block_scales: DevicePointer,
    /// Row scales of a conversion, `[tokens]` f32: written by it, read by a GEMM with FP8 tokens.
    pub row_scales: DevicePointer,
    /// Three uint32 counters of a conversion; six of experts with FP8 tokens: of the tokens, then of the hidden rows,
    /// in the order of the experts. A token that no expert of this rank takes may be counted or not.
    pub counters: DevicePointer,
    /// Residual streams that a mix reads: `[tokens, 4, hidden]`, on 16 bytes. Its `activations` are what the sublayer
    /// gave, `[tokens, hidden]` BF16, its `weights` f32 as a checkpoint has them, and its `output` is the parts of its
    /// sums: `[hidden / slice, tokens, n + 1]` f32 by the tile's slice. All of them stand close together.
    pub streams: DevicePointer,
    /// Residual streams that a mix writes: those that it reads, or others.
    pub mixed_streams: DevicePointer,
    /// `[tokens, 20]` f32: what a mix mixes by, on 16 bytes.
    pub mixing: DevicePointer,
    /// What the sublayer gave besides `activations`, as these; null for nothing.
    pub more_activations: DevicePointer,
    /// [`Plan::workspace_bytes`](crate::kernels::Plan), zeroed once, one for each launch that may run
    /// beside others; on 256 bytes.
    pub workspace: DevicePointer,
}

impl Default for LaunchArgs {
    fn default() -> Self {
        Self {
            activations: 0,
            activation_stride: 0,
            weights: 0,
            down_weights: 0,
            output: 0,
            output_stride: 0,
            tokens: 0,
            tokens_on_device: 0,
            segments: Segments::uniform(1.0),
            limit: f32::INFINITY,
            experts: 0,
            routing: 0,
            up_alpha: 0,
            down_alpha: 0,
            expert_offset: 0,
            block_scales: 0,
            row_scales: 0,
            counters: 0,
            streams: 0,
            mixed_streams: 0,
            mixing: 0,
            more_activations: 0,
            workspace: 0,
        }
    }
}

/// Arguments that the kernels cannot work with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// An operand without an address.
    #[error("`{problem}` needs {operand:?}, found a null address")]
    Missing {
        /// What is launched.
        problem: String,
        /// What is not there.
        operand: Operand,
    },
    /// A plan with a workspace, and none given.
    #[error("`{problem}` needs a workspace of {bytes} bytes, found a null address")]
    NoWorkspace {
        /// What is launched.
        problem: String,
        /// How much it needs.
        bytes: u64,
    },
    /// A workspace whose parts would not be aligned.
    #[error("the workspace must lie on 256 bytes, found address {address:#x}")]
    WorkspaceAlignment {
        /// What it is.
        address: u64,
    },
    /// An address that wide copies cannot use.
    #[error("{operand:?} must lie on {alignment} bytes, found address {address:#x}")]
    Alignment {
        /// Which operand.
        operand: Operand,
        /// What it must be a multiple of.
        alignment: u64,
        /// What it is.
        address: u64,
    },
    /// Rows that overlap or that wide copies cannot use.
    #[error("rows of {operand:?} need a stride of at least {least} in multiples of {multiple}, found {stride}")]
    Stride {
        /// Which operand.
        operand: Operand,
        /// Columns of a row.
        least: u32,
        /// What the stride must be a multiple of.
        multiple: u32,
        /// What it is.
        stride: u32,
    },
    /// More tokens than the plan was made for.
    #[error("the plan is for up to {bucket} tokens, found {tokens}")]
    Tokens {
        /// The problem's bucket.
        bucket: u32,
        /// Tokens of the step.
        tokens: u32,
    },
}

impl LaunchArgs {
    /// Address of `operand`.
    pub(super) fn pointer(&self, operand: Operand) -> DevicePointer {
        match operand {
            Operand::Activations => self.activations,
            Operand::Weights => self.weights,
            Operand::DownWeights => self.down_weights,
            Operand::Output => self.output,
            Operand::Experts => self.experts,
            Operand::Routing => self.routing,
            Operand::UpAlpha => self.up_alpha,
            Operand::DownAlpha => self.down_alpha,
            Operand::BlockScales => self.block_scales,
            Operand::RowScales => self.row_scales,
            Operand::Counters => self.counters,
            Operand::HiddenCounters if self.counters == 0 => 0,
            Operand::HiddenCounters => self.counters + HIDDEN_COUNTERS_OFFSET,
            Operand::MoreActivations => self.more_activations,
            Operand::Streams => self.streams,
            Operand::MixedStreams => self.mixed_streams,
            Operand::Mixing => self.mixing,
        }
    }

    /// Refuses what the kernels of `plan` would fault on.
    pub(super) fn validate(&self, problem: &Problem, plan: &Plan) -> Result<(), ArgsError> {
        if self.tokens > problem.m() {
            return Err(ArgsError::Tokens { bucket: problem.m(), tokens: self.tokens });
        }
        for param in plan.launches.iter().flat_map(|launch| &launch.params) {
            if let Param::Operand(operand) = *param
                && self.pointer(operand) == 0
                && !is_optional(problem, operand)
            {
                return Err(ArgsError::Missing { problem: problem.to_string(), operand });
            }
        }
        if plan.workspace_bytes > 0 && self.workspace == 0 {
            return Err(ArgsError::NoWorkspace { problem: problem.to_string(), bytes: plan.workspace_bytes });
        }
        let output_alignment = match problem {
            Problem::Dense(dense) => dense.output.bytes(),
            // The combine writes pairs.
            Problem::MoeBlock(_) => 4,
            // Sixteen codes of FP8 are written at once.
            Problem::Convert(_) => 16,
            Problem::StreamMix(_) => 4,
        };
        let alignments = [
            (Operand::Activations, 16),
            (Operand::Weights, 16),
            (Operand::DownWeights, 16),
            (Operand::Output, output_alignment),
            (Operand::MoreActivations, 16),
            (Operand::Streams, 16),
            (Operand::MixedStreams, 16),
            (Operand::Mixing, 16),
        ];
        for (operand, alignment) in alignments {
            let address = self.pointer(operand);
            if !address.is_multiple_of(alignment) {
                return Err(ArgsError::Alignment { operand, alignment, address });
            }
        }
        if !self.workspace.is_multiple_of(WORKSPACE_ALIGNMENT) {
            return Err(ArgsError::WorkspaceAlignment { address: self.workspace });
        }
        self.validate_strides(problem)
    }

    /// Refuses rows that overlap, or that wide copies cannot use.
    fn validate_strides(&self, problem: &Problem) -> Result<(), ArgsError> {
        let (a_columns, d_columns, d_multiple) = match problem {
            Problem::Dense(dense) => (dense.a_columns(), dense.d_columns(), 1),
            // The combine writes pairs.
            Problem::MoeBlock(block) => (block.hidden, block.hidden, 2),
            // Codes stand close together.
            Problem::Convert(convert) => (convert.k, 0, 1),
            // So does everything that a mix reads and writes: strides are not asked for.
            Problem::StreamMix(_) => (0, 0, 1),
        };
        let a_multiple = match problem {
            Problem::Dense(dense) if dense.activations == Activations::A8 => 16,
            _ => 8,
        };
        let strides = [
            (Operand::Activations, a_columns, a_multiple, self.activation_stride),
            (Operand::Output, d_columns, d_multiple, self.output_stride),
        ];
        for (operand, least, multiple, stride) in strides {
            if stride < least || !stride.is_multiple_of(multiple) {
                return Err(ArgsError::Stride { operand, least, multiple, stride });
            }
        }
        Ok(())
    }
}

/// Bytes of the three counters in front.
const HIDDEN_COUNTERS_OFFSET: u64 = 12;

/// Parts of a workspace lie on multiples of this from its begin.
const WORKSPACE_ALIGNMENT: u64 = 256;

/// Block scales are written by the conversion to NVFP4 only, and a sublayer may give one result.
fn is_optional(problem: &Problem, operand: Operand) -> bool {
    let is_fp8 = matches!(problem, Problem::Convert(convert) if convert.to == crate::quant::WeightFormat::Fp8);
    is_fp8 && operand == Operand::BlockScales || operand == Operand::MoreActivations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cover_every_row() {
        let segments = Segments::of(&[(1024, 0.5), (512, 2.0)]);
        assert_eq!(segments.end, [1024, i32::MAX, i32::MAX, i32::MAX]);
        assert_eq!(segments.alpha, [0.5, 2.0, 2.0, 2.0]);
        assert_eq!(Segments::of(&[(7, 3.0)]), Segments::uniform(3.0));
    }
}
