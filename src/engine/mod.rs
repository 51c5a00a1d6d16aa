//! The mechanics of running a model: files, kernels, packing, pages, observers, generation. It knows no model.

mod error;
mod files;
mod generation;
mod kernels;
mod observe;
mod packing;
mod pages;

pub use error::EngineError;
pub use files::{Dtype, FilesError, Tensor, TensorFiles};
pub use generation::{LanguageModel, Limits, Sampling};
pub use kernels::{BoundOp, Kernels, KernelsReport};
pub use observe::{Element, Observer, OpId, Unobserved, View};
pub use packing::{Alphas, Content, Matrix, Packer};
pub use pages::{NoPages, PageTable};
