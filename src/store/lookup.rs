//! From a problem to a tile: the ladder from a winner measured right here down to the family's default.
//!
//! ```text
//! exact         measured on this GPU for this bucket
//! other bucket  measured on this GPU for another m of the same op: marked inherited, or the nearest above, then below
//! borrowed      measured on another GPU of the same architecture; never across architectures
//! predicted     the cost model's choice for this GPU and bucket
//! default       the family's own
//! ```
//! Climbing down is for `prepare` and `show --why`. On the hot path stands [`Lookup::get`]: one hash map, no lock, no
//! allocation.

use std::path::Path;

use super::key::KeyMap;
use super::pack::{self, Embedded};
use super::{Entry, Interner, KeyHash, Origin, PackError, Snapshot, SnapshotError, WinnerKey};
use crate::arch::{ArchSpec, GpuIdentity, GpuSpec};
use crate::problem::{Problem, Tile};

/// Winners from several sources, by key.
#[derive(Clone, Debug, Default)]
pub struct Lookup {
    entries: Vec<Entry>,
    idx_of: KeyMap<u32>,
}

/// A source that added nothing, or less than it holds. To be shown, not to be stopped by.
#[derive(Clone, Debug, PartialEq)]
pub enum LookupNote {
    /// The snapshot was not read.
    Snapshot(SnapshotError),
    /// An embedded pack was not read.
    Pack {
        /// Its path in `tuning_db/`.
        name: String,
        /// Why not.
        error: PackError,
    },
}

impl std::fmt::Display for LookupNote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Snapshot(error) => error.fmt(f),
            Self::Pack { name, error } => write!(f, "embedded pack `{name}`: {error}"),
        }
    }
}

/// What the running tilekiln makes of a tile on this GPU, to tell winners that are stale or serve another problem only.
#[derive(Clone, Copy)]
pub struct Current<'a> {
    /// NVRTC's version, such as `13.2`; `None` where there is no NVRTC to compare with.
    pub nvrtc: Option<&'a str>,
    /// Hash of the kernels that a tile renders to for a problem; `None` for a tile that is not valid for it.
    pub kernels: &'a dyn Fn(&Problem, &Tile) -> Option<String>,
    /// Whether a tile may be launched for a problem.
    pub is_valid: &'a dyn Fn(&Problem, &Tile) -> bool,
}

/// The answer to a lookup.
#[derive(Clone, Debug, PartialEq)]
pub struct Found<'a> {
    /// The winner; `None` when only the default is left.
    pub entry: Option<&'a Entry>,
    /// The rung that it stands on.
    pub how: How,
    /// Why it is to be measured again, if it is. It is used all the same.
    pub stale: Option<Stale>,
    default: &'a Tile,
}

/// The rung of the ladder that an answer stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// Measured on this GPU for this bucket.
    Exact,
    /// Measured on this GPU for another bucket of the op.
    OtherBucket {
        /// That bucket.
        m: u32,
    },
    /// Measured on another GPU of the architecture.
    Borrowed {
        /// That GPU.
        gpu: GpuIdentity,
    },
    /// The cost model's choice.
    Predicted,
    /// The family's default.
    Default,
}

/// What changed since a winner was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stale {
    /// The text of its kernels.
    Kernels,
    /// The compiler.
    Nvrtc {
        /// The version then.
        then: String,
        /// The version now.
        now: String,
    },
}

impl Stale {
    /// Why what was measured with the compiler `then` is stale with `now`; patch releases are not told apart.
    pub fn of_compiler(then: &str, now: &str) -> Option<Self> {
        let (then, now) = (minor_of(then), minor_of(now));
        (then != now).then(|| Self::Nvrtc { then: then.to_string(), now: now.to_string() })
    }
}

impl Lookup {
    /// The winners of all `entries`. Of two with one key the better evidence counts, and of equal evidence the
    /// earlier: put the user's own measurements before packs.
    pub fn new(entries: impl IntoIterator<Item = Entry>) -> Self {
        let mut lookup = Self::default();
        for entry in entries {
            match lookup.idx_of.get(&entry.key) {
                Some(&idx) => {
                    let known = &mut lookup.entries[idx as usize];
                    if entry.origin.strength() > known.origin.strength() {
                        *known = entry;
                    }
                }
                None => {
                    lookup.idx_of.insert(entry.key, lookup.entries.len() as u32);
                    lookup.entries.push(entry);
                }
            }
        }
        lookup
    }

    /// The winners of the snapshot at `path`, then those of the embedded packs for GPUs of `arch`. A missing snapshot
    /// is no fault: nobody has tuned here yet.
    pub fn open(path: &Path, arch: &ArchSpec) -> (Self, Vec<LookupNote>) {
        let (snapshot, fault) = Snapshot::load_or_empty(path);
        let mut notes: Vec<LookupNote> =
            fault.filter(|fault| !fault.is_missing()).map(LookupNote::Snapshot).into_iter().collect();
        let mut interner = Interner::default();
        let mut entries = snapshot.into_entries();
        for Embedded { name, pack, .. } in pack::embedded_for(arch) {
            match pack {
                Ok(pack) => entries.extend(pack.records().iter().map(|record| interner.entry(record))),
                Err(error) => notes.push(LookupNote::Pack { name, error }),
            }
        }
        (Self::new(entries), notes)
    }

    /// The winner kept under `key`, whatever its origin.
    pub fn get(&self, key: &KeyHash) -> Option<&Entry> {
        self.idx_of.get(key).map(|&idx| &self.entries[idx as usize])
    }

