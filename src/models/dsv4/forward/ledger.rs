//! Where every tensor went: the file's name, the op that reads it, the packed buffer.

use std::collections::BTreeSet;

use crate::device::DevicePointer;

/// One tensor in device memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerEntry {
    /// Native name of the linear, such as `layers.3.attn.wq_a`.
    pub tensor: String,
    /// Op that reads it, such as `layers.3.attn.fused_wqa_wkv`.
    pub op: String,
    /// Its packed buffer, which other tensors may share.
    pub buffer: DevicePointer,
}

/// All tensors in device memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    entries: Vec<LedgerEntry>,
}

impl Ledger {
    pub(super) fn add(&mut self, tensor: &str, op: &str, buffer: DevicePointer) {
        self.entries.push(LedgerEntry { tensor: tensor.to_string(), op: op.to_string(), buffer });
    }

    /// Every tensor, in the order of loading.
    pub fn entries(&self) -> &[LedgerEntry] {
        &self.entries
    }

    /// Tensors whose buffer is not among `launched`: a projection that was skipped.
    pub fn not_launched(&self, launched: &BTreeSet<DevicePointer>) -> Vec<&LedgerEntry> {
        self.entries.iter().filter(|entry| entry.op != "embed" && !launched.contains(&entry.buffer)).collect()
    }
}

/// Told how many bytes of the files were loaded.
pub trait Progress {
    /// So many bytes more.
    fn add(&mut self, bytes: u64);
}

impl Progress for () {
    fn add(&mut self, _: u64) {}
}
