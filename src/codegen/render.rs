//! tera 2 with delimiters that CUDA does not use: `${ value }$`, `$% tag %$`, `$# note #$`.
//!
//! tera's own would corrupt a kernel without an error: `{{0}}` is an initialiser, `{%0, %1}` an operand list.

use std::collections::BTreeMap;

use tera::{Context, Delimiters, Tera};

use super::{CodegenError, Request};
use crate::arch::ArchSpec;

/// Fills the values of `request` into `flat`. A value that is not there is an error with line and column.
pub(super) fn render(request: &Request, arch: &ArchSpec, flat: &str) -> Result<String, CodegenError> {
    let refuse = |error: tera::Error| CodegenError::Template {
        template: request.template.to_string(),
        message: error.to_string(),
    };
    let mut tera = Tera::default();
    tera.set_delimiters(Delimiters {
        block_start: "$%".into(),
        block_end: "%$".into(),
        variable_start: "${".into(),
        variable_end: "}$".into(),
        comment_start: "$#".into(),
        comment_end: "#$".into(),
    })
    .map_err(refuse)?;
    tera.autoescape_on(Vec::<&str>::new());
    tera.add_raw_template("kernel.cu", flat).map_err(refuse)?;
    let mut context = Context::new();
    context.insert("arch", &BTreeMap::from([("name", arch.name.as_str())]));
    for (root, fields) in &request.values {
        context.insert(*root, fields);
    }
    tera.render("kernel.cu", &context).map_err(refuse)
}
