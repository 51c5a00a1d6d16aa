//! `dsv4 bench` without a GPU: what would fit, and how fast it could be.

use tilekiln::report::RunnerReport;

use crate::place::{Place, oracle};

/// Whether this machine would measure instead.
fn has_gpu() -> bool {
    tilekiln::device::Gpu::count() > 0
}

#[test]
fn every_cell_says_how_many_layers_fit() {
    if has_gpu() {
        return;
    }
    let place = Place::new();
    let said = place.done(&["bench", "--synthetic", "flash", "--out", "plan.json"]);
    assert!(said.stderr.ends_with("no GPU at hand: planned, not measured\n"), "{said:?}");
    assert!(said.stdout.contains("| context | batch | layers |"), "{said:?}");
    let text = std::fs::read_to_string(place.path("plan.json")).unwrap();
    let report: RunnerReport = serde_json::from_str(&text).unwrap();
    let cells: Vec<(u32, u32)> = report.cells.iter().map(|cell| (cell.context, cell.batch)).collect();
    let expected = [1024, 8192, 65_536].into_iter().flat_map(|context| [1, 8, 64].map(|batch| (context, batch)));
    assert_eq!(cells, expected.collect::<Vec<_>>());
    for cell in &report.cells {
        assert!((15..=22).contains(&cell.layers) && cell.model_layers == 43, "{cell:?}");
        assert!(cell.prefill_floor_us > cell.decode_floor_us && cell.times.is_none(), "{cell:?}");
    }
}

#[test]
fn a_plan_follows_its_flags() {
    if has_gpu() {
        return;
    }
    let place = Place::new();
    let one = |flags: &[&str]| {
        let words = ["bench", "--synthetic", "pro", "--context", "8k", "--batch", "1"];
        let report: RunnerReport = serde_json::from_value(place.json(&[&words[..], flags].concat())).unwrap();
        report.cells[0].clone()
    };
    assert_eq!(one(&["--layers", "2"]).layers, 2);
    let (h100, b200) = (one(&[]), one(&["--plan-for", "b200"]));
    assert!(h100.layers < b200.layers && h100.model_layers == 61, "{h100:?} {b200:?}");
    assert!(one(&["--layers", "2", "--kv", "fp8"]).cache_bytes < one(&["--layers", "2"]).cache_bytes);
    assert!(one(&["--layers", "2", "--checkpoint", "native"]).weight_bytes < one(&["--layers", "2"]).weight_bytes);
}

#[test]
fn a_directory_is_planned_in_its_own_formats() {
    if has_gpu() {
        return;
    }
    let place = Place::new();
    let weights = |name: &str| {
        let words = ["bench", "--model-dir", &oracle(name), "--context", "1k", "--batch", "1"];
        let report: RunnerReport = serde_json::from_value(place.json(&words)).unwrap();
        assert_eq!((report.cells[0].layers, report.cells[0].model_layers), (5, 5));
        (report.meta.checkpoint, report.cells[0].weight_bytes)
    };
    let [(bf16, most), (native, _), (full, least)] = ["small-bf16", "small-native", "small-nvfp4_full"].map(weights);
    assert_eq!([bf16, native, full], ["bf16", "native", "modelopt nvfp4"]);
    assert!(least < most, "{least} {most}");
    let words = ["bench", "--model-dir", &oracle("small-bf16")];
    place.run(&words).refuses(2, "expected a context of at most 4096 tokens, found 8192", "limit");
}
