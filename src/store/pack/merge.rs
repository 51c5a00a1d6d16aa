//! Two packs of one GPU become one.
//!
//! Times of two runs are not compared: their clocks, drivers and neighbours differed by more than two good tiles do.
//! Evidence decides: measured beats inherited beats predicted; of equal evidence the one written later counts, since
//! it stands on the later tools and somebody meant it to replace the earlier.

use super::{Pack, PackError, order_of};
use crate::store::Record;

/// What became of one problem in a merge.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeNote {
    /// The problem.
    pub problem: String,
    /// What became of it.
    pub merged: Merged,
}

/// Where the winner of a merged pack comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// Only this pack had it.
    OnlyHere,
    /// Only the other had it: it was added.
    Added,
    /// Both had the same record.
    Same,
    /// Both had one; this pack's has better evidence.
    KeptForEvidence,
    /// Both had one of equal evidence; this pack's was written later, or at the same time.
    KeptAsLater,
    /// Both had one; the other's has better evidence.
    TakenForEvidence,
    /// Both had one of equal evidence; the other's was written later.
    TakenAsLater,
}

impl std::fmt::Display for Merged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::OnlyHere => "only here",
            Self::Added => "added",
            Self::Same => "the same in both",
            Self::KeptForEvidence => "kept: better evidence",
            Self::KeptAsLater => "kept: not older",
            Self::TakenForEvidence => "taken: better evidence",
            Self::TakenAsLater => "taken: written later",
        })
    }
}

impl Pack {
    /// This pack with what `other` knows better, and what became of each problem.
    ///
    /// # Errors
    /// [`PackError::OtherGpu`]: winners of one GPU say nothing certain about another.
    pub fn merge(&self, other: &Pack) -> Result<(Pack, Vec<MergeNote>), PackError> {
        if other.gpu != self.gpu {
            return Err(PackError::OtherGpu { expected: self.gpu.to_string(), found: other.gpu.to_string() });
        }
        let mut notes = Vec::new();
        let mut records = Vec::new();
        for (here, there) in pairs(&self.records, &other.records) {
            let (record, merged) = match (here, there) {
                (Some(here), None) => (here, Merged::OnlyHere),
                (Some(here), Some(there)) => better(here, there),
                (None, Some(there)) => (there, Merged::Added),
                (None, None) => continue,
            };
            notes.push(MergeNote { problem: record.problem.to_string(), merged });
            records.push(record.clone());
        }
        let pack = Pack::new(self.gpu.clone(), &self.model, &self.checkpoint, records)?;
        Ok((pack, notes))
    }
}

fn better<'a>(here: &'a Record, there: &'a Record) -> (&'a Record, Merged) {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let evidence = there.origin.strength().cmp(&here.origin.strength());
    match evidence {
        _ if here == there => (here, Merged::Same),
        Less => (here, Merged::KeptForEvidence),
        Greater => (there, Merged::TakenForEvidence),
        Equal if there.written_at > here.written_at => (there, Merged::TakenAsLater),
        Equal => (here, Merged::KeptAsLater),
    }
}

/// The records of both lists side by side, in the order of packs.
pub(super) fn pairs<'a>(here: &'a [Record], there: &'a [Record]) -> Vec<(Option<&'a Record>, Option<&'a Record>)> {
    let mut pairs = std::collections::BTreeMap::new();
    for record in here {
        pairs.entry(order_of(record)).or_insert((None, None)).0 = Some(record);
    }
    for record in there {
        pairs.entry(order_of(record)).or_insert((None, None)).1 = Some(record);
    }
    pairs.into_values().collect()
}
