//! Winners of mixes of streams in a whole model: they are launched, and what reads their sums follows their tiles.

use tilekiln::engine::LanguageModel;
use tilekiln::kernels;
use tilekiln::models::dsv4::inventory_of;
use tilekiln::problem::{BUCKETS, Problem, Tile};
use tilekiln::store::{Origin, Record, Snapshot, Timing, Toolchain};

use super::{Oracle, Yardstick, options};
use crate::context::{Context, Failure};

/// The tile of a problem's winner, made of its default.
type Cut = fn(&Problem, &Tile) -> Tile;

/// Tiles with the default's numerics give its very logits; others as good ones.
pub fn winners(context: &mut Context, oracle: &Oracle) -> Result<usize, Failure> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let yardstick = Yardstick::of(oracle)?;
    // In buckets whose tokens are taken in turn, where a prompt's are mixed by 64.
    let short = &oracle.tokens[..20];
    let mut usual = oracle.forward(context, &options())?;
    let expected = usual.logits(0, short)?;
    let ops = inventory_of(usual.config(), usual.formats(), Default::default()).map_err(|e| e.to_string())?;
    let mut problems: Vec<Problem> = ops.iter().flat_map(|op| BUCKETS.map(|m| op.problem(m))).collect();
    problems.retain(|problem| matches!(problem, Problem::StreamMix(mix) if mix.m <= options().chunk));
    problems.sort();
    problems.dedup();
    // Tokens in turn to more blocks; then slices that leave other parts to the launch behind.
    let cuts: [(&str, Cut); 2] = [("groups", more_groups), ("slices", larger_slice)];
    for (name, cut) in cuts {
        let default = |problem: &Problem| {
            kernels::default_tile(problem, context.gpu.spec()).ok_or_else(|| format!("{problem} has no tile"))
        };
        let mut records = Vec::new();
        for problem in &problems {
            let tile = cut(problem, &default(problem)?);
            kernels::plan(problem, &tile, context.gpu.spec()).map_err(|error| format!("{problem}: {error}"))?;
            records.push(record(context, problem, tile));
        }
        let path = folder.path().join(name);
        Snapshot::of(&records).write(&path).map_err(|error| error.to_string())?;
        let mut forward = oracle.forward_with(context, &options(), path)?;
        let measured = forward.report().prepared.by_rung[0];
        if measured != records.len() {
            return Err(format!("{name}: {measured} problems run on winners, {} have one", records.len()).into());
        }
        if forward.logits(0, short)? != expected && name == "groups" {
            return Err("tiles of one numerics give other logits".to_string().into());
        }
        forward.release(0);
        yardstick.judge(name, &forward.logits(0, &oracle.tokens)?)?;
    }
    Ok(2 * problems.len())
}

/// As many groups of one warp as tokens, up to eight.
fn more_groups(problem: &Problem, default: &Tile) -> Tile {
    match default.number("tokens") {
        Some(1) => default.with("warps", 1).with("groups", problem.m().min(8)),
        _ => default.clone(),
    }
}

/// All columns of these small streams in one slice.
fn larger_slice(problem: &Problem, default: &Tile) -> Tile {
    match problem {
        Problem::StreamMix(mix) if mix.m >= 16 => default.with("tokens", 64).with("warps", 4).with("slice", mix.hidden),
        _ => default.clone(),
    }
}

/// A winner as a search would have left it.
fn record(context: &Context, problem: &Problem, tile: Tile) -> Record {
    let timing = Timing {
        chained_us: 1.0,
        unchained_us: 1.0,
        half_width_us: 0.0,
        rounds: 1,
        is_warm: false,
        sm_clock_mhz: 0,
        throttle_reasons: 0,
        relative_l2: 0.0,
    };
    Record {
        problem: problem.clone(),
        gpu: context.gpu.spec().identity.clone(),
        layout: problem.layout().to_string(),
        tile,
        numerics: String::new(),
        origin: Origin::Measured,
        default_us: 1.0,
        timing,
        runners_up: Vec::new(),
        routings: Vec::new(),
        tried: 1,
        toolchain: Toolchain::default(),
        written_at: 0,
    }
}
