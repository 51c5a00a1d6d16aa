//! Norms and rotations between the projections of attention.

use super::{Op, float_word, threads_for};

/// The two parts of the fused first projection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QkvNorm {
    /// Length of the compressed query, a multiple of 8.
    pub q_rank: u32,
    /// Length of the key, a multiple of 8.
    pub head_dim: u32,
    /// Last elements of the key that are rotated, a multiple of 8.
    pub rope_dim: u32,
    /// Added to the mean square.
    pub norm_epsilon: f32,
    /// Whether the elements before the rotated ones are rounded to E4M3 in groups of 64, with power-of-two scales.
    pub has_fake_fp8: bool,
}

/// What happens to each head after it is rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotateKind {
    /// Nothing.
    Plain,
    /// An orthonormal Hadamard transform of the whole head, then MXFP4 values in groups of 32.
    HadamardMxfp4,
}

/// Heads that are rotated in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotate {
    /// Heads of a token.
    pub heads: u32,
    /// Length of a head: a power of two from 32 to 512.
    pub dim: u32,
    /// Last elements of a head that are rotated, a multiple of 8.
    pub rope_dim: u32,
    /// What else is done.
    pub kind: RotateKind,
}

/// Norms of the compressed query and of the key, and the key's rotation: `(qkv bf16 [m, q_rank + head_dim], q_norm f32
/// [q_rank], kv_norm f32 [head_dim], rope f32 [positions, rope_dim / 2, 2] (cos, sin), positions [m], qr bf16
/// [m, q_rank], kv_step bf16 [m, head_dim], m_on_device, m)`.
pub fn qkv_norm(m: u32, shape: &QkvNorm) -> Op {
    let threads = threads_for(shape.q_rank.max(shape.head_dim) / 8, 1024);
    let fields = [
        ("q_rank", shape.q_rank.into()),
        ("head_dim", shape.head_dim.into()),
        ("rope_dim", shape.rope_dim.into()),
        ("norm_epsilon", float_word(shape.norm_epsilon)),
        ("has_fake_fp8", shape.has_fake_fp8.into()),
        ("threads", threads.into()),
    ];
    Op::new("qkv_norm", fields, [m, 2, 1], threads)
}

/// Rotates the end of each head, in place: `(q bf16 [m, heads * dim], rope f32 [positions, rope_dim / 2, 2] (cos, sin),
/// positions [m], m_on_device, m)`.
pub fn rotate(m: u32, shape: &Rotate) -> Op {
    let warps = shape.heads.min(8);
    let fields = [
        ("heads", shape.heads.into()),
        ("dim", shape.dim.into()),
        ("rope_dim", shape.rope_dim.into()),
        ("has_hadamard", (shape.kind == RotateKind::HadamardMxfp4).into()),
        ("warps", warps.into()),
    ];
    Op::new("rotate", fields, [shape.heads.div_ceil(warps), m, 1], warps * 32)
}
