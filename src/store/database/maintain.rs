//! Looking after the database: naming bad values, and removing what nobody will ask for again.

use super::envelope::Stored;
use super::owner::Contents;
use super::table::Table;
use super::{BadValue, Database, DatabaseError, GpuTrial};

/// What a look at every value found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Sound trials.
    pub trials: u64,
    /// Sound winners.
    pub winners: u64,
    /// Values that cannot be used.
    pub bad: Vec<BadEntry>,
}

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadEntry {
    /// The table that it stands in.
    pub table: &'static str,
    /// Its key, as far as it is text.
    pub key: String,
    /// What is wrong with it.
    pub found: BadValue,
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Trials of kernels that are no longer rendered.
    pub outdated_trials: u64,
    /// Values that cannot be used.
    pub bad: u64,
}

impl Database {
    /// Reads every value and says which cannot be used.
    ///
    /// # Errors
    /// [`DatabaseError`] when sled cannot read its pages.
    pub fn verify(&self) -> Result<Verification, DatabaseError> {
        let mut bad = Vec::new();
        let trials = verify_table(&self.trials, &mut bad)?;
        let winners = verify_table(&self.winners, &mut bad)?;
        Ok(Verification { trials, winners, bad })
    }

    /// Removes the trials of kernels that are no longer `is_current`, and every bad value. Winners stay: a stale
    /// winner is still used.
    ///
    /// # Errors
    /// [`DatabaseError`] when sled cannot read or write its pages.
    pub fn gc(&self, is_current: &dyn Fn(&GpuTrial) -> bool) -> Result<Collected, DatabaseError> {
        let mut owner = self.owner();
        let trials = sort_out(&self.trials, |trial| !is_current(trial))?;
        let winners = sort_out(&self.winners, |_| false)?;
        let contents = owner.contents().with_write(0, Some(trials.sequences));
        owner.set_contents(Contents {
            trials: contents.trials.saturating_sub((trials.unwanted.len() + trials.bad.len()) as u64),
            winners: contents.winners.saturating_sub(winners.bad.len() as u64),
            ..contents
        })?;
        for key in trials.unwanted.iter().chain(&trials.bad) {
            self.trials.remove(key)?;
        }
        for key in &winners.bad {
            self.winners.remove(key)?;
        }
        self.flush()?;
        let bad = (trials.bad.len() + winners.bad.len()) as u64;
        Ok(Collected { outdated_trials: trials.unwanted.len() as u64, bad })
    }
}

fn verify_table<T: Stored>(table: &Table<T>, bad: &mut Vec<BadEntry>) -> Result<u64, DatabaseError> {
    let mut sound = 0;
    for found in table.scan("") {
        match found? {
            (_, Ok(_)) => sound += 1,
            (key, Err(found)) => {
                let key = String::from_utf8_lossy(&key).into_owned();
                bad.push(BadEntry { table: T::TABLE, key, found });
            }
        }
    }
    Ok(sound)
}

/// Keys of what is to go.
#[derive(Default)]
struct SortedOut {
    unwanted: Vec<Vec<u8>>,
    /// Sum of the sequence numbers of the unwanted.
    sequences: u64,
    bad: Vec<Vec<u8>>,
}

fn sort_out<T: Stored>(table: &Table<T>, is_unwanted: impl Fn(&T) -> bool) -> Result<SortedOut, DatabaseError> {
    let mut out = SortedOut::default();
    for found in table.scan("") {
        match found? {
            (key, Ok((value, sequence))) if is_unwanted(&value) => {
                out.unwanted.push(key);
                out.sequences += sequence;
            }
            (_, Ok(_)) => {}
            (key, Err(_)) => out.bad.push(key),
        }
    }
    Ok(out)
}
