//! Winners that travel: into packs, back into a database, never over a better one.

use std::fs;
use std::path::{Path, PathBuf};

use tilekiln::models::{self, Checkpoint, Shard};
use tilekiln::store::{Edits, Origin, Pack, Record, TrialLog};

use crate::machine::{Machine, current_record};
use crate::store_samples;

/// A problem of DeepSeek-V4-Flash at one token.
fn problem_of_dsv4() -> String {
    let ops = models::named("dsv4").unwrap().inventory(Checkpoint::Nvfp4, Shard::default()).unwrap();
    let op = ops.iter().find(|op| op.name == "attn.fused_wqa_wkv").unwrap();
    op.problem(1).to_string()
}

/// The winner of `problem` with a valid tile that is not the default.
fn other_tile(record: &Record, us: f64) -> Record {
    let gpu = crate::machine::h100();
    let tiles = tilekiln::kernels::serving(&record.problem, gpu.arch)
        .into_iter()
        .flat_map(|family| tilekiln::kernels::space(family, &record.problem, gpu).tiles);
    let tile = tiles.into_iter().find(|tile| *tile != record.tile).unwrap();
    let mut other = record.clone();
    other.toolchain.kernels = tilekiln::dispatch::kernels_hash(&record.problem, &tile, gpu).unwrap();
    (other.tile, other.timing.chained_us) = (tile, us);
    other
}

/// A pack of `records` in a file on `machine`.
fn pack_of(machine: &Machine, name: &str, records: &[Record]) -> PathBuf {
    let pack = Pack::new(store_samples::gpu("h100"), "dsv4", "nvfp4", records.to_vec()).unwrap();
    let path = machine.path(name);
    pack.write(&path).unwrap();
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_export_is_sorted_by_model_and_imports_back() {
    let machine = Machine::new();
    let of_model = current_record(&problem_of_dsv4(), 5.0);
    let of_none = current_record("nvfp4 64x64 m1", 2.0);
    let predicted = Record { origin: Origin::Predicted, ..current_record("nvfp4 64x64 m2", 2.0) };
    machine.keep(&[of_model.clone(), of_none.clone(), predicted]);
    machine.run(&["export"]).refuses(2, "found neither it nor a folder `tuning_db/h100-sxm` here", "tuning_db/<gpu>");

    fs::create_dir_all(machine.path("tuning_db/h100-sxm")).unwrap();
    let exported = machine.json(&["export"]);
    let [model, other] = &exported["packs"].as_array().unwrap()[..] else { panic!("{exported}") };
    assert_eq!(model["path"], "tuning_db/h100-sxm/dsv4-nvfp4.toml");
    assert_eq!(other["path"], "tuning_db/h100-sxm/other.toml");
    for (path, record) in [("dsv4-nvfp4.toml", &of_model), ("other.toml", &of_none)] {
        let pack = Pack::read(&machine.path("tuning_db/h100-sxm").join(path), Edits::Refuse).unwrap();
        assert_eq!(pack.records().iter().map(|record| &record.tile).collect::<Vec<_>>(), [&record.tile], "{path}");
    }
    let all = machine.json(&["export", "--predicted"]);
    assert_eq!((&all["packs"][1]["new"], &all["packs"][1]["same"]), (&1.into(), &1.into()), "{all}");

    let fresh = Machine::new();
    let folder = machine.path("tuning_db");
    let imported = fresh.json(&["import", text(&folder)]);
    assert_eq!(imported.as_array().unwrap().iter().map(|pack| pack["new"].as_u64().unwrap()).sum::<u64>(), 3);
    assert_eq!(fresh.records(&[]).len(), 3, "the snapshot was written");
    let again = fresh.json(&["import", text(&folder)]);
    assert_eq!(again.as_array().unwrap().iter().map(|pack| pack["kept"].as_u64().unwrap()).sum::<u64>(), 3);
    let back = fresh.json(&["export", "--predicted", "--out", text(&folder.join("h100-sxm"))]);
    assert_eq!((&back["packs"][0]["same"], &back["packs"][1]["same"]), (&1.into(), &2.into()), "{back}");
}

#[test]
fn an_export_keeps_what_only_the_pack_has_and_refuses_an_edited_one() {
    let machine = Machine::new();
    let [one, two] = ["nvfp4 64x64 m1", "nvfp4 64x64 m2"].map(|problem| current_record(problem, 2.0));
    machine.keep(&[one]);
    let path = pack_of(&machine, "packs/other.toml", &[two]);
    let exported = machine.json(&["export", "--out", "packs"]);
    assert_eq!((&exported["packs"][0]["new"], &exported["packs"][0]["kept"]), (&1.into(), &1.into()), "{exported}");
    assert_eq!(Pack::read(&path, Edits::Refuse).unwrap().records().len(), 2);

    let edited = fs::read_to_string(&path).unwrap().replace("chained_us = 2.0", "chained_us = 1.0");
    fs::write(&path, &edited).unwrap();
    let said = machine.run(&["export", "--out", "packs"]);
    said.refuses(1, "packs/other.toml: expected checksum ", "`autotune import --accept-edited`");
    assert_eq!(fs::read_to_string(&path).unwrap(), edited, "it is left alone");
}

#[test]
fn a_pack_that_was_edited_by_hand_imports_nothing() {
    let machine = Machine::new();
    let [one, two] = ["nvfp4 64x64 m1", "nvfp4 64x64 m2"].map(|problem| current_record(problem, 2.0));
    pack_of(&machine, "packs/a.toml", &[one]);
    let path = pack_of(&machine, "packs/b.toml", &[two]);
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, whole.replace("chained_us = 2.0", "chained_us = 1.0")).unwrap();
    let said = machine.run(&["import", "packs"]);
    said.refuses(1, "packs/b.toml: expected checksum ", "--accept-edited");
    assert!(said.sentence().ends_with("the pack was edited by hand"), "{said:?}");
    assert!(!machine.database().exists());
    machine.data(&["import", "packs", "--accept-edited"]);
    assert_eq!(machine.records(&[]).len(), 2);

    for us in ["nan", "-1.0"] {
        fs::write(&path, whole.replace("chained_us = 2.0", &format!("chained_us = {us}"))).unwrap();
        let said = machine.run(&["import", text(&path), "--accept-edited"]);
        said.refuses(1, "expected a time above 0 us in the winner of `nvfp4 64x64 m2`", "");
    }
    fs::write(&path, whole.replace("schema = 1", "schema = 2")).unwrap();
    machine.run(&["import", text(&path)]).refuses(1, "expected a pack of schema 1, found schema 2", "this version");
    fs::write(&path, "no pack").unwrap();
    machine.run(&["import", text(&path)]).refuses(1, "expected a pack, found at line 1: ", "version control");
    machine.run(&["import", "missing.toml"]).refuses(1, "expected a file at `missing.toml`, found nothing", "path");
    fs::create_dir(machine.path("empty")).unwrap();
    machine.run(&["import", "empty"]).refuses(1, "expected packs in `empty`, found none", "`autotune export`");
}

