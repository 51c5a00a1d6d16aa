//! Where NVRTC is: named, fetched before, installed, or fetched now.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::cache::lock_file;
use super::{JitError, Nvrtc, Stop};
use crate::environment;

/// The version that is fetched, and that committed packs were measured with.
///
/// Its wheel has 47 MB, it knows every target of `templates/arch/`, and its cubins load on driver 580.
pub const PINNED_VERSION: &str = "13.2.86";

/// How to look for NVRTC, and whether it may be fetched.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// The library or its folder, if the user named one: nothing else is tried then.
    pub named: Option<PathBuf>,
    /// Whether the network is off limits.
    pub is_offline: bool,
    /// Where a fetched version is kept: `<cache>/nvrtc/<version>/`.
    pub cache: PathBuf,
    /// Told about a fetch, which takes seconds.
    pub on_progress: Option<fn(&str)>,
    /// Ends a fetch, and every compilation with what was found.
    pub stop: Stop,
}

/// Which rung of the ladder NVRTC was found on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundIn {
    /// `--nvrtc` or `TILEKILN_NVRTC`.
    Named,
    /// The pinned version in our own cache.
    Cache,
    /// The loader's default path.
    Loader,
    /// `CUDA_HOME`.
    CudaHome,
    /// The running Python's site packages.
    Python,
}

impl Search {
    /// The search that the environment asks for: `TILEKILN_NVRTC` if it is set, our cache directory.
    pub fn from_environment() -> Self {
        Self { named: environment::nvrtc(), cache: environment::cache_dir().join("nvrtc"), ..Self::default() }
    }

    /// Finds NVRTC, fetching the pinned version if there is none and it may.
    ///
    /// # Errors
    /// [`JitError::NoNvrtc`] says where was looked; [`JitError::NotNvrtc`] if a named path is something else;
    /// [`JitError::Stopped`].
    pub fn load(&self) -> Result<Nvrtc, JitError> {
        if let Some((nvrtc, _)) = self.find()? {
            return Ok(nvrtc);
        }
        if self.is_offline {
            let tried = "not in the cache, the loader's path, CUDA_HOME or Python, and `--offline` forbids to fetch it";
            return Err(JitError::NoNvrtc { tried: tried.to_string() });
        }
        let library = self.fetch().map_err(|tried| match self.stop.is_due() {
            true => JitError::Stopped(format!("NVRTC {PINNED_VERSION} was fetched")),
            false => JitError::NoNvrtc { tried },
        })?;
        Ok(Nvrtc::load(&library)?.stopped_by(&self.stop))
    }

    /// The NVRTC that is named, or the first that loads; nothing is fetched.
    ///
    /// # Errors
    /// [`JitError::NotNvrtc`] if a named path is something else.
    pub fn find(&self) -> Result<Option<(Nvrtc, FoundIn)>, JitError> {
        let found = match &self.named {
            Some(named) => Some((Nvrtc::load(&library_in(named).unwrap_or_else(|| named.clone()))?, FoundIn::Named)),
            None => self.find_installed(),
        };
        Ok(found.map(|(nvrtc, found_in)| (nvrtc.stopped_by(&self.stop), found_in)))
    }

    fn find_installed(&self) -> Option<(Nvrtc, FoundIn)> {
        let candidates = [
            (library_in(&self.pinned_dir()), FoundIn::Cache),
            (Some(PathBuf::from("libnvrtc.so.13")), FoundIn::Loader),
            (environment::cuda_home().and_then(|home| library_in(&home.join("lib64"))), FoundIn::CudaHome),
        ];
        let found =
            candidates.into_iter().find_map(|(library, found_in)| Some((Nvrtc::load(&library?).ok()?, found_in)));
        // Asking Python costs a process, so it comes last.
        found.or_else(|| Some((Nvrtc::load(&library_in(&python_library_dir()?)?).ok()?, FoundIn::Python)))
    }

    fn pinned_dir(&self) -> PathBuf {
        self.cache.join(PINNED_VERSION)
    }