    /// Every winner.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Climbs down the ladder for `key` on a GPU of `arch`; `default` is what its family would use unasked. A winner of
    /// which neither the tile nor a runner-up is valid for the problem is passed by.
    pub fn find<'a>(
        &'a self,
        key: &WinnerKey<'_>,
        arch: &ArchSpec,
        current: &Current<'_>,
        default: &'a Tile,
    ) -> Found<'a> {
        let serves = |entry: &Entry| entry.tiles().any(|tile| (current.is_valid)(key.problem, &tile));
        let kept = self.get(&key.hash()).map(|entry| {
            let how = match entry.origin {
                Origin::Measured => How::Exact,
                Origin::Inherited { from_m } => How::OtherBucket { m: from_m },
                Origin::Predicted => How::Predicted,
            };
            (entry, how)
        });
        let is_run = |(entry, how): &(&Entry, How)| *how != How::Predicted && serves(entry);
        let found = kept.clone().filter(is_run);
        let found = found.or_else(|| self.other_bucket(key, &serves)).or_else(|| self.borrowed(key, arch, &serves));
        let found = found.or_else(|| kept.filter(|(entry, _)| serves(entry)));
        let (entry, how) = found.map_or((None, How::Default), |(entry, how)| (Some(entry), how));
        Found { stale: entry.and_then(|entry| entry.stale(current)), entry, how, default }
    }

    /// The winner of the op's nearest measured bucket that `serves`: above if there is one, since its tile holds every
    /// token.
    fn other_bucket(&self, key: &WinnerKey<'_>, serves: &dyn Fn(&Entry) -> bool) -> Option<(&Entry, How)> {
        let m = key.problem.m();
        let is_same_op = |entry: &&Entry| entry.problem.m() != m && entry.problem.with_m(m) == *key.problem;
        let measured = self.measured(key).filter(|entry| *entry.gpu == *key.gpu);
        let mut near: Vec<&Entry> = measured.filter(is_same_op).collect();
        near.sort_by_key(|entry| (entry.problem.m() < m, entry.problem.m().abs_diff(m)));
        let nearest = near.into_iter().find(|entry| serves(entry))?;
        Some((nearest, How::OtherBucket { m: nearest.problem.m() }))
    }

    /// The winner that `serves`, on the GPU of `arch` whose SM count is nearest.
    fn borrowed(&self, key: &WinnerKey<'_>, arch: &ArchSpec, serves: &dyn Fn(&Entry) -> bool) -> Option<(&Entry, How)> {
        let is_of_arch = |gpu: &GpuIdentity| GpuSpec::of_product(&gpu.product).is_some_and(|spec| spec.arch == arch);
        let is_elsewhere = |entry: &&Entry| *entry.gpu != *key.gpu && is_of_arch(&entry.gpu) && serves(entry);
        let others = self.measured(key).filter(|entry| entry.problem == *key.problem).filter(is_elsewhere);
        let nearest = others.min_by_key(|entry| (entry.gpu.sm_count.abs_diff(key.gpu.sm_count), entry.key))?;
        Some((nearest, How::Borrowed { gpu: nearest.gpu.as_ref().clone() }))
    }

    fn measured(&self, key: &WinnerKey<'_>) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.origin == Origin::Measured && *entry.layout == *key.layout)
    }
}

impl Found<'_> {
    /// Whether it is to be measured again.
    pub fn is_stale(&self) -> bool {
        self.stale.is_some()
    }

    /// What to launch, best first: the winner, those that came next to it, the family's default. Take the first that
    /// compiles.
    pub fn tiles(&self) -> impl Iterator<Item = Tile> + '_ {
        self.entry.into_iter().flat_map(Entry::tiles).chain(std::iter::once(self.default.clone()))
    }
}

/// The sentence of `show --why`.
impl std::fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.how.fmt(f)?;
        match &self.stale {
            Some(stale) => write!(f, "; stale: {stale}"),
            None => Ok(()),
        }
    }
}

impl std::fmt::Display for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact => f.write_str("measured on this GPU"),
            Self::OtherBucket { m } => write!(f, "inherited: it won m = {m} of the same op on this GPU"),
            Self::Borrowed { gpu } => write!(f, "borrowed: it won on {gpu}, nothing was measured on this GPU"),
            Self::Predicted => f.write_str("predicted: the cost model's choice, never run on this GPU"),
            Self::Default => f.write_str("default: no winner is known that serves this problem"),
        }
    }
}

impl std::fmt::Display for Stale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kernels => f.write_str("its kernels have changed since, it is still used"),
            Self::Nvrtc { then, now } => {
                write!(f, "it was measured with NVRTC {then}, this is {now}, it is still used")
            }
        }
    }
}

impl Entry {
    /// The winner and those that came next to it, best first.
    pub fn tiles(&self) -> impl Iterator<Item = Tile> + '_ {
        let runners_up = self.runners_up.iter().map(|(tile, _)| tile);
        std::iter::once(&self.tile).chain(runners_up).filter_map(|tile| tile.parse().ok())
    }

    /// Why this is to be measured again, if it is: asked for its own problem, whatever it is used for.
    pub fn stale(&self, current: &Current<'_>) -> Option<Stale> {
        let kernels = self.tile().ok().and_then(|tile| (current.kernels)(&self.problem, &tile));
        if kernels.as_deref() != Some(&*self.toolchain.kernels) {
            return Some(Stale::Kernels);
        }
        Stale::of_compiler(&self.toolchain.nvrtc, current.nvrtc?)
    }
}

/// `13.2` of `13.2.51`.
fn minor_of(version: &str) -> &str {
    version.match_indices('.').nth(1).map_or(version, |(dot, _)| &version[..dot])
}
