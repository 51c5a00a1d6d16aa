//! Words that make no sense: one sentence with what was expected and what was found, a hint, exit code 2.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::machine::{Machine, Said};

#[test]
fn every_mistake_has_its_sentence() {
    let machine = Machine::new();
    for (words, sentence, hint) in MISTAKES {
        let words: Vec<&str> = words.split('|').collect();
        let said = machine.run(&words);
        said.refuses(2, sentence, hint);
        assert!(!machine.database().exists(), "{words:?} has made a database");
    }
}

#[test]
fn words_that_are_no_text_are_refused() {
    let machine = Machine::new();
    let mut command = machine.command(&["--model"]);
    command.arg(std::ffi::OsStr::from_bytes(b"\xff"));
    Said::by(command).refuses(2, "expected words in UTF-8", "--help");
}

#[test]
fn help_and_version_are_data() {
    let machine = Machine::new();
    let commands = ["show", "bench", "report", "explain", "render", "export", "import", "merge", "diff", "verify"];
    for command in commands.into_iter().chain(["gc", "doctor"]) {
        let help = machine.data(&[command, "--help"]);
        assert!(help.contains(&format!("Examples:\n  autotune {command}")), "{help}");
        for path in help.split_whitespace().filter(|word| word.starts_with("benches/")) {
            let is_there = Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists();
            assert!(is_there, "{command} --help names {path}, which is not there");
        }
    }
    let help = machine.data(&["--help"]);
    for words in ["Examples:", "TILEKILN_DATA ", "TILEKILN_CACHE ", "TILEKILN_NVRTC ", "~/.local/share/tilekiln"] {
        assert!(help.contains(words), "{help}");
    }
    assert!(machine.data(&["--version"]).starts_with("autotune "));
}

/// Words between bars, the sentence, the hint.
const MISTAKES: &[(&str, &str, &str)] = &[
    ("--model|foo", "expected the name of a known model (dsv4, dsv4-flash, dsv4-pro), found `foo`", "show problems"),
    ("--gpu|voodoo2", "expected the name of a known GPU (a100-sxm, b200,", "tuning_db/"),
    ("show|problems|--gpu|voodoo2", "found `voodoo2`", "tuning_db/"),
    ("--checkpoint|fp6", "expected a checkpoint (native, nvfp4, nvfp4_full), found `fp6`", "show problems"),
    ("--only|nonsense", "expected a part of an op's name (", "show problems"),
    ("--problem|int8 4x4", "found `int8 4x4` (at `int8`)", "show problems"),
    ("--problem|nvfp4 64x64 mm4", "found `nvfp4 64x64 mm4` (at `mm4`)", "show problems"),
    ("--problem|", "expected a problem such as `nvfp4 4096x8192 m64`, found ``", "show problems"),
    ("--problem|nvfp4 64x40", "nvfp4 holds k in multiples of 16, found k = 40", "show problems"),
    ("--problem|mxfp4 64x48", "mxfp4 holds k in multiples of 32, found k = 48", "show problems"),
    ("--problem|nvfp4 0x64", "found n = 0", "show problems"),
    ("--problem|nvfp4 24x64 swiglu", "swiglu needs n in multiples of 16", "show problems"),
    ("--problem|nvfp4 64x64 m0", "found m = 0", "show problems"),
    ("--problem|nvfp4 64x64 m9000", "expected 1 to 8192 tokens, found 9000", "chunks"),
    ("--m|0", "expected 1 to 8192 tokens, found 0", "chunks"),
    ("--m|1,9000", "expected 1 to 8192 tokens, found 9000", "chunks"),
    ("--m|1,x", "expected a number for `--m <M,M,...>`, found `x`", "--help"),
    ("--tp|16", "expected tp to be at most 8 (the groups of `attn.wo_a`), found tp = 16", "show problems"),
    ("--tp|3", "expected tp to be a power of two, found tp = 3", "show problems"),
    ("--ep|512", "to split over ep = 512", "show problems"),
    ("--effort|max", "expected quick, full or exhaustive for `--effort <EFFORT>`, found `max`", "--help"),
    ("--budget|1y", "expected a time such as 90s, 2m or 1h, found `1y`", "--help"),
    ("--compile-threads|100000", "expected 1 to 512 threads, found `100000`", "--help"),
    ("--compile-threads|0", "expected 1 to 512 threads, found `0`", "--help"),
    ("--compile-threads|x", "expected 1 to 512 threads, found `x`", "--help"),
    ("--frobnicate", "expected a flag that the command has, found `--frobnicate`", ""),
    ("--modle|dsv4", "found `--modle`", "did you mean `--model`?"),
    ("frobnicate", "expected a command (show, bench", "--help"),
    ("shwo", "found `shwo`", "did you mean `show`?"),
    ("show", "expected problems, space or records after `show`, found nothing", "--help"),
    ("show|nonsense", "expected a command (problems, space, records), found `nonsense`", "--help"),
    ("show|problems|--problem|nvfp4 64x64", "expected a model, found `--problem`", "explain"),
    ("explain", "expected <PROBLEM>..., found nothing", "--help"),
    ("explain|nvfp4|64x40", "nvfp4 holds k in multiples of 16, found k = 40", "show problems"),
    ("explain|nvfp4 64x64|--m|0", "expected 1 to 8192 tokens, found 0", "chunks"),
    ("merge|a.toml|b.toml", "expected --out <FILE>, found nothing", "--help"),
    ("diff|a.toml", "expected <B>, found nothing", "--help"),
    ("gc|--older-than|30", "expected an age such as 12h or 30d, found `30`", "--help"),
    ("import", "expected <PACK>..., found nothing", "--help"),
    ("export|--only|nonsense|--out|packs", "expected a part of an op's name (", "show problems"),
    ("export|--out|packs|--model|foo", "expected the name of a known model (dsv4, dsv4-flash,", "show problems"),
    ("export|--model|dsv4|--problem|nvfp4 64x64", "expected either `--model <NAME>` or `--problem <PR", "--help"),
    ("show|problems|extra", "expected no more words, found `extra`", "--help"),
    ("--gpu", "expected a value for `--gpu <NAME>`, found none", "--help"),
    ("--gpu|h100|--gpu|b200", "expected `--gpu <NAME>` once, found it twice", "--help"),
    ("--model|dsv4|--problem|nvfp4 64x64", "expected either `--model <NAME>` or `--problem <PROBLEM>`", "--help"),
    ("--tp|2|--problem|nvfp4 64x64", "expected either `--tp <RANKS>` or `--problem <PROBLEM>`", "--help"),
    ("--model|dsv4|show|problems", "expected `--model` after `show`, found it before", "tuning"),
];
