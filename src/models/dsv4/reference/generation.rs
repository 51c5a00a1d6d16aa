//! The reference as a [`LanguageModel`]: what `dsv4` runs where there is no GPU.

use crate::engine::{LanguageModel, Limits, Sampling};

use super::{Matrix, Observer, Reference, ReferenceError, Sequence};

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

    /// Feeds `tokens` to `slot`. A slot in which that fails is empty: half a pass is nothing to continue.
    fn feed(&mut self, slot: u32, tokens: &[u32]) -> Result<Matrix, ReferenceError> {
        if tokens.is_empty() {
            return Err(ReferenceError::NoTokens { slot });
        }
        let sequences = self.limits.sequences;
        let place = self.slots.get_mut(slot as usize).ok_or(ReferenceError::Slot { slot, sequences })?;
        let mut sequence = place.as_ref().map_or_else(|| self.reference.sequence(), |slot| slot.sequence.clone());
        let (fed, limit) = (sequence.tokens() + tokens.len(), self.limits.context as usize);
        if fed > limit {
            return Err(ReferenceError::Context { tokens: fed, limit });
        }
        *place = None;
        let logits = self.reference.forward(&mut sequence, tokens, self.observer.as_mut())?;
        *place = Some(Slot { sequence, sampled: None });
        Ok(logits)
    }

    /// Feeds `tokens` to `slot` and samples what follows.
    fn next(&mut self, slot: u32, tokens: &[u32], sampling: &Sampling) -> Result<u32, ReferenceError> {
        let logits = self.feed(slot, tokens)?;
        let Some(Some(place)) = self.slots.get_mut(slot as usize) else {
            return Err(ReferenceError::EmptySlot { slot });
        };
        let position = place.sequence.tokens() - 1;
        let token = choose(logits.row(logits.rows - 1), (slot, position), sampling)?;
        place.sampled = Some(token);
        Ok(token)
    }

    /// Scales that are frozen after the first prompts are frozen now.
    fn prompts_are_fed(&mut self) {
        if self.reference.is_warming_up() {
            self.reference.end_warmup();
        }
    }
}
