//! The next token from its logits, and the step after it. The definition is `engine::sampling`, to the bit.

use super::{Op, threads_for};

/// Chooses a token from each row of logits: `(logits f32 [m, vocabulary], settings, rows [m] or null, positions,
/// sequences, tokens [m] out, m_on_device, m)`, where `m` counts rows of logits and `vocabulary` is
/// a multiple of 4.
///
/// Row `i` of the logits is that of row `rows[i]` of the step, as for [`super::gather_rows`], or `i` without `rows`;
/// `positions` and `sequences` are the step's.
///
/// `settings` are 16 bytes in device memory, so that a captured graph can be given others: temperature f32, top_p f32,
/// seed u64. Temperature 0 takes the largest logit, ties to the lower id. A row with a NaN or an infinity gives -1.
/// The draw depends on the row's logits, the settings, and the row's sequence and position, and on nothing else.
pub fn sample(m: u32, vocabulary: u32) -> Op {
    // Two warps at least: a range of tokens is divided among warps until one is left.
    let threads = threads_for(vocabulary, 1024).max(64);
    let fields = [("vocabulary", vocabulary.into()), ("threads", threads.into())];
    Op::new("sample", fields, [m, 1, 1], threads)
}

/// Turns a decode step's arrays into the next step's: `(sampled [m], token_ids [m], positions [m], sequences [m],
/// step_start [slots], m_on_device, m)`.
///
/// `token_ids[t] = sampled[t]`, `positions[t] += 1`, `step_start[sequences[t]] = positions[t]`.
pub fn advance(m: u32) -> Op {
    let threads = threads_for(m, 128);
    Op::new("advance", [("threads", threads.into())], [m.div_ceil(threads), 1, 1], threads)
}
