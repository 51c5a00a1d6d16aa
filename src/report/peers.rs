//! Other engines' times, from a file of rows that somebody measured on one GPU.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{BenchReport, PeerTime};
use crate::problem::{Dense, Problem};
use crate::quant::WeightFormat;

/// The rows of a file, by problem.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peers {
    /// What the file says of its GPU.
    pub gpu: String,
    /// Problems in a stable order, each with the peers that were measured on it.
    pub problems: BTreeMap<Problem, Vec<PeerTime>>,
}

/// One row as the file has it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct PeerRow {
    /// Engine, format and activation width.
    pub peer: String,
    /// Weight format.
    pub weights: String,
    /// `dense` or `moe`.
    pub kind: String,
    /// Rows of the weight; of experts, all three matrices together.
    pub n: u32,
    /// Reduction length.
    pub k: u32,
    /// Tokens (dense).
    #[serde(default)]
    pub m: u32,
    /// Tokens (experts).
    #[serde(default)]
    pub tokens: u32,
    /// Which part of a block of experts.
    #[serde(default)]
    pub part: String,
    /// Experts.
    #[serde(default)]
    pub experts: u32,
    /// Slots of a token.
    #[serde(default)]
    pub top_k: u32,
    /// Microseconds.
    pub us: f64,
}

/// Why a file of peers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is something else.
    #[error("{}: expected `meta.gpu` and `rows` with peer, weights, kind, n, k, us, found {found}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What serde says.
        found: String,
    },
}

#[derive(Deserialize)]
struct File {
    meta: Meta,
    rows: Vec<PeerRow>,
}

#[derive(Deserialize)]
struct Meta {
    gpu: String,
}

impl Peers {
    /// Reads the file at `path`. Rows that compute something else than we do (one GEMM of a block) are left out; those
    /// with 8-bit activations are shown and are no rivals.
    ///
    /// # Errors
    /// [`PeerError`].
    pub fn read(path: &Path) -> Result<Self, PeerError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| PeerError::File { path: path.to_path_buf(), source })?;
        let file: File = serde_json::from_str(&text)
            .map_err(|error| PeerError::Format { path: path.to_path_buf(), found: error.to_string() })?;
        let mut peers = Self { gpu: file.meta.gpu, problems: BTreeMap::new() };
        for row in file.rows {
            if let Some(problem) = row.problem() {
                peers.problems.entry(problem).or_default().push(PeerTime { peer: row.peer, us: row.us });
            }
        }
        Ok(peers)
    }
}

impl BenchReport {
    /// Takes the times of `peers` for every row that they have, in place of those that it had.
    pub fn take_peers(&mut self, peers: &Peers) {
        for row in &mut self.rows {
            if let Some(times) = peers.problems.get(&row.problem) {
                row.peers.clone_from(times);
            }
        }
        self.meta.peers.clone_from(&peers.gpu);
    }
}

impl PeerRow {
    /// The problem of ours that the row is about, if there is one.
    fn problem(&self) -> Option<Problem> {
        let weights = WeightFormat::from_name(&self.weights)?;
        match (self.kind.as_str(), self.part.as_str()) {
            ("dense", _) => Some(Problem::Dense(Dense::new(weights, self.n, self.k, self.m))),
            ("moe", "moe") => {
                // n counts gate, up and down rows of the inner length.
                let (experts, top_k, hidden, inner) = (self.experts, self.top_k, self.k, self.n / 3);
                format!("moe {weights} {experts} top{top_k} {hidden}x{inner} m{}", self.tokens).parse().ok()
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_rows_become_problems() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/h100.json");
        let peers = Peers::read(&path).unwrap();
        assert!(peers.gpu.contains("H100"));
        let times = |text: &str| peers.problems[&text.parse::<Problem>().unwrap()].clone();
        let names = |text: &str| times(text).into_iter().map(|time| time.peer).collect::<Vec<_>>();
        assert_eq!(names("nvfp4 4096x4096 m1"), ["marlin-nvfp4", "humming-nvfp4-a16"]);
        assert_eq!(names("fp8 4096x4096 m64"), ["cublas-fp8", "cublas-fp8row"]);
        assert_eq!(names("moe nvfp4 256 top6 4096x2048 m16"), ["marlin-nvfp4-moe", "humming-nvfp4-a16-moe"]);
        assert_eq!(names("mxfp4 8192x8192 m1"), ["humming-mxfp4-a8", "triton_kernels-mxfp4"]);
        assert_eq!(times("bf16 1536x4096 m1")[0].us, 10.139);
        assert!(!peers.problems.values().flatten().any(|time| time.peer.contains("w13")));
    }

    #[test]
    fn nonsense_is_refused_with_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peers.json");
        assert!(matches!(Peers::read(&path), Err(PeerError::File { .. })));
        std::fs::write(&path, "{}").unwrap();
        let error = Peers::read(&path).unwrap_err().to_string();
        assert!(error.contains("expected `meta.gpu` and `rows`") && error.contains("missing field"), "{error}");
    }
}
