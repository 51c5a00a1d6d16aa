//! The products in plain f64 on the CPU: small shapes, against which the GPU's reference is verified.

use crate::quant::{Activations, bf16, fp8, math};

/// `R[m, g * n + r] = alpha * sum_k A[m, g * k + k'] * W[g][r, k']`.
///
/// # Shapes
/// - `weights`: `[groups, n, k]`, decoded.
/// - `activations`: `[m, groups * k]`.
/// - `alphas`: `[groups, parts]`, each for `n / parts` rows.
/// - returns `[m, groups * n]`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn dense(weights: &[f32], activations: &[f32], alphas: &[f32], [groups, n, k]: [usize; 3]) -> Vec<f64> {
    assert_eq!(weights.len(), groups * n * k, "weights are [{groups}, {n}, {k}]");
    let (m, parts) = (activations.len() / (groups * k), alphas.len() / groups);
    let mut result = Vec::with_capacity(m * groups * n);
    for token in activations.chunks_exact(groups * k) {
        for (row_idx, row) in weights.chunks_exact(k).enumerate() {
            let (group, row_in_group) = (row_idx / n, row_idx % n);
            let alpha = alphas[group * parts + row_in_group / (n / parts)];
            let part = &token[group * k..][..k];
            let sum: f64 = row.iter().zip(part).map(|(w, a)| f64::from(*w) * f64::from(*a)).sum();
            result.push(sum * f64::from(alpha));
        }
    }
    result
}

/// Gate-up, SwiGLU rounded to BF16, down, routing weight, combine, for one token. With `a8` activations the token and
/// each slot's hidden values, after BF16, are what FP8 keeps of them.
///
/// # Shapes
/// - `gate_up`: for each slot the expert's `[2 * i, hidden]`, gate above up, alpha applied.
/// - `down`: for each slot the expert's `[hidden, i]`, alpha applied.
/// - `routing`: a weight for each slot.
/// - returns `[hidden]`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn moe_block(
    token: &[f32],
    [gate_up, down]: [&[Vec<f32>]; 2],
    routing: &[f32],
    limit: f32,
    activations: Activations,
) -> Vec<f64> {
    let operand = |row: Vec<f32>| match activations {
        Activations::A16 => row,
        Activations::A8 => fp8::quantize_activations(&row, 1, row.len()).expect("one row is [1, k]").decode(),
    };
    let token = &operand(token.to_vec())[..];
    let mut result = vec![0.0; token.len()];
    for ((gate_up, down), &weight) in gate_up.iter().zip(down).zip(routing) {
        let sums: Vec<f64> = gate_up
            .chunks_exact(token.len())
            .map(|row| row.iter().zip(token).map(|(w, a)| f64::from(*w) * f64::from(*a)).sum())
            .collect();
        let (gate, up) = sums.split_at(sums.len() / 2);
        let hidden: Vec<f32> =
            gate.iter().zip(up).map(|(gate, up)| bf16::round(math::swiglu(*gate as f32, *up as f32, limit))).collect();
        let hidden = operand(hidden);
        for (out, row) in result.iter_mut().zip(down.chunks_exact(hidden.len())) {
            let sum: f64 = row.iter().zip(&hidden).map(|(w, h)| f64::from(*w) * f64::from(*h)).sum();
            *out += f64::from(weight) * sum;
        }
    }
    result
}

/// A token's residual streams behind a sublayer: `post[j] * y + sum over i of C[i][j] * h[i]` for each of four streams.
///
/// # Shapes
/// - `streams`: `[4, hidden]`; returned in the same shape.
/// - `y`: `[hidden]`, what the sublayer gave, all of its results added.
/// - `mixing`: `post[4]`, then `C[4][4]`.
///
/// # Panics
/// If a slice does not have its shape.
pub fn mixed_streams(streams: &[f32], y: &[f64], mixing: &[f32]) -> Vec<f64> {
    let hidden = y.len();
    assert_eq!((streams.len(), mixing.len()), (4 * hidden, 20), "streams are [4, {hidden}], mixing is [20]");
    let mut mixed = Vec::with_capacity(streams.len());
    for to in 0..4 {
        for (column, y) in y.iter().enumerate() {
            let parts =
                (0..4).map(|from| f64::from(mixing[4 + 4 * from + to]) * f64::from(streams[from * hidden + column]));
            mixed.push(f64::from(mixing[to]) * y + parts.sum::<f64>());
        }
    }
    mixed
}

/// Products of a token's streams, taken as one row, with the rows of `weights`, and the sum of their squares behind.
///
/// # Shapes
/// - `streams`: `[k]`; `weights`: `[n, k]`; returns `[n + 1]`.
pub fn stream_sums(streams: &[f32], weights: &[f32]) -> Vec<f64> {
    let product = |row: &[f32]| row.iter().zip(streams).map(|(w, h)| f64::from(*w) * f64::from(*h)).sum();
    weights.chunks_exact(streams.len()).chain([streams]).map(product).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_mixed_by_columns_of_the_matrix() {
        // Stream 0 becomes stream 2 and half of the result, the others go to stream 1.
        let mut mixing = [0.0; 20];
        mixing[2] = 0.5;
        mixing[4 + 2] = 1.0;
        (1..4).for_each(|from| mixing[4 + 4 * from + 1] = 1.0);
        let streams = [1.0, 2.0, 10.0, 20.0, 100.0, 200.0, 1000.0, 2000.0];
        let mixed = mixed_streams(&streams, &[8.0, -8.0], &mixing);
        assert_eq!(mixed, [0.0, 0.0, 1110.0, 2220.0, 5.0, -2.0, 0.0, 0.0]);
    }

    #[test]
    fn sums_are_products_with_rows_and_then_the_squares() {
        assert_eq!(stream_sums(&[1.0, -2.0, 3.0], &[1.0, 0.0, 0.0, 0.5, 0.5, 2.0]), [1.0, 5.5, 14.0]);
    }
}
