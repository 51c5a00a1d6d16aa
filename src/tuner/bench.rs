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
    outcomes: HashMap<(Problem, Tile), Outcome>,
    /// Candidates that were prepared, in order, each once.
    pub visited: Vec<Tile>,
}

impl Replay {
    /// Replays the trials of `log`.
    pub fn new(log: &TrialLog) -> Self {
        let trials = log.problems.iter().flat_map(|(_, trials)| trials);
        let outcomes = trials.map(|trial| ((trial.problem.clone(), trial.tile.clone()), trial.outcome.clone()));
        Self { outcomes: outcomes.collect(), visited: Vec::new() }
    }

    /// The fastest recorded candidate for `problem` and its chained time.
    pub fn best(&self, problem: &Problem) -> Option<(&Tile, f64)> {
        let measured = self.outcomes.iter().filter_map(|((of, tile), outcome)| match outcome {
            Outcome::Measured(timing) if of == problem => Some((tile, timing.chained_us)),
            _ => None,
        });
        measured.min_by(|a, b| a.1.total_cmp(&b.1).then_with(|| a.0.cmp(b.0)))
    }

    fn outcome(&self, problem: &Problem, tile: &Tile) -> Outcome {
        let unrecorded = || Outcome::FailedToRun { message: "not in the log".to_string() };
        self.outcomes.get(&(problem.clone(), tile.clone())).cloned().unwrap_or_else(unrecorded)
    }
}

impl Bench for Replay {
    fn routings(&self) -> &[Routing] {
        &[]
    }

    fn open(&mut self, _: &Problem) -> Result<(), String> {
        Ok(())
    }

    fn prepare(&mut self, problem: &Problem, tile: &Tile) -> Result<f64, Miss> {
        if !self.visited.contains(tile) {
            self.visited.push(tile.clone());
        }
        match self.outcome(problem, tile) {
            Outcome::Measured(timing) => Ok(timing.relative_l2),
            other => Err(Miss::Candidate(other)),
        }
    }

    fn sample(&mut self, problem: &Problem, tile: &Tile, mode: Mode, _: usize) -> Result<Sample, Miss> {
        match self.outcome(problem, tile) {
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
