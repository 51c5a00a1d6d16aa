//! Hyper-connections: several streams into one row, and a row back into them (2.1, 2.2, 2.12).

use crate::models::dsv4::{Config, weights};
use crate::quant::bf16;

use super::linear::checked;
use super::matrix::{add_scaled, dot};
use super::rounding::round_to_bf16;
use super::{LinearRounding, Matrix, ReferenceError};

/// What mixes the streams around a sublayer, or behind the last layer.
#[derive(Clone, Debug)]
pub(super) struct HyperConnection {
    /// `[rows, streams * hidden]`.
    function: Vec<f32>,
    base: Vec<f32>,
    scale: Vec<f32>,
    streams: usize,
    sinkhorn_rounds: u32,
    hc_epsilon: f32,
    norm_epsilon: f32,
}

/// How one token's streams are mixed around a sublayer.
#[derive(Clone, Debug)]
pub(super) struct Mix {
    /// Weight of each stream in the sublayer's input.
    pub(super) pre: Vec<f32>,
    /// Weight of the sublayer's output in each stream.
    pub(super) post: Vec<f32>,
    /// `C[j][k]`: how much of stream `j` goes into stream `k`.
    pub(super) carry: Vec<Vec<f32>>,
}

impl HyperConnection {
    /// Of a sublayer, with three parts, or of the head, which has the first alone.
    pub(super) fn new(
        name: &str,
        source: &weights::HyperConnection,
        config: &Config,
        parts: usize,
    ) -> Result<Self, ReferenceError> {
        let streams = config.streams as usize;
        let rows = if parts == 1 { streams } else { (2 + streams) * streams };
        let length = rows * streams * config.hidden as usize;
        Ok(Self {
            function: checked(format!("{name}_fn"), &source.function, length)?,
            base: checked(format!("{name}_base"), &source.base, rows)?,
            scale: checked(format!("{name}_scale"), &source.scale, parts)?,
            streams,
            sinkhorn_rounds: config.sinkhorn_rounds,
            hc_epsilon: config.hc_epsilon,
            norm_epsilon: config.norm_epsilon,
        })
    }

    /// `m = (fn . v) * rsqrt(mean(v^2) + eps)` for each token; `streams` is `[m, streams * hidden]`.
    pub(super) fn products(&self, streams: &Matrix, rounding: LinearRounding) -> Matrix {
        let mut products = Matrix::zeros(streams.rows, self.base.len());
        products.write_rows(streams.rows * self.function.len(), |token, out| {
            let all = streams.row(token);
            let inverse = inverse_rms(all, self.norm_epsilon);
            if rounding == LinearRounding::Bf16 {
                // The yardstick normalises first, so that it is the normalised values that are rounded.
                let normal: Vec<f32> = all.iter().map(|value| bf16::round(value * inverse)).collect();
                self.write_products(out, &normal);
                return round_to_bf16(out);
            }
            self.write_products(out, all);
            out.iter_mut().for_each(|product| *product *= inverse);
        });
        products
    }

    fn write_products(&self, out: &mut [f32], values: &[f32]) {
        for (out, row) in out.iter_mut().zip(self.function.chunks_exact(values.len())) {
            *out = dot(row, values);
        }
    }

    /// The three parts of a token's [`HyperConnection::products`].
    pub(super) fn mix(&self, products: &[f32]) -> Mix {
        let count = self.streams;
        let part = |part: usize, idx: usize| {
            let row = part * count + idx;
            products[row] * self.scale[part] + self.base[row]
        };
        let carry = (0..count).map(|j| (0..count).map(|k| part(2, count * j + k)).collect()).collect();
        Mix {
            pre: self.head_weights(products),
            post: (0..count).map(|k| 2.0 * sigmoid(part(1, k))).collect(),
            carry: self.sinkhorn(carry),
        }
    }

    /// The first part: what each stream weighs.
    pub(super) fn head_weights(&self, products: &[f32]) -> Vec<f32> {
        let weight = |j: usize| sigmoid(products[j] * self.scale[0] + self.base[j]) + self.hc_epsilon;
        (0..self.streams).map(weight).collect()
    }

