//! What surrounds each value: enough to notice damage, and to find the value again in a file that sled cannot read.
//!
//! ```text
//! magic "tkv" | kind u8 | schema u16 | length u32 | sequence u64 | first 16 bytes of BLAKE3 | postcard
//! ```
//! Numbers are big-endian. The hash covers everything before it and the body. sled checks its pages with a CRC, but a
//! damaged page makes it drop records without a word, or refuse the whole file; since a value holds its own key and
//! sled stores values uncompressed and in one piece, a scan for the magic gets nearly all of them back.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::key::{SCHEMA, first_16};

/// A value that knows its key.
pub(super) trait Stored: Serialize + DeserializeOwned {
    /// Tells the values of one table from those of another in a raw scan.
    const KIND: u8;
    /// The table's name.
    const TABLE: &'static str;

    /// What it is kept under.
    fn key(&self) -> String;
}

/// Why a value cannot be used. It is then a miss, is counted, and is named by `verify`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadValue {
    /// Shorter than its own head says, or not ours.
    #[error("expected a sealed value, found {0} bytes without a seal")]
    NoSeal(usize),
    /// Written by another version.
    #[error("expected schema {SCHEMA}, found schema {0}")]
    Schema(u16),
    /// The bytes changed after they were written.
    #[error("expected the bytes that were written, found others")]
    Checksum,
    /// The bytes are those written, but are no such value.
    #[error("expected a value of this version, found: {0}")]
    Form(String),
    /// It stands under the key of another value.
    #[error("expected the value of this key, found that of `{0}`")]
    Key(String),
}

/// The bytes that are stored for `value`. `sequence` grows with each write: of two copies the later one counts.
pub(super) fn seal<T: Stored>(value: &T, sequence: u64) -> Result<Vec<u8>, BadValue> {
    let body = postcard::to_allocvec(value).map_err(|error| BadValue::Form(error.to_string()))?;
    let length = u32::try_from(body.len()).map_err(|_| BadValue::Form(format!("{} bytes", body.len())))?;
    let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
    bytes.extend(MAGIC);
    bytes.push(T::KIND);
    bytes.extend(SCHEMA.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    let hash = hash_of(&bytes, &body);
    bytes.extend(hash);
    bytes.extend(body);
    Ok(bytes)
}

/// The value at the start of `bytes` and its sequence number.
pub(super) fn unseal<T: Stored>(bytes: &[u8]) -> Result<(T, u64), BadValue> {
    let no_seal = || BadValue::NoSeal(bytes.len());
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES - HASH_BYTES).ok_or_else(no_seal)?;
    let [m0, m1, m2, kind, s0, s1, l0, l1, l2, l3, sequence @ ..] = head else { return Err(no_seal()) };
    if [*m0, *m1, *m2] != MAGIC || *kind != T::KIND {
        return Err(no_seal());
    }
    let schema = u16::from_be_bytes([*s0, *s1]);
    if schema != SCHEMA {
        return Err(BadValue::Schema(schema));
    }
    let length = u32::from_be_bytes([*l0, *l1, *l2, *l3]) as usize;
    let (hash, rest) = rest.split_at_checked(HASH_BYTES).ok_or_else(no_seal)?;
    let body = rest.get(..length).ok_or_else(no_seal)?;
    if hash_of(head, body) != hash {
        return Err(BadValue::Checksum);
    }
    let value = postcard::from_bytes(body).map_err(|error| BadValue::Form(error.to_string()))?;
    let sequence = <[u8; 8]>::try_from(sequence).map_err(|_| no_seal())?;
    Ok((value, u64::from_be_bytes(sequence)))
}

/// Every sound value of one kind in `file`, wherever it stands, with its sequence number.
pub(super) fn scan<T: Stored>(file: &[u8]) -> impl Iterator<Item = (T, u64)> + '_ {
    let starts = file.windows(MAGIC.len() + 1).enumerate();
    let starts = starts.filter(|(_, window)| window[..3] == MAGIC && window[3] == T::KIND);
    starts.filter_map(|(start, _)| unseal(&file[start..]).ok())
}

fn hash_of(head: &[u8], body: &[u8]) -> [u8; HASH_BYTES] {
    first_16(&blake3::Hasher::new().update(head).update(body).finalize())
}

const MAGIC: [u8; 3] = *b"tkv";
const HASH_BYTES: usize = 16;
const HEAD_BYTES: usize = 3 + 1 + 2 + 4 + 8 + HASH_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Note(String);

    impl Stored for Note {
        const KIND: u8 = b'n';
        const TABLE: &'static str = "notes";

        fn key(&self) -> String {
            self.0.clone()
        }
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed() {
        let sealed = seal(&Note("a winner".to_string()), 7).unwrap();
        assert_eq!(unseal(&sealed), Ok((Note("a winner".to_string()), 7)));
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal::<Note>(&flipped).is_err(), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(unseal::<Note>(&sealed[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn a_scan_finds_values_among_rubble() {
        let mut file = b"rubble tkvn tkv".to_vec();
        for (idx, text) in ["one", "two", "three"].into_iter().enumerate() {
            file.extend(seal(&Note(text.to_string()), idx as u64).unwrap());
            file.extend(b"\0\0tk");
        }
        let broken = file.iter().rposition(|&byte| byte == b'r').unwrap();
        file[broken] ^= 1;
        let found: Vec<_> = scan::<Note>(&file).collect();
        assert_eq!(found, [(Note("one".to_string()), 0), (Note("two".to_string()), 1)]);
    }
}
