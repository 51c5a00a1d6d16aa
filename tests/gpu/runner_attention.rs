//! The runner's attention kernels against plain computations in f64: steps with several sequences of different lengths,
//! some in the middle, so that rings and step buffers are both read; rows beyond the count on the device are poison.

use tilekiln::kernels::runner::{
    AttendShape, Compressed, Connection, Element, attend, attend_combine, attend_workspace_bytes,
};
use tilekiln::quant::bf16;

use crate::context::{Case, Context, Failure, Run};
use crate::runner_step::{
    Bench, KEY, NAN_BF16, POISON, Pages, Step, UNTOUCHED, outside, place, rope_table, same, turn, value,
};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: String, run: Run| {
        cases.push(Case { name: format!("runner {name}"), run });
    };
    for (name, shape, last) in attend_shapes() {
        for splits in [1, 2, 10] {
            let run = move |context: &mut Context| check_attend(context, &shape, last, splits);
            add(format!("attend {name} splits {splits}"), Box::new(run));
        }
    }
    cases
}

fn attend_shapes() -> Vec<(String, AttendShape, usize)> {
    let mut shapes = Vec::new();
    let sizes = [(4, 64, 16, 16, 8), (4, 512, 64, 32, 8), (64, 512, 64, 128, 512), (128, 512, 64, 128, 1024)];
    for (heads, head_dim, rope_dim, window, most) in sizes {
        let kinds = [
            (Compressed::None, 300),
            (Compressed::Listed { ratio: 4, top_k: most }, 6 * most as usize + 200),
            (Compressed::All { ratio: 128 }, 9000),
        ];
        for (compressed, last) in kinds {
            let shape = AttendShape { heads, head_dim, rope_dim, norm_epsilon: 1e-6, window, compressed };
            shapes.push((format!("{heads}x{head_dim} {compressed:?}"), shape, last));
        }
    }
    shapes
}

/// The entries that a token attends.
fn entries_of(shape: &AttendShape, slot: usize, position: usize) -> Vec<usize> {
    match shape.compressed {
        Compressed::None => Vec::new(),
        Compressed::All { ratio } => (0..(position + 1) / ratio as usize).collect(),
        Compressed::Listed { ratio, top_k } => {
            let visible = (position + 1) / ratio as usize;
            let (count, skip) = (visible.min(top_k as usize), visible.saturating_sub(top_k as usize));
            // One stretch is left out, another for each row.
            let gap = (slot * 7 + position) % (count + 1);
            (0..visible).filter(|entry| *entry < gap || *entry >= gap + skip).collect()
        }
    }
}

const ENTRY: u64 = 2;
const QUERY: u64 = 3;

fn check_attend(context: &mut Context, shape: &AttendShape, last: usize, splits: u32) -> Result<usize, Failure> {
    let step = Step::new(last, [9, 3, 1, 12]);
    let (heads, head_dim, window) = (shape.heads as usize, shape.head_dim as usize, shape.window as usize);
    let ratio = match shape.compressed {
        Compressed::None => 1 << 20,
        Compressed::Listed { ratio, .. } | Compressed::All { ratio } => ratio as usize,
    };
    let bits = |kind| move |slot, position, column| bf16::encode(value(kind, place(slot, position), column));
    let mut bench = Bench { context, buffers: Vec::new() };
    let pages = Pages::new(step.furthest() / ratio + 1);
    let mut pool = vec![NAN_BF16; pages.rows() * head_dim];
    for (slot, end) in step.ends() {
        for entry in 0..end / ratio {
            let at = pages.row(slot, entry) * head_dim;
            (0..head_dim).for_each(|column| pool[at + column] = bits(ENTRY)(slot, entry, column));
        }
    }
    let list = if let Compressed::Listed { top_k, .. } = shape.compressed { top_k as usize } else { 0 };
    let mut picks = Vec::new();
    for (slot, position) in step.rows() {
        let entries = entries_of(shape, slot, position);
        picks.extend((0..list).map(|idx| entries.get(idx).map_or(-1, |entry| *entry as i32)));
    }
    picks.resize(step.m() * list, POISON);
    let sinks: Vec<f32> = (0..heads).map(|head| 2.0 * value(9, 0, head)).collect();
    let rows = Plan { m: step.m() as u32, splits, most_blocks: u32::MAX };
    let arrays = [
        bench.put(&step.own_rows(heads * head_dim, NAN_BF16, bits(QUERY)))?,
        bench.put(&step.own_rows(head_dim, NAN_BF16, bits(KEY)))?,
        bench.put(&step.ring([window, head_dim], NAN_BF16, bits(KEY)))?,
        bench.put(&pool)?,
        bench.put(&pages.table)?,
        bench.put(&picks)?,
        bench.put(&sinks)?,
        bench.put(&rope_table(shape.rope_dim, step.furthest() + 1))?,
    ];
    let described = bench.put_step(&step)?;
    let o = attended(&mut bench, shape, rows, (arrays, described, pages.per_slot))?;
    // More rows of capacity make for other blocks, and for the same bits.
    let wider = attended(&mut bench, shape, Plan { m: 64, ..rows }, (arrays, described, pages.per_slot))?;
    let of_rows = ..step.count * heads * head_dim;
    same("attend with capacity for 64 rows", &o[of_rows], &wider[of_rows])?;
    // So does a block that takes several tokens one after the other, with odd and even numbers of tiles.
    for most_blocks in [1, 3] {
        let fewer = Plan { most_blocks, ..rows };
        let few = attended(&mut bench, shape, fewer, (arrays, described, pages.per_slot))?;
        same(&format!("attend in {most_blocks} blocks"), &o[of_rows], &few[of_rows])?;
    }
    if o[step.count * heads * head_dim..].iter().any(|bits| *bits != UNTOUCHED) {
        return Err(format!("attend {shape:?}: a row beyond the count was written").into());
    }
    compare(shape, &step, &sinks, &o)?;
    Ok(step.count)
}

