//! A weight matrix in f32, and the product with it.

use crate::models::dsv4::weights;
use crate::quant::{TensorScale, WeightFormat};

use super::matrix::dot;
use super::{Matrix, ReferenceError};

/// `[n, k]`, with what the file says about its input.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    /// Native name without `.weight`.
    pub(super) name: String,
    /// Rows.
    pub(super) n: usize,
    /// Values in a row.
    pub(super) k: usize,
    /// Whether activations may be NVFP4 too.
    pub(super) is_nvfp4: bool,
    weights: Vec<f32>,
    input_scale: Option<f32>,
}

impl Linear {
    /// Dequantises `source`, which must be `[n, k]`.
    pub(super) fn new(source: &weights::Linear<'_>, [n, k]: [usize; 2]) -> Result<Self, ReferenceError> {
        if [source.n, source.k] != [n, k] {
            let (expected, found) = (vec![n, k], vec![source.n, source.k]);
            return Err(ReferenceError::Weight { name: source.name.clone(), expected, found });
        }
        Ok(Self {
            name: source.name.clone(),
            n,
            k,
            is_nvfp4: source.format == WeightFormat::Nvfp4,
            weights: source.dequantized(),
            input_scale: source.input_scale,
        })
    }

    /// The file's scale of its input.
    pub(super) fn checkpoint_scale(&self) -> Result<TensorScale, ReferenceError> {
        let linear = || self.name.clone();
        let scale = self.input_scale.ok_or_else(|| ReferenceError::NoInputScale { linear: linear() })?;
        TensorScale::multiplier(scale).map_err(|source| ReferenceError::InputScale { linear: linear(), source })
    }

    /// Row `idx`.
    pub(super) fn row(&self, idx: usize) -> &[f32] {
        &self.weights[idx * self.k..][..self.k]
    }

    /// `y[m, r] = sum_k w[r, k] * x[m, k]`.
    pub(super) fn apply(&self, x: &Matrix) -> Matrix {
        self.apply_grouped(x, 1)
    }

    /// The same with rows and input in `groups`: rows of group `g` meet `x[m, g * k..]`. `x` is `[m, groups * k]`.
    pub(super) fn apply_grouped(&self, x: &Matrix, groups: usize) -> Matrix {
        let rows_of_group = self.n / groups;
        let mut y = Matrix { rows: x.rows * self.n, columns: 1, values: vec![0.0; x.rows * self.n] };
        y.write_rows(x.rows * self.n * self.k, |idx, out| {
            let (token, row) = (idx / self.n, idx % self.n);
            out[0] = dot(self.row(row), &x.row(token)[row / rows_of_group * self.k..][..self.k]);
        });
        Matrix { rows: x.rows, columns: self.n, values: y.values }
    }
}

/// `vector` if it has `length` values.
pub(super) fn checked(name: String, vector: &[f32], length: usize) -> Result<Vec<f32>, ReferenceError> {
    if vector.len() != length {
        return Err(ReferenceError::Weight { name, expected: vec![length], found: vec![vector.len()] });
    }
    Ok(vector.to_vec())
}
