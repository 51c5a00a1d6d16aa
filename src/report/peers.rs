//! Other engines' times: from a file of rows that somebody measured on one GPU, or from what a peer's script wrote in
//! the same run.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{BenchReport, BenchRow, PeerTime};
use crate::problem::{Activations, Dense, Epilogue, Output, Problem};
use crate::quant::WeightFormat;

/// The rows of one file or of several, by problem.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peers {
    /// What the files say of their GPU.
    pub gpu: String,
    /// Problems in a stable order, each with the peers that were measured on it.
    pub problems: BTreeMap<Problem, Vec<PeerTime>>,
}

/// One row as a file has it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct PeerRow {
    /// Engine, format and activation width.
    pub peer: String,
    /// Weight format; in a script's file it stands in the peer's name.
    #[serde(default)]
    pub weights: String,
    /// `dense` or `moe`; in a script's file a row with tokens is one of experts.
    #[serde(default)]
    pub kind: String,
    /// Rows of the weight; of experts, all three matrices together.
    #[serde(default)]
    pub n: u32,
    /// Reduction length.
    #[serde(default)]
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
    #[serde(default, alias = "e")]
    pub experts: u32,
    /// Slots of a token.
    #[serde(default, alias = "topk")]
    pub top_k: u32,
    /// Microseconds; a shape that failed has none.
    #[serde(default)]
    pub us: Option<f64>,
}

/// What is wrong with the text of a file of peers.
#[derive(Debug, thiserror::Error)]
#[error("expected `meta.gpu` and `rows` with peer, weights, kind, n, k, us, found {0}")]
pub struct PeerError(String);

/// Both forms of a file: ours has `meta`, a script's has `device`.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    meta: Option<Meta>,
    #[serde(default)]
    device: Option<String>,
    rows: Vec<PeerRow>,
}

#[derive(Deserialize)]
struct Meta {
    gpu: String,
}

impl Peers {
    /// What the text of a file has. Rows that compute something else than we do (one GEMM of a block) are left out, and
    /// those with 8-bit activations are shown and are no rivals of ours with 16. A script's own file, which has
    /// `device` in place of `meta`, is one of the same run: whoever names it says so.
    ///
    /// # Errors
    /// [`PeerError`].
    pub fn parse(text: &str) -> Result<Self, PeerError> {
        let file: File = serde_json::from_str(text).map_err(|error| PeerError(error.to_string()))?;
        let (gpu, is_same_run) = match (file.meta, file.device) {
            (Some(meta), _) => (meta.gpu, false),
            (None, Some(device)) => (device, true),
            (None, None) => {
                return Err(PeerError("a file with neither `meta` nor `device` (missing field `meta`)".to_string()));
            }
        };
        let mut peers = Self { gpu, problems: BTreeMap::new() };
        for row in file.rows {
            if let (Some(problem), Some(us)) = (row.problem(), row.us) {
                let time = PeerTime { peer: row.peer, us, is_same_run };
                peers.problems.entry(problem).or_default().push(time);
            }
        }
        Ok(peers)
    }

    /// Adds the rows of `other`. A peer's time of the same run takes the place of its time of another.
    pub fn add(&mut self, other: Self) {
        for (problem, times) in other.problems {
            let all = self.problems.entry(problem).or_default();
            for time in times {
                match all.iter_mut().find(|known| known.peer == time.peer) {
                    Some(known) if known.is_same_run && !time.is_same_run => {}
                    Some(known) => *known = time,
                    None => all.push(time),
                }
            }
        }
        if !self.gpu.contains(&other.gpu) {
            self.gpu = if self.gpu.is_empty() { other.gpu } else { format!("{}; {}", self.gpu, other.gpu) };
        }
    }

    /// What is known of `problem`: peers' problems have plain BF16 results, and those of 8-bit activations stand beside
    /// those of 16.
    pub fn of(&self, problem: &Problem) -> &[PeerTime] {
        self.problems.get(&twin(problem, None)).map_or(&[], Vec::as_slice)
    }

    /// cuBLAS on the shape of a dense `problem` with BF16 weights.
    pub fn cublas_bf16(&self, problem: &Problem) -> Option<&PeerTime> {
        let Problem::Dense(_) = problem else { return None };
        let times = self.problems.get(&twin(problem, Some(WeightFormat::Bf16)))?;
        times.iter().find(|time| time.peer == CUBLAS_BF16)
    }

