//! A session on the CPU: the f32 reference, one sequence after the other, and what looks on.

use super::{Session, Size};
use crate::cli::CliError;
use crate::engine::{LanguageModel, Limits, Sampling};
use crate::models::dsv4::Watch;
use crate::models::dsv4::reference::{Options, Reference, ReferenceError, ReferenceModel};
use crate::models::dsv4::weights::Loaded;

/// The reference with its sequences. Feeding one of them is a step of the watch.
struct CpuSession {
    model: ReferenceModel,
    watch: Watch,
}

/// Dequantises `loaded`.
///
/// # Errors
/// Weights that do not fit the config, scales that `numerics` use and that are missing or unusable.
pub fn open(loaded: &Loaded<'_>, numerics: Options, size: Size, watch: Watch) -> Result<Box<dyn Session>, CliError> {
    let reference = Reference::new(&loaded.weights, &loaded.config, numerics).map_err(failed)?;
    let model = ReferenceModel::new(reference, size.sequences, size.context, Box::new(watch.clone()));
    Ok(Box::new(CpuSession { model, watch }))
}

impl CpuSession {
    /// Ends the step in which `fed` was computed: what a run was stopped by is in the dump as well.
    fn ended<T>(&self, fed: Result<T, ReferenceError>) -> Result<T, CliError> {
        let written = self.watch.end_step();
        let fed = fed.map_err(failed)?;
        written.map_err(|error| CliError::failed(error.to_string(), None))?;
        Ok(fed)
    }
}

impl LanguageModel for CpuSession {
    type Error = CliError;

    fn limits(&self) -> Limits {
        self.model.limits()
    }

    fn logits(&mut self, slot: u32, tokens: &[u32]) -> Result<Vec<f32>, CliError> {
        let fed = self.model.logits(slot, tokens);
        self.ended(fed)
    }

    fn prefill(&mut self, prompts: &[(u32, &[u32])], sampling: &Sampling) -> Result<Vec<u32>, CliError> {
        let mut tokens = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let fed = self.model.prefill(&[*prompt], sampling);
            tokens.extend(self.ended(fed)?);
        }
        Ok(tokens)
    }

    fn decode(&mut self, slots: &[u32], sampling: &Sampling) -> Result<Vec<u32>, CliError> {
        let mut tokens = Vec::with_capacity(slots.len());
        for slot in slots {
            let fed = self.model.decode(&[*slot], sampling);
            tokens.extend(self.ended(fed)?);
        }
        Ok(tokens)
    }

    fn release(&mut self, slot: u32) {
        self.model.release(slot);
    }
}

impl Session for CpuSession {
    fn end_warmup(&mut self) -> Result<(), CliError> {
        self.model.end_warmup();
        Ok(())
    }

    fn warnings(&self) -> Result<Vec<String>, CliError> {
        Ok(self.model.reference().activations().warnings().iter().map(ToString::to_string).collect())
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
