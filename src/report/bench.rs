//! What `autotune bench` writes: one row for each problem, with everything that a ratio is made of.

use serde::{Deserialize, Serialize};

use crate::problem::{Activations, Problem, Routing};
use crate::quant::WeightFormat;

/// Measured rows and where they come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// Where, when and with what.
    pub meta: BenchMeta,
    /// One for each problem and routing.
    pub rows: Vec<BenchRow>,
    /// Launches of a layer, one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chains: Vec<ChainRow>,
}

/// Provenance of a report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BenchMeta {
    /// Product name of the GPU.
    pub gpu: String,
    /// Driver version.
    pub driver: String,
    /// NVRTC version.
    pub nvrtc: String,
    /// Commit of tilekiln.
    pub commit: String,
    /// Seconds since 1970.
    pub written_at: u64,
    /// How it was measured.
    pub method: String,
    /// Where the peers' times come from; empty without.
    pub peers: String,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// The problem.
    pub problem: Problem,
    /// Who went to which expert; of a row of one kind of routing it may be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<Routing>,
    /// Bytes of the weights that a launch reads, codes and scales, where they differ from the problem's own mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
    /// Commit of tilekiln, where it may differ from the report's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub commit: String,
    /// The winner that was measured.
    pub tile: String,
    /// Chained launches with programmatic dependent launch: median, microseconds.
    pub chained_us: f64,
    /// Independent launches without overlap: median, microseconds.
    pub unchained_us: f64,
    /// Half width of the 95 % confidence interval of the chained median.
    pub half_width_us: f64,
    /// The problem's floor on this GPU.
    pub floor_us: f64,
    /// A pure read of the weight bytes in a chain, measured in the same run.
    pub ceiling_chained_us: f64,
    /// The same without overlap.
    pub ceiling_unchained_us: f64,
    /// Relative L2 error against the f64 reference.
    pub relative_l2: f64,
    /// Whether weights came from L2 in part.
    pub is_warm: bool,
    /// SM clock, MHz.
    pub sm_clock_mhz: u32,
    /// Times of other engines on the same problem.
    pub peers: Vec<PeerTime>,
    /// cuBLAS on the same shape with BF16 weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cublas_bf16: Option<PeerTime>,
}

/// The projections of a layer as one chain: each reads what an earlier one wrote, layer after layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChainRow {
    /// Whose layer, and for how many tokens.
    pub name: String,
    /// The launches of a layer, in order.
    pub problems: Vec<Problem>,
    /// The tile of each.
    pub tiles: Vec<String>,
    /// A layer with programmatic dependent launch: median, microseconds.
    pub chained_us: f64,
    /// A layer without overlap: median, microseconds.
    pub unchained_us: f64,
    /// Sum of the chained times of its launches, each in a chain of its own.
    pub sum_us: f64,
    /// Weights of a layer, codes and scales.
    pub weight_bytes: u64,
    /// A pure read of as many bytes in a chain.
    pub ceiling_us: f64,
}

/// Another engine's time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerTime {
    /// Which engine.
    pub peer: String,
    /// Microseconds, unchained.
    pub us: f64,
    /// Whether it was measured on the same machine in the same run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_same_run: bool,
}

impl PeerTime {
    /// A time that was measured apart from our run.
    pub fn apart(peer: &str, us: f64) -> Self {
        Self { peer: peer.to_string(), us, is_same_run: false }
    }

    /// Whether it reads activations of 8 bits, as its name says; ours have 16.
    pub fn is_eight_bit(&self) -> bool {
        self.peer.contains("-a8") || self.peer.starts_with("cublas-fp8")
    }
}

impl BenchRow {
    /// The fastest peer with activations as wide as ours; of FP8 weights the fastest of all, since cuBLAS multiplies
    /// them with FP8 activations only. A time of the same run stands in for the same peer's of another.
    pub fn best_peer(&self) -> Option<&PeerTime> {
        let is_fp8 = self.weights() == Some(WeightFormat::Fp8);
        let is_a16 = self.is_a16();
        self.fastest(|peer| is_fp8 || peer.is_eight_bit() != is_a16)
    }

    /// The fastest peer whose name begins with `engine` and whose activations are as wide as ours.
    pub fn best_of(&self, engine: &str) -> Option<&PeerTime> {
        let is_a16 = self.is_a16();
        self.fastest(|peer| peer.peer.starts_with(engine) && peer.is_eight_bit() != is_a16)
    }

    /// Whether activations reach the tensor cores as BF16.
    pub fn is_a16(&self) -> bool {
        let activations = match &self.problem {
            Problem::Dense(dense) => dense.activations,
            Problem::MoeBlock(block) => block.activations,
            Problem::Convert(_) | Problem::StreamMix(_) => Activations::A16,
        };
        activations == Activations::A16
    }

    /// Whether experts were dealt out unevenly: no peer was measured so.
    pub fn is_skewed(&self) -> bool {
        self.routing.is_some_and(|routing| routing != Routing::Uniform)
    }

