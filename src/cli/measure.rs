//! Rows of a bench: a tile checked, then timed in both modes and under every routing, beside ceilings and peers.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::CliError;
use super::voice::talk;
use crate::arch::GpuSpec;
use crate::problem::{Problem, Routing, Tile};
use crate::report::{BenchRow, Peers};
use crate::tuner::{Bench, Miss, Mode, Spent, WorkerBench, WorkerError, median_and_half_width};

/// Measures rows with one worker.
pub struct Measure<'a> {
    /// Who measures.
    pub bench: &'a mut WorkerBench,
    /// Facts for floors.
    pub gpu: &'a GpuSpec,
    /// Seed of the data.
    pub seed: u64,
    /// Other engines' times.
    pub peers: Option<&'a Peers>,
    /// Pure reads by bytes: chained, unchained.
    pub ceilings: HashMap<u64, (f64, f64)>,
}

/// Bytes of weights that a launch reads, for each problem of an op and each routing by its place.
pub type Reads = HashMap<(Problem, usize), u64>;

impl Measure<'_> {
    /// Measures the ceilings of `reads` and makes the data of `problem`, which has the most tokens.
    pub fn open(&mut self, problem: &Problem, reads: &Reads) -> Result<(), CliError> {
        let started = Instant::now();
        for &bytes in reads.values() {
            self.ceiling(bytes)?;
        }
        let ceilings = started.elapsed();
        self.bench.open(problem).map_err(|reason| CliError::failed(reason, None))?;
        let data = started.elapsed() - ceilings;
        talk(&format!("{}: ceilings {:.2} s, data {:.2} s", problem.op(), seconds(ceilings), seconds(data)));
        Ok(())
    }

    /// A pure read of `bytes`, chained and not, measured once. The data of an op that was open is gone if it was not.
    pub fn ceiling(&mut self, bytes: u64) -> Result<(f64, f64), CliError> {
        if let Some(&known) = self.ceilings.get(&bytes) {
            return Ok(known);
        }
        let failed = |error: WorkerError| CliError::failed(error.to_string(), None);
        let ceiling = self.bench.ceiling(bytes).map_err(failed)?;
        self.ceilings.insert(bytes, ceiling);
        Ok(ceiling)
    }

    /// One row for each routing. Of a tile that fails there is none, and what became of it is said.
    pub fn rows(&mut self, problem: &Problem, tile: &Tile, reads: &Reads) -> Result<Vec<BenchRow>, CliError> {
        let (started, before) = (Instant::now(), self.bench.spent());
        match self.try_rows(problem, tile, reads) {
            Ok(rows) => {
                rows.iter().for_each(|row| talk(&line(row)));
                talk(&format!("  {:.2} s ({})", seconds(started.elapsed()), parts(before, self.bench.spent())));
                Ok(rows)
            }
            Err(Miss::Fatal(reason)) => Err(CliError::failed(reason, None)),
            Err(Miss::Candidate(outcome)) => {
                talk(&format!("error: `{problem}` {tile}: {outcome}"));
                Ok(Vec::new())
            }
        }
    }

    fn try_rows(&mut self, problem: &Problem, tile: &Tile, reads: &Reads) -> Result<Vec<BenchRow>, Miss> {
        let relative_l2 = self.bench.prepare(problem, tile)?;
        let routings = self.bench.routings().to_vec();
        let routings: Vec<Option<Routing>> =
            if routings.is_empty() { vec![None] } else { routings.into_iter().map(Some).collect() };
        let mut rows = Vec::new();
        for (routing_idx, routing) in routings.into_iter().enumerate() {
            let mut row = self.row(problem, tile, routing_idx)?;
            (row.routing, row.relative_l2) = (routing, relative_l2);
            let bytes = reads.get(&(problem.clone(), routing_idx)).copied().unwrap_or_else(|| row.weight_bytes());
            row.read_bytes = (bytes != row.weight_bytes()).then_some(bytes);
            row.floor_us = floor_us(problem, bytes, self.gpu);
            if let Some(&(chained_us, unchained_us)) = self.ceilings.get(&bytes) {
                (row.ceiling_chained_us, row.ceiling_unchained_us) = (chained_us, unchained_us);
            }
            self.peers.iter().for_each(|peers| peers.give(&mut row));
            rows.push(row);
        }
        self.bench.release(problem, tile);
        Ok(rows)
    }

    /// Times under one routing, chained and unchained in turn.
    fn row(&mut self, problem: &Problem, tile: &Tile, routing_idx: usize) -> Result<BenchRow, Miss> {
        let (mut chained, mut unchained, mut clocks) = (Vec::new(), Vec::new(), Vec::new());
        if problem.floor_us(self.gpu) >= LONG_US {
            std::thread::sleep(REST);
        }
        for _ in 0..ROUNDS {
            let sample = self.bench.sample(problem, tile, Mode::Chained, routing_idx)?;
            chained.push(sample.us);
            clocks.push(f64::from(sample.sm_clock_mhz));
            unchained.push(self.bench.sample(problem, tile, Mode::Unchained, routing_idx)?.us);
        }
        let (chained_us, half_width_us) = median_and_half_width(&chained);
        Ok(BenchRow {
            problem: problem.clone(),
            routing: None,
            read_bytes: None,
            commit: crate::COMMIT.to_string(),
            tile: tile.to_string(),
            chained_us,
            unchained_us: median_and_half_width(&unchained).0,
            half_width_us,
            floor_us: problem.floor_us(self.gpu),
            ceiling_chained_us: 0.0,
            ceiling_unchained_us: 0.0,
            relative_l2: 0.0,
            is_warm: self.bench.is_warm(),
            sm_clock_mhz: median_and_half_width(&clocks).0 as u32,
            peers: Vec::new(),
            cublas_bf16: None,
        })
    }

    /// What the launches of an op read under each routing: the problem's own bytes, or those of the experts that the
    /// routing tables of this run touch.
    pub fn reads(&self, problems: &[Problem], routings: &[Routing]) -> Reads {
        let mut reads = Reads::new();
        let tokens: Vec<u32> = problems.iter().map(Problem::m).collect();
        for problem in problems {
            match problem {
                Problem::MoeBlock(block) => {
                    for (routing_idx, &routing) in routings.iter().enumerate() {
                        let touched = crate::tuner::touched_experts(block, (routing_idx, routing), self.seed, &tokens);
                        for (problem, touched) in problems.iter().zip(touched) {
                            let bytes = (touched * block.expert_bytes() as f64).round() as u64;
                            reads.insert((problem.clone(), routing_idx), bytes);
                        }
                    }
                    return reads;
                }
                Problem::Dense(dense) => reads.insert((problem.clone(), 0), dense.weight_bytes()),
                Problem::Convert(_) | Problem::StreamMix(_) => reads.insert((problem.clone(), 0), problem.bytes()),
            };
        }
        reads
    }
}

