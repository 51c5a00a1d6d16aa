//! Source to cubin, with no GPU, driver or toolkit: NVRTC, found or fetched, and a cache that compiles each text once.
//!
//! A cubin comes with the PTX of the same compilation and with what it needs (registers, spills, shared memory). PTX is
//! never loaded: a cubin of a newer NVRTC runs on an older driver of the same major version, PTX does not.

mod cache;
mod library;
mod nvrtc;
mod resources;
mod stop;
mod sweep;
mod turns;

pub use cache::{CacheReport, KernelCache};
pub use library::{FoundIn, PINNED_VERSION, Search};
pub use nvrtc::Nvrtc;
pub use resources::Resources;
pub use stop::Stop;
pub use sweep::{CachedKernel, Leftover, leftovers};

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::codegen::Source;

/// A compiled kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cubin {
    /// Entry point.
    pub entry: String,
    /// Hash of the source that it came from.
    pub hash: String,
    /// The ELF image that the driver loads.
    pub image: Vec<u8>,
    /// The PTX of the same compilation.
    pub ptx: String,
    /// What it needs.
    pub resources: Resources,
    /// How long NVRTC took, milliseconds; of the compilation, not of a cache hit.
    pub compile_ms: u32,
    /// Version of NVRTC, such as `13.2`.
    pub nvrtc: String,
}

/// Why there is no cubin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JitError {
    /// NVRTC is nowhere, and may not or could not be fetched.
    #[error("expected NVRTC ({PINNED_VERSION} is the pinned version), found none: {tried}")]
    NoNvrtc {
        /// Where was looked, and why fetching failed.
        tried: String,
    },
    /// A library that is no NVRTC, or cannot be loaded.
    #[error("expected NVRTC at {}, found {found}", path.display())]
    NotNvrtc {
        /// The path.
        path: PathBuf,
        /// The loader's message.
        found: String,
    },
    /// NVRTC does not know the target.
    #[error("{target} needs an NVRTC that supports it, found {version}, which knows {known}")]
    TooOld {
        /// The target asked for.
        target: String,
        /// Version found.
        version: String,
        /// Targets it lists.
        known: String,
    },
    /// NVRTC refused the text.
    #[error("`{entry}` does not compile for {target}: {}", first_error(log))]
    Refused {
        /// Entry point.
        entry: String,
        /// Target.
        target: String,
        /// NVRTC's whole log.
        log: String,
    },
    /// Compilation took longer than it may.
    #[error("`{entry}` compiles for more than {} s", limit.as_secs_f64())]
    TimedOut {
        /// Entry point.
        entry: String,
        /// The limit.
        limit: Duration,
    },
    /// NVRTC said yes and gave nothing.
    #[error("NVRTC gave a cubin of {bytes} bytes for `{entry}` on {target}")]
    Empty {
        /// Entry point.
        entry: String,
        /// Target.
        target: String,
        /// Size of the image.
        bytes: usize,
    },
    /// [`Stop`] was asked for.
    #[error("stopped before {0}")]
    Stopped(String),
    /// A call of NVRTC failed that does not fail.
    #[error("NVRTC's {call} failed with code {code}")]
    Call {
        /// Name of the function.
        call: &'static str,
        /// NVRTC's result.
        code: i32,
    },
}

impl JitError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoNvrtc { .. } => {
                Some("pass `--nvrtc PATH`, set TILEKILN_NVRTC, or run once with network and python3, which fetch it")
            }
            Self::NotNvrtc { .. } => Some("give the path of libnvrtc.so, or of the folder that it lies in"),
            Self::TooOld { .. } => Some("leave `--nvrtc` and TILEKILN_NVRTC out to use the pinned version"),
            Self::Refused { .. } => Some("`autotune render` shows the text; report a tile that a rule should refuse"),
            Self::TimedOut { .. } => Some("the candidate is recorded and left out; the run goes on"),
            Self::Stopped(_) => Some("the same command goes on where this one stopped"),
            Self::Empty { .. } | Self::Call { .. } => Some("`autotune doctor` shows which NVRTC is in use"),
        }
    }
}

/// The first line of a log that says `error`, or its first line.
fn first_error(log: &str) -> String {
    let line = log.lines().find(|line| line.contains("error")).or_else(|| log.lines().next());
    line.unwrap_or("no message").trim().to_string()
}