#[test]
fn an_incumbent_stays_unless_it_is_beaten_by_the_band() {
    let incumbent = current_record("nvfp4 4096x8192 m64", 10.0);
    let mut stale = other_tile(&incumbent, 5.0);
    stale.toolchain.kernels = "0123456789abcdef".to_string();
    let older = Record { written_at: 1, ..current_record("nvfp4 4096x8192 m64", 5.0) };
    let weaker = Record { origin: Origin::Predicted, ..other_tile(&incumbent, 1.0) };
    for (newcomer, column, us) in [
        (other_tile(&incumbent, 9.9), "kept", 10.0),
        (other_tile(&incumbent, 9.7), "replaced", 9.7),
        (stale.clone(), "kept", 10.0),
        (older, "kept", 10.0),
        (weaker, "kept", 10.0),
        (Record { written_at: u64::MAX / 2, ..current_record("nvfp4 4096x8192 m64", 11.0) }, "refreshed", 11.0),
    ] {
        let machine = Machine::new();
        machine.keep(std::slice::from_ref(&incumbent));
        let path = pack_of(&machine, "a.toml", std::slice::from_ref(&newcomer));
        let counts = &machine.json(&["import", text(&path)])[0];
        assert_eq!((&counts["winners"], &counts[column]), (&1.into(), &1.into()), "{newcomer:?}: {counts}");
        assert_eq!(machine.records(&[])[0]["us"], us, "{newcomer:?}");
    }
    let machine = Machine::new();
    machine.keep(&[stale]);
    let path = pack_of(&machine, "a.toml", &[incumbent]);
    assert_eq!(machine.json(&["import", text(&path)])[0]["replaced"], 1, "a stale incumbent has no time to defend");
}

