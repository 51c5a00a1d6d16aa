//! Everything that is wrong with a checkpoint, in one list: who mends a file wants to know all of it at once.

use crate::engine::{Dtype, FilesError};
use crate::models::dsv4::config_file::ConfigError;
use crate::quant::{ConvertError, TensorScaleError, WeightFormat, WeightScaleError};

/// A checkpoint that is not loaded. Nothing of it is.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WeightsError {
    /// The files.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The config.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tensors.
    #[error(transparent)]
    Tensors(#[from] Faults),
}

/// Tensors that are not what the model needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// Weights of the model that no tensor holds, by native name.
    pub missing: Vec<String>,
    /// Tensors that no weight of the model is made of, as the files call them.
    pub unexpected: Vec<String>,
    /// Tensors that cannot be used as they are, each with what is wrong.
    pub unusable: Vec<Fault>,
}

impl Faults {
    /// True if nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// How many things are wrong.
    pub fn count(&self) -> usize {
        self.missing.len() + self.unexpected.len() + self.unusable.len()
    }
}

impl std::error::Error for Faults {}

/// One sentence, and a line for each fault, up to [`MOST_LINES`] of each sort.
impl std::fmt::Display for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "expected every weight of the model once and nothing else, found {} missing, {} unexpected, {} unusable",
            self.missing.len(),
            self.unexpected.len(),
            self.unusable.len()
        )?;
        let unusable: Vec<String> = self
            .unusable
            .iter()
            .take(MOST_LINES)
            .map(|fault| format!("`{}`: {}", fault.tensor, fault.reason))
            .collect();
        let quoted = |names: &[String]| names.iter().take(MOST_LINES).map(|name| format!("`{name}`")).collect();
        let sections: [(&str, Vec<String>, usize); 3] = [
            ("missing", quoted(&self.missing), self.missing.len()),
            ("unexpected", quoted(&self.unexpected), self.unexpected.len()),
            ("unusable", unusable, self.unusable.len()),
        ];
        for (word, lines, count) in sections {
            for line in &lines {
                write!(f, "\n  {word:<10}  {line}")?;
            }
            if count > lines.len() {
                write!(f, "\n  {word:<10}  and {} more", count - lines.len())?;
            }
        }
        Ok(())
    }
}

/// A tensor that cannot be used as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// As the file calls it.
    pub tensor: String,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with a tensor.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Reason {
    /// Another type of element.
    #[error("expected dtype {}, found {found}", names(expected))]
    Dtype {
        /// Any of these would do.
        expected: Vec<Dtype>,
        /// What it is.
        found: Dtype,
    },
    /// Another shape than config.json asks for.
    #[error("expected shape {expected:?} by config.json, found {found:?}")]
    Shape {
        /// What config.json asks for.
        expected: Vec<usize>,
        /// What it is.
        found: Vec<usize>,
    },
    /// Rows that leave a block of scales in part.
    #[error("expected k in multiples of {} for {format}, found k = {k}", format.k_multiple())]
    K {
        /// What the tensor is stored as.
        format: WeightFormat,
        /// Values in a row.
        k: usize,
    },
    /// NaN or a sign among E4M3 scales.
    #[error(transparent)]
    BlockScale(#[from] WeightScaleError),
    /// UE8M0 byte 255.
    #[error("expected ue8m0 weight scales below 255, found NaN (0xff) in scale row {row}, column {column}")]
    ScaleNan {
        /// Row of the scales.
        row: usize,
        /// Column of the scales.
        column: usize,
    },
    /// An FP8 block scale that E8M0 cannot hold.
    #[error(
        "expected powers of two from 2^-127 to 2^127 as block scales, found {found} in scale row {row}, column {column}"
    )]
    NoPowerOfTwo {
        /// The scale.
        found: f32,
        /// Row of the scales.
        row: usize,
        /// Column of the scales.
        column: usize,
    },
    /// The f32 of an NVFP4 weight.
    #[error(transparent)]
    TensorScale(#[from] TensorScaleError),
    /// MXFP4 that NVFP4 cannot hold.
    #[error("{0}, so it is no nvfp4 tensor without loss")]
    Convert(#[from] ConvertError),
    /// NaN or infinity in a vector.
    #[error("expected finite values, found {found} at {idx}")]
    NonFinite {
        /// The value.
        found: f32,
        /// Its place, row-major.
        idx: usize,
    },
    /// An FP8 code that is NaN, or a BF16 weight that is not finite.
    #[error("expected finite weights, found {found} in row {row}, k = {k}")]
    NonFiniteWeight {
        /// The value.
        found: f32,
        /// Row of the weight.
        row: usize,
        /// Its place along the row.
        k: usize,
    },
    /// A routing table that names an expert that is not there.
    #[error("expected expert numbers below {experts}, found {found} for token {token}")]
    Expert {
        /// Experts of the layer.
        experts: u32,
        /// The number.
        found: i64,
        /// The token.
        token: usize,
    },
    /// FP8 blocks of grouped rows that two groups share.
    #[error(
        "expected groups of a multiple of 128 rows in fp8, or at most 128 rows together, found {groups} groups of \
         {rows}"
    )]
    GroupsShareScales {
        /// Groups.
        groups: usize,
        /// Rows of one.
        rows: usize,
    },
    /// Tensors that are launched together, in different formats.
    #[error("expected {expected}, the format of `{first}`, found {found}")]
    MixedFormats {
        /// Format of the first tensor.
        expected: WeightFormat,
        /// The first tensor.
        first: String,
        /// Format of this one.
        found: WeightFormat,
    },
    /// config.json says otherwise.
    #[error("expected {expected} by quantization_config in config.json, found {found}")]
    ContradictsConfig {
        /// What config.json says.
        expected: String,
        /// What the tensors are.
        found: String,
    },
    /// A stack of weights that is higher than config.json says.
    #[error("expected no more than the weights that config.json asks for, found `{part}` in it as well")]
    PartLeft {
        /// The first that nothing uses, natively.
        part: String,
    },
    /// One weight, two tensors.
    #[error("expected `{native}` once, found it in `{other}` as well")]
    Twice {
        /// What both are natively.
        native: String,
        /// The other tensor.
        other: String,
    },
}

/// `F32`, `F32 or BF16`, `F32, BF16 or I8`.
fn names(dtypes: &[Dtype]) -> String {
    let names: Vec<&str> = dtypes.iter().map(|dtype| dtype.name()).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

/// Lines of one sort: enough to see the pattern, few enough to see the other sorts.
pub const MOST_LINES: usize = 20;
