//! The text of every family's default kernels, for every class of GPUs, is exactly what `testdata/golden/` holds.
//!
//! So a change of a template shows in review as what NVRTC will read, and a change that should leave the text alone is
//! seen to do so. `TILEKILN_WRITE_GOLDEN=1 cargo test --test golden` writes the files anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tilekiln::arch::{ArchSpec, GpuSpec};
use tilekiln::codegen::{self, Request, Value};
use tilekiln::kernels::runner::{
    self, ActivationScale, AttendShape, Balance, CompressShape, Compressed, Connection, Element, EntryRounding,
    FakeQuantise, IndexShape, QkvNorm, Rotate, RotateKind, Route, SlotRows, StoreShape,
};
use tilekiln::kernels::{self, Family};
use tilekiln::problem::{Output, Problem};
use tilekiln::quant::{Activations, PackedLayout, WeightFormat};

#[test]
fn default_kernels_are_what_they_were() {
    let rendered = rendered();
    if std::env::var_os("TILEKILN_WRITE_GOLDEN").is_some() {
        return write(&rendered);
    }
    let mut differences = Vec::new();
    for (path, text) in &rendered {
        match fs::read_to_string(folder().join(path)) {
            Ok(kept) if kept == *text => {}
            Ok(kept) => differences.push(format!("{}:{}", path.display(), first_difference(&kept, text))),
            Err(error) => differences.push(format!("{}: {error}", path.display())),
        }
    }
    let left = kept_files().into_iter().filter(|path| !rendered.contains_key(path));
    differences.extend(left.map(|path| format!("{}: nothing renders it any more", path.display())));
    assert!(
        differences.is_empty(),
        "rendered kernels differ from testdata/golden/:\n  {}\n\
         if that is what was wanted, `TILEKILN_WRITE_GOLDEN=1 cargo test --test golden` writes them; review the diff",
        differences.join("\n  ")
    );
}

#[test]
fn every_template_is_kept() {
    let rendered = rendered();
    let is_kept = |template: &&str| {
        // A template with two steps is kept as these.
        let stems = [template.to_string(), format!("{template}_up"), format!("{template}_down")];
        rendered.keys().any(|path| path.file_stem().is_some_and(|stem| stems.iter().any(|known| stem == &known[..])))
    };
    let missing: Vec<&str> = codegen::templates().into_iter().filter(|template| !is_kept(template)).collect();
    assert!(missing.is_empty(), "templates that no file in testdata/golden/ shows: {missing:?}");
}

/// Everything that is kept, by path from `testdata/golden/`.
fn rendered() -> BTreeMap<PathBuf, String> {
    let mut rendered: BTreeMap<PathBuf, String> = ArchSpec::all().iter().flat_map(kernels_of).collect();
    // Tools are the same for every class but for its name in their head.
    let hopper = ArchSpec::named("sm90a").expect("the class of the GPU that everything was measured on");
    rendered.extend(
        tools().iter().chain(&attention(hopper)).chain(&elementwise()).map(|tool| file_of(hopper, tool.template, tool)),
    );
    rendered
}

/// The default kernels of every family that serves one of [`PROBLEMS`] on `arch`. The first problem that reaches a
/// kernel stands for all.
fn kernels_of(arch: &'static ArchSpec) -> BTreeMap<PathBuf, String> {
    let gpu = GpuSpec::all().iter().find(|gpu| gpu.arch == arch).expect("every class has a GPU in tuning_db/");
    let mut rendered = BTreeMap::new();
    for text in PROBLEMS {
        let problem: Problem = text.parse().unwrap();
        for family in kernels::serving(&problem, arch) {
            let plan = family.plan(&problem, &family.default_tile(&problem, gpu), gpu);
            for request in plan.kernels() {
                let (path, text) = file_of(arch, &stem(family, request), request);
                rendered.entry(path).or_insert(text);
            }
        }
    }
    rendered
}

/// Name of a kernel's file: its template, or for one with two steps its family, whether it rounds its rows where it
/// may, and the step.
fn stem(family: &dyn Family, request: &Request) -> String {
    let is = |name: &str| {
        let value = request.values.get("problem").and_then(|problem| problem.get(name))?;
        Some(matches!(value, Value::Word(word) if word == "true"))
    };
    let name = if is("rounds") == Some(true) { format!("{}_a8", family.name()) } else { family.name().to_string() };
    match is("is_down") {
        Some(true) => format!("{name}_down"),
        Some(false) => format!("{name}_up"),
        None => request.template.to_string(),
    }
}

fn file_of(arch: &'static ArchSpec, stem: &str, request: &Request) -> (PathBuf, String) {
    let source = codegen::render(request, arch, &arch.targets[0]).unwrap_or_else(|error| panic!("{stem}: {error}"));
    (Path::new(&arch.name).join(format!("{stem}.cu")), source.text)
}

fn tools() -> Vec<Request> {
    let format = WeightFormat::Nvfp4;
    vec![
        kernels::compare(Output::Bf16),
        kernels::fill(),
        kernels::pack(PackedLayout::of(format, Activations::A16)),
        kernels::pack_scan(format),
        kernels::probe(format),
        kernels::reference(format, Activations::A16),
        kernels::reference_fp8(),
        kernels::reference_mix(Output::F32),
        kernels::reference_moe(),
        kernels::sabotage(),
        kernels::stream(8),
    ]
}

