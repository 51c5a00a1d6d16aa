//! The words that name a GPU and the kernels for it.

use std::path::PathBuf;

use clap::Args;

/// The GPU, and where its kernels come from.
#[derive(Debug, Args)]
pub struct GpuArgs {
    /// Which of this machine's GPUs, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub ordinal: u32,
    /// NVRTC to use: libnvrtc.so, or its folder; TILEKILN_NVRTC or what is found, if nothing is said
    #[arg(long, value_name = "PATH")]
    pub nvrtc: Option<PathBuf>,
    /// Never use the network
    #[arg(long)]
    pub offline: bool,
    /// Database of winners; db in TILEKILN_DATA or in ~/.local/share/tilekiln, if nothing is said
    #[arg(long, value_name = "DIR")]
    pub db: Option<PathBuf>,
}
