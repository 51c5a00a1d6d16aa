//! The house rules that a machine can check, for Rust, for kernels and for the README. CONTRIBUTING.md has the reasons.
//!
//! Each test names one rule and lists every place that breaks it. A rule is changed in the open, here and in
//! CONTRIBUTING.md, never by an exception that nobody sees.

#[path = "sources/functions.rs"]
mod functions;
mod sources;

use functions::{functions, is_cuda, is_rust};
use sources::{SourceFile, expect_none, file, files};

const MOST_LINES: usize = 600;
const MOST_FUNCTION_LINES: usize = 60;
const MOST_PARAMETERS: usize = 5;
const MOST_COLUMNS: usize = 120;
const MOST_TAGS: usize = 20;
const LEAST_COMMENT_PERCENT: usize = 15;

/// Files with `unsafe`: calls of NVRTC and the driver, launches, whose parameters no type can check, and maps of files.
const UNSAFE: [&str; 17] = [
    "src/device/driver.rs",
    "src/device/graph.rs",
    "src/device/kernel.rs",
    "src/device/memory.rs",
    "src/device/mod.rs",
    "src/dispatch/bound.rs",
    "src/dispatch/prepare.rs",
    "src/engine/files/map.rs",
    "src/engine/kernels.rs",
    "src/engine/observe.rs",
    "src/engine/packing.rs",
    "src/jit/nvrtc.rs",
    "src/models/dsv4/forward/a4.rs",
    "src/models/dsv4/forward/pass.rs",
    "src/tuner/live/ceiling.rs",
    "src/tuner/live/mod.rs",
    "src/tuner/live/tools.rs",
];

/// Files that read a variable, and what for.
const READS_ENVIRONMENT: [(&str, &str); 4] = [
    ("build.rs", "the commit of a build without git"),
    ("src/environment.rs", "everything else"),
    ("tests/golden.rs", "whether to write what is expected"),
    ("tests/store_crash.rs", "what a child is to do"),
];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 7] = ["common", "helper", "helpers", "manager", "misc", "types", "util"];

#[test]
fn every_rust_file_opens_with_what_it_is() {
    let without = rust().into_iter().filter(|file| !file.text.starts_with("//! "));
    expect_none("a file opens with `//!`", without.map(|file| file.path).collect());
}

#[test]
fn names_say_what_is_inside() {
    let all = ["src", "templates", "tests", "benches", "examples"].map(|folder| files(folder, &[""]));
    let is_empty = |part: &str| EMPTY_NAMES.contains(&part.split('.').next().unwrap_or(""));
    let empty = all.iter().flatten().filter(|file| file.path.split('/').any(is_empty));
    expect_none("no file or folder is called after nothing", empty.map(|file| file.path.clone()).collect());
}

#[test]
fn files_are_short() {
    let lengths = |files: &[SourceFile]| {
        let mut lengths: Vec<_> =
            files.iter().map(|file| (file.without_tests().lines().count(), file.path.clone())).collect();
        lengths.sort();
        lengths
    };
    let mut long = Vec::new();
    for (what, files) in [("Rust", rust()), ("CUDA", cuda())] {
        let lengths = lengths(&files);
        let total: usize = lengths.iter().map(|(lines, _)| lines).sum();
        let at = |share: f64| lengths[((lengths.len() - 1) as f64 * share) as usize].0;
        println!("{what}: {} files, {total} lines, median {}, p90 {}", lengths.len(), at(0.5), at(0.9));
        long.extend(
            lengths
                .into_iter()
                .filter(|(lines, _)| *lines > MOST_LINES)
                .map(|(lines, path)| format!("{path}: {lines}")),
        );
    }
    expect_none(&format!("a file has at most {MOST_LINES} lines without its tests"), long);
}

#[test]
fn lines_are_no_wider_than_a_screen() {
    let mut wide = Vec::new();
    for file in rust().iter().chain(&cuda()) {
        for (line_idx, line) in file.text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > MOST_COLUMNS {
                wide.push(format!("{}:{}: {columns}", file.path, line_idx + 1));
            }
            if line.ends_with(' ') || line.contains('\t') {
                wide.push(format!("{}:{}: trailing space or tab", file.path, line_idx + 1));
            }
        }
    }
    expect_none(&format!("a line has at most {MOST_COLUMNS} columns"), wide);
}

