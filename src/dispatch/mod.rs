//! Problems to launches: what an inference runner calls.
//!
//! [`prepare`] loads, before the first request, every kernel that the given problems can launch: nothing is compiled
//! while serving. After it a launch is [`Prepared::lookup`], one hash map without a lock or an allocation, and
//! [`Loaded::launch`], which takes raw device addresses and a raw stream and may be captured into a CUDA graph.
//!
//! ```no_run
//! use std::sync::Arc;
//! use tilekiln::device::{Gpu, Stream};
//! use tilekiln::dispatch::{LaunchArgs, PrepareOptions, Segments, prepare};
//! use tilekiln::models::{self, Checkpoint, Shard};
//! use tilekiln::problem::{BUCKETS, Problem, bucket_of};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let gpu = Arc::new(Gpu::open(0)?);
//! let ops = models::named("dsv4")?.inventory(Checkpoint::Nvfp4, Shard { tp: 1, ep: 1 })?;
//! let problems = ops.iter().flat_map(|op| BUCKETS.into_iter().map(|m| op.problem(m)));
//! let prepared = prepare(&gpu, problems, &PrepareOptions::from_environment())?;
//! println!("{}", prepared.report());
//!
//! // One decode step of one projection: 3 tokens, in the bucket of 4.
//! let problem: Problem = format!("fp8 4096x8192 m{}", bucket_of(3).unwrap_or(4)).parse()?;
//! let loaded = prepared.lookup(&problem).ok_or("not prepared")?;
//! let stream = Stream::new(&gpu)?;
//! # let (weights, tokens, result, workspace) = (0, 0, 0, 0);
//! let args = LaunchArgs {
//!     activations: tokens,
//!     activation_stride: 8192,
//!     weights, // in the packed layout, see `quant::pack`
//!     output: result,
//!     output_stride: 4096,
//!     tokens: 3,
//!     segments: Segments::uniform(1.0),
//!     workspace, // `loaded.workspace_bytes()` zeroed bytes, for each launch that may run beside others
//!     ..LaunchArgs::default()
//! };
//! // SAFETY: the addresses are device memory of these sizes until the stream has been waited for.
//! unsafe { loaded.launch(&args, stream.raw().cast())? };
//! stream.synchronize()?;
//! # Ok(())
//! # }
//! ```

mod args;
mod bound;
mod kernels_hash;
mod prepare;

pub use args::{ArgsError, LaunchArgs, Segments};
pub use bound::{Bound, LaunchError};
pub use kernels_hash::kernels_hash;
pub use prepare::{Loaded, PrepareError, PrepareOptions, PrepareReport, Prepared, prepare, prepare_invariant};
