//! Scales that are NaN, have a sign, are zero or infinite: those of weights are refused, those of activations named.

use super::checkpoint::{Checkpoint, load};
use tilekiln::models::dsv4::weights::{LoadOptions, examine};

const NONE_BUT: &str = "expected every weight of the model once and nothing else, found 0 missing, 0 unexpected, ";

#[test]
fn a_nan_byte_in_a_block_scale_is_refused_with_its_place() {
    for (oracle, tensor, at, byte, reason) in [
        (
            "small-nvfp4",
            "layers.1.ffn.experts.2.w1.weight_scale",
            13,
            0x7F,
            "expected finite e4m3 weight scales, found NaN (0x7f) in row 1, block 5",
        ),
        (
            "small-nvfp4_ct",
            "layers.1.ffn.experts.2.w2.weight_scale",
            13,
            0xFF,
            "expected finite e4m3 weight scales, found NaN (0xff) in row 3, block 1",
        ),
        (
            "small-nvfp4_full",
            "layers.1.attn.wq_b.weight_scale",
            0,
            0x80,
            "expected e4m3 weight scales without a sign, found 0x80 in row 0, block 0",
        ),
        (
            "small-native",
            "layers.1.ffn.experts.2.w1.scale",
            13,
            0xFF,
            "expected ue8m0 weight scales below 255, found NaN (0xff) in scale row 3, column 1",
        ),
        (
            "small-native",
            "layers.1.attn.wq_b.scale",
            1,
            0xFF,
            "expected ue8m0 weight scales below 255, found NaN (0xff) in scale row 1, column 0",
        ),
    ] {
        let mut checkpoint = Checkpoint::of(oracle);
        checkpoint.tensor(tensor).bytes[at] = byte;
        assert_eq!(checkpoint.refusal(), format!("{NONE_BUT}1 unusable\n  unusable    `{tensor}`: {reason}"));
    }
}

#[test]
fn a_tensor_scale_that_is_none_is_refused() {
    for (oracle, scale, value, reason) in [
        ("small-nvfp4", "weight_scale_2", f32::NAN, "expected a finite tensor scale, found NaN"),
        ("small-nvfp4", "weight_scale_2", 0.0, "expected a tensor scale above zero, found 0"),
        ("small-nvfp4", "weight_scale_2", -1.0, "expected a tensor scale above zero, found -1e0"),
        ("small-nvfp4_ct", "weight_global_scale", f32::INFINITY, "expected a finite tensor scale, found infinity"),
        (
            "small-nvfp4_ct",
            "weight_global_scale",
            1e-40,
            "expected a tensor scale of at least 1.1754944e-38, found 1e-40, a subnormal",
        ),
    ] {
        let tensor = format!("layers.3.ffn.experts.6.w3.{scale}");
        let mut checkpoint = Checkpoint::of(oracle);
        checkpoint.set_f32(&tensor, value);
        assert_eq!(checkpoint.refusal(), format!("{NONE_BUT}1 unusable\n  unusable    `{tensor}`: {reason}"));
    }
}

/// A file is not refused for them, because the default policies never read them.
#[test]
fn an_input_scale_that_is_none_is_a_warning_with_its_name() {
    for (value, text, reason) in [
        (0.0, "0e0", "expected a tensor scale above zero, found 0"),
        (1e-40, "1e-40", "expected a tensor scale of at least 1.1754944e-38, found 1e-40, a subnormal"),
        (f32::INFINITY, "inf", "expected a finite tensor scale, found infinity"),
        (f32::NAN, "NaN", "expected a finite tensor scale, found NaN"),
        (-2.0, "-2e0", "expected a tensor scale above zero, found -2e0"),
    ] {
        for (oracle, scale) in [("small-nvfp4", "input_scale"), ("small-nvfp4_ct", "input_global_scale")] {
            let weight = "layers.2.ffn.experts.4.w2";
            let mut checkpoint = Checkpoint::of(oracle);
            checkpoint.set_f32(&format!("{weight}.{scale}"), value);
            let directory = checkpoint.write();
            load(directory.path(), LoadOptions::default(), |loaded| {
                let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
                let expected = format!(
                    "`{weight}.{scale}` is {text}, which is no scale ({reason}): --scale checkpoint would refuse it, \
                     use --scale per-token"
                );
                assert_eq!(warnings, [expected]);
                // It is kept as it is, as a multiplier: whoever uses it decides.
                let linear = loaded.weights.linears().find(|linear| linear.name == weight).unwrap();
                let kept = if scale == "input_scale" { value } else { 1.0 / value };
                assert_eq!(linear.input_scale.map(f32::to_bits), Some(kept.to_bits()));
            })
            .unwrap();
        }
    }
}

