//! What the kernels for Hopper are to reach: one table of goals, each with its sentence. The arithmetic is in
//! `regimes`.

use super::RunnerCell;
use crate::quant::WeightFormat;

/// A regime of problems and what its rows are held against.
#[derive(Debug)]
pub struct Regime {
    /// What it is called.
    pub name: &'static str,
    /// Which rows belong to it.
    pub of: Of,
    /// Tokens, from and to.
    pub tokens: [u32; 2],
    /// Whether its activations have 16 bits.
    pub is_a16: bool,
    /// Formats of the weights.
    pub weights: &'static [WeightFormat],
    /// What its rows are to reach.
    pub goals: &'static [Goal],
}

/// Dense or experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// One matrix.
    Dense,
    /// A whole block of experts.
    Experts,
}

/// One goal of a regime.
#[derive(Debug)]
pub struct Goal {
    /// As it was set.
    pub sentence: &'static str,
    /// What is held against what.
    pub measure: Measure,
    /// Tokens that it is about; all of the regime if `None`.
    pub tokens: Option<u32>,
}

/// What is held against what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measure {
    /// The geometric mean of a rival's time over ours is at least this.
    Mean(Rival, f64),
    /// A rival's time over ours is at least this on every problem.
    Every(Rival, f64),
    /// Every problem with weights of at least `from_bytes` has at least this share of the stream ceiling.
    OfCeiling { share: f64, from_bytes: u64 },
    /// Every problem with weights of at least `from_bytes` has at least this share of the floor.
    OfFloor { share: f64, from_bytes: u64 },
    /// Every problem with weights below `below_bytes` takes at most this many microseconds.
    AtMost { us: f64, below_bytes: u64 },
}

/// Whose time ours is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rival {
    /// The fastest peer of the same format and activation width.
    BestPeer,
    /// Humming, same format and width.
    Humming,
    /// cuBLAS on BF16 weights of the same shape.
    CublasBf16,
}

impl Goal {
    const fn of(sentence: &'static str, measure: Measure) -> Self {
        Self { sentence, measure, tokens: None }
    }

    const fn at(tokens: u32, sentence: &'static str, measure: Measure) -> Self {
        Self { sentence, measure, tokens: Some(tokens) }
    }
}

/// A goal of a whole model: share of a floor, at a context and a batch.
#[derive(Debug)]
pub struct RunnerGoal {
    /// As it was set.
    pub sentence: &'static str,
    /// Tokens of context.
    pub context: u32,
    /// Sequences.
    pub batch: u32,
    /// Prefill or decode.
    pub share_of: fn(&RunnerCell) -> Option<f64>,
    /// At least this.
    pub at_least: f64,
}

/// What `dsv4 bench` is to reach.
pub const RUNNER_GOALS: [RunnerGoal; 2] = [
    RunnerGoal {
        sentence: "decode step at least 70 % of the floor of its weights",
        context: 8192,
        batch: 1,
        share_of: RunnerCell::decode_of_floor,
        at_least: 0.70,
    },
    RunnerGoal {
        sentence: "prefill at least 60 % of the floor",
        context: 8192,
        batch: 1,
        share_of: RunnerCell::prefill_of_floor,
        at_least: 0.60,
    },
];

const NOT_SLOWER: Goal = Goal::of("no problem slower than the best peer", Measure::Every(Rival::BestPeer, 1.0));