    /// Bytes of the weights that a launch reads, codes and scales; of a conversion or a mix of streams all that it
    /// moves.
    pub fn weight_bytes(&self) -> u64 {
        self.read_bytes.unwrap_or_else(|| match &self.problem {
            Problem::Dense(dense) => dense.weight_bytes(),
            Problem::MoeBlock(block) => block.touched_weight_bytes(),
            Problem::Convert(convert) => convert.bytes(),
            Problem::StreamMix(mix) => mix.bytes(),
        })
    }

    /// The fastest peer with 8-bit activations.
    pub fn best_eight_bit_peer(&self) -> Option<&PeerTime> {
        self.fastest(PeerTime::is_eight_bit)
    }

    fn fastest(&self, counts: impl Fn(&PeerTime) -> bool) -> Option<&PeerTime> {
        self.peers.iter().filter(|peer| counts(peer)).min_by(|a, b| a.us.total_cmp(&b.us))
    }

    /// Format of the weights; `None` where none are read.
    pub fn weights(&self) -> Option<WeightFormat> {
        match &self.problem {
            Problem::Dense(dense) => Some(dense.weights),
            Problem::MoeBlock(block) => Some(block.weights),
            Problem::Convert(_) | Problem::StreamMix(_) => None,
        }
    }

    /// Our unchained time over the best peer's: below 1 is faster. Both are launches that do not overlap.
    pub fn ratio(&self) -> Option<f64> {
        self.best_peer().map(|peer| self.unchained_us / peer.us)
    }

    /// Share of the floor that the chained time reaches: 1 is the floor.
    pub fn of_floor(&self) -> f64 {
        self.floor_us / self.chained_us
    }

    /// Share of the measured stream ceiling that the chained time reaches.
    pub fn of_ceiling(&self) -> f64 {
        self.ceiling_chained_us / self.chained_us
    }
}

impl BenchReport {
    /// The row of each weight format that is slowest beside its best peer, with its ratio.
    pub fn slowest_by_format(&self) -> Vec<(&BenchRow, f64)> {
        let mut slowest: Vec<(&BenchRow, f64)> = Vec::new();
        for (row, ratio) in self.rows.iter().filter_map(|row| Some((row, row.ratio()?))) {
            match slowest.iter_mut().find(|(other, _)| other.weights() == row.weights()) {
                Some(slower) if slower.1 >= ratio => {}
                Some(slower) => *slower = (row, ratio),
                None => slowest.push((row, ratio)),
            }
        }
        slowest
    }

    /// Rows that take more than `limit` times the best peer's time, the worst first.
    pub fn behind(&self, limit: f64) -> Vec<(&BenchRow, f64)> {
        let mut behind: Vec<(&BenchRow, f64)> =
            self.rows.iter().filter_map(|row| Some((row, row.ratio()?))).filter(|(_, ratio)| *ratio > limit).collect();
        behind.sort_by(|a, b| b.1.total_cmp(&a.1));
        behind
    }
}

/// Rows beyond this many times the best peer's time are named.
pub const MOST_RATIO: f64 = 1.5;

#[cfg(test)]
mod tests {
    use super::*;

    fn row(problem: &str, unchained_us: f64, peers: &[(&str, f64)]) -> BenchRow {
        BenchRow {
            problem: problem.parse().unwrap(),
            tile: String::new(),
            chained_us: unchained_us,
            unchained_us,
            half_width_us: 0.0,
            floor_us: 1.0,
            ceiling_chained_us: 1.0,
            ceiling_unchained_us: 1.0,
            relative_l2: 0.0,
            is_warm: false,
            sm_clock_mhz: 0,
            peers: peers.iter().map(|&(peer, us)| PeerTime::apart(peer, us)).collect(),
            routing: None,
            read_bytes: None,
            commit: String::new(),
            cublas_bf16: None,
        }
    }

    #[test]
    fn the_best_peer_has_our_activations_and_of_fp8_weights_the_only_ones_there_are() {
        let mxfp4 = row("mxfp4 64x64 m1", 30.0, &[("triton_kernels-mxfp4", 40.0), ("humming-mxfp4-a8", 20.0)]);
        assert_eq!((mxfp4.ratio(), &*mxfp4.best_eight_bit_peer().unwrap().peer), (Some(0.75), "humming-mxfp4-a8"));
        assert_eq!(row("mxfp4 64x64 m1", 30.0, &[("humming-mxfp4-a8", 20.0)]).ratio(), None);
        assert_eq!(row("fp8 64x64 m1", 30.0, &[("cublas-fp8", 20.0), ("cublas-fp8row", 25.0)]).ratio(), Some(1.5));
    }

    #[test]
    fn every_format_has_its_slowest_row() {
        let slow = |problem, ratio| row(problem, ratio, &[("any", 1.0)]);
        let rows = vec![slow("nvfp4 64x64 m1", 0.5), slow("fp8 64x64 m1", 2.0), slow("nvfp4 64x64 m2", 0.75)];
        let report = BenchReport { meta: BenchMeta::default(), rows, chains: Vec::new() };
        let named = |report: &BenchReport| {
            let named = report.slowest_by_format().into_iter().map(|(row, ratio)| (row.problem.to_string(), ratio));
            named.collect::<Vec<_>>()
        };
        assert_eq!(named(&report), [("nvfp4 64x64 m2".to_string(), 0.75), ("fp8 64x64 m1".to_string(), 2.0)]);
    }
}
