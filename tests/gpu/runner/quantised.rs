//! Activations rounded to NVFP4, to the bit of `quant::quantize_activations`, and the search for NaN.

use tilekiln::device::Value;
use tilekiln::kernels::runner::{self, ActivationScale, Element, FINITE_FIELDS, FakeQuantise};
use tilekiln::quant::{Counters, ScalePolicy, bf16, quantize_activations};

use super::{NULL, Numbers, bits, blank, case, equal, launch, number, pointer};
use crate::context::{Case, Context, Failure};

pub fn cases() -> Vec<Case> {
    let mut cases = vec![case("find_non_finite", find_non_finite)];
    for k in [64, 128, 4096, 7168, 16_384] {
        for scale in [ActivationScale::PerToken, ActivationScale::PerTensor, ActivationScale::Static] {
            cases.push(case(&format!("fake_quantise {k} {scale:?}"), move |context| {
                [1, 3].into_iter().try_fold(0, |sum, rows_per_token| {
                    Ok(sum + fake_quantise(context, &FakeQuantise { k, rows_per_token, scale })?)
                })
            }));
        }
        cases.push(case(&format!("fake_quantise {k} with a scale an index"), move |context| indexed(context, k)));
    }
    cases
}

/// Rows of every size, with zeros, outliers, NaN and infinities.
fn rows(count: usize, k: usize) -> Vec<f32> {
    let mut numbers = Numbers(k as u64);
    let mut x: Vec<f32> = (0..count).flat_map(|row| numbers.rounded(k, 10f32.powi(row as i32 % 7 - 3))).collect();
    x[..16].fill(0.0);
    x[k / 2] = bf16::round(3000.0);
    if count > 2 {
        x[k..2 * k].fill(0.0);
        x[2 * k + 5] = f32::NAN;
        x[2 * k + k - 1] = f32::NEG_INFINITY;
    }
    x
}

/// What stays of `x` where there is no code for it, and else what was rounded.
fn kept(x: &[f32], rounded: Vec<f32>) -> Vec<f32> {
    x.iter().zip(rounded).map(|(before, after)| if before.is_finite() { after } else { *before }).collect()
}

/// Every NaN with the same bits: a conversion does not keep those of its operand.
fn one_nan(values: Vec<u16>) -> Vec<u16> {
    values.into_iter().map(|value| if bf16::decode(value).is_nan() { 0x7FC0 } else { value }).collect()
}

/// The largest magnitude that is finite.
fn amax(x: &[f32]) -> f32 {
    x.iter().filter(|value| value.is_finite()).fold(0.0, |amax, value| amax.max(value.abs()))
}

/// What the four counters are after `met`, in rows of `k`.
fn counted(met: &Counters, k: usize) -> [u32; 4] {
    let first = met.non_finite.first.map_or(0, |(row, column)| !((row * k + column) as u32));
    [met.blocks as u32, met.saturated_blocks as u32, met.non_finite.count as u32, first]
}

fn fake_quantise(context: &mut Context, shape: &FakeQuantise) -> Result<usize, Failure> {
    let (k, ldx, ldo) = (shape.k as usize, shape.k as usize + 24, shape.k as usize + 8);
    let (m, live) = (4u32, 3usize);
    let (all, count) = ((m * shape.rows_per_token) as usize, live * shape.rows_per_token as usize);
    let x = rows(count, k);
    let mut padded = vec![f32::NAN; all * ldx];
    (0..count).for_each(|row| padded[row * ldx..][..k].copy_from_slice(&x[row * k..][..k]));
    let (x_at, out) = (context.buffer(&bits(&padded))?, blank(context, all * ldo * 2)?);
    let (live_at, counters) = (context.buffer(&[live as i32])?, context.buffer(&[0u32; 4])?);
    let seen = context.buffer(&[0u32])?;
    let fixed = 0.004f32;
    let (policy, scales) = match shape.scale {
        ActivationScale::PerToken => (ScalePolicy::PerToken, None),
        ActivationScale::PerTensor => (ScalePolicy::PerTensor, Some(context.buffer(&[77.0f32])?)),
        ActivationScale::Static => {
            let policy = ScalePolicy::fixed(fixed).map_err(|error| error.to_string())?;
            (policy, Some(context.buffer(&[fixed])?))
        }
    };
    let scales_at = scales.as_ref().map_or(NULL, pointer);
    if shape.scale == ActivationScale::PerTensor {
        let values = [pointer(&x_at), scales_at, pointer(&live_at), Value::Long(ldx as i64), number(m)];
        launch(context, &runner::reset_amax(), &values)?;
        launch(context, &runner::amax(m, shape), &values)?;
    }
    let strides = [Value::Long(ldx as i64), Value::Long(ldo as i64), number(m)];
    let results = [pointer(&seen), pointer(&counters), pointer(&live_at)];
    let values = [&[pointer(&x_at), pointer(&out), scales_at, NULL], &results[..], &strides].concat();
    launch(context, &runner::fake_quantise(m, shape), &values)?;

    let expected = quantize_activations(&x, count, k, policy).map_err(|error| error.to_string())?;
    let mut padded = vec![0xABABu16; all * ldo];
    let decoded = kept(&x, expected.decode());
    (0..count).for_each(|row| padded[row * ldo..][..k].copy_from_slice(&bits(&decoded[row * k..][..k])));
    let what = format!("fake_quantise {shape:?}");
    let checks = equal(&what, &one_nan(out.download(all * ldo)?), &one_nan(padded))?;
    equal(&format!("{what} amax"), &seen.download::<u32>(1)?, &[amax(&x).to_bits()])?;
    let found: Vec<u32> = counters.download(4)?;
    Ok(checks + equal(&format!("{what} counters"), &found, &counted(&expected.counters, k))?)
}

