//! The header of a safetensors file, and the index of several: what is where.
//!
//! The `safetensors` crate is not asked, because its errors name no tensor and it knows fewer dtypes than checkpoints
//! have. A file is eight bytes of length, that much JSON, and the tensors without a gap.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use super::{Dtype, FilesError};

/// What a header says of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Bytes of the file.
    pub(super) range: Range<usize>,
}

/// The tensors of `file`, which holds `bytes`, in the order in which they lie.
pub(super) fn read(file: &str, bytes: &[u8]) -> Result<Vec<(String, Entry)>, FilesError> {
    let begin = header_end(file, bytes)?;
    let Header(mut raw) = parse(file, "a header of tensors", &bytes[LENGTH_BYTES..begin])?;
    raw.sort_by(|(a_name, a), (b_name, b)| a.data_offsets.cmp(&b.data_offsets).then_with(|| a_name.cmp(b_name)));
    let mut entries = Vec::with_capacity(raw.len());
    let mut end = begin;
    for (name, raw) in raw {
        let entry = entry(file, &name, &raw, begin)?;
        if entry.range.start != end {
            let (expected, found) = (end - begin, entry.range.start - begin);
            return Err(FilesError::Overlap { file: file.to_string(), tensor: name, expected, found });
        }
        end = entry.range.end;
        entries.push((name, entry));
    }
    let (file, expected, found) = (file.to_string(), end as u64, bytes.len() as u64);
    if let Some((tensor, _)) = entries.iter().find(|(_, entry)| entry.range.end > bytes.len()) {
        return Err(FilesError::Truncated { file, tensor: tensor.clone(), expected, found });
    }
    match expected == found {
        true => Ok(entries),
        false => Err(FilesError::TooLong { file, expected, found }),
    }
}

/// Which shard each tensor lies in, by the index in `text`.
pub(super) fn read_index(file: &str, text: &[u8]) -> Result<BTreeMap<String, String>, FilesError> {
    let index: Index = parse(file, "a `weight_map` of tensors to shards", text)?;
    Ok(index.weight_map)
}

/// Where the header ends.
fn header_end(file: &str, bytes: &[u8]) -> Result<usize, FilesError> {
    let cut_off = |expected| {
        let (file, found) = (file.to_string(), bytes.len() as u64);
        FilesError::TruncatedHeader { file, expected, found }
    };
    let length = bytes.first_chunk().ok_or_else(|| cut_off(LENGTH_BYTES as u64))?;
    let end = u64::from_le_bytes(*length).saturating_add(LENGTH_BYTES as u64);
    match usize::try_from(end) {
        Ok(end) if end <= bytes.len() => Ok(end),
        _ => Err(cut_off(end)),
    }
}

/// Checks one tensor against its dtype and shape; `begin` is where the header ends.
fn entry(file: &str, name: &str, raw: &RawEntry, begin: usize) -> Result<Entry, FilesError> {
    let (file, tensor) = (file.to_string(), name.to_string());
    let Some(dtype) = Dtype::from_name(&raw.dtype) else {
        return Err(FilesError::UnknownDtype { file, tensor, dtype: raw.dtype.clone() });
    };
    let elements = raw.shape.iter().try_fold(1u128, |product, &axis| product.checked_mul(axis as u128));
    let expected = elements.unwrap_or(u128::MAX).saturating_mul(dtype.bytes() as u128);
    let shape = raw.shape.clone();
    let [first, last] = raw.data_offsets;
    let range = begin.checked_add(first).zip(begin.checked_add(last));
    match range {
        Some((start, end)) if start <= end && (end - start) as u128 == expected => {
            Ok(Entry { dtype, shape, range: start..end })
        }
        _ => Err(FilesError::Offsets { file, tensor, dtype, shape, expected, begin: first, end: last }),
    }
}

fn parse<'a, T: Deserialize<'a>>(file: &str, expected: &'static str, text: &'a [u8]) -> Result<T, FilesError> {
    serde_json::from_slice(text).map_err(|error| {
        let (file, reason) = (file.to_string(), error.to_string());
        FilesError::Malformed { file, expected, reason }
    })
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// Tensors in the order of the text. Not a map: a name that stands there twice would hide one of its tensors.
struct Header(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            match name == METADATA {
                true => drop(map.next_value::<IgnoredAny>()?),
                false => entries.push((name, map.next_value()?)),
            }
        }
        Ok(Header(entries))
    }
}

/// The length of the header, as a little-endian u64.
const LENGTH_BYTES: usize = 8;

/// Free text of whoever wrote the file.
const METADATA: &str = "__metadata__";
