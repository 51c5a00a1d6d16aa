//! What runs beside what in a captured step, and the memory that this takes.
//!
//! One token leaves most of a chip idle: a launch of few bytes waits for the one ahead longer than it works. So
//! launches that need nothing of each other stand on branches of the graph: making entries beside the projections of
//! keys and queries, choosing them beside the queries of all heads, shared experts beside the routed ones and their
//! choice. A graph runs what it is told as soon as its edges allow. All other launches, those of a prompt among them,
//! stay one behind the other, which is one of the orders that the edges allow.

use std::collections::{BTreeSet, HashMap};

use super::ForwardError;
use super::ops::BucketProblems;
use super::pass::Pass;
use crate::device::{Buffer, CapturePoint, DevicePointer, Gpu};
use crate::problem::Problem;

/// Launches beside others: where they fork off, and where they end. The driver would not miss a branch that nobody
/// joins.
#[must_use = "what reads the results of a branch must join it"]
pub(super) struct Branch {
    forked_at: CapturePoint,
    end: CapturePoint,
}

impl Pass<'_> {
    /// Where the step stands now.
    pub(super) fn place(&self) -> Result<CapturePoint, ForwardError> {
        Ok(self.branches_of.map(CapturePoint::of).transpose()?.unwrap_or_default())
    }

    /// Launches `others` behind `forked_at`, beside what was launched since and what will be until they are joined.
    pub(super) fn beside(
        &mut self,
        forked_at: CapturePoint,
        others: impl FnOnce(&mut Self) -> Result<(), ForwardError>,
    ) -> Result<Branch, ForwardError> {
        let Some(stream) = self.branches_of else {
            others(self)?;
            return Ok(Branch { end: forked_at.clone(), forked_at });
        };
        let here = self.place()?;
        forked_at.resume(stream)?;
        let was_beside = std::mem::replace(&mut self.is_beside, true);
        let launched = others(self);
        self.is_beside = was_beside;
        launched?;
        let end = self.place()?;
        here.resume(stream)?;
        Ok(Branch { forked_at, end })
    }

    /// What is launched next waits for the end of `branch` too.
    pub(super) fn join(&self, Branch { forked_at, end }: Branch) -> Result<(), ForwardError> {
        let Some(stream) = self.branches_of.filter(|_| end != forked_at) else { return Ok(()) };
        // A step with some ops only may have launched nothing beside it: then its end is enough to wait for.
        match self.place()? == forked_at {
            true => Ok(end.resume(stream)?),
            false => Ok(end.join(stream)?),
        }
    }

    /// The workspace of the problem of the op `name`, which nothing beside it uses.
    ///
    /// # Panics
    /// If `name` is launched beside others and [`stands_beside`] does not know it.
    pub(super) fn workspace(&self, name: &str, problem: &Problem) -> DevicePointer {
        assert!(!self.is_beside || stands_beside(name), "{name} may need a workspace of its own");
        self.model.workspaces.of(problem, self.is_beside)
    }
}

/// Whether [`Pass::beside`] launches the problem of the op `name`.
fn stands_beside(name: &str) -> bool {
    name.starts_with("attn.compressor.") || name.starts_with("ffn.shared.")
}

/// Problems that a bucket has on both branches: the same kernel may run twice at once.
pub(super) fn on_both_branches(buckets: &[BucketProblems]) -> BTreeSet<Problem> {
    let mut both = BTreeSet::new();
    for bucket in buckets {
        let others = || bucket.by_name.iter().filter(|(name, _)| !stands_beside(name)).map(|(_, problem)| problem);
        let beside = bucket.by_name.iter().filter(|(name, _)| stands_beside(name));
        both.extend(beside.filter(|(_, problem)| others().any(|other| other == *problem)).map(|(_, p)| p.clone()));
    }
    both
}

