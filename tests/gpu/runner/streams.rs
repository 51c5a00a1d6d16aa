//! Embedding, hyper-connections and their norm against f64.

use tilekiln::device::{Buffer, Value};
use tilekiln::kernels::runner::{self, Balance, Connection, Element, Route};

use super::{
    BF16_STEP, NULL, Numbers, STEPS, bits, blank, case, close, equal, launch, number, pointer, read_bf16, read_f32,
};
use crate::context::{Case, Context, Failure};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![case("embed", embed)];
    for (hidden, element) in
        [(128, Element::F32), (256, Element::Bf16), (4096, Element::Bf16), (7168, Element::Bf16), (7168, Element::F32)]
    {
        for is_head in [false, true] {
            for has_post in [true, false] {
                let part = if is_head { "head" } else { "layer" };
                let start = if has_post { "after a sublayer" } else { "first" };
                let name = format!("connection {hidden} {element:?} {part} {start}");
                let connection = connection(hidden, element, is_head);
                cases.push(case(&name, move |context| {
                    STEPS.iter().try_fold(0, |sum, &step| Ok(sum + connect(context, &connection, has_post, step)?))
                }));
            }
        }
    }
    // Buckets whose blocks have two, four and eight tokens, the last of them in part.
    for (hidden, element, step) in [
        (4096, Element::F32, (257, 300)),
        (256, Element::Bf16, (511, 512)),
        (128, Element::F32, (1026, 1030)),
        (4096, Element::Bf16, (1031, 1100)),
    ] {
        for is_head in [false, true] {
            let connection = connection(hidden, element, is_head);
            let name = format!("connection {hidden} {element:?} head {is_head} of {} tokens", step.0);
            cases.push(case(&name, move |context| connect(context, &connection, true, step)));
        }
    }
    cases
}

fn connection(hidden: u32, element: Element, is_head: bool) -> Connection {
    Connection { hidden, element, is_head, norm_epsilon: 1e-6, hc_epsilon: 1e-6, sinkhorn_rounds: 20 }
}

/// Streams as a buffer of `element`, and back.
fn upload(context: &Context, element: Element, values: &[f32]) -> Result<Buffer, Failure> {
    match element {
        Element::Bf16 => context.buffer(&bits(values)),
        Element::F32 => context.buffer(values),
    }
}

fn read(what: &str, element: Element, buffer: &Buffer, lengths: [usize; 2]) -> Result<Vec<f32>, Failure> {
    match element {
        Element::Bf16 => read_bf16(what, buffer, lengths),
        Element::F32 => read_f32(what, buffer, lengths),
    }
}

/// A row a token in all four streams, NaN for ids that are none.
fn embed(context: &mut Context) -> Result<usize, Failure> {
    let mut checks = 0;
    for (hidden, element) in [(128u32, Element::F32), (4096, Element::Bf16)] {
        let (vocabulary, m, live) = (50u32, 5u32, 4usize);
        let table = Numbers(1).rounded((vocabulary * hidden) as usize, 3.0);
        let ids = [7, -1, 49, 50, 3];
        let count = 4 * hidden as usize;
        let streams = blank(context, m as usize * count * element.bytes() as usize)?;
        let (table_at, ids_at) = (context.buffer(&bits(&table))?, context.buffer(&ids)?);
        let live_at = context.buffer(&[live as i32])?;
        let op = runner::embed(m, vocabulary, &connection(hidden, element, false));
        let pointers = [&table_at, &ids_at, &streams, &live_at].map(pointer);
        launch(context, &op, &[&pointers[..], &[number(m)]].concat())?;
        let what = format!("embed {hidden} {element:?}");
        let found = read(&what, element, &streams, [live * count, m as usize * count])?;
        let value = |idx: usize| match usize::try_from(ids[idx / count]).ok().filter(|&id| id < vocabulary as usize) {
            Some(id) => f64::from(table[id * hidden as usize + idx % hidden as usize]),
            None => f64::NAN,
        };
        let expected: Vec<f64> = (0..live * count).map(value).collect();
        checks += close(&what, &found, &expected, [0.0, 0.0])?;
    }
    Ok(checks)
}

/// Inputs of a connection, in f32 that their buffers hold exactly.
struct Inputs {
    streams: Vec<f32>,
    y: [Vec<f32>; 2],
    mix: Vec<f32>,
    function: Vec<f32>,
    base: Vec<f32>,
    scale: Vec<f32>,
    norm: Vec<f32>,
}

