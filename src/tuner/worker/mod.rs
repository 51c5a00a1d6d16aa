//! A process of its own that owns the GPU, so that a kernel that faults or hangs costs one candidate and not the run.
//!
//! The parent has no CUDA context. It talks to the child over a Unix socket in frames ([`protocol`]); the child's
//! standard output is never the channel. A lost context, a crash or a hang kills and replaces the child.

mod client;
mod protocol;
mod serve;

pub use client::{Spent, Worker, WorkerBench, WorkerCommand, WorkerError};
pub use protocol::{GpuReport, Sabotage};
pub use serve::{ServeError, ServeOptions, serve};
