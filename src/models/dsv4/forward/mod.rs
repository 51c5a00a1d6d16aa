//! DeepSeek-V4 on a GPU: loaded once, then steps of tokens through the layers.
//!
//! Everything is planned before the first token: problems for every bucket of tokens, kernels compiled and loaded,
//! buffers and caches allocated. A step uploads a few int32 arrays and launches; a decode step is one graph. Nothing is
//! allocated, compiled or waited for in it but the sampled token.

mod a4;
mod branch;
mod buffers;
mod device_weights;
mod error;
mod ledger;
mod load;
mod measure;
mod ops;
mod options;
mod pass;
mod rows;
mod synthetic;
mod watch;

pub use a4::SharedScale;
pub use error::ForwardError;
pub use ledger::{Ledger, LedgerEntry, Progress};
pub use load::LoadReport;
pub use measure::{OpTime, StepTimes};
pub use options::ForwardOptions;
pub use watch::DeviceWatch;

use std::collections::HashMap;
use std::sync::Arc;

use a4::{ScaleTable, Slots};
use branch::Workspaces;
use buffers::{Caches, Part, StepBuffers};
use device_weights::DeviceWeights;
use ops::{Bucket, Kernel};
pub use pass::Imposed;
use pass::Pass;
use rows::{Fed, Rows, each_once};

use super::{Config, Formats, LayerKind};
use crate::device::{Gpu, Graph, Stream, Value};
use crate::dispatch::Prepared;
use crate::engine::{Element, LanguageModel, Limits, Observer, OpId, PageTable, Sampling, Unobserved};
use crate::kernels::runner;
use crate::problem::bucket_of;
use crate::quant::{Counters, bf16};

/// What a step needs, and nothing that a step changes on the host.
struct Model {
    config: Config,
    options: ForwardOptions,
    formats: Formats,
    weights: DeviceWeights,
    buffers: StepBuffers,
    caches: Caches,
    workspaces: Workspaces,
    scales: Option<ScaleTable>,
    slots: Option<Slots>,
    prepared: Prepared,
    gpu: Arc<Gpu>,
}

/// A loaded model with the sequences that it is working on.
pub struct Forward {
    graphs: HashMap<u32, Graph>,
    buckets: HashMap<u32, Bucket>,
    stream: Stream,
    model: Model,
    sequences: Sequences,
    ledger: Ledger,
    report: LoadReport,
    // Last: what is above is destroyed in a context that must still be there.
    gpu: Arc<Gpu>,
}

/// What the host knows of the sequences.
struct Sequences {
    /// Tokens that each slot has been fed.
    lengths: Vec<u32>,
    /// The token that was sampled last for each slot, if it is the one to go on from.
    sampled: Vec<Option<u32>>,
    csa_pages: PageTable,
    hca_pages: PageTable,
    /// Slots whose decode arrays are on the device, in their order.
    decoding: Vec<u32>,
    sampling: Option<Sampling>,
}

impl Model {
    /// Pages of a sequence in the table of layers of `kind`.
    fn max_pages(&self, kind: LayerKind) -> u32 {
        buffers::pages(self.options.context, kind)
    }

    fn scales(&self) -> &ScaleTable {
        self.scales.as_ref().expect("activations are only rounded where a scale table was made")
    }

    fn slots(&self) -> &Slots {
        self.slots.as_ref().expect("experts only run by slot where their buffers were made")
    }
}

impl Forward {
    /// The model's constants.
    pub fn config(&self) -> &Config {
        &self.model.config
    }

    /// Formats of its ops.
    pub fn formats(&self) -> Formats {
        self.model.formats
    }

    /// How it runs.
    pub fn options(&self) -> &ForwardOptions {
        &self.model.options
    }

    /// The GPU that it runs on.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Where every tensor went.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What loading took.
    pub fn report(&self) -> &LoadReport {
        &self.report
    }

