//! What the rest of the crate knows of a model: its names, and the list of what it multiplies.

use super::{Checkpoint, InventoryError, Op, Shard};

/// A model that kernels are tuned for.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// The name that `--model` takes.
    pub name: &'static str,
    /// Other names that it takes.
    pub aliases: &'static [&'static str],
    /// One line for people.
    pub about: &'static str,
    /// See [`Model::inventory`].
    pub(super) list_ops: fn(Checkpoint, Shard) -> Result<Vec<Op>, InventoryError>,
}

impl Model {
    /// Every product that one rank launches in a step.
    ///
    /// # Errors
    /// [`InventoryError`] for a shard that the model cannot be cut into.
    pub fn inventory(&self, checkpoint: Checkpoint, shard: Shard) -> Result<Vec<Op>, InventoryError> {
        (self.list_ops)(checkpoint, shard)
    }

    /// Whether `--model name` means this model, in any case.
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.names().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// The name, then the aliases.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }
}
