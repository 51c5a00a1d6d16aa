//! What readers see: snapshots, whole or refused, and the ladder of lookups.

mod store_samples;

use std::fs;

use store_samples::{Numbers, gpu, problem, record, records, tile};
use tilekiln::arch::{ArchSpec, GpuSpec};
use tilekiln::problem::{Problem, Routing, Tile};
use tilekiln::store::{
    Current, Entry, FileError, Found, How, Lookup, LookupNote, Origin, Record, SCHEMA, Snapshot, SnapshotError, Stale,
    WinnerKey,
};

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

/// What the ladder answers on the H100 for `asked`, with kernels and NVRTC as they were.
fn find<'a>(lookup: &'a Lookup, asked: &str, default: &'a Tile) -> Found<'a> {
    let (problem, gpu) = (problem(asked), gpu("h100"));
    let key = WinnerKey { layout: "nvfp4@2", problem: &problem, gpu: &gpu };
    let kernels =
        |_: &Problem, tile: &Tile| tile.number("variant").map(|idx| store_samples::toolchain(idx.into()).kernels);
    let current = Current { nvrtc: Some("13.2.51"), kernels: &kernels, is_valid: &|_, _| true };
    lookup.find(&key, ArchSpec::named("sm90a").unwrap(), &current, default)
}

#[test]
fn the_ladder_is_climbed_down_rung_by_rung() {
    let of = |problem: &str, gpu: &str, origin: Origin| Record { origin, ..record(problem, gpu, 7, 1.0) };
    let at = |gpu: &str, m: u32| of(&format!("nvfp4 64x64 m{m}"), gpu, Origin::Measured);
    let (h100, h200) = (|m| at("h100", m), |m| at("h200-sxm", m));
    let inherited = |gpu: &str| of("nvfp4 64x64 m16", gpu, Origin::Inherited { from_m: 4 });
    let predicted = || of("nvfp4 64x64 m16", "h100", Origin::Predicted);
    let other_op = |problem: &str| of(problem, "h100", Origin::Measured);
    let other_layout = Record { layout: "nvfp4@1".to_string(), ..h100(16) };
    let borrowed = How::Borrowed { gpu: gpu("h200-sxm") };
    #[rustfmt::skip]
    let cases = [
        ("exact",               vec![h100(16), h100(32)],                 How::Exact),
        ("inherited",           vec![inherited("h100"), h100(32)],        How::OtherBucket { m: 4 }),
        ("nearest above",       vec![h100(8), h100(64), h100(32)],        How::OtherBucket { m: 32 }),
        ("nearest below",       vec![h100(1), h100(8)],                   How::OtherBucket { m: 8 }),
        ("bucket over loan",    vec![h100(1), h200(16)],                  How::OtherBucket { m: 1 }),
        ("borrowed",            vec![h200(16), predicted()],              borrowed),
        ("predicted",           vec![predicted()],                        How::Predicted),
        ("other architecture",  vec![at("b200", 16), at("a100-sxm", 16)], How::Default),
        ("inherited elsewhere", vec![inherited("h200-sxm")],              How::Default),
        ("other layout",        vec![other_layout],                       How::Default),
        ("other op",            vec![other_op("nvfp4 64x128 m16"), other_op("mxfp4 64x64 m16")], How::Default),
        ("nothing",             vec![],                                   How::Default),
    ];
    let default = tile(0);
    for (name, records, how) in cases {
        let lookup = Lookup::new(records.iter().map(Entry::of));
        let found = find(&lookup, "nvfp4 64x64 m16", &default);
        assert_eq!(found.how, how, "{name}");
        assert_eq!(found.entry.is_none(), how == How::Default, "{name}");
        assert!(!found.is_stale(), "{name}: {found}");
        assert_eq!(found.tiles().last().unwrap(), default, "{name}");
    }
}

/// Winners of other buckets that the asked problem cannot use are passed by, and one that it can is judged by the
/// kernels of the bucket that it won.
#[test]
fn a_neighbour_is_taken_only_if_a_tile_of_its_is_valid() {
    let at = |m: u32, idx: u64| Entry::of(&record(&format!("nvfp4 64x64 m{m}"), "h100", idx, 1.0));
    // Records have runners-up of the three indices after theirs.
    let lookup = Lookup::new([at(1, 10), at(4, 20), at(16, 30), at(64, 40)]);
    let (asked, gpu, default) = (problem("nvfp4 64x64 m8"), gpu("h100"), tile(0));
    let key = WinnerKey { layout: "nvfp4@2", problem: &asked, gpu: &gpu };
    let how = |valid: &[u32]| {
        let is_valid =
            |problem: &Problem, tile: &Tile| *problem == asked && valid.contains(&tile.number("variant").unwrap());
        let kernels = |problem: &Problem, tile: &Tile| {
            let hash = store_samples::toolchain(tile.number("variant").unwrap().into()).kernels;
            Some(if *problem == asked { "other kernels".to_string() } else { hash })
        };
        let current = Current { nvrtc: None, kernels: &kernels, is_valid: &is_valid };
        let found = lookup.find(&key, ArchSpec::named("sm90a").unwrap(), &current, &default);
        assert!(!found.is_stale(), "{found}");
        found.how
    };
    assert_eq!(how(&[10, 20, 30, 40]), How::OtherBucket { m: 16 });
    assert_eq!(how(&[10, 20, 31, 40]), How::OtherBucket { m: 16 }, "by its runner-up");
    assert_eq!(how(&[10, 20, 40]), How::OtherBucket { m: 64 });
    assert_eq!(how(&[10, 20]), How::OtherBucket { m: 4 });
    assert_eq!(how(&[10]), How::OtherBucket { m: 1 });
    assert_eq!(how(&[]), How::Default);
}

