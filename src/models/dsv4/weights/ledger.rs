//! What became of each tensor of the files: the account that nothing was skipped in silence.

use serde::Serialize;

/// Every tensor of the files, in the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ledger {
    /// One entry a tensor.
    pub entries: Vec<LedgerEntry>,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LedgerEntry {
    /// As the file calls it.
    pub tensor: String,
    /// The file.
    pub shard: String,
    /// Its bytes.
    pub bytes: u64,
    /// What became of it.
    pub fate: Fate,
}

/// What becomes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It is part of these weights, by native name: those of a [`Linear`](super::Linear), or of a vector.
    Used(Vec<Use>),
    /// It is known, and left out.
    Unused(Unused),
}

/// A part that a tensor plays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Use {
    /// Native name of the weight, such as `layers.3.attn.wq_a`.
    pub weight: String,
    /// As what.
    pub role: Role,
}

/// As what a weight uses a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Codes of a matrix, or its BF16 values.
    Codes,
    /// Block scales.
    Scales,
    /// The f32 of the tensor.
    TensorScale,
    /// The scale of activations, which only a policy that trusts the file reads.
    InputScale,
    /// A vector, or a table.
    Values,
}

/// Why a tensor is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unused {
    /// `mtp.*`: the draft head, which is not run.
    DraftHead,
    /// Scales of a quantised KV cache, which chooses its own.
    CacheScale,
    /// It belongs to a layer behind the last one that was asked for.
    LayerNotAskedFor,
}

impl Unused {
    /// One sentence's worth.
    pub fn reason(self) -> &'static str {
        match self {
            Self::DraftHead => "draft head, which is not run",
            Self::CacheScale => "scale of a KV cache, which has its own",
            Self::LayerNotAskedFor => "layer behind the last one that was asked for",
        }
    }
}

impl Ledger {
    /// What became of the tensor called `name`.
    pub fn fate(&self, name: &str) -> Option<&Fate> {
        let idx = self.entries.binary_search_by(|entry| entry.tensor.as_str().cmp(name)).ok()?;
        Some(&self.entries[idx].fate)
    }

    /// Tensors that weights are made of.
    pub fn used(&self) -> impl Iterator<Item = &LedgerEntry> {
        self.entries.iter().filter(|entry| matches!(entry.fate, Fate::Used(_)))
    }

    /// Tensors that are left out, with the reason.
    pub fn unused(&self) -> impl Iterator<Item = (&LedgerEntry, Unused)> {
        self.entries.iter().filter_map(|entry| match entry.fate {
            Fate::Used(_) => None,
            Fate::Unused(why) => Some((entry, why)),
        })
    }
}
