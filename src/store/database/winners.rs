//! Winners, and when a newcomer replaces an incumbent.

use super::owner::Contents;
use super::{Database, DatabaseError, Record, Stored, WinnerKey};
use crate::store::Origin;

/// What became of a newcomer.
#[derive(Clone, Debug, PartialEq)]
pub enum Put {
    /// There was no winner, or none that could be read.
    New,
    /// The same tile won again: the record has the newcomer's evidence now.
    Refreshed,
    /// The newcomer is the winner now.
    Replaced {
        /// What it replaced.
        incumbent: Box<Record>,
        /// On what ground.
        ground: Ground,
    },
    /// The incumbent stays.
    Kept {
        /// The winner.
        incumbent: Box<Record>,
        /// On what ground.
        ground: Ground,
    },
}

/// Why a winner was replaced or kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ground {
    /// Measured beats inherited beats predicted.
    Evidence,
    /// The incumbent was measured with kernels or tools that have changed.
    Stale,
    /// Both were measured, the winner under all routings of the other and more: their times are of different work.
    Routings,
    /// Both were measured: the newcomer's time over the incumbent's.
    Time {
        /// Below 1 the newcomer is faster.
        ratio: f64,
    },
}

impl Put {
    /// What is stored now: `newcomer`, or the incumbent that stays.
    pub fn winner<'a>(&'a self, newcomer: &'a Record) -> &'a Record {
        match self {
            Self::Kept { incumbent, .. } => incumbent,
            _ => newcomer,
        }
    }
}

impl std::fmt::Display for Put {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::New => f.write_str("new"),
            Self::Refreshed => f.write_str("the same tile won again"),
            Self::Replaced { incumbent, ground } => write!(f, "replaces {} ({ground})", incumbent.tile),
            Self::Kept { incumbent, ground } => write!(f, "{} stays ({ground})", incumbent.tile),
        }
    }
}

impl std::fmt::Display for Ground {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Evidence => f.write_str("better evidence"),
            Self::Stale => f.write_str("it was stale"),
            Self::Routings => f.write_str("a larger search, under other routings"),
            Self::Time { ratio } => write!(f, "{ratio:.3} times its time"),
        }
    }
}

impl Database {
    /// Makes `newcomer` the winner of its problem, unless the incumbent is to stay: two runs on one GPU then agree.
    ///
    /// A measured incumbent stays unless the newcomer was measured too and is faster by more than `band` (0.02 is
    /// 2 %), or `is_stale` says that the incumbent's kernels or tools have changed. Weaker evidence never replaces
    /// stronger, and under other routings the larger search counts, not time. The same tile refreshes its evidence. An
    /// incumbent that outlasts a larger search takes over its `tried`, so that the search is not made again.
    ///
    /// # Errors
    /// [`DatabaseError`] when the winner cannot be written: the incumbent is then untouched.
    pub fn put_winner(
        &self,
        newcomer: &Record,
        band: f64,
        is_stale: &dyn Fn(&Record) -> bool,
    ) -> Result<Put, DatabaseError> {
        let mut owner = self.owner();
        let put = match self.winners.read(&newcomer.key())? {
            None => Put::New,
            Some((incumbent, _)) => decide(newcomer, incumbent, band, is_stale),
        };
        let (put, to_write) = match put {
            Put::Kept { mut incumbent, ground: ground @ Ground::Time { .. } } if newcomer.tried > incumbent.tried => {
                incumbent.tried = newcomer.tried;
                let to_write = incumbent.as_ref().clone();
                (Put::Kept { incumbent, ground }, to_write)
            }
            Put::Kept { .. } => return Ok(put),
            _ => (put, newcomer.clone()),
        };
        let sequence = self.sequence();
        let before = self.winners.write(&to_write, sequence)?;
        self.winners.flush()?;
        let contents = owner.contents().with_write(sequence, before);
        owner.set_contents(Contents { winners: contents.winners + u64::from(before.is_none()), ..contents })?;
        Ok(put)
    }

