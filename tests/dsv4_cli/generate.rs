//! `dsv4 generate` with token ids: the oracle's continuation, streaming, batches, limits.

use crate::place::{Place, expected_argmax, ids, oracle};

const SMALL: &str = "small-nvfp4";

#[test]
fn the_first_token_is_the_oracles_and_the_run_says_where_it_runs() {
    let (place, model) = (Place::new(), oracle(SMALL));
    let (_, list) = ids(SMALL, 24);
    let expected = expected_argmax(SMALL)[23];
    let mut words = vec!["generate", "--model-dir", &model, "--tokens", &list, "--max-tokens", "4", "--ignore-eos"];
    if tilekiln::device::Gpu::count() > 0 {
        words.extend(["--device", "cpu"]);
    }
    let said = place.done(&words);
    let tokens: Vec<u32> = said.stdout.trim_end().split(' ').map(|id| id.parse().unwrap()).collect();
    assert_eq!((tokens.len(), tokens[0]), (4, expected), "{said:?}");
    assert!(said.stderr.contains("running the f32 reference on the CPU\n"), "{said:?}");
    for words in ["prefill: 24 tokens in ", "decode: 3 tokens in ", " tokens/s"] {
        assert!(said.stderr.contains(words), "{words}: {said:?}");
    }
}

#[test]
fn an_answer_goes_on_as_if_it_had_been_fed() {
    let (place, model) = (Place::new(), oracle(SMALL));
    let generate = |list: &str, most: &str| {
        let words = ["generate", "--model-dir", &model, "--device", "cpu", "--tokens", list, "--max-tokens", most];
        let json = place.json(&[&words[..], &["--ignore-eos"]].concat());
        serde_json::from_value::<Vec<u32>>(json["answers"][0]["tokens"].clone()).unwrap()
    };
    let (_, list) = ids(SMALL, 20);
    let six = generate(&list, "6");
    let fed: Vec<String> = six[..3].iter().map(u32::to_string).collect();
    assert_eq!(generate(&format!("{list},{}", fed.join(",")), "3"), six[3..]);
}

#[test]
fn a_batch_gives_what_its_prompts_give_one_by_one() {
    let (place, model) = (Place::new(), oracle(SMALL));
    let lengths = [5, 17, 40];
    let lines: Vec<String> = lengths.iter().map(|&length| format!("{:?}", ids(SMALL, length).0)).collect();
    place.write("batch.jsonl", lines.join("\n\n") + "\n");
    let common = ["generate", "--model-dir", &model, "--device", "cpu", "--max-tokens", "3", "--temperature", "0"];
    let batch = place.json(&[&common[..], &["--batch-file", "batch.jsonl", "--batch-invariant"]].concat());
    for (idx, &length) in lengths.iter().enumerate() {
        let alone = place.json(&[&common[..], &["--tokens", &ids(SMALL, length).1]].concat());
        assert_eq!(batch["answers"][idx], alone["answers"][0], "{length}");
        assert_eq!(alone["answers"][0]["prompt_tokens"], length);
    }
    assert_eq!(batch["prefill"]["tokens"], 62);
    let lines = place.done(&[&common[..], &["--batch-file", "batch.jsonl"]].concat()).stdout;
    let answers: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers[2], batch["answers"][2]["tokens"]);
}

#[test]
fn an_answer_ends_at_the_end_of_sequence_token() {
    let (place, model) = (Place::new(), Place::copy);
    let model = model(&place, "model", SMALL);
    let (_, list) = ids(SMALL, 24);
    // What the model says first is declared its end.
    let end = expected_argmax(SMALL)[23];
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    let changed = config.replace("\"eos_token_id\": 1", &format!("\"eos_token_id\": [1, {end}]"));
    assert_ne!(config, changed);
    std::fs::write(model.join("config.json"), changed).unwrap();
    let words = ["generate", "--model-dir", "model", "--device", "cpu", "--tokens", &list, "--max-tokens", "2"];
    let answer = |words: &[&str]| place.json(words)["answers"][0].clone();
    let ended = answer(&words);
    assert_eq!((&ended["stop"], &ended["tokens"]), (&"eos".into(), &serde_json::json!([])));
    let ignored = answer(&[&words[..], &["--ignore-eos"]].concat());
    assert_eq!((&ignored["stop"], &ignored["tokens"][0]), (&"length".into(), &end.into()));
}