/// As [`Problem::floor_us`], with weights of `bytes`.
fn floor_us(problem: &Problem, bytes: u64, gpu: &GpuSpec) -> f64 {
    let Problem::MoeBlock(block) = problem else { return problem.floor_us(gpu) };
    let moved = (bytes + block.activation_bytes()) as f64;
    let own = (block.touched_weight_bytes() + block.activation_bytes()) as f64;
    // Where bytes decide, they decide in proportion; where FLOPs do, skewed routing has as many of them.
    let memory_us = moved / (gpu.read_gbs * 1e3);
    let math_us = problem.floor_us(gpu);
    if own / (gpu.read_gbs * 1e3) >= math_us { memory_us } else { memory_us.max(math_us) }
}

/// A row for whoever watches.
fn line(row: &BenchRow) -> String {
    let routing = row.routing.map_or(String::new(), |routing| format!(", {routing}"));
    let peer = row.best_peer().map_or(String::new(), |peer| {
        format!(", {:.2}x {} ({:.2}x unchained)", peer.us / row.chained_us, peer.peer, peer.us / row.unchained_us)
    });
    format!(
        "{}{routing}: {:.2} us, {:.2} unchained, {:.0} % of the ceiling, {:.0} % of the floor{peer}",
        row.problem,
        row.chained_us,
        row.unchained_us,
        100.0 * row.of_ceiling(),
        100.0 * row.of_floor()
    )
}

/// Where the time between two readings went.
fn parts(before: Spent, after: Spent) -> String {
    let part = |of: fn(&Spent) -> Duration| seconds(of(&after).saturating_sub(of(&before)));
    format!(
        "loading {:.2}, checking {:.2}, timing {:.2}",
        part(|spent| spent.loading),
        part(|spent| spent.checking),
        part(|spent| spent.timing)
    )
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

/// Rounds of each mode.
pub const ROUNDS: usize = 7;

/// Launches that are long enough for the power limit to lower the clock, by their floor.
pub const LONG_US: f64 = 500.0;

/// How long the GPU is idle before such launches are timed: checking them and timing the row before have warmed it.
pub const REST: Duration = Duration::from_secs(1);