    /// The winner kept under `key`; a bad one is a miss.
    ///
    /// # Errors
    /// [`DatabaseError`] when sled cannot read its pages.
    pub fn winner(&self, key: &WinnerKey<'_>) -> Result<Option<Record>, DatabaseError> {
        Ok(self.winners.read(&key.to_string())?.map(|(record, _)| record))
    }

    /// Every sound winner, in the order of keys.
    ///
    /// # Errors
    /// [`DatabaseError`] when sled cannot read its pages.
    pub fn winners(&self) -> Result<Vec<Record>, DatabaseError> {
        let sound = |found: Result<super::table::Found<Record>, _>| match found {
            Ok((_, value)) => value.ok().map(|(record, _)| Ok(record)),
            Err(error) => Some(Err(error)),
        };
        self.winners.scan("").filter_map(sound).collect()
    }

    /// Removes the winner kept under `key`; true if there was one that could be read.
    ///
    /// # Errors
    /// [`DatabaseError`] when it cannot be written.
    pub fn remove(&self, key: &WinnerKey<'_>) -> Result<bool, DatabaseError> {
        let mut owner = self.owner();
        let key = key.to_string();
        let Some((_, sequence)) = self.winners.read(&key)? else { return Ok(false) };
        let contents = owner.contents().with_write(0, Some(sequence));
        owner.set_contents(Contents { winners: contents.winners.saturating_sub(1), ..contents })?;
        self.winners.remove(key.as_bytes())?;
        self.winners.flush()?;
        Ok(true)
    }

    /// Adds the records whose keys have no readable winner; returns how many.
    pub(super) fn add_missing(&self, records: impl Iterator<Item = Record>) -> Result<u64, DatabaseError> {
        let mut added = 0;
        for record in records {
            if self.winners.read(&record.key())?.is_none() {
                self.winners.write(&record, self.sequence())?;
                added += 1;
            }
        }
        Ok(added)
    }
}

fn decide(newcomer: &Record, incumbent: Record, band: f64, is_stale: &dyn Fn(&Record) -> bool) -> Put {
    use std::cmp::Ordering;
    let stays = |incumbent, ground| Put::Kept { incumbent: Box::new(incumbent), ground };
    let goes = |incumbent, ground| Put::Replaced { incumbent: Box::new(incumbent), ground };
    let has_more = |one: &Record, other: &Record| {
        one.routings.len() > other.routings.len() && other.routings.iter().all(|of| one.routings.contains(of))
    };
    // Times under different routings cannot be compared: the larger search counts, and of equal ones the one with more.
    let outweighs = |one: &Record, other: &Record| match one.tried.cmp(&other.tried) {
        Ordering::Equal => has_more(one, other),
        larger => larger == Ordering::Greater && (has_more(one, other) || has_more(other, one)),
    };
    // What no tile could beat is no time: a database of an earlier version may hold one.
    if !(incumbent.timing.chained_us.is_finite() && incumbent.timing.chained_us > 0.0) {
        return goes(incumbent, Ground::Evidence);
    }
    match newcomer.origin.strength().cmp(&incumbent.origin.strength()) {
        Ordering::Less => stays(incumbent, Ground::Evidence),
        Ordering::Equal if outweighs(&incumbent, newcomer) && !is_stale(&incumbent) => {
            stays(incumbent, Ground::Routings)
        }
        _ if newcomer.tile == incumbent.tile => Put::Refreshed,
        Ordering::Greater => goes(incumbent, Ground::Evidence),
        Ordering::Equal if is_stale(&incumbent) => goes(incumbent, Ground::Stale),
        Ordering::Equal if outweighs(newcomer, &incumbent) => goes(incumbent, Ground::Routings),
        Ordering::Equal => {
            let ratio = newcomer.timing.chained_us / incumbent.timing.chained_us;
            let is_measured = newcomer.origin == Origin::Measured;
            // An inherited or predicted incumbent has no time of its own to defend.
            match !is_measured || ratio < 1.0 - band {
                true => goes(incumbent, Ground::Time { ratio }),
                false => stays(incumbent, Ground::Time { ratio }),
            }
        }
    }
}
