//! How a model is cut over ranks, and the sentences for cuts that do not come out whole.

/// Ranks that a model is spread over. The two ways of cutting are independent: a rank holds `1 / ep` of the routed
/// experts, and `1 / tp` of each of them and of every other matrix that is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shard {
    /// Ranks that share every split matrix (tensor parallelism).
    pub tp: u32,
    /// Ranks that share the routed experts (expert parallelism).
    pub ep: u32,
}

impl Shard {
    /// Refuses numbers of ranks that are not powers of two.
    ///
    /// # Errors
    /// [`InventoryError::Ranks`] names the first such number.
    pub fn check(self) -> Result<(), InventoryError> {
        for (by, ranks) in [("tp", self.tp), ("ep", self.ep)] {
            if !ranks.is_power_of_two() {
                return Err(InventoryError::Ranks { by, ranks });
            }
        }
        Ok(())
    }

    /// One rank's part of `whole`, cut `tp` ways.
    ///
    /// # Errors
    /// [`InventoryError::Split`] unless the part is a whole multiple of `multiple`.
    pub fn tp_part(self, whole: Whole, multiple: u32) -> Result<u32, InventoryError> {
        part(whole, "tp", self.tp, multiple)
    }

    /// One rank's part of `whole`, cut `ep` ways.
    ///
    /// # Errors
    /// [`InventoryError::Split`] unless the part is a whole number.
    pub fn ep_part(self, whole: Whole) -> Result<u32, InventoryError> {
        part(whole, "ep", self.ep, 1)
    }
}

/// The whole model on one rank.
impl Default for Shard {
    fn default() -> Self {
        Self { tp: 1, ep: 1 }
    }
}

/// What is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// The op that it belongs to.
    pub op: &'static str,
    /// Which of the op's numbers it is: `n`, `k`, `groups`, `experts`.
    pub axis: &'static str,
    /// The number before it is cut.
    pub size: u32,
}

/// A shard that the model cannot be cut into.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InventoryError {
    /// Three ranks, or none.
    #[error("expected {by} to be a power of two, found {by} = {ranks}")]
    Ranks {
        /// `tp` or `ep`.
        by: &'static str,
        /// What was asked.
        ranks: u32,
    },
    /// More ranks than groups of heads: a group is not cut.
    #[error("expected tp to be at most {groups} (the groups of `{op}`), found tp = {tp}")]
    Groups {
        /// The op with the groups.
        op: &'static str,
        /// How many it has.
        groups: u32,
        /// What was asked.
        tp: u32,
    },
    /// A part that is no whole number of blocks.
    #[error(
        "expected {axis} = {size} of `{op}` to split over {by} = {ranks} in multiples of {multiple}, found {} a rank",
        f64::from(*size) / f64::from(*ranks)
    )]
    Split {
        /// The op.
        op: &'static str,
        /// Which of its numbers.
        axis: &'static str,
        /// That number before it is cut.
        size: u32,
        /// `tp` or `ep`.
        by: &'static str,
        /// Into how many parts.
        ranks: u32,
        /// What a part must be a multiple of.
        multiple: u32,
    },
}

fn part(whole: Whole, by: &'static str, ranks: u32, multiple: u32) -> Result<u32, InventoryError> {
    let Whole { op, axis, size } = whole;
    match ranks.checked_mul(multiple) {
        // Nothing is cut, so a small model may have parts of any size.
        _ if ranks == 1 && size > 0 => Ok(size),
        Some(step) if step > 0 && size >= step && size.is_multiple_of(step) => Ok(size / ranks),
        _ => Err(InventoryError::Split { op, axis, size, by, ranks, multiple }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: Whole = Whole { op: "a.b", axis: "n", size: 768 };

    #[test]
    fn parts_are_whole_multiples() {
        assert_eq!(Shard { tp: 2, ep: 1 }.tp_part(ROWS, 128), Ok(384));
        assert_eq!(Shard { tp: 1, ep: 256 }.ep_part(ROWS), Ok(3));
    }

    #[test]
    fn each_refusal_says_expected_and_found() {
        let refusals = [
            (Shard { tp: 3, ep: 1 }.check(), "expected tp to be a power of two, found tp = 3"),
            (Shard { tp: 1, ep: 0 }.check(), "expected ep to be a power of two, found ep = 0"),
            (
                Shard { tp: 4, ep: 1 }.tp_part(ROWS, 128).map(|_| ()),
                "expected n = 768 of `a.b` to split over tp = 4 in multiples of 128, found 192 a rank",
            ),
            (
                Shard { tp: 1, ep: 512 }.ep_part(ROWS).map(|_| ()),
                "expected n = 768 of `a.b` to split over ep = 512 in multiples of 1, found 1.5 a rank",
            ),
            (
                Shard { tp: 1 << 31, ep: 1 }.tp_part(Whole { size: 0, ..ROWS }, 2).map(|_| ()),
                "expected n = 0 of `a.b` to split over tp = 2147483648 in multiples of 2, found 0 a rank",
            ),
        ];
        for (result, sentence) in refusals {
            assert_eq!(result.unwrap_err().to_string(), sentence);
        }
    }
}
