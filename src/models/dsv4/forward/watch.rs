//! Looks on while the model runs on a GPU: after each op its outputs are read back, checked and kept.
//!
//! This waits for every op, so it is for finding faults and not for speed. What an op of the GPU reads is not listed
//! anywhere: the op ahead of it stands in for its inputs.

use super::super::Watch;
use crate::engine::{EngineError, Observer, OpId, View, Written};

/// Shows a [`Watch`] what the ops of one step write.
pub struct DeviceWatch<'a> {
    watch: &'a Watch,
    /// Position of the step's first token.
    first_token: usize,
    /// The op ahead.
    previous: Option<OpId>,
}

impl<'a> DeviceWatch<'a> {
    /// For a step of one sequence whose first token stands at `first_token`.
    pub fn new(watch: &'a Watch, first_token: usize) -> Self {
        Self { watch, first_token, previous: None }
    }
}

impl Observer for DeviceWatch<'_> {
    fn launched(&mut self, op: OpId, views: &[View]) -> Result<(), EngineError> {
        let layer = |op: OpId| op.layer.map(|layer| layer as u32);
        let previous: Vec<(Option<u32>, &str)> = self.previous.map(|op| (layer(op), op.name)).into_iter().collect();
        for view in views {
            // A mix closes the sublayer before it: what it writes is called as the reference calls it, by its own op.
            let op = match (op.name, self.previous.and_then(|op| op.layer)) {
                ("hc_attn.mix" | "hc_head.mix", Some(layer)) => OpId { name: "streams", layer: Some(layer) },
                ("hc_attn.mix" | "hc_head.mix", None) => continue,
                ("hc_ffn.mix", _) => OpId { name: "hc_attn.post", ..op },
                _ => op,
            };
            let name = match (view.name, views.len()) {
                (_, 1) => op.name.to_string(),
                (part, _) => format!("{}.{part}", op.name),
            };
            let values = view.values()?;
            let columns = view.columns as usize;
            let (layer, first_token) = (layer(op), self.first_token);
            let written = Written { layer, op: &name, inputs: &previous, first_token, columns, values: &values };
            self.watch.saw(written).map_err(|found| EngineError::Observer(Box::new(found)))?;
        }
        self.previous = Some(op);
        Ok(())
    }
}
