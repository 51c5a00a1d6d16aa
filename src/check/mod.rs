//! What is right: references on the CPU, and how far a result may be from one.

mod reference;
mod tolerance;

pub use reference::{dense, moe_block};
pub use tolerance::{Comparison, Path, Wrong, judge, slope};
