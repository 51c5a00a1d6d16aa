//! What a search asks of whoever measures: a GPU, a recorded log, or the cost model.

use std::collections::HashMap;

use super::Sample;
use super::live::Mode;
use crate::arch::GpuSpec;
use crate::kernels;
use crate::problem::{Problem, Routing, Tile};
use crate::store::{Outcome, TrialLog};

/// Why there is no number.
#[derive(Clone, Debug, PartialEq)]
pub enum Miss {
    /// The candidate is to blame: recorded, and the search goes on.
    Candidate(Outcome),
    /// Nobody can measure any more: the sentence says why.
    Fatal(String),
}

/// Measures candidates. Every failure of a candidate is an [`Outcome`].
pub trait Bench {
    /// Routings that blocks of experts are measured under; empty for other problems.
    fn routings(&self) -> &[Routing];

    /// Makes the data of an op; `problem` has the most tokens that will be asked for.
    ///
    /// # Errors
    /// The sentence why it cannot be made.
    fn open(&mut self, problem: &Problem) -> Result<(), String>;

    /// Compiles and checks `tile`, and gives its relative L2 error.
    ///
    /// # Errors
    /// [`Miss`]: what became of it.
    fn prepare(&mut self, problem: &Problem, tile: &Tile) -> Result<f64, Miss>;

    /// Times `tile` once, under routing `routing_idx` of [`Bench::routings`] (0 where there are none).
    ///
    /// # Errors
    /// [`Miss`]: what became of it.
    fn sample(&mut self, problem: &Problem, tile: &Tile, mode: Mode, routing_idx: usize) -> Result<Sample, Miss>;

    /// Forgets `tile`.
    fn release(&mut self, problem: &Problem, tile: &Tile);

    /// Whether weights come from L2 in part.
    fn is_warm(&self) -> bool {
        false
    }
}

/// A recorded log of trials: search is tested with no GPU.
pub struct Replay {
    log: TrialLog,
    outcomes: HashMap<(Problem, Tile), ByRouting>,
    /// Routings of the open problem.
    routings: Vec<Routing>,
    /// Candidates that were prepared, in order, each once.
    pub visited: Vec<Tile>,
}

/// Outcomes of a candidate, one for each routing that it was measured under.
type ByRouting = Vec<(Option<Routing>, Outcome)>;

impl Replay {
    /// Replays the trials of `log`.
    pub fn new(log: TrialLog) -> Self {
        let mut outcomes: HashMap<(Problem, Tile), ByRouting> = HashMap::new();
        for trial in log.problems.iter().flat_map(|(_, trials)| trials) {
            let of_candidate = outcomes.entry((trial.problem.clone(), trial.tile.clone())).or_default();
            of_candidate.push((trial.routing, trial.outcome.clone()));
        }
        Self { log, outcomes, routings: Vec::new(), visited: Vec::new() }
    }

    /// The fastest recorded candidate for `problem` and its chained time.
    pub fn best(&self, problem: &Problem) -> Option<(&Tile, f64)> {
        let times = self.log.times(problem).into_iter();
        times.min_by(|a, b| a.1.total_cmp(&b.1).then_with(|| a.0.cmp(b.0)))
    }

    /// What became of `tile` under one routing of the open problem; a failure counts for every routing.
    fn outcome(&self, problem: &Problem, tile: &Tile, routing_idx: usize) -> Outcome {
        let routing = self.routings.get(routing_idx).copied();
        let of_candidate = self.outcomes.get(&(problem.clone(), tile.clone())).into_iter().flatten();
        let mut fitting =
            of_candidate.filter(|(of, outcome)| *of == routing || !matches!(outcome, Outcome::Measured(_)));
        let unrecorded = || Outcome::FailedToRun { message: "not in the log".to_string() };
        fitting.next().map_or_else(unrecorded, |(_, outcome)| outcome.clone())
    }
}

impl Bench for Replay {
    fn routings(&self) -> &[Routing] {
        &self.routings
    }

    fn open(&mut self, problem: &Problem) -> Result<(), String> {
        let trials = self.log.problems.iter().filter(|(of, _)| of == problem).flat_map(|(_, trials)| trials);
        let mut routings = Vec::new();
        for routing in trials.filter_map(|trial| trial.routing) {
            if !routings.contains(&routing) {
                routings.push(routing);
            }
        }
        self.routings = routings;
        Ok(())
    }

    fn prepare(&mut self, problem: &Problem, tile: &Tile) -> Result<f64, Miss> {
        if !self.visited.contains(tile) {
            self.visited.push(tile.clone());
        }
        match self.outcome(problem, tile, 0) {
            Outcome::Measured(timing) => Ok(timing.relative_l2),
            other => Err(Miss::Candidate(other)),
        }
    }

    fn sample(&mut self, problem: &Problem, tile: &Tile, mode: Mode, routing_idx: usize) -> Result<Sample, Miss> {
        match self.outcome(problem, tile, routing_idx) {
            Outcome::Measured(timing) => {
                let us = if mode == Mode::Chained { timing.chained_us } else { timing.unchained_us };
                Ok(Sample { us, sm_clock_mhz: timing.sm_clock_mhz, throttle_reasons: timing.throttle_reasons })
            }
            other => Err(Miss::Candidate(other)),
        }
    }

    fn release(&mut self, _: &Problem, _: &Tile) {}
}

/// The cost model in place of a GPU.
pub struct Predicted<'a> {
    /// The GPU that is predicted for.
    pub gpu: &'a GpuSpec,
}

impl Bench for Predicted<'_> {
    fn routings(&self) -> &[Routing] {
        &[]
    }

    fn open(&mut self, _: &Problem) -> Result<(), String> {
        Ok(())
    }

    fn prepare(&mut self, problem: &Problem, tile: &Tile) -> Result<f64, Miss> {
        self.sample(problem, tile, Mode::Chained, 0).map(|_| 0.0)
    }

    fn sample(&mut self, problem: &Problem, tile: &Tile, _: Mode, _: usize) -> Result<Sample, Miss> {
        let plan = kernels::plan(problem, tile, self.gpu)
            .map_err(|rejection| Miss::Candidate(Outcome::Rejected { rule: rejection.rule.to_string() }))?;
        let us = super::predict::predict(&plan, self.gpu);
        Ok(Sample { us, sm_clock_mhz: self.gpu.clock_mhz, throttle_reasons: 0 })
    }

    fn release(&mut self, _: &Problem, _: &Tile) {}
}
