//! Everything that needs a live GPU: memory, kernels, launches, graphs, timers, clocks.
//!
//! A [`Gpu`] is a value, there are no globals but the driver itself. Calls of the driver stand in this module; what is
//! launched and captured through it elsewhere says why that is sound.

mod clocks;
mod driver;
mod graph;
mod kernel;
mod memory;
mod tensor_map;

pub use clocks::{ClockSample, Clocks};
pub use driver::DeviceError;
pub use graph::{CapturePoint, Event, Graph, Stream};
pub use kernel::{Geometry, Kernel, Value};
pub use memory::{Buffer, DevicePointer, Plain, read};
pub use tensor_map::{TensorMap, TensorShape};

use std::ffi::{CStr, c_char, c_int};

use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute};
use driver::driver;

use crate::arch::{ArchSpec, GpuIdentity, GpuSpec};

/// A GPU with a context. Dropping it gives the context back.
pub struct Gpu {
    ordinal: u32,
    device: CUdevice,
    context: CUcontext,
    is_retained: bool,
    spec: GpuSpec,
    driver_version: String,
}

// SAFETY: the context is a handle that any thread may make current; the driver locks where it must.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// How many GPUs the driver sees; 0 without a driver.
    pub fn count() -> u32 {
        let mut count: c_int = 0;
        match driver::init().and_then(|()| driver!(cuDeviceGetCount(&mut count))) {
            Ok(()) => count as u32,
            Err(_) => 0,
        }
    }

    /// Opens GPU `ordinal` in its primary context, the one that the CUDA runtime and most libraries use.
    ///
    /// # Errors
    /// [`DeviceError`]: no driver, no such GPU, a driver or chip that we cannot serve.
    pub fn open(ordinal: u32) -> Result<Self, DeviceError> {
        driver::init()?;
        let count = Self::count();
        if ordinal >= count {
            return Err(DeviceError::NoDevice { ordinal, count });
        }
        let (mut device, mut context) = (0, std::ptr::null_mut());
        driver!(cuDeviceGet(&mut device, ordinal as c_int))?;
        driver!(cuDevicePrimaryCtxRetain(&mut context, device))?;
        let gpu = Self::describe(ordinal, device, context, true)?;
        gpu.make_current()?;
        Ok(gpu)
    }

    /// Uses the context that the caller has made current, whoever made it.
    ///
    /// # Errors
    /// [`DeviceError`] if no context is current, or the chip cannot be served.
    pub fn of_current_context() -> Result<Self, DeviceError> {
        driver::init()?;
        let (mut device, mut context) = (0, std::ptr::null_mut());
        driver!(cuCtxGetCurrent(&mut context))?;
        driver!(cuCtxGetDevice(&mut device))?;
        Self::describe(device as u32, device, context, false)
    }

    fn describe(ordinal: u32, device: CUdevice, context: CUcontext, is_retained: bool) -> Result<Self, DeviceError> {
        let (mut version, mut memory_bytes) = (0, 0);
        driver!(cuDriverGetVersion(&mut version))?;
        if version < LOWEST_DRIVER {
            let text = |version: c_int| format!("{}.{}", version / 1000, version % 1000 / 10);
            return Err(DeviceError::DriverTooOld { expected: text(LOWEST_DRIVER), found: text(version) });
        }
        driver!(cuDeviceTotalMem_v2(&mut memory_bytes, device))?;
        let facts = Facts { device };
        let product = facts.product()?;
        let clocks = Clocks::of(&product, ordinal);
        let identity = GpuIdentity {
            sm_count: facts.number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            l2_bytes: facts.number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.into(),
            memory_bus_bits: facts.number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
            power_limit_watts: clocks.as_ref().map_or(0, Clocks::default_power_limit_watts),
            is_mig: clocks.as_ref().is_some_and(Clocks::is_mig),
            product,
        };
        let spec = facts.spec(identity, memory_bytes as u64)?;
        let driver_version = clocks.and_then(|clocks| clocks.driver_version()).unwrap_or_else(|| version.to_string());
        Ok(Self { ordinal, device, context, is_retained, spec, driver_version })
    }

    /// Its number, from 0.
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// What is known of it. Rates are those of `gpu.toml` where the product has one.
    pub fn spec(&self) -> &GpuSpec {
        &self.spec
    }

    /// Version of the driver, such as `580.159.04`.
    pub fn driver_version(&self) -> &str {
        &self.driver_version
    }

    /// Makes the context current in this thread. Every thread that uses the GPU calls it once.
    ///
    /// # Errors
    /// [`DeviceError`] if the context is lost.
    pub fn make_current(&self) -> Result<(), DeviceError> {
        driver!(cuCtxSetCurrent(self.context))
    }

    /// Bytes of device memory that are free, and all there are.
    ///
    /// # Errors
    /// [`DeviceError`] if the context is lost.
    pub fn memory(&self) -> Result<(u64, u64), DeviceError> {
        let (mut free, mut total) = (0, 0);
        driver!(cuMemGetInfo_v2(&mut free, &mut total))?;
        Ok((free as u64, total as u64))
    }

    /// Waits for everything in the context.
    ///
    /// # Errors
    /// [`DeviceError`]: what went wrong on the GPU since the last wait, often sticky.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        driver!(cuCtxSynchronize())
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.is_retained {
            // A context that is lost cannot be given back; there is nothing to do about it here.
            let _ = driver!(cuDevicePrimaryCtxRelease_v2(self.device));
        }
    }
}

