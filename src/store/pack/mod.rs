//! Packs: the winners of one GPU and one model as a text that is reviewed like code, `tuning_db/<gpu>/<name>.toml`.
//!
//! One `[[winner]]` table for each problem, in the order of problems, with its evidence. A checksum over the content
//! tells a pack that the tool wrote from one that a hand changed: times are measured, never typed. Packs travel inside
//! the binary, so a user of a known GPU starts tuned.

mod diff;
mod embedded;
mod error;
mod merge;
mod text;

pub use diff::{Difference, diff};
pub use embedded::{Embedded, LOG_ENDING, embedded, embedded_for, embedded_logs, is_log, is_pack};
pub use error::PackError;
pub use merge::{MergeNote, Merged};
pub use text::Edits;

use std::path::Path;

use super::files::{self, FileError};
use super::{Origin, Record};
use crate::arch::GpuIdentity;
use crate::problem::Problem;

/// The winners of one GPU for one checkpoint of a model, in the order of problems.
#[derive(Clone, Debug, PartialEq)]
pub struct Pack {
    gpu: GpuIdentity,
    model: String,
    checkpoint: String,
    records: Vec<Record>,
}

/// Something in a pack that a reviewer should look at. The pack can still be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The winner's problem.
    pub problem: String,
    /// What was expected and what was found.
    pub found: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}`: {}", self.problem, self.found)
    }
}

impl Pack {
    /// The pack of `records`, all of them measured or predicted for `gpu`. Times keep six significant digits.
    ///
    /// # Errors
    /// [`PackError`] if a record is of another GPU, or two are of one problem and layout.
    pub fn new(gpu: GpuIdentity, model: &str, checkpoint: &str, records: Vec<Record>) -> Result<Self, PackError> {
        let mut records = records;
        records.sort_by(|a, b| order_of(a).cmp(&order_of(b)));
        if let Some(record) = records.iter().find(|record| record.gpu != gpu) {
            return Err(PackError::OtherGpu { expected: gpu.to_string(), found: record.gpu.to_string() });
        }
        if let Some(pair) = records.windows(2).find(|pair| order_of(&pair[0]) == order_of(&pair[1])) {
            let Record { problem, layout, .. } = &pair[0];
            return Err(PackError::Duplicate { problem: problem.to_string(), layout: layout.clone() });
        }
        records.iter_mut().for_each(text::round);
        Ok(Self { gpu, model: model.to_string(), checkpoint: checkpoint.to_string(), records })
    }

    /// Reads the pack at `path`.
    ///
    /// # Errors
    /// [`PackError`], as [`Pack::parse`] has it, or because the file cannot be read.
    pub fn read(path: &Path, edits: Edits) -> Result<Self, PackError> {
        let bytes = files::read(path)?;
        Self::parse(&String::from_utf8_lossy(&bytes), edits)
    }

    /// Writes the pack to `path`, whole or not at all.
    ///
    /// # Errors
    /// [`FileError`] when the path cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        files::write_atomically(path, self.to_text().as_bytes())
    }

    /// Whose winners these are.
    pub fn gpu(&self) -> &GpuIdentity {
        &self.gpu
    }

    /// The model that they were tuned for.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The form of its checkpoint.
    pub fn checkpoint(&self) -> &str {
        &self.checkpoint
    }

    /// The winners.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The winners, given away.
    pub fn into_records(self) -> Vec<Record> {
        self.records
    }

    /// What a reviewer should look at: measured winners without evidence, times that are none, inherited winners
    /// whose source is not in the pack.
    pub fn verify(&self) -> Vec<Finding> {
        self.records.iter().filter_map(|record| self.check(record)).collect()
    }

    fn check(&self, record: &Record) -> Option<Finding> {
        let timing = &record.timing;
        let found = if !(timing.chained_us.is_finite() && timing.chained_us > 0.0) {
            format!("expected a time above 0, found {} us", timing.chained_us)
        } else if record.toolchain.kernels.is_empty() || record.toolchain.nvrtc.is_empty() {
            "expected the NVRTC and kernels that it stands on, found none".to_string()
        } else {
            match &record.origin {
                Origin::Measured if timing.rounds == 0 => "expected measured rounds, found none".to_string(),
                Origin::Measured if timing.relative_l2.is_nan() => "expected a checked result, found none".to_string(),
                Origin::Inherited { from_m } if !self.has_measured(record, *from_m) => {
                    format!("expected a measured winner for m = {from_m} beside it, found none")
                }
                _ => return None,
            }
        };
        Some(Finding { problem: record.problem.to_string(), found })
    }

    fn has_measured(&self, record: &Record, m: u32) -> bool {
        let problem = record.problem.with_m(m);
        let is_source = |other: &&Record| other.problem == problem && other.layout == record.layout;
        self.records.iter().find(is_source).is_some_and(|source| source.origin == Origin::Measured)
    }
}

/// The order of winners in a pack: what tells two of them apart.
fn order_of(record: &Record) -> (&Problem, &str) {
    (&record.problem, &record.layout)
}
