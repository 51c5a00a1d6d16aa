//! What must hold before a matrix is read: lengths, whole blocks, finite weights.

use super::WeightFormat;

/// A slice that does not hold what its matrix needs, or a matrix that leaves a block of scales in part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// A slice of the wrong length.
    #[error("expected {expected} {what} for {rows} rows of k = {k}, found {found}")]
    Length {
        /// What the slice holds.
        what: &'static str,
        /// Rows of the matrix.
        rows: usize,
        /// Values in a row.
        k: usize,
        /// Elements that the matrix needs.
        expected: usize,
        /// Elements that there are.
        found: usize,
    },
    /// A `k` that leaves a block of scales in part.
    #[error("{format} holds k in multiples of {multiple}, found k = {k}")]
    K {
        /// The format asked for.
        format: WeightFormat,
        /// What it needs.
        multiple: usize,
        /// What was asked.
        k: usize,
    },
}

/// Weights that cannot be quantised.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum QuantizeError {
    /// The slice does not fit the shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A weight that no scale can hold.
    #[error("expected finite weights, found {value} in row {row}, k = {k}")]
    NonFinite {
        /// Row of the weight.
        row: usize,
        /// Its place along the row.
        k: usize,
        /// NaN or an infinity.
        value: f32,
    },
}

/// The shape that a slice is checked against.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) rows: usize,
    pub(super) k: usize,
}

impl Shape {
    /// Refuses a `k` that `format` cannot hold in whole blocks.
    pub(super) fn whole_blocks(self, format: WeightFormat) -> Result<Self, ShapeError> {
        let multiple = format.k_multiple() as usize;
        if self.k.is_multiple_of(multiple) {
            return Ok(self);
        }
        Err(ShapeError::K { format, multiple, k: self.k })
    }

    /// Refuses a slice of `found` elements where the matrix needs `expected`.
    pub(super) fn holds(self, what: &'static str, expected: usize, found: usize) -> Result<Self, ShapeError> {
        if expected == found {
            return Ok(self);
        }
        Err(ShapeError::Length { what, rows: self.rows, k: self.k, expected, found })
    }

    /// Refuses values that are not `[rows, k]`, and the first one that is not finite.
    pub(super) fn finite_weights(self, values: &[f32]) -> Result<Self, QuantizeError> {
        self.holds("values", self.rows * self.k, values.len())?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(self),
            Some(idx) => Err(QuantizeError::NonFinite { row: idx / self.k, k: idx % self.k, value: values[idx] }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_names_what_was_found() {
        let shape = Shape { rows: 2, k: 24 };
        assert_eq!(
            shape.whole_blocks(WeightFormat::Nvfp4).err().unwrap().to_string(),
            "nvfp4 holds k in multiples of 16, found k = 24"
        );
        assert_eq!(
            shape.holds("bytes of codes", 24, 23).err().unwrap().to_string(),
            "expected 24 bytes of codes for 2 rows of k = 24, found 23"
        );
        let mut values = vec![0.0; 48];
        values[29] = f32::NEG_INFINITY;
        assert_eq!(
            shape.finite_weights(&values).err().unwrap().to_string(),
            "expected finite weights, found -inf in row 1, k = 5"
        );
        assert!(shape.finite_weights(&values[..47]).is_err());
    }
}
