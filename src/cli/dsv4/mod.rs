//! The command line of `dsv4`, which runs DeepSeek-V4. Voices and exit codes are those of all commands here.

mod args;
mod bench;
mod bench_args;
mod check;
mod compare;
mod generate;
mod gpu_args;
mod logits;
mod meter;
mod numerics_args;
mod prompts;
mod session;
mod subject;
mod text_out;
mod token_list;

use std::ffi::OsString;

use super::{CliError, Exit, usage, voice};
use args::{Cli, Command};

/// Runs `dsv4` with the words of a command line, the program's name first, and gives its exit code.
pub fn dsv4(words: impl IntoIterator<Item = OsString>) -> Exit {
    let words: Vec<OsString> = words.into_iter().collect();
    let end = usage::parse(&words, |_| None).map_or_else(|end| end, run);
    end.unwrap_or_else(|error| {
        voice::complain(&error);
        error.exit()
    })
}

fn run(cli: Cli) -> Result<Exit, CliError> {
    let is_json = cli.common.json;
    match cli.command {
        Command::Generate(args) => generate::run(&args, is_json),
        Command::Logits(args) => logits::run(&args, is_json),
        Command::Compare(args) => compare::run(&args, is_json),
        Command::Bench(args) => bench::run(&args, is_json),
        Command::Check(args) => check::run(&args, is_json),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
