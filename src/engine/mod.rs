//! The mechanics of running a model: files, kernels, packing, pages, observers, generation. It knows no model.

mod comparison;
pub mod dump;
mod error;
mod files;
mod finite;
mod generation;
mod kernels;
mod measuring;
mod observe;
mod packing;
mod pages;
pub mod sampling;
mod tokens;

pub use comparison::{Comparison, NonFinite, Worst};
pub use error::EngineError;
pub use files::{Dtype, FilesError, Tensor, TensorFiles};
pub use finite::{FiniteCheck, NotFinite, Written};
pub use generation::{LanguageModel, Limits, Sampling};
pub use kernels::{BoundOp, Kernels, KernelsReport};
pub use measuring::{Cell, Measured, StepMeter};
pub use observe::{Element, Observer, OpId, Unobserved, View};
pub use packing::{Alphas, Content, Matrix, Packer};
pub use pages::{NoPages, PageTable};
pub use tokens::{TextStream, Tokens, TokensError};
