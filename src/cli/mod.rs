//! Words in, words out. Standard output is data, standard error is talk.
//!
//! Every failure is one sentence that says what was expected and what was found, and where there is a way out a hint.
//! Exit codes: 0 done, 1 failed, 2 usage, 3 done in part because the budget was spent or a signal came.

mod args;
mod bench;
mod context;
mod duration;
mod error;
mod predict;
mod progress;
mod select;
mod show;
mod tune;

pub use error::{CliError, Exit};

use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, Command, CommonArgs, TuneArgs};
use context::{Paths, Target};

/// Runs `autotune` with the words of a command line, the program's name first, and gives its exit code.
pub fn autotune(words: impl IntoIterator<Item = String>) -> Exit {
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(cli) {
        Ok(exit) => exit,
        Err(error) => {
            error.print();
            error.exit()
        }
    }
}

fn run(cli: Cli) -> Result<Exit, CliError> {
    let paths = Paths::of(&cli.common);
    match cli.command {
        None => main_job(&cli.common, &cli.tune, &paths),
        Some(Command::Show(show)) => show::run(&cli.common, &show, &paths),
        Some(Command::Bench(args)) => bench::run(&cli.common, &args, &paths),
        Some(Command::Report(args)) => bench::report(&cli.common, &args),
        Some(Command::Worker(worker)) => context::serve(&worker, &paths),
    }
}

/// Tunes on the GPU at hand, or compiles and predicts for one that is not.
fn main_job(common: &CommonArgs, tune: &TuneArgs, paths: &Paths) -> Result<Exit, CliError> {
    let jobs = select::jobs(&tune.subject, tune.effort)?;
    match context::target(common, paths)? {
        Target::Live(worker, command, gpu) => tune::run(common, tune, paths, (*worker, command, gpu), &jobs),
        Target::Facts(gpu) => predict::run(common, tune, paths, gpu, &jobs),
    }
}

/// clap's own words for `--help` and `--version`, ours for mistakes: one sentence, then the hint.
fn usage(error: &clap::Error) -> Exit {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // A closed pipe is no failure of a help text.
            let _ = error.print();
            Exit::Done
        }
        _ => {
            let text = error.to_string();
            let sentence = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            let error = CliError::usage(sentence.to_string(), "`autotune --help` lists commands, flags and examples");
            error.print();
            error.exit()
        }
    }
}
