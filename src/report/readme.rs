//! The README's results: written by a tool between two markers, so that nothing in them is typed.

use super::markdown::{BEST_PEER, HEAD, chains, line, provenance};
use super::{BenchReport, BenchRow, MOST_RATIO, regime_table};
use crate::problem::Problem;

/// Why a README cannot be rewritten.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadmeError {
    /// One of the markers is missing, or they stand the wrong way round.
    #[error("expected the lines `{BEGIN}` and `{END}`, in this order, found {found}")]
    Markers {
        /// What there is.
        found: &'static str,
    },
}

/// How much of a suite a report has.
#[derive(Clone, Copy, Debug)]
pub struct Coverage {
    /// Its name.
    pub suite: &'static str,
    /// Problems that the report has rows of.
    pub measured: usize,
    /// All of them.
    pub problems: usize,
}

/// The block for a README: provenance, how the goals stand, what is shown of the file called `name`, how all of its
/// rows stand beside their peers, and the rows that say most.
pub fn readme_block(report: &BenchReport, name: &str, coverage: Coverage) -> String {
    let telling: Vec<&BenchRow> = report.rows.iter().filter(|row| is_telling(row)).collect();
    let [shapes, tokens] =
        [SHAPES.map(|(n, k)| format!("{n}x{k}")).join(" and "), TOKENS.map(|m| m.to_string()).join(", ")];
    let mut text = format!(
        "{}\n\n{}\nA goal is judged by the rows that were measured: {} of the {} problems of `autotune bench --suite \
         {}`. Shown below are {} of the {} rows of `{name}`: the shapes {shapes} at {tokens} tokens, and every \
         block of experts. {BEST_PEER}\n\n{}\n",
        provenance(report),
        regime_table(report),
        coverage.measured,
        coverage.problems,
        coverage.suite,
        telling.len(),
        report.rows.len(),
        summary(report)
    );
    text.push_str(HEAD);
    telling.into_iter().for_each(|row| text.push_str(&line(row)));
    text.push_str(&chains(report));
    text
}

/// How all rows stand beside their peers.
fn summary(report: &BenchReport) -> String {
    let ratios: Vec<f64> = report.rows.iter().filter_map(BenchRow::ratio).collect();
    let at_most = |limit: f64| ratios.iter().filter(|ratio| **ratio <= limit).count();
    let slowest = report.slowest_by_format().into_iter().map(|(row, ratio)| format!("{} {ratio:.2}", row.problem));
    let rivals = report.rows.iter().filter_map(|row| {
        let peer = row.best_eight_bit_peer().filter(|peer| row.best_peer() != Some(peer))?;
        Some(peer.us < row.unchained_us)
    });
    let rivals: Vec<bool> = rivals.collect();
    format!(
        "Of all {} rows with a best peer, {} take no more than its time and {} no more than {MOST_RATIO} times that. \
         The slowest beside its best peer, of each format: {}. In {} of the {} rows that have another peer with \
         8-bit activations, that one is faster than ours.",
        ratios.len(),
        at_most(1.0),
        at_most(MOST_RATIO),
        slowest.collect::<Vec<_>>().join(", "),
        rivals.iter().filter(|is_faster| **is_faster).count(),
        rivals.len()
    )
}

/// A few shapes of each format, few and many tokens.
fn is_telling(row: &BenchRow) -> bool {
    let m = row.problem.m();
    match &row.problem {
        Problem::Dense(dense) => TOKENS.contains(&m) && SHAPES.contains(&(dense.n, dense.k)),
        Problem::MoeBlock(_) => true,
        Problem::Convert(_) | Problem::StreamMix(_) => false,
    }
}

/// Puts `block` between the markers of `readme`.
///
/// # Errors
/// [`ReadmeError`] if the markers are not there.
pub fn replace_block(readme: &str, block: &str) -> Result<String, ReadmeError> {
    let begin = readme.find(BEGIN).ok_or(ReadmeError::Markers { found: "no begin" })?;
    let end = readme.find(END).ok_or(ReadmeError::Markers { found: "no end" })?;
    if end < begin {
        return Err(ReadmeError::Markers { found: "them the other way round" });
    }
    Ok(format!("{}{BEGIN}\n{}\n{}", &readme[..begin], block.trim_end(), &readme[end..]))
}

/// Shapes that are shown, rows of the weight and reduction.
const SHAPES: [(u32, u32); 2] = [(4096, 4096), (8192, 8192)];

/// Tokens that they are shown at.
const TOKENS: [u32; 6] = [1, 16, 64, 256, 1024, 4096];

const BEGIN: &str = "<!-- results: begin (written by `autotune report`) -->";
const END: &str = "<!-- results: end -->";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_markers_changes() {
        let readme = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let once = replace_block(&readme, "new\n").unwrap();
        assert_eq!(once, format!("before\n{BEGIN}\nnew\n{END}\nafter\n"));
        assert_eq!(replace_block(&once, "new").unwrap(), once);
        assert!(replace_block("no markers", "new").is_err());
        assert!(replace_block(&format!("{END}{BEGIN}"), "new").is_err());
    }
}
