//! Words that make no sense: one sentence with what was expected and what was found, a hint, exit code 2.

use crate::place::{Place, oracle};

#[test]
fn every_mistake_has_its_sentence() {
    let place = Place::new();
    let model = oracle("small-nvfp4");
    for (words, sentence, hint) in MISTAKES {
        let words: Vec<&str> = words.split('|').map(|word| if word == "MODEL" { &model } else { word }).collect();
        let said = place.run(&words);
        said.refuses(2, sentence, hint);
        assert_eq!(said.stdout, "", "{said:?}");
    }
}

#[test]
fn help_and_version_are_data() {
    let place = Place::new();
    for command in ["generate", "logits", "check", "compare", "bench"] {
        let help = place.done(&[command, "--help"]).stdout;
        assert!(help.contains(&format!("Examples:\n  dsv4 {command}")), "{help}");
    }
    let help = place.done(&["--help"]).stdout;
    for words in ["Examples:", "TILEKILN_DATA ", "TILEKILN_CACHE ", "TILEKILN_NVRTC "] {
        assert!(help.contains(words), "{help}");
    }
    assert!(place.done(&["--version"]).stdout.starts_with("dsv4 "));
}

#[test]
fn a_gpu_that_is_not_there_is_said() {
    if tilekiln::device::Gpu::count() > 0 {
        return;
    }
    let place = Place::new();
    let words = ["generate", "--model-dir", &oracle("small-nvfp4"), "--tokens", "1", "--device", "gpu"];
    place.run(&words).refuses(1, "expected a GPU for `--device gpu`, found none", "`--device`");
}

/// Words between bars, where MODEL is a checkpoint; the sentence; the hint.
const MISTAKES: &[(&str, &str, &str)] = &[
    ("frobnicate", "expected a command (generate, logits, check, compare, bench), found `frobnicate`", "--help"),
    ("genrate", "found `genrate`", "did you mean `generate`?"),
    ("generate", "expected --model-dir <DIR>, found nothing", "--help"),
    ("generate|--model-dir|MODEL", "expected --prompt, --tokens or --batch-file, found none of them", "--help"),
    ("generate|--model-dir|MODEL|--tokens|1|--prompt|a", "expected either `--", "--help"),
    ("generate|--model-dir|MODEL|--tokens|1|--thinking", "expected either `--", "--help"),
    ("generate|--model-dir|MODEL|--tokens|none.json", "or a file of them at `none.json`, found nothing", "input_ids"),
    ("generate|--model-dir|MODEL|--tokens|1,,2", "expected token ids such as 1,2,3, found `` in `1,,2`", "1,2,3"),
    ("generate|--model-dir|MODEL|--tokens|1|--max-tokens|0", "--max-tokens", "--help"),
    ("generate|--model-dir|MODEL|--tokens|1|--temperature|-1", "expected a temperature of 0 or above, found `-1`", ""),
    ("generate|--model-dir|MODEL|--tokens|1|--top-p|0", "expected a probability above 0 and at most 1, found `0`", ""),
    ("generate|--model-dir|MODEL|--tokens|1|--device|tpu", "expected cpu or gpu for `--device <DEVICE>`", "gpu"),
    ("generate|--model-dir|MODEL|--tokens|1|--activation|a8", "expected a16 or a4 for `--activation <ACTIVAT", ""),
    ("generate|--model-dir|MODEL|--tokens|1|--scale|checkpoint", "expected `--activation a4` with `--scale`", "a4"),
    ("generate|--model-dir|MODEL|--tokens|1|--scale|dynamic", "checkpoint, warmup or fixed(X) for `--scale`", ""),
    ("generate|--model-dir|MODEL|--tokens|1|--scale|fixed(0)", "expected a tensor scale above zero, found 0", ""),
    ("generate|--model-dir|MODEL|--tokens|1|--streams|bf16", "expected `--streams f32` on the CPU, found bf16", "GPU"),
    ("generate|--model-dir|MODEL|--tokens|1|--kv|fp4", "expected bf16 or fp8 for `--kv <KV>`, found `fp4`", ""),
    ("generate|--model-dir|MODEL|--tokens|1|--index|fp8", "expected bf16 or mxfp4 for `--index <INDEX>`", ""),
    ("generate|--model-dir|MODEL|--tokens|1|--check|nan", "expected finite or finite=op for `--check <WHAT>`", ""),
    ("generate|--model-dir|MODEL|--batch-file|none", "expected a batch file at `none`, found nothing", "--help"),
    ("logits|--model-dir|MODEL|--tokens|1", "expected --out <FILE>, found nothing", "--help"),
    ("check", "expected --model-dir <DIR>, found nothing", "--help"),
    ("compare|a", "expected <B>, found nothing", "--help"),
    ("compare|a|b|--limit|x", "expected a relative error such as 0.01, found `x`", "--help"),
    ("bench", "expected --model-dir <DIR>, found nothing", "--help"),
    ("bench|--synthetic|tiny", "expected flash or pro for `--synthetic <SYNTHETIC>`, found `tiny`", ""),
    ("bench|--synthetic|flash|--context|8q", "expected a number of tokens such as 8k, found `8q`", "--help"),
    ("bench|--synthetic|flash|--context|2m", "expected a context of at most 1048576 tokens, found 2097152", "limit"),
    ("bench|--synthetic|flash|--layers|44", "expected at most the 43 layers of the model, found --layers 44", ""),
    ("bench|--synthetic|flash|--checkpoint|fp6", "expected a checkpoint (native, nvfp4, nvfp4_full)", "--help"),
];
