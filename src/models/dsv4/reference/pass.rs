//! One pass over some tokens of a sequence: what every op needs, and the one way to a linear.

use std::borrow::Cow;

use crate::models::dsv4::Config;
use crate::quant::{ScalePolicy, TensorScale, quantize_activations};

use super::linear::Linear;
use super::rounding::round_to_bf16;
use super::{Activation, ActivationLog, LinearRounding, Matrix, Observer, Op, Options, ReferenceError, ScaleSource};

/// Consecutive tokens of one sequence on their way through the layers.
pub(super) struct Pass<'a> {
    pub(super) config: &'a Config,
    pub(super) options: &'a Options,
    /// Amaxes of warming up, once that has ended.
    pub(super) warm: Option<&'a ActivationLog>,
    pub(super) log: &'a mut ActivationLog,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) tokens: &'a [u32],
    /// Position of the first token in its sequence.
    pub(super) start: usize,
    /// The layer that is running.
    pub(super) layer: Option<usize>,
}

/// Some rows of a linear's input.
pub(super) struct Input<'a> {
    /// The rows.
    pub(super) rows: &'a Matrix,
    /// Row of each of them in the whole input; none if they are the whole.
    pub(super) row_idxs: Option<&'a [usize]>,
    /// Largest finite magnitude of the whole input.
    pub(super) amax: f32,
}

impl Pass<'_> {
    /// The op called `name` in the layer that is running.
    pub(super) fn op(&self, name: &'static str) -> Op {
        Op { layer: self.layer, name }
    }

    /// Shows the observer what an op gave.
    pub(super) fn observe(&mut self, name: &'static str, output: &Matrix) -> Result<(), ReferenceError> {
        let op = self.op(name);
        self.observer.output(op, self.start, output).map_err(ReferenceError::Observer)
    }

    /// `linear` of `x`, `[m, k]` to `[m, n]`.
    pub(super) fn linear(&mut self, name: &'static str, linear: &Linear, x: &Matrix) -> Result<Matrix, ReferenceError> {
        let y = self.multiply(name, linear, Input { rows: x, row_idxs: None, amax: x.finite_amax() })?;
        self.observe(name, &y)?;
        Ok(y)
    }

    /// [`Linear::apply_grouped`]: never quantised, and no linear to [`LinearRounding`].
    pub(super) fn grouped_linear(
        &mut self,
        name: &'static str,
        linear: &Linear,
        x: &Matrix,
        groups: usize,
    ) -> Result<Matrix, ReferenceError> {
        let y = linear.apply_grouped(x, groups);
        self.observe(name, &y)?;
        Ok(y)
    }

    /// `linear` of some rows, not shown to the observer.
    pub(super) fn multiply(
        &mut self,
        name: &'static str,
        linear: &Linear,
        input: Input<'_>,
    ) -> Result<Matrix, ReferenceError> {
        let x = self.rounded_input(input.rows);
        if linear.is_nvfp4 {
            self.log.saw(self.op(name), input.amax);
        }
        let y = match self.options.activation {
            Activation::A4(source) if linear.is_nvfp4 => {
                let policy = self.policy(name, linear, (source, input.amax))?;
                linear.apply(&self.quantised(name, linear, (policy, &x, input.row_idxs))?)
            }
            Activation::A4(_) | Activation::A16 => linear.apply(&x),
        };
        Ok(self.rounded(y))
    }

    /// Who decides the scale of this input, now.
    fn policy(
        &self,
        name: &'static str,
        linear: &Linear,
        (source, amax): (ScaleSource, f32),
    ) -> Result<ScalePolicy, ReferenceError> {
        Ok(match source {
            ScaleSource::PerToken => ScalePolicy::PerToken,
            // The amax may be that of more rows than these. One of zero leaves nothing to scale.
            ScaleSource::PerTensor => TensorScale::from_amax(amax).map_or(ScalePolicy::PerTensor, ScalePolicy::Fixed),
            ScaleSource::Checkpoint => ScalePolicy::Checkpoint(linear.checkpoint_scale()?),
            ScaleSource::Fixed(scale) => ScalePolicy::Fixed(scale),
            ScaleSource::Warmup => match self.warm {
                None => ScalePolicy::PerToken,
                Some(warm) => {
                    let op = self.op(name);
                    let entry = warm.entry(op).ok_or(ReferenceError::NotWarm { op })?;
                    ScalePolicy::warmup(entry.amax).map_err(|source| ReferenceError::Warmup { op, source })?
                }
            },
        })
    }

    /// `x` through NVFP4. NaN and infinities stay, and are counted.
    fn quantised(
        &mut self,
        name: &'static str,
        linear: &Linear,
        (policy, x, row_idxs): (ScalePolicy, &Matrix, Option<&[usize]>),
    ) -> Result<Matrix, ReferenceError> {
        let converted = quantize_activations(&x.values, x.rows, x.columns, policy)
            .map_err(|source| ReferenceError::Shape { linear: linear.name.clone(), source })?;
        let mut counters = converted.counters;
        counters.non_finite.first =
            counters.non_finite.first.map(|(row, column)| (row_idxs.map_or(row, |idxs| idxs[row]), column));
        self.log.converted(self.op(name), &counters);
        let mut values = converted.decode();
        for (value, &before) in values.iter_mut().zip(&x.values) {
            if !before.is_finite() {
                *value = before;
            }
        }
        Ok(Matrix { values, ..*x })
    }

    fn rounded_input<'x>(&self, x: &'x Matrix) -> Cow<'x, Matrix> {
        match self.options.linear_rounding {
            LinearRounding::Exact => Cow::Borrowed(x),
            LinearRounding::Bf16 => Cow::Owned(self.rounded(x.clone())),
        }
    }

    fn rounded(&self, mut y: Matrix) -> Matrix {
        if self.options.linear_rounding == LinearRounding::Bf16 {
            round_to_bf16(&mut y.values);
        }
        y
    }
}

/// `x * rsqrt(mean(x^2) + epsilon) * weight` of every row, in place.
pub(super) fn rms_norm(x: &mut Matrix, weight: &[f32], epsilon: f32) {
    for row in x.values.chunks_exact_mut(weight.len()) {
        let inverse = super::hyper::inverse_rms(row, epsilon);
        for (value, weight) in row.iter_mut().zip(weight) {
            *value = *value * inverse * weight;
        }
    }
}
