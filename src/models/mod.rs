//! The models that kernels are tuned for. Each is a folder that alone knows the model, and one line in the list here.
//!
//! A [`Model`] gives, for a [`Checkpoint`] and a [`Shard`], its inventory: every matrix product of one step on one rank
//! as an [`Op`]. From an op come the problems of the tuner ([`Op::problem`]) and the rows of a listing ([`Op::rows`]).

mod checkpoint;
pub mod dsv4;
mod listing;
mod model;
mod op;
mod shard;

pub use checkpoint::{Checkpoint, UnknownCheckpoint};
pub use listing::Row;
pub use model::Model;
pub use op::{Experts, Gemm, Matrix, Op, Product, Segment, Streams};
pub use shard::{InventoryError, Shard, Whole};

/// Every model.
pub fn all() -> &'static [Model] {
    &MODELS
}

/// The model called `name`, by name or alias, in any case.
///
/// # Errors
/// [`UnknownModel`] lists the names there are.
pub fn named(name: &str) -> Result<&'static Model, UnknownModel> {
    MODELS
        .iter()
        .find(|model| model.is_called(name))
        .ok_or_else(|| UnknownModel { name: name.to_string(), known: MODELS.iter().flat_map(Model::names).collect() })
}

/// No model has that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected the name of a known model ({}), found `{name}`", known.join(", "))]
pub struct UnknownModel {
    /// What was asked for.
    pub name: String,
    /// What there is.
    pub known: Vec<&'static str>,
}

static MODELS: [Model; 2] = [dsv4::FLASH, dsv4::PRO];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_aliases_find_one_model_each() {
        for (name, model) in [("dsv4", "dsv4"), ("dsv4-flash", "dsv4"), ("DSV4-Pro", "dsv4-pro")] {
            assert_eq!(named(name).unwrap().name, model);
        }
        let mut names: Vec<_> = all().iter().flat_map(Model::names).collect();
        let with_repeats = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), with_repeats);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let error = named("gpt-2").unwrap_err().to_string();
        assert_eq!(error, "expected the name of a known model (dsv4, dsv4-flash, dsv4-pro), found `gpt-2`");
    }

    #[test]
    fn every_model_fits_on_one_rank_in_every_checkpoint() {
        for model in all() {
            for checkpoint in Checkpoint::ALL {
                let ops = model.inventory(checkpoint, Shard::default()).unwrap();
                assert!(!ops.is_empty(), "{} {checkpoint}", model.name);
            }
        }
    }
}
