//! A step of several sequences as the runner describes it to its kernels, and what cases on it share.

use std::collections::BTreeMap;

use tilekiln::codegen;
use tilekiln::device::{Buffer, Geometry, Kernel, Plain};
use tilekiln::kernels::runner::Op;
use tilekiln::quant::bf16;

use crate::context::{Context, Failure};

/// A number in (-2, 2) that depends on its place only, exact in BF16.
pub fn value(kind: u64, row: usize, column: usize) -> f32 {
    let mut x = kind << 56 ^ (row as u64) << 20 ^ column as u64;
    x = (x ^ x >> 31).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ x >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let (low, high) = (x >> 16 & 0xFFFF, x >> 40 & 0xFFFF);
    bf16::round((low as f32 + high as f32) / 32768.0 - 2.0)
}

/// What a value of a sequence's history is called: rows of different slots do not meet.
pub fn place(slot: usize, idx: usize) -> usize {
    slot << 20 | idx
}

/// Rows of a step: sequences in other slots than their order, one from its start, one with a single row.
pub struct Step {
    pub positions: Vec<i32>,
    pub sequences: Vec<i32>,
    pub starts: Vec<i32>,
    pub first_rows: Vec<i32>,
    /// Rows that count; three more are poison.
    pub count: usize,
}

pub const SLOTS: usize = 5;
pub const POISON_ROWS: usize = 3;
pub const POISON: i32 = 1 << 28;

impl Step {
    /// `lengths` rows of four sequences that end at about `last`, half of it, near the window, and early.
    pub fn new(last: usize, lengths: [usize; 4]) -> Self {
        let mut step = Self {
            positions: Vec::new(),
            sequences: Vec::new(),
            starts: vec![-POISON; SLOTS],
            first_rows: vec![-POISON; SLOTS],
            count: 0,
        };
        let starts = [last.saturating_sub(lengths[0]), 0, last / 2 + 3, 125];
        for ((slot, start), length) in [3usize, 0, 4, 1].into_iter().zip(starts).zip(lengths) {
            step.starts[slot] = start as i32;
            step.first_rows[slot] = step.positions.len() as i32;
            step.positions.extend((start..start + length).map(|position| position as i32));
            step.sequences.extend((0..length).map(|_| slot as i32));
        }
        step.count = step.positions.len();
        step.positions.extend([POISON; POISON_ROWS]);
        step.sequences.extend([POISON; POISON_ROWS]);
        step
    }

    pub fn m(&self) -> usize {
        self.positions.len()
    }

    /// Slot and position of each row that counts.
    pub fn rows(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let rows = self.sequences.iter().zip(&self.positions).take(self.count);
        rows.map(|(&slot, &position)| (slot as usize, position as usize))
    }

    /// Slots with the position after their last.
    pub fn ends(&self) -> BTreeMap<usize, usize> {
        self.rows().map(|(slot, position)| (slot, position + 1)).collect()
    }

    pub fn furthest(&self) -> usize {
        self.rows().map(|(_, position)| position).max().unwrap_or(0)
    }

    /// `[m]` rows of `width` values of the step's own tokens, poison beyond.
    pub fn own_rows<T: Copy>(&self, width: usize, poison: T, of: impl Fn(usize, usize, usize) -> T) -> Vec<T> {
        let mut rows = Vec::with_capacity(self.m() * width);
        for (slot, position) in self.rows() {
            rows.extend((0..width).map(|column| of(slot, position, column)));
        }
        rows.resize(self.m() * width, poison);
        rows
    }

    /// A ring of `rows` positions of each slot as earlier steps have left it, poison where nothing was written.
    pub fn ring<T: Copy>(&self, [rows, width]: [usize; 2], poison: T, of: impl Fn(usize, usize, usize) -> T) -> Vec<T> {
        let mut ring = vec![poison; SLOTS * rows * width];
        for slot in self.ends().into_keys() {
            let start = self.starts[slot] as usize;
            for position in start.saturating_sub(rows)..start {
                let at = (slot * rows + position % rows) * width;
                (0..width).for_each(|column| ring[at + column] = of(slot, position, column));
            }
        }
        ring
    }
}

/// Pages of all slots, in a shuffled order.
pub struct Pages {
    pub table: Vec<i32>,
    pub per_slot: usize,
}

impl Pages {
    pub fn new(entries: usize) -> Self {
        let per_slot = entries / 64 + 1;
        let count = SLOTS * per_slot;
        // An odd step that shares no factor with the count visits every page.
        let step = (count / 3..).find(|step| gcd(*step, count) == 1).unwrap_or(1);
        Self { table: (0..count).map(|page| (page * step % count) as i32).collect(), per_slot }
    }

