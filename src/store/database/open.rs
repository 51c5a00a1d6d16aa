//! Opening: refuse what is not ours, take the lock, start sled, recover what damage has cost.

use std::fs;
use std::io;
use std::path::Path;

use super::super::files::FileError;
use super::owner::Owner;
use super::recover::{self, Recovery};
use super::start::start;
use super::{Database, DatabaseError};

impl Database {
    /// Opens the database at `path`, or makes one. A damaged one is moved aside and rebuilt from what can be read of
    /// it, the snapshot or, without one, the embedded packs; the [`Recovery`] is to be shown to the user.
    ///
    /// # Errors
    /// [`DatabaseError`]: held by another process, no database, another schema, or a path that cannot be written.
    pub fn open(path: &Path) -> Result<(Self, Option<Recovery>), DatabaseError> {
        refuse_foreign(path)?;
        let owner = Owner::acquire(path)?;
        // Before sled starts: it overwrites the part of a damaged file that it has given up on.
        let raw = fs::read(path.join("db")).unwrap_or_default();
        match start(path) {
            Ok(started) => {
                let (expected, found) = (owner.contents(), started.contents);
                let database = started.owned_by(owner, path);
                let recovery = recover::if_less(&database, &raw, &expected, &found)?;
                Ok((database, recovery))
            }
            Err(DatabaseError::Damaged { found, .. }) => {
                let (database, recovery) = recover::rebuild(path, &raw, owner, found)?;
                Ok((database, Some(recovery)))
            }
            Err(other) => Err(other),
        }
    }

    /// Opens the database at `path` as [`open`](Self::open) does, but makes none where none is.
    ///
    /// # Errors
    /// [`DatabaseError::Missing`], and as [`open`](Self::open).
    pub fn open_existing(path: &Path) -> Result<(Self, Option<Recovery>), DatabaseError> {
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(DatabaseError::Missing { path: path.to_path_buf() })
            }
            _ => Self::open(path),
        }
    }
}

/// A directory with anything but sled's files in it is somebody else's, and must never be moved aside.
pub(super) fn refuse_foreign(path: &Path) -> Result<(), DatabaseError> {
    let fault = |error: io::Error| DatabaseError::from(FileError::new(path, "open", &error));
    let not_ours = |found: String| DatabaseError::NotADatabase { path: path.to_path_buf(), found };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fault(error)),
        Ok(metadata) if !metadata.is_dir() => return Err(not_ours("a file".to_string())),
        Ok(_) => {}
    }
    for entry in fs::read_dir(path).map_err(fault)? {
        let name = entry.map_err(fault)?.file_name();
        let name = name.to_string_lossy();
        if !(["conf", "db", "blobs"].contains(&&*name) || name.starts_with("snap.")) {
            return Err(not_ours(format!("a directory that holds `{name}`")));
        }
    }
    Ok(())
}
