//! The runner's compressors, rings and indexer against plain computations in f64; the steps are those of runner_step.

use tilekiln::kernels::runner::{
    AttendShape, CompressShape, Compressed, EntryRounding, IndexShape, StoreShape, attend_combine,
    attend_workspace_bytes, compress, index_score, store_step, top_k,
};
use tilekiln::quant::{bf16, e2m1, e4m3};

use crate::context::{Case, Context, Failure, Run};
use crate::runner_step::{
    Bench, KEY, NAN_BF16, POISON, POISON_ROWS, Pages, SLOTS, Step, UNTOUCHED, outside, place, rope_table, same, turn,
    value,
};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: String, run: Run| {
        cases.push(Case { name: format!("runner {name}"), run });
    };
    for (head_dim, rope_dim, ratio, series, rounding) in COMPRESSORS {
        let shape = CompressShape { head_dim, rope_dim, ratio, series, rounding };
        add(
            format!("compress {head_dim} ratio {ratio} {rounding:?}"),
            Box::new(move |context| check_compress(context, &shape)),
        );
    }
    for is_beside in [false, true] {
        let name = if is_beside { "store step beside combine" } else { "store step" };
        add(name.to_string(), Box::new(move |context| check_store(context, is_beside)));
    }
    for (head_dim, most) in [(32, 8), (128, 8), (128, 512)] {
        let shape = IndexShape { heads: 64, head_dim, ratio: 4, top_k: most };
        for copies in [1, 8, 40] {
            let run = move |context: &mut Context| check_index(context, &shape, copies);
            add(format!("index_score {head_dim} top {most} times {copies}"), Box::new(run));
        }
        add(format!("top_k {head_dim} of {most}"), Box::new(move |context| check_top_k(context, &shape)));
    }
    cases
}

const COMPRESSORS: [(u32, u32, u32, u32, EntryRounding); 8] = [
    (64, 16, 4, 2, EntryRounding::Bf16),
    (64, 16, 128, 1, EntryRounding::FakeFp8),
    (512, 64, 4, 2, EntryRounding::FakeFp8),
    (512, 64, 128, 1, EntryRounding::Bf16),
    (512, 64, 128, 1, EntryRounding::FakeFp8),
    (32, 16, 4, 2, EntryRounding::HadamardMxfp4),
    (128, 64, 4, 2, EntryRounding::Bf16),
    (128, 64, 4, 2, EntryRounding::HadamardMxfp4),
];

const C: u64 = 4;
const G: u64 = 5;
const APE: u64 = 6;
const NORM: u64 = 7;

/// c or g of a token, by column of cg.
fn cg(width: usize) -> impl Fn(usize, usize, usize) -> f32 + Copy {
    move |slot, position, column| {
        let kind = if column < width { C } else { G };
        value(kind, place(slot, position), column % width) * if column < width { 1.0 } else { 3.0 }
    }
}

/// The same as the state ring holds it: the gate with its bias.
fn state(width: usize, ratio: usize) -> impl Fn(usize, usize, usize) -> f32 + Copy {
    move |slot, position, column| {
        let bias = if column < width { 0.0 } else { value(APE, position % ratio, column - width) };
        cg(width)(slot, position, column) + bias
    }
}

fn ape(width: usize, ratio: usize) -> Vec<f32> {
    (0..ratio * width).map(|idx| value(APE, idx / width, idx % width)).collect()
}

