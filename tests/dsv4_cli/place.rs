//! A folder to run `dsv4` in, and what it says there.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// A folder of one test's own.
pub struct Place {
    folder: tempfile::TempDir,
}

/// What a run said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file into the folder.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// A copy of an oracle checkpoint that may be changed.
    pub fn copy(&self, name: &str, oracle: &str) -> PathBuf {
        let to = self.path(name);
        std::fs::create_dir(&to).unwrap();
        for entry in std::fs::read_dir(oracle_dir(oracle)).unwrap() {
            let from = entry.unwrap().path();
            std::fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
        }
        to
    }

    /// Runs `dsv4` with these words.
    pub fn run(&self, words: &[&str]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dsv4"));
        command.args(words).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("TILEKILN_CACHE", self.path("cache")).env("TILEKILN_DATA", self.path("data"));
        let out = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let said = Said { status: out.status, stdout: text(out.stdout), stderr: text(out.stderr) };
        assert!(!said.stderr.contains("panicked"), "{said:?}");
        said
    }

    /// Runs what must succeed.
    pub fn done(&self, words: &[&str]) -> Said {
        let said = self.run(words);
        assert_eq!(said.status.code(), Some(0), "{words:?}: {said:?}");
        said
    }

    /// Runs what must succeed with `--json`, and gives what it answers.
    pub fn json(&self, words: &[&str]) -> serde_json::Value {
        let said = self.done(&[words, &["--json"]].concat());
        serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}: {said:?}"))
    }
}

impl Said {
    /// Asserts a failure with this exit code, and words of its sentence and hint.
    #[track_caller]
    pub fn refuses(&self, code: i32, sentence: &str, hint: &str) {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        let (talk, found_hint) = self.stderr.split_once("\n\nhint: ").unwrap_or_else(|| panic!("no hint: {self:?}"));
        let (_, found) = talk.split_once("error: ").unwrap_or_else(|| panic!("no sentence: {self:?}"));
        assert!(found.contains(sentence), "expected `{sentence}`: {self:?}");
        assert!(found_hint.contains(hint), "expected the hint `{hint}`: {self:?}");
    }
}

/// A checkpoint that other people's code produced.
pub fn oracle_dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/oracle").join(name)
}

/// The same as a word of a command line.
pub fn oracle(name: &str) -> String {
    oracle_dir(name).display().to_string()
}

/// The first `count` ids of an oracle, and the same as a word of a command line.
pub fn ids(name: &str, count: usize) -> (Vec<u32>, String) {
    let tensors = tilekiln::engine::dump::read_tensors(&oracle_dir(name).join("expected.safetensors")).unwrap();
    let all = tensors.into_iter().find(|tensor| tensor.name == "input_ids").unwrap().values;
    let ids: Vec<u32> = all.iter().take(count).map(|&id| id as u32).collect();
    let list: Vec<String> = ids.iter().map(u32::to_string).collect();
    (ids, list.join(","))
}

/// The id of the largest expected logit at each position.
pub fn expected_argmax(name: &str) -> Vec<u32> {
    let tensors = tilekiln::engine::dump::read_tensors(&oracle_dir(name).join("expected.safetensors")).unwrap();
    let logits = tensors.into_iter().find(|tensor| tensor.name == "logits").unwrap();
    let largest = |row: &[f32]| (0..row.len()).reduce(|a, b| if row[b] > row[a] { b } else { a }).unwrap() as u32;
    logits.values.chunks(logits.shape[1]).map(largest).collect()
}