#[test]
fn functions_fit_on_a_screen_and_take_few_parameters() {
    let mut broken = Vec::new();
    for file in rust() {
        for function in functions(&file.text, is_rust) {
            let at = format!("{}:{}: {}", file.path, function.line, function.name());
            if function.lines > MOST_FUNCTION_LINES {
                broken.push(format!("{at} has {} lines", function.lines));
            }
            if function.parameters() > MOST_PARAMETERS {
                broken.push(format!("{at} takes {} parameters", function.parameters()));
            }
        }
    }
    // A kernel's parameters are its operands: they may be many.
    for file in cuda() {
        let long = functions(&file.text, is_cuda).into_iter().filter(|function| function.lines > MOST_FUNCTION_LINES);
        broken.extend(long.map(|function| format!("{}:{}: {} lines", file.path, function.line, function.lines)));
    }
    expect_none(
        &format!("a function has at most {MOST_FUNCTION_LINES} lines and {MOST_PARAMETERS} parameters"),
        broken,
    );
}

#[test]
fn the_environment_is_read_in_one_place() {
    let reads = |file: &SourceFile| file.text.contains(concat!("env::", "var"));
    let mut found: Vec<String> = rust().iter().filter(|file| reads(file)).map(|file| file.path.clone()).collect();
    found.sort();
    assert_eq!(found, READS_ENVIRONMENT.map(|(path, _)| path), "files that read a variable");
}

#[test]
fn nothing_is_left_for_later() {
    const LATER: [&str; 6] = [
        concat!("todo", "!"),
        concat!("unimplemented", "!"),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("X", "XX"),
        concat!("#[ig", "nore"),
    ];
    let mut found = Vec::new();
    for file in rust().iter().chain(&cuda()).chain(&prose()) {
        for (line_idx, line) in file.text.lines().enumerate() {
            found.extend(
                LATER
                    .iter()
                    .filter(|word| line.contains(*word))
                    .map(|word| format!("{}:{}: {word}", file.path, line_idx + 1)),
            );
        }
    }
    expect_none("what is left to do is an issue, not a comment", found);
}

#[test]
fn the_library_does_not_unwrap() {
    let found = ["src", "examples"].into_iter().flat_map(|folder| files(folder, &[".rs"])).flat_map(|file| {
        let unwraps =
            |(_, line): &(usize, &str)| line.contains(concat!(".unwrap", "()")) && !line.trim_start().starts_with("//");
        let lines: Vec<usize> =
            file.without_tests().lines().enumerate().filter(unwraps).map(|(idx, _)| idx + 1).collect();
        lines.into_iter().map(move |line| format!("{}:{line}", file.path))
    });
    expect_none("outside tests an error is returned, or `expect` says why it cannot be", found.collect());
}

#[test]
fn unsafe_stands_in_the_files_of_the_list() {
    let is_unsafe = |line: &str| {
        ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|word| line.contains(word))
            && !line.trim_start().starts_with("//")
    };
    let found =
        files("src", &[".rs"]).into_iter().filter(|file| file.text.lines().any(is_unsafe)).map(|file| file.path);
    assert_eq!(found.collect::<Vec<_>>(), UNSAFE, "files with `unsafe`");
}

#[test]
fn ptx_stands_in_the_folders_of_the_architectures() {
    let found =
        cuda().into_iter().filter(|file| file.text.contains("asm") && !file.path.starts_with("templates/arch/"));
    let has_code =
        |file: &SourceFile| file.text.lines().any(|line| line.contains("asm(") || line.contains("asm volatile"));
    expect_none("PTX outside of templates/arch/", found.filter(has_code).map(|file| file.path).collect());
}

/// A thread that leaves before it has waited breaks the chain: the launch behind may start before the one ahead has
/// ended. Looked at are bodies that wait themselves, up to their first wait. And `advance` lets nobody start early:
/// others read its arrays before they wait.
#[test]
fn kernels_wait_before_they_leave() {
    let mut broken = Vec::new();
    for file in cuda().into_iter().filter(|file| file.path.ends_with("kernel.cu")) {
        let code = file.text.lines().map(|line| line.split("//").next().unwrap_or(line));
        let body: Vec<&str> = code.skip_while(|line| !line.contains("extern \"C\"")).collect();
        let waits = body.iter().position(|line| line.contains("wait_for_dependency()"));
        let leaves = body.iter().position(|line| line.contains("return"));
        if waits.zip(leaves).is_some_and(|(waits, leaves)| leaves < waits) {
            broken.push(format!("{}: leaves before it has waited", file.path));
        }
        if file.path.contains("/advance/") && body.iter().any(|line| line.contains("launch_dependents()")) {
            broken.push(format!("{}: lets others start before the arrays are written", file.path));
        }
    }
    expect_none("a kernel waits for the launch ahead", broken);
}