    /// Tokens that `slot` has been fed.
    pub fn length(&self, slot: u32) -> u32 {
        self.sequences.lengths.get(slot as usize).copied().unwrap_or(0)
    }

    /// Counters of the rounded activations since the last time, by op. The first value that is not finite stands at the
    /// lowest place of any launch; its row is that of a token in its step, of a slot (`top_k` a token) for the experts'
    /// gate and up, and of a slot in its chunk for their down.
    ///
    /// # Errors
    /// [`ForwardError`] if the GPU is lost.
    pub fn read_counters(&self) -> Result<Vec<(OpId, Counters)>, ForwardError> {
        self.model.scales.as_ref().map_or(Ok(Vec::new()), |scales| scales.read_counters(&self.model.config))
    }

    /// From now on the scales of warming up are used: the largest activation that each op has met.
    ///
    /// # Errors
    /// [`ForwardError::NotWarm`] if nothing was fed; [`ForwardError`] if the GPU is lost.
    pub fn end_warmup(&mut self) -> Result<(), ForwardError> {
        self.model.scales.as_mut().map_or(Ok(()), ScaleTable::end_warmup)
    }

    /// As [`LanguageModel::logits`], told to `observer`.
    ///
    /// # Errors
    /// As [`LanguageModel::logits`], and what the observer ends the step with.
    pub fn observed_logits(
        &mut self,
        slot: u32,
        tokens: &[u32],
        observer: &mut dyn Observer,
    ) -> Result<Vec<f32>, ForwardError> {
        self.check(slot, tokens)?;
        self.sequences.sampled[slot as usize] = None;
        let vocabulary = self.model.config.vocabulary as usize;
        let mut logits = Vec::with_capacity(tokens.len() * vocabulary);
        for part in tokens.chunks(self.model.options.chunk as usize) {
            let start = self.length(slot);
            let rows = Rows::of(&[Fed { slot, start, tokens: part }], self.model.options.sequences);
            self.step(&rows, observer)?;
            self.sequences.lengths[slot as usize] += part.len() as u32;
            let all: Vec<i32> = (0..part.len() as i32).collect();
            for head_rows in all.chunks(self.model.options.head_rows() as usize) {
                self.head(head_rows, observer)?;
                logits.extend(self.model.buffers.logits.download::<f32>(head_rows.len() * vocabulary)?);
            }
        }
        Ok(logits)
    }

    /// As [`LanguageModel::decode`], told to `observer`, which has to want every op: launches stand in a row then, and
    /// no graph is made of them.
    ///
    /// # Errors
    /// As [`LanguageModel::decode`], and what the observer ends the step with.
    pub fn observed_decode(
        &mut self,
        slots: &[u32],
        sampling: &Sampling,
        observer: &mut dyn Observer,
    ) -> Result<Vec<u32>, ForwardError> {
        let answer = self.decode_by(slots, sampling, |forward, (count, _)| forward.launch_decode(count, observer));
        if answer.is_ok() {
            self.sequences.decoding.clear();
        }
        answer
    }

