//! The mechanics of running a model: files, tensors, caches, graphs, generation. It knows no model.

mod generation;

pub use generation::{LanguageModel, Limits, Sampling};
