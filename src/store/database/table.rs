//! One sled tree of sealed values. Every call into sled is guarded, and a bad value is a counted miss.

use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::files::FileError;
use super::DatabaseError;
use super::envelope::{BadValue, Stored, seal, unseal};
use super::guard::catch;

/// A tree of values of one type.
#[derive(Debug)]
pub(super) struct Table<T> {
    tree: sled::Tree,
    path: PathBuf,
    n_bad: AtomicU64,
    values: PhantomData<fn() -> T>,
}

/// A value as it was found: its key's bytes, and the value with its sequence number unless it is bad.
pub(super) type Found<T> = (Vec<u8>, Result<(T, u64), BadValue>);

impl<T: Stored> Table<T> {
    /// Opens the table of `db`, which lies at `path`.
    pub(super) fn open(db: &sled::Db, path: &Path) -> Result<Self, DatabaseError> {
        let tree = guarded(path, || db.open_tree(T::TABLE))?;
        Ok(Self { tree, path: path.to_path_buf(), n_bad: AtomicU64::new(0), values: PhantomData })
    }

    /// The value under `key` and its sequence number; a bad one is a miss.
    pub(super) fn read(&self, key: &str) -> Result<Option<(T, u64)>, DatabaseError> {
        let bytes = guarded(&self.path, || self.tree.get(key))?;
        Ok(bytes.and_then(|bytes| self.checked(key.as_bytes(), &bytes).ok()))
    }

    /// Keeps `value`; returns the sequence number of what was there before, 0 if that was bad. Durable after
    /// [`flush`](Self::flush).
    pub(super) fn write(&self, value: &T, sequence: u64) -> Result<Option<u64>, DatabaseError> {
        let key = value.key();
        let sealed = seal(value, sequence).map_err(|bad| DatabaseError::Unkeepable { key: key.clone(), bad })?;
        let before = guarded(&self.path, || self.tree.insert(key, sealed))?;
        Ok(before.map(|bytes| unseal::<T>(&bytes).map_or(0, |(_, sequence)| sequence)))
    }

    /// Removes what is under `key`.
    pub(super) fn remove(&self, key: &[u8]) -> Result<(), DatabaseError> {
        guarded(&self.path, || self.tree.remove(key)).map(|_| ())
    }

    /// Everything under keys that start with `prefix`, in the order of keys. An error is the last item.
    pub(super) fn scan(&self, prefix: &str) -> impl Iterator<Item = Result<Found<T>, DatabaseError>> + '_ {
        let mut iter = Some(self.tree.scan_prefix(prefix));
        std::iter::from_fn(move || match guarded(&self.path, || iter.as_mut().and_then(Iterator::next).transpose()) {
            Ok(None) => None,
            Ok(Some((key, bytes))) => Some(Ok((key.to_vec(), self.checked(&key, &bytes)))),
            Err(error) => {
                iter = None;
                Some(Err(error))
            }
        })
    }

    /// Makes every write so far survive a kill.
    pub(super) fn flush(&self) -> Result<(), DatabaseError> {
        guarded(&self.path, || self.tree.flush()).map(|_| ())
    }

    /// Bad values met so far.
    pub(super) fn n_bad(&self) -> u64 {
        self.n_bad.load(Ordering::Relaxed)
    }

    fn checked(&self, key: &[u8], bytes: &[u8]) -> Result<(T, u64), BadValue> {
        let checked = unseal::<T>(bytes).and_then(|(value, sequence)| match value.key() {
            own if own.as_bytes() == key => Ok((value, sequence)),
            own => Err(BadValue::Key(own)),
        });
        if checked.is_err() {
            self.n_bad.fetch_add(1, Ordering::Relaxed);
        }
        checked
    }
}

/// Calls sled; its errors and panics come back as ours.
pub(super) fn guarded<T>(path: &Path, act: impl FnOnce() -> sled::Result<T>) -> Result<T, DatabaseError> {
    match catch(act) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(fault(path, error)),
        Err(panic) => Err(fault_of_panic(path, panic)),
    }
}

fn fault(path: &Path, error: sled::Error) -> DatabaseError {
    let damaged = |found: String| DatabaseError::Damaged { path: path.to_path_buf(), found };
    match error {
        sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => {
            DatabaseError::Held { path: path.to_path_buf(), pid: None }
        }
        sled::Error::Io(error) => match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => damaged(error.to_string()),
            _ => FileError::new(path, "write", &error).into(),
        },
        sled::Error::Corruption { at, .. } => damaged(match at {
            Some(at) => format!("a page that fails its checksum ({at:?})"),
            None => "a head that fails its checksum".to_string(),
        }),
        other => damaged(other.to_string()),
    }
}

/// sled unwraps some I/O errors: a full disk must not be taken for damage.
fn fault_of_panic(path: &Path, panic: String) -> DatabaseError {
    match panic.split_once("code: ").and_then(|(_, rest)| rest.split(',').next()?.parse().ok()) {
        Some(code) => FileError::new(path, "write", &io::Error::from_raw_os_error(code)).into(),
        None => DatabaseError::Damaged { path: path.to_path_buf(), found: panic },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_about_a_full_disk_is_no_damage() {
        let panic = "called `Result::unwrap()` on an `Err` value: Io(Os { code: 28, kind: StorageFull, .. })";
        let error = fault_of_panic(Path::new("/db"), panic.to_string());
        assert_eq!(error.to_string(), "expected room to write `/db`, found a full disk");
        let error = fault_of_panic(Path::new("/db"), "tried to serialize Uninitialized".to_string());
        assert!(matches!(error, DatabaseError::Damaged { .. }), "{error}");
    }
}
