//! A model directory looked at without a GPU: what is in it, whether it can be loaded, and what to be wary of.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::faults::{Fault, Faults, Reason, WeightsError};
use super::input_scale::ceiling;
use super::ledger::{Fate, Ledger, Unused};
use super::{LoadOptions, Loaded, Weights, names};
use crate::engine::TensorFiles;
use crate::models::dsv4::config_file::ConfigFile;
use crate::quant::WeightFormat;

/// What a model directory holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Examination {
    /// The directory.
    pub directory: String,
    /// What config.json says of formats.
    pub quantization: Option<String>,
    /// Layers of the model.
    pub layers: u32,
    /// Files with tensors.
    pub shards: usize,
    /// Tensors of all files.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Matrices of each kind and format.
    pub matrices: Vec<MatrixKind>,
    /// Tensors that weights are made of.
    pub used: usize,
    /// Tensors that are known and left out, by reason.
    pub unused: Vec<UnusedTensors>,
    /// Scales of activations that the files bring along.
    pub input_scales: Vec<InputScales>,
    /// What to be wary of, a sentence each.
    pub warnings: Vec<String>,
    /// Why it cannot be loaded; `None` if it can.
    pub refusal: Option<Refusal>,
}

/// Matrices of one kind and format.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MatrixKind {
    /// Name without the numbers of layer and expert, such as `ffn.experts.w1`.
    pub kind: String,
    /// Their format.
    pub format: WeightFormat,
    /// How many.
    pub count: usize,
    /// Bytes of codes and scales.
    pub bytes: u64,
}

/// Tensors that are left out for one reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UnusedTensors {
    /// The reason.
    pub reason: &'static str,
    /// How many.
    pub count: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Scales of activations of one kind of matrix.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InputScales {
    /// Kind of the matrix.
    pub kind: String,
    /// How many of them.
    pub count: usize,
    /// The largest activation under the smallest of them: 6 * 448 times it. NaN is left out of both.
    pub lowest_ceiling: f32,
    /// The largest activation under the largest of them.
    pub highest_ceiling: f32,
}

/// Why a directory cannot be loaded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Refusal {
    /// Everything, as a person reads it.
    pub message: String,
    /// Weights that no tensor holds.
    pub missing: Vec<String>,
    /// Tensors that no weight is made of.
    pub unexpected: Vec<String>,
    /// Tensors that cannot be used, with the reason.
    pub unusable: Vec<UnusableTensor>,
}

/// A tensor that cannot be used.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UnusableTensor {
    /// As the file calls it.
    pub tensor: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Examination {
    /// True if the directory can be loaded.
    pub fn is_loadable(&self) -> bool {
        self.refusal.is_none()
    }
}

/// Looks at everything in `directory`: what [`Weights::load`] checks, and every FP8 and BF16 weight for NaN and
/// infinity, which reads all of their bytes.
pub fn examine(directory: &Path) -> Examination {
    let mut examination = Examination { directory: directory.display().to_string(), ..Examination::default() };
    if let Err(error) = fill(directory, &mut examination) {
        examination.refusal = Some(refusal(error));
    }
    examination
}

fn fill(directory: &Path, examination: &mut Examination) -> Result<(), WeightsError> {
    let config = ConfigFile::read(directory)?;
    examination.quantization = Some(config.quantization.name().to_string());
    examination.layers = config.config.layers();
    let files = TensorFiles::open(directory)?;
    examination.shards = files.shards().len();
    examination.tensors = files.tensors().len();
    examination.bytes = files.bytes();
    let Loaded { weights, ledger, warnings, .. } = Weights::load(&files, &config, LoadOptions::default())?;
    examination.matrices = matrices(&weights);
    examination.input_scales = input_scales(&weights);
    examination.warnings = warnings.iter().map(ToString::to_string).collect();
    examination.used = ledger.used().count();
    examination.unused = unused(&ledger);
    match non_finite(&weights, &ledger) {
        faults if faults.is_empty() => Ok(()),
        faults => Err(faults.into()),
    }
}

fn refusal(error: WeightsError) -> Refusal {
    let message = error.to_string();
    let faults = match error {
        WeightsError::Tensors(faults) => faults,
        WeightsError::Files(_) | WeightsError::Config(_) => Faults::default(),
    };
    let unusable = faults.unusable.into_iter();
    let unusable = unusable.map(|fault| UnusableTensor { tensor: fault.tensor, reason: fault.reason.to_string() });
    Refusal { message, missing: faults.missing, unexpected: faults.unexpected, unusable: unusable.collect() }
}