    pub fn row(&self, slot: usize, entry: usize) -> usize {
        self.table[slot * self.per_slot + entry / 64] as usize * 64 + entry % 64
    }

    pub fn rows(&self) -> usize {
        self.table.len() * 64
    }
}

pub fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// (cos, sin) of `position`, pair `i`.
pub fn turn(rope_dim: u32, position: usize, i: usize) -> (f64, f64) {
    let angle = position as f64 * 10000f64.powf(-2.0 * i as f64 / f64::from(rope_dim));
    (f64::from(angle.cos() as f32), f64::from(angle.sin() as f32))
}

pub fn rope_table(rope_dim: u32, positions: usize) -> Vec<f32> {
    let pairs =
        (0..positions).flat_map(|position| (0..rope_dim as usize / 2).map(move |i| turn(rope_dim, position, i)));
    pairs.flat_map(|(cos, sin)| [cos as f32, sin as f32]).collect()
}

/// The buffers of a step, and launches with words as parameters.
pub struct Bench<'a> {
    pub context: &'a Context,
    pub buffers: Vec<Buffer>,
}

impl Bench<'_> {
    /// Uploads `values` and gives their address; the bench keeps them.
    pub fn put<T: Plain>(&mut self, values: &[T]) -> Result<u64, Failure> {
        self.buffers.push(self.context.buffer(values)?);
        Ok(self.buffers[self.buffers.len() - 1].pointer())
    }

    pub fn get<T: Plain>(&self, pointer: u64, count: usize) -> Result<Vec<T>, Failure> {
        let buffer = self.buffers.iter().find(|buffer| buffer.pointer() == pointer);
        Ok(buffer.ok_or_else(|| "a buffer of the bench".to_string())?.download(count)?)
    }

    /// The four arrays that say what the rows are, then the count: positions, sequences, starts, first rows, count.
    pub fn put_step(&mut self, step: &Step) -> Result<[u64; 5], Failure> {
        Ok([
            self.put(&step.positions)?,
            self.put(&step.sequences)?,
            self.put(&step.starts)?,
            self.put(&step.first_rows)?,
            self.put(&[step.count as i32])?,
        ])
    }

    pub fn load(&self, op: &Op) -> Result<Kernel, Failure> {
        let spec = self.context.gpu.spec();
        let source = codegen::render(&op.kernel, spec.arch, &spec.target).map_err(|error| error.to_string())?;
        let (cubin, _) = self.context.jit.compile(&source).map_err(|error| error.to_string())?;
        Ok(Kernel::load(&self.context.gpu, &cubin, op.smem_bytes)?)
    }

    pub fn launch(&self, op: &Op, kernel: &Kernel, values: &[u64]) -> Result<(), Failure> {
        let mut values = values.to_vec();
        let mut pointers: Vec<_> = values.iter_mut().map(|value| (value as *mut u64).cast()).collect();
        let geometry = Geometry { grid: op.grid, threads: op.threads, smem_bytes: op.smem_bytes, is_dependent: true };
        // SAFETY: each caller passes what the op's doc lists; the bench keeps the buffers until after a wait.
        unsafe { kernel.launch(&geometry, &mut pointers, self.context.stream.raw())? };
        Ok(())
    }

    pub fn run(&self, op: &Op, values: &[u64]) -> Result<(), Failure> {
        let kernel = self.load(op)?;
        self.launch(op, &kernel, values)?;
        Ok(self.context.stream.synchronize()?)
    }
}

/// The first place where `found` is further from `expected` than `tolerance`, in words.
pub fn outside(what: &str, at: &str, [expected, found, tolerance]: [f64; 3]) -> Result<(), Failure> {
    if (found - expected).abs() <= tolerance {
        return Ok(());
    }
    Err(format!("{what} {at}: expected {expected:e} within {tolerance:e}, found {found:e}").into())
}

pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, expected: &[T], found: &[T]) -> Result<(), Failure> {
    match expected.iter().zip(found).position(|(expected, found)| expected != found) {
        None => Ok(()),
        Some(at) => Err(format!("{what} at {at}: expected {:?}, found {:?}", expected[at], found[at]).into()),
    }
}

/// Values of keys, for [`value`].
pub const KEY: u64 = 1;

/// A NaN, where nothing may be read.
pub const NAN_BF16: u16 = 0x7FC0;
/// What no kernel writes.
pub const UNTOUCHED: u16 = 0xABCD;