/// Attention of the runner, as DeepSeek-V4-Flash has it in a layer with an indexer.
fn attention(arch: &ArchSpec) -> Vec<Request> {
    let compressed = Compressed::Listed { ratio: 4, top_k: 512 };
    let shape = AttendShape { heads: 64, head_dim: 512, rope_dim: 64, norm_epsilon: 1e-6, window: 128, compressed };
    let (head_dim, rounding) = (512, EntryRounding::FakeFp8);
    let entries = CompressShape { head_dim, rope_dim: 64, ratio: 4, series: 2, rounding };
    let keys = CompressShape { head_dim: 128, rounding: EntryRounding::HadamardMxfp4, ..entries };
    let (state, index_state) = (Some((&entries).into()), Some((&keys).into()));
    let store = StoreShape { head_dim, window: 128, state, index_state };
    let index = IndexShape { heads: 64, head_dim: 128, ratio: 4, top_k: 512 };
    let ops = [
        runner::attend(&shape, arch, 1, 10, None),
        runner::attend(&shape, arch, 8192, 1, None),
        runner::attend_combine(&shape, arch, 1, Some(&store)),
        runner::compress(&entries, 1),
        runner::index_score(&index, 1, 16_384),
        runner::store_step(&store, 1),
        runner::top_k(&index, 1),
    ];
    ops.into_iter().map(|op| op.kernel).collect()
}

/// What stands between the runner's GEMMs, for a step of one token of DeepSeek-V4-Flash.
fn elementwise() -> Vec<Request> {
    let (hidden, top_k, rope_dim, norm_epsilon) = (4096, 6, 64, 1e-6);
    let (element, hc_epsilon, sinkhorn_rounds) = (Element::Bf16, 1e-6, 20);
    let connection = Connection { hidden, element, is_head: false, norm_epsilon, hc_epsilon, sinkhorn_rounds };
    let qkv = QkvNorm { q_rank: 1024, head_dim: 512, rope_dim, norm_epsilon, has_fake_fp8: true };
    let index = Rotate { heads: 64, dim: 128, rope_dim, kind: RotateKind::HadamardMxfp4 };
    let activations = FakeQuantise { k: hidden, rows_per_token: 1, scale: ActivationScale::PerToken };
    let rows = SlotRows { top_k, hidden };
    let ops = [
        runner::embed(1, 129_280, &connection),
        runner::hc_mix(1, &connection, true),
        runner::hc_pre(1, &connection, Balance::Here),
        runner::qkv_norm(1, &qkv),
        runner::rotate(1, &index),
        runner::route(1, &Route { experts: 256, top_k, scale: 1.5, hashed_vocabulary: None }, Some(&connection)),
        runner::gather_rows(1, hidden),
        runner::sample(1, 129_280),
        runner::advance(1),
        runner::fake_quantise(1, &activations),
        runner::amax(1, &activations),
        runner::find_non_finite(element),
        runner::combine_slots(1, rows),
        runner::expand_rows(1, rows),
    ];
    ops.into_iter().map(|op| op.kernel).collect()
}

/// Line and words of the first difference.
fn first_difference(kept: &str, text: &str) -> String {
    let (mut kept, mut text) = (kept.lines(), text.lines());
    for line in 1.. {
        match (kept.next(), text.next()) {
            (None, None) => break,
            (kept, text) if kept == text => {}
            (kept, text) => {
                let or_end = |line: Option<&str>| line.map_or("the end".to_string(), |line| format!("`{line}`"));
                return format!("{line}: expected {}, found {}", or_end(kept), or_end(text));
            }
        }
    }
    "1: only the ends of lines differ".to_string()
}

fn write(rendered: &BTreeMap<PathBuf, String>) {
    for path in kept_files() {
        fs::remove_file(folder().join(path)).unwrap();
    }
    for (path, text) in rendered {
        let path = folder().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let bytes: usize = rendered.values().map(String::len).sum();
    println!("wrote {} files, {bytes} bytes, to {}", rendered.len(), folder().display());
}

/// Every file of `testdata/golden/`, from there.
fn kept_files() -> Vec<PathBuf> {
    let entries = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let files = entries(folder()).flat_map(entries);
    files.map(|path| path.strip_prefix(folder()).unwrap().to_path_buf()).collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/golden")
}

/// One problem for each kernel, as DeepSeek-V4-Flash has them.
const PROBLEMS: [&str; 12] = [
    "nvfp4 4096x8192 m16",
    "nvfp4 4096x8192 m1024",
    "nvfp4 4096x8192 a8 m1024",
    "moe nvfp4 256 top6 4096x2048 m1",
    "moe nvfp4 256 top6 4096x2048 m16",
    "moe nvfp4 256 top6 4096x2048 m1024",
    "quantise nvfp4 k4096 m16",
    "moe nvfp4 256 top6 4096x2048 a8 m1024",
    "hc bf16 24x16384 m1",
    "hc f32 24x16384 m1024",
    "moe nvfp4 256 top6 4096x2048 a8 m1",
    "moe nvfp4 256 top6 4096x2048 a8 m16",
];
