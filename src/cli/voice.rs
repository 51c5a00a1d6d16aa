//! The two voices of the command line: standard output is data, standard error is talk.
//!
//! A reader that has gone away (`| head -1`) is no failure and never a panic: what nobody reads is not written.

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::path::Path;

use serde::Serialize;

use super::CliError;
use crate::store::FileError;

/// Writes `value` to standard output: as JSON for scripts, or else as its [`Display`] has it, for people.
pub fn answer<T: Display + Serialize>(is_json: bool, value: &T) -> Result<(), CliError> {
    match is_json {
        true => json(value),
        false => print(&value.to_string()),
    }
}

/// Writes `value` to standard output as JSON.
pub fn json<T: Serialize>(value: &T) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::failed(format!("expected a result that JSON can hold, found: {error}"), None))?;
    print(&text)
}

/// Writes `text` and, unless it ends with one, a line end to standard output.
pub fn print(text: &str) -> Result<(), CliError> {
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    stream(&format!("{text}{end}"))
}

/// Writes `text` as it is to standard output, at once: more of the line may follow.
pub fn stream(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(FileError::new(Path::new("standard output"), "write", &error).into())
        }
        _ => Ok(()),
    }
}

/// Says what went wrong and, where there is one, the way out.
pub fn complain(error: &CliError) {
    talk(&format!("error: {error}"));
    if let Some(hint) = error.hint() {
        talk(&format!("\nhint: {hint}"));
    }
}

/// Says something that is no data.
pub fn talk(text: &str) {
    // Who has closed standard error does not want to hear about it.
    let _ = writeln!(std::io::stderr(), "{text}");
}
