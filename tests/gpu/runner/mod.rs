//! The runner's own kernels, each against a plain computation on the CPU.
//!
//! Every launch has a bucket larger than its tokens where it can, and what lies behind them must stay as it was.

mod quantised;
mod rows;
mod streams;
mod tokens;

use tilekiln::codegen;
use tilekiln::device::{Buffer, Geometry, Kernel, Value};
use tilekiln::kernels::runner::Op;
use tilekiln::quant::bf16;

use crate::context::{Case, Context, Failure};

pub fn cases() -> Vec<Case> {
    [streams::cases(), rows::cases(), tokens::cases(), quantised::cases()].into_iter().flatten().collect()
}

fn case(name: &str, run: impl Fn(&mut Context) -> Result<usize, Failure> + 'static) -> Case {
    Case { name: format!("runner {name}"), run: Box::new(run) }
}

/// Launches `op` with `values` and waits.
fn launch(context: &Context, op: &Op, values: &[Value]) -> Result<(), Failure> {
    let spec = context.gpu.spec();
    let source = codegen::render(&op.kernel, spec.arch, &spec.target).map_err(|error| error.to_string())?;
    let (cubin, _) = context.jit.compile(&source).map_err(|error| error.to_string())?;
    let kernel = Kernel::load(&context.gpu, &cubin, op.smem_bytes)?;
    let sizes = kernel.param_sizes()?.len();
    if sizes != values.len() {
        return Err(format!("{} takes {sizes} parameters, the case has {}", op.kernel.template, values.len()).into());
    }
    let is_dependent = spec.arch.capabilities.dependent_launch;
    let geometry = Geometry { grid: op.grid, threads: op.threads, smem_bytes: op.smem_bytes, is_dependent };
    // SAFETY: each case passes the values that the op's doc lists, with buffers that outlive the wait below.
    unsafe { kernel.launch_values(&geometry, values, context.stream.raw())? };
    Ok(context.stream.synchronize()?)
}

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in (-1, 1).
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn floats(&mut self, count: usize, size: f32) -> Vec<f32> {
        (0..count).map(|_| self.unit() * size).collect()
    }

    /// Values that BF16 holds.
    fn rounded(&mut self, count: usize, size: f32) -> Vec<f32> {
        self.floats(count, size).into_iter().map(bf16::round).collect()
    }
}

fn bits(values: &[f32]) -> Vec<u16> {
    values.iter().map(|&value| bf16::encode(value)).collect()
}

/// A buffer for results, full of a pattern that no kernel writes.
fn blank(context: &Context, bytes: usize) -> Result<Buffer, Failure> {
    let buffer = Buffer::new(&context.gpu, bytes)?;
    buffer.set_bytes(BLANK)?;
    Ok(buffer)
}

/// `live` BF16 values from the front of a result of `all`; what is behind them must be blank.
fn read_bf16(what: &str, buffer: &Buffer, [live, all]: [usize; 2]) -> Result<Vec<f32>, Failure> {
    let found: Vec<u16> = buffer.download(all)?;
    let stray = found[live..].iter().position(|&value| value != u16::from_ne_bytes([BLANK; 2]));
    untouched(what, stray.map(|at| live + at))?;
    Ok(found[..live].iter().map(|&value| bf16::decode(value)).collect())
}

/// As [`read_bf16`], for 32-bit values.
fn read_words(what: &str, buffer: &Buffer, [live, all]: [usize; 2]) -> Result<Vec<u32>, Failure> {
    let mut found: Vec<u32> = buffer.download(all)?;
    let stray = found[live..].iter().position(|&value| value != u32::from_ne_bytes([BLANK; 4]));
    untouched(what, stray.map(|at| live + at))?;
    found.truncate(live);
    Ok(found)
}

fn read_f32(what: &str, buffer: &Buffer, lengths: [usize; 2]) -> Result<Vec<f32>, Failure> {
    Ok(read_words(what, buffer, lengths)?.into_iter().map(f32::from_bits).collect())
}

fn read_i32(what: &str, buffer: &Buffer, lengths: [usize; 2]) -> Result<Vec<i32>, Failure> {
    Ok(read_words(what, buffer, lengths)?.into_iter().map(|word| word as i32).collect())
}

fn untouched(what: &str, stray: Option<usize>) -> Result<(), Failure> {
    match stray {
        None => Ok(()),
        Some(at) => Err(format!("{what}: expected element {at} beyond the tokens to stay as it was").into()),
    }
}

/// Every element within `relative * |expected| + absolute`; NaN where NaN is expected.
fn close(what: &str, found: &[f32], expected: &[f64], [relative, absolute]: [f64; 2]) -> Result<usize, Failure> {
    if found.len() != expected.len() {
        return Err(format!("{what}: expected {} elements, found {}", expected.len(), found.len()).into());
    }
    for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let off = (f64::from(found) - expected).abs();
        let is_close = off <= relative * expected.abs() + absolute || (found.is_nan() && expected.is_nan());
        if !is_close {
            return Err(format!("{what}: element {at}: expected {expected:e}, found {found:e}").into());
        }
    }
    Ok(found.len())
}

/// Every element equal.
fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: &[T], expected: &[T]) -> Result<usize, Failure> {
    if found.len() != expected.len() {
        return Err(format!("{what}: expected {} elements, found {}", expected.len(), found.len()).into());
    }
    match found.iter().zip(expected).position(|(found, expected)| found != expected) {
        None => Ok(found.len()),
        Some(at) => Err(format!("{what}: element {at}: expected {:?}, found {:?}", expected[at], found[at]).into()),
    }
}

fn pointer(buffer: &Buffer) -> Value {
    Value::Pointer(buffer.pointer())
}

fn number(value: u32) -> Value {
    Value::Int(value as i32)
}

const NULL: Value = Value::Pointer(0);

const BLANK: u8 = 0xAB;

/// Half a step of BF16, relative, and a little for sums in another order.
const BF16_STEP: f64 = 1.05 / 256.0;

/// Tokens of a step and the bucket that it is launched with.
const STEPS: [(u32, u32); 5] = [(1, 1), (2, 4), (3, 3), (33, 64), (50, 64)];
