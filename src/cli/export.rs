//! `autotune export`: winners into packs, which are read in a diff and travel inside the binary, and trials into logs.
//!
//! An export never loses what a pack has: it brings the pack up to date, by the rules of `autotune merge`.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::context::{self, Paths};
use super::subject_args::{DEFAULT_CHECKPOINT, SubjectArgs};
use super::table::Table;
use super::voice::{answer, talk};
use super::{CliError, Exit, args::CommonArgs, select, tune, upkeep_args::ExportArgs};
use crate::arch::GpuSpec;
use crate::models::{self, Checkpoint, Shard};
use crate::problem::{BUCKETS, Problem};
use crate::store::{Database, Edits, FileError, LOG_ENDING, Merged, Origin, Pack, Record, TrialLog};

/// Writes the packs, and the log if one is asked for.
pub fn run(common: &CommonArgs, args: &ExportArgs, paths: &Paths) -> Result<Exit, CliError> {
    let gpu = context::spec(common)?;
    let folder = folder(args, &gpu)?;
    let sheets = sheets(&args.subject)?;
    let database = tune::open_existing_database(paths)?;
    let mut exported = Exported::default();
    if let Some(folder) = folder {
        exported.packs = packs(&sheets, winners(args, &gpu, &database)?, &gpu, &folder)?;
    }
    if let Some(path) = &args.trials {
        exported.logs.extend(log(path, &sheets, &gpu, &database)?);
    }
    if exported.packs.is_empty() && exported.logs.is_empty() {
        let what = if args.predicted { "winners" } else { "measured winners" };
        let product = &gpu.identity.product;
        let sentence = format!("expected {what} of this on {product} in `{}`, found none", paths.database.display());
        let hint = "`autotune show records` lists what is there, `--gpu` names another GPU";
        return Err(CliError::failed(sentence, Some(hint.to_string())));
    }
    answer(common.json, &exported)?;
    Ok(Exit::Done)
}

/// Where packs go; `None` if only a log is wanted.
fn folder(args: &ExportArgs, gpu: &GpuSpec) -> Result<Option<PathBuf>, CliError> {
    if let Some(log) = args.trials.as_deref().filter(|log| !log.to_string_lossy().ends_with(LOG_ENDING)) {
        let sentence = format!("expected a name that ends in {LOG_ENDING} for `--trials`, found `{}`", log.display());
        return Err(CliError::usage(sentence, "logs are found by their ending when they travel inside the binary"));
    }
    let usual = Path::new("tuning_db").join(&gpu.name);
    match &args.out {
        Some(out) => Ok(Some(out.clone())),
        None if args.trials.is_some() => Ok(None),
        None if usual.is_dir() => Ok(Some(usual)),
        None => {
            let sentence = format!("expected `--out DIR`, found neither it nor a folder `{}` here", usual.display());
            Err(CliError::usage(sentence, "in a checkout of tilekiln packs go to tuning_db/<gpu>"))
        }
    }
}

/// A pack to be: its header, and the problems that belong into it.
struct Sheet {
    model: String,
    checkpoint: String,
    shard: Shard,
    /// `None` takes what no other sheet has taken.
    problems: Option<HashSet<Problem>>,
}

impl Sheet {
    fn other(problems: Option<HashSet<Problem>>) -> Self {
        Self { model: "other".to_string(), checkpoint: "any".to_string(), shard: Shard::default(), problems }
    }

    fn has(&self, problem: &Problem) -> bool {
        self.problems.as_ref().is_none_or(|problems| problems.contains(problem))
    }

    fn file_name(&self) -> String {
        let Self { model, checkpoint, shard: Shard { tp, ep }, problems } = self;
        match (problems, checkpoint.as_str(), (tp, ep)) {
            (_, "any", _) => format!("{model}.toml"),
            (_, _, (1, 1)) => format!("{model}-{checkpoint}.toml"),
            _ => format!("{model}-{checkpoint}-tp{tp}-ep{ep}.toml"),
        }
    }
}

/// The packs that `subject` means: one, or without a subject one for each model and checkpoint, and one for the rest.
fn sheets(subject: &SubjectArgs) -> Result<Vec<Sheet>, CliError> {
    if select::is_everything(subject) {
        return every_sheet();
    }
    let problems: HashSet<Problem> = select::buckets_of(subject)?.into_iter().map(|(_, problem)| problem).collect();
    if !subject.problems.is_empty() || subject.suite.is_some() {
        return Ok(vec![Sheet::other(Some(problems))]);
    }
    let model = models::named(subject.model.as_deref().unwrap_or(select::DEFAULT_MODEL));
    let model = model.map_err(|error| CliError::usage(error.to_string(), "`autotune show problems` lists a model"))?;
    Ok(vec![Sheet {
        model: model.name.to_string(),
        checkpoint: subject.checkpoint.clone(),
        shard: Shard { tp: subject.tp, ep: subject.ep },
        problems: Some(problems),
    }])
}