#[test]
fn templates_are_cuda_with_a_few_values() {
    let mut broken = Vec::new();
    for file in cuda() {
        let tags = file.text.matches("${").count();
        if tags > MOST_TAGS || file.text.contains("$%") {
            broken.push(format!("{}: {tags} values, blocks of tera: {}", file.path, file.text.contains("$%")));
        }
        if !file.path.ends_with("kernel.cu") && tags > 0 {
            broken.push(format!("{}: a header has no values of its own", file.path));
        }
    }
    expect_none(&format!("a template has at most {MOST_TAGS} values and no logic"), broken);
}

#[test]
fn kernels_explain_themselves() {
    let mut broken = Vec::new();
    for file in cuda().iter().filter(|file| file.path.ends_with("kernel.cu")) {
        let lines = || file.text.lines().map(str::trim).filter(|line| !line.is_empty());
        let percent = 100 * lines().filter(|line| line.starts_with("//")).count() / lines().count();
        if percent < LEAST_COMMENT_PERCENT {
            broken.push(format!("{}: {percent} % of the lines are comments", file.path));
        }
        let name = file.path.trim_start_matches("templates/").trim_end_matches("/kernel.cu");
        let is_gemm = ["dense_", "moe_mma", "moe_staged", "moe_wgmma"].iter().any(|prefix| name.starts_with(prefix));
        let formula = format!("// {name}: ");
        let anywhere = [&formula[..], "arch: templates/arch/", "in memory", "block"];
        let of_a_gemm = [
            "tile: src/kernels/",
            "//   operand",
            "block = kConsumers|block = kWarps",
            "ring",
            "//   barrier",
            "// Tuned: ",
            "// Exactness: ",
            " = ",
        ];
        let parts = anywhere.iter().chain(of_a_gemm.iter().filter(|_| is_gemm));
        let is_missing = |part: &&&str| !part.split('|').any(|choice| head(&file.text).contains(choice));
        broken.extend(parts.filter(is_missing).map(|part| format!("{}: its head lacks `{part}`", file.path)));
    }
    expect_none("a kernel's head says what, on what, who, when, how exactly", broken);
}

#[test]
fn headers_say_what_they_are() {
    let silent = cuda().into_iter().filter(|file| file.path.ends_with(".cuh") && !file.text.starts_with("// "));
    expect_none("a header opens with a comment", silent.map(|file| file.path).collect());
}

/// `dispatch::kernels_hash` leaves comments out line by line.
#[test]
fn a_comment_of_a_kernel_ends_with_its_line() {
    // A quote as a character would hide where a text ends.
    let is_hard = |text: &str| text.contains("/*") || text.contains("'\"'");
    let hard = cuda().into_iter().filter(|file| is_hard(&file.text));
    expect_none("a comment begins with // and ends with its line", hard.map(|file| file.path).collect());
}

/// Numbers of the README come from a tool, which writes them between two marks. The rest of the text has none with a
/// unit.
#[test]
fn numbers_of_the_readme_are_written_by_a_tool() {
    let readme = file("README.md");
    let (before, rest) = readme
        .text
        .split_once("<!-- results: begin (written by `autotune report`) -->\n")
        .expect("the mark that opens the results");
    let (_, after) = rest.split_once("<!-- results: end -->\n").expect("the mark that closes the results");
    const UNITS: [&str; 12] =
        ["us", "ms", "s", "ns", "x", "%", "TFLOP/s", "GB/s", "TB/s", "tokens/s", "seconds", "minutes"];
    let mut typed = Vec::new();
    for text in [before, after] {
        let words: Vec<&str> =
            text.split_whitespace().map(|word| word.trim_matches(&['(', ')', ',', '.', ';', '|', '`'][..])).collect();
        for (idx, word) in words.iter().enumerate() {
            let unit = word.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
            let is_number = unit.len() < word.len();
            let unit = if unit.is_empty() { words.get(idx + 1).copied().unwrap_or("") } else { unit };
            if is_number && UNITS.contains(&unit) {
                typed.push(format!("`{word} {unit}`"));
            }
        }
    }
    expect_none("a measured number outside of the marks", typed);
}

fn rust() -> Vec<SourceFile> {
    let folders = ["src", "tests", "benches", "examples"].into_iter().flat_map(|folder| files(folder, &[".rs"]));
    [file("build.rs")].into_iter().chain(folders).collect()
}

fn cuda() -> Vec<SourceFile> {
    files("templates", &[".cu", ".cuh"])
}

fn prose() -> Vec<SourceFile> {
    let pages = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"];
    pages.into_iter().map(file).chain(files("docs", &[".md"])).collect()
}

/// The comment at the top of a template, with the note that tera removes.
fn head(text: &str) -> &str {
    text.find("\n#include").map_or(text, |at| &text[..at])
}