#[test]
fn a_log_of_trials_is_the_same_bytes_each_time() {
    let machine = Machine::new();
    let trials = (0..50).flat_map(|idx| ["nvfp4 64x64 m1", "nvfp4 64x64 m2"].map(|p| store_samples::trial(p, idx, 1)));
    machine.keep_trials(&trials.collect::<Vec<_>>());
    let words = |log| ["export", "--problem", "nvfp4 64x64", "--m", "2", "--trials", log];
    machine.run(&words("a.gz")).refuses(2, "expected a name that ends in .trials.gz for `--trials`", "ending");
    let said = machine.data(&words("a.trials.gz"));
    assert!(said.starts_with("a.trials.gz: 50 trials of 1 problems, "), "{said}");
    machine.data(&words("b.trials.gz"));
    let [a, b] = ["a.trials.gz", "b.trials.gz"].map(|name| fs::read(machine.path(name)).unwrap());
    assert_eq!(a, b);
    assert_eq!(a[4..8], [0; 4], "no time of day");
    let log = TrialLog::read(&machine.path("a.trials.gz")).unwrap();
    assert_eq!(log.problems.iter().map(|(problem, _)| problem.to_string()).collect::<Vec<_>>(), ["nvfp4 64x64 m2"]);
    let none = machine.run(&["export", "--problem", "nvfp4 128x64", "--trials", "c.trials.gz"]);
    none.refuses(1, "expected measured winners of this on NVIDIA H100", "show records");
}

#[test]
fn verify_tells_broken_from_stale() {
    let machine = Machine::new();
    let good = current_record("nvfp4 64x64 m1", 2.0);
    let mut stale = current_record("nvfp4 64x64 m2", 2.0);
    stale.toolchain.kernels = "0123456789abcdef".to_string();
    pack_of(&machine, "good/a.toml", &[good.clone(), stale]);
    machine.keep_trials(&[store_samples::trial("nvfp4 64x64 m1", 1, 1)]);
    machine.data(&["export", "--problem", "nvfp4 64x64", "--trials", "good/a.trials.gz"]);
    let rows = machine.json(&["verify", "good"]);
    assert_eq!((&rows[0]["winners"], &rows[0]["stale"].as_array().unwrap().len()), (&2.into(), &1), "{rows}");
    assert_eq!((&rows[1]["trials"], &rows[1]["broken"]), (&1.into(), &serde_json::json!([])), "{rows}");

    let broken = |name: &str, words: &str| {
        let said = machine.run(&["verify", name]);
        assert_eq!(said.code(), 1, "{said:?}");
        assert!(said.stdout.contains(&format!("broken: {name}: ")) && said.stdout.contains(words), "{said:?}");
        assert!(said.sentence().starts_with("expected everything to be sound, found "), "{said:?}");
    };
    let no_tile = Record { tile: store_samples::tile(3), ..good.clone() };
    pack_of(&machine, "tile.toml", &[no_tile]);
    broken("tile.toml", "`nvfp4 64x64 m1`: expected a tile of h100-sxm, found `dense_mma k_slab=");
    let mut no_rounds = good.clone();
    no_rounds.timing.rounds = 0;
    pack_of(&machine, "rounds.toml", &[no_rounds]);
    broken("rounds.toml", "expected measured rounds, found none");
    let text = fs::read_to_string(machine.path("good/a.toml")).unwrap();
    fs::write(machine.path("edited.toml"), text.replace("chained_us = 2.0", "chained_us = 1.0")).unwrap();
    broken("edited.toml", "the pack was edited by hand");
    pack_of(&machine, "tuning_db/b200/a.toml", &[good]);
    broken("tuning_db/b200/a.toml", "expected winners of NVIDIA B200");
    let log = fs::read(machine.path("good/a.trials.gz")).unwrap();
    fs::write(machine.path("cut.trials.gz"), &log[..log.len() / 2]).unwrap();
    broken("cut.trials.gz", "expected a gzip'd trial log, found: ");
}

#[test]
fn verify_without_words_reads_what_is_in_use() {
    let machine = Machine::new();
    let embedded = machine.json(&["verify"]).as_array().unwrap().len();
    machine.keep(&[current_record("nvfp4 64x64 m1", 2.0)]);
    let rows = machine.json(&["verify"]);
    assert_eq!((rows.as_array().unwrap().len(), &rows[embedded]["winners"]), (embedded + 1, &1.into()), "{rows}");
    let snapshot = tilekiln::store::Database::snapshot_path(&machine.database());
    let bytes = fs::read(&snapshot).unwrap();
    fs::write(&snapshot, &bytes[..bytes.len() - 1]).unwrap();
    let said = machine.run(&["verify"]);
    assert_eq!(said.code(), 1, "{said:?}");
    assert!(said.stdout.contains("to be whole, found bytes that fail its checksum"), "{said:?}");
}

