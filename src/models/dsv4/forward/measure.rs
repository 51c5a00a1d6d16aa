//! How long steps take, and which op takes how much of it.
//!
//! A whole step is timed as the graph that serves. An op's time is that of a graph with only this op, of all layers one
//! behind the other: so each layer's weights come from device memory, as they do in a step, and a launch costs what it
//! costs in a chain. What a step takes beyond the sum of its ops is gaps (below zero where ops overlap, as those on the
//! branches of a decode step do).

use std::collections::BTreeMap;

use super::rows::{Fed, Rows};
use super::{Forward, ForwardError};
use crate::device::{Buffer, DevicePointer, Event, Graph};
use crate::engine::{Observer, OpId};
use crate::problem::{Problem, bucket_of};

/// Times of one kind of step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepTimes {
    /// The whole step, microseconds: the median.
    pub step_us: f64,
    /// Fastest and slowest of the repeats.
    pub spread_us: [f64; 2],
    /// Every op, in the order of a step.
    pub ops: Vec<OpTime>,
}

/// One op in all layers.
#[derive(Clone, Debug, PartialEq)]
pub struct OpTime {
    /// Its name.
    pub name: &'static str,
    /// Launches in a step.
    pub count: usize,
    /// All of them together, microseconds.
    pub us: f64,
    /// What they take at the rates that the GPU reaches; 0 where the op has no such floor.
    pub floor_us: f64,
}

impl StepTimes {
    /// What the step takes beyond its ops, microseconds.
    pub fn gaps_us(&self) -> f64 {
        self.step_us - self.ops.iter().map(|op| op.us).sum::<f64>()
    }
}

impl Forward {
    /// Pretends that the first `batch` slots have been fed `context` tokens: their caches hold random numbers.
    ///
    /// # Errors
    /// [`ForwardError`] for more than there is room for.
    pub fn assume(&mut self, batch: u32, context: u32) -> Result<(), ForwardError> {
        self.sequences.decoding.clear();
        for slot in 0..batch {
            self.check(slot, &[0])?;
            // Timed steps move on by a token each before they are set back.
            let (limit, tokens) = (self.model.options.context, context + DECODE_REPLAYS);
            if tokens > limit {
                return Err(ForwardError::Context { slot, limit, tokens });
            }
            self.reserve(slot, context + DECODE_REPLAYS)?;
            self.sequences.lengths[slot as usize] = context;
            self.sequences.sampled[slot as usize] = Some((1 + slot) % self.model.config.vocabulary);
        }
        for layer in &self.model.caches.layers {
            for buffer in [&layer.kv_ring, &layer.pool, &layer.index_pool] {
                fill(buffer)?;
            }
        }
        Ok(())
    }

    /// Times decode steps of the first `batch` slots, which have been fed or [assumed](Forward::assume).
    ///
    /// # Errors
    /// [`ForwardError`].
    pub fn time_decode(&mut self, batch: u32, repeats: u32) -> Result<StepTimes, ForwardError> {
        let slots: Vec<u32> = (0..batch).collect();
        let m = bucket_of(batch).unwrap_or(batch);
        self.prepare_decode(&slots)?;
        let graph = self.capture_decode(m, &mut crate::engine::Unobserved)?;
        let [step_us, low, high] = self.time(&graph, repeats, Some(&slots))?;
        let names = self.names_of(|forward, observer| forward.capture_decode(m, observer).map(drop))?;
        let mut ops = Vec::new();
        for (name, seen) in names {
            let graph = self.capture_decode(m, &mut Only { name })?;
            let [us, ..] = self.time(&graph, repeats, Some(&slots))?;
            ops.push(self.op_time(name, &seen, us));
        }
        Ok(StepTimes { step_us, spread_us: [low, high], ops })
    }

    /// Times a step that feeds `tokens` tokens behind `start` others, without the head: a prompt needs it once.
    ///
    /// # Errors
    /// [`ForwardError`].
    pub fn time_prefill(&mut self, tokens: u32, start: u32, repeats: u32) -> Result<StepTimes, ForwardError> {
        let (limit, chunk) = (self.model.options.context, self.model.options.chunk);
        if start + tokens > limit {
            return Err(ForwardError::Context { slot: 0, limit, tokens: start + tokens });
        }
        if !(1..=chunk).contains(&tokens) {
            return Err(ForwardError::Limits { expected: "no more tokens than a step has", found: tokens });
        }
        self.stream.synchronize()?;
        let vocabulary = self.model.config.vocabulary;
        let ids: Vec<u32> = (0..tokens).map(|idx| idx.wrapping_mul(2_654_435_761) % vocabulary).collect();
        self.reserve(0, start + tokens)?;
        self.sequences.decoding.clear();
        let rows = Rows::of(&[Fed { slot: 0, start, tokens: &ids }], self.model.options.sequences);
        rows.upload(&self.model.buffers)?;
        let m = rows.bucket(&self.model.options);
        let graph = self.capture_step(m, &mut crate::engine::Unobserved)?;
        let [step_us, low, high] = self.time(&graph, repeats, None)?;
        let names = self.names_of(|forward, observer| forward.capture_step(m, observer).map(drop))?;
        let mut ops = Vec::new();
        for (name, seen) in names {
            let graph = self.capture_step(m, &mut Only { name })?;
            // Long launches vary little.
            let [us, ..] = self.time(&graph, 1, None)?;
            ops.push(self.op_time(name, &seen, us));
        }
        Ok(StepTimes { step_us, spread_us: [low, high], ops })
    }

