//! Who looks on while a step runs: checks, dumps, traces and timings are observers, not branches of the forward pass.

use super::EngineError;
use crate::device::DevicePointer;
use crate::problem::Problem;

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

/// Looks on. Every function may be left as it is.
pub trait Observer {
    /// Whether `op` is to be launched at all: a timing may ask for some ops only.
    fn wants(&mut self, _: OpId) -> bool {
        true
    }

    /// `op` is about to launch the kernels of `problem`, with these packed weights.
    fn launches(&mut self, _: OpId, _: &Problem, _: DevicePointer) {}

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
