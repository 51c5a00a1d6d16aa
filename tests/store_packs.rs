//! Packs and trial logs: files that people commit, review, edit, merge and cut.

mod store_samples;

use std::fs;

use store_samples::{gpu, record, records, tile, trial};
use tilekiln::problem::Routing;
use tilekiln::store::{
    Difference, Edits, FileError, Merged, Origin, Outcome, Pack, PackError, Record, Trial, TrialLog, TrialLogError,
    diff,
};

fn pack(records: Vec<Record>) -> Pack {
    Pack::new(gpu("h100"), "dsv4-flash", "nvfp4", records).unwrap()
}

fn parse(text: &str) -> Result<Pack, PackError> {
    Pack::parse(text, Edits::Refuse)
}

#[test]
fn a_pack_reads_like_this() {
    let mut winner = record("nvfp4 4096x8192 m64", "h100", 7, 12.345678912);
    winner.runners_up.truncate(1);
    winner.routings = vec![Routing::Uniform, Routing::Zipf(1.1)];
    let expected = r#"# Written by `autotune export`: times are measured, not typed.
schema = 1
model = "dsv4-flash"
checkpoint = "nvfp4"
checksum = "CHECKSUM"

[gpu]
product = "NVIDIA H100 80GB HBM3"
sm_count = 132
l2_bytes = 52428800
memory_bus_bits = 5120
power_limit_watts = 700
is_mig = false

[[winner]]
problem = "nvfp4 4096x8192 m64"
layout = "nvfp4@2"
tile = "dense_mma k_slab=128 prefetch=1 rows=32 split_k=1 stages=2 tokens=8 variant=7 warps=2"
numerics = "k-ascending/split2/f32"
origin = "measured"
chained_us = 12.3457
default_us = 14.1975
margin = 1.15
unchained_us = 14.4444
half_width_us = 0.0493827
rounds = 32
is_warm = false
sm_clock_mhz = 1755
throttle_reasons = 4
relative_l2 = 0.00153
tried = 212
runners_up = [
    ["dense_mma k_slab=256 prefetch=0 rows=64 split_k=2 stages=2 tokens=8 variant=8 warps=2", 12.4691],
]
routings = [
    "uniform",
    "zipf(1.1)",
]
driver = "580.159.04"
nvrtc = "13.2"
kernels = "KERNELS"
commit = "0123456789ab"
written_at = 1763800007
"#;
    let pack = pack(vec![winner.clone()]);
    let text = pack.to_text();
    let checksum = text.lines().nth(4).unwrap().split('"').nth(1).unwrap();
    assert_eq!(text, expected.replace("CHECKSUM", checksum).replace("KERNELS", &winner.toolchain.kernels));
    assert_eq!(parse(&text).unwrap(), pack);
}

#[test]
fn export_and_import_are_inverse_and_the_order_is_stable() {
    let mut winners = records(60);
    winners[1].origin = Origin::Inherited { from_m: 1 };
    winners[2].origin = Origin::Predicted;
    let text = pack(winners.clone()).to_text();
    winners.reverse();
    assert_eq!(pack(winners).to_text(), text);
    let read = parse(&text).unwrap();
    assert_eq!((read.records().len(), read.model(), read.checkpoint()), (60, "dsv4-flash", "nvfp4"));
    assert_eq!(read.to_text(), text, "rounding once is enough");
    assert_eq!(parse(&text.replace('\n', "\r\n")).unwrap(), read, "line ends are free");
    assert_eq!(parse(&format!("{text}\n# reviewed\n")).unwrap(), read, "comments are free");
}

#[test]
fn a_pack_is_written_whole_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("h100-sxm/dsv4-flash-nvfp4.toml");
    let written = pack(records(3));
    written.write(&path).unwrap();
    assert_eq!(Pack::read(&path, Edits::Refuse).unwrap(), written);
    let error = Pack::read(folder.path().join("none.toml").as_path(), Edits::Refuse).unwrap_err();
    assert!(matches!(error, PackError::File(FileError::Missing { .. })), "{error}");
}