    /// Softmax of each row, then rows and columns in turn until both nearly sum to 1. Columns come first.
    fn sinkhorn(&self, mut carry: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
        let epsilon = self.hc_epsilon;
        for row in &mut carry {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter_mut().for_each(|value| *value = (*value - largest).exp());
            let sum: f32 = row.iter().sum();
            row.iter_mut().for_each(|value| *value = *value / sum + epsilon);
        }
        divide_columns(&mut carry, epsilon);
        for _ in 1..self.sinkhorn_rounds {
            for row in &mut carry {
                let sum = row.iter().sum::<f32>() + epsilon;
                row.iter_mut().for_each(|value| *value /= sum);
            }
            divide_columns(&mut carry, epsilon);
        }
        carry
    }
}

/// `x = sum_j weight_j * h[j]` of one token's streams.
pub(super) fn collect(weights: &[f32], streams: &[f32], x: &mut [f32]) {
    x.fill(0.0);
    for (&weight, stream) in weights.iter().zip(streams.chunks_exact(x.len())) {
        add_scaled(x, weight, stream);
    }
}

/// `h'[k] = post_k * y + sum_j C[j][k] * h[j]` of one token.
pub(super) fn spread(mix: &Mix, y: &[f32], streams: &mut [f32]) {
    let before = streams.to_vec();
    for (k, stream) in streams.chunks_exact_mut(y.len()).enumerate() {
        stream.fill(0.0);
        add_scaled(stream, mix.post[k], y);
        for (j, other) in before.chunks_exact(y.len()).enumerate() {
            add_scaled(stream, mix.carry[j][k], other);
        }
    }
}

/// `1 / sqrt(mean(x^2) + epsilon)`.
pub(super) fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + epsilon).sqrt()
}

fn divide_columns(carry: &mut [Vec<f32>], epsilon: f32) {
    for k in 0..carry.len() {
        let sum = carry.iter().map(|row| row[k]).sum::<f32>() + epsilon;
        carry.iter_mut().for_each(|row| row[k] /= sum);
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a zero function the mix is that of the base alone.
    fn connection(base: Vec<f32>) -> HyperConnection {
        let config = Config { hidden: 3, ..Config::FLASH };
        let source = weights::HyperConnection { function: vec![0.0; 24 * 12], base, scale: vec![1.0; 3] };
        HyperConnection::new("hc", &source, &config, 3).unwrap()
    }

    #[test]
    fn a_mix_of_zeros_is_even() {
        let even = connection(vec![0.0; 24]);
        let products = even.products(&Matrix { rows: 1, columns: 12, values: vec![2.0; 12] }, LinearRounding::Exact);
        let mix = even.mix(&products.values);
        assert!(mix.pre.iter().all(|weight| (weight - 0.5).abs() < 1e-5));
        assert!(mix.post.iter().all(|weight| (weight - 1.0).abs() < 1e-5));
        assert!(mix.carry.iter().flatten().all(|weight| (weight - 0.25).abs() < 1e-5));
    }

    #[test]
    fn rows_and_columns_of_a_carry_sum_to_one() {
        let base = (0..24).map(|idx| (idx as f32 * 1.3).sin() * 2.0).collect();
        let carry = connection(base).mix(&[0.0; 24]).carry;
        for k in 0..4 {
            let (row, column): (f32, f32) = (carry[k].iter().sum(), carry.iter().map(|row| row[k]).sum());
            // Columns are divided last.
            assert!((column - 1.0).abs() < 1e-5 && (row - 1.0).abs() < 1e-3, "{row} {column}");
        }
    }

    #[test]
    fn a_stream_takes_from_the_first_index_of_the_carry() {
        let mut carry = vec![vec![0.0; 4]; 4];
        (carry[0][1], carry[2][3]) = (1.0, 10.0);
        let mix = Mix { pre: vec![1.0, 0.0, 2.0, 0.0], post: vec![0.0, 0.0, 5.0, 1.0], carry };
        let mut streams = vec![1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 0.0, 0.0];
        let mut x = [0.0; 2];
        collect(&mix.pre, &streams, &mut x);
        assert_eq!(x, [7.0, 10.0]);
        spread(&mix, &[100.0, 200.0], &mut streams);
        assert_eq!(streams, [0.0, 0.0, 1.0, 2.0, 500.0, 1000.0, 130.0, 240.0]);
    }
}
