//! What is kept: every trial, and for each problem on each GPU the winner with its evidence.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::arch::GpuIdentity;
use crate::problem::{Problem, Routing, Tile};

/// What became of one candidate. A bad candidate is data: it costs one trial, never the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Checked against the reference, then timed.
    Measured(Timing),
    /// A rule of the family refused it before it was rendered.
    Rejected {
        /// Name of the rule.
        rule: String,
    },
    /// NVRTC refused it, or took too long.
    FailedToCompile {
        /// First line of NVRTC's message.
        message: String,
    },
    /// The driver refused the launch, or the launch faulted.
    FailedToRun {
        /// The driver's message.
        message: String,
    },
    /// It ran, and the result was wrong as a whole, or not finite.
    Wrong {
        /// Relative L2 error; infinite when an element was not finite or not written.
        relative_l2: f64,
    },
    /// It ran longer than it may.
    TimedOut {
        /// The limit, seconds.
        seconds: f64,
    },
    /// It ran, and all elements together are right, but not each of them. (Last, so that older records are read.)
    WrongElement {
        /// What the worst one is off by, beyond its rounding.
        found: f64,
        /// What it may be off by.
        limit: f64,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Measured(timing) => write!(f, "{:.2} us", timing.chained_us),
            Self::Rejected { rule } => write!(f, "refused by rule `{rule}`"),
            Self::FailedToCompile { message } | Self::FailedToRun { message } => f.write_str(message),
            Self::Wrong { relative_l2 } if !relative_l2.is_finite() || *relative_l2 == f64::MAX => {
                f.write_str("wrong result (elements that are not finite or were not written)")
            }
            Self::Wrong { relative_l2 } => write!(f, "wrong result (relative L2 error {relative_l2:.2e})"),
            Self::WrongElement { found, limit } => {
                write!(f, "wrong result (an element is off by {found:.2e} beyond rounding, the limit is {limit:.2e})")
            }
            Self::TimedOut { seconds } => write!(f, "ran longer than {seconds:.1} s"),
        }
    }
}

/// Time of one launch (of all launches of a plan), from interleaved rounds of CUDA-graph replays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Median in a chain of dependent launches, microseconds. This is what candidates are compared by.
    pub chained_us: f64,
    /// Median of independent launches without programmatic launch, microseconds.
    pub unchained_us: f64,
    /// Half width of the 95 % confidence interval of the chained median, microseconds.
    pub half_width_us: f64,
    /// Rounds that the medians stand on.
    pub rounds: u32,
    /// Whether weights came from L2 because memory was short of rotating copies.
    pub is_warm: bool,
    /// SM clock while it ran, MHz (median over rounds); 0 when NVML was not there.
    pub sm_clock_mhz: u32,
    /// NVML's throttle reasons seen, as a bit mask.
    pub throttle_reasons: u64,
    /// Relative L2 error against the f64 reference.
    pub relative_l2: f64,
}

/// One candidate that was tried, with everything a search can be replayed from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// What was asked.
    pub problem: Problem,
    /// How it was answered.
    pub tile: Tile,
    /// Routing that it was measured under (blocks of experts only).
    pub routing: Option<Routing>,
    /// What became of it.
    pub outcome: Outcome,
    /// Seed of the random data.
    pub seed: u64,
    /// What measured it.
    pub toolchain: Toolchain,
}

/// The versions that a result stands on: evidence, not key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Toolchain {
    /// Driver version, such as `580.159.04`; empty when nothing ran.
    pub driver: String,
    /// NVRTC version, such as `13.2`.
    pub nvrtc: String,
    /// Hash of the code of the tile's kernels, without comments (first 16 hex digits).
    pub kernels: String,
    /// Commit of tilekiln.
    pub commit: String,
}

/// How far a record may be trusted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Measured on this very GPU for this very bucket.
    Measured,
    /// Not measured: the tile that won another bucket of the same op.
    Inherited {
        /// The bucket that it won.
        from_m: u32,
    },
    /// Compiled and counted, never run: the cost model's choice.
    Predicted,
}

impl Origin {
    /// Measured beats inherited beats predicted: the higher, the better.
    pub fn strength(&self) -> u8 {
        match self {
            Self::Measured => 2,
            Self::Inherited { .. } => 1,
            Self::Predicted => 0,
        }
    }
}

/// The winner of one problem on one GPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What was asked.
    pub problem: Problem,
    /// Where it won.
    pub gpu: GpuIdentity,
    /// The packed weight layout that it reads, such as `nvfp4@2`.
    pub layout: String,
    /// The winner.
    pub tile: Tile,
    /// Tiles with one id give the same bits.
    pub numerics: String,
    /// How far this may be trusted.
    pub origin: Origin,
    /// Its time; a predicted record has the cost model's time in both medians and no rounds.
    pub timing: Timing,
    /// Chained time of the family's default tile in the same rounds, microseconds.
    pub default_us: f64,
    /// The candidates next to it, best first, with their chained times.
    pub runners_up: Vec<RunnerUp>,
    /// Routings that the time is a geometric mean of (blocks of experts only).
    pub routings: Vec<Routing>,
    /// Candidates tried, whatever became of them.
    pub tried: u32,
    /// What measured it.
    pub toolchain: Toolchain,
    /// Seconds since 1970 when it was written.
    pub written_at: u64,
}

/// A candidate that came close.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunnerUp {
    /// The tile.
    pub tile: Tile,
    /// Its chained median, microseconds.
    pub chained_us: f64,
}
