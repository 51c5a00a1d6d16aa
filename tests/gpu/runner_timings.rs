//! How long the runner's attention kernels take in the sizes of DeepSeek-V4-Flash: printed, and held against nothing.

use tilekiln::device::{Buffer, Event};
use tilekiln::kernels::runner::{
    AttendShape, Compressed, IndexShape, Op, attend, attend_combine, attend_workspace_bytes, index_score, top_k,
};
use tilekiln::kernels::{self, FillKind};

use crate::context::{Case, Context, Failure};
use crate::runner_step::{Bench, rope_table};

pub fn cases() -> Vec<Case> {
    let case = |name: &str, run: fn(&mut Context) -> Result<usize, Failure>| Case {
        name: name.to_string(),
        run: Box::new(run),
    };
    vec![case("runner timings of attend", attend_times), case("runner timings of the indexer", index_times)]
}

/// A step of `m` tokens: rows of one long prompt, or one row of each of `m` sequences.
#[derive(Clone, Copy)]
struct Size {
    m: usize,
    is_prompt: bool,
    /// Position of the last token.
    last: usize,
}

impl Size {
    fn slots(&self) -> usize {
        if self.is_prompt { 1 } else { self.m }
    }

    fn position(&self, row: usize) -> usize {
        if self.is_prompt { self.last + 1 - self.m + row } else { self.last }
    }

    /// Positions, sequences, starts and first rows.
    fn describe(&self) -> [Vec<i32>; 4] {
        let slots = 0..self.slots();
        [
            (0..self.m).map(|row| self.position(row) as i32).collect(),
            (0..self.m).map(|row| if self.is_prompt { 0 } else { row as i32 }).collect(),
            slots.clone().map(|slot| self.position(slot) as i32).collect(),
            slots.map(|slot| slot as i32).collect(),
        ]
    }
}

fn attend_times(context: &mut Context) -> Result<usize, Failure> {
    let (heads, head_dim, rope_dim, norm_epsilon, window) = (64, 512, 64, 1e-6, 128);
    let of = |compressed| AttendShape { heads, head_dim, rope_dim, norm_epsilon, window, compressed };
    let csa = of(Compressed::Listed { ratio: 4, top_k: 512 });
    let hca = of(Compressed::All { ratio: 128 });
    let swa = of(Compressed::None);
    let prompt = |last| Size { m: 8192, is_prompt: true, last };
    let decode = |m, last| Size { m, is_prompt: false, last };
    let mut checked = 0;
    for (name, shape, size, splits) in [
        ("CSA", csa, prompt(16_383), &[1][..]),
        ("HCA", hca, prompt(65_535), &[1]),
        ("SWA", swa, prompt(8191), &[1]),
        ("CSA", csa, decode(1, 16_383), &[1, 2, 5, 10]),
        ("HCA", hca, decode(1, 65_535), &[5, 10]),
        ("SWA", swa, decode(1, 16_383), &[1, 2]),
        ("CSA", csa, decode(16, 8191), &[1, 2, 5, 10]),
        ("CSA", csa, decode(64, 8191), &[1, 2, 3, 5]),
    ] {
        for splits in splits {
            time_attend(context, name, &shape, size, *splits)?;
            checked += 1;
        }
    }
    Ok(checked)
}

fn time_attend(context: &mut Context, name: &str, shape: &AttendShape, size: Size, splits: u32) -> Result<(), Failure> {
    let ratio = match shape.compressed {
        Compressed::None => size.last + 2,
        Compressed::Listed { ratio, .. } | Compressed::All { ratio } => ratio as usize,
    };
    let (m, pages, row) = (size.m, (size.last + 1) / ratio / 64 + 1, shape.head_dim as usize);
    let top_k = if let Compressed::Listed { top_k, .. } = shape.compressed { top_k as usize } else { 0 };
    let visible = |row| (size.position(row) + 1) / ratio;
    // Lists spread over everything that is visible.
    let list = (0..m * top_k).map(|idx| (idx % top_k * visible(idx / top_k) / top_k) as i32);
    let mut bench = Bench { context, buffers: Vec::new() };
    let q = bf16(&mut bench, m * shape.heads as usize * row)?;
    let (step, ring) = (bf16(&mut bench, m * row)?, bf16(&mut bench, size.slots() * shape.window as usize * row)?);
    let pool = bf16(&mut bench, size.slots() * pages * 64 * row)?;
    let table: Vec<i32> = (0..(size.slots() * pages) as i32).rev().collect();
    let mut values = vec![q, step, ring, pool, bench.put(&table)?, bench.put(&list.collect::<Vec<_>>())?];
    let sinks = bench.put(&vec![0.5f32; shape.heads as usize])?;
    let rope = bench.put(&rope_table(shape.rope_dim, size.last + 1))?;
    values.extend([sinks, rope]);
    let described = size.describe();
    let positions = bench.put(&described[0])?;
    values.push(positions);
    for array in &described[1..] {
        values.push(bench.put(array)?);
    }
    let o = bf16(&mut bench, m * shape.heads as usize * row)?;
    let workspace = Buffer::new(&context.gpu, attend_workspace_bytes(shape, m as u32, splits) as usize)?;
    values.extend([o, workspace.pointer(), 0, m as u64, pages as u64, 0]);
    let arch = context.gpu.spec().arch;
    let op = attend(shape, arch, m as u32, splits, None);
    let combine = [workspace.pointer(), sinks, rope, positions, o, 0, m as u64, splits.into()];
    // What is stored beside it is not asked for.
    let combine = [&combine[..], &[0; 11]].concat();
    let mut launches = vec![(op, values)];
    if splits > 1 {
        launches.push((attend_combine(shape, arch, m as u32, None), combine));
    }
    let entries = |row| if top_k > 0 { visible(row).min(top_k) } else { visible(row) };
    let keys: usize = (0..m).map(|row| (size.position(row) + 1).min(shape.window as usize) + entries(row)).sum();
    let flops = 4.0 * keys as f64 * f64::from(shape.heads * shape.head_dim);
    let micros = time(&bench, &launches)?;
    println!(
        "        attend {name} m {m} at {} splits {splits}: {micros:.1} us, {:.0} TFLOP/s, {:.0} keys a token",
        size.last,
        flops / micros / 1e6,
        keys as f64 / m as f64
    );
    Ok(())
}