#[test]
fn draws_follow_the_seed() {
    let (place, model) = (Place::new(), oracle(SMALL));
    let (_, list) = ids(SMALL, 8);
    let drawn = |seed: &str| {
        let words = ["generate", "--model-dir", &model, "--device", "cpu", "--tokens", &list, "--max-tokens", "8"];
        let flags = ["--ignore-eos", "--temperature", "1.5", "--top-p", "0.95", "--seed", seed];
        place.json(&[&words[..], &flags].concat())["answers"][0]["tokens"].clone()
    };
    assert_eq!(drawn("7"), drawn("7"));
    assert_ne!(drawn("7"), drawn("8"));
}

#[test]
fn limits_are_said_before_anything_is_loaded() {
    let (place, model) = (Place::new(), oracle(SMALL));
    let refuses = |flags: &[&str], sentence: &str, hint: &str| {
        let words = [&["generate", "--model-dir", &model, "--device", "cpu"], flags].concat();
        place.run(&words).refuses(2, sentence, hint);
    };
    refuses(&["--tokens", "1,256"], "expected token ids below 256, found 256 at place 1", "vocab_size");
    let sentence = "expected a prompt and an answer of at most 4096 tokens together, found 2 and up to 4096";
    refuses(&["--tokens", "1,2", "--max-tokens", "4096"], sentence, "--max-tokens");
    let sentence = "expected a prompt and an answer of at most 8 tokens together, found 3 and up to 256";
    refuses(&["--tokens", "1,2,3", "--context", "8"], sentence, "--context");
    let sentence = "expected a context of at most 4096 tokens, found --context 5000";
    refuses(&["--tokens", "1", "--context", "5000"], sentence, "max_position_embeddings");
    refuses(
        &["--tokens", "1", "--layers", "6"],
        "expected at most the 5 layers of the model, found --layers 6",
        "--layers",
    );
    refuses(&["--prompt", "Hi"], "expected token ids, because the model directory has no tokenizer.json", "--tokens");
}

#[test]
fn fewer_layers_run_and_say_something_else() {
    let (place, model) = (Place::new(), oracle(SMALL));
    let (_, list) = ids(SMALL, 24);
    let words = ["generate", "--model-dir", &model, "--device", "cpu", "--tokens", &list, "--max-tokens", "4"];
    let whole = place.json(&[&words[..], &["--ignore-eos"]].concat());
    let two = place.json(&[&words[..], &["--ignore-eos", "--layers", "2"]].concat());
    assert_ne!(whole["answers"], two["answers"]);
}

#[test]
fn scales_of_the_file_are_warned_of_by_name() {
    let (place, model) = (Place::new(), oracle("small-nvfp4_full"));
    let (_, list) = ids("small-nvfp4_full", 32);
    // One token is what the prompt is followed by: nothing is fed that the warm-up has not met.
    let words = ["generate", "--model-dir", &model, "--device", "cpu", "--tokens", &list, "--max-tokens", "1"];
    let said = place.done(&[&words[..], &["--activation", "a4", "--scale", "checkpoint"]].concat());
    for words in ["warning: layers.0.attn.wq_a: activation scale too small: ", "use the per-token policy"] {
        assert!(said.stderr.contains(words), "{words}: {said:?}");
    }
    for scale in ["per-token", "per-tensor", "warmup"] {
        let said = place.done(&[&words[..], &["--activation", "a4", "--scale", scale]].concat());
        // Under scales of a warm-up other roundings feed the layers, so a value may be a little above what it met.
        let is_clipped = if scale == "warmup" { "layers.0.attn.wq_a: " } else { "too small" };
        assert!(!said.stderr.contains(is_clipped), "{scale}: {said:?}");
        assert_eq!(said.stderr.contains("warming up on the prompt"), scale == "warmup", "{said:?}");
    }
    let said = place.done(&[&words[..], &["--activation", "a4", "--scale", "fixed(0.0000001)"]].concat());
    assert!(said.stderr.contains("activation scale too small: "), "{said:?}");
}
