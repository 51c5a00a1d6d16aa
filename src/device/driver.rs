//! The CUDA driver: found once, called with its results checked.
//!
//! cudarc panics when the driver's library is not there, so nothing here is called before [`init`] has looked.

use std::ffi::CStr;
use std::sync::OnceLock;

use cudarc::driver::sys::{self, CUresult};

/// Why something on the GPU did not work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No library of the driver.
    #[error("expected an NVIDIA driver (libcuda.so.1), found none")]
    NoDriver,
    /// A driver without a device, or not as many.
    #[error("expected GPU {ordinal}, found {count} GPUs")]
    NoDevice {
        /// The number asked for, from 0.
        ordinal: u32,
        /// GPUs there are.
        count: u32,
    },
    /// A driver that cannot load our cubins.
    #[error("expected a driver for CUDA {expected} or newer, found one for CUDA {found}")]
    DriverTooOld {
        /// Lowest version that loads cubins of the pinned NVRTC.
        expected: String,
        /// The driver's.
        found: String,
    },
    /// A chip that no class in `templates/arch/` covers.
    #[error("expected a GPU of compute capability {known}, found {product} with {found}")]
    UnknownChip {
        /// Known majors.
        known: String,
        /// Product name.
        product: String,
        /// Its capability.
        found: String,
    },
    /// A chip with less shared memory than its class.
    #[error("expected {expected} bytes of shared memory for a block (class {class}), found {found} on {product}")]
    SmallChip {
        /// Its name.
        product: String,
        /// The class of its compute capability.
        class: String,
        /// What the class has.
        expected: u32,
        /// What it has.
        found: u32,
    },
    /// The driver refused a call.
    #[error("{call} failed: {message} ({name})")]
    Call {
        /// Name of the function.
        call: &'static str,
        /// The driver's name of the result.
        name: String,
        /// The driver's sentence.
        message: String,
        /// Whether every later call in this context fails too.
        is_sticky: bool,
    },
    /// There is not enough device memory.
    #[error("expected {needed} bytes of device memory, found {free} free")]
    OutOfMemory {
        /// Bytes asked for.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
}

impl DeviceError {
    /// Whether the context is lost: only another process can go on.
    pub fn is_sticky(&self) -> bool {
        matches!(self, Self::Call { is_sticky: true, .. })
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoDriver => Some("without a GPU, `--gpu NAME` compiles and predicts for a GPU that is not here"),
            Self::NoDevice { .. } => Some("`nvidia-smi` lists the GPUs that the driver sees"),
            Self::DriverTooOld { .. } => Some("update the NVIDIA driver to 580 or newer"),
            Self::UnknownChip { .. } | Self::SmallChip { .. } => {
                Some("CONTRIBUTING.md says how an architecture is added")
            }
            Self::OutOfMemory { .. } => Some("close other programs on this GPU, or tune fewer tokens with `--m`"),
            Self::Call { .. } => None,
        }
    }
}

/// Checks one driver call: `driver!(cuInit(0))`. Only handles that this module has made, and pointers to values that
/// outlive the call, may be passed; what a kernel does with addresses is [`Kernel::launch`](super::Kernel::launch)'s.
macro_rules! driver {
    ($function:ident ( $($argument:expr),* $(,)? )) => {
        $crate::device::driver::check(
            stringify!($function),
            // SAFETY: `init` has found the driver, and the arguments are as the macro's comment demands.
            unsafe { cudarc::driver::sys::$function($($argument),*) },
        )
    };
}
pub(super) use driver;

/// Finds and starts the driver.
pub(super) fn init() -> Result<(), DeviceError> {
    static STARTED: OnceLock<Result<(), DeviceError>> = OnceLock::new();
    let start = || {
        // SAFETY: only asks the loader whether the library is there.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError::NoDriver);
        }
        match driver!(cuInit(0)) {
            Err(DeviceError::Call { name, .. }) if name == "CUDA_ERROR_NO_DEVICE" => {
                Err(DeviceError::NoDevice { ordinal: 0, count: 0 })
            }
            other => other,
        }
    };
    STARTED.get_or_init(start).clone()
}

/// Turns a driver's result into ours.
pub(super) fn check(call: &'static str, result: CUresult) -> Result<(), DeviceError> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let text = |get: unsafe fn(CUresult, *mut *const std::ffi::c_char) -> CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: the driver gives a static string, or leaves the pointer null.
        unsafe {
            get(result, &mut text);
            if text.is_null() { String::from("unknown") } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        }
    };
    let (name, message) = (text(sys::cuGetErrorName), text(sys::cuGetErrorString));
    Err(DeviceError::Call { call, is_sticky: STICKY.contains(&name.as_str()), name, message })
}

/// Errors after which a context is of no more use (CUDA driver API, description of each result).
const STICKY: [&str; 10] = [
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_gets_a_sentence_and_no_panic() {
        // On a machine with a GPU this starts the driver, which is as good.
        if let Err(error) = init() {
            assert!(matches!(error, DeviceError::NoDriver | DeviceError::NoDevice { .. }), "{error}");
            assert!(error.hint().is_some() && !error.is_sticky());
        }
    }
}
