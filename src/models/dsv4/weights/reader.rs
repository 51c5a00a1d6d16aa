//! Matrices and vectors out of parts: formats found, shapes and scales checked, faults collected instead of returned.
//!
//! A fault leaves an empty weight behind, so that all others are still looked at; the load that collected it fails.

use std::borrow::Cow;

use super::Linear;
use super::faults::{Fault, Faults, Reason};
use super::input_scale::{InputScaleWarning, Unusable};
use super::ledger::{Ledger, Role};
use super::parts::{Part, Parts};
use crate::engine::Dtype;
use crate::quant::{TensorScale, WeightFormat, bf16, fp8, ue8m0, validate_weight_scales};

/// Reads weights, and remembers what was wrong and what was found.
pub(super) struct Reader<'a> {
    parts: Parts<'a>,
    faults: Faults,
    warnings: Vec<InputScaleWarning>,
    found: Vec<Found>,
}

/// What one matrix turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    /// Native name.
    pub(super) weight: String,
    /// Name of its codes in the file.
    pub(super) tensor: String,
    pub(super) format: WeightFormat,
    pub(super) convention: Convention,
}

/// In which words the scales of a matrix are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Convention {
    /// `.scale`, `.weight_scale` of FP8, or none: nothing that anyone could read the wrong way round.
    Plain,
    /// `weight_scale_2` and `input_scale` are multipliers.
    ModelOpt,
    /// `weight_global_scale` and `input_global_scale` are divisors.
    CompressedTensors,
}

/// What a reader has at the end.
pub(super) struct Read {
    pub(super) faults: Faults,
    pub(super) warnings: Vec<InputScaleWarning>,
    pub(super) found: Vec<Found>,
    pub(super) ledger: Ledger,
}

impl<'a> Reader<'a> {
    pub(super) fn new(parts: Parts<'a>, unusable: Vec<Fault>) -> Self {
        let faults = Faults { unusable, ..Faults::default() };
        Self { parts, faults, warnings: Vec::new(), found: Vec::new() }
    }

    pub(super) fn finish(mut self) -> Read {
        let (ledger, unexpected) = self.parts.settle(&mut self.faults.unusable);
        self.faults.unexpected = unexpected;
        Read { faults: self.faults, warnings: self.warnings, found: self.found, ledger }
    }

    /// Adds a fault of the tensor that `weight`'s codes lie in.
    pub(super) fn fault(&mut self, weight: &str, reason: Reason) {
        let tensor = self.found.iter().rev().find(|found| found.weight == weight).map(|found| found.tensor.clone());
        self.faults.unusable.push(Fault { tensor: tensor.unwrap_or_else(|| weight.to_string()), reason });
    }

