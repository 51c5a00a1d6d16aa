//! `dsv4 logits`: equal to what other people's code computed.

use tilekiln::engine::dump::read_tensors;

use crate::place::{Place, oracle, oracle_dir};

#[test]
fn logits_are_the_oracles() {
    let (place, model) = (Place::new(), oracle("small-nvfp4"));
    let expected = oracle_dir("small-nvfp4").join("expected.safetensors");
    let words = ["logits", "--model-dir", &model, "--device", "cpu", "--out", "logits.safetensors", "--tokens"];
    let json = place.json(&[&words[..], &[expected.to_str().unwrap()]].concat());
    assert_eq!(json["shape"], serde_json::json!([200, 256]));
    let [found, expected] = [&place.path("logits.safetensors"), &expected].map(|path| {
        let tensors = read_tensors(path).unwrap();
        tensors.into_iter().find(|tensor| tensor.name == "logits").unwrap()
    });
    assert_eq!(found.shape, expected.shape);
    let apart = found.values.iter().zip(&expected.values).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
    assert!(apart <= 1e-4, "{apart}");

    // The same through the tool, which looks at the whole of the oracle.
    let compare = ["compare", "logits.safetensors", "expected.safetensors", "--limit", "0.0001"];
    std::fs::copy(oracle_dir("small-nvfp4").join("expected.safetensors"), place.path("expected.safetensors")).unwrap();
    let said = place.run(&compare);
    said.refuses(1, "expected every tensor within a relative L2 error of 0.0001, found ", "table");
    let row = said.stdout.lines().find(|line| line.starts_with("logits  ")).unwrap();
    assert!(row.contains("  1.000000  "), "{row}");
}

#[test]
fn a_list_is_read_from_json_and_limits_hold() {
    let (place, model) = (Place::new(), oracle("small-bf16"));
    place.write("ids.json", "[3, 1, 4, 1, 5]");
    let words =
        ["logits", "--model-dir", &model, "--device", "cpu", "--out", "out.safetensors", "--tokens", "ids.json"];
    let said = place.done(&words);
    assert_eq!(said.stdout, "");
    assert!(said.stderr.ends_with("wrote logits [5, 256] to out.safetensors\n"), "{said:?}");
    let refuses = |flags: &[&str], code: i32, sentence: &str, hint: &str| {
        place.run(&[&words[..], flags].concat()).refuses(code, sentence, hint);
    };
    refuses(&["--context", "4"], 2, "expected at most 4 token ids, found 5", "--context");
    place.write("ids.json", "[3, 256]");
    refuses(&[], 2, "expected token ids below 256, found 256 at place 1", "vocab_size");
    place.write("ids.json", "[1]");
    let nowhere = [&words[..6], &["none/out.safetensors", "--tokens", "1"]].concat();
    place.run(&nowhere).refuses(1, "expected to write `none/out.safetensors`, found: ", "can be written to");
}

#[test]
fn a_directory_that_is_no_checkpoint_is_refused() {
    let place = Place::new();
    let words = ["logits", "--device", "cpu", "--tokens", "1", "--out", "out.safetensors", "--model-dir"];
    place.run(&[&words[..], &["none"]].concat()).refuses(1, "none: expected to read config.json", "dsv4 check");
    let model = place.copy("model", "small-native");
    std::fs::remove_file(model.join("model-00002-of-00002.safetensors")).unwrap();
    place.run(&[&words[..], &["model"]].concat()).refuses(1, "model-00002-of-00002.safetensors", "dsv4 check");
    assert!(!place.path("out.safetensors").exists());
}
