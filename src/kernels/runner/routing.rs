//! Which experts a token goes to, and rows of tokens against rows of slots.

use super::streams::balance_values;
use super::{Connection, Op, float_word, threads_for};

/// How tokens choose experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Route {
    /// Experts of the layer.
    pub experts: u32,
    /// Experts of a token, at most 32.
    pub top_k: u32,
    /// What the normalised weights are multiplied by.
    pub scale: f32,
    /// Tokens of the vocabulary, for layers that choose by token id; `None` chooses by score.
    pub hashed_vocabulary: Option<u32>,
}

/// Rows of tokens and of their slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRows {
    /// Slots of a token.
    pub top_k: u32,
    /// Columns of a row, a multiple of 8.
    pub hidden: u32,
}

/// Experts and weights of each token: `(logits f32 [m, experts], bias f32 [experts] or null, tid2eid [vocabulary,
/// top_k] or null, token_ids [m], experts [m, top_k], weights f32 [m, top_k], m_on_device, m, mix f32 [m, 20] or
/// null)`.
///
/// A score is `sqrt(softplus(logit))`. Experts are those of the largest `score + bias`, in descending order, ties to
/// the lower index; or the row of `tid2eid`. Weights are scores over their sum, times the scale. A logit that is not
/// finite makes every weight of its token NaN, and so does a token id or a table entry out of range; the experts are
/// within range nevertheless.
///
/// Of few tokens it also balances the mixing matrices in `mix` if `connection` says how.
pub fn route(m: u32, shape: &Route, connection: Option<&Connection>) -> Op {
    // A short step waits for the scores of a token, a long one for all: then a warp has a token to itself.
    let (tokens, token_warps) = if m <= 64 { (1, shape.experts.div_ceil(32).min(8)) } else { (4, 1) };
    let fields = [
        ("experts", shape.experts.into()),
        ("top_k", shape.top_k.into()),
        ("scale", float_word(shape.scale)),
        ("is_hashed", shape.hashed_vocabulary.is_some().into()),
        ("vocabulary", shape.hashed_vocabulary.unwrap_or(0).into()),
        ("tokens", tokens.into()),
        ("token_warps", token_warps.into()),
    ];
    let rows = if connection.is_some() { 2 } else { 1 };
    let mut op = Op::new("route", fields, [rows * m.div_ceil(tokens), 1, 1], tokens * token_warps * 32);
    op.kernel.values.entry("op").or_default().extend(balance_values(connection));
    op
}

/// Sums each token's slots: `(y bf16 [m * top_k, hidden], weights f32 [m, top_k], out bf16 [m, hidden], m_on_device,
/// m)`.
///
/// `out[t] = sum over s, ascending, of weights[t][s] * y[t * top_k + s]`, f32 with one rounding at the end.
pub fn combine_slots(m: u32, shape: SlotRows) -> Op {
    let threads = threads_for(shape.hidden / 8, 256);
    let fields = [("hidden", shape.hidden.into()), ("top_k", shape.top_k.into())];
    Op::new("combine_slots", fields, [(shape.hidden / 8).div_ceil(threads), m, 1], threads)
}

/// Copies each token's row to its slots: `(x bf16 [m, hidden], out bf16 [m * top_k, hidden], m_on_device, m)`.
pub fn expand_rows(m: u32, shape: SlotRows) -> Op {
    let threads = threads_for(shape.hidden / 8, 256);
    let fields = [("hidden", shape.hidden.into()), ("top_k", shape.top_k.into())];
    Op::new("expand_rows", fields, [(shape.hidden / 8).div_ceil(threads), m, 1], threads)
}
