//! The models that kernels are tuned for: what a rank multiplies, for a checkpoint and a shard.

mod checkpoint;
pub mod dsv4;
mod listing;
mod op;
mod shard;

pub use checkpoint::{Checkpoint, UnknownCheckpoint};
pub use listing::Row;
pub use op::{Experts, Gemm, Matrix, Op, Product, Segment};
pub use shard::{InventoryError, Shard, Whole};
