//! Rows of f32: the only tensor that the reference knows.

use std::num::NonZero;

/// `[rows, columns]`, row-major.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matrix {
    /// Rows.
    pub rows: usize,
    /// Values in a row.
    pub columns: usize,
    /// `rows * columns` values.
    pub values: Vec<f32>,
}

impl Matrix {
    /// All values zero.
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: vec![0.0; rows * columns] }
    }

    /// Row `idx`.
    pub fn row(&self, idx: usize) -> &[f32] {
        &self.values[idx * self.columns..][..self.columns]
    }

    /// Row `idx`, to be written.
    pub fn row_mut(&mut self, idx: usize) -> &mut [f32] {
        &mut self.values[idx * self.columns..][..self.columns]
    }

    /// The rows called `idxs`, in that order.
    pub(super) fn gather(&self, idxs: &[usize]) -> Self {
        let values = idxs.iter().flat_map(|&idx| self.row(idx)).copied().collect();
        Self { rows: idxs.len(), columns: self.columns, values }
    }

    /// Largest magnitude of a finite value; 0 if there is none.
    pub fn finite_amax(&self) -> f32 {
        self.values.iter().filter(|value| value.is_finite()).fold(0.0, |amax, value| amax.max(value.abs()))
    }

    /// Writes every row by `write(row_idx, row)`, on all cores if it takes `work` multiplications in all.
    ///
    /// A row is written by one call, so the result does not depend on the number of cores.
    pub(super) fn write_rows(&mut self, work: usize, write: impl Fn(usize, &mut [f32]) + Sync) {
        if self.values.is_empty() {
            return;
        }
        let rows_each = self.rows.div_ceil(cores_for(work));
        let write_part = |first: usize, part: &mut [f32]| {
            part.chunks_exact_mut(self.columns).enumerate().for_each(|(idx, row)| write(first + idx, row));
        };
        std::thread::scope(|scope| {
            let mut parts = self.values.chunks_mut(rows_each * self.columns).enumerate();
            let own = parts.next();
            for (part_idx, part) in parts {
                scope.spawn(move || write_part(part_idx * rows_each, part));
            }
            if let Some((_, part)) = own {
                write_part(0, part);
            }
        });
    }
}

/// Sum of the products, rounded once.
///
/// In f64, because a quantiser behind it turns one ulp beside a tie into a whole step: the fewer are ours, the longer
/// two implementations agree. Eight partial sums, because the compiler may not reorder additions.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f64; 8];
    let (a_blocks, a_rest) = a.as_chunks::<8>();
    let (b_blocks, b_rest) = b.as_chunks::<8>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..8 {
            sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    (sums.iter().sum::<f64>() + rest) as f32
}

/// `sum += factor * row`.
pub(super) fn add_scaled(sum: &mut [f32], factor: f32, row: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(row) {
        *sum += factor * value;
    }
}

/// How many threads are worth starting.
fn cores_for(work: usize) -> usize {
    if work < WORK_OF_A_THREAD {
        return 1;
    }
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Multiplications that take about a millisecond: starting a thread takes some tens of microseconds.
const WORK_OF_A_THREAD: usize = 1 << 22;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dot_product_takes_every_element() {
        for length in [0, 1, 15, 16, 17, 64, 100] {
            let values: Vec<f32> = (0..length).map(|idx| idx as f32).collect();
            let expected: f32 = values.iter().map(|value| value * value).sum();
            assert_eq!(dot(&values, &values), expected, "{length} elements");
        }
    }

    #[test]
    fn rows_are_the_same_on_one_core_and_on_all() {
        for rows in [1, 2, 7] {
            let mut results = [0, usize::MAX].map(|work| {
                let mut matrix = Matrix::zeros(rows, 3);
                matrix.write_rows(work, |row_idx, row| row.fill(row_idx as f32));
                matrix
            });
            let last = results[1].row_mut(rows - 1).to_vec();
            assert_eq!(last, vec![(rows - 1) as f32; 3]);
            assert_eq!(results[0], results[1]);
        }
    }
}
