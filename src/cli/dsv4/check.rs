//! `dsv4 check`: a checkpoint's files and scales, without a GPU.

use super::args::CheckArgs;
use crate::cli::voice;
use crate::cli::{CliError, Exit};
use crate::models::dsv4::weights::examine;

/// Looks at everything in the directory, and fails if it cannot be loaded.
pub fn run(args: &CheckArgs, is_json: bool) -> Result<Exit, CliError> {
    let examination = examine(&args.model_dir);
    voice::answer(is_json, &examination)?;
    match examination.refusal {
        None => Ok(Exit::Done),
        Some(refusal) => {
            // The list stands on standard output: its first line is the sentence.
            let sentence = refusal.message.lines().next().unwrap_or_default().to_string();
            let hint = "everything that is wrong stands on standard output, with --json for scripts";
            Err(CliError::failed(sentence, Some(hint.into())))
        }
    }
}
