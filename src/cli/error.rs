//! How a run ends.

use std::path::Path;
use std::process::{ExitCode, Termination};

use crate::device::DeviceError;
use crate::jit::JitError;
use crate::store::{DatabaseError, FileError, PackError, SnapshotError, TrialLogError};

/// What the shell is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All of it was done.
    Done,
    /// It failed.
    Failed,
    /// The command line makes no sense.
    Usage,
    /// Some of it was done and saved: the budget was spent, or a signal came.
    InPart,
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::InPart => 3,
        }
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self.code())
    }
}

/// One sentence and, where there is one, the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct CliError {
    sentence: String,
    hint: Option<String>,
    exit: Exit,
}

impl CliError {
    /// A command line that makes no sense.
    pub fn usage(sentence: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), hint: Some(hint.into()), exit: Exit::Usage }
    }

    /// Something that could not be done.
    pub fn failed(sentence: impl Into<String>, hint: Option<String>) -> Self {
        Self { sentence: sentence.into(), hint, exit: Exit::Failed }
    }

    /// A pack that cannot be used: it does not know its own path.
    pub fn of_pack(path: &Path, error: &PackError) -> Self {
        let sentence = match error {
            PackError::File(error) => error.to_string(),
            _ => format!("{}: {error}", path.display()),
        };
        Self::failed(sentence, Some(error.hint()))
    }

    /// What the shell is told.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// The way out, where there is one.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl From<JitError> for CliError {
    fn from(error: JitError) -> Self {
        let exit = if matches!(error, JitError::Stopped(_)) { Exit::InPart } else { Exit::Failed };
        Self { exit, ..Self::failed(error.to_string(), error.hint().map(str::to_string)) }
    }
}

impl From<DeviceError> for CliError {
    fn from(error: DeviceError) -> Self {
        Self::failed(error.to_string(), error.hint().map(str::to_string))
    }
}

/// Errors of the store all have a hint.
macro_rules! from_store {
    ($($error:ty),*) => {
        $(impl From<$error> for CliError {
            fn from(error: $error) -> Self {
                Self::failed(error.to_string(), Some(error.hint().to_string()))
            }
        })*
    };
}

from_store!(DatabaseError, FileError, PackError, SnapshotError, TrialLogError);
