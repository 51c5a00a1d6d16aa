//! Files that appear whole or not at all, and what can go wrong with a path, told apart by what the user can do.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A path that cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// Nothing is there.
    #[error("expected a file at `{}`, found nothing", path.display())]
    Missing {
        /// What was asked for.
        path: PathBuf,
    },
    /// The file system or its permissions refuse.
    #[error("expected to {doing} `{}`, found {found}", path.display())]
    Refused {
        /// What was asked for.
        path: PathBuf,
        /// The act, such as `write`.
        doing: &'static str,
        /// Who refuses: permissions, the file system, the directory.
        found: &'static str,
    },
    /// Disk, quota or file-size limit is used up.
    #[error("expected room to write `{}`, found {found}", path.display())]
    NoSpace {
        /// What was being written.
        path: PathBuf,
        /// Which limit was met.
        found: &'static str,
    },
    /// A part of the path is a file.
    #[error("expected `{}` to lie in a directory, found a file on the way", path.display())]
    NotADirectory {
        /// What was asked for.
        path: PathBuf,
    },
    /// Anything else, in the system's words.
    #[error("expected to {doing} `{}`, found: {message}", path.display())]
    Other {
        /// What was asked for.
        path: PathBuf,
        /// The act, such as `write`.
        doing: &'static str,
        /// The system's message.
        message: String,
    },
}

impl FileError {
    /// Says what `error` means for `path`.
    pub(crate) fn new(path: &Path, doing: &'static str, error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        let path = path.to_path_buf();
        match error.kind() {
            Kind::NotFound if doing == "read" => Self::Missing { path },
            Kind::NotFound => Self::Refused { path, doing, found: "a directory that takes no new entries" },
            Kind::PermissionDenied => Self::Refused { path, doing, found: "no permission" },
            Kind::ReadOnlyFilesystem => Self::Refused { path, doing, found: "a read-only file system" },
            Kind::StorageFull => Self::NoSpace { path, found: "a full disk" },
            Kind::QuotaExceeded => Self::NoSpace { path, found: "a used-up quota" },
            Kind::FileTooLarge => Self::NoSpace { path, found: "a limit on the size of a file" },
            // The second is what making the directories above a path below a file gives.
            Kind::NotADirectory | Kind::AlreadyExists => Self::NotADirectory { path },
            _ => Self::Other { path, doing, message: error.to_string() },
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Missing { .. } => "check the path".to_string(),
            Self::Refused { .. } | Self::NotADirectory { .. } => {
                "name a path in a directory that you may write to".to_string()
            }
            Self::NoSpace { .. } => "make room and run the same command again: it resumes".to_string(),
            Self::Other { .. } => "run the same command again, or name another path".to_string(),
        }
    }
}

/// Reads a whole file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(|error| FileError::new(path, "read", &error))
}

/// Writes `bytes` beside `path`, makes them durable, and renames them into place: a reader sees the old file or the
/// new one, never a part. A device or a pipe is written to, not replaced.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let directory = directory_of(path);
    let write = || -> io::Result<()> {
        if fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
            return File::options().write(true).open(path)?.write_all(bytes);
        }
        fs::create_dir_all(directory)?;
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o644));
        }
        let mut file = builder.prefix(".tilekiln-").tempfile_in(directory)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        // The rename itself is durable only once the directory is.
        File::open(directory)?.sync_all()
    };
    write().map_err(|error| FileError::new(path, "write", &error))
}

/// The directory that holds `path`.
pub(super) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// `path` with `suffix` added to its last part: `winners` and `.snapshot` give `winners.snapshot`.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    name.into()
}

/// Seconds since 1970; 0 on a machine whose clock is before that.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_has_its_own_sentence() {
        for (kind, sentence) in [
            (io::ErrorKind::NotFound, "expected to open `/db`, found a directory that takes no new entries"),
            (io::ErrorKind::PermissionDenied, "expected to open `/db`, found no permission"),
            (io::ErrorKind::ReadOnlyFilesystem, "expected to open `/db`, found a read-only file system"),
            (io::ErrorKind::StorageFull, "expected room to write `/db`, found a full disk"),
            (io::ErrorKind::QuotaExceeded, "expected room to write `/db`, found a used-up quota"),
            (io::ErrorKind::NotADirectory, "expected `/db` to lie in a directory, found a file on the way"),
        ] {
            let error = FileError::new(Path::new("/db"), "open", &kind.into());
            assert_eq!(error.to_string(), sentence);
            assert!(!error.hint().is_empty());
        }
    }

    #[test]
    fn enospc_by_its_number_is_no_space() {
        let error = FileError::new(Path::new("/db"), "write", &io::Error::from_raw_os_error(28));
        assert!(matches!(error, FileError::NoSpace { .. }), "{error}");
    }

    #[test]
    fn a_write_replaces_the_file_and_leaves_nothing_beside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/file");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_device_is_written_to_and_stays_one() {
        let error = write_atomically(Path::new("/dev/full"), b"one").unwrap_err();
        assert_eq!(error.to_string(), "expected room to write `/dev/full`, found a full disk");
        assert!(!fs::metadata("/dev/full").unwrap().is_file());
    }
}
