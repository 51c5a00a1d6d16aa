//! `dsv4 generate`: prompts in, answers out, each token as it comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::args::GenerateArgs;
use super::numerics_args::Scale;
use super::prompts;
use super::session::{self, Session, Size};
use super::text_out::TextOut;
use crate::cli::voice::{self, talk};
use crate::cli::{CliError, Exit};
use crate::engine::Sampling;

/// All answers and how long they took.
#[derive(Serialize)]
struct Report {
    answers: Vec<Answer>,
    prefill: Rate,
    decode: Rate,
}

/// What followed one prompt.
#[derive(Serialize)]
struct Answer {
    prompt_tokens: usize,
    /// Without the token that ended it.
    tokens: Vec<u32>,
    /// `None` without a tokenizer.
    text: Option<String>,
    stop: Stop,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Stop {
    /// The model ended it.
    Eos,
    /// As long as was asked for.
    Length,
    /// A signal came.
    Interrupted,
}

/// Tokens in a time.
#[derive(Clone, Copy, Default, Serialize)]
struct Rate {
    tokens: usize,
    seconds: f64,
    tokens_per_s: f64,
}

/// How answers are made.
struct Making<'a> {
    sampling: Sampling,
    most_tokens: usize,
    ends: &'a [u32],
    is_interrupted: Arc<AtomicBool>,
}

/// Continues what `args` name.
pub fn run(args: &GenerateArgs, is_json: bool) -> Result<Exit, CliError> {
    args.model.run.numerics.scale()?;
    let config = session::config(&args.model.model_dir, &args.model.run)?;
    let tokenizer = prompts::tokenizer(&args.model.model_dir)?;
    let prompts = prompts::read(&args.prompt, tokenizer.as_ref())?;
    let most = config.config.max_tokens;
    let size = size(args, &prompts, most)?;
    check_ids(&prompts, config.config.vocabulary)?;
    let mut session = session::open_model(&args.model, &config, size)?;
    if args.model.run.numerics.scale()? == Some(Scale::Warmup) {
        warm_up(session.as_mut(), &prompts)?;
    }
    let making = Making {
        sampling: Sampling { temperature: args.temperature, top_p: args.top_p, seed: args.seed },
        most_tokens: args.max_tokens as usize,
        ends: if args.ignore_eos { &[] } else { &config.eos },
        is_interrupted: interrupted(),
    };
    let is_streamed = !is_json && args.prompt.batch_file.is_none();
    let mut out = TextOut::new(tokenizer.as_ref(), prompts.len(), is_streamed);
    let report = making.report(session.as_mut(), &prompts, &mut out);
    // A line that was begun is ended, whatever comes next on the terminal.
    out.end_line()?;
    let report = report?;
    match (is_json, is_streamed) {
        (true, _) => voice::json(&report)?,
        (false, true) => {}
        (false, false) => report.answers.iter().try_for_each(line)?,
    }
    finish(&report, session.as_ref(), &out)?;
    let is_whole = report.answers.iter().all(|answer| answer.stop != Stop::Interrupted);
    Ok(if is_whole { Exit::Done } else { Exit::InPart })
}

impl Making<'_> {
    /// Answers all prompts, as many at a time as the session takes.
    fn report(
        &self,
        session: &mut dyn Session,
        prompts: &[Vec<u32>],
        out: &mut TextOut<'_>,
    ) -> Result<Report, CliError> {
        let mut answers: Vec<Answer> = prompts.iter().map(|prompt| Answer::to(prompt)).collect();
        let (mut prefill, mut decode) = (Rate::default(), Rate::default());
        let at_a_time = (session.limits().sequences.max(1) as usize).min(prompts.len().max(1));
        for (wave_idx, wave) in prompts.chunks(at_a_time).enumerate() {
            let first = wave_idx * at_a_time;
            let fed: Vec<(u32, &[u32])> = (0..).zip(wave).map(|(slot, prompt)| (slot, prompt.as_slice())).collect();
            let started = Instant::now();
            let mut sampled = session.prefill(&fed, &self.sampling)?;
            prefill.add(wave.iter().map(Vec::len).sum(), started.elapsed());
            let mut slots: Vec<u32> = fed.iter().map(|(slot, _)| *slot).collect();
            let started = Instant::now();
            loop {
                let mut going = Vec::with_capacity(slots.len());
                for (&slot, &token) in slots.iter().zip(&sampled) {
                    let prompt_idx = first + slot as usize;
                    if self.take(&mut answers[prompt_idx], token, |token| out.push(prompt_idx, token))? {
                        going.push(slot);
                    } else {
                        session.release(slot);
                    }
                }
                slots = going;
                if slots.is_empty() {
                    break;
                }
                sampled = session.decode(&slots, &self.sampling)?;
                decode.add(slots.len(), Duration::ZERO);
            }
            decode.add(0, started.elapsed());
        }
        for (answer, text) in answers.iter_mut().zip(out.finish()?) {
            answer.text = text;
        }
        Ok(Report { answers, prefill, decode })
    }

    /// Adds `token` to an answer; false if that ends it.
    fn take(
        &self,
        answer: &mut Answer,
        token: u32,
        mut show: impl FnMut(u32) -> Result<(), CliError>,
    ) -> Result<bool, CliError> {
        if self.ends.contains(&token) {
            answer.stop = Stop::Eos;
            return Ok(false);
        }
        answer.tokens.push(token);
        show(token)?;
        if self.is_interrupted.load(Ordering::SeqCst) {
            answer.stop = Stop::Interrupted;
            return Ok(false);
        }
        Ok(answer.tokens.len() < self.most_tokens)
    }
}

