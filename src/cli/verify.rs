//! `autotune verify`: whether packs, logs and the snapshot are whole, and whether their tiles are still tiles.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::args::CommonArgs;
use super::context::Paths;
use super::standing::{self, Standing};
use super::table::Table;
use super::upkeep_args::VerifyArgs;
use super::voice::{answer, talk};
use super::{CliError, Exit, place};
use crate::arch::GpuSpec;
use crate::store::{Database, Edits, Pack, PackError, Record, Snapshot, TrialLog, embedded};

/// Checks what is asked for; a failure if anything is broken.
pub fn run(common: &CommonArgs, args: &VerifyArgs, paths: &Paths) -> Result<Exit, CliError> {
    let nvrtc = standing::nvrtc(paths);
    let mut verified = Verified(Vec::new());
    if args.paths.is_empty() {
        let packs = embedded().map(|embedded| Checked::pack(embedded.name, embedded.pack, nvrtc.as_deref()));
        verified.0.extend(packs);
        verified.0.extend(Checked::snapshot(&Database::snapshot_path(&paths.database), nvrtc.as_deref()));
    }
    for path in &args.paths {
        let logs = place::logs_at(path)?;
        // A folder may hold logs alone.
        let packs = if logs.is_empty() { place::packs_at(path)? } else { place::packs_at(path).unwrap_or_default() };
        for pack in packs {
            verified.0.push(Checked::file(&pack, nvrtc.as_deref()));
        }
        verified.0.extend(logs.iter().map(|log| Checked::log(log)));
    }
    if verified.0.is_empty() {
        talk("no packs are embedded and no snapshot was written yet: nothing to verify");
    }
    answer(common.json, &verified)?;
    match verified.0.iter().map(|checked| checked.broken.len()).sum::<usize>() {
        0 => Ok(Exit::Done),
        n => {
            let hint = "restore a pack from version control, or tune again and `autotune export`".to_string();
            Err(CliError::failed(format!("expected everything to be sound, found {n} broken"), Some(hint)))
        }
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Verified(Vec<Checked>);

/// One file, and what is wrong with it.
#[derive(Default, Serialize)]
struct Checked {
    name: String,
    winners: usize,
    trials: usize,
    /// To be looked at before it is used: each a sentence.
    broken: Vec<String>,
    /// Still used, and to be measured again.
    stale: Vec<String>,
    /// Winners of GPUs that this version has no facts of, so that nothing can be said of their tiles.
    unknown: usize,
}

impl Checked {
    fn file(path: &Path, nvrtc: Option<&str>) -> Self {
        let pack = Pack::read(path, Edits::Refuse).and_then(|pack| match expected_gpu(path) {
            Some(gpu) if gpu.identity != *pack.gpu() => {
                Err(PackError::OtherGpu { expected: gpu.identity.to_string(), found: pack.gpu().to_string() })
            }
            _ => Ok(pack),
        });
        Self::pack(path.display().to_string(), pack, nvrtc)
    }

    fn pack(name: String, pack: Result<Pack, PackError>, nvrtc: Option<&str>) -> Self {
        let mut checked = Self { name, ..Self::default() };
        match pack {
            Ok(pack) => {
                checked.broken.extend(pack.verify().iter().map(ToString::to_string));
                checked.records(pack.records(), nvrtc);
            }
            Err(error) => checked.broken.push(error.to_string()),
        }
        checked
    }

    /// `None` where nobody has tuned yet.
    fn snapshot(path: &Path, nvrtc: Option<&str>) -> Option<Self> {
        let mut checked = Self { name: path.display().to_string(), ..Self::default() };
        match Snapshot::load(path) {
            Ok(snapshot) => {
                let records: Result<Vec<Record>, _> = snapshot.entries().iter().map(|entry| entry.record()).collect();
                match records {
                    Ok(records) => checked.records(&records, nvrtc),
                    Err(error) => checked.broken.push(error.to_string()),
                }
            }
            Err(error) if error.is_missing() => return None,
            Err(error) => checked.broken.push(error.to_string()),
        }
        Some(checked)
    }

    fn log(path: &Path) -> Self {
        let mut checked = Self { name: path.display().to_string(), ..Self::default() };
        match TrialLog::read(path) {
            Ok(log) => checked.trials = log.problems.iter().map(|(_, trials)| trials.len()).sum(),
            Err(error) => checked.broken.push(error.to_string()),
        }
        checked
    }

    fn records(&mut self, records: &[Record], nvrtc: Option<&str>) {
        self.winners = records.len();
        for record in records {
            let say = |sentence: String| format!("`{}`: {sentence}", record.problem);
            match standing::standing(record, nvrtc) {
                Standing::Current => {}
                Standing::Stale(why) => self.stale.push(say(why)),
                Standing::Broken(why) => self.broken.push(say(why)),
                Standing::Unknown => self.unknown += 1,
            }
        }
    }
}

/// The GPU whose folder of `tuning_db/` a pack lies in.
fn expected_gpu(path: &Path) -> Option<&'static GpuSpec> {
    let folder = path.parent()?.file_name()?;
    GpuSpec::all().iter().find(|gpu| *gpu.name == *folder)
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["file", ">winners", ">trials", ">broken", ">stale", ">unknown GPU"]);
        for Checked { name, winners, trials, broken, stale, unknown } in &self.0 {
            let [winners, trials, broken, stale, unknown] =
                [*winners, *trials, broken.len(), stale.len(), *unknown].map(|n| n.to_string());
            table.row([name.clone(), winners, trials, broken, stale, unknown]);
        }
        table.fmt(f)?;
        for Checked { name, broken, .. } in &self.0 {
            broken.iter().try_for_each(|sentence| writeln!(f, "broken: {name}: {sentence}"))?;
        }
        Ok(())
    }
}
