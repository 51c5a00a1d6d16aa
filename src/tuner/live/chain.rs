//! Several dense GEMMs one after the other, layer after layer: what a step's launches cost together.
//!
//! Each launch reads what an earlier one of the chain wrote, the first of a layer what the last of the layer before it
//! wrote, and weights rotate from layer to layer. So only weights may be fetched before a launch waits.

use std::sync::Arc;

use super::dense::DenseSubject;
use super::tools::Toolbox;
use super::{Candidate, LiveError, Mode, bind, launch_with};
use crate::device::{Buffer, Event, Gpu, Graph};
use crate::jit::Jit;
use crate::kernels::FillKind;
use crate::problem::{Dense, Output, Problem, Tile};
use crate::tuner::race::median;

/// One launch of a layer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChainLink {
    /// What is launched: a dense GEMM with a BF16 result.
    pub problem: Problem,
    /// With which tile.
    pub tile: Tile,
    /// Place of the launch whose result it reads; not before it: that of the layer before.
    pub reads: usize,
}

/// The data of a chain.
pub(in crate::tuner) struct Chain {
    links: Vec<Bead>,
    /// What the first launch of a replay reads.
    start: Buffer,
    tools: Toolbox,
}

/// A link with its weights and its result.
struct Bead {
    candidate: Candidate,
    subject: DenseSubject,
    dense: Dense,
    reads: usize,
    /// `[m, stride]` BF16.
    result: Buffer,
    stride: u32,
}

impl Chain {
    /// Microseconds of a layer, chained and unchained, after the bits of both were compared.
    pub fn measure(gpu: Arc<Gpu>, jit: &Arc<Jit>, links: &[ChainLink], seed: u64) -> Result<(f64, f64), LiveError> {
        let mut chain = Self::open(gpu, jit, links, seed)?;
        let overlapped = chain.checksum(Mode::Chained)?;
        if overlapped != chain.checksum(Mode::Unchained)? {
            return Err(LiveError::Data("a chain gives other bits when its launches overlap".to_string()));
        }
        let graphs = [chain.graph(Mode::Chained)?, chain.graph(Mode::Unchained)?];
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..=ROUNDS {
            for (graph, times) in graphs.iter().zip(&mut times) {
                let us = chain.replay(graph)?;
                // The first replay uploads the graph.
                times.extend((round > 0).then_some(us));
            }
        }
        Ok((median(&times[0]), median(&times[1])))
    }

    fn open(gpu: Arc<Gpu>, jit: &Arc<Jit>, links: &[ChainLink], seed: u64) -> Result<Self, LiveError> {
        gpu.make_current()?;
        let mut tools = Toolbox::new(gpu.clone(), jit.clone())?;
        let mut beads: Vec<Bead> = Vec::new();
        for (link_idx, link) in links.iter().enumerate() {
            let refuse =
                |found: &str| LiveError::Data(format!("expected a dense GEMM with a BF16 result, found {found}"));
            let Problem::Dense(dense) = &link.problem else { return Err(refuse(&link.problem.to_string())) };
            if dense.output != Output::Bf16 {
                return Err(refuse(&link.problem.to_string()));
            }
            let subject = DenseSubject::new(&mut tools, dense, seed ^ (link_idx as u64) << 48)?;
            let bound = bind(&gpu, jit, &link.problem, &link.tile)?;
            let workspace = Buffer::zeros(&gpu, bound.workspace_bytes() as usize)?;
            let stride = dense.d_columns().next_multiple_of(8);
            let result = Buffer::zeros(&gpu, 2 * dense.m as usize * stride as usize)?;
            let tile = link.tile.clone();
            let candidate = Candidate { graphs: Default::default(), tile, bound, workspace, estimate_us: 0.0 };
            beads.push(Bead { candidate, subject, dense: dense.clone(), reads: link.reads, result, stride });
        }
        let wide_enough = |bead: &Bead| beads.get(bead.reads).is_some_and(|from| from.stride >= bead.dense.a_columns());
        let first = beads.first().filter(|_| beads.iter().all(wide_enough));
        let Some(first) = first else { return Err(LiveError::Data("a launch reads more than is written".to_string())) };
        let start = Buffer::new(&gpu, beads[first.reads].result.bytes())?;
        tools.fill(&start, start.bytes() / 2, FillKind::Bf16, [0, 0], seed ^ 0xA)?;
        tools.stream.synchronize()?;
        Ok(Self { links: beads, start, tools })
    }

    /// Puts the launches of all layers on the stream.
    fn launch(&self, mode: Mode) -> Result<(), LiveError> {
        let stream = self.tools.stream.raw().cast();
        for layer in 0..LAYERS {
            for bead in &self.links {
                let from = &self.links[bead.reads];
                let mut args = bead.subject.args(bead.dense.m, layer, Mode::Unchained);
                (args.activations, args.activation_stride) = (from.result.pointer(), from.stride);
                (args.output, args.output_stride) = (bead.result.pointer(), bead.stride);
                launch_with(&bead.candidate, args, stream, mode)?;
            }
        }
        Ok(())
    }

    fn reset(&self) -> Result<(), LiveError> {
        let first = &self.links[self.links[0].reads];
        Ok(first.result.copy_from(&self.start, self.start.bytes(), &self.tools.stream)?)
    }

    /// Checksum of what the last layer has written.
    fn checksum(&mut self, mode: Mode) -> Result<u64, LiveError> {
        self.reset()?;
        self.launch(mode)?;
        self.tools.stream.synchronize()?;
        let last = &self.links[self.links[0].reads];
        let columns = last.dense.d_columns();
        let zeros = Buffer::zeros(&self.tools.gpu, 4 * last.dense.m as usize * columns as usize)?;
        let both = [(last.result.pointer(), last.stride as usize), (zeros.pointer(), columns as usize)];
        let compared = self.tools.compare(Output::Bf16, both, last.dense.m, columns)?;
        match compared.not_finite {
            0 => Ok(compared.checksum),
            count => Err(LiveError::Data(format!("expected finite results of a chain, found {count} that are not"))),
        }
    }

    fn graph(&self, mode: Mode) -> Result<Graph, LiveError> {
        self.tools.stream.capture(|| self.launch(mode))
    }

    /// Microseconds of a layer.
    fn replay(&self, graph: &Graph) -> Result<f64, LiveError> {
        let stream = &self.tools.stream;
        let (start, end) = (Event::new(&self.tools.gpu)?, Event::new(&self.tools.gpu)?);
        self.reset()?;
        start.record(stream)?;
        graph.launch(stream)?;
        end.record(stream)?;
        Ok(end.microseconds_since(&start)? / f64::from(LAYERS))
    }
}

/// As many as DeepSeek-V4-Flash has, about: a graph of a millisecond or two.
const LAYERS: u32 = 40;

/// Replays of each mode.
const ROUNDS: usize = 7;