/// Addresses of workspaces by problem, and by whether it is launched beside the others.
#[derive(Default)]
pub(super) struct Workspaces {
    buffers: Vec<Buffer>,
    of: HashMap<(Problem, bool), DevicePointer>,
}

impl Workspaces {
    /// Memory for `problems` with the bytes that each needs. Dense plans keep tickets there and have their own, those
    /// `on_both` branches two; blocks of experts write everything anew and share one.
    pub fn new(gpu: &Gpu, problems: &[(Problem, u64)], on_both: &BTreeSet<Problem>) -> Result<Self, ForwardError> {
        let mut all = Self::default();
        let blocks = problems.iter().filter(|(problem, _)| is_block(problem));
        let shared = Buffer::zeros(gpu, blocks.map(|(_, bytes)| *bytes).max().unwrap_or(0) as usize)?;
        for (problem, bytes) in problems.iter().filter(|(_, bytes)| *bytes > 0) {
            let mut take = || {
                let buffer = Buffer::zeros(gpu, *bytes as usize)?;
                let pointer = buffer.pointer();
                all.buffers.push(buffer);
                Ok::<_, ForwardError>(pointer)
            };
            let first = if is_block(problem) { shared.pointer() } else { take()? };
            let second = if is_twice(problem, on_both) { take()? } else { first };
            all.of.extend([((problem.clone(), false), first), ((problem.clone(), true), second)]);
        }
        all.buffers.push(shared);
        Ok(all)
    }

    /// Bytes that [`Workspaces::new`] takes.
    pub fn bytes(problems: &[(Problem, u64)], on_both: &BTreeSet<Problem>) -> u64 {
        let block = problems.iter().filter(|(problem, _)| is_block(problem)).map(|(_, bytes)| *bytes).max();
        let dense = problems.iter().filter(|(problem, _)| !is_block(problem));
        let times = |problem| 1 + u64::from(is_twice(problem, on_both));
        block.unwrap_or(0) + dense.map(|(problem, bytes)| bytes * times(problem)).sum::<u64>()
    }

    /// The workspace of `problem`; null where it needs none.
    fn of(&self, problem: &Problem, is_beside: bool) -> DevicePointer {
        self.of.get(&(problem.clone(), is_beside)).copied().unwrap_or(0)
    }
}

/// Experts stand on one branch.
fn is_twice(problem: &Problem, on_both: &BTreeSet<Problem>) -> bool {
    !is_block(problem) && on_both.contains(problem)
}

fn is_block(problem: &Problem) -> bool {
    matches!(problem, Problem::MoeBlock(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::dsv4::LayerKind;
    use crate::models::dsv4::forward::device_weights::compressor_op;
    use crate::problem::Dense;
    use crate::quant::WeightFormat;

    #[test]
    fn a_problem_of_both_branches_needs_its_workspace_twice() {
        let problem = |n| Problem::Dense(Dense::new(WeightFormat::Nvfp4, n, 512, 1));
        let named = |names: &[(&'static str, u32)]| BucketProblems {
            m: 1,
            by_name: names.iter().map(|&(name, n)| (name, problem(n))).collect(),
        };
        let buckets = [
            named(&[
                ("ffn.shared.down", 512),
                ("attn.wo_b", 512),
                ("attn.wq_b", 1024),
                (compressor_op(LayerKind::Hca), 256),
            ]),
            named(&[("ffn.shared.gate_up", 1024), ("ffn.gate", 128)]),
        ];
        let both = on_both_branches(&buckets);
        assert_eq!(both, [problem(512)].into(), "wq_b and gate_up are of different buckets");
        let sized: Vec<(Problem, u64)> = [512, 1024, 256].map(|n| (problem(n), 100)).into();
        assert_eq!(Workspaces::bytes(&sized, &both), 400);
        for kind in [LayerKind::Csa, LayerKind::Hca] {
            assert!(stands_beside(compressor_op(kind)), "{kind:?}");
        }
    }
}
