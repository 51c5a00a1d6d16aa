//! `autotune gc`: kernels that no record uses, trials of kernels that are no longer rendered, and leftovers go.
//!
//! Winners are never touched. The database is held meanwhile, so no run of it is in the middle of a search.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::args::CommonArgs;
use super::context::Paths;
use super::standing::spec_of;
use super::table::Table;
use super::upkeep_args::GcArgs;
use super::voice::{answer, talk};
use super::{CliError, Exit, tune};
use crate::codegen;
use crate::dispatch::kernels_hash;
use crate::jit::{KernelCache, leftovers};
use crate::kernels;
use crate::problem::{Problem, Tile};
use crate::store::{Collected, Database, DatabaseError, GpuTrial, Record, embedded};

/// Removes, or says what would be removed.
pub fn run(common: &CommonArgs, args: &GcArgs, paths: &Paths) -> Result<Exit, CliError> {
    let database = match paths.database.exists() {
        true => Some(tune::open_existing_database(paths)?),
        false => None,
    };
    let mut records: Vec<Record> =
        embedded().filter_map(|pack| pack.pack.ok()).flat_map(|pack| pack.into_records()).collect();
    let mut removed = Removed { is_dry_run: args.dry_run, ..Removed::default() };
    if let Some(database) = &database {
        records.extend(database.winners()?);
        let Collected { outdated_trials, bad } = collect(database, args.dry_run)?;
        (removed.trials, removed.bad_values) = (outdated_trials, bad);
        if !args.dry_run && bad > 0 {
            database.write_snapshot()?;
        }
    }
    removed.kernels(&KernelCache::new(&paths.kernels), &used_by(&records), args);
    removed.leftovers(paths, args.dry_run);
    tell_of_damaged(&paths.database);
    answer(common.json, &removed)?;
    Ok(Exit::Done)
}

/// Removes the trials of kernels that are no longer rendered, and values that cannot be used.
fn collect(database: &Database, is_dry_run: bool) -> Result<Collected, DatabaseError> {
    // The trials of a problem under several routings have the same kernels.
    let rendered: RefCell<HashMap<(Problem, Tile, String), String>> = RefCell::default();
    let is_current = |found: &GpuTrial| {
        let Some(gpu) = spec_of(&found.gpu) else { return true };
        let (problem, tile) = (&found.trial.problem, &found.trial.tile);
        let mut rendered = rendered.borrow_mut();
        let now = rendered
            .entry((problem.clone(), tile.clone(), found.gpu.to_string()))
            // A tile that was refused has no kernels, and is remembered as long as it is refused.
            .or_insert_with(|| kernels_hash(problem, tile, &gpu).unwrap_or_default());
        *now == found.trial.toolchain.kernels
    };
    let (trials, _) = database.counts();
    if trials > MANY_TRIALS {
        talk(&format!("rendering the kernels of {trials} trials"));
    }
    if !is_dry_run {
        return database.gc(&is_current);
    }
    let mut outdated_trials = 0;
    for found in database.trials() {
        outdated_trials += u64::from(!is_current(&found?));
    }
    Ok(Collected { outdated_trials, bad: database.verify()?.bad.len() as u64 })
}

/// Hashes of the kernels of `records` and of their runners-up, which stand in where a winner does not compile.
fn used_by(records: &[Record]) -> HashSet<String> {
    let mut used = HashSet::new();
    for record in records {
        let Some(gpu) = spec_of(&record.gpu) else { continue };
        let tiles = std::iter::once(&record.tile).chain(record.runners_up.iter().map(|next| &next.tile));
        for plan in tiles.filter_map(|tile| kernels::plan(&record.problem, tile, &gpu).ok()) {
            let sources = plan.kernels().filter_map(|kernel| codegen::render(kernel, gpu.arch, &gpu.target).ok());
            used.extend(sources.map(|source| source.hash));
        }
    }
    used
}

/// Damaged databases are the user's: nobody else deletes them.
fn tell_of_damaged(database: &Path) {
    let (Some(folder), Some(name)) = (database.parent(), database.file_name()) else { return };
    let prefix = format!("{}.corrupt-", name.to_string_lossy());
    for damaged in leftovers(folder, &[&prefix], Duration::ZERO) {
        talk(&format!(
            "kept: {} ({} bytes), a damaged database that was moved aside",
            damaged.path.display(),
            damaged.bytes
        ));
    }
}

/// What was removed.
#[derive(Default, Serialize)]
struct Removed {
    #[serde(rename = "dry_run")]
    is_dry_run: bool,
    kernels: u64,
    kernel_bytes: u64,
    /// Kernels that stay, and why.
    used: u64,
    recent: u64,
    locked: u64,
    leftovers: u64,
    leftover_bytes: u64,
    trials: u64,
    bad_values: u64,
}

impl Removed {
    fn kernels(&mut self, cache: &KernelCache, used: &HashSet<String>, args: &GcArgs) {
        for kernel in cache.kernels() {
            if used.contains(&kernel.hash) {
                self.used += 1;
                continue;
            }
            // A clock that went back makes a kernel of the future, which is recent.
            if kernel.last_used.elapsed().map_or(true, |elapsed| elapsed < args.older_than) {
                self.recent += 1;
                continue;
            }
            match if args.dry_run { Ok(true) } else { cache.remove(&kernel) } {
                Ok(true) => (self.kernels, self.kernel_bytes) = (self.kernels + 1, self.kernel_bytes + kernel.bytes),
                Ok(false) => self.locked += 1,
                Err(error) => talk(&format!("warning: kernel {} stays ({error})", kernel.hash)),
            }
        }
    }

    fn leftovers(&mut self, paths: &Paths, is_dry_run: bool) {
        let mut found = KernelCache::new(&paths.kernels).leftovers(LEFT_BEHIND);
        found.extend(leftovers(&paths.search.cache, &[".fetching-"], LEFT_BEHIND));
        let folder = paths.database.parent().unwrap_or(Path::new("."));
        found.extend(leftovers(folder, &[".tilekiln-"], LEFT_BEHIND));
        for leftover in found {
            if !is_dry_run && let Err(error) = leftover.remove() {
                talk(&format!("warning: {} stays ({error})", leftover.path.display()));
                continue;
            }
            (self.leftovers, self.leftover_bytes) = (self.leftovers + 1, self.leftover_bytes + leftover.bytes);
        }
    }
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let removed = if self.is_dry_run { ">would go" } else { ">removed" };
        let mut table = Table::new(["what", removed, ">bytes", "stays"]);
        let Self { used, recent, locked, .. } = self;
        let stays = format!("{used} of records, {recent} recent, {locked} locked");
        for (what, count, bytes, stays) in [
            ("kernels", self.kernels, self.kernel_bytes.to_string(), stays),
            ("leftovers", self.leftovers, self.leftover_bytes.to_string(), String::new()),
            ("outdated trials", self.trials, String::new(), "every winner".to_string()),
            ("bad values", self.bad_values, String::new(), String::new()),
        ] {
            table.row([what.to_string(), count.to_string(), bytes, stays]);
        }
        table.fmt(f)
    }
}

/// A compilation has a minute and a fetch takes seconds: what is older was left behind.
const LEFT_BEHIND: Duration = Duration::from_secs(3600);

/// So many take a second or more to render.
const MANY_TRIALS: u64 = 5_000;
