//! `dsv4 generate` with texts: a tokenizer of a few tokens beside a checkpoint, and what is shown of its answers.

use std::path::Path;

use tilekiln::engine::Tokens;

use crate::place::Place;

fn tokenizer() -> Tokens {
    Tokens::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tokenizer/tokenizer.json")).unwrap()
}

/// A checkpoint with a tokenizer, in `model`.
fn place() -> Place {
    let place = Place::new();
    let model = place.copy("model", "wide-nvfp4");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tokenizer/tokenizer.json");
    std::fs::copy(from, model.join("tokenizer.json")).unwrap();
    place
}

#[test]
fn markers_are_tokens_and_texts_are_cut() {
    let tokens = tokenizer();
    let ids = tokens.encode("<｜begin▁of▁sentence｜><｜User｜>the sky<｜Assistant｜></think>").unwrap();
    assert_eq!([ids[0], ids[1], ids[ids.len() - 2], ids[ids.len() - 1]], [0, 3, 4, 6]);
    assert_eq!(ids.len(), 4 + 3, "the, a space, sky: {ids:?}");
    assert_eq!(tokens.id("<think>"), Some(5));
    assert_eq!(tokens.id("nonsense"), None);
}

#[test]
fn text_comes_in_whole_characters() {
    let tokens = tokenizer();
    for text in ["héllo", "the 天气 🌧 the", "a\u{FFFD}b", "<think>é</think>"] {
        let mut stream = tokens.stream();
        let mut grown = String::new();
        for id in tokens.encode(text).unwrap() {
            let piece = stream.push(id).unwrap();
            assert!(text.starts_with(&(grown.clone() + &piece)), "{text}: `{grown}` then `{piece}`");
            grown += &piece;
        }
        grown += &stream.finish().unwrap();
        assert_eq!((grown.as_str(), stream.unknown()), (text, 0));
    }
}

#[test]
fn bytes_that_are_no_text_are_shown_and_counted() {
    let tokens = tokenizer();
    // Ids 8 to 263 are the bytes.
    let pushed = |ids: &[u32]| {
        let mut stream = tokens.stream();
        let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        text += &stream.finish().unwrap();
        (text, stream.unknown())
    };
    let byte = |byte: u32| 8 + byte;
    assert_eq!(pushed(&[byte(0xE2), byte(0x82)]), ("\u{FFFD}".into(), 0));
    assert_eq!(pushed(&[byte(0xE2), byte(0x61)]), ("\u{FFFD}a".into(), 0));
    assert_eq!(pushed(&[byte(0xFF), byte(0xE2), byte(0x82), byte(0xAC)]), ("\u{FFFD}€".into(), 0));
    assert_eq!(pushed(&[byte(0x61), 5000, byte(0x62)]), ("a\u{FFFD}b".into(), 1));
}

#[test]
fn a_prompt_is_encoded_and_its_answer_is_shown_as_text() {
    let place = place();
    let words = ["generate", "--model-dir", "model", "--device", "cpu", "--max-tokens", "12", "--ignore-eos"];
    let asked = [&words[..], &["--prompt", "the sky", "--system", "in"]].concat();
    let json = place.json(&asked);
    let answer = &json["answers"][0];
    // Begin, `in`, user, `the`, space, `sky`, assistant, end of thought.
    assert_eq!(answer["prompt_tokens"], 8);
    let text = answer["text"].as_str().unwrap();
    let said = place.done(&asked);
    assert_eq!(said.stdout.trim_end_matches('\n'), text.trim_end_matches('\n'));

    place.write("batch.jsonl", "\"the sky\"\n{\"messages\": [{\"role\": \"user\", \"content\": \"the sky\"}]}\n");
    let batch = place.done(&[&words[..], &["--batch-file", "batch.jsonl", "--system", "in"]].concat());
    let lines: Vec<String> = batch.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, [text, text]);
    let thinking = place.json(&[&asked[..], &["--thinking"]].concat());
    assert_eq!(thinking["answers"][0]["prompt_tokens"], 8);
    assert_ne!(thinking["answers"][0]["tokens"], answer["tokens"]);
}

#[test]
fn a_file_that_is_no_tokenizer_or_no_batch_is_refused() {
    let place = place();
    let words = ["generate", "--model-dir", "model", "--device", "cpu"];
    let refuses = |lines: &str, sentence: &str| {
        place.write("batch.jsonl", lines);
        place.run(&[&words[..], &["--batch-file", "batch.jsonl"]].concat()).refuses(2, sentence, "--help");
    };
    refuses("\n\n", "expected a prompt on each line of `batch.jsonl`, found no line");
    refuses(
        "\"a\"\nb\n",
        "expected a text, a list of ids or a conversation in JSON on line 2 of `batch.jsonl`, found: ",
    );
    refuses("[]", "expected at least one token id, found none on line 1 of `batch.jsonl`");
    refuses("{\"messages\": []}", "expected a conversation that ends with the user or a tool, found no message");
    refuses("{\"turns\": []}", "unknown field `turns`");
    place.write("batch.jsonl", "[1]\n[512]");
    let said = place.run(&[&words[..], &["--batch-file", "batch.jsonl"]].concat());
    said.refuses(2, "expected token ids below 512, found 512 at place 0", "vocab_size");
    place.write("model/tokenizer.json", "{}");
    let said = place.run(&[&words[..], &["--prompt", "the"]].concat());
    said.refuses(1, "expected a tokenizer at `model/tokenizer.json`, found: ", "--tokens");
}
