//! Where packs lie: named one by one, or in folders such as `tuning_db/`.

use std::fs;
use std::path::{Path, PathBuf};

use super::CliError;
use crate::store::FileError;

/// The packs that `path` means: itself, or every pack below it, by name.
///
/// # Errors
/// The sentence of a path that cannot be read, or of a folder without a pack.
pub fn packs_at(path: &Path) -> Result<Vec<PathBuf>, CliError> {
    if !path.is_dir() {
        return Ok(if is_log(path) { Vec::new() } else { vec![path.to_path_buf()] });
    }
    let packs: Vec<PathBuf> = files_below(path)?.into_iter().filter(|path| is_pack(path)).collect();
    if packs.is_empty() {
        let sentence = format!("expected packs in `{}`, found none", path.display());
        return Err(CliError::failed(
            sentence,
            Some("a pack is a .toml file that `autotune export` wrote".to_string()),
        ));
    }
    Ok(packs)
}

/// The trial logs that `path` means: itself, or every log below it, by name.
pub fn logs_at(path: &Path) -> Result<Vec<PathBuf>, CliError> {
    let files = if path.is_dir() { files_below(path)? } else { vec![path.to_path_buf()] };
    Ok(files.into_iter().filter(|path| is_log(path)).collect())
}

/// Every file below `folder`, by path.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>, CliError> {
    let fault = |error: std::io::Error| CliError::from(FileError::new(folder, "read", &error));
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        match path.is_dir() {
            true => found.extend(files_below(&path)?),
            false => found.push(path),
        }
    }
    found.sort();
    Ok(found)
}

/// `gpu.toml` lies beside packs and is none.
fn is_pack(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "toml") && !path.ends_with("gpu.toml")
}

fn is_log(path: &Path) -> bool {
    path.to_string_lossy().ends_with(LOG_ENDING)
}

/// How the name of a trial log ends.
pub const LOG_ENDING: &str = ".trials.gz";
