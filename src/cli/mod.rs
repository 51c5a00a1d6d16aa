//! Words in, words out. Standard output is data, standard error is talk.
//!
//! Every failure is one sentence that says what was expected and what was found, and where there is a way out a hint.
//! Exit codes: 0 done, 1 failed, 2 usage, 3 done in part because the budget was spent or a signal came.

mod args;
mod bench;
mod context;
mod diff;
mod doctor;
mod dsv4;
mod duration;
mod error;
mod explain;
mod export;
mod gc;
mod import;
mod measure;
mod merge;
mod place;
mod predict;
mod progress;
mod records;
mod render;
mod results;
mod select;
mod show;
mod space;
mod standing;
mod subject_args;
mod suite;
mod table;
mod tune;
mod upkeep_args;
mod usage;
mod verify;
mod voice;
mod winners;

pub use dsv4::dsv4;
pub use error::{CliError, Exit};

use std::ffi::OsString;

use args::{Cli, Command, CommonArgs, TuneArgs};
use context::{Paths, Target};

/// Runs `autotune` with the words of a command line, the program's name first, and gives its exit code.
pub fn autotune(words: impl IntoIterator<Item = OsString>) -> Exit {
    let words: Vec<OsString> = words.into_iter().collect();
    let end = usage::parse(&words, usage::tuning_before_command).map_or_else(|end| end, run);
    end.unwrap_or_else(|error| {
        voice::complain(&error);
        error.exit()
    })
}

fn run(cli: Cli) -> Result<Exit, CliError> {
    let paths = Paths::of(&cli.common);
    match cli.command {
        None => main_job(&cli.common, &cli.tune, &paths),
        Some(Command::Show(show)) => show::run(&cli.common, &show, &paths),
        Some(Command::Explain(explain)) => explain::run(&cli.common, &explain, &paths),
        Some(Command::Render(render)) => render::run(&cli.common, &render, &paths),
        Some(Command::Bench(args)) => bench::run(&cli.common, &args, &paths),
        Some(Command::Report(args)) => results::report(&cli.common, &args),
        Some(Command::Export(args)) => export::run(&cli.common, &args, &paths),
        Some(Command::Import(args)) => import::run(&cli.common, &args, &paths),
        Some(Command::Merge(args)) => merge::run(&cli.common, &args),
        Some(Command::Diff(args)) => diff::run(&cli.common, &args),
        Some(Command::Verify(args)) => verify::run(&cli.common, &args, &paths),
        Some(Command::Gc(args)) => gc::run(&cli.common, &args, &paths),
        Some(Command::Doctor(_)) => doctor::run(&cli.common, &paths),
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