    /// Runs layer `layer` alone on the first tokens of an empty sequence: `streams` `[tokens, 4 * hidden]` in, what the
    /// layer gives out. Experts and picks are imposed, so that a choice by a hair's breadth makes no difference; the
    /// observer sees the layer's own.
    ///
    /// # Errors
    /// As [`LanguageModel::logits`].
    pub fn run_layer(
        &mut self,
        (layer, tokens): (usize, &[u32]),
        streams: &[f32],
        imposed: &Imposed,
        observer: &mut dyn Observer,
    ) -> Result<Vec<f32>, ForwardError> {
        self.check(0, tokens)?;
        if tokens.len() > self.model.options.chunk as usize {
            let expected = "no more tokens than a step has";
            return Err(ForwardError::Limits { expected, found: tokens.len() as u32 });
        }
        self.sequences.decoding.clear();
        // What the step before still reads must not be overwritten.
        self.stream.synchronize()?;
        let rows = Rows::of(&[Fed { slot: 0, start: 0, tokens }], self.model.options.sequences);
        self.reserve(0, rows.len())?;
        rows.upload(&self.model.buffers)?;
        let is_bf16 = self.model.options.streams == runner::Element::Bf16;
        match is_bf16 {
            true => {
                let bits: Vec<u16> = streams.iter().map(|value| bf16::encode(*value)).collect();
                self.model.buffers.streams.upload(&bits)?;
            }
            false => self.model.buffers.streams.upload(streams)?,
        }
        let bucket = self.bucket(rows.bucket(&self.model.options));
        let mut pass = Pass::new(&self.model, (bucket, rows.len()), self.stream.raw(), observer);
        pass.imposed = Some(imposed);
        pass.run_layer(layer)?;
        let count = streams.len();
        Ok(match is_bf16 {
            true => self.model.buffers.streams.download::<u16>(count)?.into_iter().map(bf16::decode).collect(),
            false => self.model.buffers.streams.download(count)?,
        })
    }

    /// One step: arrays up, launches out.
    fn step(&mut self, rows: &Rows, observer: &mut dyn Observer) -> Result<(), ForwardError> {
        self.sequences.decoding.clear();
        // What the step before still reads must not be overwritten.
        self.stream.synchronize()?;
        for (slot, end) in rows.ends() {
            self.reserve(slot, end)?;
        }
        rows.upload(&self.model.buffers)?;
        let bucket = self.bucket(rows.bucket(&self.model.options));
        Pass::new(&self.model, (bucket, rows.len()), self.stream.raw(), observer).run()
    }

    /// Logits of these rows of the step, into the logits buffer.
    fn head(&mut self, rows: &[i32], observer: &mut dyn Observer) -> Result<(), ForwardError> {
        self.stream.synchronize()?;
        Rows::choose_head_rows(&self.model.buffers, rows)?;
        let count = rows.len() as u32;
        let bucket = self.bucket(bucket_of(count).unwrap_or(count));
        Pass::new(&self.model, (bucket, count), self.stream.raw(), observer).head_of_chosen()
    }

    fn bucket(&self, m: u32) -> &Bucket {
        self.buckets.get(&m).expect("every bucket up to the chunk was planned")
    }

    /// Pages for `tokens` tokens of `slot`, and the tables on the device.
    fn reserve(&mut self, slot: u32, tokens: u32) -> Result<(), ForwardError> {
        let caches = &self.model.caches;
        if self.sequences.csa_pages.reserve(slot as usize, tokens as usize)? {
            caches.csa_table.upload(self.sequences.csa_pages.entries())?;
        }
        if self.sequences.hca_pages.reserve(slot as usize, tokens as usize)? {
            caches.hca_table.upload(self.sequences.hca_pages.entries())?;
        }
        Ok(())
    }

    fn check(&self, slot: u32, tokens: &[u32]) -> Result<(), ForwardError> {
        let (options, vocabulary) = (&self.model.options, self.model.config.vocabulary);
        if slot >= options.sequences {
            return Err(ForwardError::Slot { limit: options.sequences, slot });
        }
        if tokens.is_empty() {
            return Err(ForwardError::NoTokens { slot });
        }
        if let Some(&token) = tokens.iter().find(|token| **token >= vocabulary) {
            return Err(ForwardError::Token { vocabulary, token });
        }
        let tokens = self.length(slot) + tokens.len() as u32;
        if tokens > options.context {
            return Err(ForwardError::Context { slot, limit: options.context, tokens });
        }
        Ok(())
    }

    fn set_sampling(&mut self, sampling: &Sampling) -> Result<(), ForwardError> {
        if self.sequences.sampling != Some(*sampling) {
            let seed = sampling.seed;
            let words = [sampling.temperature.to_bits(), sampling.top_p.to_bits(), seed as u32, (seed >> 32) as u32];
            self.model.buffers.sampling.upload(&words)?;
            self.sequences.sampling = Some(*sampling);
        }
        Ok(())
    }