impl Answer {
    /// Nothing yet.
    fn to(prompt: &[u32]) -> Self {
        Self { prompt_tokens: prompt.len(), tokens: Vec::new(), text: None, stop: Stop::Length }
    }
}

impl Rate {
    fn add(&mut self, tokens: usize, took: Duration) {
        self.tokens += tokens;
        self.seconds += took.as_secs_f64();
        self.tokens_per_s = if self.seconds > 0.0 { self.tokens as f64 / self.seconds } else { 0.0 };
    }
}

/// Room for the longest prompt and its answer, and for all sequences at a time up to a limit.
fn size(args: &GenerateArgs, prompts: &[Vec<u32>], most: u32) -> Result<Size, CliError> {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) as u64;
    let needed = longest + u64::from(args.max_tokens) - 1;
    let limit = u64::from(args.model.run.context.unwrap_or(most));
    if needed > limit {
        let sentence = format!(
            "expected a prompt and an answer of at most {limit} tokens together, found {longest} and up to {}",
            args.max_tokens
        );
        let hint = "a shorter prompt or fewer `--max-tokens`; `--context` up to the model's max_position_embeddings";
        return Err(CliError::usage(sentence, hint));
    }
    let context = args.model.run.context.unwrap_or(needed as u32);
    Ok(Size { context, sequences: (prompts.len() as u32).min(MOST_SEQUENCES) })
}

/// Refuses ids that the model does not have, before anything is loaded.
pub fn check_ids(prompts: &[Vec<u32>], vocabulary: u32) -> Result<(), CliError> {
    for prompt in prompts {
        if let Some(place) = prompt.iter().position(|&id| id >= vocabulary) {
            let sentence = format!("expected token ids below {vocabulary}, found {} at place {place}", prompt[place]);
            let hint = "vocab_size in config.json is the limit: is this another model's tokenizer or list?";
            return Err(CliError::usage(sentence, hint));
        }
    }
    Ok(())
}

/// Feeds all prompts once, so that their largest values choose the scales.
pub fn warm_up(session: &mut dyn Session, prompts: &[Vec<u32>]) -> Result<(), CliError> {
    let many = if prompts.len() == 1 { "the prompt".to_string() } else { format!("{} prompts", prompts.len()) };
    talk(&format!("warming up on {many}: its largest values choose the scales"));
    for prompt in prompts {
        session.logits(0, prompt)?;
        session.release(0);
    }
    session.end_warmup()
}

/// Whether Ctrl-C came. The second one ends the run at once.
fn interrupted() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    // A second handler cannot be set; then the default one ends the run, and what was written is written.
    let _ = ctrlc::set_handler(move || {
        if set.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(Exit::InPart.code()));
        }
    });
    flag
}

/// An answer on a line of its own: a JSON text, or a list of ids.
fn line(answer: &Answer) -> Result<(), CliError> {
    let value = match &answer.text {
        Some(text) => serde_json::json!(text),
        None => serde_json::json!(answer.tokens),
    };
    voice::print(&value.to_string())
}

/// Speeds, ends and warnings.
fn finish(report: &Report, session: &dyn Session, out: &TextOut<'_>) -> Result<(), CliError> {
    for (what, rate) in [("prefill", report.prefill), ("decode", report.decode)] {
        let Rate { tokens, seconds, tokens_per_s } = rate;
        talk(&format!("{what}: {tokens} tokens in {seconds:.2} s, {tokens_per_s:.1} tokens/s"));
    }
    if report.answers.iter().any(|answer| answer.stop == Stop::Interrupted) {
        talk("interrupted: what stands above is the beginning of an answer");
    }
    if out.unknown() > 0 {
        talk(&format!("warning: {} tokens have no text in tokenizer.json and are shown as U+FFFD", out.unknown()));
    }
    session::say_warnings(&session.warnings()?);
    Ok(())
}

/// More are answered one wave after the other.
const MOST_SEQUENCES: u32 = 64;