#[test]
fn a_pack_that_was_edited_by_hand_is_noticed() {
    let text = pack(records(5)).to_text();
    for (from, to) in [
        ("chained_us = 3.0\n", "chained_us = 2.0\n"),
        ("margin = 1.15\n", "margin = 1.16\n"),
        ("origin = \"measured\"", "origin = \"predicted\""),
        ("nvrtc = \"13.2\"", "nvrtc = \"13.3\""),
        ("rounds = 32", "rounds = 33"),
        ("power_limit_watts = 700", "power_limit_watts = 350"),
        ("model = \"dsv4-flash\"", "model = \"dsv4-pro\""),
    ] {
        let edited = text.replacen(from, to, 1);
        assert!(edited != text, "{from}");
        let error = parse(&edited).unwrap_err();
        let sentence = error.to_string();
        assert!(matches!(error, PackError::EditedByHand { .. }), "{from}: {sentence}");
        assert!(sentence.ends_with("the pack was edited by hand") && sentence.starts_with("expected checksum "));
        assert!(error.hint().contains("`autotune import --accept-edited`"));
        Pack::parse(&edited, Edits::Accept).unwrap();
    }
}

#[test]
fn each_fault_of_a_pack_has_its_sentence() {
    let text = pack(records(2)).to_text();
    let with = |from: &str, to: &str| {
        let changed = text.replacen(from, to, 1);
        assert!(changed != text, "{from}");
        Pack::parse(&changed, Edits::Accept).unwrap_err().to_string()
    };
    assert_eq!(with("schema = 1", "schema = 2"), "expected a pack of schema 1, found schema 2");
    assert_eq!(with("schema = 1\n", ""), "expected a pack of schema 1, found no schema");
    assert!(with("schema = 1", "schema = = 1").starts_with("expected a pack, found at line 2: "));
    let unknown = with("rounds = 32", "round = 32");
    assert!(unknown.starts_with("expected a pack, found at line ") && unknown.contains("`round`"), "{unknown}");
    let missing = with("tried = 212\n", "");
    assert!(missing.contains("missing field `tried`"), "{missing}");
    assert_eq!(
        with("problem = \"nvfp4 64x64 m1\"", "problem = \"int8 64x64\""),
        "expected a problem in the winner of `int8 64x64`, found `int8 64x64`"
    );
    let first = with("tile = \"dense_mma", "tile = \"dense_mma rows");
    assert!(first.starts_with("expected a tile in the winner of `nvfp4 64x64 m1`, found `dense_mma rows "), "{first}");
    assert_eq!(
        with("origin = \"measured\"", "origin = \"guessed\""),
        "expected an origin in the winner of `nvfp4 64x64 m1`, found `guessed`"
    );
    assert_eq!(
        with("routings = []", "routings = [\"random\"]"),
        "expected a routing in the winner of `nvfp4 64x64 m1`, found `random`"
    );
    assert_eq!(
        with("problem = \"nvfp4 64x64 m2\"", "problem = \"nvfp4 64x64 m1\""),
        "expected one winner of `nvfp4 64x64 m1` with layout `nvfp4@2`, found two"
    );
}

#[test]
fn a_pack_is_of_one_gpu() {
    let error = Pack::new(gpu("h100"), "m", "c", vec![record("nvfp4 64x64 m1", "b200", 1, 1.0)]).unwrap_err();
    assert_eq!(error, PackError::OtherGpu { expected: gpu("h100").to_string(), found: gpu("b200").to_string() });
    let other = Pack::new(gpu("b200"), "m", "c", vec![]).unwrap();
    assert!(matches!(pack(vec![]).merge(&other), Err(PackError::OtherGpu { .. })));
}

