//! `autotune merge`: two packs of one GPU become one, and each winner says which of them it came from.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::args::CommonArgs;
use super::table::Table;
use super::upkeep_args::MergeArgs;
use super::voice::{answer, talk};
use super::{CliError, Exit};
use crate::store::{Edits, MergeNote, Merged, Pack};

/// Merges and writes.
pub fn run(common: &CommonArgs, args: &MergeArgs) -> Result<Exit, CliError> {
    let read = |path: &Path| Pack::read(path, Edits::Refuse).map_err(|error| CliError::of_pack(path, &error));
    let (here, there) = (read(&args.here)?, read(&args.there)?);
    let header = |pack: &Pack| format!("{} ({})", pack.model(), pack.checkpoint());
    if header(&here) != header(&there) {
        talk(&format!("warning: {} is merged into a pack of {}", header(&there), header(&here)));
    }
    let (pack, notes) = here.merge(&there).map_err(|error| CliError::of_pack(&args.there, &error))?;
    pack.write(&args.out)?;
    let winner = |note: &MergeNote| Winner {
        problem: note.problem.clone(),
        from: if is_there(note.merged) { &args.there } else { &args.here },
        why: note.merged.to_string(),
    };
    answer(common.json, &Winners(notes.iter().map(winner).collect()))?;
    let n_there = notes.iter().filter(|note| is_there(note.merged)).count();
    talk(&format!(
        "wrote {}: {} winners, {} from {}, {n_there} from {}",
        args.out.display(),
        notes.len(),
        notes.len() - n_there,
        args.here.display(),
        args.there.display()
    ));
    Ok(Exit::Done)
}

/// Whether a winner is the second pack's.
fn is_there(merged: Merged) -> bool {
    match merged {
        Merged::Added | Merged::TakenForEvidence | Merged::TakenAsLater => true,
        Merged::OnlyHere | Merged::Same | Merged::KeptForEvidence | Merged::KeptAsLater => false,
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Winners<'a>(Vec<Winner<'a>>);

/// Where a winner of the merged pack came from.
#[derive(Serialize)]
struct Winner<'a> {
    problem: String,
    from: &'a Path,
    why: String,
}

impl fmt::Display for Winners<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["problem", "from", "why"]);
        for Winner { problem, from, why } in &self.0 {
            table.row([problem.clone(), from.display().to_string(), why.clone()]);
        }
        table.fmt(f)
    }
}