    /// The matrix `[n, k]` called `name`, in whatever format the files have it.
    pub(super) fn linear(&mut self, name: &str, n: usize, k: usize) -> Linear<'a> {
        let format = self.format_of(name);
        let Some((format, convention, codes)) = format else {
            return self.unreadable(name, n, k);
        };
        if let Some(tensor) = self.parts.tensor(&codes) {
            let (weight, tensor) = (name.to_string(), tensor.to_string());
            self.found.push(Found { weight, tensor, format, convention });
        }
        if !k.is_multiple_of(format.k_multiple() as usize) {
            self.fault(name, Reason::K { format, k });
        }
        let (dtypes, columns): (&[Dtype], usize) = match format {
            WeightFormat::Bf16 => (&[Dtype::Bf16], k),
            WeightFormat::Fp8 => (&[Dtype::F8E4m3], k),
            WeightFormat::Nvfp4 | WeightFormat::Mxfp4 => (&[Dtype::U8, Dtype::I8], k / 2),
        };
        let codes = self.matrix(&codes, (name, Role::Codes), dtypes, &[n, columns]);
        let codes = codes.map_or(&[][..], |part| part.bytes);
        let scales = self.scales(name, format, n, k);
        let tensor_scale = match format {
            WeightFormat::Nvfp4 => self.tensor_scale(name, convention),
            _ => 1.0,
        };
        let input_scale = self.input_scale(name, convention);
        Linear { name: name.to_string(), format, n, k, codes, scales, tensor_scale, input_scale }
    }

    /// A matrix that is only known in BF16.
    pub(super) fn bf16(&mut self, name: &str, n: usize, k: usize) -> Linear<'a> {
        let tensor = format!("{name}.weight");
        let part = self.matrix(&tensor, (name, Role::Codes), &[Dtype::Bf16], &[n, k]);
        if let Some(part) = &part {
            let (format, convention) = (WeightFormat::Bf16, Convention::Plain);
            self.found.push(Found { weight: name.to_string(), tensor: part.tensor.to_string(), format, convention });
        }
        Linear { codes: part.map_or(&[], |part| part.bytes), ..empty(name, n, k) }
    }

    /// The F32 or BF16 values called `name`, in `shape`.
    pub(super) fn values(&mut self, name: &str, shape: &[usize]) -> Vec<f32> {
        let weight = name.strip_suffix(".weight").unwrap_or(name);
        let part = self.matrix(name, (weight, Role::Values), &[Dtype::F32, Dtype::Bf16], shape);
        let Some(part) = part else { return Vec::new() };
        let values = floats(&part);
        if let Some(idx) = values.iter().position(|value| !value.is_finite()) {
            let (tensor, found) = (part.tensor.to_string(), values[idx]);
            self.faults.unusable.push(Fault { tensor, reason: Reason::NonFinite { found, idx } });
        }
        values
    }

    /// The table `[tokens, top_k]` of expert numbers called `name`, all below `experts`.
    pub(super) fn expert_table(&mut self, name: &str, shape: [usize; 2], experts: u32) -> Vec<i32> {
        let part = self.matrix(name, (name, Role::Values), &[Dtype::I64, Dtype::I32], &shape);
        let Some(part) = part else { return Vec::new() };
        let width = part.dtype.bytes();
        let number = |bytes: &[u8]| match bytes.first_chunk::<8>() {
            Some(bytes) if width == 8 => i64::from_le_bytes(*bytes),
            _ => i64::from(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
        };
        let numbers: Vec<i64> = part.bytes.chunks_exact(width).map(number).collect();
        if let Some(idx) = numbers.iter().position(|&number| !(0..i64::from(experts)).contains(&number)) {
            let (tensor, found, token) = (part.tensor.to_string(), numbers[idx], idx / shape[1]);
            self.faults.unusable.push(Fault { tensor, reason: Reason::Expert { experts, found, token } });
            return Vec::new();
        }
        // Every number is below `experts`, which is a u32 of at most some hundreds.
        numbers.into_iter().map(|number| number as i32).collect()
    }

    /// How the matrix called `name` is stored, in which convention, and the name of its codes.
    fn format_of(&self, name: &str) -> Option<(WeightFormat, Convention, String)> {
        let packed = format!("{name}.weight_packed");
        if self.parts.has(&packed) {
            return Some((WeightFormat::Nvfp4, Convention::CompressedTensors, packed));
        }
        let weight = format!("{name}.weight");
        let has = |part: &str| self.parts.has(&format!("{name}.{part}"));
        let (format, convention) = match self.parts.dtype(&weight)? {
            Dtype::Bf16 => (WeightFormat::Bf16, Convention::Plain),
            Dtype::F8E4m3 => (WeightFormat::Fp8, Convention::Plain),
            // Codes of four bits are bytes in both formats; their scales tell them apart. Without any, the dtype that
            // each is published with says which scales to miss.
            dtype @ (Dtype::U8 | Dtype::I8) => {
                let is_nvfp4 = has("weight_scale") || has("weight_scale_2");
                match is_nvfp4 || dtype == Dtype::U8 && !has("scale") {
                    true => (WeightFormat::Nvfp4, Convention::ModelOpt),
                    false => (WeightFormat::Mxfp4, Convention::Plain),
                }
            }
            _ => return None,
        };
        Some((format, convention, weight))
    }

    /// A matrix that is missing, or of a dtype that no format has.
    fn unreadable(&mut self, name: &str, n: usize, k: usize) -> Linear<'a> {
        let expected = [Dtype::Bf16, Dtype::F8E4m3, Dtype::U8, Dtype::I8];
        self.matrix(&format!("{name}.weight"), (name, Role::Codes), &expected, &[n, k]);
        empty(name, n, k)
    }

    /// Takes a part, and checks its dtype and shape. Whatever is wrong with it, it is accounted for.
    fn matrix(&mut self, part: &str, used: (&str, Role), dtypes: &[Dtype], shape: &[usize]) -> Option<Part<'a>> {
        let Some(found) = self.parts.take(part, used.0, used.1) else {
            self.faults.missing.push(part.to_string());
            return None;
        };
        // A scalar may be written with one axis or with none.
        let is_scalar = |shape: &[usize]| shape.iter().all(|&axis| axis == 1);
        let reason = if !dtypes.contains(&found.dtype) {
            Reason::Dtype { expected: dtypes.to_vec(), found: found.dtype }
        } else if found.shape != shape && !(shape.is_empty() && is_scalar(&found.shape)) {
            Reason::Shape { expected: shape.to_vec(), found: found.shape }
        } else {
            return Some(found);
        };
        self.faults.unusable.push(Fault { tensor: found.tensor.to_string(), reason });
        None
    }

    /// Block scales, as bytes of the format.
    fn scales(&mut self, name: &str, format: WeightFormat, n: usize, k: usize) -> Cow<'a, [u8]> {
        let used = (name, Role::Scales);
        let (part, checked) = match format {
            WeightFormat::Bf16 => return Cow::Borrowed(&[]),
            WeightFormat::Nvfp4 => {
                let part = self.matrix(&format!("{name}.weight_scale"), used, &[Dtype::F8E4m3], &[n, k / 16]);
                (part, nvfp4_scales as Check)
            }
            WeightFormat::Mxfp4 => {
                let part = self.matrix(&format!("{name}.scale"), used, &[Dtype::F8E8m0], &[n, k / 32]);
                (part, e8m0_scales as Check)
            }
            WeightFormat::Fp8 => {
                let compressed_tensors = format!("{name}.weight_scale");
                let has = self.parts.has(&compressed_tensors);
                let scale = if has { compressed_tensors } else { format!("{name}.scale") };
                let shape = [n.div_ceil(fp8::BLOCK), k.div_ceil(fp8::BLOCK)];
                let part = self.matrix(&scale, used, &[Dtype::F8E8m0, Dtype::F32, Dtype::Bf16], &shape);
                (part, e8m0_scales as Check)
            }
        };
        let Some(part) = part else { return Cow::Borrowed(&[]) };
        checked(&part).unwrap_or_else(|reason| {
            self.faults.unusable.push(Fault { tensor: part.tensor.to_string(), reason });
            Cow::Borrowed(&[])
        })
    }

    /// What all values of an NVFP4 matrix are multiplied by.
    fn tensor_scale(&mut self, name: &str, convention: Convention) -> f32 {
        let part = match convention {
            Convention::CompressedTensors => format!("{name}.weight_global_scale"),
            _ => format!("{name}.weight_scale_2"),
        };
        let Some(part) = self.matrix(&part, (name, Role::TensorScale), &[Dtype::F32], &[]) else { return 1.0 };
        let value = floats(&part)[0];
        let scale = match convention {
            Convention::CompressedTensors => TensorScale::divisor(value),
            _ => TensorScale::multiplier(value),
        };
        scale.map(TensorScale::value).unwrap_or_else(|error| {
            self.faults.unusable.push(Fault { tensor: part.tensor.to_string(), reason: error.into() });
            1.0
        })
    }

    /// The file's scale of activations as a multiplier, whatever it is; what no policy could use is warned of.
    fn input_scale(&mut self, name: &str, convention: Convention) -> Option<f32> {
        let divisor = format!("{name}.input_global_scale");
        let is_divisor = convention == Convention::CompressedTensors && self.parts.has(&divisor);
        let part = if is_divisor { divisor } else { format!("{name}.input_scale") };
        if !self.parts.has(&part) {
            return None;
        }
        let part = self.matrix(&part, (name, Role::InputScale), &[Dtype::F32], &[])?;
        let value = floats(&part)[0];
        let (scale, checked) = match is_divisor {
            true => (1.0 / value, TensorScale::divisor(value)),
            false => (value, TensorScale::multiplier(value)),
        };
        if let Err(error) = checked {
            let (weight, tensor) = (name.to_string(), part.tensor.to_string());
            self.warnings.push(InputScaleWarning { weight, tensor, problem: Unusable::NoScale { value, error } });
        }
        Some(scale)
    }
}

