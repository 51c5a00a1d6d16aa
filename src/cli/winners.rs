//! What is known about a problem on a GPU: the snapshot and the embedded packs, asked down the ladder.

use std::sync::Arc;

use serde::Serialize;

use super::CliError;
use super::context::Paths;
use super::standing;
use super::voice::talk;
use crate::arch::GpuSpec;
use crate::kernels;
use crate::problem::{Problem, Tile};
use crate::store::{Database, Entry, Found, How, Lookup, Stale, WinnerKey};

/// The winners that a run on one GPU would find.
pub struct Winners {
    gpu: GpuSpec,
    lookup: Lookup,
    nvrtc: Option<String>,
}

/// The tile that is used for a problem, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The problem.
    pub problem: String,
    /// The rung of the ladder and, if it is stale, why: a sentence.
    pub why: String,
    /// Whether the record is to be measured again.
    pub is_stale: bool,
    /// What is launched.
    pub tile: Tile,
    /// Its time for this problem on this GPU, measured, scaled or predicted as `why` says; `None` if it is not known.
    pub us: Option<f64>,
    /// Time at the rates that the GPU reaches on large reads and products.
    pub floor_us: f64,
    /// How much slower the default tile was in the same rounds; `None` where nothing was measured.
    pub gain: Option<f64>,
    /// What is taken if the tile does not compile any more, best first.
    pub runners_up: Vec<RunnerUp>,
    /// What its family would use unasked.
    pub default: Tile,
}

/// A candidate that came close.
#[derive(Clone, Debug, Serialize)]
pub struct RunnerUp {
    /// The tile, as text.
    pub tile: String,
    /// Its time for this problem on this GPU; `None` where it was measured for another.
    pub us: Option<f64>,
}

impl Winners {
    /// Reads what is kept for `gpu`; what cannot be read is a warning.
    pub fn open(paths: &Paths, gpu: GpuSpec) -> Self {
        let (lookup, notes) = Lookup::open(&Database::snapshot_path(&paths.database), gpu.arch);
        notes.iter().for_each(|note| talk(&format!("warning: {note}")));
        // A record that another NVRTC compiled is stale; without an NVRTC nobody can say.
        Self { gpu, lookup, nvrtc: standing::nvrtc(paths) }
    }

    /// The GPU that is meant.
    pub fn gpu(&self) -> &GpuSpec {
        &self.gpu
    }

    /// Winners on this very GPU, in the order of problems.
    pub fn entries(&self) -> Vec<&Entry> {
        let here = self.lookup.entries().iter().filter(|entry| *entry.gpu == self.gpu.identity);
        let mut entries: Vec<&Entry> = here.collect();
        entries.sort_by(|a, b| (&a.problem, &a.layout).cmp(&(&b.problem, &b.layout)));
        entries
    }

    /// Why `entry` is to be measured again, if it is.
    pub fn stale(&self, entry: &Entry) -> Option<Stale> {
        standing::current(self.nvrtc.as_deref(), &self.gpu, |current| entry.stale(current))
    }

    /// Climbs down the ladder for `problem`.
    ///
    /// # Errors
    /// The sentence of a problem that no family serves.
    pub fn ask(&self, problem: &Problem) -> Result<Answer, CliError> {
        let default = kernels::default_tile(problem, &self.gpu).ok_or_else(|| self.unserved(problem))?;
        let layout = problem.layout();
        let key = WinnerKey { layout, problem, gpu: &self.gpu.identity };
        let found = standing::current(self.nvrtc.as_deref(), &self.gpu, |current| {
            self.lookup.find(&key, self.gpu.arch, current, &default)
        });
        Ok(self.answer(problem, &found, default.clone()))
    }

    fn answer(&self, problem: &Problem, found: &Found<'_>, default: Tile) -> Answer {
        let mut why = found.to_string();
        let fits = |tile: &Tile| kernels::plan(problem, tile, &self.gpu).is_ok();
        let tile = found.tiles().find(fits).unwrap_or_else(|| default.clone());
        // A tile of another bucket, or of older rules, may not be one for this problem.
        let is_first = found.entry.is_none_or(|entry| *entry.tile == *tile.to_string());
        if let (false, Some(entry)) = (is_first, found.entry) {
            let next = if entry.tiles().any(|other| other == tile) { "its runner-up" } else { "the default" };
            why.push_str(&format!("; its tile `{}` is not valid here, so {next} is taken", entry.tile));
        }
        let is_own = |entry: &Entry| entry.problem == *problem && *entry.gpu == self.gpu.identity;
        if let Some(entry) = found.entry.filter(|entry| is_first && !is_own(entry)) {
            why.push_str(&format!("; it took {:.2} us there", entry.timing.chained_us));
        }
        // A time of another bucket or another GPU says nothing about this problem's floor.
        let own = found.entry.filter(|entry| is_own(entry));
        let gain = own.filter(|_| is_first && found.how == How::Exact);
        let runners_up = found.entry.into_iter().flat_map(|entry| entry.runners_up.iter());
        let runner_up = |(tile, us): &(Arc<str>, f64)| RunnerUp { tile: tile.to_string(), us: own.map(|_| *us) };
        Answer {
            problem: problem.to_string(),
            why,
            is_stale: found.is_stale(),
            tile,
            us: own.filter(|_| is_first).map(|entry| entry.timing.chained_us),
            floor_us: problem.floor_us(&self.gpu),
            gain: gain.map(|entry| entry.default_us / entry.timing.chained_us),
            runners_up: runners_up.map(runner_up).collect(),
            default,
        }
    }

    fn unserved(&self, problem: &Problem) -> CliError {
        let reasons = kernels::refusals(problem, self.gpu.arch).join("; ");
        let hint = "`autotune show space` says which families serve a problem".to_string();
        CliError::failed(format!("no kernel serves `{problem}` on {}: {reasons}", self.gpu.name), Some(hint))
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { why, tile, us, floor_us, gain, runners_up, default, .. } = self;
        writeln!(f, "  why        {why}")?;
        write!(f, "  tile       {tile}")?;
        if let Some(us) = us {
            write!(f, "  ({us:.2} us, {:.0} % of the floor", 100.0 * floor_us / us)?;
            gain.map_or(Ok(()), |gain| write!(f, ", {gain:.2}x the default"))?;
            f.write_str(")")?;
        }
        for RunnerUp { tile, us } in runners_up {
            write!(f, "\n  runner-up  {tile}")?;
            us.map_or(Ok(()), |us| write!(f, "  ({us:.2} us)"))?;
        }
        write!(f, "\n  default    {default}")
    }
}
