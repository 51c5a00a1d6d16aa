//! `dsv4 compare`: what differs, where, and when that is a failure.

use tilekiln::engine::dump::{DumpWriter, Tensor, write_tensors};

use crate::place::Place;

fn dump(place: &Place, name: &str, change: impl Fn(usize) -> f32) {
    let mut dump = DumpWriter::create(&place.path(name)).unwrap();
    for layer in 0..2 {
        for op in ["z_first", "a_second"] {
            let values: Vec<f32> = (0..6).map(|idx| idx as f32 + 1.0 + change(layer as usize)).collect();
            dump.record(Some(layer), op, 3, &values);
        }
    }
    dump.end_step().unwrap();
}

#[test]
fn equal_dumps_are_equal_and_others_are_not() {
    let place = Place::new();
    dump(&place, "a", |_| 0.0);
    dump(&place, "b", |layer| layer as f32);
    let same = place.done(&["compare", "a", "a", "--limit", "0"]);
    assert_eq!(same.stdout.lines().count(), 5, "{same:?}");
    let said = place.run(&["compare", "b", "a", "--limit", "0.1"]);
    said.refuses(1, "expected every tensor within a relative L2 error of 0.1, found 2 of 4 tensors beyond it", "table");
    assert!(said.stderr.contains("first beyond 0.1: step-0000/layer-001/z_first\n"), "{said:?}");
    // Without a limit a difference is data.
    let rows = place.json(&["compare", "b", "a"]);
    let names: Vec<&str> =
        rows["tensors"].as_array().unwrap().iter().map(|row| row["tensor"].as_str().unwrap()).collect();
    assert_eq!(names[..2], ["step-0000/layer-000/z_first", "step-0000/layer-000/a_second"]);
    let row = &rows["tensors"][2];
    assert_eq!((&row["worst"]["index"], &row["worst"]["a"]), (&serde_json::json!([0, 0]), &2.0.into()));
    assert!((row["relative_l2"].as_f64().unwrap() - (6.0f64 / 91.0).sqrt()).abs() < 1e-9);
}

#[test]
fn what_is_missing_or_no_number_is_named() {
    let place = Place::new();
    let tensor = |name: &str, shape: &[usize], values: &[f32]| Tensor {
        name: name.into(),
        shape: shape.into(),
        values: values.into(),
    };
    let same = tensor("same", &[1], &[1.0]);
    let a = [same.clone(), tensor("bad", &[2, 2], &[1.0, 2.0, f32::NAN, 4.0]), tensor("alone", &[1], &[0.0])];
    let b = [same, tensor("bad", &[2, 2], &[1.0, 2.0, 3.0, 4.0]), tensor("shaped", &[1, 1], &[0.0])];
    write_tensors(&place.path("a.safetensors"), &a).unwrap();
    write_tensors(&place.path("b.safetensors"), &b).unwrap();
    let said = place.run(&["compare", "a.safetensors", "b.safetensors", "--limit", "1"]);
    said.refuses(1, "found 1 of 2 tensors beyond it, 2 on one side only", "table");
    for words in [
        "first with NaN or infinity on one side: bad\n",
        "1 only in A, the first alone\n",
        "1 only in B, the first shaped\n",
    ] {
        assert!(said.stderr.contains(words), "{words}: {said:?}");
    }
    assert!(said.stdout.contains("A: 1, first [1, 0]"), "{said:?}");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let place = Place::new();
    dump(&place, "a", |_| 0.0);
    std::fs::create_dir(place.path("empty")).unwrap();
    place.write("no.safetensors", "no");
    place.run(&["compare", "a", "none"]).refuses(1, "expected to read `none`, found: ", "--dump");
    place.run(&["compare", "a", "empty"]).refuses(1, "expected safetensors files in `empty`, found none", "--dump");
    let file = "a/step-0000/layer-000.safetensors";
    place.run(&["compare", "a", file]).refuses(2, "expected two files or two folders, found `a` and", "layer-000");
    place.run(&["compare", file, "no.safetensors"]).refuses(1, "expected a safetensors file at `no.safet", "--dump");
}
