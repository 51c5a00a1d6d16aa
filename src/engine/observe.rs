//! Who looks on while a step runs: checks, dumps, traces and timings are observers, not branches of the forward pass.

use super::EngineError;
use crate::device::{self, DevicePointer, Plain};
use crate::problem::Problem;
use crate::quant::bf16;

/// One op of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId {
    /// Its name, such as `attn.wq_b`.
    pub name: &'static str,
    /// Its layer; `None` before the first and behind the last.
    pub layer: Option<usize>,
}

impl std::fmt::Display for OpId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "layers.{layer}.{}", self.name),
            None => f.write_str(self.name),
        }
    }
}

/// Type of the elements of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// BF16.
    Bf16,
    /// f32.
    F32,
    /// int32.
    I32,
}

impl Element {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 | Self::I32 => 4,
        }
    }
}

/// What an op has written: the rows of the step's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// What it is, such as `q`.
    pub name: &'static str,
    /// Row 0.
    pub pointer: DevicePointer,
    /// Type of an element.
    pub element: Element,
    /// Rows; in a captured graph the most there can be.
    pub rows: u32,
    /// Elements of a row; rows follow one another without gaps.
    pub columns: u32,
}

impl View {
    /// Its values, once the op has ended.
    ///
    /// # Errors
    /// [`EngineError`] if the GPU is lost.
    ///
    /// # Panics
    /// If the type is not as wide as an element.
    pub fn download<T: Plain>(&self) -> Result<Vec<T>, EngineError> {
        assert_eq!(size_of::<T>(), self.element.bytes(), "{} is read as another type", self.name);
        let count = self.rows as usize * self.columns as usize;
        // SAFETY: a view is of a buffer of the model that launched the op, which outlives the observer's call.
        Ok(unsafe { device::read(self.pointer, count)? })
    }

    /// Its values as f32.
    ///
    /// # Errors
    /// [`EngineError`] if the GPU is lost.
    pub fn values(&self) -> Result<Vec<f32>, EngineError> {
        Ok(match self.element {
            Element::Bf16 => self.download::<u16>()?.into_iter().map(bf16::decode).collect(),
            Element::F32 => self.download()?,
            Element::I32 => self.download::<i32>()?.into_iter().map(|value| value as f32).collect(),
        })
    }
}

/// Looks on. Every function may be left as it is.
pub trait Observer {
    /// Whether `op` is to be launched at all: a timing may ask for some ops only.
    fn wants(&mut self, _: OpId) -> bool {
        true
    }

    /// `op` is about to launch the kernels of `problem`, with these packed weights.
    fn launches(&mut self, _: OpId, _: &Problem, _: &[DevicePointer]) {}

    /// `op` was launched and will write `outputs`. It has not ended yet.
    ///
    /// # Errors
    /// What stops the step.
    fn launched(&mut self, _: OpId, _: &[View]) -> Result<(), EngineError> {
        Ok(())
    }
}

/// Nobody looks.
pub struct Unobserved;

impl Observer for Unobserved {}
