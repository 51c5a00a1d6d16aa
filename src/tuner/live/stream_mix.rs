//! Mixes of residual streams: weights in rotating copies, streams that each launch of a chain mixes in place.

use super::dense::POISON;
use super::tools::{Toolbox, Value};
use super::weights::copies;
use super::{Candidate, LiveError, Mode, launch_with};
use crate::check::{Comparison, Path};
use crate::device::{Buffer, Stream};
use crate::dispatch::LaunchArgs;
use crate::kernels::{self, FillKind, mix_splits};
use crate::problem::{Output, Problem, StreamMix};

pub(super) struct StreamMixSubject {
    mix: StreamMix,
    /// f32 weights `[n, 4 * hidden]`, the same in every copy.
    copies: Vec<Buffer>,
    is_warm: bool,
    /// Random streams, `[m, 4, hidden]`.
    pristine: Buffer,
    /// Where they are mixed: in place in a chain, as a step does it, and from the random ones otherwise.
    streams: Buffer,
    /// What the sublayer gave, `[m, hidden]` each.
    y: [Buffer; 2],
    /// `[m, 20]` f32.
    mixing: Buffer,
    /// Parts of the sums, for the smallest slice that there is.
    parts: Buffer,
    /// Streams as they should be, f32; empty where they are only read.
    reference: Buffer,
    /// Sums of a candidate's parts, and sums of the streams that it has stored, `[m, n + 1]` f32 each.
    sums: [Buffer; 2],
}

impl StreamMixSubject {
    pub fn new(tools: &mut Toolbox, mix: &StreamMix, seed: u64) -> Result<Self, LiveError> {
        let [m, hidden] = [mix.m, mix.hidden].map(|size| size as usize);
        let stream_bytes = mix.stream_bytes() as usize;
        let weights = random(tools, mix.weight_bytes() as usize, seed)?;
        let pristine = random(tools, stream_bytes, seed ^ 0xA)?;
        let y = [random(tools, 2 * m * hidden, seed ^ 0xB)?, random(tools, 2 * m * hidden, seed ^ 0xC)?];
        let mixing = mixing(tools, m, seed ^ 0xD)?;
        let splits = mix.hidden / SMALLEST_SLICE;
        let sum_bytes = mix.part_bytes() as usize;
        let mut subject = Self {
            mix: mix.clone(),
            copies: Vec::new(),
            is_warm: false,
            pristine,
            streams: Buffer::new(&tools.gpu, stream_bytes)?,
            y,
            mixing,
            parts: Buffer::new(&tools.gpu, splits as usize * sum_bytes)?,
            reference: Buffer::new(&tools.gpu, if mix.has_post { 4 * m * mix.k() as usize } else { 0 })?,
            sums: [Buffer::new(&tools.gpu, sum_bytes)?, Buffer::new(&tools.gpu, sum_bytes)?],
        };
        subject.copies.push(weights);
        if mix.has_post {
            subject.refer(tools, Step::Mix, &subject.pristine, &subject.reference)?;
        }
        let weights = subject.copies.remove(0);
        (subject.copies, subject.is_warm) = copies(tools, weights)?;
        subject.reset(&tools.stream)?;
        tools.stream.synchronize()?;
        Ok(subject)
    }

    pub fn is_warm(&self) -> bool {
        self.is_warm
    }

    /// How comparison `idx` of [`StreamMixSubject::compare`] is judged: sums, squares, streams.
    pub fn judged_by(&self, idx: usize) -> (Output, Path) {
        match idx {
            0 | 1 => (Output::F32, Path::Sum { k: self.mix.k() }),
            _ => (self.mix.element, Path::Sum { k: TERMS }),
        }
    }

    /// Arguments of launch `idx` for `m` tokens.
    pub fn args(&self, m: u32, idx: u32, mode: Mode) -> LaunchArgs {
        let from = match mode {
            Mode::Chained => &self.streams,
            Mode::Unchained => &self.pristine,
        };
        LaunchArgs {
            activations: self.y[0].pointer(),
            more_activations: self.y[1].pointer(),
            weights: self.copies[idx as usize % self.copies.len()].pointer(),
            output: self.parts.pointer(),
            tokens: m,
            streams: from.pointer(),
            mixed_streams: self.streams.pointer(),
            mixing: self.mixing.pointer(),
            ..LaunchArgs::default()
        }
    }

    /// The sums of the parts and those of their squares, both against what the stored streams give, so that a stream
    /// which was rounded the other way is no error of its sum; and the streams.
    pub fn compare(&mut self, tools: &mut Toolbox, candidate: &Candidate) -> Result<Vec<Comparison>, LiveError> {
        let Problem::StreamMix(mix) = candidate.bound.problem().clone() else {
            return Err(LiveError::Data(format!("expected a mix of streams, found {}", candidate.bound.problem())));
        };
        self.parts.set_bytes(POISON)?;
        self.streams.set_bytes(POISON)?;
        let args = self.args(mix.m, 0, Mode::Unchained);
        launch_with(candidate, args, tools.stream.raw().cast(), Mode::Unchained)?;
        let [sums, expected] = &self.sums;
        self.refer(tools, Step::AddParts(mix_splits(&mix, &candidate.tile), mix.m), &self.pristine, sums)?;
        let stored = if mix.has_post { &self.streams } else { &self.pristine };
        self.refer(tools, Step::Sum(mix.m), stored, expected)?;
        tools.stream.synchronize()?;
        let (n, stride) = (mix.n, mix.n as usize + 1);
        let of_sums = |offset: u32| [sums, expected].map(|of| (of.pointer() + 4 * u64::from(offset), stride));
        let mut all =
            vec![tools.compare(Output::F32, of_sums(0), mix.m, n)?, tools.compare(Output::F32, of_sums(n), mix.m, 1)?];
        if mix.has_post {
            let rows = [&self.streams, &self.reference].map(|of| (of.pointer(), mix.k() as usize));
            all.push(tools.compare(mix.element, rows, mix.m, mix.k())?);
        }
        Ok(all)
    }

