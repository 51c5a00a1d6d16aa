//! What is shown and explained: spaces with their rules, winners with their evidence, the ladder with its sentences.

use tilekiln::problem::Routing;

use crate::machine::{Machine, current_record};

#[test]
fn problems_have_the_numbers_that_scripts_read() {
    let machine = Machine::new();
    let rows = machine.json(&["show", "problems", "--model", "dsv4-pro", "--tp", "8", "--checkpoint", "native"]);
    let row = &rows.as_array().unwrap()[0];
    for name in ["name", "n", "k", "groups", "count", "weights", "activations", "weight_bytes"] {
        assert!(!row[name].is_null(), "{name}");
    }
    for name in ["m", "flops", "bytes", "floor_us"] {
        assert!(row[name].as_f64().is_some_and(|number| number > 0.0), "{name}");
    }
    let few = machine.json(&["show", "problems", "--m", "3"]);
    assert!(few.as_array().unwrap().iter().all(|row| row["m"] == 4));
}

#[test]
fn a_space_names_its_axes_rules_and_strangers() {
    let machine = Machine::new();
    let text = machine.data(&["show", "space", "--problem", "nvfp4 4096x8192 m64"]);
    for words in ["dense_mma: ", " tiles pass", "row_tiles    1 2 4", "rule smem", "B of shared memory, h100-sxm has"] {
        assert!(text.contains(words), "expected `{words}`: {text}");
    }
    let strangers = [
        "not served by\n  dense_persistent: expected at least 512 tokens, found 64",
        "  dense_wgmma_a8: expected a8 activations, found a16",
        "  dense_persistent_a8: expected a8 activations, found a16",
        "  moe_walk: expected a block",
    ]
    .join("\n");
    assert!(text.contains(&strangers), "{text}");
    let json = machine.json(&["show", "space", "--problem", "nvfp4 4096x8192 m64"]);
    let family = &json["spaces"][0]["families"][0];
    let refused: u64 = family["rules"].as_array().unwrap().iter().map(|rule| rule["tiles"].as_u64().unwrap()).sum();
    assert_eq!(family["passing"].as_u64().unwrap() + refused, family["tiles"].as_u64().unwrap());
    let model = machine.data(&["show", "space", "--model", "dsv4", "--m", "1", "--gpu", "b200"]);
    assert!(model.starts_with("op ") && model.contains("experts") && !model.contains("wgmma"), "{model}");
}

#[test]
fn records_say_how_good_and_how_old_they_are() {
    let machine = Machine::new();
    assert!(machine.records(&[]).is_empty());
    let current = current_record("nvfp4 4096x8192 m64", 10.0);
    let mut stale = current_record("nvfp4 4096x8192 m256", 20.0);
    stale.toolchain.kernels = "0123456789abcdef".to_string();
    machine.keep(&[current.clone(), stale]);
    let rows = machine.records(&[]);
    let [m64, m256] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((&m64["stale"], m64["tile"].as_str().unwrap()), (&serde_json::Value::Null, &*current.tile.to_string()));
    assert!((m64["gain"].as_f64().unwrap() - 1.15).abs() < 1e-9);
    assert_eq!(m256["stale"], "its kernels have changed since, it is still used");
    let table = machine.data(&["show", "records", "--problem", "nvfp4 4096x8192 m64"]);
    assert_eq!(table.lines().count(), 2, "{table}");
    assert!(table.contains("  67  1.15  measured  "), "{table}");
    assert!(machine.records(&["--model", "dsv4-pro"]).is_empty());
    assert_eq!(machine.json(&["show", "records", "--gpu", "b200"]), serde_json::json!([]));
}

#[test]
fn a_time_under_several_routings_says_which_and_has_no_share_of_the_floor() {
    let machine = Machine::new();
    let problem = "moe nvfp4 8/8 top2 256x128 m4";
    let mut experts = current_record(problem, 30.0);
    experts.routings = vec![Routing::Uniform, Routing::Zipf(1.0)];
    machine.keep(&[experts]);
    let table = machine.data(&["show", "records", "--problem", problem]);
    assert!(table.contains("measured, uniform and zipf(1.0)"), "{table}");
    assert_eq!(machine.records(&[])[0]["routings"], serde_json::json!(["uniform", "zipf(1.0)"]));
}

#[test]
fn why_tells_the_rung_of_the_ladder() {
    let machine = Machine::new();
    let mut inherited = current_record("nvfp4 8192x4096 m128", 10.0);
    inherited.toolchain.nvrtc = "12.9".to_string();
    machine.keep(&[current_record("nvfp4 8192x4096 m64", 10.0), inherited]);
    let why = |words: &[&str]| machine.data(&[&["show", "records", "--why"], words].concat());
    for (problem, m, sentence) in [
        ("nvfp4 8192x4096", "33", "measured on this GPU\n"),
        ("nvfp4 8192x4096", "128", "measured on this GPU; stale: it was measured with NVRTC 12.9, this is 13."),
        ("nvfp4 8192x4096", "32", "inherited: it won m = 64 of the same op on this GPU"),
        ("nvfp4 64x64", "1", "default: no winner is known that serves this problem"),
    ] {
        let text = why(&["--problem", problem, "--m", m]);
        assert!(text.contains(&format!("  why        {sentence}")), "{problem} m{m}: {text}");
        assert!(text.contains("\n  default    dense_"), "{text}");
    }
    let borrowed = why(&["--problem", "nvfp4 8192x4096 m64", "--gpu", "h200"]);
    assert!(borrowed.contains("borrowed: it won on NVIDIA H100 80GB HBM3/"), "{borrowed}");
    let text = why(&["--problem", "nvfp4 8192x4096 m64"]);
    assert!(text.contains("(10.00 us, 67 % of the floor, 1.15x the default)") && text.contains("runner-up"), "{text}");
}

