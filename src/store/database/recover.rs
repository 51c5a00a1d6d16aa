//! After damage: read back what can be read, add what the snapshot knows, or without one the packs, and say so.
//!
//! Values are found by scanning the raw files for their seals, so a page that sled gives up on still yields the values
//! whose own bytes are whole. A value that was removed may come back this way; for a trial or a winner that is no harm.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::super::files::{FileError, beside, unix_seconds};
use super::super::{Record, Snapshot, SnapshotError, pack};
use super::envelope::{Stored, scan};
use super::owner::{Contents, Owner};
use super::start::{start, survey};
use super::table::Table;
use super::{Database, DatabaseError, GpuTrial};

/// What was damaged, and what became of it. Show it to the user: it is the only word about lost values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// What was found.
    pub found: String,
    /// Where the damaged files are now; `None` if sled could still use them.
    pub moved_to: Option<PathBuf>,
    /// Trials in the database now.
    pub trials: u64,
    /// Winners in the database now.
    pub winners: u64,
    /// Winners among them that only the snapshot had.
    pub from_snapshot: u64,
    /// Winners among them that only embedded packs had; those are not asked where there is a snapshot.
    pub from_packs: u64,
    /// Why the snapshot added nothing, if it was there.
    pub snapshot_fault: Option<SnapshotError>,
    /// Whether something is lost, or there only in an older copy.
    pub has_older: bool,
    /// Trials that were there and are not.
    pub lost_trials: u64,
    /// Winners that were there and are not.
    pub lost_winners: u64,
}

impl std::fmt::Display for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { found, trials, winners, from_snapshot, from_packs, lost_trials, lost_winners, .. } = self;
        write!(f, "the database was damaged ({found})")?;
        if let Some(path) = &self.moved_to {
            write!(f, ", was moved to `{}` and rebuilt", path.display())?;
        }
        write!(f, "; kept: {} and {}", counted(*trials, "trial"), counted(*winners, "winner"))?;
        if from_snapshot + from_packs > 0 {
            write!(f, " ({from_snapshot} from the snapshot, {from_packs} from packs)")?;
        }
        match (lost_trials, lost_winners, self.has_older) {
            (0, 0, false) => f.write_str(", nothing is known to be lost")?,
            (0, 0, true) => f.write_str(", some of them in an older copy")?,
            _ => {
                write!(f, ", lost: {} and {}", counted(*lost_trials, "trial"), counted(*lost_winners, "winner"))?;
            }
        }
        match &self.snapshot_fault {
            Some(fault) => write!(f, "; {fault}"),
            None => Ok(()),
        }
    }
}

/// Moves the damaged directory aside and makes a fresh database of what is left.
pub(super) fn rebuild(
    path: &Path,
    raw: &[u8],
    owner: Owner,
    found: String,
) -> Result<(Database, Recovery), DatabaseError> {
    let moved_to = free_name(&beside(path, &format!(".corrupt-{}", unix_seconds())));
    fs::rename(path, &moved_to).map_err(|error| FileError::new(path, "move aside", &error))?;
    let expected = owner.contents();
    let rebuild = || -> Result<(Database, Recovery), DatabaseError> {
        let database = start(path)?.owned_by(owner, path);
        let mut recovery = refill(&database, raw, &expected)?;
        (recovery.found, recovery.moved_to) = (found, Some(moved_to.clone()));
        Ok((database, recovery))
    };
    rebuild().map_err(|source| DatabaseError::NotRebuilt { moved_to: moved_to.clone(), source: Box::new(source) })
}

/// Puts back what sled dropped: it opens many damaged files without a word, with fewer values or with older ones.
pub(super) fn if_less(
    database: &Database,
    raw: &[u8],
    expected: &Contents,
    found: &Contents,
) -> Result<Option<Recovery>, DatabaseError> {
    if !found.is_less_than(expected) {
        database.owner().set_contents(*found)?;
        return Ok(None);
    }
    let mut recovery = refill(database, raw, expected)?;
    recovery.found = match (found.trials < expected.trials, found.winners < expected.winners) {
        (false, false) => "values were bad or older than the last ones written".to_string(),
        _ => format!(
            "{} of {} trials and {} of {} winners were left",
            found.trials, expected.trials, found.winners, expected.winners
        ),
    };
    Ok(Some(recovery))
}

/// Adds every value of the raw file and the snapshot that `database` lacks; where there is no snapshot, of the packs.
fn refill(database: &Database, raw: &[u8], expected: &Contents) -> Result<Recovery, DatabaseError> {
    put_back(&database.trials, newest::<GpuTrial>(raw))?;
    put_back(&database.winners, newest::<Record>(raw))?;
    let (salvaged, last_sequence) = survey(&database.trials, &database.winners)?;
    database.next_sequence.fetch_max(last_sequence + 1, Ordering::Relaxed);
    let (snapshot, snapshot_fault) = Snapshot::load_or_empty(&Database::snapshot_path(&database.path));
    let from_snapshot = database.add_missing(snapshot.entries().iter().filter_map(|entry| entry.record().ok()))?;
    let from_packs = match snapshot_fault {
        None => 0,
        Some(_) => {
            let packs = pack::embedded().filter_map(|embedded| embedded.pack.ok());
            database.add_missing(packs.flat_map(|pack| pack.into_records()))?
        }
    };
    database.flush()?;
    let (contents, _) = survey(&database.trials, &database.winners)?;
    database.owner().set_contents(contents)?;
    Ok(Recovery {
        found: String::new(),
        moved_to: None,
        trials: contents.trials,
        winners: contents.winners,
        from_snapshot,
        from_packs,
        snapshot_fault: snapshot_fault.filter(|fault| !fault.is_missing()),
        has_older: salvaged.sequences < expected.sequences,
        lost_trials: expected.trials.saturating_sub(contents.trials),
        lost_winners: expected.winners.saturating_sub(salvaged.winners + from_snapshot),
    })
}

/// Writes the values that `table` lacks, or has in an older form.
fn put_back<T: Stored>(table: &Table<T>, values: HashMap<String, (T, u64)>) -> Result<(), DatabaseError> {
    for (key, (value, sequence)) in values {
        if table.read(&key)?.is_none_or(|(_, kept)| kept < sequence) {
            table.write(&value, sequence)?;
        }
    }
    Ok(())
}

/// The latest copy of each sound value in a raw file, by key.
fn newest<T: Stored>(raw: &[u8]) -> HashMap<String, (T, u64)> {
    let mut newest: HashMap<String, (T, u64)> = HashMap::new();
    for (value, sequence) in scan::<T>(raw) {
        let key = value.key();
        if newest.get(&key).is_none_or(|(_, other)| *other < sequence) {
            newest.insert(key, (value, sequence));
        }
    }
    newest
}

fn counted(n: u64, what: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {what}{plural}")
}

/// `path`, or `path-2`, `path-3`, ... if something is there.
fn free_name(path: &Path) -> PathBuf {
    let numbered = (2..).map(|n| beside(path, &format!("-{n}")));
    std::iter::once(path.to_path_buf()).chain(numbered).find(|path| !path.exists()).unwrap_or_default()
}
