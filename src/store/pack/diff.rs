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
        /// The winner, as text.
        tile: String,
        /// Its time, microseconds.
        us: f64,
    },
    /// Only the second has a winner.
    OnlyThere {
        /// The problem.
        problem: Problem,
        /// The winner, as text.
        tile: String,
        /// Its time, microseconds.
        us: f64,
    },
    /// The same tile won.
    SameTile {
        /// The problem.
        problem: Problem,
        /// The winner, as text.
        tile: String,
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
            Self::OnlyHere { problem, .. } => write!(f, "{problem}: only here"),
            Self::OnlyThere { problem, .. } => write!(f, "{problem}: only there"),
            Self::SameTile { problem, us: (here, there), .. } => {
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
    let facts = |record: &Record| (record.problem.clone(), record.tile.to_string(), record.timing.chained_us);
    Some(match (here.map(facts), there.map(facts)) {
        (Some((problem, tile, us)), None) => Difference::OnlyHere { problem, tile, us },
        (None, Some((problem, tile, us))) => Difference::OnlyThere { problem, tile, us },
        (Some((problem, tile, here)), Some((_, other, there))) => match tile == other {
            true => Difference::SameTile { problem, tile, us: (here, there) },
            false => Difference::OtherTile { problem, tiles: (tile, other), us: (here, there) },
        },
        (None, None) => return None,
    })
}