/// Checkpoints share most of their problems: the usual one comes first and takes them.
fn every_sheet() -> Result<Vec<Sheet>, CliError> {
    let mut checkpoints = Checkpoint::ALL;
    checkpoints.sort_by_key(|checkpoint| checkpoint.name() != DEFAULT_CHECKPOINT);
    let mut sheets = Vec::new();
    for model in models::all() {
        for checkpoint in checkpoints {
            let ops = model.inventory(checkpoint, Shard::default());
            let ops = ops.map_err(|error| CliError::failed(error.to_string(), None))?;
            let problems = ops.iter().flat_map(|op| BUCKETS.into_iter().map(|m| op.problem(m))).collect();
            sheets.push(Sheet {
                model: model.name.to_string(),
                checkpoint: checkpoint.name().to_string(),
                shard: Shard::default(),
                problems: Some(problems),
            });
        }
    }
    sheets.push(Sheet::other(None));
    Ok(sheets)
}

/// The winners on `gpu` that are wanted, whatever their problem.
fn winners(args: &ExportArgs, gpu: &GpuSpec, database: &Database) -> Result<Vec<Record>, CliError> {
    let (here, elsewhere): (Vec<Record>, Vec<Record>) =
        database.winners()?.into_iter().partition(|record| record.gpu == gpu.identity);
    let gpus: BTreeSet<String> = elsewhere.iter().map(|record| record.gpu.to_string()).collect();
    for other in gpus {
        talk(&format!("left out: winners of {other}, which is not {}", gpu.identity));
    }
    Ok(here.into_iter().filter(|record| args.predicted || record.origin == Origin::Measured).collect())
}

/// Brings the packs in `folder` up to date. All are made before the first is written: one that is refused stops all.
fn packs(sheets: &[Sheet], winners: Vec<Record>, gpu: &GpuSpec, folder: &Path) -> Result<Vec<Written>, CliError> {
    let mut left = winners;
    let mut made = Vec::new();
    for sheet in sheets {
        let (records, others): (Vec<Record>, Vec<Record>) =
            left.into_iter().partition(|record| sheet.has(&record.problem));
        left = others;
        if records.is_empty() {
            continue;
        }
        let path = folder.join(sheet.file_name());
        let mut written = Written { path: path.clone(), winners: 0, new: 0, replaced: 0, same: 0, kept: 0 };
        let fresh = Pack::new(gpu.identity.clone(), &sheet.model, &sheet.checkpoint, records)?;
        let there = match path.exists() {
            true => Pack::read(&path, Edits::Refuse),
            false => Pack::new(gpu.identity.clone(), &sheet.model, &sheet.checkpoint, Vec::new()),
        };
        let (pack, notes) =
            there.and_then(|there| there.merge(&fresh)).map_err(|error| CliError::of_pack(&path, &error))?;
        notes.iter().for_each(|note| written.count(note.merged));
        made.push((pack, written));
    }
    for (pack, written) in &made {
        pack.write(&written.path)?;
    }
    Ok(made.into_iter().map(|(_, written)| written).collect())
}

/// Writes the trials of the sheets' problems on `gpu`; `None` if there are none.
fn log(path: &Path, sheets: &[Sheet], gpu: &GpuSpec, database: &Database) -> Result<Option<WrittenLog>, CliError> {
    let mut trials = Vec::new();
    for found in database.trials() {
        let found = found?;
        if found.gpu == gpu.identity && sheets.iter().any(|sheet| sheet.has(&found.trial.problem)) {
            trials.push(found.trial);
        }
    }
    if trials.is_empty() {
        talk(&format!("no trials of this on {} are kept: no log was written", gpu.identity.product));
        return Ok(None);
    }
    let n_trials = trials.len();
    let log = TrialLog::new(gpu.identity.clone(), trials);
    log.write(path)?;
    let bytes = std::fs::metadata(path).map_err(|error| FileError::new(path, "read", &error))?.len();
    Ok(Some(WrittenLog { path: path.to_path_buf(), problems: log.problems.len(), trials: n_trials, bytes }))
}

/// What was written.
#[derive(Default, Serialize)]
struct Exported {
    packs: Vec<Written>,
    logs: Vec<WrittenLog>,
}

/// A pack that was written.
#[derive(Serialize)]
struct Written {
    path: PathBuf,
    winners: usize,
    /// The pack had none.
    new: usize,
    /// The pack had one that is worse or older.
    replaced: usize,
    same: usize,
    /// The pack's own stand: the database has none, or a worse or older one.
    kept: usize,
}

#[derive(Serialize)]
struct WrittenLog {
    path: PathBuf,
    problems: usize,
    trials: usize,
    bytes: u64,
}

impl Written {
    fn count(&mut self, merged: Merged) {
        self.winners += 1;
        *match merged {
            Merged::Added => &mut self.new,
            Merged::TakenForEvidence | Merged::TakenAsLater => &mut self.replaced,
            Merged::Same => &mut self.same,
            Merged::OnlyHere | Merged::KeptForEvidence | Merged::KeptAsLater => &mut self.kept,
        } += 1;
    }
}

impl fmt::Display for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.packs.is_empty() {
            let mut table = Table::new(["pack", ">winners", ">new", ">replaced", ">same", ">kept"]);
            for Written { path, winners, new, replaced, same, kept } in &self.packs {
                let counts = [winners, new, replaced, same, kept].map(usize::to_string);
                let [winners, new, replaced, same, kept] = counts;
                table.row([path.display().to_string(), winners, new, replaced, same, kept]);
            }
            table.fmt(f)?;
        }
        self.logs.iter().try_for_each(|WrittenLog { path, problems, trials, bytes }| {
            writeln!(f, "{}: {trials} trials of {problems} problems, {bytes} bytes", path.display())
        })
    }
}
