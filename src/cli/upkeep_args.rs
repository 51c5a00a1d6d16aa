//! The words of the commands that carry winners from one place to another, compare them, and look after them.

use std::path::PathBuf;

use clap::Args;

use super::subject_args::SubjectArgs;

/// What is exported, and where to.
#[derive(Debug, Args)]
#[command(after_help = EXPORT_EXAMPLES)]
pub struct ExportArgs {
    /// Of what; of everything, if nothing is said.
    #[command(flatten)]
    pub subject: SubjectArgs,
    /// Also winners that were inherited or predicted, never measured
    #[arg(long)]
    pub predicted: bool,
    /// Folder of the packs; tuning_db/<gpu> below the current folder if that is there and nothing is said
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write every trial of the same problems into this log, whose name ends in .trials.gz
    #[arg(long, value_name = "FILE")]
    pub trials: Option<PathBuf>,
}

/// What is imported.
#[derive(Debug, Args)]
#[command(after_help = IMPORT_EXAMPLES)]
pub struct ImportArgs {
    /// Packs, or folders of packs
    #[arg(value_name = "PACK", required = true)]
    pub packs: Vec<PathBuf>,
    /// Take packs that were edited by hand as they are
    #[arg(long)]
    pub accept_edited: bool,
}

/// What is merged.
#[derive(Debug, Args)]
#[command(after_help = MERGE_EXAMPLES)]
pub struct MergeArgs {
    /// The first pack: its model and checkpoint are the merged pack's
    #[arg(value_name = "PACK")]
    pub here: PathBuf,
    /// The second pack, of the same GPU
    #[arg(value_name = "PACK")]
    pub there: PathBuf,
    /// Where the merged pack goes; it may be one of the two
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// What is compared.
#[derive(Debug, Args)]
#[command(after_help = DIFF_EXAMPLES)]
pub struct DiffArgs {
    /// A pack, a folder of packs, a database, or a snapshot
    #[arg(value_name = "A")]
    pub here: PathBuf,
    /// What it is compared with
    #[arg(value_name = "B")]
    pub there: PathBuf,
}

/// What is verified.
#[derive(Debug, Args)]
#[command(after_help = VERIFY_EXAMPLES)]
pub struct VerifyArgs {
    /// Packs, trial logs, or folders of them; the embedded packs and the snapshot, if nothing is said
    #[arg(value_name = "PACK")]
    pub paths: Vec<PathBuf>,
}

/// What is removed.
#[derive(Debug, Args)]
#[command(after_help = GC_EXAMPLES)]
pub struct GcArgs {
    /// Only kernels that were not used for so long, such as 12h or 30d
    #[arg(long, value_name = "AGE", default_value = "30d", value_parser = super::duration::age)]
    pub older_than: std::time::Duration,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// The doctor has no flags of its own.
#[derive(Debug, Args)]
#[command(after_help = DOCTOR_EXAMPLES)]
pub struct DoctorArgs {}

const EXPORT_EXAMPLES: &str = "\
A pack that is there already is brought up to date: of two winners of one problem the better evidence stands, and of
equal evidence the later. Without a subject each winner goes into the pack of the first model that has its problem,
and into other.toml if none has.

Examples:
  autotune export
  autotune export --gpu h100 --model dsv4 --checkpoint nvfp4 --out tuning_db/h100-sxm
  autotune export --problem \"nvfp4 4096x8192\" --m 1,64 --predicted --out packs
  autotune export --model dsv4 --only wq_b --out packs --trials packs/wq_b.trials.gz";

const IMPORT_EXAMPLES: &str = "\
An incumbent stays unless the newcomer has better evidence, or is faster by more than 2 %, or the incumbent's kernels
have changed since. If one pack is refused, nothing is imported.

Examples:
  autotune import tuning_db/h100-sxm/dsv4-nvfp4.toml
  autotune import packs/ --db /tmp/db --json
  autotune import --accept-edited mine.toml";

const VERIFY_EXAMPLES: &str = "\
Checks schema and checksum, the evidence of each winner, and that its tile is still one for its GPU. Exit code 1 if
anything is broken. A stale winner, whose kernels or NVRTC have changed since, is still used and breaks nothing.

Examples:
  autotune verify
  autotune verify tuning_db
  autotune verify tuning_db/h100-sxm/dsv4-nvfp4.toml --json";

const MERGE_EXAMPLES: &str = "\
Measured beats inherited beats predicted; of equal evidence the one written later stands, and of two of one moment the
first pack's. Times of two runs are not compared: their clocks and drivers differed by more than two good tiles do.

Examples:
  autotune merge mine.toml theirs.toml --out tuning_db/h100-sxm/dsv4-nvfp4.toml
  autotune merge a.toml b.toml --out a.toml --json";

const DIFF_EXAMPLES: &str = "\
Tells winners that were added, removed, changed to another tile, or timed anew. The exit code is 0 whether they differ
or not: what differs is data.

Examples:
  autotune diff tuning_db/h100-sxm/dsv4-nvfp4.toml mine.toml
  autotune diff tuning_db/h100-sxm ~/.local/share/tilekiln/db --json
  autotune diff before.snapshot after.snapshot --gpu h100";

const DOCTOR_EXAMPLES: &str = "\
Looks at the GPU and its driver, NVRTC, Python, the cache, the database, the snapshot and the embedded packs. Nothing is
made, mended, fetched or set. Exit code 1 if anything is an error; a warning says what works, but not as well.

Examples:
  autotune doctor
  autotune doctor --gpu b200 --offline
  autotune doctor --json";

const GC_EXAMPLES: &str = "\
Removes compiled kernels that no winner and no runner-up uses and nobody has used for the time, trials of kernels that
are no longer rendered, and what killed processes have left. Winners stay, stale ones too; what another process is
compiling stays. The time of the last use is that of the file system: where it keeps none, the time of compilation.

Examples:
  autotune gc --dry-run
  autotune gc
  autotune gc --older-than 12h --json";
