//! A report as a Markdown table.

use std::fmt::Write;

use super::{BenchMeta, BenchReport, BenchRow, PeerTime};

/// The report with its provenance, all rows.
pub fn table(report: &BenchReport) -> String {
    let mut text = format!("{}\n{BEST_PEER}\n{HEAD}", provenance(report));
    report.rows.iter().for_each(|row| text.push_str(&line(row)));
    text
}

/// Where, with what and how the rows were measured.
pub(super) fn provenance(report: &BenchReport) -> String {
    let BenchMeta { gpu, driver, nvrtc, commit, method, peers, .. } = &report.meta;
    let mut text = format!("{gpu}, driver {driver}, NVRTC {nvrtc}, commit {commit}. {method}");
    if !peers.is_empty() {
        let _ = write!(text, " Peers: {peers} (measured apart from this run).");
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
        format!("{} {:.2}{width}", peer.peer, peer.us)
    };
    let peers = match peers.is_empty() {
        true => "-".to_string(),
        false => peers.iter().map(name).collect::<Vec<_>>().join(", "),
    };
    format!(
        "| {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} % | {:.0} % | {peers} | {ratio} | {:.1e} |\n",
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
