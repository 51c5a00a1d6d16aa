//! `dsv4 check`: what a directory holds, and why it is refused.

use crate::place::{Place, oracle};

#[test]
fn a_good_directory_is_described() {
    let (place, model) = (Place::new(), oracle("small-nvfp4"));
    let json = place.json(&["check", "--model-dir", &model]);
    assert_eq!(json["refusal"], serde_json::Value::Null);
    assert_eq!(json["layers"], 5);
    let said = place.done(&["check", "--model-dir", &model]);
    assert!(said.stdout.contains("ffn.experts.w1") && said.stdout.contains("nvfp4"), "{said:?}");
}

#[test]
fn scales_that_clip_are_named() {
    let (place, model) = (Place::new(), oracle("small-nvfp4_full"));
    let said = place.done(&["check", "--model-dir", &model]);
    assert!(said.stdout.contains("warning: ") && said.stdout.contains("use --scale per-token"), "{said:?}");
}

#[test]
fn a_bad_directory_is_refused() {
    let place = Place::new();
    place.copy("model", "small-bf16");
    let config = std::fs::read_to_string(place.path("model/config.json")).unwrap();
    std::fs::write(place.path("model/config.json"), config.replace("\"vocab_size\": 256", "\"vocab_size\": 300"))
        .unwrap();
    let said = place.run(&["check", "--model-dir", "model"]);
    said.refuses(
        1,
        "expected every weight of the model once and nothing else, found 0 missing, 0 unexpected, 3 un",
        "standard output",
    );
    assert!(said.stdout.contains("`embed.weight`: "), "{said:?}");
    let said = place.run(&["check", "--model-dir", "model", "--json"]);
    assert_eq!(said.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    assert!(json["refusal"]["unusable"].as_array().is_some_and(|unusable| !unusable.is_empty()), "{json}");
}
