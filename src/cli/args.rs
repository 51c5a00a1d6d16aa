//! The words of the command line. What they mean is decided where they are used.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::subject_args::SubjectArgs;
use super::upkeep_args::{DiffArgs, DoctorArgs, ExportArgs, GcArgs, ImportArgs, MergeArgs, VerifyArgs};

/// Tunes every GEMM of a model on the GPU at hand, or compiles and predicts for one that is not.
///
/// On a GPU, candidates are checked against an f64 reference, then timed; the winners are kept. Without one, the best
/// predicted candidates are compiled and counted. A run that is stopped goes on where it was.
#[derive(Debug, Parser)]
#[command(name = "autotune", version, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do; tuning, if nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of tuning.
    #[command(flatten)]
    pub tune: TuneArgs,
    /// Flags of every command.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Flags of every command.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// GPU to work for: a name such as h100, b200, rtx-pro-6000; the one at hand, if nothing is said, or else h100
    #[arg(long, global = true, value_name = "NAME")]
    pub gpu: Option<String>,
    /// Which of this machine's GPUs, from 0
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    pub device: u32,
    /// Database of winners; db in TILEKILN_DATA or in ~/.local/share/tilekiln, if nothing is said
    #[arg(long, global = true, value_name = "DIR")]
    pub db: Option<PathBuf>,
    /// NVRTC to use: libnvrtc.so, or its folder; TILEKILN_NVRTC or what is found, if nothing is said
    #[arg(long, global = true, value_name = "PATH")]
    pub nvrtc: Option<PathBuf>,
    /// Never use the network
    #[arg(long, global = true)]
    pub offline: bool,
    /// Write results as JSON to standard output
    #[arg(long, global = true)]
    pub json: bool,
}

/// Flags of tuning.
#[derive(Clone, Debug, Args)]
pub struct TuneArgs {
    /// What is tuned.
    #[command(flatten)]
    pub subject: SubjectArgs,
    /// How much is tried
    #[arg(long, value_enum, default_value_t = EffortArg::Quick)]
    pub effort: EffortArg,
    /// Wall-clock ceiling, such as 90s, 2m or 1h; the best so far is kept
    #[arg(long, value_name = "TIME", value_parser = super::duration::duration)]
    pub budget: Option<std::time::Duration>,
    /// Search again what has a fresh record
    #[arg(long)]
    pub force: bool,
    /// Seed of the random data
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SEED)]
    pub seed: u64,
    /// Threads that compile ahead, 1 to 512; all cores but one, if nothing is said
    #[arg(long, value_name = "N", value_parser = threads)]
    pub compile_threads: Option<usize>,
}

/// How much is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EffortArg {
    /// Seven buckets, uniform routing; the other buckets inherit
    Quick,
    /// All buckets, uniform and Zipf routing
    Full,
    /// Every tile of every bucket
    Exhaustive,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows problems, search spaces and winners
    Show(ShowArgs),
    /// Measures winners beside floors, the stream ceiling and other engines
    Bench(BenchArgs),
    /// Prints a report of bench as tables, or writes it into a README
    Report(ReportArgs),
    /// Explains which tiles a problem has, which is used, and why
    Explain(ExplainArgs),
    /// Prints the generated CUDA of a tile
    Render(RenderArgs),
    /// Writes winners into packs, which are reviewed like code, and trials into logs
    Export(ExportArgs),
    /// Puts the winners of packs into the database
    Import(ImportArgs),
    /// Makes one pack of two: for each problem the better evidence
    Merge(MergeArgs),
    /// Tells how the winners of two packs or databases differ
    Diff(DiffArgs),
    /// Checks packs, trial logs and the snapshot
    Verify(VerifyArgs),
    /// Removes compiled kernels and trials that nobody will ask for again
    Gc(GcArgs),
    /// Looks at everything that a run needs, and changes nothing
    Doctor(DoctorArgs),
    /// Owns the GPU for a parent process
    #[command(hide = true)]
    Worker(WorkerArgs),
}