    /// Prompts that end in this step get their next token.
    fn sample_ended(&mut self, ended: &[(u32, i32)]) -> Result<Vec<u32>, ForwardError> {
        let mut tokens = Vec::with_capacity(ended.len());
        for part in ended.chunks(self.model.options.head_rows() as usize) {
            let rows: Vec<i32> = part.iter().map(|(_, row)| *row).collect();
            self.head(&rows, &mut Unobserved)?;
            let bucket = self.bucket(bucket_of(rows.len() as u32).unwrap_or(1));
            let step = (bucket, rows.len() as u32);
            Pass::new(&self.model, step, self.stream.raw(), &mut Unobserved).sample_chosen()?;
            let sampled: Vec<i32> = self.model.buffers.sampled.download(rows.len())?;
            let taken = part.iter().zip(sampled).map(|((slot, _), token)| self.take_sampled(*slot, token));
            // All are taken before the first mistake is told: the others go on from what is theirs.
            let taken: Vec<_> = taken.collect();
            tokens.extend(taken.into_iter().collect::<Result<Vec<_>, _>>()?);
        }
        Ok(tokens)
    }

    fn take_sampled(&mut self, slot: u32, token: i32) -> Result<u32, ForwardError> {
        let position = self.length(slot).saturating_sub(1);
        let token = u32::try_from(token).ok();
        self.sequences.sampled[slot as usize] = token;
        if token.is_none() {
            // The arrays on the device would go on with an id that is none.
            self.sequences.decoding.clear();
        }
        token.ok_or(ForwardError::Sampling { slot, position })
    }

    /// Puts the arrays of a decode step of `slots` on the device, unless the last step has left them there.
    fn prepare_decode(&mut self, slots: &[u32]) -> Result<(), ForwardError> {
        each_once(slots.iter().copied())?;
        let mut fed = Vec::with_capacity(slots.len());
        for &slot in slots {
            let sampled = self.sequences.sampled.get(slot as usize).copied().flatten();
            self.check(slot, &[sampled.unwrap_or(0)])?;
            fed.push([sampled.ok_or(ForwardError::NotSampled { slot })?]);
        }
        // A step that its observer ended may have left launches that still read the tables.
        self.stream.synchronize()?;
        for &slot in slots {
            self.reserve(slot, self.length(slot) + 1)?;
        }
        if self.sequences.decoding == slots {
            return Ok(());
        }
        let fed: Vec<Fed<'_>> =
            slots.iter().zip(&fed).map(|(&slot, tokens)| Fed { slot, start: self.length(slot), tokens }).collect();
        Rows::of(&fed, self.model.options.sequences).upload(&self.model.buffers)?;
        self.sequences.decoding = slots.to_vec();
        Ok(())
    }

    /// Launches a whole decode step of `count` sequences: from token ids to the arrays of the next step.
    fn launch_decode(&mut self, count: u32, observer: &mut dyn Observer) -> Result<(), ForwardError> {
        let bucket = self.bucket(bucket_of(count).unwrap_or(count));
        Pass::new(&self.model, (bucket, count), self.stream.raw(), observer).decode()
    }

    /// A graph of a decode step of bucket `m` with the ops that `observer` wants.
    ///
    /// # Errors
    /// [`ForwardError`] if a launch cannot be captured.
    fn capture_decode(&self, m: u32, observer: &mut dyn Observer) -> Result<Graph, ForwardError> {
        let bucket = self.bucket(m);
        self.stream.capture(|| {
            let mut pass = Pass::new(&self.model, (bucket, m), self.stream.raw(), observer);
            pass.branches_of = self.model.options.has_branches().then_some(&self.stream);
            pass.decode()
        })
    }

