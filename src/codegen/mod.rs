//! Templates to source: one readable, self-contained `.cu` for each kernel, known by the hash of its text.
//!
//! A template is CUDA with a few `${ value }$` in its `Config`; `$` marks every generated thing. Includes are
//! flattened, each once, with `#line` marks, so that NVRTC's messages point at `templates/` and the cache key is the
//! hash of the text alone. `arch/` in an include stands for the folder of the target's class, or of the class that it
//! inherits.

mod flatten;
mod render;
mod wgmma;

use std::collections::BTreeMap;

use include_dir::{Dir, include_dir};
use serde::Serialize;

use crate::arch::ArchSpec;

/// What a kernel is rendered from. Two equal requests give the same text for one class of GPUs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Request {
    /// Folder in `templates/`; the kernel's entry point has the same name.
    pub template: &'static str,
    /// Values by root and field: `tile.stages` is `values["tile"]["stages"]`.
    pub values: Values,
    /// Tokens of the `wgmma` that the kernel uses, if it uses any.
    pub wgmma_tokens: Option<Widths>,
}

/// Widths of `wgmma`: every multiple of `step` up to `most`, both multiples of 8 up to 256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Widths {
    /// The narrowest.
    pub step: u32,
    /// The widest, a multiple of `step`.
    pub most: u32,
}

impl Widths {
    /// One width alone.
    pub fn single(tokens: u32) -> Self {
        Self { step: tokens, most: tokens }
    }

    /// All of them, the narrowest first.
    pub fn all(self) -> impl Iterator<Item = u32> {
        (self.step..=self.most).step_by(self.step as usize)
    }
}

/// Roots, fields and values of a template.
pub type Values = BTreeMap<&'static str, BTreeMap<&'static str, Value>>;

/// One value of a template.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// A number.
    Number(u64),
    /// A C++ word: a type, `true` or `false`, an id in a comment.
    Word(String),
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Word(flag.to_string())
    }
}

impl From<&str> for Value {
    fn from(word: &str) -> Self {
        Self::Word(word.to_string())
    }
}

impl From<String> for Value {
    fn from(word: String) -> Self {
        Self::Word(word)
    }
}

/// A rendered kernel, ready for NVRTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Entry point.
    pub entry: &'static str,
    /// NVRTC target, such as `sm_90a`.
    pub target: String,
    /// The whole text.
    pub text: String,
    /// blake3 of target and text, in hex: the kernel's name in every cache.
    pub hash: String,
}

/// Why a template could not be rendered: a bug in a template, or a request of another version.
#[derive(Debug, thiserror::Error)]
pub enum CodegenError {
    /// There is no such template.
    #[error("expected a folder `{template}` with kernel.cu in templates/, found none")]
    NoTemplate {
        /// What was asked for.
        template: String,
    },
    /// An include that leads nowhere.
    #[error("{file}:{line}: expected an include of lib/, arch/ or generated/, found `{include}`, which is not there")]
    NoInclude {
        /// File with the include.
        file: String,
        /// Its line.
        line: usize,
        /// What it asks for.
        include: String,
    },
    /// tera's message, with line and column of the template.
    #[error("{template}: {message}")]
    Template {
        /// The template.
        template: String,
        /// tera's report.
        message: String,
    },
}

/// Renders `request` for `target`, a chip of class `arch`.
///
/// # Errors
/// [`CodegenError`] if the template, an include or a value is not there.
pub fn render(request: &Request, arch: &'static ArchSpec, target: &str) -> Result<Source, CodegenError> {
    let flat = flatten::flatten(request, arch)?;
    let text = render::render(request, arch, &flat)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(target.as_bytes()).update(b"\0").update(text.as_bytes());
    let hash = hasher.finalize().to_hex()[..32].to_string();
    Ok(Source { entry: request.template, target: target.to_string(), text, hash })
}

/// Names of all templates, in order.
pub fn templates() -> Vec<&'static str> {
    let mut names: Vec<&str> = TEMPLATES
        .dirs()
        .filter(|dir| dir.get_file(dir.path().join("kernel.cu")).is_some())
        .filter_map(|dir| dir.path().to_str())
        .collect();
    names.sort_unstable();
    names
}

/// Text of one file in `templates/`.
fn file(path: &str) -> Option<&'static str> {
    TEMPLATES.get_file(path).and_then(|file| file.contents_utf8())
}

static TEMPLATES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/templates");
