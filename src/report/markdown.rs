//! A report as a Markdown table.

use std::fmt::Write;

use super::{BenchMeta, BenchReport, BenchRow, ChainRow, PeerTime};
use crate::problem::Problem;

/// The report with its provenance, all rows.
pub fn table(report: &BenchReport) -> String {
    let mut text = format!("{}\n{BEST_PEER}\n{HEAD}", provenance(report));
    report.rows.iter().for_each(|row| text.push_str(&line(row)));
    text.push_str(&chains(report));
    text
}

/// The chains of a layer's launches, if there are any.
pub(super) fn chains(report: &BenchReport) -> String {
    if report.chains.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{CHAINS}\n{CHAINS_HEAD}");
    for chain in &report.chains {
        let ChainRow { name, problems, chained_us, unchained_us, sum_us, ceiling_us, weight_bytes, .. } = chain;
        let problems: Vec<String> = problems.iter().map(Problem::op).collect();
        let _ = writeln!(
            text,
            "| {name} | {} | {:.1} | {chained_us:.2} | {unchained_us:.2} | {sum_us:.2} | {ceiling_us:.2} | {:.0} % |",
            problems.join(", "),
            *weight_bytes as f64 / 1e6,
            100.0 * ceiling_us / chained_us
        );
    }
    text
}

/// Where, with what and how the rows were measured.
pub(super) fn provenance(report: &BenchReport) -> String {
    let BenchMeta { gpu, driver, nvrtc, commit, method, peers, .. } = &report.meta;
    let mut text = format!("{gpu}, driver {driver}, NVRTC {nvrtc}, commit {commit}. {method}");
    let is_older = |row: &&BenchRow| !row.commit.is_empty() && row.commit != *commit;
    let older = report.rows.iter().filter(is_older).count();
    if older > 0 {
        let _ = write!(text, " {older} of the rows were measured by other commits.");
    }
    if !peers.is_empty() {
        let is_same_run = report.rows.iter().flat_map(|row| &row.peers).any(|peer| peer.is_same_run);
        let but = if is_same_run { ", but for those marked `same run`" } else { "" };
        let _ = write!(text, " Peers: {peers} (measured apart from this run{but}).");
    }
    text
}

/// One line of the table.
pub(super) fn line(row: &BenchRow) -> String {
    let ratio = row.ratio().map_or("-".to_string(), |ratio| format!("{ratio:.2}"));
    let mut peers: Vec<&PeerTime> = row.best_peer().into_iter().chain(row.best_eight_bit_peer()).collect();
    peers.dedup();
    let name = |peer: &&PeerTime| {
        let width = if peer.is_eight_bit() { " (a8)" } else { "" };
        let run = if peer.is_same_run { " (same run)" } else { "" };
        format!("{} {:.2}{width}{run}", peer.peer, peer.us)
    };
    let peers = match peers.is_empty() {
        true => "-".to_string(),
        false => peers.iter().map(name).collect::<Vec<_>>().join(", "),
    };
    let routing = row.routing.map_or(String::new(), |routing| format!(", {routing}"));
    format!(
        "| {}{routing} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} % | {:.0} % | {peers} | {ratio} | {:.1e} |\n",
        row.problem,
        row.chained_us,
        row.unchained_us,
        row.floor_us,
        row.ceiling_chained_us,
        100.0 * row.of_floor(),
        100.0 * row.of_ceiling(),
        row.relative_l2,
    )
}

/// What a row is compared with.
pub(super) const BEST_PEER: &str = "\
The best peer is the fastest with BF16 activations, as ours are; for FP8 weights it is cuBLAS with FP8 activations, \
because it has no other. `(a8)` marks 8-bit activations: where such a peer was measured too, the fastest stands behind \
the best peer, and the ratio stays that to the best peer.";

pub(super) const HEAD: &str = "
| problem | chained us | unchained us | floor us | stream ceiling us | of floor | of ceiling | best peer us \
| unchained / peer | relative L2 |
|---|---|---|---|---|---|---|---|---|---|
";

/// What the table of chains shows.
const CHAINS: &str = "\
The projections of one layer of attention (attention itself left out) in one graph of many layers, each launch reading \
what an earlier one wrote, beside the sum of their times in chains of their own and a pure read of the same bytes.";

const CHAINS_HEAD: &str = "
| layer | launches | weights MB | chained us | unchained us | sum of single us | stream ceiling us | of ceiling |
|---|---|---|---|---|---|---|---|
";
