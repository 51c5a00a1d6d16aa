//! A machine without a GPU to run `autotune` on: its own database, and a kernel cache that the tests here share.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use tilekiln::arch::GpuSpec;
use tilekiln::dispatch::kernels_hash;
use tilekiln::jit::{Nvrtc, Search};
use tilekiln::kernels;
use tilekiln::store::{Database, GpuTrial, Record};

use crate::store_samples;

/// Where one test's winners and kernels are.
pub struct Machine {
    home: tempfile::TempDir,
    cache: PathBuf,
}

/// What a run said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// NVRTC, found or fetched once for all tests.
static NVRTC: LazyLock<PathBuf> = LazyLock::new(|| {
    let search = Search { on_progress: Some(|text| eprintln!("{text}")), ..Search::from_environment() };
    search.load().unwrap_or_else(|error| panic!("{error}")).path().to_path_buf()
});

impl Machine {
    /// A machine where kernels that another test compiled need not be compiled again.
    pub fn new() -> Self {
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli-cache");
        Self { home: tempfile::tempdir().unwrap(), cache }
    }

    /// A machine where nothing was ever compiled.
    pub fn cold() -> Self {
        let home = tempfile::tempdir().unwrap();
        Self { cache: home.path().join("cache"), home }
    }

    /// A path on this machine.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// The database that is used if nothing is said.
    pub fn database(&self) -> PathBuf {
        self.path("data/db")
    }

    /// Keeps `records` in its database and in the snapshot beside it.
    pub fn keep(&self, records: &[Record]) {
        let (database, recovery) = Database::open(&self.database()).unwrap();
        assert_eq!(recovery, None);
        for record in records {
            database.put_winner(record, 0.0, &|_| false).unwrap();
        }
        database.write_snapshot().unwrap();
        database.close().unwrap();
    }

    /// Keeps `trials` in its database.
    pub fn keep_trials(&self, trials: &[GpuTrial]) {
        let (database, _) = Database::open(&self.database()).unwrap();
        trials.iter().for_each(|trial| database.append_trial(trial).unwrap());
        database.close().unwrap();
    }

    /// Folders of compiled kernels.
    pub fn kernels(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.cache.join("kernels")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.join("kernel.cubin").exists()).collect()
    }

    /// `autotune` with these words, ready to start.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_autotune"));
        command.args(words).current_dir(self.home.path());
        command.env("TILEKILN_CACHE", &self.cache).env("TILEKILN_DATA", self.path("data"));
        command.env("TILEKILN_NVRTC", &*NVRTC);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs `autotune` with these words.
    pub fn run(&self, words: &[&str]) -> Said {
        Said::by(self.command(words))
    }

    /// Runs what must succeed, and gives its standard output.
    pub fn data(&self, words: &[&str]) -> String {
        let said = self.run(words);
        assert_eq!(said.code(), 0, "{words:?}: {said:?}");
        said.stdout
    }

    /// Runs what must succeed with `--json`, and gives what it answers.
    pub fn json(&self, words: &[&str]) -> serde_json::Value {
        let text = self.data(&[words, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error}: {text}"))
    }
}

impl Machine {
    /// What `show records` with these words has of the tests' own records: the packs of the binary hold others.
    pub fn records(&self, words: &[&str]) -> Vec<serde_json::Value> {
        let rows = self.json(&[&["show", "records"], words].concat());
        let own = store_samples::toolchain(0).commit;
        rows.as_array().unwrap().iter().filter(|row| row["commit"] == own.as_str()).cloned().collect()
    }
}

impl Said {
    /// What `command` says.
    pub fn by(mut command: Command) -> Self {
        let out = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let said = Self { status: out.status, stdout: text(out.stdout), stderr: text(out.stderr) };
        assert!(!said.stderr.contains("panicked"), "{said:?}");
        said
    }

    /// Its exit code.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// The one sentence of a failure.
    pub fn sentence(&self) -> &str {
        let mut sentences = self.stderr.lines().filter_map(|line| line.strip_prefix("error: "));
        let sentence = sentences.next().unwrap_or_else(|| panic!("no sentence: {self:?}"));
        assert_eq!(sentences.next(), None, "two sentences: {self:?}");
        assert!(!sentence.ends_with('.') && !sentence.starts_with(char::is_uppercase) || sentence.starts_with("NVRTC"));
        sentence
    }

    /// The way out, after a blank line.
    pub fn hint(&self) -> Option<&str> {
        self.stderr.split_once("\n\nhint: ").map(|(_, hint)| hint.trim_end())
    }

    /// Asserts a failure with this exit code, and words of its sentence and hint.
    #[track_caller]
    pub fn refuses(&self, code: i32, sentence: &str, hint: &str) {
        assert_eq!(self.code(), code, "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        assert!(self.sentence().contains(sentence), "expected `{sentence}`: {self:?}");
        let found = self.hint().unwrap_or_else(|| panic!("no hint: {self:?}"));
        assert!(found.contains(hint), "expected the hint `{hint}`: {self:?}");
    }
}

/// The GPU that is meant where there is none.
pub fn h100() -> &'static GpuSpec {
    GpuSpec::named("h100").unwrap()
}

/// A measured winner whose kernels and NVRTC are those of today: the default tile of `problem` on an H100.
pub fn current_record(problem: &str, us: f64) -> Record {
    let gpu = h100();
    let mut record = store_samples::record(problem, "h100", 1, us);
    record.tile = kernels::default_tile(&record.problem, gpu).unwrap();
    record.layout = record.problem.layout().into();
    record.toolchain.kernels = kernels_hash(&record.problem, &record.tile, gpu).unwrap();
    record.toolchain.nvrtc = Nvrtc::load(&NVRTC).unwrap().version();
    record
}

/// Waits for `child` to end, and gives what it said; kills it if it takes longer than `limit`.
pub fn ends_within(mut child: Child, limit: Duration) -> Said {
    let mut err = child.stderr.take().unwrap();
    let stderr = std::thread::spawn(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).map(|_| text)
    });
    let mut out = child.stdout.take().unwrap();
    let stdout = std::thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).map(|_| text)
    });
    let started = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if started.elapsed() > limit => {
                child.kill().unwrap();
                let status = child.wait().unwrap();
                panic!("still running after {limit:?} ({status}): {}", stderr.join().unwrap().unwrap());
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    Said { status, stdout: stdout.join().unwrap().unwrap(), stderr: stderr.join().unwrap().unwrap() }
}
