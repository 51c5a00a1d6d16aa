//! What readers see: snapshots, whole or refused.

mod store_samples;

use std::fs;

use store_samples::{Numbers, records};
use tilekiln::problem::Routing;
use tilekiln::store::{FileError, Origin, SCHEMA, Snapshot, SnapshotError, WinnerKey};

#[test]
fn a_snapshot_gives_back_every_record() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("winners.snapshot");
    let mut written = records(300);
    written[3].origin = Origin::Inherited { from_m: 16 };
    written[4].origin = Origin::Predicted;
    written[5].routings = vec![Routing::Uniform, Routing::Zipf(1.1), Routing::OneSet];
    written[6].runners_up.clear();
    Snapshot::of(&written).write(&path).unwrap();
    let read = Snapshot::load(&path).unwrap();
    assert_eq!(read.entries().len(), written.len());
    for record in &written {
        let entry = read.get(&WinnerKey::of(record).hash()).unwrap();
        assert_eq!(entry.record().unwrap(), *record);
        assert_eq!(entry.tile().unwrap(), record.tile);
    }
    let mut shuffled = written.clone();
    shuffled.reverse();
    assert_eq!(Snapshot::of(&shuffled).hash(), read.hash(), "the order of writing does not matter");
    assert_eq!(read.hash().len(), 64);
}

#[test]
fn every_cut_and_flip_of_a_snapshot_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("winners.snapshot");
    Snapshot::of(&records(40)).write(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let mut numbers = Numbers(0x0ddba11);
    let refused = |bytes: &[u8], what: String| {
        fs::write(&path, bytes).unwrap();
        let error = Snapshot::load(&path).unwrap_err();
        assert!(!error.is_missing() && !error.hint().is_empty(), "{what}: {error}");
        let (empty, note) = Snapshot::load_or_empty(&path);
        assert_eq!((empty.entries(), note), (&[][..], Some(error)), "{what}");
    };
    (0..64).chain((0..100).map(|_| numbers.below(whole.len() as u64) as usize)).for_each(|length| {
        refused(&whole[..length], format!("cut to {length}"));
    });
    let mut numbers = Numbers(0xf1195);
    (0..46 * 8).chain((0..500).map(|_| numbers.below(whole.len() as u64 * 8) as usize)).for_each(|bit| {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refused(&flipped, format!("bit {bit} flipped"));
    });
}

#[test]
fn a_snapshot_that_is_none_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("winners.snapshot");
    let (empty, note) = Snapshot::load_or_empty(&path);
    assert!(empty.entries().is_empty() && note.is_some_and(|note| note.is_missing()));

    fs::write(&path, "a letter to the editor").unwrap();
    assert_eq!(Snapshot::load(&path).unwrap_err(), SnapshotError::NotASnapshot { path: path.clone() });

    Snapshot::of(&records(2)).write(&path).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[8..10].copy_from_slice(&(SCHEMA + 1).to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let error = Snapshot::load(&path).unwrap_err();
    assert_eq!(error, SnapshotError::OtherSchema { path: path.clone(), found: SCHEMA + 1 });

    let error = Snapshot::of(&[]).write(&path.join("below a file")).unwrap_err();
    assert!(matches!(error, SnapshotError::File(FileError::NotADirectory { .. })), "{error}");
}
