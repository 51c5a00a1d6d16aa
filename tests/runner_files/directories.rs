//! Files that are missing, cut off, or not what index and header say.

use std::path::Path;

use super::checkpoint::{copy, oracle, with_header};
use tilekiln::engine::TensorFiles;

const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";

fn refusal(directory: &Path) -> String {
    TensorFiles::open(directory).map(|_| "it was opened").unwrap_err().to_string()
}

/// The refusal of a single file that holds `bytes`.
fn refusal_of(bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("model.safetensors"), bytes).unwrap();
    refusal(directory.path())
}

#[test]
fn shards_are_one_set_of_tensors() {
    let files = TensorFiles::open(&oracle("small-native")).unwrap();
    assert_eq!(files.shards().collect::<Vec<_>>(), [FIRST, SECOND]);
    let tensor = files.get("head.weight").unwrap();
    assert_eq!((tensor.shard, tensor.dtype.name(), tensor.shape), (SECOND, "BF16", &[256, 128][..]));
    assert_eq!(files.get("no.such"), None);
    assert!(files.tensors().map(|tensor| tensor.name).is_sorted());
}

#[test]
fn a_directory_without_weights_and_one_with_two_sets_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    assert_eq!(
        refusal(directory.path()),
        format!("expected model.safetensors, or model.safetensors.index.json and its shards, in {path}, found neither")
    );
    let directory = copy("small-native");
    let path = directory.path().display();
    std::fs::write(directory.path().join("model.safetensors"), []).unwrap();
    assert_eq!(
        refusal(directory.path()),
        format!("expected one of model.safetensors and model.safetensors.index.json in {path}, found both")
    );
}

#[test]
fn a_missing_shard_is_named() {
    let directory = copy("small-native");
    std::fs::remove_file(directory.path().join(SECOND)).unwrap();
    assert_eq!(refusal(directory.path()), format!("expected the 2 shards that {INDEX} names, found no {SECOND}"));
}

#[test]
fn a_truncated_shard_is_named_with_its_tensor() {
    let directory = copy("small-native");
    let path = directory.path().join(FIRST);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(
        refusal(directory.path()),
        format!(
            "expected 1067112 bytes in {FIRST}, found 1067111: it is cut off in tensor \
             `layers.2.ffn.experts.5.w3.weight`"
        )
    );
    std::fs::write(&path, &whole[..500]).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap());
    assert_eq!(
        refusal(directory.path()),
        format!("expected a header of {header} bytes in {FIRST}, found a file of 500 bytes")
    );
    std::fs::write(&path, []).unwrap();
    assert_eq!(refusal(directory.path()), format!("expected a header of 8 bytes in {FIRST}, found a file of 0 bytes"));
}

#[test]
fn an_index_that_names_what_is_not_there_is_refused() {
    let directory = copy("small-native");
    let path = directory.path().join(INDEX);
    let text = std::fs::read_to_string(&path).unwrap();
    let refusal_with = |index: String| {
        std::fs::write(&path, index).unwrap();
        refusal(directory.path())
    };
    let insert = |line: &str| text.replace("\"weight_map\": {", &format!("\"weight_map\": {{\n{line},"));
    assert_eq!(
        refusal_with(insert(&format!("\"layers.9.new\": \"{FIRST}\""))),
        format!("expected tensor `layers.9.new` in {FIRST} by {INDEX}, found it in none of the shards")
    );
    assert_eq!(
        refusal_with(text.replace(&format!("\"head.weight\": \"{SECOND}\""), &format!("\"head.weight\": \"{FIRST}\""))),
        format!("expected tensor `head.weight` in {FIRST} by {INDEX}, found it in {SECOND}")
    );
    assert_eq!(
        refusal_with(insert("\"x\": \"model-00003-of-00002.safetensors\"")),
        format!("expected the 3 shards that {INDEX} names, found no model-00003-of-00002.safetensors")
    );
    assert_eq!(
        refusal_with(insert("\"x\": \"../secret.safetensors\"")),
        format!("expected shards beside {INDEX}, found `../secret.safetensors`")
    );
    assert_eq!(
        refusal_with("{}".to_string()),
        format!(
            "expected a `weight_map` of tensors to shards in {INDEX}, found: missing field `weight_map` at line 1 \
             column 2"
        )
    );
}

#[test]
fn one_name_in_two_places_is_refused() {
    let directory = copy("small-native");
    std::fs::copy(directory.path().join(FIRST), directory.path().join(SECOND)).unwrap();
    assert_eq!(
        refusal(directory.path()),
        format!("expected tensor `layers.0.ffn.gate.tid2eid` once, found it in {FIRST} and in {SECOND}")
    );
    let twice =
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    assert_eq!(
        refusal_of(&with_header(twice, &[0; 2])),
        "expected tensor `a` once, found it in model.safetensors and in model.safetensors"
    );
}

#[test]
fn headers_that_do_not_fit_are_refused() {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        let header = format!(
            r#"{{"__metadata__":{{"format":"pt"}},"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#
        );
        refusal_of(&with_header(&header, &[0; 8]))
    };
    for (dtype, shape, offsets, sentence) in [
        ("F4", "[8]", "[0,8]", "expected a known dtype for tensor `a` in model.safetensors, found `F4`"),
        (
            "F32",
            "[3]",
            "[0,8]",
            "expected 12 bytes for tensor `a` (F32 [3]) in model.safetensors, found offsets 0 to 8",
        ),
        ("U8", "[8]", "[8,0]", "expected 8 bytes for tensor `a` (U8 [8]) in model.safetensors, found offsets 8 to 0"),
        (
            "F64",
            "[18446744073709551615,18446744073709551615]",
            "[0,8]",
            "expected 340282366920938463463374607431768211455 bytes for tensor `a` (F64 [18446744073709551615, \
             18446744073709551615]) in model.safetensors, found offsets 0 to 8",
        ),
        (
            "F32",
            "[1]",
            "[4,8]",
            "expected tensor `a` of model.safetensors at byte 0, behind the one before, found it at byte 4",
        ),
    ] {
        assert_eq!(one(dtype, shape, offsets), sentence);
    }
    let short = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}"#;
    let expected = 8 + short.len() + 4;
    assert_eq!(
        refusal_of(&with_header(short, &[0; 5])),
        format!("expected {expected} bytes in model.safetensors by its header, found {}", expected + 1)
    );
    let overlapping =
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
    assert_eq!(
        refusal_of(&with_header(overlapping, &[0; 6])),
        "expected tensor `b` of model.safetensors at byte 4, behind the one before, found it at byte 2"
    );
    assert_eq!(
        refusal_of(&with_header("{", &[])),
        "expected a header of tensors in model.safetensors, found: EOF while parsing an object at line 1 column 1"
    );
}