#[test]
fn a_bucket_that_was_not_measured_takes_a_neighbour_whose_tile_is_valid() {
    let machine = Machine::new();
    let answers = machine.json(&["show", "records", "--why", "--problem", "fp8 7168x16384", "--m", "2,8"]);
    for answer in answers["answers"].as_array().unwrap() {
        assert!(answer["why"].as_str().unwrap().contains("of the same op on this GPU"), "{answer}");
        assert_eq!(answer["is_stale"], false, "{answer}");
        assert_ne!(answer["tile"], answer["default"], "{answer}");
    }
}

#[test]
fn a_time_of_another_bucket_or_gpu_is_told_in_words_only() {
    let machine = Machine::new();
    machine.keep(&[current_record("nvfp4 8192x4096 m64", 10.0)]);
    let ask = |words: &[&str]| {
        let words = [&["show", "records", "--why", "--problem"], words].concat();
        (machine.data(&words), machine.json(&words)["answers"][0].clone())
    };
    for words in [&["nvfp4 8192x4096 m32"][..], &["nvfp4 8192x4096 m64", "--gpu", "h200"]] {
        let (text, json) = ask(words);
        assert!(json["us"].is_null() && json["gain"].is_null() && json["runners_up"][0]["us"].is_null(), "{json}");
        assert!(text.contains("; it took 10.00 us there\n") && !text.contains("% of the floor"), "{text}");
    }
    let (text, json) = ask(&["nvfp4 8192x4096 m64"]);
    assert_eq!((&json["us"], text.contains("us there")), (&serde_json::json!(10.0), false), "{text}");
}

#[test]
fn explain_ranks_and_says_what_is_used() {
    let machine = Machine::new();
    machine.keep(&[current_record("nvfp4 4096x8192 m64", 10.0)]);
    let text = machine.data(&["explain", "nvfp4", "4096x8192", "m64"]);
    for words in ["6.70 us at the GPU's rates", "rule smem", "best predicted of ", "(default)", "bound by"] {
        assert!(text.contains(words), "expected `{words}`: {text}");
    }
    assert!(text.contains("used\n  why        measured on this GPU\n"), "{text}");
    let json = machine.json(&["explain", "--problem", "moe nvfp4 256 top6 4096x2048", "--m", "1,16"]);
    let [one, sixteen] = &json.as_array().unwrap()[..] else { panic!("{json}") };
    for explained in [one, sixteen] {
        let best = explained["best"].as_array().unwrap();
        assert_eq!(best.len(), 10);
        let us: Vec<f64> = best.iter().map(|ranked| ranked["predicted_us"].as_f64().unwrap()).collect();
        assert!(us.is_sorted() && us[0] > 0.0, "{us:?}");
    }
}

#[test]
fn a_mix_of_streams_is_shown_explained_and_rendered_like_every_problem() {
    let machine = Machine::new();
    let space = machine.data(&["show", "space", "--problem", "hc f32 24x16384 m64"]);
    for words in ["hc_mix: ", "groups       1 2 4", "rule smem", "rule way", "dense_mma: expected a dense problem"] {
        assert!(space.contains(words), "expected `{words}`: {space}");
    }
    machine.keep(&[current_record("hc f32 24x16384 m64", 10.0)]);
    let explained = machine.data(&["explain", "hc", "f32", "24x16384", "m64"]);
    for words in ["rule idle", "(default)", "used\n  why        measured on this GPU\n"] {
        assert!(explained.contains(words), "expected `{words}`: {explained}");
    }
    let tile = "hc_mix groups=1 slice=64 tokens=64 warps=4";
    let text = machine.data(&["render", "hc f32 24x16384 first m64", "--tile", tile]);
    for words in ["using Element = float;", "kSlice = 64;", "kHasPost = false;"] {
        assert!(text.contains(words), "expected `{words}`: {text}");
    }
    let rows = machine.json(&["show", "problems", "--model", "dsv4", "--only", "hc_", "--m", "64"]);
    let problems: Vec<&str> = rows.as_array().unwrap().iter().map(|row| row["problem"].as_str().unwrap()).collect();
    assert_eq!(
        problems,
        ["hc f32 24x16384 first m64", "hc f32 24x16384 m64", "hc f32 24x16384 m64", "hc f32 4x16384 m64"]
    );
    let listed = machine.data(&["bench", "--model", "dsv4", "--only", "hc_", "--m", "64", "--list"]);
    assert_eq!(listed.matches("hc f32").count(), 3, "{listed}");
    assert!(listed.contains("hc_attn_fn, hc_ffn_fn"), "{listed}");
}
