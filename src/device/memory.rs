//! Device memory that is freed when it goes out of scope, and nothing cleverer.

use std::ffi::c_void;

use super::driver::driver;
use super::{DeviceError, Gpu, Stream};

/// An address in device memory, as foreign code hands it over.
pub type DevicePointer = u64;

/// Bytes in device memory.
pub struct Buffer {
    pointer: DevicePointer,
    bytes: usize,
}

// SAFETY: an address; the driver orders accesses by streams, not by threads.
unsafe impl Send for Buffer {}
// SAFETY: as above; nothing here writes through a shared reference but by the caller's own launches and copies.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `bytes` of memory, not initialised. Zero bytes are no memory, with a null address.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Self, DeviceError> {
        let mut pointer = 0;
        if bytes > 0 {
            driver!(cuMemAlloc_v2(&mut pointer, bytes)).map_err(|error| match error {
                DeviceError::Call { name, .. } if name == "CUDA_ERROR_OUT_OF_MEMORY" => {
                    DeviceError::OutOfMemory { needed: bytes as u64, free: gpu.memory().map_or(0, |(free, _)| free) }
                }
                other => other,
            })?;
        }
        Ok(Self { pointer, bytes })
    }

    /// `bytes` of zeros.
    ///
    /// # Errors
    /// As [`Buffer::new`].
    pub fn zeros(gpu: &Gpu, bytes: usize) -> Result<Self, DeviceError> {
        let buffer = Self::new(gpu, bytes)?;
        buffer.set_bytes(0)?;
        Ok(buffer)
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// As [`Buffer::new`].
    pub fn of<T: Plain>(gpu: &Gpu, values: &[T]) -> Result<Self, DeviceError> {
        let buffer = Self::new(gpu, size_of_val(values))?;
        buffer.upload(values)?;
        Ok(buffer)
    }

    /// Its address.
    pub fn pointer(&self) -> DevicePointer {
        self.pointer
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes `values` to the beginning, and waits.
    ///
    /// # Errors
    /// [`DeviceError`] if the context is lost.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn upload<T: Plain>(&self, values: &[T]) -> Result<(), DeviceError> {
        self.upload_at(0, values)
    }

    /// Writes `values` from byte `offset` on, and waits.
    ///
    /// # Errors
    /// [`DeviceError`] if the context is lost.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn upload_at<T: Plain>(&self, offset: usize, values: &[T]) -> Result<(), DeviceError> {
        let bytes = size_of_val(values);
        assert!(offset + bytes <= self.bytes, "{bytes} bytes at {offset} do not fit in {}", self.bytes);
        if values.is_empty() {
            return Ok(());
        }
        driver!(cuMemcpyHtoD_v2(self.pointer + offset as u64, values.as_ptr().cast::<c_void>(), bytes))?;
        // From pageable memory the copy may return before the bytes have landed, and our streams do not wait for it.
        driver!(cuCtxSynchronize())
    }

    /// Reads the first `count` values, after everything that was launched before.
    ///
    /// # Errors
    /// [`DeviceError`] if the context is lost.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn download<T: Plain>(&self, count: usize) -> Result<Vec<T>, DeviceError> {
        self.download_at(0, count)
    }

    /// Reads `count` values from byte `offset` on, after everything that was launched before.
    ///
    /// # Errors
    /// [`DeviceError`] if the context is lost.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn download_at<T: Plain>(&self, offset: usize, count: usize) -> Result<Vec<T>, DeviceError> {
        let bytes = count * size_of::<T>();
        assert!(offset + bytes <= self.bytes, "{bytes} bytes at {offset} are more than {} bytes", self.bytes);
        let mut values = vec![T::default(); count];
        if count > 0 {
            driver!(cuCtxSynchronize())?;
            driver!(cuMemcpyDtoH_v2(values.as_mut_ptr().cast::<c_void>(), self.pointer + offset as u64, bytes))?;
        }
        Ok(values)
    }

    /// Sets every byte, and waits.
    ///
    /// # Errors
    /// [`DeviceError`] if the context is lost.
    pub fn set_bytes(&self, byte: u8) -> Result<(), DeviceError> {
        if self.bytes > 0 {
            driver!(cuMemsetD8_v2(self.pointer, byte, self.bytes))?;
            driver!(cuCtxSynchronize())?;
        }
        Ok(())
    }

    /// Copies the first `bytes` of `from` here, on `stream`.
    ///
    /// # Errors
    /// [`DeviceError`] if the context is lost.
    ///
    /// # Panics
    /// If either is shorter.
    pub fn copy_from(&self, from: &Buffer, bytes: usize, stream: &Stream) -> Result<(), DeviceError> {
        assert!(bytes <= self.bytes && bytes <= from.bytes, "{bytes} bytes are more than one of the buffers has");
        if bytes == 0 {
            return Ok(());
        }
        driver!(cuMemcpyDtoDAsync_v2(self.pointer, from.pointer, bytes, stream.raw()))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // After a sticky error the driver frees the memory with the context.
            let _ = driver!(cuMemFree_v2(self.pointer));
        }
    }
}

/// Reads `count` values at `pointer`, after everything that was launched before: for those who look on and own nothing.
///
/// # Safety
/// `pointer` is device memory of the current context, with as many values.
///
/// # Errors
/// [`DeviceError`] if the context is lost.
pub unsafe fn read<T: Plain>(pointer: DevicePointer, count: usize) -> Result<Vec<T>, DeviceError> {
    let mut values = vec![T::default(); count];
    if count > 0 {
        driver!(cuCtxSynchronize())?;
        driver!(cuMemcpyDtoH_v2(values.as_mut_ptr().cast::<c_void>(), pointer, size_of_val(&values[..])))?;
    }
    Ok(values)
}

/// Numbers that may be copied bit by bit.
pub trait Plain: Copy + Default {}

impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for i32 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for f32 {}
impl Plain for f64 {}