#[test]
fn a_merge_keeps_the_better_evidence_and_then_the_later() {
    let of = |m: u32, tile: u64, origin: Origin| Record {
        origin,
        ..record(&format!("nvfp4 64x64 m{m}"), "h100", tile, 1.0)
    };
    let measured = |m: u32, tile: u64| of(m, tile, Origin::Measured);
    // Samples are written at a time that grows with their tile.
    let here = pack(vec![
        measured(1, 1),
        measured(4, 9),
        measured(8, 1),
        of(16, 9, Origin::Predicted),
        measured(32, 1),
        measured(64, 5),
    ]);
    let there = pack(vec![
        measured(2, 1),
        measured(4, 2),
        measured(8, 2),
        measured(16, 2),
        of(32, 9, Origin::Inherited { from_m: 64 }),
        measured(64, 5),
    ]);
    let (merged, notes) = here.merge(&there).unwrap();
    let notes: Vec<(String, Merged)> = notes.into_iter().map(|note| (note.problem, note.merged)).collect();
    let expected = [
        (1, 1, Merged::OnlyHere),
        (2, 1, Merged::Added),
        (4, 9, Merged::KeptAsLater),
        (8, 2, Merged::TakenAsLater),
        (16, 2, Merged::TakenForEvidence),
        (32, 1, Merged::KeptForEvidence),
        (64, 5, Merged::Same),
    ];
    assert_eq!(notes, expected.map(|(m, _, merged)| (format!("nvfp4 64x64 m{m}"), merged)));
    let tiles: Vec<_> = merged.records().iter().map(|record| record.tile.clone()).collect();
    assert_eq!(tiles, expected.map(|(_, idx, _)| tile(idx)));
}

#[test]
fn a_diff_tells_tiles_and_times_apart() {
    let at = |m: u32, tile: u64, us: f64| record(&format!("nvfp4 64x64 m{m}"), "h100", tile, us);
    let here = [at(1, 1, 10.0), at(2, 1, 10.0), at(8, 1, 10.0)];
    let there = [at(8, 2, 9.0), at(2, 1, 11.0), at(4, 1, 10.0)];
    let differences = diff(&here, &there);
    let ratios: Vec<Option<f64>> = differences.iter().map(Difference::ratio).collect();
    assert_eq!(ratios, [None, Some(1.1), None, Some(0.9)]);
    let lines: Vec<String> = differences.iter().map(Difference::to_string).collect();
    assert_eq!(lines[0], "nvfp4 64x64 m1: only here");
    assert_eq!(lines[1], "nvfp4 64x64 m2: same tile, 10.00 us here, 11.00 us there (1.100)");
    assert_eq!(lines[2], "nvfp4 64x64 m4: only there");
    assert!(lines[3].ends_with("variant=2 warps=2` in 9.00 us there (0.900)"), "{}", lines[3]);
}

#[test]
fn verify_points_at_winners_without_evidence() {
    let good = record("nvfp4 64x64 m1", "h100", 1, 1.0);
    let at = |m: u32| Record { problem: good.problem.with_m(m), ..good.clone() };
    let mut no_rounds = at(2);
    no_rounds.timing.rounds = 0;
    let mut no_time = at(4);
    no_time.timing.chained_us = 0.0;
    let mut no_kernels = at(8);
    no_kernels.toolchain.kernels.clear();
    let orphan = Record { origin: Origin::Inherited { from_m: 512 }, ..at(16) };
    let heir = Record { origin: Origin::Inherited { from_m: 1 }, ..at(32) };
    let findings = pack(vec![good, no_rounds, no_time, no_kernels, orphan, heir]).verify();
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "`nvfp4 64x64 m2`: expected measured rounds, found none",
            "`nvfp4 64x64 m4`: expected a time above 0, found 0 us",
            "`nvfp4 64x64 m8`: expected the NVRTC and kernels that it stands on, found none",
            "`nvfp4 64x64 m16`: expected a measured winner for m = 512 beside it, found none",
        ]
    );
}

