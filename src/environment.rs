//! The one place that reads the environment: where caches and databases live, and which NVRTC was asked for.

use std::path::PathBuf;

/// `TILEKILN_CACHE`, or `tilekiln` in the user's cache directory, or in the temporary directory of a user without one.
pub fn cache_dir() -> PathBuf {
    if let Some(dir) = path("TILEKILN_CACHE") {
        return dir;
    }
    let base = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
    base.unwrap_or_else(std::env::temp_dir).join("tilekiln")
}

/// `TILEKILN_DATA`, or `tilekiln` in the user's data directory: winners are no cache.
pub fn data_dir() -> PathBuf {
    if let Some(dir) = path("TILEKILN_DATA") {
        return dir;
    }
    let base = path("XDG_DATA_HOME").or_else(|| path("HOME").map(|home| home.join(".local/share")));
    base.unwrap_or_else(std::env::temp_dir).join("tilekiln")
}

/// `TILEKILN_NVRTC`: the library to use, or the folder that it lies in.
pub fn nvrtc() -> Option<PathBuf> {
    path("TILEKILN_NVRTC")
}

/// `CUDA_HOME` or `CUDA_PATH`: an installed toolkit.
pub fn cuda_home() -> Option<PathBuf> {
    path("CUDA_HOME").or_else(|| path("CUDA_PATH"))
}

/// A variable that holds a path, if it is set and not empty.
fn path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
