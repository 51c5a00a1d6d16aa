//! `autotune show`: problems, spaces, winners.

use super::args::{CommonArgs, ShowArgs, ShowCommand};
use super::context::{self, Paths};
use super::subject_args::SubjectArgs;
use super::table::Table;
use super::{CliError, Exit, records, select, space, voice};
use crate::models::Row;

/// Shows what the words ask for.
pub fn run(common: &CommonArgs, show: &ShowArgs, paths: &Paths) -> Result<Exit, CliError> {
    match &show.what {
        ShowCommand::Problems(subject) => problems(common, subject),
        ShowCommand::Space(subject) => space::run(common, subject),
        ShowCommand::Records(args) => records::run(common, args, paths),
    }
}

fn problems(common: &CommonArgs, subject: &SubjectArgs) -> Result<Exit, CliError> {
    if !subject.problems.is_empty() || subject.suite.is_some() {
        let sentence = "expected a model, found `--problem` or `--suite`";
        return Err(CliError::usage(sentence, "`autotune explain PROBLEM` tells what one problem costs"));
    }
    let (gpu, wanted) = (context::spec(common)?, select::buckets(&subject.tokens)?);
    let rows = select::ops(subject)?.into_iter().flat_map(|op| op.rows(&gpu));
    let rows: Vec<Row> = rows.filter(|row| wanted.is_empty() || wanted.contains(&row.m)).collect();
    if common.json {
        voice::json(&rows)?;
    } else {
        voice::print(&table(&rows).to_string())?;
    }
    Ok(Exit::Done)
}

fn table(rows: &[Row]) -> Table {
    let mut table =
        Table::new(["name", ">n", ">k", ">groups", ">count", "format", ">m", ">weight bytes", ">bytes", ">floor us"]);
    for row in rows {
        table.row([
            row.name.clone(),
            row.n.to_string(),
            row.k.to_string(),
            row.groups.to_string(),
            row.count.to_string(),
            row.weights.to_string(),
            row.m.to_string(),
            row.weight_bytes.to_string(),
            row.bytes.to_string(),
            format!("{:.2}", row.floor_us),
        ]);
    }
    table
}
