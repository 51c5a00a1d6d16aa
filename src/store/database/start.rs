//! Starting sled: its files, our schema, and every value read once.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::Duration;

use super::super::key::{SCHEMA, first_16};
use super::guard::catch;
use super::owner::{Contents, Owner};
use super::table::{Table, guarded};
use super::{Database, DatabaseError, GpuTrial, Record};

/// A database without its owner.
pub(super) struct Started {
    db: sled::Db,
    trials: Table<GpuTrial>,
    winners: Table<Record>,
    next_sequence: u64,
    pub(super) contents: Contents,
}

impl Started {
    /// The database at `path`, once it has its owner.
    pub(super) fn owned_by(self, owner: Owner, path: &Path) -> Database {
        let Self { db, trials, winners, next_sequence, .. } = self;
        let (path, next_sequence, owner) = (path.to_path_buf(), AtomicU64::new(next_sequence), Mutex::new(owner));
        Database { path, db, trials, winners, next_sequence, owner }
    }
}

/// Starts sled at `path` and reads every value once, so that damage shows now and not in the middle of a run.
pub(super) fn start(path: &Path) -> Result<Started, DatabaseError> {
    // Guarded as a whole, too: when a part of it fails, what was opened before is dropped in here.
    match catch(|| start_unguarded(path)) {
        Ok(result) => result,
        Err(panic) => Err(DatabaseError::Damaged { path: path.to_path_buf(), found: panic }),
    }
}

fn start_unguarded(path: &Path) -> Result<Started, DatabaseError> {
    let db = open_sled(path)?;
    check_schema(&db, path)?;
    let trials = Table::open(&db, path)?;
    let winners = Table::open(&db, path)?;
    let (contents, last_sequence) = survey(&trials, &winners)?;
    Ok(Started { db, trials, winners, next_sequence: last_sequence + 1, contents })
}

/// sled gives its file lock back a moment after it is dropped, when its last background thread ends. We hold our own
/// lock here, so waiting for that moment is no race.
fn open_sled(path: &Path) -> Result<sled::Db, DatabaseError> {
    let mut waited = Duration::ZERO;
    loop {
        // Every acknowledged write is flushed by hand: no background flusher.
        let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        match guarded(path, || config.open()) {
            Err(DatabaseError::Held { .. }) if waited < SLED_CLOSES_WITHIN => {
                thread::sleep(POLL);
                waited += POLL;
            }
            result => return result,
        }
    }
}

/// A new database gets our schema; an old one must have it.
fn check_schema(db: &sled::Db, path: &Path) -> Result<(), DatabaseError> {
    let damaged = |found: &str| DatabaseError::Damaged { path: path.to_path_buf(), found: found.to_string() };
    let is_known = |name: &sled::IVec| [&b"__sled__default"[..], META.as_bytes()].contains(&&name[..]);
    let is_new = db.is_empty() && db.tree_names().iter().all(is_known);
    let meta = guarded(path, || db.open_tree(META))?;
    match guarded(path, || meta.get(SCHEMA_KEY))? {
        Some(value) => match value.split_first_chunk::<2>() {
            Some((schema, hash)) if hash == first_16(&blake3::hash(schema)) => match u16::from_be_bytes(*schema) {
                SCHEMA => Ok(()),
                found => Err(DatabaseError::OtherSchema { path: path.to_path_buf(), found }),
            },
            _ => Err(damaged("a schema that fails its checksum")),
        },
        None if is_new => guarded(path, || {
            let schema = SCHEMA.to_be_bytes();
            let hash = first_16(&blake3::hash(&schema));
            meta.insert(SCHEMA_KEY, [&schema[..], &hash].concat())?;
            meta.flush().map(|_| ())
        }),
        None => Err(damaged("tables without a schema")),
    }
}

/// Reads every value: how much there is, bad values included, and the highest sequence number.
pub(super) fn survey(trials: &Table<GpuTrial>, winners: &Table<Record>) -> Result<(Contents, u64), DatabaseError> {
    let (mut contents, mut last) = (Contents::default(), 0);
    let mut add = |sequence: u64| {
        contents.sequences += sequence;
        last = sequence.max(last);
    };
    for found in trials.scan("") {
        found?.1.into_iter().for_each(|(_, sequence)| add(sequence));
        contents.trials += 1;
    }
    for found in winners.scan("") {
        found?.1.into_iter().for_each(|(_, sequence)| add(sequence));
        contents.winners += 1;
    }
    Ok((contents, last))
}

const META: &str = "meta";
const SCHEMA_KEY: &str = "schema";
const CACHE_BYTES: u64 = 64 << 20;
const SLED_CLOSES_WITHIN: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(10);
