//! Norms, rotations and copies of rows against f64.

use std::f64::consts::PI;

use tilekiln::kernels::runner::{self, QkvNorm, Rotate, RotateKind, SlotRows};

use super::{BF16_STEP, Numbers, STEPS, bits, blank, case, close, equal, launch, number, pointer, read_bf16};
use crate::context::{Case, Context, Failure};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![case("gather, expand and combine rows", copies)];
    for [q_rank, head_dim, rope_dim] in [[64, 64, 16], [128, 512, 64], [1024, 512, 64], [1536, 512, 64]] {
        for has_fake_fp8 in [false, true] {
            let shape = QkvNorm { q_rank, head_dim, rope_dim, norm_epsilon: 1e-6, has_fake_fp8 };
            cases.push(case(&format!("qkv_norm {q_rank} {head_dim} fp8 {has_fake_fp8}"), move |context| {
                STEPS.iter().try_fold(0, |sum, &step| Ok(sum + qkv_norm(context, &shape, step)?))
            }));
        }
    }
    for kind in [RotateKind::Plain, RotateKind::HadamardMxfp4] {
        for [heads, dim, rope_dim] in [[4, 64, 16], [5, 512, 64], [64, 128, 64], [64, 32, 16]] {
            if kind == RotateKind::HadamardMxfp4 && dim == 512 {
                continue;
            }
            let shape = Rotate { heads, dim, rope_dim, kind };
            cases.push(case(&format!("rotate {heads} x {dim} {kind:?}"), move |context| {
                STEPS.iter().try_fold(0, |sum, &step| Ok(sum + rotate(context, &shape, step)?))
            }));
        }
    }
    cases
}

/// Positions of tokens, and the table of `(cos, sin)` up to the last of them.
fn turns(m: usize, rope_dim: usize) -> (Vec<i32>, Vec<f32>) {
    let positions: Vec<i32> = (0..m).map(|token| (token * 37 % 101) as i32).collect();
    let angle = |position: usize, pair: usize| {
        let turns = position as f64 * 10_000f64.powf(-2.0 * pair as f64 / rope_dim as f64) / (2.0 * PI);
        2.0 * PI * turns.fract()
    };
    let pairs = (0..101).flat_map(|position| (0..rope_dim / 2).map(move |pair| (position, pair)));
    let table = pairs.flat_map(|(position, pair)| {
        let angle = angle(position, pair);
        [angle.cos() as f32, angle.sin() as f32]
    });
    (positions, table.collect())
}

/// Turns the end of `row`, whose position's `(cos, sin)` are `turns`.
fn turn(row: &mut [f64], turns: &[f32]) {
    let first = row.len() - turns.len();
    for (pair, turn) in row[first..].chunks_mut(2).zip(turns.chunks(2)) {
        let (a, b, cos, sin) = (pair[0], pair[1], f64::from(turn[0]), f64::from(turn[1]));
        (pair[0], pair[1]) = (a * cos - b * sin, a * sin + b * cos);
    }
}

fn norm(row: &mut [f64]) {
    let mean_square = row.iter().map(|value| value * value).sum::<f64>() / row.len() as f64;
    let factor = 1.0 / (mean_square + 1e-6).sqrt();
    row.iter_mut().for_each(|value| *value *= factor);
}

/// Values of a small format with a step of `step_of(value)` around each, under one scale: each is one of the format's,
/// and within half a step of what it was made from.
fn rounded_group(
    what: &str,
    (found, exact): (&[f32], &[f64]),
    scale: f64,
    step_of: impl Fn(f64) -> f64,
) -> Result<usize, Failure> {
    for (at, (&found, &exact)) in found.iter().zip(exact).enumerate() {
        let (code, wanted) = (f64::from(found) / scale, exact / scale);
        // The exact value may lie a little beyond the border of two steps.
        let step = step_of(wanted.abs().max(code.abs()));
        let is_code = (code / step_of(code.abs())).fract() == 0.0;
        if !is_code || (code - wanted).abs() > step * 0.5 + wanted.abs() * 1e-5 + 1e-6 {
            return Err(
                format!("{what}: element {at}: expected {exact:e} rounded under {scale:e}, found {found:e}").into()
            );
        }
    }
    Ok(found.len())
}

