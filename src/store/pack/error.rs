//! What can be wrong with a pack.

use super::super::files::FileError;
use super::super::key::SCHEMA;

/// A pack that cannot be read, or records that make none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// No TOML, a missing key, or one that no pack has.
    #[error("expected a pack, found at line {line}: {message}")]
    Syntax {
        /// Where.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// Another version of tilekiln wrote it, or none did.
    #[error("expected a pack of schema {SCHEMA}, found {found}")]
    OtherSchema {
        /// What the header says.
        found: String,
    },
    /// A value that is no such thing.
    #[error("expected {expected} in the winner of `{problem}`, found `{found}`")]
    Value {
        /// The winner's problem, as it is written.
        problem: String,
        /// What should stand there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// Two winners of one problem.
    #[error("expected one winner of `{problem}` with layout `{layout}`, found two")]
    Duplicate {
        /// The problem.
        problem: String,
        /// The packed weight layout.
        layout: String,
    },
    /// The content is not what the tool wrote.
    #[error("expected checksum {expected}, found {found}: the pack was edited by hand")]
    EditedByHand {
        /// The checksum of the content.
        expected: String,
        /// The checksum in the header.
        found: String,
    },
    /// A record of another GPU.
    #[error("expected winners of {expected}, found one of {found}")]
    OtherGpu {
        /// The pack's GPU.
        expected: String,
        /// The other.
        found: String,
    },
    /// The path cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl PackError {
    /// What the user can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Syntax { .. } | Self::Value { .. } | Self::Duplicate { .. } => {
                "restore the pack from version control, or export it again with `autotune export`".to_string()
            }
            Self::OtherSchema { .. } => "export it again with this version: `autotune export`".to_string(),
            Self::EditedByHand { .. } => {
                "`autotune import --accept-edited` takes it as it is; `autotune export` writes it anew".to_string()
            }
            Self::OtherGpu { .. } => "keep the packs of each GPU apart".to_string(),
            Self::File(error) => error.hint(),
        }
    }
}
