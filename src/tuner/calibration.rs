//! How far the cost model may be trusted: its rank correlation with committed trial logs, op by op.

use serde::Serialize;

use super::predict::{predict, rank_correlation};
use crate::arch::ArchSpec;
use crate::kernels;
use crate::problem::Problem;
use crate::store::embedded_logs;

/// Rank correlations of predicted with measured times on one class of GPUs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Calibration {
    /// One for each recorded problem with enough candidates.
    pub problems: Vec<Correlation>,
}

/// One recorded problem.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Correlation {
    /// The problem.
    pub problem: Problem,
    /// Product that it was recorded on.
    pub gpu: String,
    /// Candidates measured.
    pub candidates: usize,
    /// Spearman's rho of predicted and measured times.
    pub rank_correlation: f64,
    /// How much slower the best predicted candidate is than the best: 0.05 is 5 %.
    pub regret: f64,
}

/// The cost model against every committed log of `arch`.
pub fn calibration(arch: &ArchSpec) -> Calibration {
    let mut problems = Vec::new();
    for (gpu, log) in embedded_logs(arch) {
        for (problem, _) in &log.problems {
            let timed = log.times(problem).into_iter().filter_map(|(tile, us)| {
                let plan = kernels::plan(problem, tile, gpu).ok()?;
                Some((predict(&plan, gpu), us))
            });
            let (predicted, measured): (Vec<f64>, Vec<f64>) = timed.unzip();
            let Some(rank_correlation) = rank_correlation(&predicted, &measured) else { continue };
            let best = measured.iter().copied().fold(f64::INFINITY, f64::min);
            let first = (0..predicted.len()).min_by(|&a, &b| predicted[a].total_cmp(&predicted[b]));
            let regret = first.map_or(f64::INFINITY, |idx| measured[idx] / best - 1.0);
            problems.push(Correlation {
                problem: problem.clone(),
                gpu: gpu.name.clone(),
                candidates: predicted.len(),
                rank_correlation,
                regret,
            });
        }
    }
    Calibration { problems }
}

impl std::fmt::Display for Calibration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.problems.is_empty() {
            return f.write_str("cost model: uncalibrated (no trial log of this architecture is committed)");
        }
        f.write_str("cost model: rank correlation with measured times, to which it was fitted")?;
        for Correlation { problem, gpu, candidates, rank_correlation, regret } in &self.problems {
            let regret = 100.0 * regret;
            write!(f, "\n  {problem} on {gpu}: {rank_correlation:.2} over {candidates} tiles, ")?;
            write!(f, "first choice {regret:.0} % slower")?;
        }
        Ok(())
    }
}