    /// Gives `row` its peers. They were measured under uniform routing only.
    pub fn give(&self, row: &mut BenchRow) {
        if !row.is_skewed() {
            row.peers = self.of(&row.problem).to_vec();
            let is_own = row.weights() == Some(WeightFormat::Bf16);
            row.cublas_bf16 = self.cublas_bf16(&row.problem).filter(|_| !is_own).cloned();
        }
    }
}

impl BenchReport {
    /// Takes the times of `peers` for every row that they have, in place of those that it had.
    pub fn take_peers(&mut self, peers: &Peers) {
        for row in &mut self.rows {
            if !peers.of(&row.problem).is_empty() || peers.cublas_bf16(&row.problem).is_some() {
                peers.give(row);
            }
        }
        self.meta.peers.clone_from(&peers.gpu);
    }
}

/// The problem that a peer was measured on in place of `problem`, with weights of `format` if one is named: BF16
/// activations, a BF16 result, no SwiGLU.
fn twin(problem: &Problem, format: Option<WeightFormat>) -> Problem {
    let mut twin = problem.clone();
    match &mut twin {
        Problem::Dense(dense) => {
            dense.weights = format.unwrap_or(dense.weights);
            (dense.activations, dense.output, dense.epilogue) = (Activations::A16, Output::Bf16, Epilogue::Plain);
        }
        Problem::MoeBlock(block) => block.activations = Activations::A16,
        Problem::Convert(_) | Problem::StreamMix(_) => {}
    }
    twin
}

impl PeerRow {
    /// The problem of ours that the row is about, if there is one.
    fn problem(&self) -> Option<Problem> {
        let weights = self.format()?;
        match self.part()? {
            "dense" => Some(Problem::Dense(Dense::new(weights, self.n, self.k, self.m))),
            "moe" => {
                // n counts gate, up and down rows of the inner length.
                let (experts, top_k, hidden, inner) = (self.experts, self.top_k, self.k, self.n / 3);
                format!("moe {weights} {experts} top{top_k} {hidden}x{inner} m{}", self.tokens).parse().ok()
            }
            _ => None,
        }
    }

    /// Format of the weights, from its own field or from a name such as `humming-nvfp4-a16` or `cublas-fp8row`.
    fn format(&self) -> Option<WeightFormat> {
        let from_name = || match self.peer.strip_prefix("cublas-") {
            Some("fp8row") => Some(WeightFormat::Fp8),
            Some(name) => WeightFormat::from_name(name),
            None => self.peer.split('-').find_map(WeightFormat::from_name),
        };
        WeightFormat::from_name(&self.weights).or_else(from_name)
    }

    /// `dense`, or the part of a block of experts: `moe` is the whole.
    fn part(&self) -> Option<&str> {
        match (self.kind.as_str(), self.tokens) {
            ("dense", _) | ("", 0) => Some("dense"),
            ("moe", _) => Some(&self.part),
            ("", _) => self.peer.rsplit('-').next(),
            _ => None,
        }
    }
}

/// What cuBLAS on BF16 is called in every file.
const CUBLAS_BF16: &str = "cublas-bf16";

#[cfg(test)]
mod tests {
    use super::*;

