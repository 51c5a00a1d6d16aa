//! Problems to launches: what an inference runner calls.

mod args;
mod bound;

pub use args::{ArgsError, LaunchArgs, Segments};
pub use bound::{Bound, LaunchError};
