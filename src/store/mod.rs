//! What is kept: trials and winners in sled, a snapshot for readers, packs for people.
//!
//! ```text
//! tuner  --trial, winner-->  Database  --write_snapshot-->  Snapshot  --+
//!                               |  ^                                    +-->  Lookup  -->  dispatch, show
//!                        export |  | import, merge                      |
//!                               v  |                                    |
//!                              Pack (tuning_db/<gpu>/*.toml, embedded) -+
//! ```
//! One process writes: it holds the [`Database`]. Readers never open sled; they load the [`Snapshot`] into a
//! [`Lookup`]. Nothing here panics, and every fault is a type with a sentence and a `hint()`.

mod database;
mod entry;
mod files;
mod key;
mod lookup;
mod pack;
mod record;
mod snapshot;
mod trial_log;
mod words;

pub use database::{
    BadEntry, BadValue, Collected, Database, DatabaseError, Examined, GpuTrial, Ground, Put, Recovery, Verification,
};
pub use entry::Entry;
use entry::Interner;
pub use files::{FileError, write_atomically};
pub use key::{KeyHash, SCHEMA, WinnerKey};
pub use lookup::{Current, Found, How, Lookup, LookupNote, Stale};
pub use pack::{
    Difference, Edits, Embedded, Finding, LOG_ENDING, MergeNote, Merged, Pack, PackError, diff, embedded, embedded_for,
    embedded_logs, is_log, is_pack,
};
pub use record::{Origin, Outcome, Record, RunnerUp, Timing, Toolchain, Trial};
pub use snapshot::{Snapshot, SnapshotError};
pub use trial_log::{TrialLog, TrialLogError};
