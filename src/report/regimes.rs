//! Rows against the goals: for each regime the mean beside the peers, the slowest problem, and whether it is reached.

use std::fmt::Write;

use serde::Serialize;

use super::goals::{Goal, Measure, Of, REGIMES, RUNNER_GOALS, Regime, Rival, RunnerGoal};
use super::{BenchReport, BenchRow, PeerTime, RunnerCell, RunnerMeta, RunnerReport};
use crate::problem::Problem;

/// How one goal stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Standing {
    /// The regime.
    pub regime: &'static str,
    /// The goal, as it was set.
    pub sentence: &'static str,
    /// Rows of the regime that it is about.
    pub rows: usize,
    /// Rows of these that have what the goal compares with.
    pub compared: usize,
    /// What was found, chained and unchained; `None` if nothing could be compared.
    pub found: Option<[Finding; 2]>,
}

/// What was found in one way of launching.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The number that the goal is about: a geometric mean, or the worst row's.
    pub value: f64,
    /// The row that is worst, and its number.
    pub worst: (String, f64),
    /// Rows that reach on their own what the goal asks for.
    pub reaching: usize,
    /// Whether the goal is reached.
    pub is_reached: bool,
}

/// How every goal stands.
pub fn standings(report: &BenchReport) -> Vec<Standing> {
    let of_regime = |regime: &'static Regime| regime.goals.iter().map(move |goal| standing(report, regime, goal));
    REGIMES.iter().flat_map(of_regime).collect()
}

/// How every goal stands, as a table, and the rows that no regime has.
pub fn regime_table(report: &BenchReport) -> String {
    let mut text = format!("{LEGEND}\n{HEAD}");
    for standing in standings(report).iter().filter(|standing| standing.rows > 0) {
        text.push_str(&line(standing));
    }
    let without: Vec<String> = standings(report)
        .iter()
        .filter(|standing| standing.rows == 0)
        .map(|standing| format!("{}: {}", standing.regime, standing.sentence))
        .collect();
    if !without.is_empty() {
        let _ = writeln!(text, "\nNot measured here: {}.", without.join("; "));
    }
    text
}

/// How the goals of a whole model stand, as a table.
pub fn runner_regime_table(report: &RunnerReport) -> String {
    let RunnerMeta { model, checkpoint, gpu, commit, .. } = &report.meta;
    let mut text = format!("{model} ({checkpoint}) on {gpu}, commit {commit}:\n{RUNNER_HEAD}");
    for RunnerGoal { sentence, context, batch, share_of, at_least } in &RUNNER_GOALS {
        let is_it = |cell: &&RunnerCell| (cell.context, cell.batch) == (*context, *batch);
        let share = report.cells.iter().find(is_it).and_then(share_of);
        let (found, reached) = match share {
            Some(share) => (format!("{:.0} %", 100.0 * share), if share >= *at_least { "yes" } else { "no" }),
            None => ("-".to_string(), "not measured"),
        };
        let _ = writeln!(text, "| context {context}, batch {batch} | {sentence} | {found} | {reached} |");
    }
    text
}

fn standing(report: &BenchReport, regime: &'static Regime, goal: &'static Goal) -> Standing {
    let rows: Vec<&BenchRow> = report
        .rows
        .iter()
        .filter(|row| has(regime, row) && goal.tokens.is_none_or(|m| row.problem.m() == m) && is_meant(goal, row))
        .collect();
    let numbers = |us: fn(&BenchRow) -> f64| -> Vec<(&BenchRow, f64)> {
        rows.iter().filter_map(|row| Some((*row, number(goal.measure, row, us(row))?))).collect()
    };
    let (chained, unchained) = (numbers(|row| row.chained_us), numbers(|row| row.unchained_us));
    let compared = chained.len();
    let found = finding(goal.measure, &chained).zip(finding(goal.measure, &unchained)).map(|(a, b)| [a, b]);
    Standing { regime: regime.name, sentence: goal.sentence, rows: rows.len(), compared, found }
}

/// Whether `row` belongs to the regime. Skewed routing has no peers, and its floor is another: it is shown, not judged.
fn has(regime: &Regime, row: &BenchRow) -> bool {
    let of = match &row.problem {
        Problem::Dense(_) => Of::Dense,
        Problem::MoeBlock(_) => Of::Experts,
        Problem::Convert(_) | Problem::StreamMix(_) => return false,
    };
    let [from, to] = regime.tokens;
    let is_of_format = row.weights().is_some_and(|format| regime.weights.contains(&format));
    let has_tokens = (from..=to).contains(&row.problem.m());
    of == regime.of && has_tokens && is_of_format && row.is_a16() == regime.is_a16 && !row.is_skewed()
}

