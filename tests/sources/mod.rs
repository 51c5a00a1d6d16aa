//! The checkout's own files, as the tests of the house rules read them.

use std::fs;
use std::path::Path;

/// One text file of the checkout.
pub struct SourceFile {
    /// Path from the root of the checkout, such as `src/jit/mod.rs`.
    pub path: String,
    /// The whole text.
    pub text: String,
}

impl SourceFile {
    /// The text up to its unit tests, which stand at the end of a file.
    pub fn without_tests(&self) -> &str {
        self.text.find("#[cfg(test)]\nmod tests {").map_or(&self.text, |at| &self.text[..at])
    }
}

/// The file at `path`.
pub fn file(path: &str) -> SourceFile {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = fs::read_to_string(&from).unwrap_or_else(|error| panic!("{path}: {error}"));
    SourceFile { path: path.to_string(), text }
}

/// Every file below `folder` whose name ends in one of `endings`, by path.
pub fn files(folder: &str, endings: &[&str]) -> Vec<SourceFile> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
                found.push(file(&path.strip_prefix(root).unwrap().to_string_lossy()));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Panics with one line for each violation, if there are any.
pub fn expect_none(rule: &str, violations: Vec<String>) {
    assert!(violations.is_empty(), "{rule}:\n  {}", violations.join("\n  "));
}
