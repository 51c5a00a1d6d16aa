//! `autotune explain`: what a problem costs, which tiles it has, how they rank, which one is used, and why.

use std::fmt;

use serde::Serialize;

use super::args::{CommonArgs, ExplainArgs};
use super::context::{self, Paths};
use super::space::ProblemSpace;
use super::table::Table;
use super::voice::answer;
use super::winners::{Answer, Winners};
use super::{CliError, Exit, select};
use crate::kernels;
use crate::problem::{Problem, Tile};
use crate::tuner::{Bound, bound, ranked};

/// Explains each bucket that is asked for.
pub fn run(common: &CommonArgs, explain: &ExplainArgs, paths: &Paths) -> Result<Exit, CliError> {
    let problems = select::problems_of(&explain.problem)?;
    let winners = Winners::open(paths, context::spec(common)?);
    let explained = problems.iter().map(|problem| Explained::of(problem, &winners)).collect::<Result<_, CliError>>()?;
    answer(common.json, &All(explained))?;
    Ok(Exit::Done)
}

#[derive(Serialize)]
#[serde(transparent)]
struct All(Vec<Explained>);

impl fmt::Display for All {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|explained| writeln!(f, "{explained}"))
    }
}

#[derive(Serialize)]
struct Explained {
    problem: String,
    gpu: String,
    bytes: u64,
    flops: u64,
    floor_us: f64,
    space: ProblemSpace,
    /// Tiles that pass, of all families.
    candidates: usize,
    /// The best predicted.
    best: Vec<Ranked>,
    /// Where the default stands; `None` if it stands among the best.
    default: Option<Ranked>,
    used: Answer,
}

/// A tile and its place in the order of the cost model.
#[derive(Serialize)]
struct Ranked {
    place: usize,
    predicted_us: f64,
    bound: Bound,
    tile: Tile,
    is_default: bool,
}

impl Explained {
    fn of(problem: &Problem, winners: &Winners) -> Result<Self, CliError> {
        let gpu = winners.gpu();
        let used = winners.ask(problem)?;
        let order = ranked(problem, gpu);
        let place = |idx: usize| {
            let (tile, predicted_us) = order[idx].clone();
            let plan = kernels::plan(problem, &tile, gpu).ok()?;
            let is_default = tile == used.default;
            Some(Ranked { place: idx + 1, predicted_us, bound: bound(&plan, gpu), tile, is_default })
        };
        let default_idx = order.iter().position(|(tile, _)| *tile == used.default);
        Ok(Self {
            problem: problem.to_string(),
            gpu: gpu.identity.product.clone(),
            bytes: problem.bytes(),
            flops: problem.flops(),
            floor_us: problem.floor_us(gpu),
            space: ProblemSpace::of(&problem.op(), problem, gpu),
            candidates: order.len(),
            best: (0..order.len().min(BEST)).filter_map(place).collect(),
            default: default_idx.filter(|&idx| idx >= BEST).and_then(place),
            used,
        })
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { problem, gpu, bytes, flops, floor_us, space, candidates, best, default, used } = self;
        writeln!(f, "{problem} on {gpu}: {bytes} bytes, {flops} FLOPs, {floor_us:.2} us at the GPU's rates")?;
        writeln!(f, "{space}\nbest predicted of {candidates} tiles")?;
        let mut table = Table::new([">place", ">us", ">% of floor", "bound by", "tile"]);
        for Ranked { place, predicted_us, bound, tile, is_default } in best.iter().chain(default) {
            let mark = if *is_default { "  (default)" } else { "" };
            table.row([
                place.to_string(),
                format!("{predicted_us:.2}"),
                format!("{:.0}", 100.0 * floor_us / predicted_us),
                bound.to_string(),
                format!("{tile}{mark}"),
            ]);
        }
        writeln!(f, "{table}\nused\n{used}")
    }
}

/// Tiles that are listed.
const BEST: usize = 10;