/// Some heads of every row against the plain computation.
fn compare(shape: &AttendShape, step: &Step, sinks: &[f32], o: &[u16]) -> Result<(), Failure> {
    let (heads, head_dim) = (shape.heads as usize, shape.head_dim as usize);
    for (row, (slot, position)) in step.rows().enumerate() {
        let keys = keys_of(shape, slot, position);
        for head in (0..heads).step_by(heads.div_ceil(8)) {
            let sink = f64::from(sinks[head]);
            let query = query_of(shape, (slot, position), head);
            let expected = attention(&query, &keys, sink, (shape.rope_dim, position));
            for (column, (expected, size)) in expected.into_iter().enumerate() {
                let found = bf16::decode(o[(row * heads + head) * head_dim + column]).into();
                let at = format!("row {row} position {position} head {head} column {column}");
                // Two roundings to BF16, each by at most 1/256: of every probability, and of the result.
                let bound = (size + expected.abs()) / 256.0 + 1e-5;
                outside("attend", &at, [expected, found, bound])?;
            }
        }
    }
    Ok(())
}

/// A query as it meets the keys: over its root mean square, its end rotated, rounded to BF16 once.
fn query_of(shape: &AttendShape, (slot, position): (usize, usize), head: usize) -> Vec<f64> {
    let head_dim = shape.head_dim as usize;
    let mut query: Vec<f64> =
        (0..head_dim).map(|d| value(QUERY, place(slot, position), head * head_dim + d).into()).collect();
    let root = (query.iter().map(|x| x * x).sum::<f64>() / head_dim as f64 + f64::from(shape.norm_epsilon)).sqrt();
    query.iter_mut().for_each(|x| *x /= root);
    let first = head_dim - shape.rope_dim as usize;
    for (i, pair) in query[first..].chunks_exact_mut(2).enumerate() {
        let (cos, sin) = turn(shape.rope_dim, position, i);
        (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
    }
    query.into_iter().map(|x| bf16::decode(bf16::encode(x as f32)).into()).collect()
}

/// Capacity and splits of a launch, and how many blocks there may be where a block takes more than one token.
#[derive(Clone, Copy)]
struct Plan {
    m: u32,
    splits: u32,
    most_blocks: u32,
}

/// Runs `attend`, and `attend_combine` after it where there are splits; twice, for equal bits.
fn attended(
    bench: &mut Bench,
    shape: &AttendShape,
    Plan { m, splits, most_blocks }: Plan,
    (arrays, step, max_pages): ([u64; 8], [u64; 5], usize),
) -> Result<Vec<u16>, Failure> {
    let arch = bench.context.gpu.spec().arch;
    let count = (m * shape.heads * shape.head_dim) as usize;
    let poison = vec![f32::NAN; attend_workspace_bytes(shape, m, splits) as usize / 4];
    let [positions, sequences, starts, first_rows, m_on_device] = step;
    let mut results = Vec::new();
    for _ in 0..2 {
        let (o, workspace) = (bench.put(&vec![UNTOUCHED; count])?, bench.put(&poison)?);
        let mix = bench.put(&MIX.repeat(m as usize))?;
        let mut values = arrays.to_vec();
        values.extend([positions, sequences, starts, first_rows, o, workspace, m_on_device]);
        values.extend([u64::from(m), max_pages as u64, mix]);
        let mut op = attend(shape, arch, m, splits, (splits > 1).then_some(&CONNECTION));
        if op.kernel.template == "attend_wgmma" {
            op.grid[0] = op.grid[0].min(most_blocks);
        }
        bench.run(&op, &values)?;
        let [n_rows] = bench.get::<i32>(m_on_device, 1)?[..] else { return Err("a count".to_string().into()) };
        check_mix(&bench.get(mix, m as usize * 20)?, if splits > 1 { n_rows as usize } else { 0 })?;
        if splits > 1 {
            let [.., sinks, rope] = arrays;
            let values = [workspace, sinks, rope, positions, o, m_on_device, m.into(), splits.into()];
            // The case `store step` has what it stores beside.
            bench.run(&attend_combine(shape, arch, m, None), &[&values[..], &[0; 11]].concat())?;
        }
        results.push(bench.get::<u16>(o, count)?);
    }
    let [first, second] = &results[..] else { return Err("two runs".to_string().into()) };
    if first != second {
        return Err(format!("attend {shape:?} splits {splits}: two runs differ in their bits").into());
    }
    Ok(results.remove(0))
}

/// Matrices of the first `n_rows` tokens are balanced, the others as they were.
fn check_mix(found: &[f32], n_rows: usize) -> Result<(), Failure> {
    let mut c: Vec<f64> = MIX[4..].iter().map(|&value| value.into()).collect();
    for round in 0..2 * CONNECTION.sinkhorn_rounds as usize - 1 {
        // Columns first: places that share a line are 4 apart, then 1.
        let (line, apart) = if round % 2 == 0 { (1, 4) } else { (4, 1) };
        for first in (0..4).map(|idx| idx * line) {
            let sum: f64 = (0..4).map(|idx| c[first + idx * apart]).sum();
            (0..4).for_each(|idx| c[first + idx * apart] /= sum + f64::from(CONNECTION.hc_epsilon));
        }
    }
    for (row, mix) in found.chunks_exact(20).enumerate() {
        same("post", &MIX[..4], &mix[..4])?;
        for (idx, (&found, &before)) in mix[4..].iter().zip(&MIX[4..]).enumerate() {
            let expected = if row < n_rows { c[idx] } else { before.into() };
            outside("mix", &format!("row {row} place {idx}"), [expected, found.into(), 2e-5 * expected])?;
        }
    }
    Ok(())
}

/// post, and C before its Sinkhorn.
const MIX: [f32; 20] =
    [0.5, 1.5, 0.25, 1.0, 0.7, 0.1, 0.1, 0.1, 0.05, 0.85, 0.05, 0.05, 0.25, 0.25, 0.25, 0.25, 0.4, 0.3, 0.2, 0.1];

const CONNECTION: Connection = Connection {
    hidden: 64,
    element: Element::F32,
    is_head: false,
    norm_epsilon: 1e-6,
    hc_epsilon: 1e-6,
    sinkhorn_rounds: 20,
};

fn keys_of(shape: &AttendShape, slot: usize, position: usize) -> Vec<Vec<f64>> {
    let row = |kind, idx| (0..shape.head_dim as usize).map(|d| value(kind, place(slot, idx), d).into()).collect();
    let window = (position + 1).saturating_sub(shape.window as usize)..=position;
    let own = window.map(|position| row(KEY, position));
    own.chain(entries_of(shape, slot, position).into_iter().map(|entry| row(ENTRY, entry))).collect()
}

/// Output of one head, each with the mean size of what was summed: an error of a BF16 rounding is a share of that.
fn attention(query: &[f64], keys: &[Vec<f64>], sink: f64, (rope_dim, position): (u32, usize)) -> Vec<(f64, f64)> {
    let scale = (query.len() as f64).sqrt();
    let scores: Vec<f64> =
        keys.iter().map(|key| query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() / scale).collect();
    let most = scores.iter().copied().fold(sink, f64::max);
    let shares: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
    let total: f64 = shares.iter().sum::<f64>() + (sink - most).exp();
    let mean = |d: usize, of: fn(f64) -> f64| {
        keys.iter().zip(&shares).map(|(key, share)| share * of(key[d])).sum::<f64>() / total
    };
    let mut out: Vec<(f64, f64)> = (0..query.len()).map(|d| (mean(d, |x| x), mean(d, f64::abs))).collect();
    let first = query.len() - rope_dim as usize;
    for (i, pair) in out[first..].chunks_exact_mut(2).enumerate() {
        let (cos, sin) = turn(rope_dim, position, i);
        let ((a, a_size), (b, b_size)) = (pair[0], pair[1]);
        pair[0] = (a * cos + b * sin, a_size + b_size);
        pair[1] = (b * cos - a * sin, a_size + b_size);
    }
    out
}
