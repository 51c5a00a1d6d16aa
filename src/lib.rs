//! tilekiln makes NVFP4 and MXFP4 models fast on the NVIDIA GPU at hand.
//!
//! It renders CUDA kernels from templates, compiles them with NVRTC at run time, measures which tile wins for each
//! GEMM and grouped-MoE problem on this very GPU, and keeps the winners. A call travels one way:
//!
//! ```text
//! models::dsv4::inventory   named ops            -> problem::Problem
//! kernels::Family           axes, then rules     -> problem::Tile
//! tuner::predict            bytes, FLOPs, waves  -> expected time
//! codegen                   template + config    -> codegen::Source
//! jit                       NVRTC                -> jit::Cubin
//! tuner::Live               worker process       -> store::Trial
//! store                     sled                 -> store::Record
//! dispatch                  lookup, load         -> dispatch::Loaded
//! ```
//!
//! Each step has its own type, so nothing can be launched that was not compiled. A step that needs a live GPU takes
//! [`device::Gpu`]; every other takes [`arch::GpuSpec`]: working without a GPU is the absence of a `Gpu`.

pub mod arch;
pub mod check;
pub mod cli;
pub mod codegen;
pub mod device;
pub mod dispatch;
pub mod engine;
pub mod environment;
pub mod jit;
pub mod kernels;
pub mod models;
pub mod problem;
pub mod quant;
pub mod report;
pub mod store;
pub mod tuner;

/// The commit that this library was built from, with `-dirty` when tracked files differed from it.
pub const COMMIT: &str = env!("TILEKILN_COMMIT");
