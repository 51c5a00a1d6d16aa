//! Cubins on disk, by the hash of the text: compiled once, by one process, and checked when they are read.
//!
//! A kernel is a folder `<hash>/` with `kernel.cu`, `kernel.ptx` and `kernel.cubin`, built beside and renamed into
//! place. Any fault of the disk is a warning and a compilation: a cache never turns a working launch into a failing
//! one. A planted cubin would run with the user's rights, so the folder is private to the user.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Cubin, Resources, Stop};
use crate::codegen::Source;

/// A directory of compiled kernels.
pub struct KernelCache {
    root: PathBuf,
    warnings: Mutex<Vec<String>>,
    unkept: Mutex<Unkept>,
}

/// What the disk would not take: handed on inside this process, so that nothing is compiled twice in one run.
#[derive(Default)]
struct Unkept {
    cubins: HashMap<String, Cubin>,
    bytes: usize,
    /// Kernels since the first that was warned of.
    more: usize,
    is_told: bool,
}

/// What a cache holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CacheReport {
    /// Kernels.
    pub kernels: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

/// First part of `kernel.cubin`: one line of JSON, then the image.
#[derive(Serialize, Deserialize)]
struct Header {
    entry: String,
    resources: Resources,
    compile_ms: u32,
    nvrtc: String,
    /// blake3 of the image, hex.
    image: String,
}

impl KernelCache {
    /// The cache in `root`, which is made when the first kernel is stored.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), warnings: Mutex::default(), unkept: Mutex::default() }
    }

    /// Where it lies.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The kernel of `source`, if it is there and whole, or could not be kept a moment ago.
    pub fn load(&self, source: &Source) -> Option<Cubin> {
        // What could not be kept was compiled later than a file of another NVRTC that is still there.
        let unkept = self.unkept().cubins.get(&source.hash).cloned();
        unkept.or_else(|| self.load_file(source))
    }

    fn load_file(&self, source: &Source) -> Option<Cubin> {
        let folder = self.root.join(&source.hash);
        let bytes = fs::read(folder.join(CUBIN_FILE)).ok()?;
        // A folder that is being replaced has lost its PTX: that is a miss and no damage.
        let ptx = fs::read_to_string(folder.join(PTX_FILE)).ok()?;
        let cubin = parse(source, &bytes, || Some(ptx));
        if cubin.is_none() {
            self.warn(format!("{} is damaged and will be compiled again", folder.display()));
            let _ = fs::remove_dir_all(&folder);
        }
        cubin
    }

    /// Keeps `cubin`. The first fault becomes a warning, those after it are counted.
    pub fn store(&self, source: &Source, cubin: &Cubin) {
        let Err(error) = self.try_store(source, cubin) else { return };
        let mut unkept = self.unkept();
        match std::mem::replace(&mut unkept.is_told, true) {
            false => self.warn(format!("{} could not be kept in {}: {error}", source.entry, self.root.display())),
            true => unkept.more += 1,
        }
        let bytes = cubin.image.len() + cubin.ptx.len();
        if unkept.bytes + bytes <= MOST_UNKEPT_BYTES && !unkept.cubins.contains_key(&source.hash) {
            unkept.bytes += bytes;
            unkept.cubins.insert(source.hash.clone(), cubin.clone());
        }
    }

    /// Waits until no other process compiles `source`, or until `stop` is due. Without a lock two may compile the same,
    /// which does no harm.
    pub fn lock(&self, source: &Source, stop: &Stop) -> Option<File> {
        let folder = self.root.join(LOCKS);
        private_dir(&folder).ok()?;
        lock_file(&folder.join(&source.hash), stop)
    }

    /// Takes the warnings since the last call.
    pub fn take_warnings(&self) -> Vec<String> {
        let mut warnings = std::mem::take(&mut *self.warnings.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        let more = std::mem::take(&mut self.unkept().more);
        if more > 0 {
            warnings.push(format!("{more} more kernels could not be kept: the next run compiles them again"));
        }
        warnings
    }

    /// Counts what is there.
    pub fn report(&self) -> CacheReport {
        let mut report = CacheReport::default();
        for folder in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let Ok(files) = fs::read_dir(folder.path()) else { continue };
            let bytes: u64 = files.flatten().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum();
            if folder.path().join(CUBIN_FILE).exists() {
                report.kernels += 1;
                report.bytes += bytes;
            }
        }
        report
    }

    fn try_store(&self, source: &Source, cubin: &Cubin) -> io::Result<()> {
        private_dir(&self.root)?;
        let building = tempfile::Builder::new().prefix(".building-").tempdir_in(&self.root)?;
        fs::write(building.path().join("kernel.cu"), &source.text)?;
        fs::write(building.path().join(PTX_FILE), &cubin.ptx)?;
        let header = Header {
            entry: cubin.entry.clone(),
            resources: cubin.resources.clone(),
            compile_ms: cubin.compile_ms,
            nvrtc: cubin.nvrtc.clone(),
            image: blake3::hash(&cubin.image).to_hex().to_string(),
        };
        let mut bytes = serde_json::to_vec(&header)?;
        bytes.push(b'\n');
        bytes.extend_from_slice(&cubin.image);
        fs::write(building.path().join(CUBIN_FILE), bytes)?;
        let folder = self.root.join(&source.hash);
        match fs::rename(building.path(), &folder) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                // Somebody else was first with the same text: theirs is as good, if the same NVRTC compiled it.
                if self.load(source).is_some_and(|kept| kept.nvrtc == cubin.nvrtc) {
                    return Ok(());
                }
                let aside = tempfile::Builder::new().prefix(".building-").tempdir_in(&self.root)?;
                fs::rename(&folder, aside.path().join("old"))?;
                fs::rename(building.path(), &folder)
            }
            other => other,
        }
    }

    fn unkept(&self) -> MutexGuard<'_, Unkept> {
        self.unkept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn warn(&self, warning: String) {
        self.warnings.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(warning);
    }
}