/// Whether the goal is about weights of this size.
fn is_meant(goal: &Goal, row: &BenchRow) -> bool {
    let bytes = row.weight_bytes();
    match goal.measure {
        Measure::OfCeiling { from_bytes, .. } | Measure::OfFloor { from_bytes, .. } => bytes >= from_bytes,
        Measure::AtMost { below_bytes, .. } => bytes < below_bytes,
        Measure::Mean(..) | Measure::Every(..) => true,
    }
}

/// The number of one row that took `us`; `None` where there is nothing to compare with. More is better, but for times.
fn number(measure: Measure, row: &BenchRow, us: f64) -> Option<f64> {
    let number = match measure {
        Measure::Mean(rival, _) | Measure::Every(rival, _) => rival_of(rival, row)?.us / us,
        Measure::OfCeiling { .. } => row.ceiling_chained_us / us,
        Measure::OfFloor { .. } => row.floor_us / us,
        Measure::AtMost { .. } => us,
    };
    number.is_finite().then_some(number)
}

fn rival_of(rival: Rival, row: &BenchRow) -> Option<&PeerTime> {
    match rival {
        Rival::BestPeer => row.best_peer(),
        Rival::Humming => row.best_of("humming"),
        Rival::CublasBf16 => row.cublas_bf16.as_ref(),
    }
}

fn finding(measure: Measure, numbers: &[(&BenchRow, f64)]) -> Option<Finding> {
    let is_time = matches!(measure, Measure::AtMost { .. });
    let by_number = |a: &&(&BenchRow, f64), b: &&(&BenchRow, f64)| a.1.total_cmp(&b.1);
    let (row, worst) = if is_time { numbers.iter().max_by(by_number)? } else { numbers.iter().min_by(by_number)? };
    let mean = (numbers.iter().map(|(_, number)| number.ln()).sum::<f64>() / numbers.len() as f64).exp();
    let is_enough = |number: f64| match measure {
        Measure::Mean(_, at_least) | Measure::Every(_, at_least) => number >= at_least,
        Measure::OfCeiling { share, .. } | Measure::OfFloor { share, .. } => number >= share,
        Measure::AtMost { us, .. } => number <= us,
    };
    let value = if matches!(measure, Measure::Mean(..)) { mean } else { *worst };
    let reaching = numbers.iter().filter(|(_, number)| is_enough(*number)).count();
    let worst = (row.problem.to_string(), *worst);
    Some(Finding { value, worst, reaching, is_reached: is_enough(value) })
}

fn line(standing: &Standing) -> String {
    let Standing { regime, sentence, rows, compared, found } = standing;
    let head = format!("| {regime} | {sentence} | {compared} of {rows}");
    let Some([chained, unchained]) = found else { return format!("{head} | - | - | - | - | not compared |\n") };
    let unit = unit(sentence);
    let show = |value: f64| match unit {
        "%" => format!("{:.0} %", 100.0 * value),
        unit => format!("{value:.2}{unit}"),
    };
    let word = |is_reached: bool| if is_reached { "yes" } else { "no" };
    let reached = match (chained.is_reached, unchained.is_reached) {
        (a, b) if a == b => word(a).to_string(),
        (a, b) => format!("{}, unchained {}", word(a), word(b)),
    };
    let (worst, number) = &chained.worst;
    let (chained_value, unchained_value, number) = (show(chained.value), show(unchained.value), show(*number));
    let reaching = chained.reaching;
    format!("{head} | {chained_value} | {unchained_value} | {worst}: {number} | {reaching} | {reached} |\n")
}

/// The unit of a goal's number, as its sentence has it.
fn unit(sentence: &str) -> &'static str {
    match sentence {
        _ if sentence.contains('%') => "%",
        _ if sentence.contains(" us ") => " us",
        _ => "x",
    }
}

const LEGEND: &str = "\
Each goal against what was measured: a geometric mean, or the worst row. Ratios are a rival's time over ours, so that \
above 1 ours is faster; peers are those of the same format and activation width, and were launched without \
programmatic dependent launch. A peer's time beside SwiGLU or an f32 result is that of the plain product, which does \
less. Shares of the stream ceiling are of its chained time, sizes those of codes and scales, in 10^6 bytes.";

const RUNNER_HEAD: &str = "
| cell | goal | found | reached |
|---|---|---|---|
";

