//! The search on recorded trials: what `--effort quick` and `full` find of what every tile together has.
//!
//! `tuning_db/h100-sxm/exhaustive*.trials.gz` have every tile of some problems as an H100 measured them: dense ones at
//! 1 and 16 tokens, at 64 and 256, and at 4,096; a block of experts at 1,024, under both routings; mixes of streams at
//! 64 and 1,024. The search sees of them only what it visits. A problem whose space has grown an axis since is left out
//! until it is recorded anew.

use std::collections::HashSet;
use std::path::Path;

use tilekiln::arch::GpuSpec;
use tilekiln::kernels;
use tilekiln::problem::Problem;
use tilekiln::store::TrialLog;
use tilekiln::tuner::{Bench, Effort, Replay, Search, predict, ranked};

/// Logs, and of how many problems each has every tile.
const EXHAUSTIVE: [(&str, usize); 3] = [
    ("tuning_db/h100-sxm/exhaustive.trials.gz", 2),
    ("tuning_db/h100-sxm/exhaustive-many-tokens.trials.gz", 2),
    ("tuning_db/h100-sxm/exhaustive-walks-mixes-experts.trials.gz", 4),
];

/// What searches of all efforts visited of some two hundred problems.
const FULL: &str = "testdata/h100_full.trials.gz";

fn log(path: &str) -> TrialLog {
    TrialLog::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The problems of `log` all of whose tiles have the axes that their families have today.
fn current_problems(log: &TrialLog) -> impl Iterator<Item = &Problem> {
    let gpu = GpuSpec::named("h100").unwrap();
    let is_current =
        move |problem: &&Problem| log.times(problem).iter().all(|(tile, _)| kernels::plan(problem, tile, gpu).is_ok());
    log.problems.iter().map(|(problem, _)| problem).filter(is_current)
}

/// Share of the best time that a search of `effort` reaches, and the share of the tiles that it visits.
fn search(log: &TrialLog, problem: &Problem, effort: Effort) -> (f64, f64) {
    let mut replay = Replay::new(log.clone());
    replay.open(problem).unwrap();
    let search = Search {
        problem,
        gpu: GpuSpec::named("h100").unwrap(),
        effort,
        hints: &[],
        known_bad: &HashSet::new(),
        should_stop: &|| false,
        expect: &|_, _| {},
    };
    let found = search.run(&mut replay, &mut |_, _, _| {}).unwrap();
    let times = log.times(problem);
    let (_, best) = replay.best(problem).unwrap();
    let (_, us) = times.iter().find(|(tile, _)| **tile == found.winner.tile).unwrap();
    (best / us, replay.visited.len() as f64 / times.len() as f64)
}

#[test]
fn the_logs_have_every_tile_of_eight_problems() {
    let gpu = GpuSpec::named("h100").unwrap();
    for (path, problems) in EXHAUSTIVE {
        let log = log(path);
        let current: Vec<&Problem> = current_problems(&log).collect();
        assert_eq!(current.len(), problems, "problems of {path} with the axes of today");
        for problem in current {
            let (recorded, space) = (log.times(problem).len(), ranked(problem, gpu).len());
            assert!(recorded as f64 >= 0.99 * space as f64, "{problem}: {recorded} of {space} tiles");
        }
    }
}

#[test]
fn search_finds_the_best_with_few_visits() {
    for log in EXHAUSTIVE.map(|(path, _)| log(path)) {
        for problem in current_problems(&log) {
            for (name, effort) in [("quick", Effort::QUICK), ("full", Effort::FULL)] {
                let (share, visits) = search(&log, problem, effort);
                println!("{problem}: {name} reaches {:.1} % with {:.1} % of the visits", 100.0 * share, 100.0 * visits);
                // Small spaces are seen in good part: what an effort may visit is a number of tiles.
                let most = effort.first as f64 * 1.3 + effort.neighbours as f64;
                let few = 0.15f64.max(most / log.times(problem).len() as f64);
                assert!(
                    share >= 0.98 && visits <= few,
                    "{problem}: {name}: {share:.3} of the best, {visits:.3} visited"
                );
            }
        }
    }
}

/// It was fitted to some of these problems (docs/kernel_notes.md).
#[test]
fn the_cost_model_ranks_hundreds_of_problems() {
    let gpu = GpuSpec::named("h100").unwrap();
    let log = log(FULL);
    let (mut of_first, mut of_nine) = (Vec::new(), Vec::new());
    for (problem, _) in &log.problems {
        let times = log.times(problem).into_iter();
        // Tiles of axes that have changed since are passed by.
        let predicted = |(tile, us)| Some((predict(&kernels::plan(problem, tile, gpu).ok()?, gpu), us));
        let mut times: Vec<(f64, f64)> = times.filter_map(predicted).collect();
        if times.len() < 20 {
            continue;
        }
        times.sort_by(|a, b| a.0.total_cmp(&b.0));
        let best_of = |some: &[(f64, f64)]| some.iter().map(|(_, us)| *us).fold(f64::INFINITY, f64::min);
        of_first.push(times[0].1 / best_of(&times) - 1.0);
        of_nine.push(best_of(&times[..9]) / best_of(&times) - 1.0);
    }
    of_first.sort_by(f64::total_cmp);
    let (median, mean) = (of_first[of_first.len() / 2], of_nine.iter().sum::<f64>() / of_nine.len() as f64);
    println!(
        "{} problems: first {:.1} % slower (median), best of nine {:.1} % (mean)",
        of_first.len(),
        100.0 * median,
        100.0 * mean
    );
    assert!(of_first.len() > 180 && median <= 0.10 && mean <= 0.03, "{median:.3} {mean:.3}");
}
