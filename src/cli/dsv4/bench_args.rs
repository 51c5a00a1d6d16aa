//! The words of `dsv4 bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::gpu_args::GpuArgs;
use super::numerics_args::NumericsArgs;

/// What is measured.
#[derive(Debug, Args)]
#[command(after_help = BENCH_EXAMPLES)]
pub struct BenchArgs {
    /// Directory of a checkpoint
    #[arg(long, value_name = "DIR", required_unless_present = "synthetic")]
    pub model_dir: Option<PathBuf>,
    /// Random weights in the full shapes of a model, made on the device: no files are needed
    #[arg(long, value_enum, conflicts_with = "model_dir")]
    pub synthetic: Option<Synthetic>,
    /// Form of the synthetic checkpoint: native, nvfp4 or nvfp4_full; nvfp4, if nothing is said
    #[arg(long, value_name = "FORM", conflicts_with = "model_dir")]
    pub checkpoint: Option<String>,
    /// Most layers to run; as many as fit, if nothing is said
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub layers: Option<u32>,
    /// Tokens of each sequence; 8k is 8192
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', value_parser = tokens, default_value = "1k,8k,64k")]
    pub context: Vec<u32>,
    /// Sequences of a decode step
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..),
        default_value = "1,8,64")]
    pub batch: Vec<u32>,
    /// Give a sequence the same tokens in every batch, at some cost in speed
    #[arg(long)]
    pub batch_invariant: bool,
    /// How values are rounded on their way.
    #[command(flatten)]
    pub numerics: NumericsArgs,
    /// GPU to plan for where there is none, such as h100
    #[arg(long, value_name = "NAME")]
    pub plan_for: Option<String>,
    /// The GPU and its kernels.
    #[command(flatten)]
    pub gpu: GpuArgs,
    /// Where the report is written, as JSON
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// A model of which only the shapes are real.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Synthetic {
    /// DeepSeek-V4-Flash: 43 layers of 256 experts
    Flash,
    /// DeepSeek-V4-Pro: 61 layers of 384 experts
    Pro,
}

/// A number of tokens: `8k` is 8192, `1m` is 1048576.
fn tokens(text: &str) -> Result<u32, String> {
    let lower = text.trim().to_ascii_lowercase();
    let (digits, scale) = match lower.strip_suffix('k').map(|digits| (digits, 1 << 10)) {
        Some(kilo) => kilo,
        None => lower.strip_suffix('m').map_or((lower.as_str(), 1), |digits| (digits, 1 << 20)),
    };
    let tokens = digits.parse::<u32>().ok().and_then(|number| number.checked_mul(scale));
    tokens.filter(|&tokens| tokens > 0).ok_or_else(|| format!("expected a number of tokens such as 8k, found `{text}`"))
}

const BENCH_EXAMPLES: &str = "\
Examples:
  dsv4 bench --synthetic flash --out bench.json
  dsv4 bench --synthetic flash --layers 4 --context 8k --batch 1
  dsv4 bench --model-dir DeepSeek-V4-Flash-NVFP4 --context 1k,8k --batch 1,64 --kv fp8
  dsv4 bench --synthetic pro --checkpoint native --plan-for b200 --json

Each cell runs as many layers as fit into the GPU's memory, and says how many. Without a GPU nothing is measured: what
would fit, and the floors, are printed for the GPU that --plan-for names.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_suffixes() {
        let read = |text| tokens(text).ok();
        assert_eq!(
            [read("7"), read("8k"), read("64K"), read("1m")],
            [Some(7), Some(8192), Some(65_536), Some(1 << 20)]
        );
        assert_eq!([read("0"), read("k"), read("5g"), read("9999999k")], [None; 4]);
    }
}
