//! The database: every trial and every winner, in sled, written by one process at a time.
//!
//! A trial is acknowledged once it would survive `kill -9`. Values are sealed (see `envelope`), so damage is noticed
//! when a value is read; sled is never trusted to say so. Readers do not come here: they load a
//! [`Snapshot`](super::Snapshot), which this database writes beside itself.
//!
//! ```text
//! winners/               sled's directory
//! winners.owner.json     who holds it, and how much is in it
//! winners.snapshot       what runners read
//! winners.corrupt-<s>/   a damaged directory, moved aside; nobody deletes it but its owner
//! ```

mod envelope;
mod error;
mod examine;
mod guard;
mod maintain;
mod open;
mod owner;
mod recover;
mod start;
mod table;
mod winners;

pub use envelope::BadValue;
pub use error::DatabaseError;
pub use examine::Examined;
pub use maintain::{BadEntry, Collected, Verification};
pub use recover::Recovery;
pub use winners::{Ground, Put};

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use self::envelope::Stored;
use self::owner::{Contents, Owner};
use self::table::{Table, guarded};
use super::files::beside;
use super::{Record, Snapshot, SnapshotError, Trial, WinnerKey};
use crate::arch::GpuIdentity;
use crate::problem::Problem;

/// The one writer of trials and winners. Its methods take `&self` and may be called from several threads.
#[derive(Debug)]
pub struct Database {
    path: PathBuf,
    db: sled::Db,
    trials: Table<GpuTrial>,
    winners: Table<Record>,
    next_sequence: AtomicU64,
    // Last: the lock is given back after sled has closed.
    owner: Mutex<Owner>,
}

/// A trial and where it ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuTrial {
    /// Where.
    pub gpu: GpuIdentity,
    /// What was tried, and what became of it.
    pub trial: Trial,
}

impl Database {
    /// Keeps a trial; when this returns, the trial survives `kill -9`. A later trial of the same candidate (GPU,
    /// problem, tile, routing and kernel text) replaces the earlier one.
    ///
    /// # Errors
    /// [`DatabaseError`] when it cannot be written: it is then not acknowledged.
    pub fn append_trial(&self, trial: &GpuTrial) -> Result<(), DatabaseError> {
        let mut owner = self.owner();
        let sequence = self.sequence();
        let before = self.trials.write(trial, sequence)?;
        self.trials.flush()?;
        let contents = owner.contents().with_write(sequence, before);
        owner.set_contents(Contents { trials: contents.trials + u64::from(before.is_none()), ..contents })?;
        Ok(())
    }

    /// Every sound trial of `problem` on `gpu`, in the order of tiles: which of them fail is not tried again.
    ///
    /// # Errors
    /// [`DatabaseError`] when sled cannot read its pages.
    pub fn trials_of(&self, gpu: &GpuIdentity, problem: &Problem) -> Result<Vec<Trial>, DatabaseError> {
        let trials = self.scan_trials(&format!("{gpu}\n{problem}\n"));
        trials.map(|trial| trial.map(|trial| trial.trial)).collect()
    }

    /// Every sound trial, by GPU, then problem, then tile. An error is the last item.
    pub fn trials(&self) -> impl Iterator<Item = Result<GpuTrial, DatabaseError>> + '_ {
        self.scan_trials("")
    }

    /// How much is kept: trials, then winners.
    pub fn counts(&self) -> (u64, u64) {
        let Contents { trials, winners, .. } = self.owner().contents();
        (trials, winners)
    }

    /// Bad values met since this was opened. [`verify`](Self::verify) names them.
    pub fn n_bad(&self) -> u64 {
        self.trials.n_bad() + self.winners.n_bad()
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the snapshot of the database at `path` stands.
    pub fn snapshot_path(path: &Path) -> PathBuf {
        beside(path, ".snapshot")
    }

    /// Writes every winner to the snapshot beside the database, in one rename, and returns it.
    ///
    /// # Errors
    /// [`DatabaseError`] when the winners cannot be read, or the file cannot be written.
    pub fn write_snapshot(&self) -> Result<Snapshot, DatabaseError> {
        let snapshot = Snapshot::of(&self.winners()?);
        match snapshot.write(&Self::snapshot_path(&self.path)) {
            Ok(()) => Ok(snapshot),
            Err(SnapshotError::File(error)) => Err(error.into()),
            Err(other) => Err(DatabaseError::Damaged { path: self.path.clone(), found: other.to_string() }),
        }
    }

    /// Makes every write so far survive a kill.
    ///
    /// # Errors
    /// [`DatabaseError`] when it cannot be written.
    pub fn flush(&self) -> Result<(), DatabaseError> {
        guarded(&self.path, || self.db.flush()).map(|_| ())
    }

    /// Flushes, closes sled and gives the lock back. Dropping does the same, but cannot say what went wrong.
    ///
    /// # Errors
    /// [`DatabaseError`] when the last writes cannot be made durable.
    pub fn close(self) -> Result<(), DatabaseError> {
        self.flush()?;
        let path = self.path.clone();
        guarded(&path, move || {
            drop(self);
            Ok(())
        })
    }

    fn scan_trials(&self, prefix: &str) -> impl Iterator<Item = Result<GpuTrial, DatabaseError>> + '_ {
        self.trials.scan(prefix).filter_map(|found| match found {
            Ok((_, Ok((trial, _)))) => Some(Ok(trial)),
            Ok((_, Err(_))) => None,
            Err(error) => Some(Err(error)),
        })
    }

    fn sequence(&self) -> u64 {
        self.next_sequence.fetch_add(1, Ordering::Relaxed)
    }

    /// Held while values change, so that the card agrees with them.
    fn owner(&self) -> MutexGuard<'_, Owner> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stored for GpuTrial {
    const KIND: u8 = b't';
    const TABLE: &'static str = "trials";

    /// One part a line: a scan by prefix finds a GPU's trials, or a problem's.
    fn key(&self) -> String {
        let Trial { problem, tile, routing, toolchain, .. } = &self.trial;
        let routing = routing.as_ref().map(super::words::routing).unwrap_or_default();
        format!("{}\n{problem}\n{tile}\n{routing}\n{}", self.gpu, toolchain.kernels)
    }
}

impl Stored for Record {
    const KIND: u8 = b'w';
    const TABLE: &'static str = "winners";

    fn key(&self) -> String {
        WinnerKey::of(self).to_string()
    }
}