fn check_compress(context: &mut Context, shape: &CompressShape) -> Result<usize, Failure> {
    let step = Step::new(700, [140, 131, 1, 12]);
    let (width, ratio, head_dim) = (shape.width() as usize, shape.ratio as usize, shape.head_dim as usize);
    let rows = shape.state_rows() as usize;
    let mut bench = Bench { context, buffers: Vec::new() };
    let pages = Pages::new(step.furthest() / ratio + 1);
    let norm: Vec<f32> = (0..head_dim).map(|d| 1.0 + 0.25 * value(NORM, 0, d)).collect();
    let pool = bench.put(&vec![UNTOUCHED; pages.rows() * head_dim])?;
    let mut values = vec![
        bench.put(&step.own_rows(2 * width, f32::NAN, cg(width)))?,
        bench.put(&ape(width, ratio))?,
        bench.put(&norm)?,
        bench.put(&rope_table(shape.rope_dim, step.furthest() + 1))?,
        bench.put(&step.ring([rows, 2 * width], f32::NAN, state(width, ratio)))?,
        pool,
        bench.put(&pages.table)?,
    ];
    values.extend(bench.put_step(&step)?);
    values.extend([2 * width as u64, step.m() as u64, pages.per_slot as u64, u64::from(1e-6f32.to_bits())]);
    bench.run(&compress(shape, step.m() as u32), &values)?;
    let mut found: Vec<u16> = bench.get(pool, pages.rows() * head_dim)?;
    let mut checked = 0;
    for (slot, position) in step.rows().filter(|(_, position)| (position + 1) % ratio == 0) {
        let entry = position / ratio;
        let at = pages.row(slot, entry) * head_dim;
        let exact = entry_of(shape, slot, entry, &norm);
        check_entry(shape, &exact, &found[at..at + head_dim])
            .map_err(|failure| format!("compress {shape:?} slot {slot} entry {entry} {}", failure.reason))?;
        found[at..at + head_dim].fill(UNTOUCHED);
        checked += 1;
    }
    if let Some(at) = found.iter().position(|bits| *bits != UNTOUCHED) {
        return Err(format!("compress {shape:?}: row {} of the pool was written", at / head_dim).into());
    }
    Ok(checked)
}