#[test]
fn every_answer_says_why_in_a_sentence() {
    let default = tile(0);
    let sentence = |records: Vec<Record>| {
        find(&Lookup::new(records.iter().map(Entry::of)), "nvfp4 64x64 m16", &default).to_string()
    };
    let measured = record("nvfp4 64x64 m16", "h100", 7, 1.0);
    assert_eq!(sentence(vec![measured.clone()]), "measured on this GPU");
    assert_eq!(
        sentence(vec![record("nvfp4 64x64 m32", "h100", 7, 1.0)]),
        "inherited: it won m = 32 of the same op on this GPU"
    );
    assert_eq!(
        sentence(vec![record("nvfp4 64x64 m16", "h200-sxm", 7, 1.0)]),
        format!("borrowed: it won on {}, nothing was measured on this GPU", gpu("h200-sxm"))
    );
    assert_eq!(
        sentence(vec![Record { origin: Origin::Predicted, ..measured.clone() }]),
        "predicted: the cost model's choice, never run on this GPU"
    );
    assert_eq!(sentence(vec![]), "default: no winner is known that serves this problem");

    let mut old = measured.clone();
    old.toolchain.nvrtc = "13.1".to_string();
    assert_eq!(
        sentence(vec![old]),
        "measured on this GPU; stale: it was measured with NVRTC 13.1, this is 13.2, it is still used"
    );
    let mut old = measured;
    old.toolchain.kernels = "0000000000000000".to_string();
    assert_eq!(sentence(vec![old]), "measured on this GPU; stale: its kernels have changed since, it is still used");
}

#[test]
fn a_tile_that_its_family_no_longer_knows_is_stale_and_has_runners_up() {
    let winner = record("nvfp4 64x64 m16", "h100", 7, 1.0);
    let lookup = Lookup::new([Entry::of(&winner)]);
    let (problem, gpu, default) = (problem("nvfp4 64x64 m16"), gpu("h100"), tile(0));
    let key = WinnerKey { layout: "nvfp4@2", problem: &problem, gpu: &gpu };
    let arch = ArchSpec::named("sm90a").unwrap();
    let current = Current { nvrtc: None, kernels: &|_, _| None, is_valid: &|_, valid| *valid != tile(7) };
    let found = lookup.find(&key, arch, &current, &default);
    assert_eq!((&found.how, &found.stale), (&How::Exact, &Some(Stale::Kernels)));
    let tiles: Vec<Tile> = found.tiles().collect();
    assert_eq!(tiles, [tile(7), tile(8), tile(9), tile(10), default.clone()]);
    let nothing = lookup.find(&key, arch, &Current { is_valid: &|_, _| false, ..current }, &default);
    assert_eq!((&nothing.how, &nothing.stale, nothing.tiles().count()), (&How::Default, &None, 1));
}

#[test]
fn better_evidence_is_never_overridden() {
    let of = |origin: Origin, idx: u64| Entry::of(&Record { origin, ..record("nvfp4 64x64 m16", "h100", idx, 1.0) });
    let winner = |entries: Vec<Entry>| {
        let key = entries[0].key;
        Lookup::new(entries).get(&key).unwrap().tile().unwrap()
    };
    assert_eq!(winner(vec![of(Origin::Measured, 1), of(Origin::Measured, 2)]), tile(1), "the earlier source");
    assert_eq!(winner(vec![of(Origin::Measured, 1), of(Origin::Predicted, 2)]), tile(1));
    assert_eq!(winner(vec![of(Origin::Predicted, 1), of(Origin::Measured, 2)]), tile(2));
    assert_eq!(winner(vec![of(Origin::Inherited { from_m: 1 }, 1), of(Origin::Measured, 2)]), tile(2));
}

#[test]
fn a_lookup_opens_without_a_snapshot_and_notes_a_bad_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("winners.snapshot");
    let arch = GpuSpec::named("h100").unwrap().arch;
    let (bare, notes) = Lookup::open(&path, arch);
    assert_eq!(notes, []);

    Snapshot::of(&records(10)).write(&path).unwrap();
    let (lookup, notes) = Lookup::open(&path, arch);
    assert_eq!((lookup.entries().len(), notes), (bare.entries().len() + 10, vec![]));

    fs::write(&path, "tilekiln").unwrap();
    let (lookup, notes) = Lookup::open(&path, arch);
    assert_eq!(lookup.entries().len(), bare.entries().len());
    assert!(matches!(&notes[..], [LookupNote::Snapshot(SnapshotError::Damaged { .. })]), "{notes:?}");
}
