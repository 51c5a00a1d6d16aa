//! `quantize_weights` against what NVIDIA ModelOpt 0.47.0 made of the same values, bit for bit.
//!
//! The fixture holds `x [64, 256]`: row 0 is all zero, 1 has one zero block, 2 is tiny, 3 huge, 4 has outliers, 5 and
//! 6 are exact ties of both signs, 7 is a single value, the rest is normal. Each group is some of the rows, as a
//! tensor.

use std::ops::Range;

use safetensors::{Dtype, SafeTensors};
use tilekiln::quant::{Nvfp4Matrix, quantize_weights, validate_weight_scales};

const K: usize = 256;

const GROUPS: [(&str, Range<usize>); 3] = [("mixed", 0..64), ("normal", 8..64), ("ties", 5..7)];

#[test]
fn codes_scales_and_tensor_scale_equal_modelopt() {
    for (name, rows) in GROUPS {
        let (x, expected) = group(name, rows.clone());
        let matrix = quantize_weights(&x, rows.len(), K).unwrap();
        assert_eq!(matrix.scale_2.to_bits(), expected.scale_2.to_bits(), "{name}.scale_2");
        assert_eq!(first_difference(&matrix.scales, &expected.scales), None, "{name}.scales");
        assert_eq!(first_difference(&matrix.codes, &expected.codes), None, "{name}.codes");
    }
}

#[test]
fn its_weights_decode_to_what_they_were_made_from() {
    let (x, expected) = group("normal", 8..64);
    validate_weight_scales(&expected.scales, K).unwrap();
    let back = expected.decode().unwrap();
    let (dot, xx, bb) = x.iter().zip(&back).fold((0.0, 0.0, 0.0), |(dot, xx, bb), (&x, &b)| {
        let (x, b) = (f64::from(x), f64::from(b));
        (dot + x * b, xx + x * x, bb + b * b)
    });
    let cosine = dot / f64::sqrt(xx * bb);
    assert!((0.994..0.998).contains(&cosine), "{cosine}");
}

/// The rows that ModelOpt was given as one tensor, and what it gave.
fn group(name: &str, rows: Range<usize>) -> (Vec<f32>, Nvfp4Matrix) {
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/quantizer.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |field: &str, dtype: Dtype, shape: &[usize]| {
        let view = file.tensor(field).unwrap();
        assert_eq!((view.dtype(), view.shape()), (dtype, shape), "{field}");
        view.data().to_vec()
    };
    let floats = |bytes: Vec<u8>| -> Vec<f32> {
        bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
    };
    let x = floats(tensor("x", Dtype::F32, &[64, K]))[rows.start * K..rows.end * K].to_vec();
    let n = rows.len();
    let matrix = Nvfp4Matrix {
        n,
        k: K,
        codes: tensor(&format!("{name}.codes"), Dtype::U8, &[n, K / 2]),
        scales: tensor(&format!("{name}.scales"), Dtype::F8_E4M3, &[n, K / 16]),
        scale_2: floats(tensor(&format!("{name}.scale_2"), Dtype::F32, &[1]))[0],
    };
    (x, matrix)
}

/// Place, ours and theirs.
fn first_difference(ours: &[u8], theirs: &[u8]) -> Option<(usize, u8, u8)> {
    assert_eq!(ours.len(), theirs.len());
    let idx = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs)?;
    Some((idx, ours[idx], theirs[idx]))
}