    /// A graph of a step of `m` tokens without its head, with the ops that `observer` wants. The arrays on the device
    /// say which tokens.
    ///
    /// # Errors
    /// [`ForwardError`] if a launch cannot be captured.
    fn capture_step(&self, m: u32, observer: &mut dyn Observer) -> Result<Graph, ForwardError> {
        let bucket = self.bucket(m);
        self.stream.capture(|| Pass::new(&self.model, (bucket, m), self.stream.raw(), observer).run())
    }

    /// Runs one decode step on the device as a graph that was captured before, or op by op where experts run by slot.
    fn run_decode(&mut self, (count, m): (u32, u32)) -> Result<(), ForwardError> {
        if self.model.options.has_slots() {
            // Rows of the bucket that nobody asked for would have a say in scales and counters.
            return self.launch_decode(count, &mut Unobserved);
        }
        if !self.graphs.contains_key(&m) {
            let graph = self.capture_decode(m, &mut Unobserved)?;
            self.graphs.insert(m, graph);
        }
        Ok(self.graphs[&m].launch(&self.stream)?)
    }

    /// One token more of each of `slots`, by `step`, which gets their number and the bucket.
    fn decode_by(
        &mut self,
        slots: &[u32],
        sampling: &Sampling,
        step: impl FnOnce(&mut Self, (u32, u32)) -> Result<(), ForwardError>,
    ) -> Result<Vec<u32>, ForwardError> {
        let Some(m) = bucket_of(slots.len() as u32).filter(|_| !slots.is_empty()) else { return Ok(Vec::new()) };
        self.set_sampling(sampling)?;
        self.prepare_decode(slots)?;
        let stepped: Result<Vec<i32>, ForwardError> = step(self, (slots.len() as u32, m)).and_then(|()| {
            self.stream.synchronize()?;
            Ok(self.model.buffers.sampled.download(slots.len())?)
        });
        if stepped.is_err() {
            // Whether the arrays on the device have moved on is not known.
            self.sequences.decoding.clear();
        }
        let sampled = stepped?;
        for &slot in slots {
            self.sequences.lengths[slot as usize] += 1;
        }
        // All are taken before the first mistake is told: the others go on from what is theirs.
        let taken: Vec<_> = slots.iter().zip(sampled).map(|(slot, token)| self.take_sampled(*slot, token)).collect();
        taken.into_iter().collect()
    }
}

impl LanguageModel for Forward {
    type Error = ForwardError;

    fn limits(&self) -> Limits {
        let options = &self.model.options;
        Limits { vocabulary: self.model.config.vocabulary, context: options.context, sequences: options.sequences }
    }

    fn logits(&mut self, slot: u32, tokens: &[u32]) -> Result<Vec<f32>, ForwardError> {
        self.observed_logits(slot, tokens, &mut Unobserved)
    }

    fn prefill(&mut self, prompts: &[(u32, &[u32])], sampling: &Sampling) -> Result<Vec<u32>, ForwardError> {
        each_once(prompts.iter().map(|(slot, _)| *slot))?;
        for (slot, tokens) in prompts {
            self.check(*slot, tokens)?;
        }
        prompts.iter().for_each(|(slot, _)| self.sequences.sampled[*slot as usize] = None);
        self.set_sampling(sampling)?;
        let mut answers = vec![0; prompts.len()];
        let mut rest: Vec<(usize, u32, &[u32])> =
            prompts.iter().enumerate().map(|(idx, (slot, tokens))| (idx, *slot, *tokens)).collect();
        while !rest.is_empty() {
            let mut room = self.model.options.chunk as usize;
            let (mut fed, mut ended) = (Vec::new(), Vec::new());
            let mut row = 0;
            for (idx, slot, tokens) in &mut rest {
                let (part, later) = tokens.split_at(tokens.len().min(room));
                if part.is_empty() {
                    break;
                }
                fed.push(Fed { slot: *slot, start: self.length(*slot), tokens: part });
                room -= part.len();
                row += part.len() as i32;
                *tokens = later;
                if later.is_empty() {
                    ended.push((*idx, (*slot, row - 1)));
                }
            }
            self.step(&Rows::of(&fed, self.model.options.sequences), &mut Unobserved)?;
            for part in &fed {
                self.sequences.lengths[part.slot as usize] += part.tokens.len() as u32;
            }
            let rows: Vec<(u32, i32)> = ended.iter().map(|(_, slot_row)| *slot_row).collect();
            for ((idx, _), token) in ended.iter().zip(self.sample_ended(&rows)?) {
                answers[*idx] = token;
            }
            rest.retain(|(_, _, tokens)| !tokens.is_empty());
        }
        Ok(answers)
    }