type Check = for<'a> fn(&Part<'a>) -> Result<Cow<'a, [u8]>, Reason>;

fn nvfp4_scales<'a>(part: &Part<'a>) -> Result<Cow<'a, [u8]>, Reason> {
    let columns = part.shape[1];
    validate_weight_scales(part.bytes, columns * crate::quant::nvfp4::GROUP)?;
    Ok(Cow::Borrowed(part.bytes))
}

/// UE8M0 bytes as they are; F32 and BF16 scales that are powers of two as the bytes that say the same.
fn e8m0_scales<'a>(part: &Part<'a>) -> Result<Cow<'a, [u8]>, Reason> {
    let place = |idx: usize| (idx / part.shape[1], idx % part.shape[1]);
    if part.dtype == Dtype::F8E8m0 {
        // NaN is the largest byte. Looking for the largest reads many bytes at a time, looking for a place does not.
        if part.bytes.iter().fold(0, |largest, &byte| byte.max(largest)) < ue8m0::NAN {
            return Ok(Cow::Borrowed(part.bytes));
        }
        return match part.bytes.iter().position(|&byte| byte == ue8m0::NAN).map(place) {
            None => Ok(Cow::Borrowed(part.bytes)),
            Some((row, column)) => Err(Reason::ScaleNan { row, column }),
        };
    }
    let byte = |(idx, found): (usize, f32)| {
        let byte = ue8m0::encode_up(found);
        let (row, column) = place(idx);
        match ue8m0::decode(byte) == found {
            true => Ok(byte),
            false => Err(Reason::NoPowerOfTwo { found, row, column }),
        }
    };
    floats(part).into_iter().enumerate().map(byte).collect::<Result<Vec<u8>, Reason>>().map(Cow::Owned)
}

/// The values of an F32 or BF16 part.
fn floats(part: &Part<'_>) -> Vec<f32> {
    match part.dtype {
        Dtype::Bf16 => part.bytes.as_chunks().0.iter().map(|bytes| bf16::decode(u16::from_le_bytes(*bytes))).collect(),
        _ => part.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
    }
}

fn empty<'a>(name: &str, n: usize, k: usize) -> Linear<'a> {
    let (format, scales) = (WeightFormat::Bf16, Cow::Borrowed(&[][..]));
    Linear { name: name.to_string(), format, n, k, codes: &[], scales, tensor_scale: 1.0, input_scale: None }
}
