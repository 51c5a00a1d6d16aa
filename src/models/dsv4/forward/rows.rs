//! One step as the host knows it: which tokens of which sequences, and where each stands.

use super::buffers::{Part, StepBuffers};
use super::{ForwardError, ForwardOptions};
use crate::problem::bucket_of;

/// Tokens of one sequence that are fed in a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fed<'a> {
    pub slot: u32,
    /// Position of the first of them.
    pub start: u32,
    pub tokens: &'a [u32],
}

/// A step's arrays.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    token_ids: Vec<i32>,
    positions: Vec<i32>,
    sequences: Vec<i32>,
    step_start: Vec<i32>,
    first_row: Vec<i32>,
    /// Slot of each sequence, and the tokens that it will have.
    ends: Vec<(u32, u32)>,
}

impl Rows {
    /// The arrays of a step that feeds `fed`, one sequence behind the other.
    pub fn of(fed: &[Fed<'_>], slots: u32) -> Self {
        let mut rows =
            Self { step_start: vec![0; slots as usize], first_row: vec![0; slots as usize], ..Self::default() };
        for part in fed {
            let slot = part.slot as usize;
            rows.step_start[slot] = part.start as i32;
            rows.first_row[slot] = rows.token_ids.len() as i32;
            for (offset, &token) in part.tokens.iter().enumerate() {
                rows.token_ids.push(token as i32);
                rows.positions.push((part.start as usize + offset) as i32);
                rows.sequences.push(part.slot as i32);
            }
            rows.ends.push((part.slot, part.start + part.tokens.len() as u32));
        }
        rows
    }

    /// Tokens of the step.
    pub fn len(&self) -> u32 {
        self.token_ids.len() as u32
    }

    /// Slot of each sequence, and the tokens that it will have.
    pub fn ends(&self) -> impl Iterator<Item = (u32, u32)> {
        self.ends.iter().copied()
    }

    /// The bucket that the step runs in.
    pub fn bucket(&self, options: &ForwardOptions) -> u32 {
        bucket_of(self.len()).unwrap_or(options.chunk).min(options.chunk)
    }

    /// Writes the arrays to the device.
    pub fn upload(&self, buffers: &StepBuffers) -> Result<(), ForwardError> {
        let ints = &buffers.ints;
        ints.upload(Part::TokenIds, &self.token_ids)?;
        ints.upload(Part::Positions, &self.positions)?;
        ints.upload(Part::Sequences, &self.sequences)?;
        ints.upload(Part::StepStart, &self.step_start)?;
        ints.upload(Part::FirstRow, &self.first_row)?;
        ints.upload(Part::Counts, &[self.len() as i32])
    }

    /// Chooses the rows whose logits are made.
    pub fn choose_head_rows(buffers: &StepBuffers, rows: &[i32]) -> Result<(), ForwardError> {
        buffers.ints.upload(Part::HeadRows, rows)?;
        buffers.ints.upload_head_count(rows.len() as i32)
    }
}

/// Refuses a step with one sequence twice: both would write the same places of its caches.
pub(super) fn each_once(slots: impl Iterator<Item = u32>) -> Result<(), ForwardError> {
    let mut sorted: Vec<u32> = slots.collect();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(ForwardError::Twice { slot: pair[0] }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_in_a_step_once() {
        assert!(each_once([3, 0, 2].into_iter()).is_ok());
        let error = each_once([3, 0, 3].into_iter()).unwrap_err().to_string();
        assert_eq!(error, "expected every sequence once in a step, found sequence 3 twice");
    }

    #[test]
    fn sequences_stand_one_behind_the_other() {
        let fed = [Fed { slot: 2, start: 5, tokens: &[7, 8, 9] }, Fed { slot: 0, start: 0, tokens: &[4] }];
        let rows = Rows::of(&fed, 3);
        assert_eq!(rows.token_ids, [7, 8, 9, 4]);
        assert_eq!(rows.positions, [5, 6, 7, 0]);
        assert_eq!(rows.sequences, [2, 2, 2, 0]);
        assert_eq!((rows.step_start, rows.first_row), (vec![0, 0, 5], vec![3, 0, 0]));
        assert_eq!(rows.ends, [(2, 8), (0, 1)]);
    }
}
