//! Where winners lie: in packs, named one by one or in folders such as `tuning_db/`, in databases and snapshots.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::CliError;
use super::voice::talk;
use crate::store::{Database, DatabaseError, Edits, FileError, Pack, Record, Snapshot, WinnerKey, is_log, is_pack};

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

/// The winners that `path` means: a database's, a snapshot's, or those of packs; each key once, with its best evidence.
///
/// # Errors
/// The sentence of whatever cannot be read.
pub fn winners_at(path: &Path) -> Result<Vec<Record>, CliError> {
    let records = if path.is_dir() && DATABASE_FILES.iter().all(|file| path.join(file).is_file()) {
        database_winners(path)?
    } else if path.extension().is_some_and(|extension| extension == "snapshot") {
        let entries = Snapshot::load(path)?.into_entries();
        entries.iter().filter_map(|entry| entry.record().ok()).collect()
    } else {
        let mut records = Vec::new();
        for path in packs_at(path)? {
            let pack = Pack::read(&path, Edits::Refuse).map_err(|error| CliError::of_pack(&path, &error))?;
            records.extend(pack.into_records());
        }
        records
    };
    let mut best: BTreeMap<String, Record> = BTreeMap::new();
    for record in records {
        let worth = |record: &Record| (record.origin.strength(), record.written_at);
        let key = WinnerKey::of(&record).to_string();
        if best.get(&key).is_none_or(|known| worth(known) < worth(&record)) {
            best.insert(key, record);
        }
    }
    Ok(best.into_values().collect())
}

fn database_winners(path: &Path) -> Result<Vec<Record>, CliError> {
    let (database, recovery) = Database::open_existing(path).map_err(|error| match error {
        DatabaseError::Held { .. } => {
            let snapshot = Database::snapshot_path(path);
            let hint = format!("`{}` holds the winners of the last run, and may be read meanwhile", snapshot.display());
            CliError::failed(error.to_string(), Some(hint))
        }
        other => other.into(),
    })?;
    recovery.iter().for_each(|recovery| talk(&format!("warning: {recovery}")));
    Ok(database.winners()?)
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

/// What a database's folder always holds.
const DATABASE_FILES: [&str; 2] = ["conf", "db"];