    fn committed() -> Peers {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/h100.json");
        Peers::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn the_committed_rows_become_problems() {
        let peers = committed();
        assert!(peers.gpu.contains("H100"));
        let times = |text: &str| peers.problems[&text.parse::<Problem>().unwrap()].clone();
        let names = |text: &str| times(text).into_iter().map(|time| time.peer).collect::<Vec<_>>();
        assert_eq!(names("nvfp4 4096x4096 m1"), ["marlin-nvfp4", "humming-nvfp4-a16"]);
        assert_eq!(names("fp8 4096x4096 m64"), ["cublas-fp8", "cublas-fp8row"]);
        assert_eq!(names("moe nvfp4 256 top6 4096x2048 m16"), ["marlin-nvfp4-moe", "humming-nvfp4-a16-moe"]);
        assert_eq!(names("mxfp4 8192x8192 m1"), ["humming-mxfp4-a8", "triton_kernels-mxfp4"]);
        assert_eq!(times("bf16 1536x4096 m1")[0].us, 10.139);
        // Experts with FP8 rows stand beside every peer, and are judged by those with 8 bits.
        let beside = peers.of(&"moe mxfp4 256 top6 4096x2048 a8 m4096".parse().unwrap());
        let eight_bit: Vec<_> =
            beside.iter().filter(|time| time.is_eight_bit()).map(|time| (&*time.peer, time.us)).collect();
        assert_eq!(eight_bit, [("humming-mxfp4-a8-moe", 2096.368), ("flashinfer-mxfp4-a8-moe", 2235.808)]);
        assert!(!peers.problems.values().flatten().any(|time| time.peer.contains("w13")));
    }

    /// Lines as `bench_humming.py` writes them, one of a shape that failed among them.
    const SCRIPT: &str = r#"{"device": "NVIDIA H100 80GB HBM3", "torch": "2.11.0+cu130", "rows": [
        {"peer": "humming-nvfp4-a16", "m": 16, "n": 4096, "k": 4096, "us": 8.5, "tflops": 63.2, "gbs": 1143.0,
         "err": 0.0017, "mode": "graph", "sets": 36, "floor_us": 2.9},
        {"peer": "humming-nvfp4-a16 4096x4096 m=32", "error": "RuntimeError: no kernel"},
        {"peer": "humming-nvfp4-a16-w13", "m": 96, "n": 4096, "k": 4096, "us": 200.0, "tokens": 16, "e": 256, "topk": 6,
         "block": [16, 16], "active": 80.9, "err": null, "mode": "graph"},
        {"peer": "humming-nvfp4-a16-moe", "m": 96, "n": 6144, "k": 4096, "us": 390.0, "tokens": 16, "e": 256, "topk": 6,
         "block": [16, 16], "active": 80.9, "err": null, "mode": "graph"},
        {"peer": "humming-mxfp4-a8", "m": 1, "n": 8192, "k": 8192, "us": 18.0, "us_with_quant": 24.0},
        {"peer": "cublas-bf16", "m": 16, "n": 4096, "k": 4096, "us": 14.0, "mode": "graph", "sets": 10}]}"#;

    #[test]
    fn a_scripts_rows_are_of_the_same_run() {
        let peers = Peers::parse(SCRIPT).unwrap();
        assert_eq!(peers.problems.len(), 4);
        let of = |text: &str| peers.of(&text.parse().unwrap()).to_vec();
        let time = |peer: &str, us| PeerTime { is_same_run: true, ..PeerTime::apart(peer, us) };
        assert_eq!(of("nvfp4 4096x4096 m16"), [time("humming-nvfp4-a16", 8.5)]);
        assert_eq!(of("nvfp4 4096x4096 swiglu m16"), [time("humming-nvfp4-a16", 8.5)]);
        assert_eq!(of("moe nvfp4 256 top6 4096x2048 m16"), [time("humming-nvfp4-a16-moe", 390.0)]);
        assert_eq!(of("mxfp4 8192x8192 m1"), [time("humming-mxfp4-a8", 18.0)]);
        assert_eq!(of("bf16 4096x4096 f32 m16"), [time("cublas-bf16", 14.0)]);
        let problem = "nvfp4 4096x4096 m16".parse().unwrap();
        assert_eq!(peers.cublas_bf16(&problem), Some(&time("cublas-bf16", 14.0)));
    }

    #[test]
    fn a_time_of_the_same_run_takes_the_place_of_another() {
        let (apart, same) = (committed(), Peers::parse(SCRIPT).unwrap());
        for (first, second) in [(&apart, &same), (&same, &apart)] {
            let mut all = first.clone();
            all.add(second.clone());
            let problem = "nvfp4 4096x4096 m16".parse().unwrap();
            let mut times: Vec<_> = all.of(&problem).iter().map(|time| (&*time.peer, time.is_same_run)).collect();
            times.sort_unstable();
            assert_eq!(times, [("humming-nvfp4-a16", true), ("marlin-nvfp4", false)]);
        }
    }

    #[test]
    fn nonsense_is_refused_with_a_sentence() {
        for nonsense in ["{}", r#"{"rows": []}"#] {
            let error = Peers::parse(nonsense).unwrap_err().to_string();
            assert!(error.contains("expected `meta.gpu` and `rows`") && error.contains("missing field"), "{error}");
        }
    }
}