/// The lock on the file at `path`, which is made if it is not there; `None` if it cannot be had before `stop` is due.
pub(super) fn lock_file(path: &Path, stop: &Stop) -> Option<File> {
    let file = File::options().create(true).append(true).open(path).ok()?;
    loop {
        match file.try_lock() {
            Ok(()) => return Some(file),
            Err(TryLockError::WouldBlock) if !stop.is_due() => std::thread::sleep(POLL),
            Err(_) => return None,
        }
    }
}

fn parse(source: &Source, bytes: &[u8], ptx: impl FnOnce() -> Option<String>) -> Option<Cubin> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let header: Header = serde_json::from_slice(&bytes[..end]).ok()?;
    let image = bytes[end + 1..].to_vec();
    let is_whole = header.entry == source.entry && header.image == blake3::hash(&image).to_hex().as_str();
    let Header { entry, resources, compile_ms, nvrtc, .. } = header;
    let hash = source.hash.clone();
    is_whole.then(|| Some(Cubin { entry, hash, image, ptx: ptx()?, resources, compile_ms, nvrtc }))?
}

fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

pub(super) const CUBIN_FILE: &str = "kernel.cubin";
const PTX_FILE: &str = "kernel.ptx";

/// Folder of the locks, one for each kernel.
pub(super) const LOCKS: &str = "locks";

/// Some thousand kernels, far less than a machine that compiles them has.
const MOST_UNKEPT_BYTES: usize = 256 << 20;

/// Short beside a compilation, long beside a look at a lock.
pub(super) const POLL: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> (Source, Cubin) {
        let source = Source { entry: "k", target: "sm_90a".into(), text: "text".into(), hash: "abc".into() };
        let cubin = Cubin {
            entry: "k".into(),
            hash: "abc".into(),
            image: vec![7; 100],
            ptx: "ptx".into(),
            resources: Resources::default(),
            compile_ms: 12,
            nvrtc: "13.2".into(),
        };
        (source, cubin)
    }

    #[test]
    fn what_was_stored_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let cache = KernelCache::new(root.path().join("kernels"));
        let (source, cubin) = kernel();
        assert_eq!(cache.load(&source), None);
        cache.store(&source, &cubin);
        assert_eq!(cache.load(&source), Some(cubin.clone()));
        cache.store(&source, &cubin);
        assert_eq!(cache.report().kernels, 1);
        assert!(cache.take_warnings().is_empty());
    }

    #[test]
    fn every_damaged_byte_is_a_miss_and_a_warning() {
        let root = tempfile::tempdir().unwrap();
        let cache = KernelCache::new(root.path());
        let (source, cubin) = kernel();
        cache.store(&source, &cubin);
        let file = root.path().join("abc").join(CUBIN_FILE);
        let whole = fs::read(&file).unwrap();
        let image_begin = whole.len() - cubin.image.len();
        for at in (0..whole.len()).step_by(7).chain([image_begin, whole.len() - 1]) {
            cache.store(&source, &cubin);
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&file, &bytes).unwrap();
            let loaded = cache.load(&source);
            // A flipped bit in a number of the header does no harm to the image, and only there may it go unnoticed.
            assert!(loaded.is_none_or(|loaded| at < image_begin && loaded.image == cubin.image), "byte {at}");
        }
        cache.store(&source, &cubin);
        fs::write(&file, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(cache.load(&source), None);
        assert!(!cache.take_warnings().is_empty());
    }

    #[test]
    fn a_cache_that_cannot_be_written_warns_once_and_hands_on() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let cache = KernelCache::new(root.path().join("file").join("kernels"));
        let (source, cubin) = kernel();
        cache.store(&source, &cubin);
        assert!(cache.lock(&source, &Stop::default()).is_none());
        assert_eq!(cache.load(&source), Some(cubin.clone()), "handed on in memory");
        let other = Source { hash: "def".into(), ..source };
        assert_eq!(cache.load(&other), None);
        cache.store(&other, &cubin);
        let warnings = cache.take_warnings();
        assert!(warnings[0].starts_with("k could not be kept in "), "{warnings:?}");
        assert_eq!(warnings[1..], ["1 more kernels could not be kept: the next run compiles them again"]);
        assert!(cache.take_warnings().is_empty());
    }
}
