//! Who holds the database, and how much was in it: a locked file beside the directory.
//!
//! The lock is ours, not sled's, because it must outlive the directory: a damaged directory is renamed while the lock
//! is held, so no second process can move a fresh one aside. The contents are written after each acknowledged change:
//! sled drops the values of a damaged page without a word, or goes back to older ones, and contents that are less at
//! the next start are how that is noticed.

use std::fs::{self, File, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::files::{FileError, beside, directory_of, unix_seconds};
use super::DatabaseError;

/// The lock on one database, held until it is dropped.
#[derive(Debug)]
pub(super) struct Owner {
    file: File,
    path: PathBuf,
    card: Card,
}

/// What `<database>.owner.json` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Card {
    pid: u32,
    since: u64,
    contents: Contents,
}

/// How much a database holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Contents {
    pub(super) trials: u64,
    pub(super) winners: u64,
    /// Sum of the sequence numbers of all values: it grows with each write, and a value that is lost or has gone back
    /// to an older one makes it less.
    pub(super) sequences: u64,
}

impl Contents {
    /// Whether something is missing that `expected` counts.
    pub(super) fn is_less_than(&self, expected: &Self) -> bool {
        self.trials < expected.trials || self.winners < expected.winners || self.sequences < expected.sequences
    }

    /// After a value with `sequence` replaced one with `before`.
    pub(super) fn with_write(self, sequence: u64, before: Option<u64>) -> Self {
        let sequences = self.sequences.saturating_add(sequence).saturating_sub(before.unwrap_or(0));
        Self { sequences, ..self }
    }
}

impl Card {
    /// The card at `path`, if it is there and whole.
    fn read(path: &Path) -> Option<Self> {
        fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok())
    }
}

/// Who holds the database at `path`: `None` if nobody does, and a holder without a number if its card cannot be read.
pub(super) fn holder(path: &Path) -> Option<Option<u32>> {
    let card_path = beside(path, CARD_SUFFIX);
    let file = File::open(&card_path).ok()?;
    // Shared, and given back at once: two that only look do not see each other.
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(Card::read(&card_path).map(|card| card.pid)),
        _ => None,
    }
}

impl Owner {
    /// Takes the lock of the database at `path`, or says who has it.
    pub(super) fn acquire(path: &Path) -> Result<Self, DatabaseError> {
        let card_path = beside(path, CARD_SUFFIX);
        let fault = |error| FileError::new(&card_path, "write", &error);
        fs::create_dir_all(directory_of(&card_path)).map_err(fault)?;
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&card_path);
        let file = file.map_err(fault)?;
        let card = Card::read(&card_path);
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(DatabaseError::Held { path: path.to_path_buf(), pid: card.map(|card| card.pid) });
            }
            Err(TryLockError::Error(error)) => return Err(fault(error).into()),
        }
        let contents = card.unwrap_or_default().contents;
        let card = Card { pid: std::process::id(), since: unix_seconds(), contents };
        let mut owner = Self { file, path: card_path, card };
        owner.write()?;
        Ok(owner)
    }

    /// What was in the database when it was last changed.
    pub(super) fn contents(&self) -> Contents {
        self.card.contents
    }

    /// Writes down what is in the database. Call it after additions and before removals: then damage is never
    /// mistaken for a removal, and a kill in between is never mistaken for damage.
    pub(super) fn set_contents(&mut self, contents: Contents) -> Result<(), FileError> {
        self.card.contents = contents;
        self.write()
    }

    /// One write of one page: a kill leaves the old card or the new one.
    fn write(&mut self) -> Result<(), FileError> {
        let mut text = serde_json::to_string(&self.card).unwrap_or_default();
        // Spaces to a fixed length: a shorter card leaves no tail of the longer one before it.
        text = format!("{text:CARD_BYTES$}\n");
        let mut write = || {
            self.file.seek(SeekFrom::Start(0))?;
            self.file.write_all(text.as_bytes())
        };
        write().map_err(|error| FileError::new(&self.path, "write", &error))
    }
}

impl Drop for Owner {
    /// Closing the file is not enough: a child that is being started at this moment shares the lock until it executes.
    fn drop(&mut self) {
        // If this fails, closing gives the lock back a moment later.
        let _ = self.file.unlock();
    }
}

const CARD_BYTES: usize = 200;

/// What the card's name has behind the database's.
pub(super) const CARD_SUFFIX: &str = ".owner.json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_owner_learns_the_pid_of_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("winners");
        let mut owner = Owner::acquire(&path).unwrap();
        let contents = Contents { trials: 3, winners: 1, sequences: 10 };
        owner.set_contents(contents).unwrap();
        let DatabaseError::Held { pid, .. } = Owner::acquire(&path).unwrap_err() else { panic!("expected it held") };
        assert_eq!(pid, Some(std::process::id()));
        drop(owner);
        assert_eq!(Owner::acquire(&path).unwrap().contents(), contents);
    }

    #[test]
    fn a_card_that_cannot_be_read_is_an_unknown_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("winners");
        let _owner = Owner::acquire(&path).unwrap();
        fs::write(beside(&path, ".owner.json"), "{").unwrap();
        let error = Owner::acquire(&path).unwrap_err();
        assert!(error.to_string().ends_with("found it held by another process"), "{error}");
    }

    #[test]
    fn the_longest_card_fits() {
        let card = Card {
            pid: u32::MAX,
            since: u64::MAX,
            contents: Contents { trials: u64::MAX, winners: u64::MAX, sequences: u64::MAX },
        };
        assert!(serde_json::to_string(&card).unwrap().len() <= CARD_BYTES);
    }
}