/// Steps of E4M3 and of E2M1 around a magnitude.
fn e4m3_step(magnitude: f64) -> f64 {
    2f64.powf(magnitude.max(2f64.powi(-6)).min(448.0).log2().floor() - 3.0)
}

fn e2m1_step(magnitude: f64) -> f64 {
    2f64.powf(magnitude.clamp(1.0, 6.0).log2().floor() - 1.0)
}

/// The least power of two that is no less than amax / most, by which a group is divided.
fn group_scale(exact: &[f64], most: f64, floor: f64) -> f64 {
    let amax = exact.iter().fold(floor, |amax, value| amax.max(value.abs()));
    2f64.powf((amax / most).log2().ceil())
}

fn qkv_norm(context: &mut Context, shape: &QkvNorm, (live, m): (u32, u32)) -> Result<usize, Failure> {
    let [q, d, rope_dim] = [shape.q_rank, shape.head_dim, shape.rope_dim].map(|count| count as usize);
    let (tokens, all) = (live as usize, m as usize);
    let mut numbers = Numbers(3);
    let qkv = numbers.rounded(all * (q + d), 4.0);
    let (q_norm, kv_norm) = (numbers.floats(q, 2.0), numbers.floats(d, 2.0));
    let (positions, table) = turns(all, rope_dim);
    let inputs = [context.buffer(&bits(&qkv))?, context.buffer(&q_norm)?, context.buffer(&kv_norm)?];
    let (table_at, positions_at) = (context.buffer(&table)?, context.buffer(&positions)?);
    let (qr, kv, live_at) =
        (blank(context, all * q * 2)?, blank(context, all * d * 2)?, context.buffer(&[live as i32])?);
    let [qkv_at, q_norm_at, kv_norm_at] = &inputs;
    let pointers = [qkv_at, q_norm_at, kv_norm_at, &table_at, &positions_at, &qr, &kv, &live_at].map(pointer);
    launch(context, &runner::qkv_norm(m, shape), &[&pointers[..], &[number(m)]].concat())?;

    let what = format!("qkv_norm {shape:?} m {live} of {m}");
    let found_qr = read_bf16(&what, &qr, [tokens * q, all * q])?;
    let found_kv = read_bf16(&what, &kv, [tokens * d, all * d])?;
    let mut checks = 0;
    for token in 0..tokens {
        let row: Vec<f64> = qkv[token * (q + d)..][..q + d].iter().map(|&value| f64::from(value)).collect();
        let (mut query, mut key) = (row[..q].to_vec(), row[q..].to_vec());
        norm(&mut query);
        norm(&mut key);
        query.iter_mut().zip(&q_norm).for_each(|(value, &weight)| *value *= f64::from(weight));
        key.iter_mut().zip(&kv_norm).for_each(|(value, &weight)| *value *= f64::from(weight));
        turn(&mut key, &table[positions[token] as usize * rope_dim..][..rope_dim]);
        let found = &found_kv[token * d..][..d];
        let plain = if shape.has_fake_fp8 { d - rope_dim } else { 0 };
        checks += close(&what, &found_qr[token * q..][..q], &query, [BF16_STEP, 1e-6])?;
        checks += close(&format!("{what} key"), &found[plain..], &key[plain..], [BF16_STEP, 1e-6])?;
        for (found, exact) in found[..plain].chunks(64).zip(key[..plain].chunks(64)) {
            let scale = group_scale(exact, 448.0, 1e-4);
            checks += rounded_group(&format!("{what} token {token}"), (found, exact), scale, e4m3_step)?;
        }
    }
    Ok(checks)
}

