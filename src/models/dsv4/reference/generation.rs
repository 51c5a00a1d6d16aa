//! The reference as a [`LanguageModel`]: what `dsv4` runs where there is no GPU.

use crate::engine::sampling::sample;
use crate::engine::{LanguageModel, Limits, Sampling};

use super::{Matrix, Observer, Op, Reference, ReferenceError, Sequence};

/// A reference with slots.
pub struct ReferenceModel {
    reference: Reference,
    limits: Limits,
    slots: Vec<Option<Slot>>,
    observer: Box<dyn Observer>,
}

struct Slot {
    sequence: Sequence,
    /// The token that was sampled last and has not been fed yet.
    sampled: Option<u32>,
}

impl ReferenceModel {
    /// Room for `sequences` of at most `context` tokens, as far as the model takes as many; `observer` sees every op.
    pub fn new(reference: Reference, sequences: u32, context: u32, observer: Box<dyn Observer>) -> Self {
        let config = reference.config();
        let limits = Limits { vocabulary: config.vocabulary, context: context.min(config.max_tokens), sequences };
        Self { reference, limits, slots: (0..sequences).map(|_| None).collect(), observer }
    }

    /// The model.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// As [`Reference::end_warmup`].
    pub fn end_warmup(&mut self) {
        self.reference.end_warmup();
    }

    /// Feeds `tokens` to `slot`. A slot in which that fails is empty: half a pass is nothing to continue.
    fn feed(&mut self, slot: u32, tokens: &[u32]) -> Result<Matrix, ReferenceError> {
        if tokens.is_empty() {
            return Err(ReferenceError::NoTokens { slot });
        }
        let sequences = self.limits.sequences;
        let place = self.slots.get_mut(slot as usize).ok_or(ReferenceError::Slot { slot, sequences })?;
        let (limit, before) = (self.limits.context as usize, place.as_ref().map_or(0, |it| it.sequence.tokens()));
        if before + tokens.len() > limit {
            return Err(ReferenceError::Context { tokens: before + tokens.len(), limit });
        }
        let mut sequence = place.take().map_or_else(|| self.reference.sequence(), |it| it.sequence);
        let logits = self.reference.forward(&mut sequence, tokens, self.observer.as_mut())?;
        *place = Some(Slot { sequence, sampled: None });
        Ok(logits)
    }

    /// Feeds `tokens` to `slot` and samples what follows.
    fn next(&mut self, slot: u32, tokens: &[u32], sampling: &Sampling) -> Result<u32, ReferenceError> {
        let logits = self.feed(slot, tokens)?;
        let Some(place) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) else {
            return Err(ReferenceError::EmptySlot { slot });
        };
        let (position, last) = (place.sequence.tokens() - 1, logits.row(logits.rows - 1));
        let token = sample(last, sampling, slot, position as u32).ok_or_else(|| not_finite(last, position))?;
        place.sampled = Some(token);
        Ok(token)
    }
}

impl LanguageModel for ReferenceModel {
    type Error = ReferenceError;

    fn limits(&self) -> Limits {
        self.limits
    }

    fn logits(&mut self, slot: u32, tokens: &[u32]) -> Result<Vec<f32>, ReferenceError> {
        Ok(self.feed(slot, tokens)?.values)
    }

    fn prefill(&mut self, prompts: &[(u32, &[u32])], sampling: &Sampling) -> Result<Vec<u32>, ReferenceError> {
        prompts.iter().map(|&(slot, tokens)| self.next(slot, tokens, sampling)).collect()
    }

    fn decode(&mut self, slots: &[u32], sampling: &Sampling) -> Result<Vec<u32>, ReferenceError> {
        let sampled_last = |slot: u32| {
            let place = self.slots.get(slot as usize).and_then(Option::as_ref);
            place.and_then(|it| it.sampled).ok_or(ReferenceError::EmptySlot { slot })
        };
        let tokens = slots.iter().map(|&slot| sampled_last(slot)).collect::<Result<Vec<u32>, _>>()?;
        slots.iter().zip(tokens).map(|(&slot, token)| self.next(slot, &[token], sampling)).collect()
    }

    fn release(&mut self, slot: u32) {
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = None;
        }
    }
}

/// Why nothing can be sampled from `logits`, those of the token at `position`.
fn not_finite(logits: &[f32], position: usize) -> ReferenceError {
    let column = logits.iter().position(|logit| !logit.is_finite()).unwrap_or(0);
    let value = logits.get(column).copied().unwrap_or(f32::NAN);
    ReferenceError::NotFinite { op: Op { layer: None, name: "head" }, position, column, value }
}