/// The values of the report that this project started from: representable, and far too small.
#[test]
fn an_input_scale_that_clips_what_every_row_has_is_a_warning() {
    let mut checkpoint = Checkpoint::of("small-nvfp4");
    checkpoint.set_f32("layers.0.ffn.experts.1.w3.input_scale", 2.5141e-4);
    let directory = checkpoint.write();
    let examination = examine(directory.path());
    assert_eq!(
        examination.warnings,
        ["`layers.0.ffn.experts.1.w3.input_scale` is 2.5141e-4: activations above 0.676 would be clipped, and the \
          rows that it scales have a root mean square of about 1.01; use --scale per-token"]
    );
    let of_w3 = examination.input_scales.iter().find(|scales| scales.kind == "ffn.experts.w3").unwrap();
    assert_eq!((of_w3.count, of_w3.lowest_ceiling), (40, 2688.0 * 2.5141e-4));
}

/// FP8 with F32 or BF16 block scales, as some exporters write them.
#[test]
fn fp8_scales_in_other_dtypes_are_read_if_they_are_powers_of_two() {
    let tensor = "layers.0.attn.wq_b.scale";
    let mut checkpoint = Checkpoint::of("small-native");
    let native = checkpoint.tensor(tensor).bytes.clone();
    let values: Vec<f32> = native.iter().map(|&byte| 2f32.powi(i32::from(byte) - 127)).collect();
    let f32_bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let bf16_bytes = values.iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect();
    for (dtype, bytes) in [("F32", f32_bytes), ("BF16", bf16_bytes)] {
        let stored = checkpoint.tensor(tensor);
        (stored.dtype, stored.bytes) = (dtype, bytes);
        load(checkpoint.write().path(), LoadOptions::default(), |loaded| {
            assert_eq!(loaded.weights.layers[0].attention.wq_b.scales, native, "{dtype}");
        })
        .unwrap();
    }
    for value in [3.0f32, 0.0, -2.0, f32::INFINITY] {
        let stored = checkpoint.tensor(tensor);
        stored.dtype = "F32";
        stored.bytes = [1.0f32, value].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(
            checkpoint.refusal(),
            format!(
                "{NONE_BUT}1 unusable\n  unusable    `{tensor}`: expected powers of two from 2^-127 to 2^127 as block \
                 scales, found {value} in scale row 1, column 0"
            )
        );
    }
}

#[test]
fn mxfp4_that_nvfp4_cannot_hold_names_its_tensor() {
    let tensor = "layers.1.ffn.experts.2.w1.scale";
    let mut checkpoint = Checkpoint::of("small-native");
    let scales = &mut checkpoint.tensor(tensor).bytes;
    scales[6] = scales[0] - 40;
    let smallest = i32::from(scales[6]) - 127;
    let largest = i32::from(*scales.iter().max().unwrap()) - 127;
    // As it is, it can be loaded.
    load(checkpoint.write().path(), LoadOptions::default(), |_| ()).unwrap();
    assert_eq!(
        checkpoint.refusal_with(LoadOptions { experts_as_nvfp4: true, ..LoadOptions::default() }),
        format!(
            "{NONE_BUT}1 unusable\n  unusable    `layers.1.ffn.experts.2.w1.weight`: expected scales within 17 binades \
             of the largest, 2^{largest}, found 2^{smallest} in row 1, block 2, so it is no nvfp4 tensor without loss"
        )
    );
}
