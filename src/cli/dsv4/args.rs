//! The words of `dsv4`. What they mean is decided where they are used.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::bench_args::BenchArgs;
use super::gpu_args::GpuArgs;
use super::numerics_args::NumericsArgs;

/// Runs DeepSeek-V4 from a checkpoint directory: text, logits, speed, and what is wrong with its files or numbers.
///
/// On a GPU the kernels that autotune picked run; without one the f32 reference on the CPU does, and says so. What is
/// asked for stands on standard output, everything else on standard error.
#[derive(Debug, Parser)]
#[command(name = "dsv4", version, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Flags of every command.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Flags of every command.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// Write results as JSON to standard output
    #[arg(long, global = true)]
    pub json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Continues prompts, and writes each token as it comes
    Generate(GenerateArgs),
    /// Writes the logits of every token of a list
    Logits(LogitsArgs),
    /// Checks the files and scales of a checkpoint; needs no GPU
    Check(CheckArgs),
    /// Compares the tensors of two dumps
    Compare(CompareArgs),
    /// Measures prefill and decode apart, at several contexts and batches
    Bench(BenchArgs),
}

/// Which model, and where it runs.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Directory of the checkpoint: config.json, safetensors and, for text, tokenizer.json
    #[arg(long, value_name = "DIR")]
    pub model_dir: PathBuf,
    /// Where the model runs, and in which numbers.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Where a model runs, how much of it, and in which numbers.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Where the model runs; on the GPU, if nothing is said and there is one
    #[arg(long, value_enum)]
    pub device: Option<Device>,
    /// Only the first N layers: what they compute is no text, but fits
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub layers: Option<u32>,
    /// Longest sequence to make room for, prompt and answer together; what the command needs, if nothing is said
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub context: Option<u32>,
    /// Give a sequence the same tokens in every batch, at some cost in speed
    #[arg(long)]
    pub batch_invariant: bool,
    /// How values are rounded on their way.
    #[command(flatten)]
    pub numerics: NumericsArgs,
    /// The GPU and its kernels.
    #[command(flatten)]
    pub gpu: GpuArgs,
    /// What is looked at while it runs.
    #[command(flatten)]
    pub diagnostics: DiagnosticsArgs,
}

/// What is looked at while a model runs.
#[derive(Debug, Args)]
pub struct DiagnosticsArgs {
    /// Stop at the first value that is not finite, and name its op, layer, token and column: finite looks at the end of
    /// each layer, finite=op behind every op
    #[arg(long, value_name = "WHAT")]
    pub check: Option<Check>,
    /// Write the tensors of every op into this folder, one file for each step and layer
    #[arg(long, value_name = "DIR")]
    pub dump: Option<PathBuf>,
}

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The f32 reference
    Cpu,
    /// The tuned kernels
    Gpu,
}

/// What is checked while a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// Every layer's streams
    #[value(name = "finite", alias = "finite=layer")]
    FiniteLayers,
    /// Every op's output
    #[value(name = "finite=op")]
    FiniteOps,
}

/// What is continued, and how.
#[derive(Debug, Args)]
#[command(after_help = GENERATE_EXAMPLES)]
pub struct GenerateArgs {
    /// Which model, and where it runs.
    #[command(flatten)]
    pub model: ModelArgs,
    /// What is continued.
    #[command(flatten)]
    pub prompt: PromptArgs,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,
    /// 0 takes the likeliest token; logits are divided by anything larger
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature, allow_negative_numbers = true)]
    pub temperature: f32,
    /// Draw from the likeliest tokens that have this much of the probability
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = top_p, allow_negative_numbers = true)]
    pub top_p: f32,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Go on behind the end-of-sequence token
    #[arg(long)]
    pub ignore_eos: bool,
}

/// What is continued: a text, token ids, or a file of many.
#[derive(Debug, Args)]
pub struct PromptArgs {
    /// What the user says; encoded as a conversation of one turn
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["tokens", "batch_file"])]
    pub prompt: Option<String>,
    /// Token ids as they are, such as "1,2,3", or a file of them: a JSON list, or safetensors with input_ids
    #[arg(long, value_name = "IDS|FILE", conflicts_with = "batch_file")]
    pub tokens: Option<String>,
    /// A prompt on each line, in JSON: a text, a list of ids, or {"messages": [...], "tools": [...]}
    #[arg(long, value_name = "FILE")]
    pub batch_file: Option<PathBuf>,
    /// System text in front of the conversation
    #[arg(long, value_name = "TEXT", conflicts_with = "tokens")]
    pub system: Option<String>,
    /// Let the model think before it answers
    #[arg(long, conflicts_with = "tokens")]
    pub thinking: bool,
}

