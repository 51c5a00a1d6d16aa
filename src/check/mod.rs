//! What is right: references on the CPU, and how far a result may be from one.

mod reference;
mod tolerance;

pub use reference::{dense, mixed_streams, moe_block, stream_sums};
pub use tolerance::{Comparison, Path, Wrong, judge, slope};