    fn op_time(&self, name: &'static str, seen: &Launched, us: f64) -> OpTime {
        let gpu = self.gpu.spec();
        let floor_us = seen.problem.as_ref().map_or(0.0, |problem| problem.floor_us(gpu) * seen.count as f64);
        OpTime { name, count: seen.count, us, floor_us }
    }

    /// Names of a step's ops in their order, with what each launches.
    fn names_of(
        &self,
        capture: impl FnOnce(&Self, &mut dyn Observer) -> Result<(), ForwardError>,
    ) -> Result<Vec<(&'static str, Launched)>, ForwardError> {
        let mut names = Names::default();
        capture(self, &mut names)?;
        let mut launched = names.launched;
        Ok(names.order.into_iter().filter_map(|name| Some((name, launched.remove(name)?))).collect())
    }

    /// Median, fastest and slowest of `repeats` replays, microseconds.
    fn time(&mut self, graph: &Graph, repeats: u32, decoding: Option<&[u32]>) -> Result<[f64; 3], ForwardError> {
        let events = [Event::new(&self.gpu)?, Event::new(&self.gpu)?];
        let replays = if decoding.is_some() { DECODE_REPLAYS } else { 1 };
        let mut times = Vec::new();
        // The first replay warms caches and clocks.
        for repeat in 0..=repeats {
            // Replays move positions on: they are set back, so that lengths do not grow.
            if let Some(slots) = decoding {
                self.sequences.decoding.clear();
                self.prepare_decode(slots)?;
            }
            events[0].record(&self.stream)?;
            for _ in 0..replays {
                graph.launch(&self.stream)?;
            }
            events[1].record(&self.stream)?;
            let us = events[1].microseconds_since(&events[0])? / f64::from(replays);
            if repeat > 0 {
                times.push(us);
            }
        }
        // The arrays on the device are those of a later step than the host knows of.
        self.sequences.decoding.clear();
        times.sort_by(f64::total_cmp);
        Ok([times[times.len() / 2], times[0], times[times.len() - 1]])
    }
}

/// What the launches of one name are.
#[derive(Clone, Debug, Default)]
struct Launched {
    count: usize,
    problem: Option<Problem>,
}

/// Notes every op.
#[derive(Default)]
struct Names {
    order: Vec<&'static str>,
    launched: BTreeMap<&'static str, Launched>,
}

impl Observer for Names {
    // Asked before every launch, and only then: what is told after it may be of several launches.
    fn wants(&mut self, op: OpId) -> bool {
        if !self.order.contains(&op.name) {
            self.order.push(op.name);
        }
        self.launched.entry(op.name).or_default().count += 1;
        true
    }

    fn launches(&mut self, op: OpId, problem: &Problem, _: &[DevicePointer]) {
        self.launched.entry(op.name).or_default().problem = Some(problem.clone());
    }
}

/// Wants the ops of one name.
struct Only {
    name: &'static str,
}

impl Observer for Only {
    fn wants(&mut self, op: OpId) -> bool {
        op.name == self.name
    }
}

/// Decode steps one behind the other in a group, so that the cost of starting a graph is part of the time only once.
const DECODE_REPLAYS: u32 = 4;

/// Small BF16 numbers of both signs.
fn fill(buffer: &Buffer) -> Result<(), ForwardError> {
    let count = buffer.bytes() / 2;
    let pattern: Vec<u16> = (0..(count.min(1 << 20)) as u32)
        .map(|idx| 0x3E00 | (idx.wrapping_mul(2_654_435_761) >> 16 & 0x81FF) as u16)
        .collect();
    for first in (0..count).step_by(pattern.len().max(1)) {
        buffer.upload_at(2 * first, &pattern[..pattern.len().min(count - first)])?;
    }
    Ok(())
}
