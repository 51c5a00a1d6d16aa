//! What is continued: prompts as token ids, out of the flags and files that name them.

use std::path::Path;

use super::args::PromptArgs;
use super::token_list;
use crate::cli::CliError;
use crate::engine::{Tokens, TokensError};
use crate::models::dsv4::prompt::{Conversation, Message, Mode, Role};

/// The prompts that `args` name, in order.
///
/// # Errors
/// None, or one that cannot be read or encoded; a text where there is no tokenizer.
pub fn read(args: &PromptArgs, tokenizer: Option<&Tokens>) -> Result<Vec<Vec<u32>>, CliError> {
    let mode = if args.thinking { Mode::Thinking } else { Mode::Chat };
    let encode = |conversation: &Conversation| encode(conversation, mode, tokenizer);
    match (&args.prompt, &args.tokens, &args.batch_file) {
        (Some(text), _, _) => Ok(vec![encode(&Conversation::question(args.system.as_deref(), text))?]),
        (_, Some(list), _) => Ok(vec![token_list::read(list)?]),
        (_, _, Some(path)) => read_lines(path, args.system.as_deref(), &encode),
        _ => Err(CliError::usage(
            "expected --prompt, --tokens or --batch-file, found none of them",
            "`dsv4 generate --help` shows examples",
        )),
    }
}

/// The tokenizer of a model directory; `None` where it has none.
///
/// # Errors
/// A file that is no tokenizer.
pub fn tokenizer(model_dir: &Path) -> Result<Option<Tokens>, CliError> {
    let path = model_dir.join("tokenizer.json");
    if !path.exists() {
        return Ok(None);
    }
    let hint = "`--tokens` takes ids, but a file that is there must be readable to show the answer as text";
    Tokens::open(&path).map(Some).map_err(|error| CliError::failed(error.to_string(), Some(hint.into())))
}

/// A prompt on each line that is not blank.
fn read_lines(
    path: &Path,
    system: Option<&str>,
    encode: &dyn Fn(&Conversation) -> Result<Vec<u32>, CliError>,
) -> Result<Vec<Vec<u32>>, CliError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let found = if error.kind() == std::io::ErrorKind::NotFound { "nothing".into() } else { error.to_string() };
        mistake(format!("expected a batch file at `{}`, found {found}", path.display()))
    })?;
    let mut prompts = Vec::new();
    for (line_idx, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = format!("line {} of `{}`", line_idx + 1, path.display());
        let unreadable = |error: serde_json::Error| {
            mistake(format!("expected a text, a list of ids or a conversation in JSON on {at}, found: {error}"))
        };
        let prompt = match line.trim_start().as_bytes()[0] {
            b'[' => serde_json::from_str(line).map_err(unreadable)?,
            b'{' => {
                let conversation = serde_json::from_str(line).map_err(unreadable)?;
                encode(&with_system(conversation, system, &at)?)?
            }
            _ => {
                let text: String = serde_json::from_str(line).map_err(unreadable)?;
                encode(&Conversation::question(system, &text))?
            }
        };
        if prompt.is_empty() {
            return Err(mistake(format!("expected at least one token id, found none on {at}")));
        }
        prompts.push(prompt);
    }
    if prompts.is_empty() {
        return Err(mistake(format!("expected a prompt on each line of `{}`, found no line", path.display())));
    }
    Ok(prompts)
}

/// The conversation with the system text of the command line, unless it has its own.
fn with_system(mut conversation: Conversation, system: Option<&str>, at: &str) -> Result<Conversation, CliError> {
    let Some(system) = system else { return Ok(conversation) };
    if conversation.messages.first().is_some_and(|message| message.role == Role::System) {
        return Err(mistake(format!(
            "expected system text from `--system` or in the conversation, found both on {at}"
        )));
    }
    let system: Vec<Message> = Conversation::question(Some(system), "").messages.into_iter().take(1).collect();
    conversation.messages.splice(0..0, system);
    Ok(conversation)
}

fn encode(conversation: &Conversation, mode: Mode, tokenizer: Option<&Tokens>) -> Result<Vec<u32>, CliError> {
    let text = conversation.encode(mode).map_err(|error| mistake(error.to_string()))?;
    let Some(tokenizer) = tokenizer else {
        return Err(CliError::usage(
            "expected token ids, because the model directory has no tokenizer.json, found a text",
            "give ids with `--tokens`, or put the model's tokenizer.json beside its config.json",
        ));
    };
    let failed = |error: TokensError| CliError::failed(error.to_string(), None);
    let ids = tokenizer.encode(&text).map_err(failed)?;
    if ids.is_empty() {
        return Err(mistake(
            "expected a prompt of at least one token, found one that the tokenizer makes none of".into(),
        ));
    }
    Ok(ids)
}

fn mistake(sentence: String) -> CliError {
    CliError::usage(sentence, "`dsv4 generate --help` shows what a prompt and a batch file look like")
}
