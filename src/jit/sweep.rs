//! What a cache could do without: kernels that nobody has used for long, and folders that a killed process left.
//!
//! A kernel is removed under the lock that its compilation takes, so nobody waits for one that then vanishes. A process
//! that is reading it at this moment sees a miss, and compiles.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::KernelCache;
use super::cache::{CUBIN_FILE, LOCKS};

/// A kernel in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedKernel {
    /// Hash of its source.
    pub hash: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// When it was last read, as far as the file system keeps that, or made.
    pub last_used: SystemTime,
}

/// A folder or file that a killed process has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Where.
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
}

impl KernelCache {
    /// Every kernel, by hash.
    pub fn kernels(&self) -> Vec<CachedKernel> {
        let kernel = |entry: fs::DirEntry| {
            let hash = entry.file_name().into_string().ok().filter(|name| !name.starts_with('.'))?;
            let cubin = fs::metadata(entry.path().join(CUBIN_FILE)).ok()?;
            let made = cubin.modified().ok()?;
            let last_used = cubin.accessed().map_or(made, |read| read.max(made));
            Some(CachedKernel { hash, bytes: bytes_below(&entry.path()), last_used })
        };
        let entries = fs::read_dir(self.root()).into_iter().flatten().flatten();
        let mut kernels: Vec<CachedKernel> = entries.filter_map(kernel).collect();
        kernels.sort_by(|a, b| a.hash.cmp(&b.hash));
        kernels
    }

    /// Removes a kernel; false if another process has its lock.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove(&self, kernel: &CachedKernel) -> io::Result<bool> {
        let lock_path = self.root().join(LOCKS).join(&kernel.hash);
        // A kernel whose lock file is gone is one that nobody compiles.
        let lock = match File::options().append(true).open(&lock_path) {
            Ok(file) => match file.try_lock() {
                Ok(()) => Some(file),
                Err(TryLockError::WouldBlock) => return Ok(false),
                Err(TryLockError::Error(error)) => return Err(error),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        // In one step, so that a reader never sees half a kernel.
        let removed = self.root().join(format!("{REMOVED}{}", kernel.hash));
        fs::rename(self.root().join(&kernel.hash), &removed)?;
        fs::remove_dir_all(&removed)?;
        if lock.is_some() {
            // Who waits for this very file compiles beside who makes a new one: that costs time and does no harm.
            fs::remove_file(&lock_path)?;
        }
        Ok(true)
    }

    /// Folders that were not finished and not touched for `age`.
    pub fn leftovers(&self, age: Duration) -> Vec<Leftover> {
        leftovers(self.root(), &[".building-", REMOVED], age)
    }
}

/// What lies in `folder` under a name that starts with one of `prefixes`, and was not touched for `age`.
pub fn leftovers(folder: &Path, prefixes: &[&str], age: Duration) -> Vec<Leftover> {
    let is_old = |entry: &fs::DirEntry| {
        let touched = entry.metadata().and_then(|metadata| metadata.modified());
        touched.is_ok_and(|touched| touched.elapsed().is_ok_and(|elapsed| elapsed >= age))
    };
    let is_named = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        prefixes.iter().any(|prefix| name.to_string_lossy().starts_with(prefix))
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let old = entries.filter(|entry| is_named(entry) && is_old(entry));
    let mut found: Vec<Leftover> =
        old.map(|entry| Leftover { bytes: bytes_below(&entry.path()), path: entry.path() }).collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

impl Leftover {
    /// Removes it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove(&self) -> io::Result<()> {
        match self.path.is_dir() {
            true => fs::remove_dir_all(&self.path),
            false => fs::remove_file(&self.path),
        }
    }
}

/// Bytes of a file, or of all files below a folder.
fn bytes_below(path: &Path) -> u64 {
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| bytes_below(&entry.path())).sum(),
        Err(_) => fs::symlink_metadata(path).map_or(0, |metadata| metadata.len()),
    }
}

/// A kernel on its way out.
const REMOVED: &str = ".removed-";

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(root: &Path) -> KernelCache {
        for hash in ["a", "b"] {
            fs::create_dir_all(root.join(hash)).unwrap();
            fs::write(root.join(hash).join(CUBIN_FILE), [0; 100]).unwrap();
        }
        fs::create_dir_all(root.join(LOCKS)).unwrap();
        fs::write(root.join(LOCKS).join("a"), "").unwrap();
        KernelCache::new(root)
    }

    #[test]
    fn a_kernel_that_is_locked_stays() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let kernels = cache.kernels();
        assert_eq!(
            kernels.iter().map(|kernel| (&*kernel.hash, kernel.bytes)).collect::<Vec<_>>(),
            [("a", 100), ("b", 100)]
        );
        let lock = File::open(root.path().join(LOCKS).join("a")).unwrap();
        lock.lock().unwrap();
        assert_eq!(kernels.iter().map(|kernel| cache.remove(kernel).unwrap()).collect::<Vec<_>>(), [false, true]);
        lock.unlock().unwrap();
        assert!(cache.remove(&kernels[0]).unwrap());
        assert_eq!((cache.kernels(), cache.remove(&kernels[0]).is_err()), (Vec::new(), true));
    }

    #[test]
    fn only_old_leftovers_are_found() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        fs::create_dir(root.path().join(".building-x")).unwrap();
        fs::write(root.path().join(".building-x/kernel.cu"), [0; 50]).unwrap();
        assert_eq!(cache.leftovers(Duration::from_secs(3600)), []);
        let found = cache.leftovers(Duration::ZERO);
        assert_eq!(found.iter().map(|leftover| leftover.bytes).collect::<Vec<_>>(), [50]);
        found[0].remove().unwrap();
        assert_eq!(cache.leftovers(Duration::ZERO), []);
    }
}
