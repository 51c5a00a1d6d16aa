//! The mechanics of running a model: files, tensors, caches, graphs, generation. It knows no model.

mod files;
mod generation;

pub use files::{Dtype, FilesError, Tensor, TensorFiles};
pub use generation::{LanguageModel, Limits, Sampling};