/// Compiles sources through a cache. Shared by threads: NVRTC compiles in parallel.
pub struct Jit {
    nvrtc: NvrtcSource,
    cache: KernelCache,
    turns: turns::Turns,
    limit: Duration,
    /// Whether only cubins of the NVRTC at hand will do.
    is_measuring: bool,
}

/// NVRTC is loaded when the first compilation needs it: a warm cache does not.
struct NvrtcSource {
    search: Search,
    loaded: OnceLock<Result<Nvrtc, JitError>>,
}

/// Where a cubin came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CameFrom {
    /// The cache on disk.
    Cache,
    /// A compilation in this process.
    Compilation,
}

impl Jit {
    /// A compiler that looks for NVRTC as `search` says, when it is first needed, and keeps cubins in `cache`.
    pub fn new(search: Search, cache: KernelCache) -> Self {
        let nvrtc = NvrtcSource { search, loaded: OnceLock::new() };
        Self { nvrtc, cache, turns: turns::Turns::default(), limit: COMPILE_LIMIT, is_measuring: false }
    }

    /// The same for measuring: a cubin of another NVRTC is compiled again, because a record names the one at hand.
    pub fn measuring(self) -> Self {
        Self { is_measuring: true, ..self }
    }

    fn cached(&self, source: &Source) -> Result<Option<Cubin>, JitError> {
        match self.cache.load(source) {
            Some(cubin) if self.is_measuring && cubin.nvrtc != self.nvrtc()?.version() => Ok(None),
            cubin => Ok(cubin),
        }
    }

    /// Compiles `source`, or takes it from the cache.
    ///
    /// # Errors
    /// [`JitError`] if there is no NVRTC, it does not know the target, it refuses the text, or it was stopped.
    pub fn compile(&self, source: &Source) -> Result<(Cubin, CameFrom), JitError> {
        if let Some(cubin) = self.cached(source)? {
            return Ok((cubin, CameFrom::Cache));
        }
        // One thread of one process compiles, the others wait for it and find the result.
        let _turn = self.turns.take(&source.hash, self.stop());
        let _lock = self.cache.lock(source, self.stop());
        if let Some(cubin) = self.cached(source)? {
            return Ok((cubin, CameFrom::Cache));
        }
        if self.stop().is_due() {
            return Err(JitError::Stopped(format!("`{}` was compiled", source.entry)));
        }
        let cubin = self.nvrtc()?.compile(source, self.limit)?;
        self.cache.store(source, &cubin);
        Ok((cubin, CameFrom::Compilation))
    }

    /// Compiles `sources` on `n_threads` threads, and gives what became of each, in their order.
    pub fn compile_all(&self, sources: &[Source], n_threads: usize) -> Vec<Result<(Cubin, CameFrom), JitError>> {
        let next = AtomicUsize::new(0);
        let compiled: Vec<_> = sources.iter().map(|_| OnceLock::new()).collect();
        let work = || {
            while let Some((source, compiled)) = {
                let idx = next.fetch_add(1, Ordering::Relaxed);
                sources.get(idx).zip(compiled.get(idx))
            } {
                let _ = compiled.set(self.compile(source));
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..n_threads.clamp(1, sources.len().max(1)) {
                scope.spawn(work);
            }
            work();
        });
        let compiled = compiled.into_iter().map(OnceLock::into_inner);
        compiled.map(|compiled| compiled.expect("the threads have ended, and took every source")).collect()
    }

    /// NVRTC, loaded now if it was not before.
    ///
    /// # Errors
    /// [`JitError::NoNvrtc`], [`JitError::NotNvrtc`], and [`JitError::Stopped`] while it was fetched.
    pub fn nvrtc(&self) -> Result<&Nvrtc, JitError> {
        self.nvrtc.loaded.get_or_init(|| self.nvrtc.search.load()).as_ref().map_err(JitError::clone)
    }

    /// Stops every compilation and fetch of this compiler, or of all that share its [`Search::stop`].
    pub fn stop(&self) -> &Stop {
        &self.nvrtc.search.stop
    }

    /// The cache that cubins are kept in.
    pub fn cache(&self) -> &KernelCache {
        &self.cache
    }
}

/// No kernel of ours takes a tenth of this.
const COMPILE_LIMIT: Duration = Duration::from_secs(60);
