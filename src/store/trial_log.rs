//! Trials as a file that is committed: what a search is replayed from where there is no GPU.
//!
//! Gzip'd lines of JSON, some 60 bytes a trial: a header, then one trial a line, sorted by problem, tile and routing so
//! that neighbours share most of their text. Times keep six significant digits.

use std::io::{Read, Write};
use std::path::Path;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use super::files::{self, FileError};
use super::key::SCHEMA;
use super::words;
use super::{Outcome, Timing, Toolchain, Trial};
use crate::arch::GpuIdentity;
use crate::problem::{Problem, Tile};

/// Every trial of some problems on one GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct TrialLog {
    /// Where they ran.
    pub gpu: GpuIdentity,
    /// The trials of each problem.
    pub problems: Vec<(Problem, Vec<Trial>)>,
}

/// A trial log that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrialLogError {
    /// No gzip, or cut short.
    #[error("expected a gzip'd trial log, found: {0}")]
    NotGzip(String),
    /// Another version of tilekiln wrote it.
    #[error("expected a trial log of schema {SCHEMA}, found schema {0}")]
    OtherSchema(u16),
    /// A line that is no header or no trial.
    #[error("expected {expected} in line {line} of the trial log, found: {found}")]
    Line {
        /// Which line.
        line: usize,
        /// What should stand there.
        expected: &'static str,
        /// What is wrong with it.
        found: String,
    },
    /// A trial log without its end.
    #[error("expected {expected} trials in the trial log, found {found}")]
    Cut {
        /// What the header says.
        expected: usize,
        /// What is there.
        found: usize,
    },
    /// The path cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl TrialLogError {
    /// What the user can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::File(error) => error.hint(),
            _ => "restore the log from version control, or record it again".to_string(),
        }
    }
}

impl TrialLog {
    /// The log of `trials`, grouped by problem.
    pub fn new(gpu: GpuIdentity, trials: impl IntoIterator<Item = Trial>) -> Self {
        let mut problems: std::collections::BTreeMap<Problem, Vec<Trial>> = Default::default();
        for trial in trials {
            problems.entry(trial.problem.clone()).or_default().push(trial);
        }
        for trials in problems.values_mut() {
            trials.sort_by_cached_key(|trial| (trial.tile.clone(), trial.routing.as_ref().map(words::routing)));
        }
        Self { gpu, problems: problems.into_iter().collect() }
    }

    /// Each measured tile of `problem` with its chained time in microseconds: the geometric mean over the routings,
    /// as a race counts it.
    pub fn times(&self, problem: &Problem) -> Vec<(&Tile, f64)> {
        let trials = self.problems.iter().filter(|(of, _)| of == problem).flat_map(|(_, trials)| trials);
        let measured = trials.filter_map(|trial| match &trial.outcome {
            Outcome::Measured(timing) => Some((&trial.tile, timing.chained_us)),
            _ => None,
        });
        let measured: Vec<(&Tile, f64)> = measured.collect();
        let mean = |runs: &[(&Tile, f64)]| (runs.iter().map(|(_, us)| us.ln()).sum::<f64>() / runs.len() as f64).exp();
        measured.chunk_by(|a, b| a.0 == b.0).map(|runs| (runs[0].0, mean(runs))).collect()
    }

    /// Reads the log at `path`.
    ///
    /// # Errors
    /// [`TrialLogError`], as [`TrialLog::from_bytes`] has it, or because the file cannot be read.
    pub fn read(path: &Path) -> Result<Self, TrialLogError> {
        Self::from_bytes(&files::read(path)?)
    }

    /// Writes the log to `path`, whole or not at all.
    ///
    /// # Errors
    /// [`TrialLogError::File`] when the path cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), TrialLogError> {
        let bytes = self.to_bytes().map_err(|error| FileError::new(path, "write", &error))?;
        Ok(files::write_atomically(path, &bytes)?)
    }

    /// Reads a log, such as one that is embedded.
    ///
    /// # Errors
    /// [`TrialLogError`]: no gzip, another schema, a line that is no trial, lines missing.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TrialLogError> {
        let mut text = String::new();
        let unzip = GzDecoder::new(bytes).read_to_string(&mut text);
        unzip.map_err(|error| TrialLogError::NotGzip(error.to_string()))?;
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        // The schema comes first: a log of the future may have keys that this version does not know.
        let schema = parse::<Schema>(first, 1, "a header")?.schema;
        if schema != SCHEMA {
            return Err(TrialLogError::OtherSchema(schema));
        }
        let header: Header = parse(first, 1, "a header")?;
        let trial = |(line, text)| parse::<Line>(text, line, "a trial")?.into_trial(&header.toolchain, line);
        let trials: Vec<Trial> = (2..).zip(lines).map(trial).collect::<Result<_, _>>()?;
        match trials.len() == header.trials {
            true => Ok(Self::new(header.gpu, trials)),
            false => Err(TrialLogError::Cut { expected: header.trials, found: trials.len() }),
        }
    }

    /// The log as its file has it: equal logs give equal bytes.
    fn to_bytes(&self) -> std::io::Result<Vec<u8>> {
        let trials: Vec<&Trial> = self.problems.iter().flat_map(|(_, trials)| trials).collect();
        let first = trials.first().map(|trial| trial.toolchain.clone()).unwrap_or_default();
        let toolchain = Toolchain { kernels: String::new(), ..first };
        let header = Header { schema: SCHEMA, trials: trials.len(), gpu: self.gpu.clone(), toolchain };
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        writeln!(gzip, "{}", serde_json::to_string(&header)?)?;
        for trial in trials {
            writeln!(gzip, "{}", serde_json::to_string(&Line::of(trial, &header.toolchain))?)?;
        }
        gzip.finish()
    }
}