fn rotate(context: &mut Context, shape: &Rotate, (live, m): (u32, u32)) -> Result<usize, Failure> {
    let [heads, dim, rope_dim] = [shape.heads, shape.dim, shape.rope_dim].map(|count| count as usize);
    let (columns, tokens, all) = (heads * dim, live as usize, m as usize);
    let q = Numbers(5).rounded(all * columns, 3.0);
    let (positions, table) = turns(all, rope_dim);
    let (q_at, table_at) = (context.buffer(&bits(&q))?, context.buffer(&table)?);
    let (positions_at, live_at) = (context.buffer(&positions)?, context.buffer(&[live as i32])?);
    let pointers = [&q_at, &table_at, &positions_at, &live_at].map(pointer);
    launch(context, &runner::rotate(m, shape), &[&pointers[..], &[number(m)]].concat())?;

    let what = format!("rotate {shape:?} m {live} of {m}");
    let found = read_bf16(&what, &q_at, [all * columns, all * columns])?;
    let mut checks = equal(&format!("{what}: rows behind"), &found[tokens * columns..], &q[tokens * columns..])?;
    for (at, (found, before)) in found.chunks(dim).zip(q.chunks(dim)).take(tokens * heads).enumerate() {
        let mut head: Vec<f64> = before.iter().map(|&value| f64::from(value)).collect();
        turn(&mut head, &table[positions[at / heads] as usize * rope_dim..][..rope_dim]);
        let what = format!("{what} token {} head {}", at / heads, at % heads);
        if shape.kind != RotateKind::HadamardMxfp4 {
            checks += close(&what, found, &head, [BF16_STEP, 1e-6])?;
            continue;
        }
        let transformed: Vec<f64> = (0..dim)
            .map(|row| {
                let sign = |column: usize| if (row & column).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                let sum: f64 = head.iter().enumerate().map(|(column, value)| sign(column) * value).sum();
                sum / (dim as f64).sqrt()
            })
            .collect();
        for (found, exact) in found.chunks(32).zip(transformed.chunks(32)) {
            checks += rounded_group(&what, (found, exact), group_scale(exact, 6.0, 1e-30), e2m1_step)?;
        }
    }
    Ok(checks)
}

/// Rows by index, rows to slots, and slots summed again.
fn copies(context: &mut Context) -> Result<usize, Failure> {
    let (m, live, hidden, top_k) = (5u32, 3usize, 7168u32, 6u32);
    let (d, k, all) = (hidden as usize, top_k as usize, m as usize);
    let rows = SlotRows { top_k, hidden };
    let mut numbers = Numbers(9);
    let x = numbers.rounded(all * d, 2.0);
    let y = numbers.rounded(all * k * d, 2.0);
    let weights = numbers.floats(all * k, 1.0);
    let (x_at, y_at, weights_at) = (context.buffer(&bits(&x))?, context.buffer(&bits(&y))?, context.buffer(&weights)?);
    let live_at = context.buffer(&[live as i32])?;

    let chosen = [4i32, 0, 2, 1, 3];
    let (chosen_at, out) = (context.buffer(&chosen)?, blank(context, all * d * 2)?);
    let values = [&[&x_at, &chosen_at, &out, &live_at].map(pointer)[..], &[number(m)]].concat();
    launch(context, &runner::gather_rows(m, hidden), &values)?;
    let expected: Vec<f32> = chosen[..live].iter().flat_map(|&row| x[row as usize * d..][..d].to_vec()).collect();
    let mut checks = equal("gather_rows", &read_bf16("gather_rows", &out, [live * d, all * d])?, &expected)?;

    let out = blank(context, all * k * d * 2)?;
    let values = [&[&x_at, &out, &live_at].map(pointer)[..], &[number(m)]].concat();
    launch(context, &runner::expand_rows(m, rows), &values)?;
    let expected: Vec<f32> = x[..live * d].chunks(d).flat_map(|row| row.repeat(k)).collect();
    checks += equal("expand_rows", &read_bf16("expand_rows", &out, [live * k * d, all * k * d])?, &expected)?;

    let out = blank(context, all * d * 2)?;
    let values = [&[&y_at, &weights_at, &out, &live_at].map(pointer)[..], &[number(m)]].concat();
    launch(context, &runner::combine_slots(m, rows), &values)?;
    let sum = |idx: usize| -> f64 {
        let (token, column) = (idx / d, idx % d);
        let slots = token * k..(token + 1) * k;
        slots.map(|slot| f64::from(weights[slot]) * f64::from(y[slot * d + column])).sum()
    };
    let expected: Vec<f64> = (0..live * d).map(sum).collect();
    let found = read_bf16("combine_slots", &out, [live * d, all * d])?;
    Ok(checks + close("combine_slots", &found, &expected, [BF16_STEP, 1e-6])?)
}
