//! A winner as readers hold it: a [`Record`] whose tiles are still text and whose strings are shared.
//!
//! Two thousand records hold some hundred thousand small strings, nearly all of them equal to another or never looked
//! at. An entry shares them and parses a tile when somebody launches it, so a snapshot loads in well under 2 ms.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use super::{KeyHash, Origin, Record, RunnerUp, Timing, Toolchain, WinnerKey};
use crate::arch::GpuIdentity;
use crate::problem::{ParseTileError, Problem, Routing, Tile};

/// The winner of one problem on one GPU, cheap to load and to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What it is found by.
    pub key: KeyHash,
    /// What was asked.
    pub problem: Problem,
    /// Where it won.
    pub gpu: Arc<GpuIdentity>,
    /// The packed weight layout that it reads.
    pub layout: Arc<str>,
    /// The winner, as text.
    pub tile: Arc<str>,
    /// Tiles with one id give the same bits.
    pub numerics: Arc<str>,
    /// How far this may be trusted.
    pub origin: Origin,
    /// Its time.
    pub timing: Timing,
    /// Chained time of the family's default tile, microseconds.
    pub default_us: f64,
    /// The candidates next to it, best first, with their chained times.
    pub runners_up: Box<[(Arc<str>, f64)]>,
    /// Routings that the time is a geometric mean of.
    pub routings: Box<[Routing]>,
    /// Candidates tried.
    pub tried: u32,
    /// What measured it.
    pub toolchain: Arc<Toolchain>,
    /// Seconds since 1970 when it was written.
    pub written_at: u64,
}

impl Entry {
    /// The entry of one record alone, which shares its strings with no other.
    pub fn of(record: &Record) -> Self {
        Interner::default().entry(record)
    }

    /// The winner, ready for its family.
    ///
    /// # Errors
    /// [`ParseTileError`] if the text is no tile, which only a foreign file can bring about.
    pub fn tile(&self) -> Result<Tile, ParseTileError> {
        self.tile.parse()
    }

    /// The whole record.
    ///
    /// # Errors
    /// [`ParseTileError`] if one of the texts is no tile.
    pub fn record(&self) -> Result<Record, ParseTileError> {
        let runner_up = |(tile, us): &(Arc<str>, f64)| Ok(RunnerUp { tile: tile.parse()?, chained_us: *us });
        Ok(Record {
            problem: self.problem.clone(),
            gpu: self.gpu.as_ref().clone(),
            layout: self.layout.to_string(),
            tile: self.tile()?,
            numerics: self.numerics.to_string(),
            origin: self.origin.clone(),
            timing: self.timing.clone(),
            default_us: self.default_us,
            runners_up: self.runners_up.iter().map(runner_up).collect::<Result<_, ParseTileError>>()?,
            routings: self.routings.to_vec(),
            tried: self.tried,
            toolchain: self.toolchain.as_ref().clone(),
            written_at: self.written_at,
        })
    }
}

/// Makes entries that share equal strings.
#[derive(Debug, Default)]
pub(super) struct Interner {
    texts: Pool<str>,
    gpus: Pool<GpuIdentity>,
    toolchains: Pool<Toolchain>,
}

impl Interner {
    /// The entry of `record`.
    pub(super) fn entry(&mut self, record: &Record) -> Entry {
        let mut text = |text: &str| self.texts.shared(text, || text.into());
        let runners_up = record.runners_up.iter();
        let runners_up = runners_up.map(|next| (text(&next.tile.to_string()), next.chained_us)).collect();
        Entry {
            key: WinnerKey::of(record).hash(),
            problem: record.problem.clone(),
            gpu: self.gpus.shared(&record.gpu, || record.gpu.clone().into()),
            layout: text(&record.layout),
            tile: text(&record.tile.to_string()),
            numerics: text(&record.numerics),
            origin: record.origin.clone(),
            timing: record.timing.clone(),
            default_us: record.default_us,
            runners_up,
            routings: record.routings.clone().into(),
            tried: record.tried,
            toolchain: self.toolchains.shared(&record.toolchain, || record.toolchain.clone().into()),
            written_at: record.written_at,
        }
    }
}

/// Values of which equal ones are kept once.
#[derive(Debug)]
struct Pool<T: ?Sized>(HashSet<Arc<T>>);

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn shared(&mut self, value: &T, make: impl FnOnce() -> Arc<T>) -> Arc<T> {
        if let Some(shared) = self.0.get(value) {
            return shared.clone();
        }
        let shared = make();
        self.0.insert(shared.clone());
        shared
    }
}
