//! What a bench asks of a model on a GPU.

use crate::report::CellTimes;

/// What is measured: a context, a batch, and how much of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Tokens of each sequence.
    pub context: u32,
    /// Sequences of a decode step.
    pub batch: u32,
    /// First layers of the model that run.
    pub layers: u32,
}

/// Times steps of a model. Weights of the layers that a cell does not run may stay where they are.
pub trait StepMeter {
    /// What can go wrong.
    type Error: std::error::Error;

    /// Driver and NVRTC, for the report.
    fn toolchain(&self) -> [String; 2];

    /// Times the prefill of one sequence and a decode step of all of them.
    ///
    /// # Errors
    /// Too little memory for the cell; what went wrong on the device.
    fn measure(&mut self, cell: &Cell) -> Result<CellTimes, Self::Error>;
}
