//! `--check` and `--dump`: what a run leaves behind, and what stops it.

use crate::place::{Place, ids, oracle};

const SMALL: &str = "small-nvfp4";

#[test]
fn a_dump_has_every_op_and_equals_that_of_the_same_run() {
    let (place, model) = (Place::new(), oracle(SMALL));
    let (_, list) = ids(SMALL, 12);
    let generate = |dump: &str, flags: &[&str]| {
        let words = ["generate", "--model-dir", &model, "--device", "cpu", "--tokens", &list, "--max-tokens", "2"];
        place.run(&[&words[..], &["--ignore-eos", "--check", "finite=op", "--dump", dump], flags].concat())
    };
    assert_eq!(generate("one", &[]).status.code(), Some(0));
    assert_eq!(generate("two", &[]).status.code(), Some(0));
    for file in ["step-0000/model", "step-0000/layer-000", "step-0001/layer-004"] {
        assert!(place.path(&format!("one/{file}.safetensors")).exists(), "{file}");
    }
    let rows = place.json(&["compare", "one", "two", "--limit", "0"]);
    let rows = rows["tensors"].as_array().unwrap();
    let shape = |tensor: &str| rows.iter().find(|row| row["tensor"] == tensor).map(|row| row["shape"].clone());
    assert_eq!(shape("step-0000/layer-001/attn.wq_b"), Some(serde_json::json!([12, 256])));
    assert_eq!(shape("step-0001/model/head"), Some(serde_json::json!([1, 256])));
    assert_eq!(shape("step-0000/layer-000/ffn.route.experts"), Some(serde_json::json!([12, 2])));
    generate("one", &[]).refuses(1, "expected no files in `one`, found some", "empty");
    // Other numerics show where they begin to matter.
    assert_eq!(generate("fp8", &["--kv", "fp8"]).status.code(), Some(0));
    let said = place.run(&["compare", "fp8", "one", "--limit", "0.000001"]);
    assert!(said.stderr.contains("first beyond 0.000001: step-0000/layer-000/attn."), "{said:?}");
}

#[test]
fn the_first_value_that_is_not_finite_is_named() {
    let place = Place::new();
    let model = place.copy("model", SMALL);
    // A weight of a compressor becomes NaN. Norms are looked at when they are loaded, large matrices are not.
    let path = model.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
    let wkv = &header["layers.1.attn.compressor.wkv.weight"];
    assert_eq!((&wkv["dtype"], &wkv["shape"]), (&"BF16".into(), &serde_json::json!([128, 128])));
    let row_3 = 8 + header_bytes + wkv["data_offsets"][0].as_u64().unwrap() as usize + 3 * 128 * 2;
    bytes[row_3..row_3 + 2].copy_from_slice(&[0xC0, 0x7F]);
    std::fs::write(&path, bytes).unwrap();

    let words =
        ["generate", "--model-dir", "model", "--device", "cpu", "--tokens", "5,6,7,8,9,10,11,12", "--max-tokens", "1"];
    let said = place.run(&[&words[..], &["--check", "finite=op", "--dump", "dump"]].concat());
    said.refuses(1, "`attn.compressor.wkv` of layer 1, found NaN at token 0, column 3 and 7 more", "--dump");
    assert!(said.stderr.contains("largest magnitudes of its inputs: `attn_norm` "), "{said:?}");
    // The dump goes as far as the run.
    assert!(place.path("dump/step-0000/layer-001.safetensors").exists());
    for check in ["finite", "finite=layer"] {
        let said = place.run(&[&words[..], &["--check", check]].concat());
        assert_eq!((said.status.code(), said.stdout.as_str()), (Some(1), ""), "{check}: {said:?}");
    }
    // Without a check the run stops all the same: NaN is never sampled.
    let said = place.run(&words);
    assert_eq!((said.status.code(), said.stdout.as_str()), (Some(1), ""), "{said:?}");
    assert!(said.stderr.contains("error: "), "{said:?}");
}
