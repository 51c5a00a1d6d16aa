//! What is kept: trials and winners in sled, a snapshot for readers, packs for people.

mod record;

pub use record::{Origin, Outcome, Record, RunnerUp, Timing, Toolchain, Trial};
