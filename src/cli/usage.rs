//! Mistakes on the command line, in our words: what was expected, what was found, where to look.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, CommandFactory, FromArgMatches};

use super::args::TuneArgs;
use super::voice::print;
use super::{CliError, Exit};

/// Understands the words of a command line, the program's name first. `misplaced` finds what clap lets pass.
///
/// # Errors
/// What becomes of the rest: `Ok` for `--help` and `--version`, which are printed here, and the sentence of a mistake.
pub fn parse<C: CommandFactory + FromArgMatches>(
    words: &[OsString],
    misplaced: impl Fn(&ArgMatches) -> Option<CliError>,
) -> Result<C, Result<Exit, CliError>> {
    let mut command = C::command();
    let matches = command.try_get_matches_from_mut(words).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => print(&error.render().to_string()).map(|()| Exit::Done),
        _ => Err(CliError::usage(sentence(&error, named(&command, words)), hint(&error))),
    })?;
    misplaced(&matches).map_or(Ok(()), |mistake| Err(Err(mistake)))?;
    C::from_arg_matches(&matches).map_err(|error| Err(CliError::usage(sentence(&error, &command), hint(&error))))
}

/// A flag of tuning before another command, which clap would read and nobody would look at.
pub fn tuning_before_command(matches: &ArgMatches) -> Option<CliError> {
    let after = matches.subcommand_name()?;
    let flags = TuneArgs::augment_args(Command::new(""));
    let is_given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let flag = flags.get_arguments().find(|flag| is_given(flag.get_id().as_str()))?.get_long()?;
    let sentence = format!("expected `--{flag}` after `{after}`, found it before");
    Some(CliError::usage(sentence, "a flag before the command belongs to tuning"))
}

/// The innermost command that `words` name.
fn named<'a>(command: &'a Command, words: &[OsString]) -> &'a Command {
    words.iter().skip(1).fold(command, |command, word| command.find_subcommand(word).unwrap_or(command))
}

fn sentence(error: &clap::Error, command: &Command) -> String {
    let context = |kind| error.get(kind).map(words).unwrap_or_default();
    let (name, found) = (context(ContextKind::InvalidArg), context(ContextKind::InvalidValue));
    match error.kind() {
        ErrorKind::UnknownArgument if name.starts_with('-') => {
            format!("expected a flag that the command has, found `{name}`")
        }
        ErrorKind::UnknownArgument => format!("expected no more words, found `{name}`"),
        ErrorKind::InvalidSubcommand => {
            let named = context(ContextKind::InvalidSubcommand);
            format!("expected a command ({}), found `{named}`", commands(command).join(", "))
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            format!("expected {} after `{}`, found nothing", either(&commands(command)), command.get_name())
        }
        ErrorKind::InvalidValue if found.is_empty() => format!("expected a value for `{name}`, found none"),
        ErrorKind::InvalidValue => {
            let values = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(values)) => either(values),
                _ => "another value".to_string(),
            };
            format!("expected {values} for `{name}`, found `{found}`")
        }
        ErrorKind::ValueValidation => match std::error::Error::source(error).map(ToString::to_string) {
            Some(reason) if reason.starts_with("expected") => reason,
            _ => format!("expected a number for `{name}`, found `{found}`"),
        },
        ErrorKind::MissingRequiredArgument => format!("expected {name}, found nothing"),
        ErrorKind::ArgumentConflict => match context(ContextKind::PriorArg) {
            prior if prior == name => format!("expected `{name}` once, found it twice"),
            prior => format!("expected either `{name}` or `{prior}`, found both"),
        },
        ErrorKind::InvalidUtf8 => "expected words in UTF-8, found others".to_string(),
        _ => error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_string(),
    }
}

/// What clap suggests, or else where everything is listed.
fn hint(error: &clap::Error) -> String {
    let suggestions = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue];
    match suggestions.into_iter().find_map(|kind| error.get(kind)) {
        Some(suggested) => format!("did you mean `{}`?", words(suggested)),
        None => "`--help` after any command lists its flags and examples".to_string(),
    }
}

fn words(value: &ContextValue) -> String {
    match value {
        ContextValue::String(word) => word.clone(),
        ContextValue::Strings(words) => words.join(", "),
        ContextValue::Number(number) => number.to_string(),
        other => other.to_string(),
    }
}

/// The commands that a user may give.
fn commands(command: &Command) -> Vec<String> {
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help");
    shown.map(|command| command.get_name().to_string()).collect()
}

/// `a, b or c`.
fn either(names: &[String]) -> String {
    match names {
        [] => "nothing".to_string(),
        [name] => name.clone(),
        [names @ .., last] => format!("{} or {last}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Cli;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn lists_read_like_sentences() {
        let names = ["a", "b", "c"].map(str::to_string);
        assert_eq!([either(&names), either(&names[..2]), either(&names[..1])], ["a, b or c", "a or b", "a"]);
    }
}
