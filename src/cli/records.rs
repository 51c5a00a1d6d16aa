//! `autotune show records`: the winners that are kept for a GPU, and which of them is used for a problem.

use std::fmt;

use serde::Serialize;

use super::args::{CommonArgs, RecordsArgs};
use super::context::{self, Paths};
use super::table::Table;
use super::voice::{answer, talk};
use super::winners::{Answer, Winners};
use super::{CliError, Exit, select};
use crate::problem::{Problem, Routing};
use crate::store::{Entry, Origin};

/// Shows winners, or with `--why` how each problem is answered.
pub fn run(common: &CommonArgs, records: &RecordsArgs, paths: &Paths) -> Result<Exit, CliError> {
    let winners = Winners::open(paths, context::spec(common)?);
    if records.why {
        let problems = select::buckets_of(&records.subject)?;
        let answers = problems.iter().map(|(_, problem)| winners.ask(problem)).collect::<Result<_, CliError>>()?;
        answer(common.json, &Answers { gpu: winners.gpu().identity.product.clone(), answers })?;
        return Ok(Exit::Done);
    }
    let wanted: Option<Vec<Problem>> = match select::is_everything(&records.subject) {
        true => None,
        false => Some(select::buckets_of(&records.subject)?.into_iter().map(|(_, problem)| problem).collect()),
    };
    let entries = winners.entries();
    let wanted = entries.iter().filter(|entry| wanted.as_ref().is_none_or(|wanted| wanted.contains(&entry.problem)));
    let rows: Vec<Row> = wanted.map(|entry| Row::of(entry, &winners)).collect();
    if rows.is_empty() {
        talk(&format!("nothing is kept for this on {}; `autotune` fills it", winners.gpu().identity.product));
    }
    answer(common.json, &Rows(rows))?;
    Ok(Exit::Done)
}

/// One winner.
#[derive(Serialize)]
struct Row {
    problem: String,
    m: u32,
    tile: String,
    us: f64,
    floor_us: f64,
    /// Of a block of experts: its time is the geometric mean under these, its floor that of uniform routing.
    routings: Vec<String>,
    /// The default's time over the winner's; `None` where it was not measured.
    gain: Option<f64>,
    origin: String,
    stale: Option<String>,
    numerics: String,
    rounds: u32,
    tried: u32,
    driver: String,
    nvrtc: String,
    commit: String,
    written_at: u64,
}

impl Row {
    fn of(entry: &Entry, winners: &Winners) -> Self {
        Self {
            problem: entry.problem.to_string(),
            m: entry.problem.m(),
            tile: entry.tile.to_string(),
            us: entry.timing.chained_us,
            floor_us: entry.problem.floor_us(winners.gpu()),
            routings: entry.routings.iter().map(Routing::to_string).collect(),
            gain: (entry.origin == Origin::Measured).then(|| entry.default_us / entry.timing.chained_us),
            origin: entry.origin.to_string(),
            stale: winners.stale(entry).map(|stale| stale.to_string()),
            numerics: entry.numerics.to_string(),
            rounds: entry.timing.rounds,
            tried: entry.tried,
            driver: entry.toolchain.driver.clone(),
            nvrtc: entry.toolchain.nvrtc.clone(),
            commit: entry.toolchain.commit.clone(),
            written_at: entry.written_at,
        }
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Rows(Vec<Row>);

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["problem", ">m", ">us", ">% of floor", ">gain", "origin", "stale", "tile"]);
        for row in &self.0 {
            table.row([
                row.problem.clone(),
                row.m.to_string(),
                format!("{:.2}", row.us),
                // A mean over several routings has no floor of its own.
                if row.routings.len() < 2 { format!("{:.0}", 100.0 * row.floor_us / row.us) } else { String::new() },
                row.gain.map(|gain| format!("{gain:.2}")).unwrap_or_default(),
                match row.routings[..] {
                    [] => row.origin.clone(),
                    _ => format!("{}, {}", row.origin, row.routings.join(" and ")),
                },
                row.stale.as_ref().map_or("", |_| "stale").to_string(),
                row.tile.clone(),
            ]);
        }
        table.fmt(f)
    }
}

/// How each problem is answered.
#[derive(Serialize)]
struct Answers {
    gpu: String,
    answers: Vec<Answer>,
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for found in &self.answers {
            writeln!(f, "{} on {}\n{found}", found.problem, self.gpu)?;
        }
        Ok(())
    }
}
