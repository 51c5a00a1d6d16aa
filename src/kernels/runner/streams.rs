//! Residual streams: where they start, how hyper-connections mix them around a sublayer, what leaves them.

use std::collections::BTreeMap;

use super::{Element, Op, float_word, threads_for};
use crate::codegen::{Request, Value};

/// The four residual streams of a model and how they are kept: `[m, STREAMS, hidden]` of `element`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Connection {
    /// Length of a stream, a multiple of 64.
    pub hidden: u32,
    /// What streams are stored as.
    pub element: Element,
    /// Whether this is the head's connection, which only reads: 4 mixing values in place of 24.
    pub is_head: bool,
    /// Added to the mean square of every RMS norm.
    pub norm_epsilon: f32,
    /// Added to mixing weights and to the sums that they are divided by.
    pub hc_epsilon: f32,
    /// Rounds of normalising the mixing matrix, the first one counted.
    pub sinkhorn_rounds: u32,
}

impl Connection {
    /// Rows of `fn`: mixing values of a token.
    pub fn rows(&self) -> u32 {
        if self.is_head { STREAMS } else { STREAMS * (STREAMS + 2) }
    }
}

/// Where the mixing matrix of a connection gets its Sinkhorn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// In [`hc_pre`], which makes it.
    Here,
    /// In a launch behind it: [`super::attend()`] or [`super::route`].
    Later,
}

/// Embedding of each token, copied to all streams: `(table bf16 [vocabulary, hidden], token_ids [m], streams
/// [m, 4, hidden], m_on_device, m)`.
///
/// A token that is not of the vocabulary gives NaN: the id -1 of a failed sampling stays visible.
pub fn embed(m: u32, vocabulary: u32, connection: &Connection) -> Op {
    let fields = [
        ("hidden", connection.hidden.into()),
        ("vocabulary", vocabulary.into()),
        ("element", connection.element.word()),
    ];
    let threads = threads_for(connection.hidden / 8, 256);
    Op::new("embed", fields, [(connection.hidden / 8).div_ceil(threads), m, 1], threads)
}

/// Closes one sublayer and starts the next: new streams, and partial sums of the next mixing values.
///
/// `(streams_in [m, 4, hidden], y0 bf16 [m, hidden], y1 bf16 [m, hidden] or null, mix_prev f32 [m, 20], fn f32
/// [rows, 4 * hidden], streams_out [m, 4, hidden], partials f32 [splits, m, rows + 1], m_on_device, m)`
///
/// With `has_post`, `streams_out[k] = post[k] * (y0 + y1) + sum over j of C[j][k] * streams_in[j]`, where `mix_prev`
/// holds `post[4]` and `C[4][4]`; `streams_out` may be `streams_in`. Without it `y0`, `y1`, `mix_prev` and
/// `streams_out` are not touched. Sums are of the streams as stored: `rows` products with `fn`, then the squares.
/// `splits` is [`hc_splits`]; `connection` is that of the sublayer that starts. The cut is the default one: the tuner's
/// family of this name renders the same kernel for any.
pub fn hc_mix(m: u32, connection: &Connection, has_post: bool) -> Op {
    let tile = MixTile::of(m, connection.hidden);
    let kernel = mix_kernel((connection.hidden, connection.rows(), connection.element), has_post, &tile);
    let groups = if tile.tokens == 1 { 1 } else { m.div_ceil(tile.tokens) };
    Op { kernel, grid: [connection.hidden / tile.slice, groups, 1], threads: tile.warps * 32, smem_bytes: 0 }
}

/// The kernel of [`hc_mix`] for streams of (hidden, `element`) and `rows` mixing values, cut as `tile` says.
pub(in crate::kernels) fn mix_kernel(
    (hidden, rows, element): (u32, u32, Element),
    has_post: bool,
    tile: &MixTile,
) -> Request {
    let mut fields = mix_fields((hidden, rows, element), has_post, tile.slice, tile.warps);
    fields.insert("tokens", tile.tokens.into());
    Request { template: "hc_mix", values: [("op", fields)].into(), wgmma_tokens: None }
}

/// What every kernel that mixes streams is told.
pub(in crate::kernels) fn mix_fields(
    (hidden, rows, element): (u32, u32, Element),
    has_post: bool,
    slice: u32,
    warps: u32,
) -> BTreeMap<&'static str, Value> {
    BTreeMap::from([
        ("hidden", hidden.into()),
        ("rows", rows.into()),
        ("element", element.word()),
        ("has_post", has_post.into()),
        ("slice", slice.into()),
        ("warps", warps.into()),
    ])
}

/// Parts that [`hc_mix`] leaves each sum in, for a bucket of `m` tokens.
pub fn hc_splits(m: u32, hidden: u32) -> u32 {
    hidden / MixTile::of(m, hidden).slice
}

