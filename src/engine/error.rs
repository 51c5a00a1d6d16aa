//! What can go wrong between a loaded checkpoint and the next token.

use crate::codegen::CodegenError;
use crate::device::DeviceError;
use crate::dispatch::{LaunchError, PrepareError};
use crate::jit::JitError;

/// Why the engine stopped.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The GPU.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A launch.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The tuned kernels.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// A template.
    #[error(transparent)]
    Codegen(#[from] CodegenError),
    /// NVRTC.
    #[error(transparent)]
    Jit(#[from] JitError),
    /// Who looked on stopped the step.
    #[error(transparent)]
    Observer(Box<dyn std::error::Error + Send + Sync>),
    /// A launch with other parameters than its kernel has: a bug.
    #[error("expected {expected} values for the parameters of `{kernel}`, found {found}")]
    Parameters {
        /// The kernel's entry point.
        kernel: String,
        /// Parameters that it has.
        expected: usize,
        /// Values that there are.
        found: usize,
    },
    /// A matrix that cannot be packed.
    #[error("`{name}` cannot be packed: {reason}")]
    Packing {
        /// Native name of the tensor.
        name: String,
        /// What was found.
        reason: String,
    },
    /// A model that does not fit.
    #[error("{what} needs {} of device memory, found {} free", gib(*needed), gib(*free))]
    Memory {
        /// What is being loaded.
        what: String,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        free: u64,
    },
}

/// Bytes in GiB, for people.
pub(super) fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}
