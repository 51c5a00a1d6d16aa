//! Reports of `autotune bench` as files: read, compared with peers, printed, written into a README, saved as they grow.

use std::path::{Path, PathBuf};

use super::args::{CommonArgs, ReportArgs};
use super::suite::{self, Member};
use super::voice::{self, talk};
use super::{CliError, Exit};
use crate::problem::Problem;
use crate::report::{
    BenchReport, Coverage, Peers, RunnerReport, readme_block, regime_table, replace_block, runner_regime_table,
    standings, table,
};
use crate::store::{FileError, write_atomically};

/// `autotune report`: a committed report as tables, and into a README.
pub fn report(common: &CommonArgs, args: &ReportArgs) -> Result<Exit, CliError> {
    if common.json && (args.readme.is_some() || args.runner.is_some()) {
        let sentence = "expected `--json` with rows or `--regimes`, found it with `--readme` or `--runner`";
        return Err(CliError::usage(sentence, "leave `--json` out"));
    }
    let mut report = read_report(&args.results)?;
    if let Some(peers) = read_peers(&args.peers)? {
        report.take_peers(&peers);
    }
    if let Some(path) = &args.readme {
        let block = readme_block(&report, &args.results.display().to_string(), coverage(&report)?);
        let rewritten = replace_block(&read(path, "name the README of a checkout")?, &block).map_err(|error| {
            CliError::failed(format!("{}: {error}", path.display()), Some("README.md has both lines".to_string()))
        })?;
        save(path, &rewritten)?;
        talk(&format!("rewrote the results in {}", path.display()));
    } else if common.json && args.regimes {
        voice::json(&standings(&report))?;
    } else if common.json {
        voice::json(&report)?;
    } else if args.regimes {
        let runner = args.runner.as_deref().map(read_runner).transpose()?;
        let of_runner = runner.map_or(String::new(), |runner| format!("\n{}", runner_regime_table(&runner)));
        voice::print(&(regime_table(&report) + &of_runner))?;
    } else {
        voice::print(&table(&report))?;
    }
    Ok(Exit::Done)
}

/// How many problems of the suite that the goals were set for the report has.
fn coverage(report: &BenchReport) -> Result<Coverage, CliError> {
    let of = |member: Member| member.tokens.iter().map(move |&m| member.problem.with_m(m)).collect::<Vec<_>>();
    let all: Vec<Problem> = suite::members(suite::HOPPER)?.into_iter().flat_map(of).collect();
    let has = |problem: &&Problem| report.rows.iter().any(|row| row.problem == **problem);
    Ok(Coverage { suite: suite::HOPPER, measured: all.iter().filter(has).count(), problems: all.len() })
}

/// The report at `path`.
pub fn read_report(path: &Path) -> Result<BenchReport, CliError> {
    let text = read(path, "`autotune bench --out FILE` writes a report; benches/results/ holds some")?;
    serde_json::from_str(&text).map_err(|error| {
        let sentence = format!("{}: expected a report of `autotune bench`, found {error}", path.display());
        CliError::usage(sentence, "benches/results/ holds such reports")
    })
}

fn read_runner(path: &Path) -> Result<RunnerReport, CliError> {
    let text = read(path, "`dsv4 bench --out FILE` writes a report")?;
    serde_json::from_str(&text).map_err(|error| {
        let sentence = format!("{}: expected a report of `dsv4 bench`, found {error}", path.display());
        CliError::usage(sentence, "benches/results/ holds such reports")
    })
}

/// The rows of all files together; `None` of none.
pub fn read_peers(paths: &[PathBuf]) -> Result<Option<Peers>, CliError> {
    let hint = "benches/peers/h100.json shows the form of such a file";
    let mut all: Option<Peers> = None;
    for path in paths {
        let peers = Peers::parse(&read(path, hint)?)
            .map_err(|error| CliError::usage(format!("{}: {error}", path.display()), hint))?;
        match &mut all {
            Some(all) => all.add(peers),
            None => all = Some(peers),
        }
    }
    Ok(all)
}

/// Writes the report as JSON.
pub fn save_report(path: &Path, report: &BenchReport) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(report)
        .map_err(|error| CliError::failed(format!("the report cannot be written as JSON ({error})"), None))?;
    save(path, &(text + "\n"))
}

fn read(path: &Path, hint: &str) -> Result<String, CliError> {
    std::fs::read_to_string(path).map_err(|error| match FileError::new(path, "read", &error) {
        error @ FileError::Missing { .. } => CliError::failed(error.to_string(), Some(hint.to_string())),
        other => other.into(),
    })
}

/// Writes a file, with the folders that it lies in; a reader sees the old one or the new one.
fn save(path: &Path, text: &str) -> Result<(), CliError> {
    make_room(path)?;
    write_atomically(path, text.as_bytes()).map_err(CliError::from)
}

/// Makes the folders that a file will lie in.
pub fn make_room(path: &Path) -> Result<(), CliError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let made = folder.map_or(Ok(()), std::fs::create_dir_all);
    made.map_err(|error| FileError::new(path, "write", &error).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_saved_with_its_folders_or_says_what_is_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results/h100/bench.json");
        save(&path, "{}").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}");
        let error = save(&path.join("below.json"), "{}").unwrap_err();
        assert!(error.to_string().contains("found a file on the way") && error.hint().is_some(), "{error}");
    }
}
