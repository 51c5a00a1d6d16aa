//! Looks on while the model runs on a GPU: after each op its outputs are read back, checked and kept.
//!
//! This waits for every op, so it is for finding faults and not for speed. What each op reads is in one table, so that
//! a value that is not finite is told with the sizes of everything that it may come from.

use super::super::{CheckAt, Watch};
use crate::engine::{EngineError, Observer, OpId, View, Written};

/// Shows a [`Watch`] what the ops of one step write.
pub struct DeviceWatch<'a> {
    watch: &'a Watch,
    /// Position of the step's first token.
    first_token: usize,
    /// The last layer that was met.
    last_layer: Option<u32>,
}

impl<'a> DeviceWatch<'a> {
    /// For a step of one sequence whose first token stands at `first_token`.
    pub fn new(watch: &'a Watch, first_token: usize) -> Self {
        Self { watch, first_token, last_layer: None }
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
            // The splits of a short step give what one kernel gives in a long one.
            ("o", "attn.combine", _) => (layer, "attn.attend".to_string()),
            (_, name, 1) => (layer, name.to_string()),
            (part, name, _) => (layer, format!("{name}.{part}")),
        };
        Some((layer, name))
    }

    /// What `op` reads, whose output is kept under `layer`: names as they are kept, each with its layer.
    fn inputs(&self, op: &str, layer: Option<u32>) -> Vec<(Option<u32>, &'static str)> {
        let before = match layer {
            Some(0) => (None, "embed"),
            Some(layer) => (Some(layer - 1), STREAMS),
            None => (self.last_layer, STREAMS),
        };
        if self.watch.checks() == CheckAt::Layers && layer.is_some() {
            // Nothing between the ends of layers has been looked at.
            return vec![before];
        }
        let read = READS.iter().find(|(name, _)| *name == op).map_or(&[][..], |(_, inputs)| inputs);
        read.iter().map(|&input| if input == STREAMS { before } else { (layer, input) }).collect()
    }
}

impl Observer for DeviceWatch<'_> {
    fn launched(&mut self, op: OpId, views: &[View]) -> Result<(), EngineError> {
        for view in views {
            let Some((layer, name)) = self.place(op, view.name, views.len()) else { continue };
            let inputs = self.inputs(op.name, layer);
            let (values, columns, first_token) = (view.values()?, view.columns as usize, self.first_token);
            let written = Written { layer, op: &name, inputs: &inputs, first_token, columns, values: &values };
            self.watch.saw(written).map_err(|found| EngineError::Observer(Box::new(found)))?;
        }
        self.last_layer = op.layer.map(|layer| layer as u32).or(self.last_layer);
        Ok(())
    }
}

/// Streams at the end of a layer; as an input those of the layer before.
const STREAMS: &str = "streams";

/// Every op of a step with what it reads, by the names that these are kept under in the layer of its output. What is
/// not kept is followed to what it was made of: entries of a cache to the projection of this step, the indexer's scores
/// to its queries and keys, mixing values to the streams. Choices are no values and are left out.
const READS: &[(&str, &[&str])] = &[
    ("embed", &[]),
    // A connection closes what is before it: its output is that sublayer's.
    ("hc_attn.mix", ENDS_LAYER),
    ("hc_attn.pre", &[STREAMS]),
    ("attn.fused_wqa_wkv", &["hc_attn.pre"]),
    ("attn.wq_a", &["hc_attn.pre"]),
    ("attn.wkv", &["hc_attn.pre"]),
    ("attn.qkv_norm", &["attn.fused_wqa_wkv"]),
    ("attn.wq_b", &["attn.qkv_norm.qr"]),
    ("attn.compressor.csa.fused_indexer", &["hc_attn.pre"]),
    ("attn.compressor.csa", &["attn.compressor.csa.fused_indexer"]),
    ("attn.compressor.hca.fused_wkv_wgate", &["hc_attn.pre"]),
    ("attn.compressor.hca", &["attn.compressor.hca.fused_wkv_wgate"]),
    ("attn.indexer.compressor", &["attn.compressor.csa.fused_indexer"]),
    ("attn.indexer.wq_b", &["attn.qkv_norm.qr"]),
    ("attn.indexer.rotate", &["attn.indexer.wq_b"]),
    ("attn.indexer.score", SCORES),
    ("attn.indexer.top_k", SCORES),
    ("attn.attend", ATTENDS),
    ("attn.combine", ATTENDS),
    ("attn.store", ATTENDS),
    ("attn.wo_a", &["attn.attend"]),
    ("attn.wo_b", &["attn.wo_a"]),
    ("hc_ffn.mix", &["attn.wo_b", STREAMS]),
    ("hc_ffn.pre", &["hc_attn.post"]),
    ("ffn.gate", &["hc_ffn.pre"]),
    ("ffn.route", &["ffn.gate"]),
    ("ffn.shared.gate_up", &["hc_ffn.pre"]),
    ("ffn.shared.down", &["ffn.shared.gate_up"]),
    ("ffn.experts", &["hc_ffn.pre", "ffn.route.routing"]),
    ("ffn.experts.expand", &["hc_ffn.pre"]),
    ("ffn.experts.walk", &["hc_ffn.pre"]),
    ("ffn.experts.weigh", &["hc_ffn.pre", "ffn.route.routing"]),
    // Rounds what the op behind it reads, and nothing of its own is kept.
    ("quantise", &[]),
    ("quantise.amax", &[]),
    ("quantise.reset", &[]),
    ("hc_head.mix", ENDS_LAYER),
    ("hc_head.pre", &[STREAMS]),
    ("head.gather", &["hc_head.pre"]),
    ("head", &["hc_head.pre"]),
    ("sample", &["head"]),
    ("advance", &["sample"]),
];

