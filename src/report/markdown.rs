//! A report as a Markdown table.

use std::fmt::Write;

use super::{BenchReport, BenchRow};

/// The report with its provenance, all rows.
pub fn table(report: &BenchReport) -> String {
    let meta = &report.meta;
    let mut text = format!(
        "{}, driver {}, NVRTC {}, commit {}. {}\n",
        meta.gpu, meta.driver, meta.nvrtc, meta.commit, meta.method
    );
    if !meta.peers.is_empty() {
        let _ = writeln!(text, "Peers: {} (measured apart from this run).", meta.peers);
    }
    text.push_str(HEAD);
    report.rows.iter().for_each(|row| text.push_str(&line(row)));
    text
}

/// One line of the table.
pub(super) fn line(row: &BenchRow) -> String {
    let (peer, ratio) = match (row.best_peer(), row.ratio()) {
        (Some(peer), Some(ratio)) => (format!("{} {:.2}", peer.peer, peer.us), format!("{ratio:.2}")),
        _ => ("-".to_string(), "-".to_string()),
    };
    format!(
        "| {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} % | {:.0} % | {peer} | {ratio} | {:.1e} |\n",
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

pub(super) const HEAD: &str = "
| problem | chained us | unchained us | floor us | stream ceiling us | of floor | of ceiling | best peer us \
| unchained / peer | relative L2 |
|---|---|---|---|---|---|---|---|---|---|
";
