//! What the inputs of NVFP4 linears were like, by op and layer, and what should be said about their scales.

use std::collections::BTreeMap;

use crate::quant::{Counters, ScaleWarning};

use super::Op;

/// One entry for each NVFP4 op of each layer; the experts of a layer share one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ActivationLog {
    entries: BTreeMap<Op, ActivationEntry>,
}

/// What one op of one layer was fed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ActivationEntry {
    /// Largest finite magnitude.
    pub amax: f32,
    /// What the conversion met; all zero where nothing was converted.
    pub counters: Counters,
}

/// A scale that does not fit what it met, and where.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationWarning {
    /// The op.
    pub op: Op,
    /// What is wrong.
    pub warning: ScaleWarning,
}

/// Op and layer, what happens, and what to use instead.
impl std::fmt::Display for ActivationWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}; {}", self.op, self.warning, self.warning.hint())
    }
}

impl ActivationLog {
    /// Every op that was met, by layer.
    pub fn entries(&self) -> impl Iterator<Item = (Op, &ActivationEntry)> {
        self.entries.iter().map(|(op, entry)| (*op, entry))
    }

    /// What `op` was fed, if it was met.
    pub fn entry(&self, op: Op) -> Option<&ActivationEntry> {
        self.entries.get(&op)
    }

    /// Scales that do not fit, by layer.
    pub fn warnings(&self) -> Vec<ActivationWarning> {
        let warning = |(op, entry): (Op, &ActivationEntry)| {
            entry.counters.warning().map(|warning| ActivationWarning { op, warning })
        };
        self.entries().filter_map(warning).collect()
    }

    /// Adds the largest finite magnitude of one input.
    pub(super) fn saw(&mut self, op: Op, amax: f32) {
        let entry = self.entries.entry(op).or_default();
        entry.amax = entry.amax.max(amax);
    }

    /// Adds what one conversion met.
    pub(super) fn converted(&mut self, op: Op, counters: &Counters) {
        let sums = &mut self.entries.entry(op).or_default().counters;
        sums.blocks += counters.blocks;
        sums.saturated_blocks += counters.saturated_blocks;
        sums.underflowing_blocks += counters.underflowing_blocks;
        sums.vanished_blocks += counters.vanished_blocks;
        sums.non_finite.count += counters.non_finite.count;
        sums.non_finite.first = sums.non_finite.first.or(counters.non_finite.first);
    }
}