/// An entry before its rounding, in f64; transformed where the rounding asks for it.
fn entry_of(shape: &CompressShape, slot: usize, entry: usize, norm: &[f32]) -> Vec<f64> {
    let (width, ratio, head_dim) = (shape.width() as usize, shape.ratio as usize, shape.head_dim as usize);
    let (rows, before) = (shape.state_rows() as usize, (shape.series as usize - 1) * ratio);
    let mut z: Vec<f64> = (0..head_dim)
        .map(|d| {
            let of_row = |row: usize| {
                let position = (entry * ratio + row).checked_sub(before)?;
                let column = row / ratio * head_dim % width + d;
                let input = |column| f64::from(state(width, ratio)(slot, position, column));
                Some((input(column), input(width + column)))
            };
            let inputs: Vec<(f64, f64)> = (0..rows).filter_map(of_row).collect();
            let most = inputs.iter().fold(f64::MIN, |most, (_, gate)| most.max(*gate));
            let total: f64 = inputs.iter().map(|(_, gate)| (gate - most).exp()).sum();
            inputs.iter().map(|(c, gate)| c * (gate - most).exp()).sum::<f64>() / total
        })
        .collect();
    let root = (z.iter().map(|x| x * x).sum::<f64>() / head_dim as f64 + 1e-6).sqrt();
    z.iter_mut().zip(norm).for_each(|(x, weight)| *x *= f64::from(*weight) / root);
    let first = head_dim - shape.rope_dim as usize;
    for (i, pair) in z[first..].chunks_exact_mut(2).enumerate() {
        let (cos, sin) = turn(shape.rope_dim, entry * ratio, i);
        (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
    }
    if shape.rounding != EntryRounding::HadamardMxfp4 {
        return z;
    }
    let sign = |i: usize, j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    let sum = |i: usize| z.iter().enumerate().map(|(j, x)| sign(i, j) * x).sum::<f64>();
    (0..head_dim).map(|i| sum(i) / (head_dim as f64).sqrt()).collect()
}

/// A stored entry against the exact one: on the grid of its rounding, and nearest.
fn check_entry(shape: &CompressShape, exact: &[f64], found: &[u16]) -> Result<(), Failure> {
    let quantised = match shape.rounding {
        EntryRounding::Bf16 => 0,
        EntryRounding::FakeFp8 => (shape.head_dim - shape.rope_dim) as usize,
        EntryRounding::HadamardMxfp4 => shape.head_dim as usize,
    };
    let is_fp8 = shape.rounding == EntryRounding::FakeFp8;
    let (group, top, least) = if is_fp8 { (64, 448.0, 1e-4) } else { (32, 6.0, 6.0 * 2f64.powi(-126)) };
    for (column, (&exact_value, &bits)) in exact.iter().zip(found).enumerate() {
        let found = f64::from(bf16::decode(bits));
        let at = format!("column {column}");
        if column >= quantised {
            outside("entry", &at, [exact_value, found, exact_value.abs() / 256.0 + 1e-5])?;
            continue;
        }
        let members = &exact[column / group * group..(column / group * group + group).min(quantised)];
        let amax = members.iter().fold(least, |amax: f64, x| amax.max(x.abs()));
        let scale = 2f64.powi((amax / top).log2().ceil() as i32);
        let code = (found / scale) as f32;
        let kept = if is_fp8 { e4m3::decode(e4m3::encode(code)) } else { e2m1::decode(e2m1::encode(code)) };
        outside("entry on its grid", &at, [kept.into(), code.into(), 0.0])?;
        // Half a step: an eighth of E4M3's binade, or its least; in E2M1 a step of 2 from 4 on, 1 from 2 on, else 0.5.
        let size = exact_value.abs() / scale;
        let half = match (is_fp8, size) {
            (true, _) => (size / 16.0).max(1.0 / 1024.0),
            (false, 4.0..) => 1.0,
            (false, 2.0..) => 0.5,
            (false, _) => 0.25,
        };
        outside("entry", &at, [exact_value, found, (half + 1e-5 * top) * scale])?;
    }
    Ok(())
}

fn check_store(context: &mut Context, is_beside: bool) -> Result<usize, Failure> {
    let entries = |head_dim, ratio, series| {
        let (rope_dim, rounding) = (16, EntryRounding::Bf16);
        CompressShape { head_dim, rope_dim, ratio, series, rounding }
    };
    let (csa, hca, index) = (entries(512, 4, 2), entries(64, 128, 1), entries(32, 4, 2));
    let mut checked = 0;
    for (state_shape, index_shape, window) in [(None, None, 16), (Some(hca), None, 32), (Some(csa), Some(index), 128)] {
        let step = Step::new(700, [140, 131, 1, 12]);
        let head_dim = 64;
        let shapes = StoreShape {
            head_dim: head_dim as u32,
            window: window as u32,
            state: state_shape.as_ref().map(Into::into),
            index_state: index_shape.as_ref().map(Into::into),
        };
        let mut bench = Bench { context, buffers: Vec::new() };
        let key = |slot, position, column| bf16::encode(value(KEY, place(slot, position), column));
        let ring = bench.put(&step.ring([window, head_dim], NAN_BF16, key))?;
        let mut values = vec![bench.put(&step.own_rows(head_dim, NAN_BF16, key))?, ring];
        let mut strides = Vec::new();
        let mut rings = Vec::new();
        for shape in [state_shape, index_shape] {
            let Some(shape) = shape else {
                values.extend([0; 3]);
                strides.push(0);
                continue;
            };
            let (width, ratio) = (shape.width() as usize, shape.ratio as usize);
            let size = [shape.state_rows() as usize, 2 * width];
            let kept = bench.put(&step.ring(size, -7.0f32, state(width, ratio)))?;
            values.extend([bench.put(&step.own_rows(2 * width, f32::NAN, cg(width)))?, bench.put(&ape(width, ratio))?]);
            values.push(kept);
            strides.push(2 * width as u64);
            rings.push((kept, size, width, ratio));
        }
        let described = bench.put_step(&step)?;
        if is_beside {
            store_beside(&mut bench, &shapes, (&step, described), (&values, &strides))?;
        } else {
            let [positions, sequences, _, _, count] = described;
            values.extend([positions, sequences, count, strides[0], strides[1], step.m() as u64]);
            bench.run(&store_step(&shapes, step.m() as u32), &values)?;
        }
        // What the next step finds: the same rings, further on.
        let later = Step { starts: later_starts(&step), ..Step::new(700, [140, 131, 1, 12]) };
        let found: Vec<u16> = bench.get(ring, SLOTS * window * head_dim)?;
        same("window ring", &later.ring([window, head_dim], NAN_BF16, key), &found)?;
        for (kept, size, width, ratio) in rings {
            let found: Vec<f32> = bench.get(kept, SLOTS * size[0] * size[1])?;
            same("state ring", &later.ring(size, -7.0, state(width, ratio)), &found)?;
        }
        checked += 1;
    }
    Ok(checked)
}

/// Stores by the launch that merges attention's splits; what it merges are zeros.
fn store_beside(
    bench: &mut Bench,
    shapes: &StoreShape,
    (step, [positions, sequences, _, _, count]): (&Step, [u64; 5]),
    (arrays, strides): (&[u64], &[u64]),
) -> Result<(), Failure> {
    let &StoreShape { head_dim, window, .. } = shapes;
    let (heads, rope_dim, splits, m) = (2, 16, 2, step.m() as u32);
    let attend = AttendShape { heads, head_dim, rope_dim, norm_epsilon: 1e-6, window, compressed: Compressed::None };
    let workspace = vec![0.0f32; attend_workspace_bytes(&attend, m, splits) as usize / 4];
    let o = bench.put(&vec![UNTOUCHED; (m * heads * head_dim) as usize])?;
    let mut values = vec![bench.put(&workspace)?, bench.put(&vec![0.0f32; heads as usize])?];
    values.extend([
        bench.put(&rope_table(rope_dim, step.furthest() + 1))?,
        positions,
        o,
        count,
        m.into(),
        splits.into(),
    ]);
    values.extend_from_slice(arrays);
    values.push(sequences);
    values.extend_from_slice(strides);
    let arch = bench.context.gpu.spec().arch;
    bench.run(&attend_combine(&attend, arch, m, Some(shapes)), &values)
}

fn later_starts(step: &Step) -> Vec<i32> {
    let ends = step.ends();
    (0..SLOTS).map(|slot| ends.get(&slot).map_or(-POISON, |end| *end as i32)).collect()
}

const INDEX_QUERY: u64 = 10;
const INDEX_KEY: u64 = 11;
const INDEX_WEIGHT: u64 = 12;

fn check_index(context: &mut Context, shape: &IndexShape, copies: usize) -> Result<usize, Failure> {
    let step = Step::new(4000, [9 * copies, 3 * copies, 1, 2 * copies]);
    let (heads, head_dim, ratio) = (shape.heads as usize, shape.head_dim as usize, shape.ratio as usize);
    let capacity = step.furthest() / ratio + 130;
    let pages = Pages::new(capacity);
    let mut bench = Bench { context, buffers: Vec::new() };
    let bits = |kind| move |slot, row, column| bf16::encode(value(kind, place(slot, row), column));
    let weight = |slot, position, head| value(INDEX_WEIGHT, place(slot, position), head);
    let mut pool = vec![NAN_BF16; pages.rows() * head_dim];
    for (slot, end) in step.ends() {
        for entry in 0..end / ratio {
            let at = pages.row(slot, entry) * head_dim;
            (0..head_dim).for_each(|column| pool[at + column] = bits(INDEX_KEY)(slot, entry, column));
        }
    }
    let scores = bench.put(&vec![-77.0f32; step.m() * capacity])?;
    let mut values = vec![
        bench.put(&step.own_rows(heads * head_dim, NAN_BF16, bits(INDEX_QUERY)))?,
        bench.put(&step.own_rows(heads + 3, f32::NAN, weight))?,
        bench.put(&pool)?,
        bench.put(&pages.table)?,
    ];
    let [positions, sequences, _, _, count] = bench.put_step(&step)?;
    values.extend([positions, sequences, scores, count, heads as u64 + 3]);
    values.extend([step.m() as u64, pages.per_slot as u64, capacity as u64]);
    bench.run(&index_score(shape, step.m() as u32, capacity as u32), &values)?;
    let found: Vec<f32> = bench.get(scores, step.m() * capacity)?;
    for (row, (slot, position)) in step.rows().enumerate() {
        let visible = (position + 1) / ratio;
        let seen = if visible > shape.top_k as usize { visible } else { 0 };
        for entry in (0..seen).step_by(7) {
            let key: Vec<f64> = (0..head_dim).map(|d| value(INDEX_KEY, place(slot, entry), d).into()).collect();
            let of_head = |head: usize| {
                let query = |d| f64::from(value(INDEX_QUERY, place(slot, position), head * head_dim + d));
                let product: f64 = key.iter().enumerate().map(|(d, k)| query(d) * k).sum();
                f64::from(weight(slot, position, head)) * product.max(0.0)
            };
            let expected = (0..heads).map(of_head).sum::<f64>() / ((heads * head_dim) as f64).sqrt();
            let at = format!("row {row} position {position} entry {entry}");
            outside("index_score", &at, [expected, found[row * capacity + entry].into(), 1e-4])?;
        }
        let beyond = &found[row * capacity + seen..(row + 1) * capacity];
        same("scores that nobody sees", &vec![-77.0; beyond.len()], beyond)?;
    }
    Ok(step.count)
}

fn check_top_k(context: &mut Context, shape: &IndexShape) -> Result<usize, Failure> {
    let (most, ratio) = (shape.top_k as usize, shape.ratio as usize);
    let mut checked = 0;
    // Rows in registers and longer ones, with many threads and with few.
    for (m, capacity) in [(20, 20_000), (300, 1500), (300, 6000)] {
        let count = m - POISON_ROWS;
        // From fewer than are picked to all; random, rounded so that many are equal, zeros of both signs, some NaN.
        let positions: Vec<i32> = (0..m).map(|row| (capacity * ratio * (row + 1) / m) as i32 - 1).collect();
        let score = |row: usize, entry: usize| {
            let x = value(13, row, entry);
            match row % 5 {
                0 => x,
                1 => (x * 4.0).round() / 4.0,
                2 => {
                    if entry.is_multiple_of(2) {
                        0.0
                    } else {
                        -0.0
                    }
                }
                3 => {
                    if entry % 97 == 5 {
                        f32::NAN
                    } else {
                        -x.abs()
                    }
                }
                _ => x.max(0.0) * x.max(0.0),
            }
        };
        let scores: Vec<f32> = (0..m * capacity).map(|idx| score(idx / capacity, idx % capacity)).collect();
        let mut bench = Bench { context, buffers: Vec::new() };
        let picks = bench.put(&vec![-99i32; m * most])?;
        let values = [bench.put(&scores)?, bench.put(&positions)?, picks, bench.put(&[count as i32])?];
        let values: Vec<u64> = values.into_iter().chain([m as u64, capacity as u64]).collect();
        bench.run(&top_k(shape, m as u32), &values)?;
        let found: Vec<i32> = bench.get(picks, m * most)?;
        for row in 0..m {
            let expected = if row < count {
                best(&scores[row * capacity..][..(positions[row] as usize + 1) / ratio], most)
            } else {
                vec![-99; most]
            };
            same(&format!("top_k row {row}"), &expected, &found[row * most..(row + 1) * most])?;
        }
        checked += count;
    }
    Ok(checked)
}

/// The largest scores in ascending order of their places; NaN first, of equals the lower place.
fn best(scores: &[f32], most: usize) -> Vec<i32> {
    let mut places: Vec<usize> = (0..scores.len()).collect();
    let order = |place: &usize| if scores[*place].is_nan() { f32::INFINITY } else { scores[*place] + 0.0 };
    places.sort_by(|a, b| order(b).total_cmp(&order(a)));
    places.truncate(most);
    places.sort_unstable();
    (0..most).map(|idx| places.get(idx).map_or(-1, |place| *place as i32)).collect()
}
