//! The first value that is not finite: which op wrote it, in which layer, for which token, and how large its inputs
//! were when they were last fine.

use std::collections::HashMap;

/// Looks at the values of a run until one is not finite.
#[derive(Debug, Default)]
pub struct FiniteCheck {
    /// Largest magnitude of each op's last output, all layers and tokens of a step together.
    amax: HashMap<(Option<u32>, String), f32>,
}

/// What an op wrote.
#[derive(Clone, Copy, Debug)]
pub struct Written<'a> {
    /// Its layer; `None` before and behind the layers.
    pub layer: Option<u32>,
    /// The op's name.
    pub op: &'a str,
    /// The ops that it read, with their layers.
    pub inputs: &'a [(Option<u32>, &'a str)],
    /// Position of the first row's token.
    pub first_token: usize,
    /// Values of a row, one row a token.
    pub columns: usize,
    /// `[tokens, columns]`.
    pub values: &'a [f32],
}

/// A NaN or an infinity.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(
    "expected finite values from `{op}`{}, found {value} at token {token}, column {column}{}{}",
    layer.map(|layer| format!(" of layer {layer}")).unwrap_or_default(),
    others(*count),
    inputs_of(inputs)
)]
pub struct NotFinite {
    /// Its layer.
    pub layer: Option<u32>,
    /// The op that wrote it.
    pub op: String,
    /// Position of its token.
    pub token: usize,
    /// Place in the token's row.
    pub column: usize,
    /// NaN or an infinity.
    pub value: f32,
    /// How many the op wrote.
    pub count: usize,
    /// Each input's largest magnitude when it was last finite.
    pub inputs: Vec<(String, f32)>,
}

impl FiniteCheck {
    /// Looks at what an op wrote.
    ///
    /// # Errors
    /// [`NotFinite`] for the first NaN or infinity.
    pub fn look(&mut self, written: Written<'_>) -> Result<(), NotFinite> {
        let Written { layer, op, inputs, first_token, columns, values } = written;
        let Some(idx) = values.iter().position(|value| !value.is_finite()) else {
            let amax = values.iter().fold(0.0f32, |amax, value| amax.max(value.abs()));
            self.amax.insert((layer, op.to_string()), amax);
            return Ok(());
        };
        let last = |(layer, input): &(Option<u32>, &str)| {
            Some((input.to_string(), *self.amax.get(&(*layer, input.to_string()))?))
        };
        Err(NotFinite {
            layer,
            op: op.to_string(),
            token: first_token + idx / columns.max(1),
            column: idx % columns.max(1),
            value: values[idx],
            count: values.iter().filter(|value| !value.is_finite()).count(),
            inputs: inputs.iter().filter_map(last).collect(),
        })
    }
}

fn others(count: usize) -> String {
    if count > 1 { format!(" and {} more", count - 1) } else { String::new() }
}

fn inputs_of(inputs: &[(String, f32)]) -> String {
    if inputs.is_empty() {
        return String::new();
    }
    let each: Vec<String> = inputs.iter().map(|(op, amax)| format!("`{op}` {amax}")).collect();
    format!("; largest magnitudes of its inputs: {}", each.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_named_with_its_inputs() {
        let mut check = FiniteCheck::default();
        let written = Written { layer: Some(3), op: "norm", inputs: &[], first_token: 8, columns: 2, values: &[] };
        check.look(Written { values: &[1.0, -2.5], ..written }).unwrap();
        let bad = Written { op: "wq_b", inputs: &[(Some(3), "norm"), (Some(2), "norm")], ..written };
        let error = check.look(Written { values: &[0.0, 0.0, 0.0, f32::NAN, f32::INFINITY, 0.0], ..bad }).unwrap_err();
        assert_eq!((error.token, error.column, error.count), (9, 1, 2));
        assert_eq!(
            error.to_string(),
            "expected finite values from `wq_b` of layer 3, found NaN at token 9, column 1 and 1 more; \
             largest magnitudes of its inputs: `norm` 2.5"
        );
        let head = Written { layer: None, op: "head", ..written };
        let error = check.look(Written { values: &[f32::INFINITY], ..head }).unwrap_err().to_string();
        assert_eq!(error, "expected finite values from `head`, found inf at token 8, column 0");
    }
}