#[test]
fn a_merge_takes_the_better_evidence_and_says_from_where() {
    let machine = Machine::new();
    let at = |m: u32, written_at: u64, origin: Origin| Record {
        written_at,
        origin,
        ..current_record(&format!("nvfp4 64x64 m{m}"), written_at as f64)
    };
    pack_of(&machine, "a.toml", &[at(1, 5, Origin::Measured), at(2, 5, Origin::Predicted), at(4, 9, Origin::Measured)]);
    pack_of(&machine, "b.toml", &[at(1, 6, Origin::Measured), at(2, 4, Origin::Measured), at(8, 1, Origin::Measured)]);
    let winners = machine.json(&["merge", "a.toml", "b.toml", "--out", "c.toml"]);
    let said: Vec<[&str; 2]> = winners
        .as_array()
        .unwrap()
        .iter()
        .map(|winner| ["from", "why"].map(|name| winner[name].as_str().unwrap()))
        .collect();
    assert_eq!(
        said,
        [
            ["b.toml", "taken: written later"],
            ["b.toml", "taken: better evidence"],
            ["a.toml", "only here"],
            ["b.toml", "added"]
        ]
    );
    let merged = fs::read(machine.path("c.toml")).unwrap();
    machine.data(&["merge", "a.toml", "b.toml", "--out", "a.toml"]);
    assert_eq!(fs::read(machine.path("a.toml")).unwrap(), merged, "the same bytes, into one of the two");
    let said = machine.run(&["merge", "c.toml", "b.toml", "--out", "/dev/full"]);
    said.refuses(1, "expected room to write `/dev/full`, found a full disk", "make room");

    let b200 = Pack::new(store_samples::gpu("b200"), "dsv4", "nvfp4", Vec::new()).unwrap();
    b200.write(&machine.path("b200.toml")).unwrap();
    let said = machine.run(&["merge", "a.toml", "b200.toml", "--out", "d.toml"]);
    said.refuses(1, "b200.toml: expected winners of NVIDIA H100", "keep the packs of each GPU apart");
    assert!(!machine.path("d.toml").exists());
}

#[test]
fn a_diff_names_what_changed_with_its_times() {
    let machine = Machine::new();
    let [m1, m2, m4, m8, m16] = [1, 2, 4, 8, 16].map(|m| current_record(&format!("nvfp4 64x64 m{m}"), 10.0));
    let faster = Record { timing: store_samples::timing(8.0), ..m4.clone() };
    // A pack keeps six digits of a time, which is no difference.
    let m32 = current_record("nvfp4 64x64 m32", 10.0 / 3.0);
    pack_of(&machine, "packs/a.toml", &[m1.clone(), m2, m4, m8.clone(), m32.clone()]);
    pack_of(&machine, "packs/gpu.toml", &[]);
    machine.keep(&[m1, faster, other_tile(&m8, 5.0), m16, m32]);
    let kinds = |a: &str, b: &str| {
        let changes = machine.json(&["diff", a, b]);
        let kind = |change: &serde_json::Value| {
            let text = |name: &str| change[name].as_str().unwrap().to_string();
            (text("problem").split_once(" m").unwrap().1.to_string(), text("change"), change["ratio"].as_f64())
        };
        changes.as_array().unwrap().iter().map(kind).collect::<Vec<_>>()
    };
    let row = |m: &str, kind: &str, ratio: Option<f64>| (m.to_string(), kind.to_string(), ratio);
    let expected = [
        row("2", "removed", None),
        row("4", "retimed", Some(0.8)),
        row("8", "changed", Some(0.5)),
        row("16", "added", None),
    ];
    let database = machine.database();
    let snapshot = machine.path("now.snapshot");
    fs::copy(tilekiln::store::Database::snapshot_path(&database), &snapshot).unwrap();
    assert_eq!(kinds("packs/a.toml", text(&database)), expected);
    assert_eq!(kinds("packs", text(&snapshot)), expected);
    assert_eq!(kinds("packs", "packs/a.toml"), []);
    assert_eq!(machine.json(&["diff", "packs", text(&database), "--gpu", "b200"]), serde_json::json!([]));
    let text = machine.data(&["diff", "packs", "now.snapshot"]);
    assert!(
        text.starts_with("NVIDIA H100 80GB HBM3/132sm/50MiB/5120b/700W\nchange ")
            && text.contains("timed anew  nvfp4 64x64 m4     10.00     8.00  0.800  "),
        "{text}"
    );
    machine.run(&["diff", "packs", "nothing"]).refuses(1, "expected a file at `nothing`, found nothing", "path");
}
