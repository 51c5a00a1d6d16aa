//! Routing, sampling and what follows it.

use std::collections::BTreeSet;

use tilekiln::device::Buffer;
use tilekiln::engine::{Sampling, sampling};
use tilekiln::kernels::runner::{self, Route};

use super::{NULL, Numbers, blank, case, close, equal, launch, number, pointer, read_f32, read_i32};
use crate::context::{Case, Context, Failure};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![case("advance", advance), case("route broken logits", broken_routes)];
    for (experts, top_k, scale) in [(8, 2, 1.5), (8, 6, 2.5), (256, 6, 1.5), (384, 6, 2.5)] {
        let shape = Route { experts, top_k, scale, hashed_vocabulary: None };
        cases.push(case(&format!("route {experts} by score"), move |context| by_score(context, &shape)));
        let hashed = Route { hashed_vocabulary: Some(40), ..shape };
        cases.push(case(&format!("route {experts} by token"), move |context| by_token(context, &hashed)));
    }
    for vocabulary in [40, 256, 512, 129_280] {
        cases.push(case(&format!("sample {vocabulary}"), move |context| sample(context, vocabulary)));
    }
    cases
}

/// Experts and weights that `shape` gives for `logits`, `live` tokens of a bucket of `m`.
fn route(
    context: &Context,
    shape: &Route,
    logits: &[f32],
    [bias, table, ids]: [Option<&Buffer>; 3],
    [live, m]: [usize; 2],
) -> Result<(Vec<i32>, Vec<f32>), Failure> {
    let k = shape.top_k as usize;
    let (logits_at, live_at) = (context.buffer(logits)?, context.buffer(&[live as i32])?);
    let (experts, weights) = (blank(context, m * k * 4)?, blank(context, m * k * 4)?);
    let optional = [bias, table, ids].map(|buffer| buffer.map_or(NULL, pointer));
    let outputs = [&experts, &weights, &live_at].map(pointer);
    let values = [&[pointer(&logits_at)], &optional[..], &outputs, &[number(m as u32), NULL]].concat();
    launch(context, &runner::route(m as u32, shape, None), &values)?;
    let what = format!("route {shape:?}");
    Ok((read_i32(&what, &experts, [live * k, m * k])?, read_f32(&what, &weights, [live * k, m * k])?))
}

fn score(logit: f32) -> f64 {
    let x = f64::from(logit);
    (x.max(0.0) + (-x.abs()).exp().ln_1p()).sqrt()
}

fn expected_weights(shape: &Route, logits: &[f32], experts: &[i32]) -> Vec<f64> {
    let scores: Vec<f64> = experts.iter().map(|&expert| score(logits[expert as usize])).collect();
    let sum: f64 = scores.iter().sum();
    scores.iter().map(|score| score / sum * f64::from(shape.scale)).collect()
}

fn by_score(context: &mut Context, shape: &Route) -> Result<usize, Failure> {
    let (e, k) = (shape.experts as usize, shape.top_k as usize);
    let mut checks = 0;
    for [live, m] in [[1, 1], [3, 4], [33, 40], [70, 80]] {
        let mut numbers = Numbers(m as u64);
        let mut logits = numbers.floats(m * e, 8.0);
        // The last token's logits are equal: ties go to the lower index where the bias does not decide.
        logits[(live - 1) * e..live * e].fill(-30.0);
        let mut bias = numbers.floats(e, 0.5);
        if live > 1 {
            bias[..e / 2].fill(0.25);
        }
        let bias_at = context.buffer(&bias)?;
        let (experts, weights) = route(context, shape, &logits, [Some(&bias_at), None, None], [live, m])?;
        for token in 0..live {
            let logits = &logits[token * e..][..e];
            let biased: Vec<f64> = logits.iter().zip(&bias).map(|(&l, &b)| score(l) + f64::from(b)).collect();
            let mut order: Vec<i32> = (0..e as i32).collect();
            order.sort_by(|&a, &b| biased[b as usize].total_cmp(&biased[a as usize]).then(a.cmp(&b)));
            let what = format!("route {shape:?} token {token} of {live}");
            checks += equal(&what, &experts[token * k..][..k], &order[..k])?;
            let expected = expected_weights(shape, logits, &order[..k]);
            checks += close(&what, &weights[token * k..][..k], &expected, [2e-6, 0.0])?;
        }
    }
    Ok(checks)
}

fn by_token(context: &mut Context, shape: &Route) -> Result<usize, Failure> {
    let (e, k, v, m, live) = (shape.experts as usize, shape.top_k as usize, 40usize, 6, 5);
    let table: Vec<i32> = (0..v * k).map(|idx| ((idx / k * 7 + idx % k * 3) % e) as i32).collect();
    let ids = [3, 39, 0, 17, -1, 5];
    let logits = Numbers(11).floats(m * e, 5.0);
    let (table_at, ids_at) = (context.buffer(&table)?, context.buffer(&ids)?);
    let (experts, weights) = route(context, shape, &logits, [None, Some(&table_at), Some(&ids_at)], [live, m])?;
    let mut checks = 0;
    for token in 0..live {
        let what = format!("route {shape:?} token {token}");
        let (experts, weights) = (&experts[token * k..][..k], &weights[token * k..][..k]);
        match usize::try_from(ids[token]) {
            Ok(id) => {
                checks += equal(&what, experts, &table[id * k..][..k])?;
                let expected = expected_weights(shape, &logits[token * e..][..e], experts);
                checks += close(&what, weights, &expected, [2e-6, 0.0])?;
            }
            Err(_) => checks += broken(&what, shape, experts, weights)?,
        }
    }
    Ok(checks)
}

