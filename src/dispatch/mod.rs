//! Problems to launches: what an inference runner calls.

mod args;
mod bound;
mod kernels_hash;

pub use args::{ArgsError, LaunchArgs, Segments};
pub use bound::{Bound, LaunchError};
pub use kernels_hash::kernels_hash;