/// Asks the driver about one device.
struct Facts {
    device: CUdevice,
}

impl Facts {
    fn number(&self, attribute: CUdevice_attribute) -> Result<u32, DeviceError> {
        let mut value: c_int = 0;
        driver!(cuDeviceGetAttribute(&mut value, attribute, self.device))?;
        Ok(value.max(0) as u32)
    }

    fn product(&self) -> Result<String, DeviceError> {
        let mut name = [0 as c_char; 256];
        driver!(cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, self.device))?;
        // SAFETY: the driver has written a string with its NUL into the buffer.
        Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
    }

    /// The product's `gpu.toml` with this device's own identity; for an unknown product, what the driver says.
    fn spec(&self, identity: GpuIdentity, memory_bytes: u64) -> Result<GpuSpec, DeviceError> {
        let major = self.number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = self.number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if let Some(known) = GpuSpec::of_product(&identity.product) {
            return Ok(GpuSpec { identity, memory_bytes, ..known.clone() });
        }
        let Some(arch) = ArchSpec::of_compute_capability(major) else {
            let known: Vec<String> = ArchSpec::all().iter().map(|arch| format!("{}.x", arch.compute_major)).collect();
            let product = identity.product;
            return Err(DeviceError::UnknownChip {
                known: known.join(", "),
                product,
                found: format!("{major}.{minor}"),
            });
        };
        // Rules count with the limits of the class: a chip of the same major with less would get tiles that cannot run.
        let smem_bytes = self.number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        if smem_bytes < arch.smem_per_block {
            let (product, expected) = (identity.product, arch.smem_per_block);
            return Err(DeviceError::SmallChip { product, class: arch.name.clone(), expected, found: smem_bytes });
        }
        let wanted = format!("sm_{major}{minor}");
        let of_this_chip = |target: &&String| target.trim_end_matches('a') == wanted;
        let target = arch.targets.iter().find(of_this_chip).unwrap_or(&arch.targets[0]).clone();
        let clock_mhz = self.number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)? / 1000;
        let memory_khz = self.number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
        // Two transfers a clock; nine tenths of the pins' rate and 85 % of the tensor cores' are what kernels see.
        let read_gbs = 0.9 * 2.0 * f64::from(memory_khz) * f64::from(identity.memory_bus_bits) / 8e6;
        let flops_per_clock = f64::from(arch.bf16_flops_per_clock_per_sm) * f64::from(identity.sm_count);
        Ok(GpuSpec {
            name: identity.product.to_lowercase().replace(' ', "-"),
            aliases: Vec::new(),
            arch,
            target,
            memory_bytes,
            clock_mhz,
            read_gbs,
            chain_gbs: read_gbs,
            bf16_tflops: 0.85 * flops_per_clock * f64::from(clock_mhz) / 1e6,
            fp8_tflops: arch
                .fp8_flops_per_clock_per_sm
                .map(|flops| 0.85 * f64::from(flops) * f64::from(identity.sm_count) * f64::from(clock_mhz) / 1e6),
            identity,
        })
    }
}

/// CUDA 13.0: cubins of NVRTC 13.x load on every driver of major version 13.
const LOWEST_DRIVER: c_int = 13000;
