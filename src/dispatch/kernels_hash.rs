//! What a tile's kernels are, in sixteen digits: a record with other digits is stale.
//!
//! Comments have no say in them: a sentence may become clearer, and no winner is lost.

use crate::arch::GpuSpec;
use crate::codegen;
use crate::kernels;
use crate::problem::{Problem, Tile};

/// Hash of the code of all kernels of `tile`; `None` if the tile is not valid any more.
pub fn kernels_hash(problem: &Problem, tile: &Tile, gpu: &GpuSpec) -> Option<String> {
    let plan = kernels::plan(problem, tile, gpu).ok()?;
    let mut hasher = blake3::Hasher::new();
    for request in plan.kernels() {
        let source = codegen::render(request, gpu.arch, &gpu.target).ok()?;
        add(&mut hasher, &source.target, &source.text);
    }
    Some(hasher.finalize().to_hex()[..16].to_string())
}

/// Adds a kernel without comments, blank lines and indentation.
fn add(hasher: &mut blake3::Hasher, target: &str, text: &str) {
    hasher.update(target.as_bytes()).update(b"\0");
    for line in text.lines().map(code_of).filter(|code| !code.is_empty()) {
        hasher.update(line.as_bytes()).update(b"\n");
    }
    hasher.update(b"\0");
}

/// What stands in `line` beside a comment. Our templates have no comment of more than one line (`tests/tidy.rs`).
fn code_of(line: &str) -> &str {
    let bytes = line.as_bytes();
    let mut is_text = false;
    let mut idx = 0;
    while idx < bytes.len() {
        match bytes[idx] {
            b'\\' if is_text => idx += 1,
            b'"' => is_text = !is_text,
            b'/' if !is_text && bytes.get(idx + 1) == Some(&b'/') => return line[..idx].trim(),
            _ => {}
        }
        idx += 1;
    }
    line.trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_no_code_but_texts_are() {
        let cases = [
            ("  // a comment", ""),
            ("", ""),
            ("  int x = 1;  // why", "int x = 1;"),
            ("int y = a / b;", "int y = a / b;"),
            (
                r#"asm volatile("// no comment \" // nor this" ::);  // one"#,
                r#"asm volatile("// no comment \" // nor this" ::);"#,
            ),
            ("#include <x>", "#include <x>"),
        ];
        for (line, code) in cases {
            assert_eq!(code_of(line), code, "{line}");
        }
    }

    #[test]
    fn comments_leave_the_digits_alone_and_code_does_not() {
        let digits = |text| {
            let mut hasher = blake3::Hasher::new();
            add(&mut hasher, "sm_90a", text);
            hasher.finalize()
        };
        let kernel = digits("// why\nint x = 1;\n  int y = 2;  // how\n");
        assert_eq!(kernel, digits("int x = 1;\n\nint y = 2;\n// a longer sentence"));
        assert_ne!(kernel, digits("int x = 1;\nint y = 3;\n"));
        assert_ne!(kernel, digits("int x = 1;int y = 2;\n"));
    }

    #[test]
    fn another_tile_has_other_digits() {
        let gpu = GpuSpec::named("h100").unwrap();
        let problem: Problem = "nvfp4 4096x4096 m1".parse().unwrap();
        let tile = kernels::default_tile(&problem, gpu).unwrap();
        let digits = |tile: &Tile| kernels_hash(&problem, tile, gpu).unwrap();
        let other = kernels::space(kernels::family(tile.family()).unwrap(), &problem, gpu).tiles;
        let other = other.iter().find(|other| **other != tile).unwrap();
        assert_eq!(digits(&tile).len(), 16);
        assert_ne!(digits(&tile), digits(other));
    }
}
