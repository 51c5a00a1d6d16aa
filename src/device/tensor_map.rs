//! Tensor maps: what the copy engine must know to bring boxes of a tensor.

use std::ffi::c_void;

use cudarc::driver::sys::{
    CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave, CUtensorMapL2promotion,
    CUtensorMapSwizzle,
};

use super::driver::driver;
use super::{DeviceError, DevicePointer};

/// A tensor map, as a kernel takes it by value.
pub type TensorMap = CUtensorMap;

/// `[k, row, group]`, read in boxes of 128 bytes by `box_rows` rows, swizzled by 128 bytes, zeros outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorShape {
    /// Bytes of an element: 2, BF16, or 1.
    pub element_bytes: u64,
    /// Extent of k.
    pub k: u64,
    /// Rows.
    pub rows: u64,
    /// Groups that stand side by side, `k` elements apart.
    pub groups: u64,
    /// Elements between rows, 16 bytes or a multiple.
    pub row_stride: u64,
    /// Rows of a box, at most 256.
    pub box_rows: u32,
}

impl TensorShape {
    /// The map of this shape at `pointer`, which is on 16 bytes.
    ///
    /// # Errors
    /// [`DeviceError`] if the driver refuses a stride or an extent.
    pub fn encode(&self, pointer: DevicePointer) -> Result<TensorMap, DeviceError> {
        let mut map = TensorMap { opaque: [0; 16] };
        let extents = [self.k, self.rows.max(1), self.groups];
        let strides = [self.row_stride * self.element_bytes, self.k * self.element_bytes];
        let boxes = [128 / self.element_bytes as u32, self.box_rows, 1];
        let element = match self.element_bytes {
            1 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            _ => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let steps = [1, 1, 1];
        driver!(cuTensorMapEncodeTiled(
            &mut map,
            element,
            3,
            pointer as *mut c_void,
            extents.as_ptr(),
            strides.as_ptr(),
            boxes.as_ptr(),
            steps.as_ptr(),
            CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ))?;
        Ok(map)
    }
}
