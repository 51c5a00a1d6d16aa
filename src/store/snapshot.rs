//! What runners read: every winner in one file, renamed into place, loaded whole.
//!
//! ```text
//! magic "tilekiln" | schema u16 | count u32 | BLAKE3 of schema, count and body, 32 bytes | postcard body
//! ```
//! Numbers are little-endian. The body holds each text, GPU and toolchain once and rows that point at them, sorted by
//! key: equal winners give equal bytes, so ranks compare [`Snapshot::hash`] to know that they launch the same tiles.

use std::collections::HashMap;
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::files::{self, FileError};
use super::key::KeyMap;
use super::{Entry, Interner, KeyHash, Origin, Record, SCHEMA, Timing, Toolchain};
use crate::arch::GpuIdentity;
use crate::problem::{Problem, Routing};

/// Every winner of one moment. Lookups take no lock and allocate nothing.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    entries: Vec<Entry>,
    idx_of: KeyMap<u32>,
    hash: String,
}

/// A snapshot that cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Another kind of file.
    #[error("expected a snapshot at `{}`, found another kind of file", path.display())]
    NotASnapshot {
        /// The file.
        path: PathBuf,
    },
    /// Another version of tilekiln wrote it.
    #[error("expected schema {SCHEMA} in the snapshot `{}`, found schema {found}", path.display())]
    OtherSchema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u16,
    },
    /// Its bytes are not those that were written.
    #[error("expected the snapshot `{}` to be whole, found {found}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        found: String,
    },
    /// The path cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl SnapshotError {
    /// What the user can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::NotASnapshot { .. } => "check the path".to_string(),
            Self::OtherSchema { .. } | Self::Damaged { .. } => {
                "run `autotune` once: it writes a new snapshot from its database".to_string()
            }
            Self::File(FileError::Missing { .. }) => "run `autotune` once: it writes the snapshot".to_string(),
            Self::File(error) => error.hint(),
        }
    }

    /// Whether there is simply no snapshot yet.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::File(FileError::Missing { .. }))
    }
}

impl Snapshot {
    /// The snapshot of `records`; of two with one key the later counts.
    pub fn of(records: &[Record]) -> Self {
        let mut interner = Interner::default();
        let mut entries: Vec<Entry> = records.iter().rev().map(|record| interner.entry(record)).collect();
        entries.sort_by_key(|entry| entry.key);
        entries.dedup_by_key(|entry| entry.key);
        let hash = hash_of(&head_of(&entries), &Body::of(&entries).to_bytes()).to_string();
        Self { idx_of: index(&entries), entries, hash }
    }

    /// Reads the snapshot at `path`.
    ///
    /// # Errors
    /// [`SnapshotError`]: missing, another kind of file, another schema, damaged.
    pub fn load(path: &Path) -> Result<Self, SnapshotError> {
        Self::from_bytes(&files::read(path)?, path)
    }

    /// Reads the snapshot at `path`; when it cannot be read there are no winners, and a reason.
    pub fn load_or_empty(path: &Path) -> (Self, Option<SnapshotError>) {
        match Self::load(path) {
            Ok(snapshot) => (snapshot, None),
            Err(error) => (Self::default(), Some(error)),
        }
    }

    /// Writes the snapshot to `path` in one rename.
    ///
    /// # Errors
    /// [`SnapshotError::File`] when the path cannot be written; what was there before is untouched.
    pub fn write(&self, path: &Path) -> Result<(), SnapshotError> {
        let (head, body) = (head_of(&self.entries), Body::of(&self.entries).to_bytes());
        let bytes = [MAGIC, &head[..], hash_of(&head, &body).as_bytes(), &body].concat();
        Ok(files::write_atomically(path, &bytes)?)
    }

    /// The winner kept under `key`.
    pub fn get(&self, key: &KeyHash) -> Option<&Entry> {
        self.idx_of.get(key).map(|&idx| &self.entries[idx as usize])
    }

    /// Every winner, in the order of key hashes.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Every winner, given away.
    pub fn into_entries(self) -> Vec<Entry> {
        self.entries
    }

    /// 64 hex digits that change with any winner; empty for the empty default.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, SnapshotError> {
        let damaged = |found: String| SnapshotError::Damaged { path: path.to_path_buf(), found };
        let Some(rest) = bytes.strip_prefix(MAGIC) else {
            return Err(match MAGIC.starts_with(bytes) {
                true => damaged(format!("{} bytes", bytes.len())),
                false => SnapshotError::NotASnapshot { path: path.to_path_buf() },
            });
        };
        let short = || damaged(format!("only {} bytes", bytes.len()));
        let (head, rest) = rest.split_first_chunk::<HEAD_BYTES>().ok_or_else(short)?;
        let [s0, s1, n0, n1, n2, n3] = *head;
        let found = u16::from_le_bytes([s0, s1]);
        if found != SCHEMA {
            return Err(SnapshotError::OtherSchema { path: path.to_path_buf(), found });
        }
        let (hash, body) = rest.split_first_chunk::<32>().ok_or_else(short)?;
        let actual = hash_of(head, body);
        if actual != *hash {
            return Err(damaged("bytes that fail its checksum".to_string()));
        }
        let body: Body = postcard::from_bytes(body).map_err(|error| damaged(error.to_string()))?;
        let entries = body.into_entries().ok_or_else(|| damaged("a row that points at nothing".to_string()))?;
        match entries.len() == u32::from_le_bytes([n0, n1, n2, n3]) as usize {
            true => Ok(Self { idx_of: index(&entries), entries, hash: actual.to_string() }),
            false => Err(damaged(format!("{} rows", entries.len()))),
        }
    }
}

