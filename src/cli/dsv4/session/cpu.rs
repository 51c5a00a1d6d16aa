//! A session on the CPU: the f32 reference, one sequence after the other.

use super::{Session, Size};
use crate::cli::CliError;
use crate::engine::{LanguageModel, Limits, Sampling};
use crate::models::dsv4::Watch;
use crate::models::dsv4::reference::{Options, Reference, ReferenceError, Sequence};
use crate::models::dsv4::weights::Loaded;

/// The reference with its sequences.
struct CpuSession {
    reference: Reference,
    slots: Vec<Slot>,
    context: u32,
    watch: Watch,
}

/// One sequence.
#[derive(Default)]
struct Slot {
    sequence: Option<Sequence>,
    /// What was sampled last, and not fed yet.
    sampled: Option<u32>,
}

/// Dequantises `loaded`.
///
/// # Errors
/// Weights that do not fit the config, scales that `numerics` use and that are missing or unusable.
pub fn open(loaded: &Loaded<'_>, numerics: Options, size: Size, watch: Watch) -> Result<Box<dyn Session>, CliError> {
    let reference = Reference::new(&loaded.weights, &loaded.config, numerics).map_err(failed)?;
    let slots = (0..size.sequences).map(|_| Slot::default()).collect();
    Ok(Box::new(CpuSession { reference, slots, context: size.context, watch }))
}

impl CpuSession {
    /// Feeds `tokens` to `slot`, and gives all of their logits.
    fn feed(&mut self, slot: u32, tokens: &[u32]) -> Result<Vec<f32>, CliError> {
        let sequences = self.slots.len() as u32;
        let state = self.slots.get_mut(slot as usize);
        let state = state.ok_or_else(|| failed(ReferenceError::Slot { slot, sequences }))?;
        let sequence = state.sequence.get_or_insert_with(|| self.reference.sequence());
        let (tokens_after, limit) = (sequence.tokens() + tokens.len(), self.context as usize);
        if tokens_after > limit {
            return Err(failed(ReferenceError::Context { tokens: tokens_after, limit }));
        }
        let fed = self.reference.forward(sequence, tokens, &mut self.watch.clone());
        // What a run was stopped by is in the dump as well.
        let written = self.watch.end_step();
        let logits = fed.map_err(failed)?;
        written.map_err(|error| CliError::failed(error.to_string(), None))?;
        Ok(logits.values)
    }

    /// Feeds `tokens` to `slot`, and samples what follows.
    fn next(&mut self, slot: u32, tokens: &[u32], sampling: &Sampling) -> Result<u32, CliError> {
        let logits = self.feed(slot, tokens)?;
        let vocabulary = self.reference.config().vocabulary as usize;
        let state = &mut self.slots[slot as usize];
        let position = state.sequence.as_ref().map_or(0, Sequence::tokens) as u32 - 1;
        let last = &logits[logits.len() - vocabulary..];
        let token = crate::engine::sampling::sample(last, sampling, slot, position).ok_or_else(|| {
            let sentence =
                format!("expected finite logits for sequence {slot} behind position {position}, found others");
            CliError::failed(sentence, Some("`--check finite=op` names the op, layer and token they come from".into()))
        })?;
        state.sampled = Some(token);
        Ok(token)
    }
}

impl LanguageModel for CpuSession {
    type Error = CliError;

    fn limits(&self) -> Limits {
        let vocabulary = self.reference.config().vocabulary;
        Limits { vocabulary, context: self.context, sequences: self.slots.len() as u32 }
    }

    fn logits(&mut self, slot: u32, tokens: &[u32]) -> Result<Vec<f32>, CliError> {
        self.feed(slot, tokens)
    }

    fn prefill(&mut self, prompts: &[(u32, &[u32])], sampling: &Sampling) -> Result<Vec<u32>, CliError> {
        prompts.iter().map(|(slot, tokens)| self.next(*slot, tokens, sampling)).collect()
    }

    fn decode(&mut self, slots: &[u32], sampling: &Sampling) -> Result<Vec<u32>, CliError> {
        let mut tokens = Vec::with_capacity(slots.len());
        for &slot in slots {
            let sampled = self.slots.get(slot as usize).and_then(|state| state.sampled);
            let token = sampled.ok_or_else(|| failed(ReferenceError::EmptySlot { slot }))?;
            tokens.push(self.next(slot, &[token], sampling)?);
        }
        Ok(tokens)
    }

    fn release(&mut self, slot: u32) {
        if let Some(state) = self.slots.get_mut(slot as usize) {
            *state = Slot::default();
        }
    }
}

impl Session for CpuSession {
    fn end_warmup(&mut self) -> Result<(), CliError> {
        self.reference.end_warmup();
        Ok(())
    }

    fn warnings(&self) -> Result<Vec<String>, CliError> {
        Ok(self.reference.activations().warnings().iter().map(ToString::to_string).collect())
    }
}

fn failed(error: ReferenceError) -> CliError {
    let hint = match &error {
        ReferenceError::InputScale { .. } | ReferenceError::NoInputScale { .. } => {
            Some("`--scale per-token` needs no scale of the file")
        }
        ReferenceError::Context { .. } => Some("a shorter prompt, fewer `--max-tokens` or a larger `--context`"),
        ReferenceError::Observer(_) => Some("`--dump DIR` keeps every op's output up to there"),
        ReferenceError::NotFinite { .. } => Some("`--check finite=op` names the first op that went wrong"),
        _ => None,
    };
    CliError::failed(error.to_string(), hint.map(str::to_string))
}