fn matrices(weights: &Weights) -> Vec<MatrixKind> {
    let mut kinds: BTreeMap<(String, WeightFormat), (usize, u64)> = BTreeMap::new();
    for linear in weights.linears() {
        let (count, bytes) = kinds.entry((names::kind(&linear.name), linear.format)).or_default();
        *count += 1;
        *bytes += linear.format.bytes(linear.n as u64, linear.k as u64);
    }
    kinds.into_iter().map(|((kind, format), (count, bytes))| MatrixKind { kind, format, count, bytes }).collect()
}

fn input_scales(weights: &Weights) -> Vec<InputScales> {
    let mut kinds: BTreeMap<String, InputScales> = BTreeMap::new();
    for linear in weights.linears() {
        let Some(ceiling) = linear.input_scale.map(ceiling) else { continue };
        let kind = names::kind(&linear.name);
        let (lowest_ceiling, highest_ceiling) = (f32::INFINITY, f32::NEG_INFINITY);
        let first = InputScales { kind: kind.clone(), count: 0, lowest_ceiling, highest_ceiling };
        let scales = kinds.entry(kind).or_insert(first);
        scales.count += 1;
        scales.lowest_ceiling = scales.lowest_ceiling.min(ceiling);
        scales.highest_ceiling = scales.highest_ceiling.max(ceiling);
    }
    kinds.into_values().collect()
}

fn unused(ledger: &Ledger) -> Vec<UnusedTensors> {
    let mut reasons: BTreeMap<Unused, (usize, u64)> = BTreeMap::new();
    for (entry, why) in ledger.unused() {
        let (count, bytes) = reasons.entry(why).or_default();
        *count += 1;
        *bytes += entry.bytes;
    }
    reasons.into_iter().map(|(why, (count, bytes))| UnusedTensors { reason: why.reason(), count, bytes }).collect()
}

/// Matrices with a weight that is NaN or infinite, by the names of the files.
fn non_finite(weights: &Weights, ledger: &Ledger) -> Faults {
    let found = weights.linears().filter_map(|linear| Some((linear, linear.first_non_finite()?)));
    let faults: Vec<Fault> = found
        .map(|(linear, (row, k, found))| {
            let tensor = codes_of(ledger, &linear.name).unwrap_or(&linear.name).to_string();
            Fault { tensor, reason: Reason::NonFiniteWeight { found, row, k } }
        })
        .collect();
    Faults { unusable: faults, ..Faults::default() }
}

/// What the file calls the tensor with the codes of `weight`. Asked only of bad ones, which are few.
fn codes_of<'a>(ledger: &'a Ledger, weight: &str) -> Option<&'a str> {
    let is_codes = |fate: &Fate| match fate {
        Fate::Used(uses) => uses.iter().any(|used| used.weight == weight && used.role == super::Role::Codes),
        Fate::Unused(_) => false,
    };
    ledger.entries.iter().find(|entry| is_codes(&entry.fate)).map(|entry| entry.tensor.as_str())
}

/// Data for a person: one line a fact, tables aligned.
impl std::fmt::Display for Examination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let quantization = self.quantization.as_deref().unwrap_or("unknown formats");
        writeln!(f, "{}: {quantization}, {} layers", self.directory, self.layers)?;
        writeln!(f, "  {} tensors in {} files, {}", self.tensors, self.shards, size(self.bytes))?;
        for kind in &self.matrices {
            let MatrixKind { kind, format, count, bytes } = kind;
            // A format ignores widths; its name does not.
            writeln!(f, "  {kind:<30} {:<6} {count:>7} {:>10}", format.name(), size(*bytes))?;
        }
        if self.used > 0 {
            writeln!(f, "  {} tensors used", self.used)?;
        }
        for UnusedTensors { reason, count, bytes } in &self.unused {
            writeln!(f, "  {count} tensors left out, {}: {reason}", size(*bytes))?;
        }
        for InputScales { kind, count, lowest_ceiling, highest_ceiling } in &self.input_scales {
            let what = format!("{kind}.input_scale");
            writeln!(f, "  {what:<37} {count:>7}, ceilings {lowest_ceiling:.3} to {highest_ceiling:.3}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        match &self.refusal {
            None => write!(f, "it can be loaded"),
            Some(refusal) => write!(f, "it cannot be loaded: {}", refusal.message),
        }
    }
}

/// Bytes in the largest unit that leaves a digit before the point.
fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        1e9.. => format!("{:.2} GB", bytes / 1e9),
        1e6.. => format!("{:.2} MB", bytes / 1e6),
        _ => format!("{:.2} kB", bytes / 1e3),
    }
}
