//! What the command line asks of a model, whether it runs on a GPU or on the CPU.

/// How much a loaded model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of the vocabulary.
    pub vocabulary: u32,
    /// Tokens of one sequence, prompt and answer together.
    pub context: u32,
    /// Sequences at a time.
    pub sequences: u32,
}

/// How the next token is chosen from its logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the largest logit; otherwise logits are divided by it.
    pub temperature: f32,
    /// Smallest probability mass of the most likely tokens that are drawn from.
    pub top_p: f32,
    /// With the sequence's slot and position it decides the draw.
    pub seed: u64,
}

impl Default for Sampling {
    /// The largest logit.
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, seed: 0 }
    }
}

/// A model that continues sequences. A slot holds one sequence; it is empty until the first tokens are fed to it.
pub trait LanguageModel {
    /// What can go wrong.
    type Error: std::error::Error;

    /// How much it takes.
    fn limits(&self) -> Limits;

    /// Feeds `tokens` to the sequence in `slot`, behind what it has, and gives the logits of each of them,
    /// `[tokens, vocabulary]`.
    ///
    /// # Errors
    /// A slot, token or length beyond the limits; what went wrong on the device.
    fn logits(&mut self, slot: u32, tokens: &[u32]) -> Result<Vec<f32>, Self::Error>;

    /// Feeds a prompt to each slot and samples the token that follows it.
    ///
    /// # Errors
    /// As [`LanguageModel::logits`].
    fn prefill(&mut self, prompts: &[(u32, &[u32])], sampling: &Sampling) -> Result<Vec<u32>, Self::Error>;

    /// Feeds each of `slots` the token that was sampled last for it and samples the next.
    ///
    /// # Errors
    /// As [`LanguageModel::logits`].
    fn decode(&mut self, slots: &[u32], sampling: &Sampling) -> Result<Vec<u32>, Self::Error>;

    /// Empties `slot`.
    fn release(&mut self, slot: u32);
}
