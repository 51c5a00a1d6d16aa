//! What `autotune bench` writes: one row for each problem, with everything that a ratio is made of.

use serde::{Deserialize, Serialize};

use crate::problem::Problem;

/// Measured rows and where they come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// Where, when and with what.
    pub meta: BenchMeta,
    /// One for each problem.
    pub rows: Vec<BenchRow>,
}

/// Provenance of a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchMeta {
    /// Product name of the GPU.
    pub gpu: String,
    /// Driver version.
    pub driver: String,
    /// NVRTC version.
    pub nvrtc: String,
    /// Commit of tilekiln.
    pub commit: String,
    /// Seconds since 1970.
    pub written_at: u64,
    /// How it was measured.
    pub method: String,
    /// Where the peers' times come from; empty without.
    pub peers: String,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// The problem.
    pub problem: Problem,
    /// The winner that was measured.
    pub tile: String,
    /// Chained launches with programmatic dependent launch: median, microseconds.
    pub chained_us: f64,
    /// Independent launches without overlap: median, microseconds.
    pub unchained_us: f64,
    /// Half width of the 95 % confidence interval of the chained median.
    pub half_width_us: f64,
    /// The problem's floor on this GPU.
    pub floor_us: f64,
    /// A pure read of the weight bytes in a chain, measured in the same run.
    pub ceiling_chained_us: f64,
    /// The same without overlap.
    pub ceiling_unchained_us: f64,
    /// Relative L2 error against the f64 reference.
    pub relative_l2: f64,
    /// Whether weights came from L2 in part.
    pub is_warm: bool,
    /// SM clock, MHz.
    pub sm_clock_mhz: u32,
    /// Times of other engines on the same problem.
    pub peers: Vec<PeerTime>,
}

/// Another engine's time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerTime {
    /// Which engine.
    pub peer: String,
    /// Microseconds, unchained.
    pub us: f64,
}

impl BenchRow {
    /// The fastest of the peers that compute the same thing with the same activation width.
    pub fn best_peer(&self) -> Option<&PeerTime> {
        self.peers.iter().min_by(|a, b| a.us.total_cmp(&b.us))
    }

    /// Our unchained time over the best peer's: below 1 is faster. Both are launches that do not overlap.
    pub fn ratio(&self) -> Option<f64> {
        self.best_peer().map(|peer| self.unchained_us / peer.us)
    }

    /// Share of the floor that the chained time reaches: 1 is the floor.
    pub fn of_floor(&self) -> f64 {
        self.floor_us / self.chained_us
    }

    /// Share of the measured stream ceiling that the chained time reaches.
    pub fn of_ceiling(&self) -> f64 {
        self.ceiling_chained_us / self.chained_us
    }
}

impl BenchReport {
    /// Rows that take more than `limit` times the best peer's time, the worst first.
    pub fn behind(&self, limit: f64) -> Vec<(&BenchRow, f64)> {
        let mut behind: Vec<(&BenchRow, f64)> =
            self.rows.iter().filter_map(|row| Some((row, row.ratio()?))).filter(|(_, ratio)| *ratio > limit).collect();
        behind.sort_by(|a, b| b.1.total_cmp(&a.1));
        behind
    }
}