/// What is shown.
#[derive(Debug, Args)]
#[command(after_help = SHOW_EXAMPLES)]
pub struct ShowArgs {
    /// What is shown.
    #[command(subcommand)]
    pub what: ShowCommand,
}

/// What is shown.
#[derive(Debug, Subcommand)]
pub enum ShowCommand {
    /// Every GEMM of a model with bytes, FLOPs and floor for each bucket
    #[command(after_help = SHOW_EXAMPLES)]
    Problems(SubjectArgs),
    /// Axes, rules and sizes of the search spaces of problems
    #[command(after_help = SHOW_EXAMPLES)]
    Space(SubjectArgs),
    /// Winners that are kept for a GPU
    #[command(after_help = SHOW_EXAMPLES)]
    Records(RecordsArgs),
}

/// Which winners are shown.
#[derive(Debug, Args)]
pub struct RecordsArgs {
    /// Of what; of everything, if nothing is said.
    #[command(flatten)]
    pub subject: SubjectArgs,
    /// Say which record is used for each problem, and by which rung of the ladder it was found
    #[arg(long)]
    pub why: bool,
}

/// One problem, and buckets of it.
#[derive(Debug, Args)]
pub struct ProblemArgs {
    /// The problem, such as nvfp4 4096x8192 m64
    #[arg(value_name = "PROBLEM", required_unless_present = "problem")]
    pub words: Vec<String>,
    /// The problem in one word, such as "nvfp4 4096x8192 m64"
    #[arg(long, value_name = "PROBLEM", conflicts_with = "words")]
    pub problem: Option<String>,
    /// Numbers of tokens, each rounded up to its bucket, in place of the problem's own; 1, if neither says
    #[arg(long = "m", value_name = "M,M,...", value_delimiter = ',')]
    pub tokens: Vec<u32>,
}

/// What is explained.
#[derive(Debug, Args)]
#[command(after_help = EXPLAIN_EXAMPLES)]
pub struct ExplainArgs {
    /// The problem.
    #[command(flatten)]
    pub problem: ProblemArgs,
}

/// What is rendered.
#[derive(Debug, Args)]
#[command(after_help = RENDER_EXAMPLES)]
pub struct RenderArgs {
    /// The problem.
    #[command(flatten)]
    pub problem: ProblemArgs,
    /// The tile, such as "dense_mma row_tiles=1 ..."; the winner or the default, if nothing is said
    #[arg(long, value_name = "TILE")]
    pub tile: Option<String>,
    /// Only this launch of the tile, from 0
    #[arg(long, value_name = "N")]
    pub launch: Option<usize>,
    /// Write a file for each kernel into this folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Compile, and print the PTX instead
    #[arg(long, conflicts_with = "resources")]
    pub ptx: bool,
    /// Compile, and print registers, spills and shared memory instead
    #[arg(long)]
    pub resources: bool,
}

/// What is measured.
#[derive(Debug, Args)]
#[command(after_help = BENCH_EXAMPLES)]
pub struct BenchArgs {
    /// What is tuned first, where there is no winner yet.
    #[command(flatten)]
    pub tune: TuneArgs,
    /// Times of other engines: they are compared with, and without a suite their problems are what is measured; may be
    /// repeated
    #[arg(long, value_name = "FILE")]
    pub peers: Vec<PathBuf>,
    /// Where the report is written, as JSON, row by row; rows that it has of this commit and GPU are kept
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Measure again what the file has
    #[arg(long)]
    pub again: bool,
    /// Tune nothing: measure the winner or, where there is none, the tile that a runner would use
    #[arg(long)]
    pub no_search: bool,
    /// Measure the launches of a layer in one chain: attention, the projections of both models' layers
    #[arg(long, value_name = "NAME", value_parser = ["attention"], conflicts_with_all = ["suite", "model", "problems"])]
    pub chain: Option<String>,
    /// Only print what would be measured; needs no GPU
    #[arg(long)]
    pub list: bool,
}

