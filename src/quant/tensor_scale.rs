//! The f32 scale of a whole tensor, and the two conventions in which checkpoints write it.
//!
//! ModelOpt writes a multiplier (`weight_scale_2`, `input_scale`: amax / 2688), compressed-tensors its inverse, a
//! divisor (`weight_global_scale`, `input_global_scale`: 2688 / amax). Nothing in the number says which it is, so the
//! reader says it by the constructor. A [`TensorScale`] can be divided by without giving infinity or NaN; what cannot
//! is refused here: a missing scale that was read as 0 has made whole models answer NaN.

use super::nvfp4;

/// A multiplier that is finite, above zero and no subnormal f32.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct TensorScale(f32);

impl TensorScale {
    /// A scale in ModelOpt's convention: values are multiplied by it.
    ///
    /// # Errors
    /// [`TensorScaleError`] if it is zero, negative, subnormal, infinite or NaN.
    pub fn multiplier(scale: f32) -> Result<Self, TensorScaleError> {
        use std::num::FpCategory::{Infinite, Nan, Normal, Subnormal, Zero};
        match scale.classify() {
            Nan => Err(TensorScaleError::Nan),
            Zero => Err(TensorScaleError::Zero),
            _ if scale < 0.0 => Err(TensorScaleError::Negative { scale }),
            Infinite => Err(TensorScaleError::Infinite),
            Subnormal => Err(TensorScaleError::Subnormal { scale }),
            Normal => Ok(Self(scale)),
        }
    }

    /// A scale in the convention of compressed-tensors: values are divided by it.
    ///
    /// # Errors
    /// [`TensorScaleError`] if it, or its reciprocal, is no usable multiplier.
    pub fn divisor(scale: f32) -> Result<Self, TensorScaleError> {
        Self::multiplier(scale)?;
        Self::multiplier(1.0 / scale)
    }

    /// The scale under which `amax` is the largest NVFP4 value: amax / 2688.
    ///
    /// # Errors
    /// [`TensorScaleError`] if the quotient is no usable multiplier.
    pub fn from_amax(amax: f32) -> Result<Self, TensorScaleError> {
        Self::multiplier(amax / nvfp4::RANGE)
    }

    /// What values are multiplied by.
    pub fn value(self) -> f32 {
        self.0
    }
}

impl std::fmt::Display for TensorScale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A number that is no scale of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum TensorScaleError {
    /// Infinity, or the reciprocal of a subnormal.
    #[error("expected a finite tensor scale, found infinity")]
    Infinite,
    /// NaN.
    #[error("expected a finite tensor scale, found NaN")]
    Nan,
    /// Scales have no sign.
    #[error("expected a tensor scale above zero, found {scale:e}")]
    Negative {
        /// What was found.
        scale: f32,
    },
    /// Its reciprocal may be infinite.
    #[error("expected a tensor scale of at least {:e}, found {scale:e}, a subnormal", f32::MIN_POSITIVE)]
    Subnormal {
        /// What was found.
        scale: f32,
    },
    /// What a missing scale is often read as.
    #[error("expected a tensor scale above zero, found 0")]
    Zero,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unusable_scale_has_its_sentence() {
        for (scale, sentence) in [
            (0.0, "expected a tensor scale above zero, found 0"),
            (-0.0, "expected a tensor scale above zero, found 0"),
            (1e-40, "expected a tensor scale of at least 1.1754944e-38, found 1e-40, a subnormal"),
            (f32::INFINITY, "expected a finite tensor scale, found infinity"),
            (f32::NAN, "expected a finite tensor scale, found NaN"),
            (-0.5, "expected a tensor scale above zero, found -5e-1"),
            (f32::NEG_INFINITY, "expected a tensor scale above zero, found -inf"),
            (-1e-40, "expected a tensor scale above zero, found -1e-40"),
        ] {
            assert_eq!(TensorScale::multiplier(scale).unwrap_err().to_string(), sentence);
            assert_eq!(TensorScale::divisor(scale).unwrap_err().to_string(), sentence);
        }
        assert_eq!(TensorScale::multiplier(f32::MIN_POSITIVE).unwrap().value(), f32::MIN_POSITIVE);
    }

    #[test]
    fn the_conventions_are_inverse() {
        assert_eq!(TensorScale::multiplier(0.25), TensorScale::divisor(4.0));
        assert_eq!(TensorScale::from_amax(2688.0), TensorScale::divisor(1.0));
        // The reciprocal of the largest f32 is subnormal.
        assert!(matches!(TensorScale::divisor(f32::MAX), Err(TensorScaleError::Subnormal { .. })));
        assert_eq!(TensorScale::from_amax(0.0), Err(TensorScaleError::Zero));
        assert_eq!(TensorScale::from_amax(f32::INFINITY), Err(TensorScaleError::Infinite));
    }
}
