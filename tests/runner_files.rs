//! A model directory to weights: every oracle directory is loaded whole, and every way to spoil one has its sentence.

#[path = "runner_files/checkpoint.rs"]
mod checkpoint;
#[path = "runner_files/config.rs"]
mod config;
#[path = "runner_files/directories.rs"]
mod directories;
#[path = "runner_files/scales.rs"]
mod scales;
#[path = "runner_files/tensors.rs"]
mod tensors;

use checkpoint::{Checkpoint, load, oracle};
use tilekiln::models::dsv4::weights::{Choice, Fate, LoadOptions, Role, examine};
use tilekiln::quant::WeightFormat::{Bf16, Fp8, Mxfp4, Nvfp4};

const ORACLES: [&str; 7] = [
    "small-bf16",
    "small-native",
    "small-nvfp4",
    "small-nvfp4_full",
    "small-nvfp4_ct",
    "wide-nvfp4",
    "wide-nvfp4_full",
];

#[test]
fn every_oracle_is_loaded_and_every_tensor_accounted_for() {
    for name in ORACLES {
        let directory = oracle(name);
        load(&directory, LoadOptions::default(), |loaded| {
            let files = tilekiln::engine::TensorFiles::open(&directory).unwrap();
            let account: Vec<_> = loaded.ledger.entries.iter().map(|entry| (&entry.tensor[..], entry.bytes)).collect();
            let there: Vec<_> = files.tensors().map(|tensor| (tensor.name, tensor.bytes.len() as u64)).collect();
            assert_eq!(account, there, "{name}");
            assert_eq!(loaded.ledger.unused().count(), 0, "{name}");
            assert_eq!(files.bytes(), there.iter().map(|(_, bytes)| bytes).sum::<u64>());
            for entry in loaded.ledger.used() {
                let Fate::Used(uses) = &entry.fate else { unreachable!("asked for what is used") };
                assert_eq!(uses.len(), 1, "{name} {}: native names are one weight each", entry.tensor);
            }
            // Each matrix has codes of its own, and NVFP4 a tensor scale and an input scale.
            let count = |role| {
                let is = |fate: &Fate| matches!(fate, Fate::Used(uses) if uses[0].role == role);
                loaded.ledger.entries.iter().filter(|entry| is(&entry.fate)).count()
            };
            let linears: Vec<_> = loaded.weights.linears().collect();
            let nvfp4 = linears.iter().filter(|linear| linear.format == Nvfp4).count();
            assert_eq!(count(Role::Codes), linears.len(), "{name}");
            assert_eq!(count(Role::Scales), linears.iter().filter(|linear| linear.format != Bf16).count(), "{name}");
            assert_eq!((count(Role::TensorScale), count(Role::InputScale)), (nvfp4, nvfp4), "{name}");
            assert!(linears.iter().all(|linear| linear.first_non_finite().is_none()), "{name}");
        })
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn formats_are_those_of_the_tensors() {
    // Of wq_a, wo_a, the shared expert, the routed experts.
    for (name, formats) in [
        ("small-bf16", [Bf16; 4]),
        ("small-native", [Fp8, Fp8, Fp8, Mxfp4]),
        ("small-nvfp4", [Fp8, Fp8, Fp8, Nvfp4]),
        ("small-nvfp4_full", [Nvfp4, Fp8, Nvfp4, Nvfp4]),
        ("small-nvfp4_ct", [Fp8, Fp8, Fp8, Nvfp4]),
        ("wide-nvfp4", [Fp8, Fp8, Fp8, Nvfp4]),
        ("wide-nvfp4_full", [Nvfp4, Fp8, Nvfp4, Nvfp4]),
    ] {
        load(&oracle(name), LoadOptions::default(), |loaded| {
            for layer in &loaded.weights.layers {
                let (attention, shared) = (&layer.attention, &layer.feed_forward.shared);
                let of_layer = [&attention.wq_a, &attention.wo_a, &shared.w2, &layer.feed_forward.experts[7].w3];
                assert_eq!(of_layer.map(|linear| linear.format), formats, "{name}");
            }
        })
        .unwrap();
    }
}

/// Values by hand from the bytes of the files, at the corners and inside.
#[test]
fn values_are_codes_times_scales() {
    const CODES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let e2m1 = |codes: &[u8], idx: usize| {
        let code = codes[idx / 2] >> (4 * (idx % 2)) & 0xF;
        CODES[usize::from(code & 7)] * if code & 8 == 0 { 1.0 } else { -1.0 }
    };
    let e4m3 = |byte: u8| {
        let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
        let magnitude = match exponent {
            0 => mantissa * 2f32.powi(-9),
            _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
        };
        magnitude * if byte & 0x80 == 0 { 1.0 } else { -1.0 }
    };
    let power = |byte: u8| 2f32.powi(i32::from(byte) - 127);
    for (name, weight, scale) in [
        ("small-native", "layers.1.ffn.experts.5.w2", ".scale"),
        ("small-native", "layers.3.attn.indexer.wq_b", ".scale"),
        ("small-nvfp4", "layers.2.ffn.experts.3.w1", ".weight_scale"),
        ("wide-nvfp4_full", "layers.1.attn.wq_b", ".weight_scale"),
        ("small-nvfp4_ct", "layers.4.attn.wq_b", ".weight_scale"),
    ] {
        let mut files = Checkpoint::of(name);
        let codes = files.tensor(&format!("{weight}.weight")).clone();
        let scales = files.tensor(&format!("{weight}{scale}")).bytes.clone();
        let scale_2 = files.tensors.get(&format!("{weight}.weight_scale_2"));
        let scale_2 = scale_2.map(|stored| f32::from_le_bytes(stored.bytes[..].try_into().unwrap()));
        load(&oracle(name), LoadOptions::default(), |loaded| {
            let linear = loaded.weights.linears().find(|linear| linear.name == weight).unwrap();
            let (n, k, values) = (linear.n, linear.k, linear.dequantized());
            for (row, column) in [(0, 0), (0, 1), (n - 1, k - 1), (n / 2, 17), (n / 3, k / 2 + 1)] {
                let idx = row * k + column;
                let expected = match linear.format {
                    Mxfp4 => e2m1(&codes.bytes, idx) * power(scales[idx / 32]),
                    Nvfp4 => e2m1(&codes.bytes, idx) * e4m3(scales[idx / 16]) * scale_2.unwrap(),
                    Fp8 => e4m3(codes.bytes[idx]) * power(scales[row / 128 * k.div_ceil(128) + column / 128]),
                    Bf16 => unreachable!("none of these is bf16"),
                };
                assert_eq!(values[idx], expected, "{name} {weight} {row} {column}");
            }
        })
        .unwrap();
    }
}

/// The same experts in ModelOpt's convention and in that of compressed-tensors, which are inverses of each other.
#[test]
fn both_conventions_give_the_same_weights() {
    load(&oracle("small-nvfp4"), LoadOptions::default(), |modelopt| {
        load(&oracle("small-nvfp4_ct"), LoadOptions::default(), |inverse| {
            let is_close = |a: f32, b: f32| (a - b).abs() <= 2.0 * f32::EPSILON * a.abs();
            let mut compared = 0;
            for (a, b) in modelopt.weights.linears().zip(inverse.weights.linears()) {
                assert_eq!((&a.name, a.format, a.codes, &a.scales), (&b.name, b.format, b.codes, &b.scales));
                assert!(is_close(a.tensor_scale, b.tensor_scale), "{} {} {}", a.name, a.tensor_scale, b.tensor_scale);
                if let (Some(a_scale), Some(b_scale)) = (a.input_scale, b.input_scale) {
                    assert!(is_close(a_scale, b_scale), "{} {a_scale} {b_scale}", a.name);
                    compared += 1;
                }
            }
            assert_eq!(compared, 5 * 8 * 3);
        })
        .unwrap();
    })
    .unwrap();
}

#[test]
fn mxfp4_experts_become_nvfp4_without_loss() {
    let options = LoadOptions { experts_as_nvfp4: true, ..LoadOptions::default() };
    load(&oracle("small-native"), LoadOptions::default(), |native| {
        load(&oracle("small-native"), options, |converted| {
            let mut turned = 0;
            for (a, b) in native.weights.linears().zip(converted.weights.linears()) {
                let expected = if a.format == Mxfp4 { Nvfp4 } else { a.format };
                assert_eq!((b.format, &b.name), (expected, &a.name));
                assert_eq!(a.dequantized(), b.dequantized(), "{}", a.name);
                turned += usize::from(a.format != b.format);
            }
            assert_eq!(turned, 5 * 8 * 3);
        })
        .unwrap();
    })
    .unwrap();
}

#[test]
fn layers_behind_the_last_one_asked_for_are_left_out_by_name() {
    let options = LoadOptions { layers: Some(2), ..LoadOptions::default() };
    load(&oracle("small-native"), options, |loaded| {
        assert_eq!((loaded.weights.layers.len(), loaded.config.layers()), (2, 2));
        let unused: Vec<_> = loaded.ledger.unused().collect();
        assert!(unused.iter().all(|(entry, why)| {
            ["layers.2.", "layers.3.", "layers.4."].iter().any(|at| entry.tensor.starts_with(at))
                && why.reason() == "layer behind the last one that was asked for"
        }));
        assert_eq!(unused.len() + loaded.ledger.used().count(), loaded.ledger.entries.len());
    })
    .unwrap();
}

#[test]
fn hash_layers_have_a_table_and_the_others_a_bias() {
    load(&oracle("wide-nvfp4"), LoadOptions::default(), |loaded| {
        let choices: Vec<&Choice> = loaded.weights.layers.iter().map(|layer| &layer.feed_forward.choice).collect();
        let Choice::Hash(table) = choices[0] else { panic!("layer 0 routes by token id") };
        assert_eq!(table.len(), 512 * 6);
        assert!(table.iter().all(|expert| (0..8).contains(expert)));
        assert!(matches!(choices[1], Choice::Score(bias) if bias.len() == 8));
    })
    .unwrap();
}

#[test]
fn an_examination_counts_and_warns() {
    let examination = examine(&oracle("small-nvfp4_full"));
    assert!(examination.is_loadable(), "{examination}");
    assert_eq!(examination.warnings.len(), 5 * 3, "{examination}");
    let text = examination.to_string();
    for line in [
        "  ffn.experts.w1                 nvfp4       40  184.32 kB",
        "  attn.wo_a                      fp8          5   40.97 kB",
        "  attn.wo_b.input_scale                       5, ceilings 0.165 to 0.165",
        "it can be loaded",
    ] {
        assert!(text.lines().any(|found| found == line), "no `{line}` in\n{text}");
    }
    let json = serde_json::to_value(&examination).unwrap();
    assert_eq!((&json["used"], &json["tensors"]), (&examination.tensors.into(), &examination.tensors.into()));

    let nowhere = examine(std::path::Path::new("testdata/oracle"));
    assert_eq!(
        nowhere.refusal.unwrap().message,
        "expected to read config.json, found: No such file or directory (os error 2)"
    );
}
