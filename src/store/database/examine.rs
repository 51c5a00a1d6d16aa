//! A look at a database from outside: nothing is made, nothing is mended, and nobody is kept waiting.
//!
//! sled overwrites what it has given up on when it opens damaged files, so a copy is opened and the patient left alone.

use std::fs;
use std::path::Path;

use super::super::files::{FileError, beside};
use super::open::refuse_foreign;
use super::owner::{CARD_SUFFIX, holder};
use super::{Database, DatabaseError};

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Examined {
    /// Nothing is there.
    Missing,
    /// A process is at work in it, so it was not looked into.
    Held {
        /// The process, if it left its card.
        pid: Option<u32>,
    },
    /// It opens.
    Sound {
        /// Trials in it.
        trials: u64,
        /// Winners in it.
        winners: u64,
    },
    /// It opens only with losses, or not at all: the next run mends what can be mended.
    Damaged {
        /// What is wrong, in one sentence.
        found: String,
    },
}

impl Database {
    /// Looks at the database at `path`.
    ///
    /// # Errors
    /// [`DatabaseError`]: no database, another schema, or a path that cannot be read.
    pub fn examine(path: &Path) -> Result<Examined, DatabaseError> {
        refuse_foreign(path)?;
        if !path.exists() {
            return Ok(Examined::Missing);
        }
        if let Some(pid) = holder(path) {
            return Ok(Examined::Held { pid });
        }
        let fault = |error: std::io::Error| FileError::new(path, "read", &error);
        let folder = tempfile::tempdir().map_err(|error| FileError::new(&std::env::temp_dir(), "write", &error))?;
        let copy = folder.path().join("db");
        copy_folder(path, &copy).map_err(fault)?;
        for suffix in [CARD_SUFFIX, ".snapshot"] {
            match fs::copy(beside(path, suffix), beside(&copy, suffix)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fault(error).into()),
                _ => {}
            }
        }
        match Self::open(&copy) {
            Ok((database, None)) => {
                let (trials, winners) = database.counts();
                Ok(match database.verify()?.bad.len() {
                    0 => Examined::Sound { trials, winners },
                    n => Examined::Damaged { found: format!("{n} values cannot be used") },
                })
            }
            Ok((_, Some(recovery))) => Ok(Examined::Damaged { found: recovery.found }),
            Err(DatabaseError::OtherSchema { found, .. }) => {
                Err(DatabaseError::OtherSchema { path: path.to_path_buf(), found })
            }
            Err(DatabaseError::Damaged { found, .. }) => Ok(Examined::Damaged { found }),
            Err(other) => Err(other),
        }
    }
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => copy_folder(&entry.path(), &to.join(entry.file_name()))?,
            false => fs::copy(entry.path(), to.join(entry.file_name())).map(|_| ())?,
        }
    }
    Ok(())
}
