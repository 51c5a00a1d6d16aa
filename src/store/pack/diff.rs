//! What two sets of winners say about the same problems.

use super::merge::pairs;
use crate::problem::Problem;
use crate::store::Record;

/// What two sets say about one problem.
#[derive(Clone, Debug, PartialEq)]
pub enum Difference {
    /// Only the first has a winner.
    OnlyHere {
        /// The problem.
        problem: Problem,
    },
    /// Only the second has a winner.
    OnlyThere {
        /// The problem.
        problem: Problem,
    },
    /// The same tile won.
    SameTile {
        /// The problem.
        problem: Problem,
        /// Its times here and there, microseconds.
        us: (f64, f64),
    },
    /// Another tile won.
    OtherTile {
        /// The problem.
        problem: Problem,
        /// The winners here and there, as text.
        tiles: (String, String),
        /// Their times, microseconds.
        us: (f64, f64),
    },
}

impl Difference {
    /// Time there over time here: below 1 the second set is faster. `None` where there is nothing to compare.
    pub fn ratio(&self) -> Option<f64> {
        match self {
            Self::SameTile { us: (here, there), .. } | Self::OtherTile { us: (here, there), .. } => Some(there / here),
            Self::OnlyHere { .. } | Self::OnlyThere { .. } => None,
        }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OnlyHere { problem } => write!(f, "{problem}: only here"),
            Self::OnlyThere { problem } => write!(f, "{problem}: only there"),
            Self::SameTile { problem, us: (here, there) } => {
                write!(f, "{problem}: same tile, {here:.2} us here, {there:.2} us there ({:.3})", there / here)
            }
            Self::OtherTile { problem, tiles, us: (here, there) } => write!(
                f,
                "{problem}: `{}` in {here:.2} us here, `{}` in {there:.2} us there ({:.3})",
                tiles.0,
                tiles.1,
                there / here
            ),
        }
    }
}

/// Compares two sets of winners of one GPU, problem by problem.
pub fn diff(here: &[Record], there: &[Record]) -> Vec<Difference> {
    pairs(here, there).into_iter().filter_map(|(here, there)| compare(here, there)).collect()
}

fn compare(here: Option<&Record>, there: Option<&Record>) -> Option<Difference> {
    Some(match (here, there) {
        (Some(here), None) => Difference::OnlyHere { problem: here.problem.clone() },
        (None, Some(there)) => Difference::OnlyThere { problem: there.problem.clone() },
        (Some(here), Some(there)) => {
            let (problem, us) = (here.problem.clone(), (here.timing.chained_us, there.timing.chained_us));
            match here.tile == there.tile {
                true => Difference::SameTile { problem, us },
                false => Difference::OtherTile { problem, tiles: (here.tile.to_string(), there.tile.to_string()), us },
            }
        }
        (None, None) => return None,
    })
}
