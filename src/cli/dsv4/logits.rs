//! `dsv4 logits`: the logits of every token of a list, in a file.

use serde_json::json;

use super::args::LogitsArgs;
use super::generate::{check_ids, warm_up};
use super::numerics_args::Scale;
use super::session::{self, Size};
use super::token_list;
use crate::cli::voice::{self, talk};
use crate::cli::{CliError, Exit};
use crate::engine::dump::{Tensor, write_tensors};

/// Feeds the tokens and writes what comes out.
pub fn run(args: &LogitsArgs, is_json: bool) -> Result<Exit, CliError> {
    let scale = args.model.run.numerics.scale()?;
    let config = session::config(&args.model.model_dir, &args.model.run)?;
    let lists = [token_list::read(&args.tokens)?];
    let [tokens] = &lists;
    check_ids(&lists, config.config.vocabulary)?;
    let limit = args.model.run.context.unwrap_or(config.config.max_tokens);
    if tokens.len() > limit as usize {
        let sentence = format!("expected at most {limit} token ids, found {}", tokens.len());
        return Err(CliError::usage(sentence, "a shorter list; `--context` up to the model's max_position_embeddings"));
    }
    let context = args.model.run.context.unwrap_or(tokens.len() as u32);
    let mut session = session::open_model(&args.model, &config, Size { context, sequences: 1 })?;
    if scale == Some(Scale::Warmup) {
        warm_up(session.as_mut(), &lists)?;
    }
    let values = session.logits(0, tokens)?;
    let shape = vec![tokens.len(), session.limits().vocabulary as usize];
    let bad = values.iter().filter(|value| !value.is_finite()).count();
    let logits = Tensor { name: "logits".to_string(), shape: shape.clone(), values };
    write_tensors(&args.out, &[logits]).map_err(|error| {
        CliError::failed(error.to_string(), Some("name a file in a folder that can be written to".into()))
    })?;
    session::say_warnings(&session.warnings()?);
    if bad > 0 {
        let sentence = format!("expected finite logits, found {bad} that are not in `{}`", args.out.display());
        let hint = "`--check finite=op` names the op, layer and token they come from";
        return Err(CliError::failed(sentence, Some(hint.into())));
    }
    talk(&format!("wrote logits {shape:?} to {}", args.out.display()));
    if is_json {
        voice::json(&json!({ "out": args.out, "shape": shape }))?;
    }
    Ok(Exit::Done)
}