const ENDS_LAYER: &[&str] = &["ffn.experts", "ffn.shared.down", "hc_attn.post"];

const SCORES: &[&str] = &["attn.indexer.rotate", "attn.compressor.csa.fused_indexer"];

/// A layer has one of the compressors, or none.
const ATTENDS: &[&str] =
    &["attn.wq_b", "attn.qkv_norm.kv", "attn.compressor.csa.fused_indexer", "attn.compressor.hca.fused_wkv_wgate"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::dsv4::{Config, Formats, inventory_of};
    use crate::models::{Checkpoint, Product, Shard};

    /// Names in the sources of a step: string literals that look like one.
    fn names_of(source: &str) -> Vec<&str> {
        const ALONE: [&str; 5] = ["embed", "head", "sample", "advance", "quantise"];
        // Places of scales, which are no launches.
        const SCALES: [&str; 2] = ["ffn.experts.gate_up", "ffn.experts.down"];
        let code = source.split("#[cfg(test)]").next().unwrap();
        let literals = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        let literals = literals.flat_map(|line| line.split('"').skip(1).step_by(2));
        let is_name = |text: &&str| {
            let is_dotted = text.contains('.') && !text.starts_with('.') && !text.ends_with('.');
            let is_plain = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._".contains(c));
            (is_dotted && is_plain && !SCALES.contains(text)) || ALONE.contains(text)
        };
        literals.filter(is_name).collect()
    }

    #[test]
    fn every_op_of_a_step_has_its_inputs_listed() {
        let sources = [include_str!("pass.rs"), include_str!("mod.rs"), include_str!("a4.rs")];
        let found = sources.map(names_of);
        assert!(found.iter().all(|names| names.len() >= 3) && found[0].len() > 30, "the scan finds names: {found:?}");
        let listed = |name: &str| READS.iter().any(|(op, _)| *op == name);
        let ops = inventory_of(&Config::FLASH, Formats::of(Checkpoint::Nvfp4), Shard::default()).unwrap();
        // Mixes of streams are launched under the names of the sublayers that they start.
        let gemms = ops.iter().filter(|op| !matches!(op.product, Product::Streams(_))).map(|op| op.name);
        let missing: Vec<&str> = found.into_iter().flatten().chain(gemms).filter(|name| !listed(name)).collect();
        assert!(missing.is_empty(), "without a line in the table: {missing:?}");
    }

    #[test]
    fn inputs_are_names_that_are_kept() {
        let parts = ["attn.qkv_norm.qr", "attn.qkv_norm.kv", "ffn.route.routing", "hc_attn.post", STREAMS];
        for (op, inputs) in READS {
            let is_kept = |input: &str| parts.contains(&input) || READS.iter().any(|(name, _)| *name == input);
            assert!(inputs.iter().all(|input| is_kept(input)), "{op}: {inputs:?}");
        }
    }

    #[test]
    fn inputs_have_the_layers_that_they_are_kept_under() {
        let ops = Watch::default();
        let mut device = DeviceWatch::new(&ops, 0);
        device.last_layer = Some(4);
        // The first mixing of layer 3 ends layer 2, under which its output is kept.
        let of_two = ["ffn.experts", "ffn.shared.down", "hc_attn.post"].map(|name| (Some(2), name));
        assert_eq!(device.inputs("hc_attn.mix", Some(2)), of_two);
        assert_eq!(device.inputs("hc_ffn.mix", Some(3)), [(Some(3), "attn.wo_b"), (Some(2), "streams")]);
        assert_eq!(device.inputs("hc_attn.pre", Some(0)), [(None, "embed")]);
        assert_eq!(device.inputs("hc_head.pre", None), [(Some(4), "streams")]);
        let layers = Watch::new(Some(CheckAt::Layers), None);
        assert_eq!(DeviceWatch::new(&layers, 0).inputs("hc_attn.mix", Some(2)), [(Some(1), "streams")]);
    }

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
