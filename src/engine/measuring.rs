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

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// First layers that ran: those of the cell, or as many of them as fit after all.
    pub layers: u32,
    /// Bytes of their packed weights.
    pub weight_bytes: u64,
    /// Prefill and decode.
    pub times: CellTimes,
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
    fn measure(&mut self, cell: &Cell) -> Result<Measured, Self::Error>;
}