    /// Fetches the pinned wheel with pip into the cache, and gives the path of the library.
    fn fetch(&self) -> Result<PathBuf, String> {
        let say = |text: &str| {
            if let Some(on_progress) = self.on_progress {
                on_progress(text);
            }
        };
        let started = Instant::now();
        std::fs::create_dir_all(&self.cache).map_err(|error| format!("{}: {error}", self.cache.display()))?;
        // One process fetches, the others wait for it and find its copy.
        let _lock = lock_file(&self.cache.join(".lock"), &self.stop);
        if let Some(library) = library_in(&self.pinned_dir()) {
            return Ok(library);
        }
        say(&format!("fetching NVRTC {PINNED_VERSION} (47 MB) with `python3 -m pip download nvidia-cuda-nvrtc`"));
        let building = tempfile::Builder::new().prefix(".fetching-").tempdir_in(&self.cache);
        let building = building.map_err(|error| format!("{}: {error}", self.cache.display()))?;
        let requirement = format!("nvidia-cuda-nvrtc=={PINNED_VERSION}");
        let quiet =
            ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"];
        python(building.path(), &[&quiet[..], &["--dest", ".", &requirement]].concat(), &self.stop)?;
        let wheel = find_file(building.path(), |name| name.ends_with(".whl")).ok_or("pip downloaded no wheel")?;
        python(building.path(), &["-m", "zipfile", "-e", &wheel.to_string_lossy(), "wheel"], &self.stop)?;
        let libraries = building.path().join("wheel/nvidia/cu13/lib");
        if library_in(&libraries).is_none() {
            return Err(format!("{requirement} holds no nvidia/cu13/lib/libnvrtc.so"));
        }
        let to = self.pinned_dir();
        // Where files cannot be locked another process may have been first; then its copy is used.
        if let Err(error) = std::fs::rename(&libraries, &to)
            && library_in(&to).is_none()
        {
            return Err(format!("{}: {error}", to.display()));
        }
        say(&format!("NVRTC {PINNED_VERSION} is in {} ({:.1} s)", to.display(), started.elapsed().as_secs_f64()));
        library_in(&to).ok_or_else(|| format!("{} holds no libnvrtc.so", to.display()))
    }
}

/// Runs python3 until `stop` is due; its last words are the error.
fn python(dir: &Path, arguments: &[&str], stop: &Stop) -> Result<String, String> {
    let mut command = Command::new("python3");
    command.args(arguments).current_dir(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("python3 could not be started ({error})"))?;
    // What it says is a few lines, which the pipes hold until it has ended.
    while child.try_wait().is_ok_and(|status| status.is_none()) {
        if stop.is_due() {
            let _ = child.kill();
        }
        std::thread::sleep(POLL);
    }
    let output = child.wait_with_output().map_err(|error| format!("python3 was lost ({error})"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_string());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message").trim();
    Err(format!("`python3 {}` failed: {last}", arguments.join(" ")))
}

/// `nvidia/cu13/lib` of the running Python.
fn python_library_dir() -> Option<PathBuf> {
    let script = "import sysconfig; print(sysconfig.get_paths()['platlib'])";
    let packages = python(Path::new("."), &["-c", script], &Stop::default()).ok()?;
    Some(PathBuf::from(packages).join("nvidia/cu13/lib"))
}

/// `libnvrtc.so.*` in `dir`, or `dir` itself if it is a file.
fn library_in(dir: &Path) -> Option<PathBuf> {
    if dir.is_file() {
        return Some(dir.to_path_buf());
    }
    find_file(dir, |name| name.starts_with("libnvrtc.so") && !name.contains(".alt."))
}

/// The first file of `dir`, by name, that `is_wanted`.
fn find_file(dir: &Path, is_wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
    entries.filter(|path| path.file_name().is_some_and(|name| is_wanted(&name.to_string_lossy()))).min()
}

const POLL: Duration = Duration::from_millis(20);
