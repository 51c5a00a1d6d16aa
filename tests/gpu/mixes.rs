//! Mixes of residual streams: the reference against f64 on the CPU, default tiles and others against the reference.

use std::collections::BTreeMap;

use tilekiln::check;
use tilekiln::device::Buffer;
use tilekiln::kernels::{self, reference_mix};
use tilekiln::problem::{BUCKETS, Output, Problem};
use tilekiln::quant::bf16;

use crate::context::{Case, Context, Failure, sample};

pub fn cases() -> Vec<Case> {
    let reference = [Output::F32, Output::Bf16].map(|element| Case {
        name: format!("mix reference {}", element.name()),
        run: Box::new(move |context| reference_is_right(context, element)),
    });
    let buckets = OPS.iter().map(|(op, others)| Case {
        name: format!("mix default and {others} other tiles of {op}, every bucket"),
        run: Box::new(move |context| {
            BUCKETS.iter().try_fold(0, |sum, m| Ok(sum + tiles_of(context, &format!("{op} m{m}"), *others)?))
        }),
    });
    let tails = TAILS.iter().map(|text| Case {
        name: format!("mix every tile of {text}"),
        run: Box::new(move |context| tiles_of(context, text, usize::MAX)),
    });
    let agreements = AGREE.iter().map(|text| Case {
        name: format!("mix tiles of one numerics of {text}"),
        run: Box::new(move |context| agreement(context, text)),
    });
    reference.into_iter().chain(buckets).chain(tails).chain(agreements).collect()
}

/// The default and `others` more, on data with more tokens than the problem: what lies beyond must stay untouched.
fn tiles_of(context: &mut Context, text: &str, others: usize) -> Result<usize, Failure> {
    let problem: Problem = text.parse().map_err(|error| format!("{text}: {error}"))?;
    let spec = context.gpu.spec().clone();
    let mut checked = 0;
    for family in kernels::serving(&problem, spec.arch) {
        let tiles = sample(family, &problem, &spec, others);
        checked += context.check_tiles(&problem.with_m(problem.m() + 3), &problem, &[], &tiles)?;
    }
    Ok(checked)
}

/// Tiles that say that they give the same bits do.
fn agreement(context: &mut Context, text: &str) -> Result<usize, Failure> {
    let problem: Problem = text.parse().map_err(|error| format!("{text}: {error}"))?;
    let spec = context.gpu.spec().clone();
    let mut by_numerics: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for family in kernels::serving(&problem, spec.arch) {
        for tile in kernels::space(family, &problem, &spec).tiles {
            by_numerics.entry(family.numerics(&problem, &tile)).or_default().push(tile);
        }
    }
    for tiles in by_numerics.values() {
        context.check_agreement(&problem, &[], tiles)?;
    }
    Ok(by_numerics.values().map(Vec::len).sum())
}

/// Each step of the reference on a few small tokens.
fn reference_is_right(context: &mut Context, element: Output) -> Result<usize, Failure> {
    let (m, hidden, n, splits) = (3usize, 64usize, 24usize, 5usize);
    let k = 4 * hidden;
    let values = |count: usize, salt: usize| -> Vec<f32> {
        (0..count).map(|idx| bf16::round(((idx * 37 + salt) % 101) as f32 / 50.0 - 0.99)).collect()
    };
    let (streams, y) = (values(m * k, 1), [values(m * hidden, 2), values(m * hidden, 3)]);
    let (mixing, weights, parts) = (values(m * 20, 4), values(n * k, 5), values(splits * m * (n + 1), 6));
    let bits = |values: &[f32]| values.iter().map(|value| bf16::encode(*value)).collect::<Vec<u16>>();
    let streams_at = match element {
        Output::Bf16 => context.buffer(&bits(&streams))?,
        Output::F32 => context.buffer(&streams)?,
    };
    let [y0, y1] = [context.buffer(&bits(&y[0]))?, context.buffer(&bits(&y[1]))?];
    let inputs = [context.buffer(&mixing)?, context.buffer(&weights)?, context.buffer(&parts)?];
    let result = Buffer::zeros(&context.gpu, 4 * m * k)?;
    let mut checked = 0;
    for (step, second) in [(0, true), (0, false), (1, true), (2, true)] {
        let mut words = [
            step,
            streams_at.pointer(),
            y0.pointer(),
            if second { y1.pointer() } else { 0 },
            inputs[0].pointer(),
            inputs[1].pointer(),
            inputs[2].pointer(),
            result.pointer(),
            m as u64,
            hidden as u64,
            n as u64,
            splits as u64,
        ];
        context.run_tool(&reference_mix(element), 2, &mut words)?;
        let expected: Vec<f64> = match step {
            0 => (0..m)
                .flat_map(|token| {
                    let row = token * hidden..(token + 1) * hidden;
                    let more = y[1][row.clone()].iter().map(|value| if second { f64::from(*value) } else { 0.0 });
                    let y: Vec<f64> =
                        y[0][row].iter().zip(more).map(|(value, more)| f64::from(*value) + more).collect();
                    check::mixed_streams(&streams[token * k..][..k], &y, &mixing[token * 20..][..20])
                })
                .collect(),
            1 => streams.chunks_exact(k).flat_map(|token| check::stream_sums(token, &weights)).collect(),
            _ => (0..m * (n + 1))
                .map(|at| (0..splits).map(|split| f64::from(parts[split * m * (n + 1) + at])).sum())
                .collect(),
        };
        let found: Vec<f32> = result.download(expected.len())?;
        for (idx, (found, expected)) in found.iter().zip(&expected).enumerate() {
            if (f64::from(*found) - expected).abs() > 1e-7 * expected.abs() + 1e-12 {
                return Err(format!("step {step}: element {idx} is {found:e}, expected {expected:e}").into());
            }
        }
        checked += expected.len();
    }
    Ok(checked)
}

/// Both models' connections as a step has them, and how many tiles beside the default are checked in each bucket.
const OPS: [(&str, usize); 6] = [
    ("hc f32 24x16384", 8),
    ("hc f32 24x16384 first", 3),
    ("hc f32 4x16384", 3),
    ("hc bf16 24x16384", 3),
    ("hc f32 24x28672", 4),
    ("hc bf16 4x28672 first", 2),
];

/// Tokens that fill no block, streams that are short.
const TAILS: [&str; 8] = [
    "hc f32 24x512 m3",
    "hc bf16 24x1024 m33",
    "hc f32 4x1792 m70",
    "hc bf16 4x512 first m17",
    "hc f32 24x4096 first m130",
    "hc bf16 24x3584 m257",
    "hc f32 24x256 m1",
    "hc bf16 4x16384 m5",
];

const AGREE: [&str; 3] = ["hc f32 24x4096 m100", "hc bf16 24x16384 m32", "hc f32 4x3584 first m64"];
