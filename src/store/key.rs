//! The key of a winner: what was asked, of which packed weights, on which GPU.
//!
//! Driver, NVRTC, kernel text and clocks are evidence and stand in the record: were they in the key, an upgrade would
//! lose every winner instead of marking it stale.

use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};

use super::Record;
use crate::arch::GpuIdentity;
use crate::problem::Problem;

/// Version of keys, records, snapshots, packs and trial logs. It grows when one of them changes its form or meaning.
pub const SCHEMA: u16 = 1;

/// What one winner is kept under. Its [`Display`](std::fmt::Display) is the canonical text that is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WinnerKey<'a> {
    /// The packed weight layout that the winner reads, such as `nvfp4@2`.
    pub layout: &'a str,
    /// What was asked.
    pub problem: &'a Problem,
    /// Where.
    pub gpu: &'a GpuIdentity,
}

impl<'a> WinnerKey<'a> {
    /// The key that `record` is kept under.
    pub fn of(record: &'a Record) -> Self {
        Self { layout: &record.layout, problem: &record.problem, gpu: &record.gpu }
    }

    /// The first 128 bits of the BLAKE3 hash of the canonical text. Compute it once for each problem: it formats.
    pub fn hash(&self) -> KeyHash {
        KeyHash(first_16(&blake3::hash(self.to_string().as_bytes())))
    }
}

/// `1|nvfp4@2|nvfp4 4096x8192 m64|NVIDIA H100 80GB HBM3/132sm/50MiB/5120b/700W`.
impl std::fmt::Display for WinnerKey<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { layout, problem, gpu } = self;
        write!(f, "{SCHEMA}|{layout}|{problem}|{gpu}")
    }
}

/// 128 bits that stand for a [`WinnerKey`] on the hot path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyHash(pub(super) [u8; 16]);

/// 32 hex digits.
impl std::fmt::Display for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Hash for KeyHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
    }
}

/// Map from keys that are hashes already: hashing one again is a move.
pub(super) type KeyMap<V> = std::collections::HashMap<KeyHash, V, std::hash::BuildHasherDefault<PassThrough>>;

/// Returns the last `u64` written to it.
#[derive(Default)]
pub(super) struct PassThrough(u64);

impl Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }
}

/// The first half of a hash: enough to tell records apart and to notice damage.
pub(super) fn first_16(hash: &blake3::Hash) -> [u8; 16] {
    let mut first = [0; 16];
    first.copy_from_slice(&hash.as_bytes()[..16]);
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::GpuSpec;

    #[test]
    fn a_key_names_schema_layout_problem_and_gpu() {
        let problem = "nvfp4 4096x8192 m64".parse().unwrap();
        let gpu = &GpuSpec::named("h100").unwrap().identity;
        let key = WinnerKey { layout: "nvfp4@2", problem: &problem, gpu };
        assert_eq!(
            key.to_string(),
            "1|nvfp4@2|nvfp4 4096x8192 m64|NVIDIA H100 80GB HBM3/132sm/50MiB/5120b/700W",
            "winners are found by this text: a change needs a new SCHEMA"
        );
        assert_eq!(key.hash().to_string(), "11ed62b57749fdc13995653611d25955");
    }

    #[test]
    fn every_part_of_a_key_changes_its_hash() {
        let h100 = &GpuSpec::named("h100").unwrap().identity;
        let h200 = &GpuSpec::named("h200-sxm").unwrap().identity;
        let [a, b] = ["nvfp4 64x64 m1", "nvfp4 64x64 m2"].map(|text| text.parse::<Problem>().unwrap());
        let key = WinnerKey { layout: "nvfp4@2", problem: &a, gpu: h100 };
        let others =
            [WinnerKey { layout: "nvfp4@1", ..key }, WinnerKey { problem: &b, ..key }, WinnerKey { gpu: h200, ..key }];
        assert!(others.iter().all(|other| other.hash() != key.hash()));
    }
}