/// Which report, and where to.
#[derive(Debug, Args)]
#[command(after_help = REPORT_EXAMPLES)]
pub struct ReportArgs {
    /// A report that `autotune bench --out` wrote
    pub results: PathBuf,
    /// Times of other engines, in place of those that the report holds; may be repeated
    #[arg(long, value_name = "FILE")]
    pub peers: Vec<PathBuf>,
    /// Print how the goals for each regime stand instead of the rows
    #[arg(long, conflicts_with = "readme")]
    pub regimes: bool,
    /// A report of `dsv4 bench`, to be held against its goals too
    #[arg(long, value_name = "FILE", requires = "regimes")]
    pub runner: Option<PathBuf>,
    /// Rewrite the results of this README instead of printing
    #[arg(long, value_name = "FILE")]
    pub readme: Option<PathBuf>,
}

/// What a worker is told by its parent.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// The parent's socket.
    #[arg(long)]
    pub socket: PathBuf,
}

/// A number of threads that a process can start.
fn threads(text: &str) -> Result<usize, String> {
    let threads = text.parse().ok().filter(|threads| (1..=MOST_THREADS).contains(threads));
    threads.ok_or_else(|| format!("expected 1 to {MOST_THREADS} threads, found `{text}`"))
}

/// Seed of the random data if nothing is said.
pub const DEFAULT_SEED: u64 = 1;

/// More than any machine has cores for, fewer than any system refuses.
const MOST_THREADS: usize = 512;

const EXAMPLES: &str = "\
Examples:
  autotune --model dsv4                          every GEMM of DeepSeek-V4-Flash on this GPU
  autotune --model dsv4 --effort full            every bucket, uniform and skewed routing
  autotune --model dsv4-pro --tp 8 --gpu b200    without a B200: compile, count and predict
  autotune --problem \"nvfp4 4096x8192\" --m 1,64 --budget 30s
  autotune show problems --model dsv4 --json
  autotune show records --why --problem \"nvfp4 4096x8192 m3\"

Environment:
  TILEKILN_DATA     folder of the database of winners, which is its db/ if there is no --db;
                    XDG_DATA_HOME/tilekiln or ~/.local/share/tilekiln, if it is not set
  TILEKILN_CACHE    folder of compiled kernels and of the fetched NVRTC;
                    XDG_CACHE_HOME/tilekiln or ~/.cache/tilekiln, if it is not set
  TILEKILN_NVRTC    NVRTC to use, as --nvrtc names it";

const SHOW_EXAMPLES: &str = "\
Examples:
  autotune show problems --model dsv4-pro --tp 8 --ep 1 --checkpoint native --json
  autotune show space --problem \"nvfp4 4096x8192 m64\"
  autotune show records --model dsv4
  autotune show records --why --problem \"nvfp4 4096x8192\" --m 3";

const BENCH_EXAMPLES: &str = "\
Examples:
  autotune bench --peers benches/peers/h100.json --out benches/results/h100/bench.json
  autotune bench --suite hopper --list
  autotune bench --suite hopper --only nvfp4,moe --m 1,16 --budget 5m --out hopper.json
  autotune bench --chain attention --m 1,16 --out hopper.json
  autotune bench --model dsv4 --only wq_b
  autotune bench --problem \"nvfp4 4096x8192\" --m 1,64";

const REPORT_EXAMPLES: &str = "\
Examples:
  autotune report benches/results/h100/bench.json
  autotune report benches/results/h100/bench.json --regimes
  autotune report benches/results/h100/bench.json --peers benches/peers/h100.json --readme README.md";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  autotune explain nvfp4 4096x8192 m64
  autotune explain --problem \"moe nvfp4 256 top6 4096x2048\" --m 1,16 --gpu b200
  autotune explain fp8 8x1024x4096 m256 --json";

const RENDER_EXAMPLES: &str = "\
Examples:
  autotune render nvfp4 4096x8192 m1
  autotune render nvfp4 4096x8192 m64 --gpu b200 --resources
  autotune render moe nvfp4 256 top6 4096x2048 m16 --out kernels/
  autotune render --problem \"quantise nvfp4 k4096\" --tile \"quantise threads=128\" --ptx";