impl Inputs {
    fn new(connection: &Connection, m: usize) -> Self {
        let (mut numbers, d, rows) = (Numbers(17), connection.hidden as usize, connection.rows() as usize);
        Self {
            streams: numbers.rounded(m * 4 * d, 2.0),
            // Behind attention there is no second output: a null pointer, in buckets of 3.
            y: [numbers.rounded(m * d, 2.0), numbers.rounded(m * d, if m == 3 { 0.0 } else { 1.0 })],
            mix: numbers.floats(m * 20, 1.0),
            function: numbers.floats(rows * 4 * d, 2.0 / (4.0 * d as f32).sqrt()),
            base: numbers.floats(rows, 1.0),
            scale: vec![0.7, 1.3, 2.1],
            norm: numbers.floats(d, 1.5),
        }
    }
}

/// Both kernels of a connection; the second on what the first has stored.
fn connect(
    context: &mut Context,
    connection: &Connection,
    has_post: bool,
    (live, m): (u32, u32),
) -> Result<usize, Failure> {
    let (d, rows, tokens) = (connection.hidden as usize, connection.rows() as usize, live as usize);
    let inputs = Inputs::new(connection, m as usize);
    let streams = upload(context, connection.element, &inputs.streams)?;
    let y = [context.buffer(&bits(&inputs.y[0]))?, context.buffer(&bits(&inputs.y[1]))?];
    let (mix, function) = (context.buffer(&inputs.mix)?, context.buffer(&inputs.function)?);
    let splits = runner::hc_splits(m, connection.hidden) as usize;
    let partials = blank(context, splits * m as usize * (rows + 1) * 4)?;
    let live_at = context.buffer(&[live as i32])?;
    let ends = [pointer(&live_at), number(m)];
    let second_y = if m == 3 { NULL } else { pointer(&y[1]) };
    let mixed = if has_post { [pointer(&y[0]), second_y, pointer(&mix)] } else { [NULL; 3] };
    let out = if has_post { pointer(&streams) } else { NULL };
    let first = [&[pointer(&streams)], &mixed[..], &[pointer(&function), out, pointer(&partials)], &ends].concat();
    launch(context, &runner::hc_mix(m, connection, has_post), &first)?;

    let what = format!("hc_mix {connection:?} m {live} of {m}");
    let count = m as usize * 4 * d;
    let stored = read(&what, connection.element, &streams, [count, count])?;
    let mut expected: Vec<f64> = inputs.streams.iter().map(|&h| f64::from(h)).collect();
    if has_post {
        (0..tokens).for_each(|token| post(&mut expected[token * 4 * d..][..4 * d], &inputs, token));
    }
    let tolerance = if connection.element == Element::Bf16 { [BF16_STEP, 1e-5] } else { [1e-6, 1e-5] };
    let mut checks = close(&what, &stored, &expected, tolerance)?;

    let (base, scale, norm) =
        (context.buffer(&inputs.base)?, context.buffer(&inputs.scale)?, context.buffer(&inputs.norm)?);
    let (x, mix_out) = (blank(context, m as usize * d * 2)?, blank(context, m as usize * 80)?);
    let mix_value = if connection.is_head { NULL } else { pointer(&mix_out) };
    let second = [&[&streams, &partials, &base, &scale, &norm, &x].map(pointer)[..], &[mix_value], &ends].concat();
    launch(context, &runner::hc_pre(m, connection, Balance::Here), &second)?;
    let what = format!("hc_pre {connection:?} m {live} of {m}");
    let found_x = read_bf16(&what, &x, [tokens * d, m as usize * d])?;
    let mixes = if connection.is_head { 0 } else { tokens * 20 };
    let found_mix = read_f32(&what, &mix_out, [mixes, m as usize * 20])?;
    for token in 0..tokens {
        let (x, mix) = pre(&stored[token * 4 * d..][..4 * d], connection, &inputs);
        checks += close(&format!("{what} x of token {token}"), &found_x[token * d..][..d], &x, [BF16_STEP, 2e-5])?;
        if !connection.is_head {
            let found = &found_mix[token * 20..][..20];
            checks += close(&format!("{what} mix of token {token}"), found, &mix, [2e-5, 2e-6])?;
        }
    }
    if !connection.is_head && m <= 16 {
        let balanced = balanced_later(context, connection, &second, (live, m))?;
        checks += equal(&format!("{what} balanced later"), &balanced, &found_mix)?;
    }
    Ok(checks + repeat(context, connection, &second, (&x, &found_x))?)
}