/// The body: what rows share, and the rows.
#[derive(Serialize, Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    texts: Vec<&'a str>,
    gpus: Vec<GpuIdentity>,
    toolchains: Vec<Toolchain>,
    rows: Vec<Row>,
}

/// An entry whose shared parts are positions.
#[derive(Serialize, Deserialize)]
struct Row {
    key: KeyHash,
    problem: Problem,
    gpu: u32,
    layout: u32,
    tile: u32,
    numerics: u32,
    origin: Origin,
    timing: Timing,
    default_us: f64,
    runners_up: Vec<(u32, f64)>,
    routings: Vec<Routing>,
    tried: u32,
    toolchain: u32,
    written_at: u64,
}

impl<'a> Body<'a> {
    fn of(entries: &'a [Entry]) -> Self {
        let (mut texts, mut gpus, mut toolchains) = (Places::default(), Places::default(), Places::default());
        let mut rows = Vec::with_capacity(entries.len());
        for entry in entries {
            rows.push(Row {
                key: entry.key,
                problem: entry.problem.clone(),
                gpu: gpus.place(&*entry.gpu),
                layout: texts.place(&*entry.layout),
                tile: texts.place(&*entry.tile),
                numerics: texts.place(&*entry.numerics),
                origin: entry.origin.clone(),
                timing: entry.timing.clone(),
                default_us: entry.default_us,
                runners_up: entry.runners_up.iter().map(|(tile, us)| (texts.place(&**tile), *us)).collect(),
                routings: entry.routings.to_vec(),
                tried: entry.tried,
                toolchain: toolchains.place(&*entry.toolchain),
                written_at: entry.written_at,
            });
        }
        let gpus = gpus.values.into_iter().cloned().collect();
        let toolchains = toolchains.values.into_iter().cloned().collect();
        Self { texts: texts.values, gpus, toolchains, rows }
    }

    fn to_bytes(&self) -> Vec<u8> {
        // Writing plain data to a growing vector has no way to fail.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// `None` if a row points at nothing.
    fn into_entries(self) -> Option<Vec<Entry>> {
        let texts: Vec<Arc<str>> = self.texts.into_iter().map(Arc::from).collect();
        let gpus: Vec<Arc<GpuIdentity>> = self.gpus.into_iter().map(Arc::new).collect();
        let toolchains: Vec<Arc<Toolchain>> = self.toolchains.into_iter().map(Arc::new).collect();
        let text = |idx: u32| texts.get(idx as usize).cloned();
        let entry = |row: Row| {
            Some(Entry {
                key: row.key,
                problem: row.problem,
                gpu: gpus.get(row.gpu as usize)?.clone(),
                layout: text(row.layout)?,
                tile: text(row.tile)?,
                numerics: text(row.numerics)?,
                origin: row.origin,
                timing: row.timing,
                default_us: row.default_us,
                runners_up: row
                    .runners_up
                    .into_iter()
                    .map(|(idx, us)| Some((text(idx)?, us)))
                    .collect::<Option<_>>()?,
                routings: row.routings.into(),
                tried: row.tried,
                toolchain: toolchains.get(row.toolchain as usize)?.clone(),
                written_at: row.written_at,
            })
        };
        self.rows.into_iter().map(entry).collect()
    }
}

/// Distinct values in the order of their first use.
struct Places<'a, T: ?Sized> {
    values: Vec<&'a T>,
    places: HashMap<&'a T, u32>,
}

impl<T: ?Sized> Default for Places<'_, T> {
    fn default() -> Self {
        Self { values: Vec::new(), places: HashMap::new() }
    }
}

impl<'a, T: ?Sized + Eq + Hash> Places<'a, T> {
    fn place(&mut self, value: &'a T) -> u32 {
        *self.places.entry(value).or_insert_with(|| {
            self.values.push(value);
            self.values.len() as u32 - 1
        })
    }
}

fn index(entries: &[Entry]) -> KeyMap<u32> {
    entries.iter().zip(0..).map(|(entry, idx)| (entry.key, idx)).collect()
}

fn head_of(entries: &[Entry]) -> [u8; HEAD_BYTES] {
    let ([s0, s1], [n0, n1, n2, n3]) = (SCHEMA.to_le_bytes(), (entries.len() as u32).to_le_bytes());
    [s0, s1, n0, n1, n2, n3]
}

fn hash_of(head: &[u8], body: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(head).update(body).finalize()
}

const MAGIC: &[u8] = b"tilekiln";
const HEAD_BYTES: usize = 6;
