//! Where a model runs.

use crate::cli::CliError;
use crate::cli::dsv4::args::{Device, RunArgs};
use crate::cli::voice::talk;
use crate::device::Gpu;

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The f32 reference.
    Cpu,
    /// The tuned kernels.
    Gpu,
}

/// Where `run` is to run: as it says, or on the GPU if there is one. What is not a GPU's speed is said.
///
/// # Errors
/// A GPU that was asked for and is not there.
pub fn place(run: &RunArgs) -> Result<Place, CliError> {
    let count = Gpu::count();
    match run.device {
        Some(Device::Cpu) => {
            talk("running the f32 reference on the CPU");
            Ok(Place::Cpu)
        }
        None if count == 0 => {
            talk("no GPU at hand: running the f32 reference on the CPU");
            Ok(Place::Cpu)
        }
        Some(Device::Gpu) if count == 0 => Err(CliError::failed(
            "expected a GPU for `--device gpu`, found none",
            Some("leave `--device` out to run the f32 reference on the CPU".into()),
        )),
        _ if run.gpu.ordinal >= count => {
            let sentence = format!("expected GPU 0 to {}, found --ordinal {}", count - 1, run.gpu.ordinal);
            Err(CliError::usage(sentence, "`nvidia-smi` lists the GPUs that the driver sees"))
        }
        _ => Ok(Place::Gpu),
    }
}