    fn decode(&mut self, slots: &[u32], sampling: &Sampling) -> Result<Vec<u32>, ForwardError> {
        self.decode_by(slots, sampling, Self::run_decode)
    }

    fn release(&mut self, slot: u32) {
        let sequences = &mut self.sequences;
        if slot as usize >= sequences.lengths.len() {
            return;
        }
        sequences.lengths[slot as usize] = 0;
        sequences.sampled[slot as usize] = None;
        sequences.csa_pages.release(slot as usize);
        sequences.hca_pages.release(slot as usize);
        sequences.decoding.clear();
    }
}

impl Pass<'_> {
    /// A decode step: every row is a sequence, its logits are sampled, and the arrays move on by one token.
    fn decode(&mut self) -> Result<(), ForwardError> {
        self.run()?;
        let (config, buffers) = (&self.model.config, &self.model.buffers);
        let x = pass::Rows::of(&buffers.x, config.hidden);
        let d = pass::Rows::of(&buffers.logits, config.vocabulary);
        self.linear("head", &self.model.weights.head, x, d)?;
        let (positions, sequences) = (self.ints(Part::Positions), self.ints(Part::Sequences));
        let sampled: Value = (&buffers.sampled).into();
        let view = self.view("sampled", &buffers.sampled, 1, Element::I32);
        self.op(Kernel::Sample, "sample", &[view], |count, m| {
            let settings = [(&buffers.logits).into(), (&buffers.sampling).into(), Value::Pointer(0)];
            [&settings[..], &[positions, sequences, sampled, count, m]].concat()
        })?;
        let (ids, starts) = (self.ints(Part::TokenIds), self.ints(Part::StepStart));
        self.op(Kernel::Advance, "advance", &[], |count, m| vec![sampled, ids, positions, sequences, starts, count, m])
    }

    /// Logits of the rows that were chosen.
    fn head_of_chosen(&mut self) -> Result<(), ForwardError> {
        let (config, buffers) = (&self.model.config, &self.model.buffers);
        let (rows, count) = (self.ints(Part::HeadRows), Value::Pointer(buffers.ints.head_count()));
        self.op(Kernel::Gather, "head.gather", &[], |_, m| {
            vec![(&buffers.x).into(), rows, (&buffers.head_x).into(), count, m]
        })?;
        let head = &self.model.weights.head;
        let x = pass::Rows::of(&buffers.head_x, config.hidden);
        let d = pass::Rows::of(&buffers.logits, config.vocabulary);
        let problem = self.problem("head").clone();
        self.gemm_of("head", &problem, (head.pointer(), head.segments), [x, d], buffers.ints.head_count())
    }

    /// A token from the logits of each chosen row.
    fn sample_chosen(&mut self) -> Result<(), ForwardError> {
        let buffers = &self.model.buffers;
        let [rows, positions, sequences] =
            [Part::HeadRows, Part::Positions, Part::Sequences].map(|part| self.ints(part));
        let count = Value::Pointer(buffers.ints.head_count());
        self.op(Kernel::Sample, "sample", &[], |_, m| {
            let settings = (&buffers.sampling).into();
            vec![(&buffers.logits).into(), settings, rows, positions, sequences, (&buffers.sampled).into(), count, m]
        })
    }
}
