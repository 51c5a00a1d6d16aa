//! What is kept: the database, the snapshot beside it, and the packs inside the binary.

use rustix::fs::{Access, access};

use super::check::Check;
use crate::arch::{GpuIdentity, GpuSpec};
use crate::cli::context::Paths;
use crate::cli::standing::{Standing, standing};
use crate::store::{Database, Examined, Record, Snapshot, embedded_for};

/// The database: whether a run could open it, and how much is in it.
pub fn database(paths: &Paths) -> Option<Check> {
    let path = &paths.database;
    let says = |what: String| format!("{}: {what}", path.display());
    Some(match Database::examine(path) {
        Ok(Examined::Missing) => {
            let there = path.ancestors().skip(1).find(|folder| folder.exists())?;
            match access(there, Access::WRITE_OK | Access::EXEC_OK) {
                Ok(()) => Check::ok("database", says("none yet; the first run makes it".to_string())),
                Err(_) => {
                    let what = format!("none yet, and `{}` cannot be written", there.display());
                    Check::error("database", says(what), "`--db` or TILEKILN_DATA name a place that you may write to")
                }
            }
        }
        Ok(Examined::Held { pid }) => {
            let holder = pid.map_or("a process".to_string(), |pid| format!("process {pid}"));
            Check::ok("database", says(format!("{holder} is at work in it, so it was not looked into")))
        }
        Ok(Examined::Sound { trials, winners }) if access(path, Access::WRITE_OK).is_ok() => {
            Check::ok("database", says(format!("{trials} trials, {winners} winners")))
        }
        Ok(Examined::Sound { trials, winners }) => {
            let says = says(format!("{trials} trials, {winners} winners, and it cannot be written"));
            Check::error("database", says, "winners are still read; to tune, name another with `--db`")
        }
        Ok(Examined::Damaged { found }) => {
            let hint = "the next run that opens it mends what can be mended, and keeps the damaged files";
            Check::error("database", says(format!("damaged ({found})")), hint)
        }
        Err(error) => Check::error("database", error.to_string(), error.hint()),
    })
}

/// The snapshot: what runners read.
pub fn snapshot(paths: &Paths, gpu: &GpuSpec, nvrtc: Option<&str>) -> Check {
    let path = Database::snapshot_path(&paths.database);
    match Snapshot::load(&path) {
        Ok(snapshot) => {
            let records: Vec<Record> = snapshot.entries().iter().filter_map(|entry| entry.record().ok()).collect();
            told("snapshot", &path.display().to_string(), Told::of(&records, &gpu.identity, nvrtc), gpu)
        }
        Err(error) if error.is_missing() => Check::ok("snapshot", format!("{}: none yet", path.display())),
        Err(error) => Check::error("snapshot", error.to_string(), error.hint()),
    }
}

/// The embedded packs whose winners may be used on `gpu`.
pub fn packs(gpu: &GpuSpec, nvrtc: Option<&str>) -> Check {
    let mut records = Vec::new();
    let mut names = Vec::new();
    for embedded in embedded_for(gpu.arch) {
        match embedded.pack {
            Ok(pack) => records.extend(pack.into_records()),
            Err(error) => return Check::error("packs", format!("{}: {error}", embedded.name), error.hint()),
        }
        names.push(embedded.name);
    }
    match names.len() {
        0 => Check::ok("packs", format!("none are embedded for {}", gpu.arch.name)),
        n => told("packs", &format!("{n} for {}", gpu.arch.name), Told::of(&records, &gpu.identity, nvrtc), gpu),
    }
}

/// Counts of winners.
struct Told {
    all: usize,
    /// Of the GPU that is meant.
    here: usize,
    stale: usize,
    broken: usize,
}

impl Told {
    fn of(records: &[Record], gpu: &GpuIdentity, nvrtc: Option<&str>) -> Self {
        let here: Vec<&Record> = records.iter().filter(|record| record.gpu == *gpu).collect();
        let standings: Vec<Standing> = here.iter().map(|record| standing(record, nvrtc)).collect();
        let count = |is: fn(&Standing) -> bool| standings.iter().filter(|standing| is(standing)).count();
        Self {
            all: records.len(),
            here: here.len(),
            stale: count(|standing| matches!(standing, Standing::Stale(_))),
            broken: count(|standing| matches!(standing, Standing::Broken(_))),
        }
    }
}

fn told(thing: &'static str, place: &str, Told { all, here, stale, broken }: Told, gpu: &GpuSpec) -> Check {
    let says = format!("{place}: {all} winners, {here} of {}, {stale} stale, {broken} no tiles any more", gpu.name);
    match (stale, broken) {
        (0, 0) => Check::ok(thing, format!("{place}: {all} winners, {here} of {}", gpu.name)),
        (_, 0) => Check::warning(thing, says, "`autotune` measures them again; until then they are used as they are"),
        _ => Check::warning(thing, says, "`autotune` measures them again; until then runners-up or defaults stand in"),
    }
}
