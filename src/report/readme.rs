//! The README's results: written by a tool between two markers, so that nothing in them is typed.

use super::markdown::{HEAD, line};
use super::{BenchReport, BenchRow};
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

/// The block for a README: provenance and the rows that say most.
pub fn readme_block(report: &BenchReport) -> String {
    let meta = &report.meta;
    let mut text =
        format!("{}, driver {}, NVRTC {}, commit {}. {}", meta.gpu, meta.driver, meta.nvrtc, meta.commit, meta.method);
    if !meta.peers.is_empty() {
        text.push_str(&format!(" Peers: {} (measured apart from this run).", meta.peers));
    }
    text.push('\n');
    text.push_str(HEAD);
    report.rows.iter().filter(|row| is_telling(row)).for_each(|row| text.push_str(&line(row)));
    text
}

/// A few shapes of each format, few and many tokens.
fn is_telling(row: &BenchRow) -> bool {
    let m = row.problem.m();
    match &row.problem {
        Problem::Dense(dense) => {
            [1, 16, 64, 256, 1024, 4096].contains(&m) && [(4096, 4096), (8192, 8192)].contains(&(dense.n, dense.k))
        }
        Problem::MoeBlock(_) => true,
        Problem::Convert(_) => false,
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