/// Mixing values whose matrices another launch balances: the same bits. `values` are those of `hc_pre`.
fn balanced_later(
    context: &Context,
    connection: &Connection,
    values: &[Value],
    (live, m): (u32, u32),
) -> Result<Vec<f32>, Failure> {
    let (experts, top_k) = (8, 2);
    let shape = Route { experts, top_k, scale: 1.5, hashed_vocabulary: None };
    let (mix, rows) = (blank(context, m as usize * 80)?, m as usize);
    let mut values = values.to_vec();
    let mix_idx = values.len() - 3;
    values[mix_idx] = pointer(&mix);
    launch(context, &runner::hc_pre(m, connection, Balance::Later), &values)?;
    let (logits, live_at) = (context.buffer(&vec![0.5f32; rows * experts as usize])?, context.buffer(&[live as i32])?);
    let (chosen, weights) = (blank(context, rows * top_k as usize * 4)?, blank(context, rows * top_k as usize * 4)?);
    let outputs = [&chosen, &weights, &live_at].map(pointer);
    let values = [&[pointer(&logits), NULL, NULL, NULL], &outputs[..], &[number(m), pointer(&mix)]].concat();
    launch(context, &runner::route(m, &shape, Some(connection)), &values)?;
    read_f32("balanced later", &mix, [live as usize * 20, rows * 20])
}

/// The same bits from a second launch.
fn repeat(
    context: &Context,
    connection: &Connection,
    values: &[Value],
    (x, found): (&Buffer, &[f32]),
) -> Result<usize, Failure> {
    let Some(Value::Int(m)) = values.last() else { return Err("a launch ends with its tokens".to_string().into()) };
    launch(context, &runner::hc_pre(*m as u32, connection, Balance::Here), values)?;
    let again: Vec<u16> = x.download(found.len())?;
    equal("hc_pre twice", &again, &bits(found))
}

/// Streams of a token after a sublayer (2.2).
fn post(h: &mut [f64], inputs: &Inputs, token: usize) {
    let d = h.len() / 4;
    let mix: Vec<f64> = inputs.mix[token * 20..][..20].iter().map(|&value| f64::from(value)).collect();
    for column in 0..d {
        let y = f64::from(inputs.y[0][token * d + column]) + f64::from(inputs.y[1][token * d + column]);
        let old: [f64; 4] = std::array::from_fn(|j| h[j * d + column]);
        for k in 0..4 {
            h[k * d + column] = mix[k] * y + (0..4).map(|j| mix[4 + 4 * j + k] * old[j]).sum::<f64>();
        }
    }
}

/// Input of a sublayer and mixing values of a token (2.1), or the head's input (2.12).
fn pre(h: &[f32], connection: &Connection, inputs: &Inputs) -> (Vec<f64>, Vec<f64>) {
    let (d, rows) = (connection.hidden as usize, connection.rows() as usize);
    let squares: f64 = h.iter().map(|&value| f64::from(value).powi(2)).sum();
    let factor = 1.0 / (squares / h.len() as f64 + 1e-6).sqrt();
    let values: Vec<f64> = (0..rows)
        .map(|row| {
            let function = &inputs.function[row * 4 * d..][..4 * d];
            let product: f64 = function.iter().zip(h).map(|(&f, &h)| f64::from(f) * f64::from(h)).sum();
            let scale = inputs.scale[if connection.is_head || row < 4 { 0 } else { 2.min(row / 4) }];
            product * factor * f64::from(scale) + f64::from(inputs.base[row])
        })
        .collect();
    let sigmoid = |value: f64| 1.0 / (1.0 + (-value).exp());
    let mixed: Vec<f64> =
        (0..d).map(|column| (0..4).map(|j| (sigmoid(values[j]) + 1e-6) * f64::from(h[j * d + column])).sum()).collect();
    let mean_square = mixed.iter().map(|value| value * value).sum::<f64>() / d as f64;
    let factor = 1.0 / (mean_square + 1e-6).sqrt();
    let x = mixed.iter().zip(&inputs.norm).map(|(value, &weight)| value * factor * f64::from(weight)).collect();
    if connection.is_head {
        return (x, Vec::new());
    }
    let posts = values[4..8].iter().map(|&value| 2.0 * sigmoid(value));
    (x, posts.chain(sinkhorn(&values[8..24])).collect())
}

/// Softmax of rows, then columns and rows brought to a sum of 1 in turn.
fn sinkhorn(values: &[f64]) -> Vec<f64> {
    let mut c: Vec<f64> = values.iter().map(|value| value.exp()).collect();
    for row in c.chunks_mut(4) {
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|value| *value = *value / sum + 1e-6);
    }
    for round in 0..20 {
        if round > 0 {
            for row in c.chunks_mut(4) {
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|value| *value /= sum + 1e-6);
            }
        }
        for k in 0..4 {
            let sum: f64 = (0..4).map(|j| c[4 * j + k]).sum();
            (0..4).for_each(|j| c[4 * j + k] /= sum + 1e-6);
        }
    }
    c
}
