//! Words in, words out. Standard output is data, standard error is talk.
//!
//! Every failure is one sentence that says what was expected and what was found, and where there is a way out a hint.
//! Exit codes: 0 done, 1 failed, 2 usage, 3 done in part because the budget was spent or a signal came.

mod args;
mod context;
mod error;
mod predict;
mod progress;
mod select;
mod show;
mod table;
mod tune;
mod voice;

pub use error::{CliError, Exit};

use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, Command};
use context::Paths;

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
        None => tune::run(&cli.common, &cli.tune, &paths),
        Some(Command::Show(show)) => show::run(&cli.common, &show, &paths),
        Some(Command::Worker(worker)) => context::serve(&worker, &paths),
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