const HEAD: &str = "
| regime | goal | rows compared | chained | unchained | worst, chained | rows that reach it | reached |
|---|---|---|---|---|---|---|---|
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::BenchMeta;

    fn row(problem: &str, [chained_us, unchained_us]: [f64; 2], peers: &[(&str, f64)]) -> BenchRow {
        BenchRow {
            problem: problem.parse().unwrap(),
            routing: None,
            read_bytes: None,
            commit: String::new(),
            tile: String::new(),
            chained_us,
            unchained_us,
            half_width_us: 0.0,
            floor_us: 3.0,
            ceiling_chained_us: 3.0,
            ceiling_unchained_us: 4.0,
            relative_l2: 0.0,
            is_warm: false,
            sm_clock_mhz: 0,
            peers: peers.iter().map(|&(peer, us)| PeerTime::apart(peer, us)).collect(),
            cublas_bf16: None,
        }
    }

    fn report(rows: Vec<BenchRow>) -> BenchReport {
        BenchReport { meta: BenchMeta::default(), rows, chains: Vec::new() }
    }

    fn of<'a>(standings: &'a [Standing], regime: &str, sentence: &str) -> &'a Standing {
        let is_it = |standing: &&Standing| standing.regime.contains(regime) && standing.sentence.contains(sentence);
        standings.iter().find(is_it).unwrap()
    }

    #[test]
    fn means_are_geometric_and_the_slowest_is_named() {
        let rows = vec![
            row("nvfp4 4096x4096 m1", [4.0, 5.0], &[("humming-nvfp4-a16", 12.0), ("marlin-nvfp4", 16.0)]),
            row("nvfp4 4096x8192 m16", [8.0, 10.0], &[("humming-nvfp4-a16", 10.0)]),
            row("nvfp4 4096x8192 m32", [1.0, 1.0], &[("humming-nvfp4-a16", 100.0)]),
            row("nvfp4 64x64 m1", [3.0, 4.0], &[]),
        ];
        let standings = standings(&report(rows));
        let mean = of(&standings, "1 to 16", "2.0x");
        assert_eq!((mean.rows, mean.compared), (3, 2));
        let [chained, unchained] = mean.found.as_ref().unwrap();
        assert!((chained.value - (3.0_f64 * 1.25).sqrt()).abs() < 1e-12 && !chained.is_reached);
        assert!((unchained.value - (2.4_f64 * 1.0).sqrt()).abs() < 1e-12);
        assert_eq!(chained.worst, ("nvfp4 4096x8192 m16".to_string(), 1.25));
        assert!(of(&standings, "1 to 16", "no problem slower").found.as_ref().unwrap()[1].is_reached);
    }

    #[test]
    fn limits_of_size_decide_which_rows_are_meant() {
        // 4096x4096 NVFP4 has 9.4 MB with scales, 1536x4096 has 3.5 MB.
        let rows = vec![row("nvfp4 4096x4096 m1", [4.0, 5.0], &[]), row("nvfp4 1536x4096 m1", [3.6, 3.4], &[])];
        let standings = standings(&report(rows));
        let ceiling = of(&standings, "1 to 16", "8 MB");
        assert_eq!((ceiling.rows, ceiling.found.as_ref().unwrap()[0].value), (1, 0.75));
        assert!(ceiling.found.as_ref().unwrap()[0].is_reached);
        let [chained, unchained] = of(&standings, "1 to 16", "4 MB").found.as_ref().unwrap();
        assert_eq!((chained.value, chained.is_reached, unchained.is_reached), (3.6, false, true));
        assert!(of(&standings, "32 to 256", "16 MB").found.is_none());
    }

    #[test]
    fn skewed_routing_is_shown_and_not_judged() {
        let block = |routing| BenchRow {
            routing: Some(routing),
            ..row("moe nvfp4 256 top6 4096x2048 m1", [50.0, 50.0], &[("humming-nvfp4-a16-moe", 100.0)])
        };
        let rows = vec![block(crate::problem::Routing::Uniform), block(crate::problem::Routing::Zipf(1.0))];
        let standings = standings(&report(rows));
        let one = of(&standings, "1 and 4", "1 token");
        assert_eq!((one.rows, one.found.as_ref().unwrap()[0].value), (1, 2.0));
    }

    #[test]
    fn the_table_says_what_is_reached_and_what_was_not_measured() {
        let mut large = row("nvfp4 8192x8192 m4096", [800.0, 810.0], &[("humming-nvfp4-a16", 900.0)]);
        large.cublas_bf16 = Some(PeerTime::apart("cublas-bf16", 780.0));
        let text = regime_table(&report(vec![large]));
        let line = "| dense 4-bit, 1024 tokens and more | at least 0.97x cuBLAS bf16 on every shape | 1 of 1 | 0.97x | \
                    0.96x | nvfp4 8192x8192 m4096: 0.97x | 1 | yes, unchained no |";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("Not measured here: dense 4-bit, 1 to 16 tokens: geomean"), "{text}");
    }
}
