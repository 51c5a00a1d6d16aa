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
    /// What was looked at last: its layer and name.
    previous: Option<(Option<u32>, String)>,
    /// The last layer that was met.
    last_layer: Option<u32>,
}

impl<'a> DeviceWatch<'a> {
    /// For a step of one sequence whose first token stands at `first_token`.
    pub fn new(watch: &'a Watch, first_token: usize) -> Self {
        Self { watch, first_token, previous: None, last_layer: None }
    }
}

impl DeviceWatch<'_> {
    /// Under which layer and name a view is kept, as the reference calls them; `None` for streams that nobody wrote.
    ///
    /// A connection closes the sublayer before, so the streams that it writes are what that one gave.
    fn place(&self, op: OpId, view: &str, n_views: usize) -> Option<(Option<u32>, String)> {
        let layer = op.layer.map(|layer| layer as u32);
        let (layer, name) = match (view, op.name, n_views) {
            ("streams", "hc_attn.mix", _) => (Some(layer?.checked_sub(1)?), "streams".to_string()),
            ("streams", "hc_ffn.mix", _) => (layer, "hc_attn.post".to_string()),
            ("streams", "hc_head.mix", _) => (self.last_layer, "streams".to_string()),
            (_, name, 1) => (layer, name.to_string()),
            (part, name, _) => (layer, format!("{name}.{part}")),
        };
        Some((layer, name))
    }
}

impl Observer for DeviceWatch<'_> {
    fn launched(&mut self, op: OpId, views: &[View]) -> Result<(), EngineError> {
        for view in views {
            let Some((layer, name)) = self.place(op, view.name, views.len()) else { continue };
            let previous = self.previous.take();
            let inputs: Vec<(Option<u32>, &str)> = previous.iter().map(|(layer, name)| (*layer, &**name)).collect();
            let (values, columns, first_token) = (view.values()?, view.columns as usize, self.first_token);
            let written = Written { layer, op: &name, inputs: &inputs, first_token, columns, values: &values };
            self.watch.saw(written).map_err(|found| EngineError::Observer(Box::new(found)))?;
            self.previous = Some((layer, name));
        }
        self.last_layer = op.layer.map(|layer| layer as u32).or(self.last_layer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_those_of_the_layer_that_gave_them() {
        let watch = Watch::default();
        let mut device = DeviceWatch::new(&watch, 0);
        let place = |device: &DeviceWatch<'_>, name, layer, view| device.place(OpId { name, layer }, view, 1);
        let of = |layer, name: &str| Some((layer, name.to_string()));
        assert_eq!(place(&device, "embed", None, "streams"), of(None, "embed"));
        assert_eq!(place(&device, "hc_attn.mix", Some(0), "streams"), None, "the embedding, which was looked at");
        assert_eq!(place(&device, "hc_attn.mix", Some(3), "streams"), of(Some(2), "streams"));
        assert_eq!(place(&device, "hc_ffn.mix", Some(3), "streams"), of(Some(3), "hc_attn.post"));
        device.launched(OpId { name: "ffn.experts", layer: Some(4) }, &[]).unwrap();
        assert_eq!(place(&device, "hc_head.mix", None, "streams"), of(Some(4), "streams"));
    }
}