/// As much as any version has.
#[derive(Deserialize)]
struct Schema {
    schema: u16,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    schema: u16,
    trials: usize,
    gpu: GpuIdentity,
    /// What most trials were measured with; kernels differ from tile to tile and stand in each line.
    toolchain: Toolchain,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    problem: String,
    tile: Tile,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    routing: Option<String>,
    #[serde(with = "LineOutcome")]
    outcome: Outcome,
    seed: u64,
    kernels: String,
    /// Only where it is not the header's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    toolchain: Option<Toolchain>,
}

impl Line {
    fn of(trial: &Trial, usual: &Toolchain) -> Self {
        let Trial { problem, tile, routing, outcome, seed, toolchain } = trial.clone();
        let kernels = toolchain.kernels.clone();
        let toolchain = Toolchain { kernels: String::new(), ..toolchain };
        Self {
            problem: problem.to_string(),
            tile,
            routing: routing.as_ref().map(words::routing),
            outcome,
            seed,
            kernels,
            toolchain: (toolchain != *usual).then_some(toolchain),
        }
    }

    fn into_trial(self, usual: &Toolchain, line: usize) -> Result<Trial, TrialLogError> {
        let Self { problem, tile, routing, outcome, seed, kernels, toolchain } = self;
        let wrong = |expected, found| TrialLogError::Line { line, expected, found };
        let parse_routing = |text: String| words::parse_routing(&text).ok_or_else(|| wrong("a routing", text));
        Ok(Trial {
            problem: problem.parse().map_err(|_| wrong("a problem", problem))?,
            tile,
            routing: routing.map(parse_routing).transpose()?,
            outcome,
            seed,
            toolchain: Toolchain { kernels, ..toolchain.unwrap_or_else(|| usual.clone()) },
        })
    }
}

/// [`Outcome`] with its numbers as [`number`] writes them.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Outcome", rename_all = "snake_case")]
enum LineOutcome {
    Measured(#[serde(with = "LineTiming")] Timing),
    Rejected {
        rule: String,
    },
    FailedToCompile {
        message: String,
    },
    FailedToRun {
        message: String,
    },
    Wrong {
        #[serde(with = "number")]
        relative_l2: f64,
    },
    TimedOut {
        #[serde(with = "number")]
        seconds: f64,
    },
    WrongElement {
        #[serde(with = "number")]
        found: f64,
        #[serde(with = "number")]
        limit: f64,
    },
}

/// [`Timing`] with its numbers as [`number`] writes them.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Timing")]
struct LineTiming {
    #[serde(with = "number")]
    chained_us: f64,
    #[serde(with = "number")]
    unchained_us: f64,
    #[serde(with = "number")]
    half_width_us: f64,
    rounds: u32,
    is_warm: bool,
    sm_clock_mhz: u32,
    throttle_reasons: u64,
    #[serde(with = "number")]
    relative_l2: f64,
}

/// Six significant digits; `"inf"` and `"NaN"` as text, since JSON has no such numbers.
mod number {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::words::six_digits;

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        match value.is_finite() {
            true => serializer.serialize_f64(six_digits(*value)),
            false => serializer.serialize_str(&value.to_string()),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Number {
            Finite(f64),
            Text(String),
        }
        match Number::deserialize(deserializer)? {
            Number::Finite(value) => Ok(value),
            Number::Text(text) => text.parse().map_err(|_| D::Error::custom(format!("`{text}` is no number"))),
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str, line: usize, expected: &'static str) -> Result<T, TrialLogError> {
    serde_json::from_str(text).map_err(|error| TrialLogError::Line { line, expected, found: error.to_string() })
}
