//! `autotune diff`: which winners two packs or databases do not share, with their times.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::args::CommonArgs;
use super::table::Table;
use super::upkeep_args::DiffArgs;
use super::voice::{answer, talk};
use super::{CliError, Exit, context, place};
use crate::store::{Difference, Record, diff};

/// Compares GPU by GPU; with `--gpu` only that product.
pub fn run(common: &CommonArgs, args: &DiffArgs) -> Result<Exit, CliError> {
    let product = match common.gpu {
        Some(_) => Some(context::spec(common)?.identity.product),
        None => None,
    };
    let mut gpus: BTreeMap<String, (Vec<Record>, Vec<Record>)> = BTreeMap::new();
    let wanted = |record: &Record| product.as_ref().is_none_or(|product| *product == record.gpu.product);
    for record in place::winners_at(&args.here)?.into_iter().filter(wanted) {
        gpus.entry(record.gpu.to_string()).or_default().0.push(record);
    }
    for record in place::winners_at(&args.there)?.into_iter().filter(wanted) {
        gpus.entry(record.gpu.to_string()).or_default().1.push(record);
    }
    let mut changes = Changes(Vec::new());
    let mut n_same = 0;
    for (gpu, (here, there)) in &gpus {
        let all: Vec<Change> = diff(here, there).into_iter().map(|difference| Change::of(gpu, difference)).collect();
        n_same += all.iter().filter(|change| change.kind == Kind::Same).count();
        changes.0.extend(all.into_iter().filter(|change| change.kind != Kind::Same));
    }
    answer(common.json, &changes)?;
    let count = |kind| changes.0.iter().filter(|change| change.kind == kind).count();
    talk(&format!(
        "{} added, {} removed, {} changed, {} timed anew, {n_same} the same",
        count(Kind::Added),
        count(Kind::Removed),
        count(Kind::Changed),
        count(Kind::Retimed)
    ));
    Ok(Exit::Done)
}

#[derive(Serialize)]
#[serde(transparent)]
struct Changes(Vec<Change>);

/// One winner in both places.
#[derive(Serialize)]
struct Change {
    gpu: String,
    problem: String,
    #[serde(rename = "change")]
    kind: Kind,
    us_a: Option<f64>,
    us_b: Option<f64>,
    /// Time in B over time in A: below 1 B is faster.
    ratio: Option<f64>,
    tile_a: Option<String>,
    tile_b: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// Only B has a winner.
    Added,
    /// Only A has a winner.
    Removed,
    /// Another tile won.
    Changed,
    /// The same tile won in another time.
    Retimed,
    Same,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "changed",
            Self::Retimed => "timed anew",
            Self::Same => "same",
        }
    }
}

impl Change {
    fn of(gpu: &str, difference: Difference) -> Self {
        let ratio = difference.ratio();
        let (kind, problem, a, b) = match difference {
            Difference::OnlyHere { problem, tile, us } => (Kind::Removed, problem, Some((tile, us)), None),
            Difference::OnlyThere { problem, tile, us } => (Kind::Added, problem, None, Some((tile, us))),
            Difference::SameTile { problem, tile, us: (a, b) } => {
                let kind = if (a / b - 1.0).abs() < ROUNDING { Kind::Same } else { Kind::Retimed };
                (kind, problem, Some((tile.clone(), a)), Some((tile, b)))
            }
            Difference::OtherTile { problem, tiles, us } => {
                (Kind::Changed, problem, Some((tiles.0, us.0)), Some((tiles.1, us.1)))
            }
        };
        let ((tile_a, us_a), (tile_b, us_b)) = (a.unzip(), b.unzip());
        Self { gpu: gpu.to_string(), problem: problem.to_string(), kind, us_a, us_b, ratio, tile_a, tile_b }
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for changes in self.0.chunk_by(|a, b| a.gpu == b.gpu) {
            writeln!(f, "{}\n{}", changes[0].gpu, table(changes))?;
        }
        Ok(())
    }
}

fn table(changes: &[Change]) -> Table {
    let mut table = Table::new(["change", "problem", ">us in A", ">us in B", ">B / A", "tile in A", "tile in B"]);
    let us = |us: Option<f64>| us.map(|us| format!("{us:.2}")).unwrap_or_default();
    for Change { problem, kind, us_a, us_b, ratio, tile_a, tile_b, .. } in changes {
        let tile_b = tile_b.clone().filter(|_| *kind != Kind::Retimed);
        table.row([
            kind.word().to_string(),
            problem.clone(),
            us(*us_a),
            us(*us_b),
            ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default(),
            tile_a.clone().unwrap_or_default(),
            tile_b.unwrap_or_default(),
        ]);
    }
    table
}

/// A pack keeps six digits of a time, a database all.
const ROUNDING: f64 = 1e-5;
