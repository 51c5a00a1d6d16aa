//! What can be wrong with a model directory's files before any value is looked at.

use std::path::PathBuf;

/// Files that cannot be read as tensors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    /// No weights at all.
    #[error(
        "expected model.safetensors, or model.safetensors.index.json and its shards, in {}, found neither",
        directory.display()
    )]
    None {
        /// Where they were looked for.
        directory: PathBuf,
    },
    /// Two sets of weights, and nothing that says which is meant.
    #[error(
        "expected one of model.safetensors and model.safetensors.index.json in {}, found both",
        directory.display()
    )]
    Both {
        /// Where they lie.
        directory: PathBuf,
    },
    /// A file that the system does not let us read.
    #[error("expected to read {file}, found: {reason}")]
    Unreadable {
        /// Its name.
        file: String,
        /// In the system's words.
        reason: String,
    },
    /// The index names shards that are not there.
    #[error(
        "expected the {shards} shards that {index} names, found no {}{}",
        missing[..missing.len().min(5)].join(", "),
        if missing.len() > 5 { format!(" and {} more", missing.len() - 5) } else { String::new() }
    )]
    MissingShards {
        /// Name of the index.
        index: &'static str,
        /// Shards that are not there.
        missing: Vec<String>,
        /// Shards that the index names.
        shards: usize,
    },
    /// A shard somewhere else than beside its index.
    #[error("expected shards beside {index}, found `{shard}`")]
    NotAFileName {
        /// Name of the index.
        index: &'static str,
        /// What it names.
        shard: String,
    },
    /// A tensor that is not where the index says.
    #[error(
        "expected tensor `{tensor}` in {shard} by {index}, found it in {}",
        found.as_deref().unwrap_or("none of the shards")
    )]
    NotWhereIndexed {
        /// Name of the index.
        index: &'static str,
        /// The tensor.
        tensor: String,
        /// Where it should be.
        shard: String,
        /// Where it is.
        found: Option<String>,
    },
    /// One name, two tensors.
    #[error("expected tensor `{tensor}` once, found it in {first} and in {second}")]
    Twice {
        /// The tensor.
        tensor: String,
        /// The first file.
        first: String,
        /// The second file, perhaps the same.
        second: String,
    },
    /// A file that ends before its header.
    #[error("expected a header of {expected} bytes in {file}, found a file of {found} bytes")]
    TruncatedHeader {
        /// The file.
        file: String,
        /// What the header takes, with the eight bytes of its length.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// A file that ends before its tensors do.
    #[error("expected {expected} bytes in {file}, found {found}: it is cut off in tensor `{tensor}`")]
    Truncated {
        /// The file.
        file: String,
        /// The first tensor that is not whole.
        tensor: String,
        /// What the header promises.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// Bytes behind the last tensor.
    #[error("expected {expected} bytes in {file} by its header, found {found}")]
    TooLong {
        /// The file.
        file: String,
        /// What the header promises.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// A header or an index that is not what it should be.
    #[error("expected {expected} in {file}, found: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// What it should hold.
        expected: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// A dtype that nothing here can read.
    #[error("expected a known dtype for tensor `{tensor}` in {file}, found `{dtype}`")]
    UnknownDtype {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: String,
    },
    /// Offsets that do not fit dtype and shape.
    #[error(
        "expected {expected} bytes for tensor `{tensor}` ({dtype} {shape:?}) in {file}, found offsets {begin} to {end}"
    )]
    Offsets {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: super::Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes that they need.
        expected: u128,
        /// First byte, counted behind the header.
        begin: usize,
        /// The byte behind the last.
        end: usize,
    },
    /// Tensors that do not follow each other.
    #[error("expected tensor `{tensor}` of {file} at byte {expected}, behind the one before, found it at byte {found}")]
    Overlap {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Where the one before ends, counted behind the header.
        expected: usize,
        /// Where it begins.
        found: usize,
    },
}

impl FilesError {
    pub(super) fn unreadable(file: &str, error: &std::io::Error) -> Self {
        Self::Unreadable { file: file.to_string(), reason: error.to_string() }
    }
}