    /// Poisoned bytes that a launch changes behind its streams and its parts; 0 where there are too many to look at.
    pub fn stray_writes(&mut self, tools: &mut Toolbox, candidate: &Candidate) -> Result<usize, LiveError> {
        if self.parts.bytes() + self.streams.bytes() > MOST_LOOKED_AT {
            return Ok(0);
        }
        self.compare(tools, candidate)?;
        let problem = candidate.bound.problem();
        let Problem::StreamMix(mix) = problem else { return Ok(0) };
        let parts = mix_splits(mix, &candidate.tile) as usize * mix.part_bytes() as usize;
        let streams = if mix.has_post { mix.stream_bytes() as usize } else { 0 };
        let mut strays = 0;
        for (buffer, written) in [(&self.parts, parts), (&self.streams, streams)] {
            let bytes: Vec<u8> = buffer.download(buffer.bytes())?;
            strays += bytes[written..].iter().filter(|&&byte| byte != POISON).count();
        }
        Ok(strays)
    }

    /// Checksum of the streams and of the sums that the last launch of a chain has left.
    pub fn checksum(&mut self, tools: &mut Toolbox, candidate: &Candidate) -> Result<u64, LiveError> {
        let Problem::StreamMix(mix) = candidate.bound.problem().clone() else { return Ok(0) };
        let splits = mix_splits(&mix, &candidate.tile);
        let parts = (self.parts.pointer(), mix.n as usize + 1);
        // What it is compared with does not matter: bits are hashed.
        let parts = tools.compare(Output::F32, [parts, parts], splits * mix.m, mix.n + 1)?.checksum;
        let streams = match mix.has_post {
            true => {
                let rows = [&self.streams, &self.reference].map(|of| (of.pointer(), mix.k() as usize));
                tools.compare(mix.element, rows, mix.m, mix.k())?.checksum
            }
            false => 0,
        };
        Ok(parts.wrapping_add(streams))
    }

    /// Puts the random streams back where a chain begins.
    pub fn reset(&self, stream: &Stream) -> Result<(), LiveError> {
        Ok(self.streams.copy_from(&self.pristine, self.pristine.bytes(), stream)?)
    }

    /// One step of `templates/reference_mix` on `streams`, into `result`.
    fn refer(&self, tools: &mut Toolbox, step: Step, streams: &Buffer, result: &Buffer) -> Result<(), LiveError> {
        let (number, m, splits) = match step {
            Step::Mix => (0, self.mix.m, 0),
            Step::Sum(m) => (1, m, 0),
            Step::AddParts(splits, m) => (2, m, splits),
        };
        let values = [
            Value::Int(number),
            streams.into(),
            (&self.y[0]).into(),
            (&self.y[1]).into(),
            (&self.mixing).into(),
            (&self.copies[0]).into(),
            (&self.parts).into(),
            result.into(),
            Value::Int(m as i32),
            Value::Int(self.mix.hidden as i32),
            Value::Int(self.mix.n as i32),
            Value::Int(splits as i32),
        ];
        tools.run(&kernels::reference_mix(self.mix.element), [m.min(REFERENCE_BLOCKS), 1, 1], &values)
    }
}

/// What the reference does.
enum Step {
    Mix,
    /// For as many tokens.
    Sum(u32),
    /// So many parts of each sum, for as many tokens.
    AddParts(u32, u32),
}

/// Random values of both signs in about (-1, 1): BF16, and f32 too, whose upper half is one and whose lower half is the
/// rest of its fraction.
fn random(tools: &mut Toolbox, bytes: usize, seed: u64) -> Result<Buffer, LiveError> {
    let buffer = Buffer::new(&tools.gpu, bytes)?;
    tools.fill(&buffer, bytes / 2, FillKind::Bf16, [0, 0], seed)?;
    Ok(buffer)
}

/// What each of `m` tokens is mixed by: the sublayer's part as it comes, the streams' parts a quarter of it, so that in
/// a chain streams neither grow nor die out.
fn mixing(tools: &mut Toolbox, m: usize, seed: u64) -> Result<Buffer, LiveError> {
    let buffer = random(tools, 4 * MIX_VALUES * m, seed)?;
    tools.stream.synchronize()?;
    let mut values: Vec<f32> = buffer.download(MIX_VALUES * m)?;
    for token in values.chunks_exact_mut(MIX_VALUES) {
        token[4..].iter_mut().for_each(|value| *value *= 0.25);
    }
    buffer.upload(&values)?;
    Ok(buffer)
}

/// `post[4]` and `C[4][4]` of a token.
const MIX_VALUES: usize = 20;

/// Products that a mixed value is the sum of.
const TERMS: u32 = 6;

/// Columns of the smallest slice: as many parts of a sum as there can be.
const SMALLEST_SLICE: u32 = 32;

/// Blocks of the reference, which take tokens in turn.
const REFERENCE_BLOCKS: u32 = 1 << 16;

/// Bytes that are read back to be looked at one by one.
const MOST_LOOKED_AT: usize = 64 << 20;