/// `count` random BF16 values that the bench keeps.
fn bf16(bench: &mut Bench, count: usize) -> Result<u64, Failure> {
    let buffer = Buffer::new(&bench.context.gpu, 2 * count)?;
    let mut values = [buffer.pointer(), count as u64, FillKind::Bf16 as u64, 0, 0, 7 + bench.buffers.len() as u64];
    bench.context.run_tool(&kernels::fill(), 1024, &mut values)?;
    bench.buffers.push(buffer);
    Ok(bench.buffers[bench.buffers.len() - 1].pointer())
}

/// Microseconds of one pass through `launches`, each dependent on the one before.
fn time(bench: &Bench, launches: &[(Op, Vec<u64>)]) -> Result<f64, Failure> {
    let mut loaded = Vec::new();
    for (op, values) in launches {
        loaded.push((op, bench.load(op)?, values));
    }
    let (begin, end) = (Event::new(&bench.context.gpu)?, Event::new(&bench.context.gpu)?);
    let pass = || loaded.iter().try_for_each(|(op, kernel, values)| bench.launch(op, kernel, values));
    (0..WARM_UP).try_for_each(|_| pass())?;
    begin.record(&bench.context.stream)?;
    (0..PASSES).try_for_each(|_| pass())?;
    end.record(&bench.context.stream)?;
    Ok(end.microseconds_since(&begin)? / f64::from(PASSES))
}

fn index_times(context: &mut Context) -> Result<usize, Failure> {
    let shape = IndexShape { heads: 64, head_dim: 128, ratio: 4, top_k: 512 };
    let mut checked = 0;
    for size in [
        Size { m: 8192, is_prompt: true, last: 8191 },
        Size { m: 8192, is_prompt: true, last: 65_535 },
        Size { m: 1, is_prompt: false, last: 16_383 },
        Size { m: 1, is_prompt: false, last: 65_535 },
        Size { m: 64, is_prompt: false, last: 16_383 },
    ] {
        let (m, capacity) = (size.m, (size.last + 1) / 4);
        let pages = capacity / 64 + 1;
        let mut bench = Bench { context, buffers: Vec::new() };
        let qi = bf16(&mut bench, m * 64 * 128)?;
        let pool = bf16(&mut bench, size.slots() * pages * 64 * 128)?;
        let weights = bench.put(&(0..m * 64).map(|idx| (idx % 37) as f32 - 18.0).collect::<Vec<_>>())?;
        let table = bench.put(&(0..(size.slots() * pages) as i32).collect::<Vec<_>>())?;
        let [positions, sequences, ..] = size.describe();
        let (positions, sequences) = (bench.put(&positions)?, bench.put(&sequences)?);
        let scores = Buffer::new(&context.gpu, 4 * m * capacity)?;
        let picks = Buffer::new(&context.gpu, 4 * m * 512)?;
        let (width, count) = (capacity as u64, m as u64);
        let score =
            [qi, weights, pool, table, positions, sequences, scores.pointer(), 0, 64, count, pages as u64, width];
        let pick = [scores.pointer(), positions, picks.pointer(), 0, count, width];
        let score = (index_score(&shape, m as u32, capacity as u32), score.to_vec());
        let pick = (top_k(&shape, m as u32), pick.to_vec());
        let visible: usize = (0..m).map(|row| (size.position(row) + 1) / 4).filter(|visible| *visible > 512).sum();
        let (score, pick) = (time(&bench, &[score])?, time(&bench, &[pick])?);
        let tflops = 2.0 * visible as f64 * 64.0 * 128.0 / score / 1e6;
        println!("        m {m} at {}: index_score {score:.1} us ({tflops:.0} TFLOP/s), top_k {pick:.1} us", size.last);
        checked += 1;
    }
    Ok(checked)
}

const WARM_UP: u32 = 3;
const PASSES: u32 = 20;
