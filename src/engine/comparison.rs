//! How far two tensors that should be equal are apart.
//!
//! NaN and infinities take no part in the sums, or one of them would hide everything else: they are counted on each
//! side and the first is named, and a tensor with any is never called equal unless both sides have the same bits there.

use serde::Serialize;

/// What a comparison of tensor `a` with `b`, which is what it should be, found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Values of each.
    pub values: usize,
    /// Cosine of the angle between them; 1 if both are zero, 0 if one is.
    pub cosine: f64,
    /// L2 norm of the difference over that of `b`; infinite (`null` in JSON) if only `b` is zero.
    pub relative_l2: f64,
    /// Where they are furthest apart; `None` of empty tensors, and where no value is finite on both sides.
    pub worst: Option<Worst>,
    /// What is not finite in `a`.
    pub non_finite_a: NonFinite,
    /// What is not finite in `b`.
    pub non_finite_b: NonFinite,
    /// Places where one side is not finite and the other is not the same.
    pub non_finite_differences: usize,
}

/// The values that are furthest apart.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Worst {
    /// Index in each dimension.
    pub index: Vec<usize>,
    /// Value of `a`.
    pub a: f32,
    /// Value of `b`.
    pub b: f32,
}

/// NaN and infinities of one tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NonFinite {
    /// How many.
    pub count: usize,
    /// Index of the first in each dimension.
    pub first: Option<Vec<usize>>,
}

impl Comparison {
    /// Compares `a` with `b`, both of `shape`.
    pub fn of(a: &[f32], b: &[f32], shape: &[usize]) -> Self {
        let (mut dot, mut norm_a, mut norm_b, mut difference) = (0.0, 0.0, 0.0, 0.0);
        let mut worst: Option<(usize, f64)> = None;
        let mut non_finite_differences = 0;
        for (idx, (&a, &b)) in a.iter().zip(b).enumerate() {
            if !(a.is_finite() && b.is_finite()) {
                let is_same = a == b || a.is_nan() && b.is_nan();
                non_finite_differences += usize::from(!is_same);
                continue;
            }
            let (a, b) = (f64::from(a), f64::from(b));
            let apart = (a - b).abs();
            dot += a * b;
            norm_a += a * a;
            norm_b += b * b;
            difference += apart * apart;
            if worst.is_none_or(|(_, most)| apart > most) {
                worst = Some((idx, apart));
            }
        }
        Self {
            values: a.len(),
            cosine: cosine(dot, norm_a, norm_b),
            relative_l2: if difference == 0.0 { 0.0 } else { (difference / norm_b).sqrt() },
            worst: worst.map(|(idx, _)| Worst { index: index(idx, shape), a: a[idx], b: b[idx] }),
            non_finite_a: NonFinite::of(a, shape),
            non_finite_b: NonFinite::of(b, shape),
            non_finite_differences,
        }
    }

    /// Whether `a` is within a relative L2 error of `limit`, and has NaN and infinities only where `b` has the same.
    pub fn is_within(&self, limit: f64) -> bool {
        self.relative_l2 <= limit && self.non_finite_differences == 0
    }
}

impl NonFinite {
    fn of(values: &[f32], shape: &[usize]) -> Self {
        let places = || values.iter().enumerate().filter(|(_, value)| !value.is_finite()).map(|(idx, _)| idx);
        Self { count: places().count(), first: places().next().map(|idx| index(idx, shape)) }
    }
}

fn cosine(dot: f64, norm_a: f64, norm_b: f64) -> f64 {
    match (norm_a == 0.0, norm_b == 0.0) {
        (true, true) => 1.0,
        (false, false) => dot / (norm_a * norm_b).sqrt(),
        _ => 0.0,
    }
}

/// The index in each dimension of the value that stands at `idx` in row-major order.
fn index(mut idx: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (place, &size) in index.iter_mut().zip(shape).rev() {
        *place = idx % size;
        idx /= size;
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_value_is_named() {
        let found = Comparison::of(&[3.0, 4.0, 0.0, 0.0], &[3.0, 0.0, 0.0, 0.0], &[2, 2]);
        assert_eq!(found.worst, Some(Worst { index: vec![0, 1], a: 4.0, b: 0.0 }));
        assert!((found.relative_l2 - 4.0 / 3.0).abs() < 1e-12 && (found.cosine - 0.6).abs() < 1e-12);
        assert!(found.is_within(1.34) && !found.is_within(1.33));
    }

    #[test]
    fn zeros_have_a_cosine() {
        let found = |a: f32, b: f32| Comparison::of(&[a], &[b], &[1]);
        assert_eq!((found(0.0, 0.0).cosine, found(0.0, 0.0).relative_l2), (1.0, 0.0));
        assert_eq!((found(1.0, 0.0).cosine, found(1.0, 0.0).relative_l2), (0.0, f64::INFINITY));
    }

    #[test]
    fn what_is_not_finite_is_counted_and_never_equal() {
        let found = Comparison::of(&[1.0, f32::NAN, f32::INFINITY], &[1.0, 2.0, f32::INFINITY], &[3]);
        assert_eq!((found.relative_l2, found.non_finite_differences), (0.0, 1));
        assert_eq!(found.non_finite_a, NonFinite { count: 2, first: Some(vec![1]) });
        assert_eq!(found.non_finite_b, NonFinite { count: 1, first: Some(vec![2]) });
        assert!(!found.is_within(1.0));
    }
}
