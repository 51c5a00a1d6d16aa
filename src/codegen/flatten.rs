//! Includes to text: each file once, in order of first use, with `#line` marks back to `templates/`.

use std::collections::HashSet;

use super::{CodegenError, Request, file, wgmma};
use crate::arch::ArchSpec;

/// The template of `request` with everything that it includes for `arch`.
pub(super) fn flatten(request: &Request, arch: &'static ArchSpec) -> Result<String, CodegenError> {
    let path = format!("{}/kernel.cu", request.template);
    let template = file(&path).ok_or_else(|| CodegenError::NoTemplate { template: request.template.to_string() })?;
    let mut flattener = Flattener { request, arch, seen: HashSet::new(), out: String::with_capacity(64 << 10) };
    flattener.append(&path, template)?;
    Ok(flattener.out)
}

struct Flattener<'a> {
    request: &'a Request,
    arch: &'static ArchSpec,
    seen: HashSet<String>,
    out: String,
}

impl Flattener<'_> {
    fn append(&mut self, path: &str, text: &str) -> Result<(), CodegenError> {
        for (line_idx, line) in text.lines().enumerate() {
            let line_number = line_idx + 1;
            match included(line) {
                Some(include) => {
                    if self.include(path, line_number, include)? {
                        self.mark(path, line_number + 1);
                    }
                }
                None => {
                    self.out.push_str(line);
                    self.out.push('\n');
                    // A comment of tera leaves no lines behind, so the count starts anew after it.
                    if line.trim_end().ends_with("-#$") {
                        self.mark(path, line_number + 1);
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether anything was appended: a file comes once.
    fn include(&mut self, from: &str, line: usize, include: &str) -> Result<bool, CodegenError> {
        if !self.seen.insert(include.to_string()) {
            return Ok(false);
        }
        let wrapper: Option<fn(_) -> String> = match include {
            "generated/wgmma.cuh" => Some(wgmma::wrappers),
            "generated/wgmma_e4m3.cuh" => Some(wgmma::e4m3_wrappers),
            _ => None,
        };
        if let Some(wrapper) = wrapper {
            let widths = self.request.wgmma_tokens.ok_or_else(|| missing(from, line, include))?;
            self.mark(include, 1);
            self.out.push_str(&wrapper(widths));
            return Ok(true);
        }
        let (path, text) = self.resolve(include).ok_or_else(|| missing(from, line, include))?;
        self.mark(&path, 1);
        self.append(&path, text)?;
        Ok(true)
    }

    /// `arch/x.cuh` is looked for in the folder of the class, then in those that it inherits from.
    fn resolve(&self, include: &str) -> Option<(String, &'static str)> {
        match include.strip_prefix("arch/") {
            Some(name) => self.arch.lineage().into_iter().find_map(|arch| {
                let path = format!("arch/{}/{name}", arch.name);
                file(&path).map(|text| (path, text))
            }),
            None => file(include).map(|text| (include.to_string(), text)),
        }
    }

    fn mark(&mut self, path: &str, line: usize) {
        self.out.push_str(&format!("#line {line} \"templates/{path}\"\n"));
    }
}

fn missing(file: &str, line: usize, include: &str) -> CodegenError {
    CodegenError::NoInclude { file: format!("templates/{file}"), line, include: include.to_string() }
}

/// What `line` includes, if it is an include.
fn included(line: &str) -> Option<&str> {
    line.strip_prefix("#include \"")?.strip_suffix('"')
}
