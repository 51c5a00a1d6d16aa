//! The words that name what is worked on. Several commands have them.

use clap::Args;

/// What is worked on: a model's ops, or problems.
#[derive(Clone, Debug, Args)]
pub struct SubjectArgs {
    /// Model: dsv4 (alias dsv4-flash) or dsv4-pro
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Form of the model's checkpoint
    #[arg(long, value_name = "FORM", default_value = DEFAULT_CHECKPOINT)]
    pub checkpoint: String,
    /// Ranks that share every split matrix
    #[arg(long, value_name = "RANKS", default_value_t = 1)]
    pub tp: u32,
    /// Ranks that share the routed experts
    #[arg(long, value_name = "RANKS", default_value_t = 1)]
    pub ep: u32,
    /// A problem instead of a model, such as "nvfp4 4096x8192" or "moe nvfp4 256 top6 4096x2048"; may be repeated
    #[arg(long = "problem", value_name = "PROBLEM", conflicts_with_all = ["model", "checkpoint", "tp", "ep", "only"])]
    pub problems: Vec<String>,
    /// A suite instead of a model: hopper, the problems that the results on Hopper are judged by
    #[arg(long, value_name = "NAME", conflicts_with_all = ["model", "checkpoint", "tp", "ep", "problems"])]
    pub suite: Option<String>,
    /// Numbers of tokens, each rounded up to its bucket; all buckets of a model, if nothing is said, and of a problem
    /// without its own m the one of 1 token
    #[arg(long = "m", value_name = "M,M,...", value_delimiter = ',')]
    pub tokens: Vec<u32>,
    /// Only ops whose name contains this; of a suite, those whose name or problem contains one of several, such as
    /// "nvfp4,moe"
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
}

/// The checkpoint that is meant if nothing is said.
pub const DEFAULT_CHECKPOINT: &str = "nvfp4";
