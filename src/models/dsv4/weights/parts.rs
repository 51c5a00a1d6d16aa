//! The tensors of the files under their native names, each handed out once, with an account of who took it.

use std::collections::{BTreeMap, BTreeSet};

use super::faults::{Fault, Reason};
use super::ledger::{Fate, Ledger, LedgerEntry, Role, Unused, Use};
use super::names;
use crate::engine::{Dtype, Tensor, TensorFiles};

/// What one weight needs: a tensor, or a slice of one that holds several weights.
#[derive(Clone, Debug)]
pub(super) struct Part<'a> {
    /// As the file calls the whole tensor.
    pub(super) tensor: &'a str,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: &'a [u8],
}

/// Every part of the files, by native name.
pub(super) struct Parts<'a> {
    files: &'a TensorFiles,
    parts: BTreeMap<String, Part<'a>>,
    uses: BTreeMap<&'a str, Vec<Use>>,
    /// Layers of the model; those behind are known but left out if `has_more_layers`.
    layers: usize,
    has_more_layers: bool,
}

impl<'a> Parts<'a> {
    /// Names every tensor of `files`. `layers` are to be loaded; if the files should hold more, `has_more_layers`.
    /// Two tensors that are one weight are added to `faults`.
    pub(super) fn new(files: &'a TensorFiles, layers: usize, has_more_layers: bool, faults: &mut Vec<Fault>) -> Self {
        let mut parts: BTreeMap<String, Part<'a>> = BTreeMap::new();
        for tensor in files.tensors() {
            for (native, part) in split(tensor) {
                if let Some(other) = parts.get(&native) {
                    let (tensor, other) = (tensor.name.to_string(), other.tensor.to_string());
                    faults.push(Fault { tensor, reason: Reason::Twice { native, other } });
                    continue;
                }
                parts.insert(native, part);
            }
        }
        Self { files, parts, uses: BTreeMap::new(), layers, has_more_layers }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.parts.contains_key(name)
    }

    pub(super) fn dtype(&self, name: &str) -> Option<Dtype> {
        self.parts.get(name).map(|part| part.dtype)
    }

    /// As the file calls the tensor of a part.
    pub(super) fn tensor(&self, name: &str) -> Option<&'a str> {
        self.parts.get(name).map(|part| part.tensor)
    }

    /// Hands out the part called `name` to `weight`, which uses it as `role`.
    pub(super) fn take(&mut self, name: &str, weight: &str, role: Role) -> Option<Part<'a>> {
        let part = self.parts.remove(name)?;
        self.uses.entry(part.tensor).or_default().push(Use { weight: weight.to_string(), role });
        Some(part)
    }

    /// The account, and the tensors that nobody took and nobody knows. One of which only a part was taken is added to
    /// `faults`.
    pub(super) fn settle(mut self, faults: &mut Vec<Fault>) -> (Ledger, Vec<String>) {
        let mut ledger = Ledger::default();
        let mut unexpected = Vec::new();
        let mut is_told = BTreeSet::new();
        for (native, part) in &self.parts {
            if self.uses.contains_key(part.tensor) && is_told.insert(part.tensor) {
                let (tensor, part) = (part.tensor.to_string(), native.clone());
                faults.push(Fault { tensor, reason: Reason::PartLeft { part } });
            }
        }
        for tensor in self.files.tensors() {
            let fate = match self.uses.remove(tensor.name) {
                Some(uses) => Some(Fate::Used(uses)),
                None => self.why_unused(tensor.name).map(Fate::Unused),
            };
            let Some(fate) = fate else {
                unexpected.push(tensor.name.to_string());
                continue;
            };
            let (name, shard, bytes) = (tensor.name.to_string(), tensor.shard.to_string(), tensor.bytes.len() as u64);
            ledger.entries.push(LedgerEntry { tensor: name, shard, bytes, fate });
        }
        (ledger, unexpected)
    }

    fn why_unused(&self, name: &str) -> Option<Unused> {
        let native = names::native(name);
        let is_behind = |layer: usize| self.has_more_layers && layer >= self.layers;
        if native.starts_with("mtp.") {
            Some(Unused::DraftHead)
        } else if names::layer_of(&native).is_some_and(|(layer, _)| is_behind(layer)) {
            Some(Unused::LayerNotAskedFor)
        } else if [".k_scale", ".v_scale", ".kv_scale"].iter().any(|ending| native.ends_with(ending)) {
            Some(Unused::CacheScale)
        } else {
            None
        }
    }
}

/// The parts of one tensor: itself, or one for each expert where Hugging Face stacks them.
fn split(tensor: Tensor<'_>) -> Vec<(String, Part<'_>)> {
    let whole = Part { tensor: tensor.name, dtype: tensor.dtype, shape: tensor.shape.to_vec(), bytes: tensor.bytes };
    match stacked(tensor) {
        Some(parts) => parts,
        None => vec![(names::native(tensor.name), whole)],
    }
}

/// `mlp.experts.gate_up_proj [E, 2I, D]`, gate above up, and `mlp.experts.down_proj [E, D, I]`.
fn stacked(tensor: Tensor<'_>) -> Option<Vec<(String, Part<'_>)>> {
    let name = tensor.name.strip_prefix("model.").unwrap_or(tensor.name);
    let (layer, rest) = names::layer_of(name)?;
    let projections: &[&str] = match rest.strip_prefix("mlp.experts.")? {
        "gate_up_proj" => &["w1", "w3"],
        "down_proj" => &["w2"],
        _ => return None,
    };
    let &[experts, rows, k] = tensor.shape else { return None };
    if experts == 0 || rows % projections.len() != 0 {
        return None;
    }
    let bytes = tensor.bytes.len() / experts / projections.len();
    let shape = vec![rows / projections.len(), k];
    let part = |idx: usize| {
        let (expert, projection) = (idx / projections.len(), projections[idx % projections.len()]);
        let name = format!("layers.{layer}.{}{expert}.{projection}.weight", names::EXPERTS);
        let bytes = &tensor.bytes[idx * bytes..][..bytes];
        (name, Part { tensor: tensor.name, dtype: tensor.dtype, shape: shape.clone(), bytes })
    };
    Some((0..experts * projections.len()).map(part).collect())
}