/// Mixing values, and the normalised input of the sublayer.
///
/// `(streams [m, 4, hidden], partials f32 [splits, m, rows + 1], base f32 [rows], scale f32 [3] or [1], norm_weight f32
/// [hidden], x bf16 [m, hidden], mix_out f32 [m, 20] or null, m_on_device, m)`
///
/// `x = rms(sum over j of pre[j] * streams[j]) * norm_weight`, f32 with one rounding at the end; `mix_out` is what the
/// closing [`hc_mix`] takes, post and C after Sinkhorn. The head's connection writes no `mix_out`.
/// With [`Balance::Later`] C is stored as it is before Sinkhorn. `splits` is that of the default cut.
pub fn hc_pre(m: u32, connection: &Connection, balance: Balance) -> Op {
    hc_pre_of_parts(m, hc_splits(m, connection.hidden), connection, balance)
}

/// As [`hc_pre`], behind a mix that left each sum in `splits` parts.
pub fn hc_pre_of_parts(m: u32, splits: u32, connection: &Connection, balance: Balance) -> Op {
    // One warp more than the columns need: it makes the mixing matrices while the others make x.
    let threads = threads_for(connection.hidden / 8, 992) + 32;
    // As many tokens in a block as leave every SM of a large chip one, for they share the wait for their matrices; but
    // a thread of a larger block has no registers for the streams of the token after its own.
    let suits = |tokens: &u32| m >= tokens * LARGE_CHIP_SMS && threads <= 768;
    let tokens = [8, 4, 2].into_iter().find(suits).unwrap_or(1);
    let fields = [
        ("hidden", connection.hidden.into()),
        ("rows", connection.rows().into()),
        ("element", connection.element.word()),
        ("splits", splits.into()),
        ("tokens", tokens.into()),
        ("rounds", connection.sinkhorn_rounds.into()),
        ("balances", (balance == Balance::Here).into()),
        ("norm_epsilon", float_word(connection.norm_epsilon)),
        ("hc_epsilon", float_word(connection.hc_epsilon)),
    ];
    Op::new("hc_pre", fields, [m.div_ceil(tokens), 1, 1], threads)
}

/// Rows by index, such as the last token of each sequence: `(x bf16 [m, hidden], rows [count], out bf16
/// [count, hidden], count_on_device, count)`.
///
/// `out[i] = x[rows[i]]`; `count_on_device` may be null, then all `count` rows are copied.
pub fn gather_rows(count: u32, hidden: u32) -> Op {
    let threads = threads_for(hidden / 8, 256);
    Op::new("gather_rows", [("hidden", hidden.into())], [(hidden / 8).div_ceil(threads), count, 1], threads)
}

/// What a template takes that balances the matrices of `connection`, or none.
pub(super) fn balance_values(connection: Option<&Connection>) -> [(&'static str, Value); 3] {
    let (rounds, epsilon) = connection.map_or((1, 0.0), |of| (of.sinkhorn_rounds, of.hc_epsilon));
    [("balances", connection.is_some().into()), ("hc_epsilon", float_word(epsilon)), ("rounds", rounds.into())]
}

/// How [`hc_mix`] is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernels) struct MixTile {
    /// Columns of each stream for a block.
    pub slice: u32,
    /// Tokens that a block works on at a time. At 1 a warp keeps its part of `fn` in registers and walks the tokens.
    pub tokens: u32,
    /// Warps of a block; they divide the tokens, or with many the columns.
    pub warps: u32,
}

impl MixTile {
    /// Few tokens: as many blocks as there are slices of 32 columns, for the 1.5 MB of `fn` are the work. Many tokens:
    /// the largest slice that still gives each SM two blocks, so that partial sums stay few.
    pub fn of(m: u32, hidden: u32) -> Self {
        if m <= 32 {
            return Self { slice: 32, tokens: 1, warps: m.clamp(1, 4) };
        }
        let (tokens, warps) = (64, 4);
        let groups = m.div_ceil(tokens);
        let fits = |slice: &u32| hidden.is_multiple_of(*slice) && hidden / slice * groups >= 2 * LARGE_CHIP_SMS;
        let slice = [512, 256, 128, 64].into_iter().find(fits).unwrap_or(32);
        Self { slice, tokens, warps }
    }
}

/// Streaming multiprocessors of the chips that the runner's grids are sized for.
const LARGE_CHIP_SMS: u32 = 128;

/// Residual streams of a token.
pub const STREAMS: u32 = 4;

/// Values that [`hc_pre`] leaves for a token: `post[4]`, then `C[4][4]`.
pub const MIX_VALUES: u32 = STREAMS * (STREAMS + 1);
