//! `autotune import`: the winners of packs into the database, where an incumbent stays unless it is beaten.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::args::CommonArgs;
use super::context::Paths;
use super::standing::is_stale;
use super::table::Table;
use super::upkeep_args::ImportArgs;
use super::voice::{answer, talk};
use super::{CliError, Exit, place, tune};
use crate::store::{Database, DatabaseError, Edits, Pack, Put, Record, WinnerKey};
use crate::tuner::INCUMBENT_BAND;

/// Reads every pack, then puts their winners into the database: one that is refused stops all.
pub fn run(common: &CommonArgs, args: &ImportArgs, paths: &Paths) -> Result<Exit, CliError> {
    let edits = if args.accept_edited { Edits::Accept } else { Edits::Refuse };
    let mut packs = Vec::new();
    for path in &args.packs {
        for path in place::packs_at(path)? {
            let pack = Pack::read(&path, edits).map_err(|error| CliError::of_pack(&path, &error))?;
            packs.push((path, pack));
        }
    }
    let database = tune::open_database(paths)?;
    let mut imported = All(Vec::new());
    for (path, pack) in packs {
        let mut counts = Imported { pack: path, ..Imported::default() };
        for record in pack.into_records() {
            counts.put(&record, &database)?;
        }
        imported.0.push(counts);
    }
    database.write_snapshot()?;
    talk(&format!("winners are in {}", paths.database.display()));
    answer(common.json, &imported)?;
    Ok(Exit::Done)
}

#[derive(Serialize)]
#[serde(transparent)]
struct All(Vec<Imported>);

/// What became of the winners of one pack.
#[derive(Default, Serialize)]
struct Imported {
    pack: PathBuf,
    winners: usize,
    /// There was none.
    new: usize,
    /// Another tile had won.
    replaced: usize,
    /// The same tile had won, with worse or older evidence.
    refreshed: usize,
    /// The incumbent stays.
    kept: usize,
}

impl Imported {
    fn put(&mut self, newcomer: &Record, database: &Database) -> Result<(), DatabaseError> {
        self.winners += 1;
        if let Some(incumbent) = database.winner(&WinnerKey::of(newcomer))?
            && let Some(ground) = stays(&incumbent, newcomer)
        {
            self.kept += 1;
            if incumbent.tile != newcomer.tile {
                talk(&format!("{}: {} stays ({ground})", newcomer.problem, incumbent.tile));
            }
            return Ok(());
        }
        let put = database.put_winner(newcomer, INCUMBENT_BAND, &is_stale)?;
        match put {
            Put::New => self.new += 1,
            Put::Refreshed => self.refreshed += 1,
            Put::Replaced { .. } => self.replaced += 1,
            Put::Kept { .. } => self.kept += 1,
        }
        if matches!(put, Put::Replaced { .. } | Put::Kept { .. }) {
            talk(&format!("{}: {} {put}", newcomer.problem, newcomer.tile));
        }
        Ok(())
    }
}

/// Why `incumbent` stays whatever the newcomer's time is: a pack may be older than what was measured here.
fn stays(incumbent: &Record, newcomer: &Record) -> Option<&'static str> {
    let is_no_better = newcomer.origin.strength() <= incumbent.origin.strength();
    let is_no_later = newcomer.written_at <= incumbent.written_at;
    match incumbent.tile == newcomer.tile {
        true => (is_no_better && is_no_later).then_some("its evidence is not older"),
        false => (is_no_better && is_stale(newcomer) && !is_stale(incumbent)).then_some("the newcomer is stale"),
    }
}

impl fmt::Display for All {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["pack", ">winners", ">new", ">replaced", ">refreshed", ">kept"]);
        for Imported { pack, winners, new, replaced, refreshed, kept } in &self.0 {
            let [winners, new, replaced, refreshed, kept] =
                [winners, new, replaced, refreshed, kept].map(usize::to_string);
            table.row([pack.display().to_string(), winners, new, replaced, refreshed, kept]);
        }
        table.fmt(f)
    }
}
