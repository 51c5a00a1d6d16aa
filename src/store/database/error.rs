//! What can go wrong with the database, and what to do about it.

use std::path::PathBuf;

use super::super::files::FileError;
use super::super::key::SCHEMA;
use super::BadValue;

/// A database that cannot be opened, read or written. Nothing is lost by any of these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// Another process is its writer.
    #[error("expected the database `{}` to be free, found it held by {}", path.display(), holder(*pid))]
    Held {
        /// The database.
        path: PathBuf,
        /// The holder, if it left its card.
        pid: Option<u32>,
    },
    /// Nothing is there.
    #[error("expected a database at `{}`, found nothing", path.display())]
    Missing {
        /// What was asked for.
        path: PathBuf,
    },
    /// The path holds something else, which is left alone.
    #[error("expected a database or nothing at `{}`, found {found}", path.display())]
    NotADatabase {
        /// What was asked for.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// Another version of tilekiln wrote it; it is left alone.
    #[error("expected schema {SCHEMA} in the database `{}`, found schema {found}", path.display())]
    OtherSchema {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: u16,
    },
    /// sled cannot read its own files. Opening answers this by moving them aside.
    #[error("expected the database `{}` to be whole, found: {found}", path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// sled's words.
        found: String,
    },
    /// A damaged database was moved aside, and no fresh one could be made.
    #[error("expected to rebuild the damaged database, now at `{}`: {source}", moved_to.display())]
    NotRebuilt {
        /// Where the damaged one is.
        moved_to: PathBuf,
        /// Why there is no fresh one.
        source: Box<DatabaseError>,
    },
    /// A value that cannot be written down.
    #[error("expected a value that can be kept for `{key}`: {bad}")]
    Unkeepable {
        /// Its key.
        key: String,
        /// Why not.
        bad: BadValue,
    },
    /// The path cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl DatabaseError {
    /// What the user can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Held { .. } => "wait for it to end, or name another database with `--db`".to_string(),
            Self::Missing { .. } => "`autotune` makes one; `--db` names another".to_string(),
            Self::NotADatabase { .. } => "name an empty or new directory with `--db`".to_string(),
            Self::OtherSchema { found, .. } if *found > SCHEMA => {
                "it was written by a newer tilekiln: use that one, or name another database with `--db`".to_string()
            }
            Self::OtherSchema { .. } => {
                "export its winners with the tilekiln that wrote it, then `autotune import` them".to_string()
            }
            Self::Damaged { .. } => "run the same command again: opening moves the damaged files aside".to_string(),
            Self::NotRebuilt { source, .. } => source.hint(),
            Self::Unkeepable { .. } => "report this: it is a bug".to_string(),
            Self::File(error) => error.hint(),
        }
    }
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or("another process".to_string(), |pid| format!("process {pid}"))
}
