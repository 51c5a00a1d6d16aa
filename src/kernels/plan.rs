//! What is to be launched, by name: a plan knows no pointer and no stream.

use crate::codegen;
use crate::problem::{Activations, Dense};
use crate::quant::WeightFormat;

/// The launches of one tile for one problem, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// One after the other on one stream.
    pub launches: Vec<Launch>,
    /// Bytes that the caller provides, zeroed once, for each launch that may run beside others. The launches leave them
    /// ready for the next time.
    pub workspace_bytes: u64,
}

/// One kernel launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The kernel.
    pub kernel: codegen::Request,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, bytes.
    pub smem_bytes: u32,
    /// The kernel's parameters, in its order.
    pub params: Vec<Param>,
    /// What it has to do.
    pub work: Work,
}

/// Something that the caller has a pointer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// Tokens: A, X.
    Activations,
    /// Packed weights: W, or gate-up of the experts.
    Weights,
    /// Packed down weights of the experts.
    DownWeights,
    /// The result: D.
    Output,
    /// `[m, top_k]` int32: the expert of each slot.
    Experts,
    /// `[m, top_k]` f32: the routing weight of each slot.
    Routing,
    /// `[local experts, 2]` f32: alpha of gate and up.
    UpAlpha,
    /// `[local experts]` f32: alpha of down.
    DownAlpha,
    /// Block scales written by a conversion.
    BlockScales,
    /// Row scales written by a conversion.
    RowScales,
    /// Counters of a conversion; of experts with FP8 tokens, those of the tokens.
    Counters,
    /// Counters of the hidden rows of experts with FP8 tokens: three more behind [`Operand::Counters`].
    HiddenCounters,
    /// What a sublayer gave besides [`Operand::Activations`], added to it; may be null.
    MoreActivations,
    /// Residual streams `[m, 4, hidden]`, read.
    Streams,
    /// Residual streams, written; may be those that are read.
    MixedStreams,
    /// `[m, 20]` f32: what streams are mixed by.
    Mixing,
}

/// One parameter of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    /// Pointer to an operand.
    Operand(Operand),
    /// Pointer into the workspace, at this byte.
    Workspace(u64),
    /// A null pointer.
    Null,
    /// Pointer to the number of tokens on the device, or null.
    TokensOnDevice,
    /// The number of tokens, at most the problem's bucket.
    Tokens,
    /// Elements between rows of the activations, 64 bits.
    ActivationStride,
    /// Elements between rows of the output, 64 bits.
    OutputStride,
    /// A 64-bit number.
    Long(i64),
    /// A 32-bit number.
    Int(i32),
    /// The clamp of SwiGLU.
    Limit,
    /// Row ranges and their alphas, by value.
    Segments,
    /// First expert of this rank.
    ExpertOffset,
    /// A tensor map, by value.
    Box(BoxMap),
}

/// A tensor map [k, row, group], read in boxes of 128 bytes x `tokens` rows with a 128-byte swizzle.
#[derive(Clone, Debug, PartialEq)]
pub struct BoxMap {
    /// Row 0: the activations, or a place in the workspace.
    pub base: BoxBase,
    /// What is read: BF16, or the codes of FP8.
    pub element: Activations,
    /// Extent of k.
    pub k: u64,
    /// Groups that stand side by side, `k` elements apart.
    pub groups: u64,
    /// Rows of a box.
    pub tokens: u32,
}

impl BoxMap {
    /// The activations of `dense`, `tokens` of them at a time.
    pub(super) fn of_tokens(dense: &Dense, tokens: u32) -> Self {
        let (k, groups) = (dense.k.into(), dense.groups.into());
        Self { base: BoxBase::Activations, element: dense.activations, k, groups, tokens }
    }
}

/// Where a tensor map begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoxBase {
    /// The activations: as many rows as there are tokens, at their stride.
    Activations,
    /// A place in the workspace: this many rows, `k` elements apart.
    Workspace {
        /// Byte of row 0.
        offset: u64,
        /// Rows.
        rows: u64,
    },
}

/// What a launch has to do, for the cost model. Averages under uniform routing where routing decides.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Blocks that have something to do.
    pub blocks: f64,
    /// Bytes that must come from or go to device memory, all blocks together.
    pub memory_bytes: f64,
    /// Bytes that all blocks together move between L2 and the SMs.
    pub l2_bytes: f64,
    /// Bytes that one block keeps on their way.
    pub bytes_in_flight: f64,
    /// Tensor-core FLOPs of one block, padding counted.
    pub block_flops: f64,
    /// Whether they run on wgmma, which is twice as fast as mma.sync on Hopper.
    pub is_wgmma: bool,
    /// Whether they are products of FP8, which has a rate of its own.
    pub is_fp8: bool,
    /// Instructions that one block issues for decoding and feeding the tensor cores, counted for a warp.
    pub block_issues: f64,
    /// Dependent steps at the end of a block that nothing hides: barriers, reductions, stores.
    pub tail_steps: f64,
    /// Registers of a thread, estimated; the compiled kernel's count takes its place when it is known.
    pub registers: u32,
    /// Whether the launch can fetch weights before the one ahead of it has ended.
    pub is_prefetching: bool,
}

impl Plan {
    /// A plan of one launch without workspace.
    pub(super) fn single(launch: Launch) -> Self {
        Self { launches: vec![launch], workspace_bytes: 0 }
    }

    /// The kernels of the plan.
    pub fn kernels(&self) -> impl Iterator<Item = &codegen::Request> {
        self.launches.iter().map(|launch| &launch.kernel)
    }
}

/// Hands out aligned pieces of a workspace.
#[derive(Default)]
pub(super) struct Workspace {
    bytes: u64,
}

impl Workspace {
    /// The next `bytes`, on 256.
    pub(super) fn take(&mut self, bytes: u64) -> u64 {
        let at = self.bytes;
        self.bytes = (at + bytes).next_multiple_of(256);
        at
    }

    /// Room for what `split` blocks sum of each of `tiles` output tiles, `sums` f32 a block, and for a ticket each:
    /// partials, then tickets; null where nobody shares a tile.
    pub(super) fn take_splits(&mut self, split: u32, tiles: u64, sums: u32) -> (Param, Param) {
        if split == 1 {
            return (Param::Null, Param::Null);
        }
        let floats = tiles * u64::from(split) * u64::from(sums);
        (Param::Workspace(self.take(4 * floats)), Param::Workspace(self.take(4 * tiles)))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The type in `templates/lib/format.cuh`.
pub(super) fn word_of(format: WeightFormat) -> &'static str {
    match format {
        WeightFormat::Nvfp4 => "Nvfp4",
        WeightFormat::Mxfp4 => "Mxfp4",
        WeightFormat::Fp8 => "Fp8",
        WeightFormat::Bf16 => "Bf16",
    }
}
