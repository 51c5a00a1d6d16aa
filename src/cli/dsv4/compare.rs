//! `dsv4 compare`: how far the tensors of two dumps are apart, in the order in which they were computed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::args::CompareArgs;
use crate::cli::table::Table;
use crate::cli::voice::{self, talk};
use crate::cli::{CliError, Exit};
use crate::engine::dump::{self, DumpError, Tensor};
use crate::engine::{Comparison, NonFinite};

/// All tensors of two dumps.
#[derive(Serialize)]
struct Report {
    /// Tensors of both.
    tensors: Vec<Row>,
    /// Tensors of the first only.
    only_in_a: Vec<String>,
    /// Tensors of the second only.
    only_in_b: Vec<String>,
    /// Tensors that have different shapes.
    shapes: Vec<Shapes>,
}

/// One tensor of both.
#[derive(Serialize)]
struct Row {
    tensor: String,
    shape: Vec<usize>,
    #[serde(flatten)]
    comparison: Comparison,
}

/// A tensor that has another shape in each.
#[derive(Serialize)]
struct Shapes {
    tensor: String,
    a: Vec<usize>,
    b: Vec<usize>,
}

/// Compares `args.a` with `args.b`.
pub fn run(args: &CompareArgs, is_json: bool) -> Result<Exit, CliError> {
    let (a, b) = (files(&args.a)?, files(&args.b)?);
    if a.contains_key("") != b.contains_key("") {
        let sentence =
            format!("expected two files or two folders, found `{}` and `{}`", args.a.display(), args.b.display());
        return Err(CliError::usage(sentence, "name a file of the folder, such as step-0000/layer-000.safetensors"));
    }
    let report = compare(&a, &b)?;
    voice::answer(is_json, &report)?;
    report.summary(args.limit).iter().for_each(|line| talk(line));
    match args.limit.and_then(|limit| report.failure(limit)) {
        None => Ok(Exit::Done),
        Some(sentence) => {
            Err(CliError::failed(sentence, Some("the table has every tensor, first computed first".into())))
        }
    }
}

/// The files of a dump, at least one.
fn files(path: &Path) -> Result<BTreeMap<String, PathBuf>, CliError> {
    let files = dump::list(path).map_err(failed)?;
    if files.is_empty() {
        let sentence = format!("expected safetensors files in `{}`, found none", path.display());
        return Err(CliError::failed(sentence, Some(DUMP_HINT.into())));
    }
    Ok(files)
}

fn failed(error: DumpError) -> CliError {
    CliError::failed(error.to_string(), Some(DUMP_HINT.into()))
}

/// Every tensor of every file, a file of each side at a time.
fn compare(a: &BTreeMap<String, PathBuf>, b: &BTreeMap<String, PathBuf>) -> Result<Report, CliError> {
    let mut report = Report { tensors: Vec::new(), only_in_a: Vec::new(), only_in_b: Vec::new(), shapes: Vec::new() };
    let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let read =
            |file: Option<&PathBuf>| file.map_or(Ok(Vec::new()), |file| dump::read_tensors(file).map_err(failed));
        let (a, b) = (read(a.get(name))?, read(b.get(name))?);
        let full =
            |tensor: &Tensor| if name.is_empty() { tensor.name.clone() } else { format!("{name}/{}", tensor.name) };
        for tensor in &a {
            match b.iter().find(|other| other.name == tensor.name) {
                None => report.only_in_a.push(full(tensor)),
                Some(other) => report.add(full(tensor), tensor, other),
            }
        }
        let is_alone = |tensor: &&Tensor| !a.iter().any(|other| other.name == tensor.name);
        report.only_in_b.extend(b.iter().filter(is_alone).map(full));
    }
    Ok(report)
}

impl Report {
    fn add(&mut self, tensor: String, a: &Tensor, b: &Tensor) {
        if a.shape != b.shape {
            self.shapes.push(Shapes { tensor, a: a.shape.clone(), b: b.shape.clone() });
            return;
        }
        let comparison = Comparison::of(&a.values, &b.values, &a.shape);
        self.tensors.push(Row { tensor, shape: a.shape.clone(), comparison });
    }

    /// Why the dumps are not equal within `limit`, if they are not.
    fn failure(&self, limit: f64) -> Option<String> {
        let beyond = self.tensors.iter().filter(|row| !row.comparison.is_within(limit)).count();
        let alone = self.only_in_a.len() + self.only_in_b.len();
        let reasons = [
            (beyond, format!("{beyond} of {} tensors beyond it", self.tensors.len())),
            (alone, format!("{alone} on one side only")),
            (self.shapes.len(), format!("{} with different shapes", self.shapes.len())),
            (usize::from(self.tensors.is_empty()), "no tensor on both sides".into()),
        ];
        let reasons: Vec<String> = reasons.into_iter().filter(|(count, _)| *count > 0).map(|(_, text)| text).collect();
        let found = reasons.join(", ");
        (!found.is_empty())
            .then(|| format!("expected every tensor within a relative L2 error of {limit}, found {found}"))
    }

    /// What a person looks for first.
    fn summary(&self, limit: Option<f64>) -> Vec<String> {
        let mut lines = Vec::new();
        let first_bad = self.tensors.iter().find(|row| row.comparison.non_finite_differences > 0);
        lines.extend(first_bad.map(|row| format!("first with NaN or infinity on one side: {}", row.tensor)));
        if let Some(limit) = limit {
            let first = self.tensors.iter().find(|row| !row.comparison.is_within(limit));
            lines.extend(first.map(|row| format!("first beyond {limit}: {}", row.tensor)));
        }
        for (side, names) in [("A", &self.only_in_a), ("B", &self.only_in_b)] {
            lines.extend(names.first().map(|first| format!("{} only in {side}, the first {first}", names.len())));
        }
        for Shapes { tensor, a, b } in &self.shapes {
            lines.push(format!("{tensor}: shape {a:?} in A, {b:?} in B"));
        }
        lines
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["tensor", "shape", ">cosine", ">relative L2", "worst", ">A", ">B", "not finite"]);
        for Row { tensor, shape, comparison } in &self.tensors {
            let worst = comparison.worst.as_ref();
            table.row([
                tensor.clone(),
                format!("{shape:?}"),
                format!("{:.6}", comparison.cosine),
                format!("{:.3e}", comparison.relative_l2),
                worst.map_or("-".into(), |worst| format!("{:?}", worst.index)),
                worst.map_or("-".into(), |worst| format!("{}", worst.a)),
                worst.map_or("-".into(), |worst| format!("{}", worst.b)),
                not_finite(comparison),
            ]);
        }
        table.fmt(f)
    }
}

/// How many values are not finite and where the first stands, on each side that has any.
fn not_finite(comparison: &Comparison) -> String {
    let side = |name, NonFinite { count, first }: &NonFinite| {
        first.as_ref().map(|first| format!("{name}: {count}, first {first:?}"))
    };
    let sides = [side("A", &comparison.non_finite_a), side("B", &comparison.non_finite_b)];
    let sides: Vec<String> = sides.into_iter().flatten().collect();
    if sides.is_empty() { "-".into() } else { sides.join("; ") }
}

const DUMP_HINT: &str = "`dsv4 generate --dump DIR` and `dsv4 logits --out FILE` write what can be compared";
