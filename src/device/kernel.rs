//! A kernel that the driver has loaded, and how it is launched.

use std::ffi::{CString, c_void};

use cudarc::driver::sys::{
    CUfunction, CUfunction_attribute, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue, CUlaunchConfig,
    CUmodule, CUstream,
};

use super::driver::driver;
use super::{Buffer, DeviceError, DevicePointer, Gpu};
use crate::jit::Cubin;

/// A loaded kernel. It keeps its module alive.
#[derive(Debug)]
pub struct Kernel {
    module: CUmodule,
    function: CUfunction,
    entry: String,
}

// SAFETY: handles of the driver, which may be used from any thread that has their context current.
unsafe impl Send for Kernel {}
// SAFETY: as above; nothing is changed after loading.
unsafe impl Sync for Kernel {}

/// How a launch is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, bytes.
    pub smem_bytes: u32,
    /// Whether it may start before the launch ahead of it in the stream has ended. The kernel waits by itself.
    pub is_dependent: bool,
}

/// One value of a kernel's parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// An address in device memory.
    Pointer(DevicePointer),
    /// A 64-bit number.
    Long(i64),
    /// A 32-bit number.
    Int(i32),
    /// An f32.
    Float(f32),
    /// An f64.
    Double(f64),
}

impl Value {
    /// The value's bits in a slot wide enough for any: a narrow one is the low half, for our hosts are little-endian.
    fn slot(self) -> u64 {
        match self {
            Self::Pointer(pointer) => pointer,
            Self::Long(long) => long as u64,
            Self::Int(int) => int as u32 as u64,
            Self::Float(float) => float.to_bits().into(),
            Self::Double(double) => double.to_bits(),
        }
    }
}

impl From<&Buffer> for Value {
    fn from(buffer: &Buffer) -> Self {
        Self::Pointer(buffer.pointer())
    }
}

impl Kernel {
    /// Loads `cubin` into the context of `gpu`, with as much dynamic shared memory as it will be launched with.
    ///
    /// # Errors
    /// [`DeviceError`] if the driver refuses the image: made for another chip, or by a newer CUDA.
    pub fn load(gpu: &Gpu, cubin: &Cubin, smem_bytes: u32) -> Result<Self, DeviceError> {
        gpu.make_current()?;
        let entry = CString::new(cubin.entry.as_str()).expect("an entry is the name of a folder of templates");
        let mut module = std::ptr::null_mut();
        driver!(cuModuleLoadData(&mut module, cubin.image.as_ptr().cast::<c_void>()))?;
        let mut kernel = Self { module, function: std::ptr::null_mut(), entry: cubin.entry.clone() };
        driver!(cuModuleGetFunction(&mut kernel.function, kernel.module, entry.as_ptr()))?;
        let limit = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        driver!(cuFuncSetAttribute(kernel.function, limit, smem_bytes as i32))?;
        Ok(kernel)
    }

    /// The entry point's name.
    pub fn entry(&self) -> &str {
        &self.entry
    }

    /// Sizes of the kernel's parameters, in bytes, in their order: what the host must pass.
    ///
    /// # Errors
    /// [`DeviceError`] if the context is lost.
    pub fn param_sizes(&self) -> Result<Vec<usize>, DeviceError> {
        let mut sizes = Vec::new();
        loop {
            let (mut offset, mut size) = (0, 0);
            match driver!(cuFuncGetParamInfo(self.function, sizes.len(), &mut offset, &mut size)) {
                Ok(()) => sizes.push(size),
                // One beyond the last is an invalid value.
                Err(DeviceError::Call { name, .. }) if name == "CUDA_ERROR_INVALID_VALUE" => return Ok(sizes),
                Err(error) => return Err(error),
            }
        }
    }

    /// Launches the kernel on `stream`, a raw CUstream of its context.
    ///
    /// # Safety
    /// `params` points to one value for each parameter of the kernel, of its type, and every device address among them
    /// is valid for what the kernel does with it until the launch has ended.
    ///
    /// # Errors
    /// [`DeviceError`] if the driver refuses the launch, or an earlier one has failed.
    pub unsafe fn launch(
        &self,
        geometry: &Geometry,
        params: &mut [*mut c_void],
        stream: CUstream,
    ) -> Result<(), DeviceError> {
        let mut attributes = [CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        }];
        let [x, y, z] = geometry.grid;
        let config = CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: geometry.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: geometry.smem_bytes,
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: u32::from(geometry.is_dependent),
        };
        driver!(cuLaunchKernelEx(&config, self.function, params.as_mut_ptr(), std::ptr::null_mut()))
    }

    /// As [`Kernel::launch`], with plain values.
    ///
    /// # Safety
    /// As [`Kernel::launch`]; `values` are the kernel's parameters in its order.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    ///
    /// # Panics
    /// If there are more values than any of our kernels has parameters.
    pub unsafe fn launch_values(
        &self,
        geometry: &Geometry,
        values: &[Value],
        stream: CUstream,
    ) -> Result<(), DeviceError> {
        assert!(values.len() <= MOST_VALUES, "{} has {} parameters, more than {MOST_VALUES}", self.entry, values.len());
        let mut slots = [0u64; MOST_VALUES];
        let mut pointers = [std::ptr::null_mut(); MOST_VALUES];
        for (idx, value) in values.iter().enumerate() {
            slots[idx] = value.slot();
            pointers[idx] = (&raw mut slots[idx]).cast();
        }
        // SAFETY: the caller's, and each pointer leads to a slot that outlives the call.
        unsafe { self.launch(geometry, &mut pointers[..values.len()], stream) }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // After a sticky error the driver unloads the module with the context.
        let _ = driver!(cuModuleUnload(self.module));
    }
}

/// More parameters than any of our kernels has.
const MOST_VALUES: usize = 40;
