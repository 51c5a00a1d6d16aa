//! Activations rounded to NVFP4 and kept as BF16: a4 on chips without FP4 tensor cores.

use super::{Op, threads_for};

/// Where the f32 scale of a row is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActivationScale {
    /// The row's own amax.
    PerToken,
    /// The amax of all rows, from [`amax`].
    PerTensor,
    /// Device memory: one for all rows, or one for each value of `scale_of_row`.
    Static,
}

/// Rows that are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakeQuantise {
    /// Columns of a row, a multiple of 16.
    pub k: u32,
    /// Rows of a token.
    pub rows_per_token: u32,
    /// Where scales are from.
    pub scale: ActivationScale,
}

/// Rounds rows to NVFP4 as `quant::activation` does and stores the values as BF16: `(x bf16 [rows, k], out bf16
/// [rows, k], scales f32, scale_of_row [rows] or null, amax_seen u32 or null, counters u32 [4], m_on_device, ldx i64,
/// ldo i64, m)`, where rows are `rows_per_token` times the tokens.
///
/// - `scales`: `PerToken` null; `PerTensor` the bits of the amax, from [`amax`]; `Static` one scale, or with
///   `scale_of_row` one for each index. A negative index is a slot of another rank: its row is left alone.
/// - `amax_seen`: the bits of the largest finite magnitude so far are raised to this launch's; with `scale_of_row` one
///   number for each index.
/// - `counters`, added to: blocks of 16, saturated blocks, values not finite, and the largest complement of the place
///   `row * k + column` of one.
///
/// `x` and `out` may be the same. NaN and infinities, for which there is no code, stay in `out`: a later op shows them.
pub fn fake_quantise(m: u32, shape: &FakeQuantise) -> Op {
    let is = |scale| (shape.scale == scale).into();
    let threads = threads_for(shape.k / 16, 512);
    let fields = [
        ("k", shape.k.into()),
        ("rows_per_token", shape.rows_per_token.into()),
        ("is_per_token", is(ActivationScale::PerToken)),
        ("is_per_tensor", is(ActivationScale::PerTensor)),
        ("threads", threads.into()),
    ];
    Op::new("fake_quantise", fields, [m * shape.rows_per_token, 1, 1], threads)
}

/// The largest finite magnitude of all rows: `(x bf16 [rows, k], amax u32, m_on_device, ldx i64, m)`.
///
/// Raises the bits at `amax`, which [`reset_amax`] has set to zero before.
pub fn amax(m: u32, shape: &FakeQuantise) -> Op {
    let threads = threads_for(shape.k / 16, 512);
    let fields = [
        ("k", shape.k.into()),
        ("rows_per_token", shape.rows_per_token.into()),
        ("threads", threads.into()),
        ("is_reset", false.into()),
    ];
    Op::new("amax", fields, [m * shape.rows_per_token, 1, 1], threads)
}

/// Sets the number that [`amax`] raises to zero; its parameters, of which only `amax` is used.
pub fn reset_amax() -> Op {
    let fields = [("k", 16.into()), ("rows_per_token", 1.into()), ("threads", 32.into()), ("is_reset", true.into())];
    Op::new("amax", fields, [1, 1, 1], 32)
}