fn trials() -> Vec<Trial> {
    let mut trials: Vec<Trial> = Vec::new();
    for problem in ["nvfp4 4096x4096 m64", "moe nvfp4 256/256 top6 4096x2048 m16", "nvfp4 1024x4096 m1"] {
        trials.extend((0..400).map(|idx| trial(problem, idx, 42).trial));
    }
    trials[5].outcome = Outcome::Wrong { relative_l2: f64::INFINITY };
    trials[6].outcome = Outcome::Rejected { rule: "smem".to_string() };
    trials[7].outcome = Outcome::FailedToCompile { message: "kernel.cu(12): error: \"x\" is undefined".to_string() };
    trials[8].outcome = Outcome::FailedToRun { message: "an illegal memory access".to_string() };
    trials[9].outcome = Outcome::TimedOut { seconds: 2.0 };
    trials[11].outcome = Outcome::WrongElement { found: 2.5, limit: f64::INFINITY };
    trials[10].toolchain.driver = "590.1".to_string();
    trials
}

#[test]
fn a_trial_log_gives_back_its_trials_by_problem() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("h100.jsonl.gz");
    let written = TrialLog::new(gpu("h100"), trials());
    written.write(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert!(bytes.len() < 1200 * 100, "{} bytes a trial", bytes.len() / 1200);

    let read = TrialLog::read(&path).unwrap();
    let problems: Vec<String> = read.problems.iter().map(|(problem, _)| problem.to_string()).collect();
    assert_eq!(problems, ["nvfp4 1024x4096 m1", "nvfp4 4096x4096 m64", "moe nvfp4 256/256 top6 4096x2048 m16"]);
    for ((_, read), (_, written)) in read.problems.iter().zip(&written.problems) {
        assert_eq!(read.len(), 400);
        for (read, written) in read.iter().zip(written) {
            assert_eq!(
                (&read.tile, &read.routing, &read.toolchain),
                (&written.tile, &written.routing, &written.toolchain)
            );
            match (&read.outcome, &written.outcome) {
                (Outcome::Measured(read), Outcome::Measured(written)) => {
                    assert!((read.chained_us / written.chained_us - 1.0).abs() < 1e-5);
                    assert_eq!((read.rounds, read.sm_clock_mhz), (written.rounds, written.sm_clock_mhz));
                }
                (read, written) => assert_eq!(read, written),
            }
        }
    }
    read.write(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes, "rounding once is enough");
}

#[test]
fn a_trial_log_that_is_none_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.jsonl.gz");
    TrialLog::new(gpu("h100"), trials()).write(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    assert!(matches!(TrialLog::from_bytes(&whole[..whole.len() / 2]), Err(TrialLogError::NotGzip(_))));
    assert!(matches!(TrialLog::from_bytes(b"no gzip"), Err(TrialLogError::NotGzip(_))));

    let zipped = |text: &str| {
        use std::io::Write;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text.as_bytes()).unwrap();
        TrialLog::from_bytes(&gzip.finish().unwrap()).unwrap_err()
    };
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&whole[..]), &mut text).unwrap();
    assert!(matches!(zipped(""), TrialLogError::Line { line: 1, .. }));
    assert_eq!(zipped(&text.replacen("\"schema\":1", "\"schema\":9", 1)), TrialLogError::OtherSchema(9));
    let shorter: Vec<&str> = text.lines().take(100).collect();
    assert_eq!(zipped(&shorter.join("\n")), TrialLogError::Cut { expected: 1200, found: 99 });
    let error = zipped(&text.replacen("\"routing\":\"zipf(1.1)\"", "\"routing\":\"random\"", 1));
    assert!(error.to_string().starts_with("expected a routing in line 2 of the trial log, found: random"), "{error}");
    let error = zipped(&text.replacen("\"seed\"", "\"sead\"", 1));
    assert!(error.to_string().starts_with("expected a trial in line 2 of the trial log, found: "), "{error}");
}