/// Whose logits are written, and where to.
#[derive(Debug, Args)]
#[command(after_help = LOGITS_EXAMPLES)]
pub struct LogitsArgs {
    /// Which model, and where it runs.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Token ids such as "1,2,3", or a file of them: a JSON list, or safetensors with input_ids
    #[arg(long, value_name = "IDS|FILE")]
    pub tokens: String,
    /// Where the tensor `logits` [tokens, vocabulary] is written, in f32
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// What is checked.
#[derive(Debug, Args)]
#[command(after_help = CHECK_EXAMPLES)]
pub struct CheckArgs {
    /// Directory of the checkpoint
    #[arg(long, value_name = "DIR")]
    pub model_dir: PathBuf,
}

/// What is compared.
#[derive(Debug, Args)]
#[command(after_help = COMPARE_EXAMPLES)]
pub struct CompareArgs {
    /// A safetensors file, or a folder of them such as --dump writes
    #[arg(value_name = "A")]
    pub a: PathBuf,
    /// What A should be: errors are relative to it
    #[arg(value_name = "B")]
    pub b: PathBuf,
    /// Fail if the relative L2 error of any tensor is above this, or if a tensor is on one side only
    #[arg(long, value_name = "ERROR", value_parser = limit, allow_negative_numbers = true)]
    pub limit: Option<f64>,
}

/// A temperature that logits can be divided by, or 0.
fn temperature(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|value: &f32| value.is_finite() && *value >= 0.0);
    value.ok_or_else(|| format!("expected a temperature of 0 or above, found `{text}`"))
}

/// A probability above 0.
fn top_p(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|value: &f32| *value > 0.0 && *value <= 1.0);
    value.ok_or_else(|| format!("expected a probability above 0 and at most 1, found `{text}`"))
}

/// A relative error.
fn limit(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0);
    value.ok_or_else(|| format!("expected a relative error such as 0.01, found `{text}`"))
}

const EXAMPLES: &str = "\
Examples:
  dsv4 check --model-dir DeepSeek-V4-Flash-NVFP4
  dsv4 generate --model-dir DeepSeek-V4-Flash-NVFP4 --prompt \"Why is the sky blue?\"
  dsv4 logits --model-dir DeepSeek-V4-Flash-NVFP4 --tokens ids.json --out logits.safetensors
  dsv4 bench --synthetic flash --context 8k --batch 1,8 --out bench.json
  dsv4 compare dump-gpu dump-cpu --limit 0.01

Environment:
  TILEKILN_DATA     folder of the database of winners, which is its db/ if there is no --db;
                    XDG_DATA_HOME/tilekiln or ~/.local/share/tilekiln, if it is not set
  TILEKILN_CACHE    folder of compiled kernels and of the fetched NVRTC;
                    XDG_CACHE_HOME/tilekiln or ~/.cache/tilekiln, if it is not set
  TILEKILN_NVRTC    NVRTC to use, as --nvrtc names it";

const GENERATE_EXAMPLES: &str = "\
Examples:
  dsv4 generate --model-dir DIR --prompt \"Why is the sky blue?\" --thinking --temperature 1
  dsv4 generate --model-dir DIR --tokens 0,128803,19923 --max-tokens 16
  dsv4 generate --model-dir DIR --batch-file prompts.jsonl --batch-invariant --json
  dsv4 generate --model-dir DIR --prompt Hi --activation a4 --scale checkpoint
  dsv4 generate --model-dir DIR --tokens ids.json --check finite=op --dump dump/

A batch file has a prompt on each line, and its answers stand on lines in the same order:
  \"Why is the sky blue?\"
  [0, 128803, 19923]
  {\"messages\": [{\"role\": \"system\", \"content\": \"Be brief.\"}, {\"role\": \"user\", \"content\": \"Hi\"}]}";

const LOGITS_EXAMPLES: &str = "\
Examples:
  dsv4 logits --model-dir DIR --tokens ids.json --out logits.safetensors
  dsv4 logits --model-dir DIR --tokens expected.safetensors --out logits.safetensors --device cpu
  dsv4 compare logits.safetensors expected.safetensors --limit 0.001";

const CHECK_EXAMPLES: &str = "\
Examples:
  dsv4 check --model-dir DeepSeek-V4-Flash-NVFP4
  dsv4 check --model-dir DeepSeek-V4-Flash-NVFP4 --json";

const COMPARE_EXAMPLES: &str = "\
Examples:
  dsv4 compare dump-gpu dump-cpu
  dsv4 compare dump-gpu/step-0000 dump-cpu/step-0000 --limit 0.01
  dsv4 compare logits.safetensors expected.safetensors --json";