/// Experts within range and different, weights NaN.
fn broken(what: &str, shape: &Route, experts: &[i32], weights: &[f32]) -> Result<usize, Failure> {
    let known: BTreeSet<i32> =
        experts.iter().copied().filter(|expert| (0..shape.experts as i32).contains(expert)).collect();
    if known.len() != experts.len() {
        return Err(format!("{what}: expected different experts below {}, found {experts:?}", shape.experts).into());
    }
    if !weights.iter().all(|weight| weight.is_nan()) {
        return Err(format!("{what}: expected weights that are NaN, found {weights:?}").into());
    }
    Ok(2)
}

fn broken_routes(context: &mut Context) -> Result<usize, Failure> {
    let shape = Route { experts: 256, top_k: 6, scale: 1.5, hashed_vocabulary: None };
    let mut checks = 0;
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for count in [1, 251, 256] {
            let mut logits = Numbers(13).floats(256, 4.0);
            logits[..count].fill(bad);
            let bias_at = context.buffer(&[0.0f32; 256])?;
            let (experts, weights) = route(context, &shape, &logits, [Some(&bias_at), None, None], [1, 1])?;
            checks += broken(&format!("route with {count} of {bad}"), &shape, &experts, &weights)?;
        }
    }
    Ok(checks)
}

/// The same tokens as the definition's, for settings of every kind and rows of every sort.
fn sample(context: &mut Context, vocabulary: u32) -> Result<usize, Failure> {
    let (v, m, live) = (vocabulary as usize, 9u32, 8usize);
    let mut numbers = Numbers(u64::from(vocabulary));
    let mut logits = numbers.floats(m as usize * v, 6.0);
    // Rows: flat with ties; a peak; two equal peaks; one NaN; one infinity; steps of equal logits; the others random.
    logits[..v].fill(0.5);
    logits[v + v / 2] = 40.0;
    (logits[2 * v + 3], logits[2 * v + v - 1]) = (12.0, 12.0);
    logits[3 * v + v / 3] = f32::NAN;
    logits[4 * v + v - 1] = f32::NEG_INFINITY;
    (0..v).for_each(|id| logits[5 * v + id] = (id % 9) as f32 * 0.75 - 0.0);
    let positions: Vec<i32> = (0..9).map(|row| 1000 * row + 7).collect();
    let sequences = [3, 0, 1, 2, 5, 4, 9, 8, 7];
    let (logits_at, live_at) = (context.buffer(&logits)?, context.buffer(&[live as i32])?);
    let (positions_at, sequences_at) = (context.buffer(&positions)?, context.buffer(&sequences)?);
    // Every second seed takes positions and sequences by the rows of the step.
    let rows = [8i32, 2, 2, 5, 0, 1, 7, 3, 4];
    let rows_at = context.buffer(&rows)?;
    let mut checks = 0;
    for (temperature, top_p) in
        [(0.0, 1.0), (1.0, 1.0), (0.7, 0.95), (1.3, 0.5), (0.2, 0.0), (2.0, 0.999), (1e-38, 0.9)]
    {
        for seed in [0, 1, u64::MAX - 5] {
            let settings = Sampling { temperature, top_p, seed };
            let settings_at = context.buffer(&sampling::settings(&settings))?;
            let tokens = blank(context, m as usize * 4)?;
            let has_rows = seed % 2 == 1;
            let inputs = [pointer(&logits_at), pointer(&settings_at), if has_rows { pointer(&rows_at) } else { NULL }];
            let buffers = [&positions_at, &sequences_at, &tokens, &live_at].map(pointer);
            launch(context, &runner::sample(m, vocabulary), &[&inputs[..], &buffers, &[number(m)]].concat())?;
            let what = format!("sample {vocabulary} {settings:?}");
            let expected: Vec<i32> = (0..live)
                .map(|row| {
                    let step_row = if has_rows { rows[row] as usize } else { row };
                    let (slot, position) = (sequences[step_row] as u32, positions[step_row] as u32);
                    let token = sampling::sample(&logits[row * v..][..v], &settings, slot, position);
                    token.map_or(-1, |token| token as i32)
                })
                .collect();
            checks += equal(&what, &read_i32(&what, &tokens, [live, m as usize])?, &expected)?;
        }
    }
    Ok(checks)
}

fn advance(context: &mut Context) -> Result<usize, Failure> {
    let (m, live) = (300u32, 290usize);
    let sampled: Vec<i32> = (0..300).map(|row| row * 3).collect();
    let sequences: Vec<i32> = (0..300).map(|row| (row * 7) % 300).collect();
    let positions: Vec<i32> = (0..300).map(|row| row + 50).collect();
    let (sampled_at, sequences_at) = (context.buffer(&sampled)?, context.buffer(&sequences)?);
    let (positions_at, live_at) = (context.buffer(&positions)?, context.buffer(&[live as i32])?);
    let (ids, starts) = (blank(context, 4 * 300)?, context.buffer(&[-7i32; 300])?);
    let buffers = [&sampled_at, &ids, &positions_at, &sequences_at, &starts, &live_at].map(pointer);
    launch(context, &runner::advance(m), &[&buffers[..], &[number(m)]].concat())?;
    let mut checks = equal("advance ids", &read_i32("advance", &ids, [live, 300])?, &sampled[..live])?;
    let expected: Vec<i32> = positions.iter().enumerate().map(|(row, p)| p + i32::from(row < live)).collect();
    checks += equal("advance positions", &positions_at.download::<i32>(300)?, &expected)?;
    let mut expected = vec![-7; 300];
    (0..live).for_each(|row| expected[sequences[row] as usize] = positions[row] + 1);
    Ok(checks + equal("advance starts", &starts.download::<i32>(300)?, &expected)?)
}