/// Each row by the scale of its index, in place; a row with a negative index stays.
fn indexed(context: &mut Context, k: u32) -> Result<usize, Failure> {
    let (columns, count) = (k as usize, 5usize);
    let x = rows(count, columns);
    let (scales, indices) = ([0.002f32, 0.5, 0.00001], [2i32, 0, -1, 1, 0]);
    let (x_at, scales_at) = (context.buffer(&bits(&x))?, context.buffer(&scales)?);
    let (indices_at, counters) = (context.buffer(&indices)?, context.buffer(&[0u32; 4])?);
    let seen = context.buffer(&[0u32; 3])?;
    let shape = FakeQuantise { k, rows_per_token: 1, scale: ActivationScale::Static };
    let buffers = [&x_at, &x_at, &scales_at, &indices_at, &seen, &counters].map(pointer);
    let numbers = [NULL, Value::Long(k.into()), Value::Long(k.into()), number(count as u32)];
    launch(context, &runner::fake_quantise(count as u32, &shape), &[&buffers[..], &numbers].concat())?;
    let (mut expected, mut largest) = (Vec::new(), [0.0f32; 3]);
    for (row, &index) in x.chunks(columns).zip(&indices) {
        let Ok(index) = usize::try_from(index) else {
            expected.extend(bits(row));
            continue;
        };
        let policy = ScalePolicy::fixed(scales[index]).map_err(|error| error.to_string())?;
        let quantised = quantize_activations(row, 1, columns, policy).map_err(|error| error.to_string())?;
        expected.extend(bits(&kept(row, quantised.decode())));
        largest[index] = largest[index].max(amax(row));
    }
    let what = format!("fake_quantise {k} with a scale an index");
    let checks = equal(&what, &one_nan(x_at.download(expected.len())?), &one_nan(expected))?;
    Ok(checks + equal(&format!("{what} amax"), &seen.download::<u32>(3)?, &largest.map(f32::to_bits))?)
}

fn find_non_finite(context: &mut Context) -> Result<usize, Failure> {
    let (m, live, rows_per_token, columns, ld) = (6u32, 5usize, 4usize, 250usize, 256usize);
    let mut checks = 0;
    for element in [Element::Bf16, Element::F32] {
        for bad in [vec![], vec![(7usize, 249usize)], vec![(19, 0), (3, 100), (3, 99)]] {
            // What lies between rows, and behind the tokens, is not looked at.
            let mut x = vec![f32::NAN; m as usize * rows_per_token * ld];
            let values = Numbers(21).rounded(live * rows_per_token * columns, 100.0);
            for (row, from) in values.chunks(columns).enumerate() {
                x[row * ld..][..columns].copy_from_slice(from);
            }
            bad.iter().for_each(|&(row, column)| x[row * ld + column] = f32::INFINITY);
            let x_at = if element == Element::Bf16 { context.buffer(&bits(&x))? } else { context.buffer(&x)? };
            let (report, live_at) = (context.buffer(&[0u64; 3])?, context.buffer(&[live as i32])?);
            let sizes = [number(m), number(rows_per_token as u32), number(columns as u32)];
            let buffers = [&x_at, &report, &live_at].map(pointer);
            let launch_values = [&buffers[..], &[Value::Long(ld as i64)], &sizes].concat();
            launch(context, &runner::find_non_finite(element), &launch_values)?;
            let place = |&(row, column): &(usize, usize)| (row * columns + column) as u64;
            let first = bad.iter().map(place).min().map_or(0, |place| !place);
            let is_bad = |idx: usize| bad.iter().any(|at| place(at) == idx as u64);
            let rest: Vec<f32> = (0..values.len()).filter(|&idx| !is_bad(idx)).map(|idx| values[idx]).collect();
            let expected = [bad.len() as u64, first, u64::from(amax(&rest).to_bits())];
            let found: Vec<u64> = report.download(FINITE_FIELDS as usize)?;
            checks += equal(&format!("find_non_finite {element:?} {bad:?}"), &found, &expected)?;
        }
    }
    Ok(checks)
}