/// Every regime, in the order of the tables.
pub const REGIMES: [Regime; 11] = [
    Regime {
        name: "dense 4-bit, 1 to 16 tokens",
        of: Of::Dense,
        tokens: [1, 16],
        is_a16: true,
        weights: FOUR_BIT,
        goals: &[
            Goal::of("geomean at least 2.0x the best peer", Measure::Mean(Rival::BestPeer, 2.0)),
            NOT_SLOWER,
            Goal::of(
                "at least 75 % of the stream ceiling from 8 MB",
                Measure::OfCeiling { share: 0.75, from_bytes: 8 * MB },
            ),
            Goal::of("at most 3.5 us below 4 MB", Measure::AtMost { us: 3.5, below_bytes: 4 * MB }),
        ],
    },
    Regime {
        name: "dense 4-bit, 32 to 256 tokens",
        of: Of::Dense,
        tokens: [32, 256],
        is_a16: true,
        weights: FOUR_BIT,
        goals: &[
            Goal::of("geomean at least 1.6x the best peer", Measure::Mean(Rival::BestPeer, 1.6)),
            NOT_SLOWER,
            Goal::of("at least 75 % of the floor from 16 MB", Measure::OfFloor { share: 0.75, from_bytes: 16 * MB }),
        ],
    },
    Regime {
        name: "dense 4-bit, 1024 tokens and more",
        of: Of::Dense,
        tokens: [1024, MANY],
        is_a16: true,
        weights: FOUR_BIT,
        goals: &[
            Goal::of("geomean at least 1.05x Humming", Measure::Mean(Rival::Humming, 1.05)),
            Goal::of("no problem slower than Humming", Measure::Every(Rival::Humming, 1.0)),
            Goal::of("at least 0.97x cuBLAS bf16 on every shape", Measure::Every(Rival::CublasBf16, 0.97)),
        ],
    },
    Regime {
        name: "dense MXFP4 a8",
        of: Of::Dense,
        tokens: [1, MANY],
        is_a16: false,
        weights: &[WeightFormat::Mxfp4],
        goals: &[Goal::of("faster than Humming a8 everywhere", Measure::Every(Rival::Humming, 1.0))],
    },
    Regime {
        name: "dense 4-bit a8, 1024 tokens and more",
        of: Of::Dense,
        tokens: [1024, MANY],
        is_a16: false,
        weights: FOUR_BIT,
        goals: &[Goal::of("at least 1.5x cuBLAS bf16", Measure::Every(Rival::CublasBf16, 1.5))],
    },
    Regime {
        name: "dense FP8 and BF16, 1 to 64 tokens",
        of: Of::Dense,
        tokens: [1, 64],
        is_a16: true,
        weights: &[WeightFormat::Fp8, WeightFormat::Bf16],
        goals: &[
            Goal::of("faster than cuBLAS fp8 or bf16 on every shape", Measure::Every(Rival::BestPeer, 1.0)),
            Goal::of(
                "at least 75 % of the stream ceiling from 8 MB",
                Measure::OfCeiling { share: 0.75, from_bytes: 8 * MB },
            ),
        ],
    },
    Regime {
        name: "experts, 1 and 4 tokens",
        of: Of::Experts,
        tokens: [1, 4],
        is_a16: true,
        weights: FOUR_BIT,
        goals: &[
            Goal::at(1, "at least 1.5x the best peer at 1 token", Measure::Every(Rival::BestPeer, 1.5)),
            Goal::at(4, "faster than the best peer at 4", Measure::Every(Rival::BestPeer, 1.0)),
            Goal::at(4, "at least 75 % of the stream ceiling at 4", Measure::OfCeiling { share: 0.75, from_bytes: 0 }),
        ],
    },
    Regime {
        name: "experts, 16 to 256 tokens",
        of: Of::Experts,
        tokens: [16, 256],
        is_a16: true,
        weights: FOUR_BIT,
        goals: &[
            Goal::of("faster than every peer", Measure::Every(Rival::BestPeer, 1.0)),
            Goal::of("at least 93 % of read bandwidth", Measure::OfFloor { share: 0.93, from_bytes: 0 }),
        ],
    },
    Regime {
        name: "experts, 1024 tokens and more",
        of: Of::Experts,
        tokens: [1024, MANY],
        is_a16: true,
        weights: FOUR_BIT,
        goals: &[
            Goal::at(1024, "1.3x the best peer at 1024", Measure::Every(Rival::BestPeer, 1.3)),
            Goal::at(4096, "1.7x the best peer at 4096", Measure::Every(Rival::BestPeer, 1.7)),
            Goal::at(8192, "1.5x the best peer at 8192", Measure::Every(Rival::BestPeer, 1.5)),
            Goal::at(8192, "at least 70 % of the floor at 8192", Measure::OfFloor { share: 0.70, from_bytes: 0 }),
        ],
    },
    Regime {
        name: "experts a8, up to 256 tokens",
        of: Of::Experts,
        tokens: [1, 256],
        is_a16: false,
        weights: FOUR_BIT,
        goals: &[Goal::of("faster than every a8 peer", Measure::Every(Rival::BestPeer, 1.0))],
    },
    Regime {
        name: "experts a8, 1024 tokens and more",
        of: Of::Experts,
        tokens: [1024, MANY],
        is_a16: false,
        weights: FOUR_BIT,
        goals: &[Goal::of("faster than every a8 peer", Measure::Every(Rival::BestPeer, 1.0))],
    },
];

const FOUR_BIT: &[WeightFormat] = &[WeightFormat::Nvfp4, WeightFormat::Mxfp4];
const MANY: u32 = u32::MAX;
const MB: u64 = 1_000_000;
