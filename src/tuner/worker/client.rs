//! The parent's side: starts the child, asks with a deadline, replaces it when it is lost.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::protocol::{GpuReport, Reply, Request, Sabotage, receive, send};
use crate::problem::{Problem, Routing, Tile};
use crate::store::Outcome;
use crate::tuner::{Bench, ChainLink, Miss, Mode, Sample};

/// How the child is started: `program arguments... --socket PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerCommand {
    /// The binary.
    pub program: PathBuf,
    /// What it is told before the socket.
    pub arguments: Vec<String>,
}

/// Why the child gave no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WorkerError {
    /// It could not be started.
    #[error("the GPU worker could not be started: {reason}")]
    Start {
        /// Why.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// It has died.
    #[error("the GPU worker died: {status}")]
    Died {
        /// Its exit status, in words.
        status: String,
    },
    /// It did not answer in time, and was killed.
    #[error("the GPU worker did not answer within {} s", limit.as_secs_f64())]
    TimedOut {
        /// The limit.
        limit: Duration,
    },
    /// The request failed in the child.
    #[error("{outcome}")]
    Failed {
        /// What became of it.
        outcome: Outcome,
        /// Whether the child was lost with it.
        is_lost: bool,
    },
}

/// A running child.
pub struct Worker {
    child: Child,
    stream: UnixStream,
    gpu: GpuReport,
    // Holds the socket's folder until the child is gone.
    _folder: tempfile::TempDir,
}

impl Worker {
    /// Starts the child and waits until it has opened its GPU.
    ///
    /// # Errors
    /// [`WorkerError::Start`].
    pub fn start(command: &WorkerCommand) -> Result<Self, WorkerError> {
        let refuse = |error: io::Error| WorkerError::Start { reason: error.to_string(), hint: None };
        let folder = tempfile::Builder::new().prefix("tilekiln-").tempdir().map_err(refuse)?;
        let socket = folder.path().join("worker");
        let listener = UnixListener::bind(&socket).map_err(refuse)?;
        let mut child = Command::new(&command.program)
            .args(&command.arguments)
            .arg("--socket")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(refuse)?;
        let stream = match accept(&listener, &mut child) {
            Ok(stream) => stream,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
        };
        let mut worker = Self { child, stream, gpu: GpuReport::unknown(), _folder: folder };
        match worker.wait_for_reply(START_LIMIT)? {
            Reply::Ready(report) => worker.gpu = report,
            Reply::NotReady { reason, hint } => return Err(WorkerError::Start { reason, hint }),
            other => return Err(WorkerError::Start { reason: format!("unexpected answer {other:?}"), hint: None }),
        }
        Ok(worker)
    }

    /// The GPU that the child has opened.
    pub fn gpu(&self) -> &GpuReport {
        &self.gpu
    }

    /// Process id of the child.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Times a pure read of `bytes`: chained, and unchained.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub fn ceiling(&mut self, bytes: u64) -> Result<(f64, f64), WorkerError> {
        self.timed(&Request::Ceiling { bytes })
    }

    /// Times a layer of launches: chained, and unchained.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub fn chain(&mut self, links: &[ChainLink], seed: u64) -> Result<(f64, f64), WorkerError> {
        self.timed(&Request::Chain { links: links.to_vec(), seed })
    }

    fn timed(&mut self, request: &Request) -> Result<(f64, f64), WorkerError> {
        match self.ask(request, OPEN_LIMIT)? {
            Reply::Timed { chained_us, unchained_us } => Ok((chained_us, unchained_us)),
            other => Err(unexpected(other)),
        }
    }

    /// Runs a kernel that misbehaves, for tests of recovery.
    ///
    /// # Errors
    /// [`WorkerError`]: what a caller of a real kernel would get.
    pub fn sabotage(&mut self, how: Sabotage, limit: Duration) -> Result<(), WorkerError> {
        self.ask(&Request::Sabotage(how), limit).map(|_| ())
    }

    /// Sends `request` and waits for its answer. After [`WorkerError::Died`] and [`WorkerError::TimedOut`] the child is
    /// gone.
    fn ask(&mut self, request: &Request, limit: Duration) -> Result<Reply, WorkerError> {
        if send(&mut self.stream, request).is_err() {
            return Err(self.died());
        }
        match self.wait_for_reply(limit)? {
            Reply::Failed { outcome, is_lost } => Err(WorkerError::Failed { outcome, is_lost }),
            reply => Ok(reply),
        }
    }

    /// The next frame that is no heartbeat.
    fn wait_for_reply(&mut self, limit: Duration) -> Result<Reply, WorkerError> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // A child that does not even beat is as good as dead.
            let patience = left.min(SILENCE_LIMIT);
            if patience.is_zero() || self.stream.set_read_timeout(Some(patience)).is_err() {
                self.kill();
                return Err(WorkerError::TimedOut { limit });
            }
            match receive::<Reply>(&mut self.stream) {
                Ok(Reply::Heartbeat) => {}
                Ok(reply) => return Ok(reply),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    self.kill();
                    return Err(WorkerError::TimedOut { limit });
                }
                Err(_) => return Err(self.died()),
            }
        }
    }

    fn died(&mut self) -> WorkerError {
        // The socket closes a moment before the process is gone.
        let status = (0..20).find_map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            self.child.try_wait().ok().flatten()
        });
        let status = status.map_or("it closed its socket".to_string(), |status| match status.signal() {
            Some(signal) => format!("signal {signal}"),
            None => status.to_string(),
        });
        self.kill();
        WorkerError::Died { status }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

impl GpuReport {
    fn unknown() -> Self {
        let identity = crate::arch::GpuIdentity {
            product: String::new(),
            sm_count: 0,
            l2_bytes: 0,
            memory_bus_bits: 0,
            power_limit_watts: 0,
            is_mig: false,
        };
        Self { identity, driver: String::new(), memory: (0, 0) }
    }
}

/// Waits for the child to connect, or to end.
fn accept(listener: &UnixListener, child: &mut Child) -> Result<UnixStream, WorkerError> {
    let refuse = |error: io::Error| WorkerError::Start { reason: error.to_string(), hint: None };
    listener.set_nonblocking(true).map_err(refuse)?;
    let deadline = Instant::now() + START_LIMIT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).map_err(refuse)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(refuse(error)),
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(WorkerError::Start { reason: format!("it ended at once ({status})"), hint: None });
        }
        if Instant::now() > deadline {
            return Err(WorkerError::Start { reason: "it did not connect".to_string(), hint: None });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn unexpected(reply: Reply) -> WorkerError {
    WorkerError::Died { status: format!("unexpected answer {reply:?}") }
}

/// Where the time went while the child was waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Data and references.
    pub opening: Duration,
    /// Kernels: compiled, or waited for, and loaded.
    pub loading: Duration,
    /// Results against references.
    pub checking: Duration,
    /// Replays.
    pub timing: Duration,
}

/// A bench in another process. A child that is lost is replaced, and its candidates are prepared again when asked for.
pub struct WorkerBench {
    command: WorkerCommand,
    worker: Option<Worker>,
    routings: Vec<Routing>,
    seed: u64,
    opened: Option<Problem>,
    is_warm: bool,
    ids: HashMap<(Problem, Tile), u32>,
    next_id: u32,
    replacements: u32,
    spent: Spent,
}

impl WorkerBench {
    /// A bench whose first child has been started.
    pub fn new(command: WorkerCommand, worker: Worker, routings: Vec<Routing>, seed: u64) -> Self {
        Self {
            command,
            worker: Some(worker),
            routings,
            seed,
            opened: None,
            is_warm: false,
            ids: HashMap::new(),
            next_id: 0,
            replacements: 0,
            spent: Spent::default(),
        }
    }

    /// How many children were lost and replaced.
    pub fn replacements(&self) -> u32 {
        self.replacements
    }

    /// Where the time went.
    pub fn spent(&self) -> Spent {
        self.spent
    }

    /// Routings of the data that is opened next; what is open is forgotten.
    pub fn set_routings(&mut self, routings: Vec<Routing>) {
        self.routings = routings;
        self.opened = None;
        self.ids.clear();
    }

    /// Times a pure read of `bytes`: chained, and unchained. The data of the last op is gone afterwards.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub fn ceiling(&mut self, bytes: u64) -> Result<(f64, f64), WorkerError> {
        self.without_data(|worker| worker.ceiling(bytes))
    }

    /// Times a layer of launches: chained, and unchained. The data of the last op is gone afterwards.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub fn chain(&mut self, links: &[ChainLink]) -> Result<(f64, f64), WorkerError> {
        let seed = self.seed;
        self.without_data(|worker| worker.chain(links, seed))
    }

    fn without_data<T>(&mut self, ask: impl FnOnce(&mut Worker) -> Result<T, WorkerError>) -> Result<T, WorkerError> {
        self.opened = None;
        self.ids.clear();
        match self.worker() {
            Ok(worker) => ask(worker),
            Err(Miss::Fatal(reason)) => Err(WorkerError::Start { reason, hint: None }),
            Err(Miss::Candidate(outcome)) => Err(WorkerError::Failed { outcome, is_lost: true }),
        }
    }

    /// The child, started anew if the last one is gone, with the data of the op.
    fn worker(&mut self) -> Result<&mut Worker, Miss> {
        if self.worker.is_none() {
            let fatal = |error: WorkerError| Miss::Fatal(error.to_string());
            self.worker = Some(Worker::start(&self.command).map_err(fatal)?);
            self.replacements += 1;
            self.ids.clear();
            if let Some(problem) = self.opened.clone() {
                self.open(&problem).map_err(Miss::Fatal)?;
            }
        }
        self.worker.as_mut().ok_or_else(|| Miss::Fatal("the GPU worker is gone".to_string()))
    }

    /// Asks; a loss of the child becomes an outcome of the candidate that it was lost with.
    fn ask(&mut self, request: &Request, limit: Duration) -> Result<Reply, Miss> {
        let error = match self.worker()?.ask(request, limit) {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        if !matches!(error, WorkerError::Failed { is_lost: false, .. }) {
            self.worker = None;
        }
        Err(Miss::Candidate(match error {
            WorkerError::Failed { outcome, .. } => outcome,
            WorkerError::TimedOut { limit } => Outcome::TimedOut { seconds: limit.as_secs_f64() },
            other => Outcome::FailedToRun { message: other.to_string() },
        }))
    }

    fn prepared_id(&mut self, problem: &Problem, tile: &Tile) -> Result<u32, Miss> {
        self.worker()?;
        match self.ids.get(&(problem.clone(), tile.clone())) {
            Some(id) => Ok(*id),
            None => {
                self.prepare(problem, tile)?;
                Ok(self.next_id - 1)
            }
        }
    }
}

impl Bench for WorkerBench {
    fn routings(&self) -> &[Routing] {
        match self.opened {
            Some(Problem::MoeBlock(_)) => &self.routings,
            _ => &[],
        }
    }

    fn open(&mut self, problem: &Problem) -> Result<(), String> {
        self.ids.clear();
        self.opened = None;
        let started = Instant::now();
        let request = Request::Open { problem: problem.clone(), routings: self.routings.clone(), seed: self.seed };
        let reply = self.ask(&request, OPEN_LIMIT).map_err(|miss| match miss {
            Miss::Candidate(outcome) => outcome.to_string(),
            Miss::Fatal(reason) => reason,
        })?;
        self.is_warm = matches!(reply, Reply::Opened { is_warm: true });
        self.opened = Some(problem.clone());
        self.spent.opening += started.elapsed();
        Ok(())
    }

    fn prepare(&mut self, problem: &Problem, tile: &Tile) -> Result<f64, Miss> {
        let id = self.next_id;
        let started = Instant::now();
        let request = Request::Prepare { id, problem: problem.clone(), tile: tile.clone() };
        match self.ask(&request, PREPARE_LIMIT)? {
            Reply::Prepared { relative_l2, loading } => {
                self.spent.loading += loading;
                self.spent.checking += started.elapsed().saturating_sub(loading);
                self.next_id += 1;
                self.ids.insert((problem.clone(), tile.clone()), id);
                Ok(relative_l2)
            }
            other => Err(Miss::Fatal(unexpected(other).to_string())),
        }
    }

    fn sample(&mut self, problem: &Problem, tile: &Tile, mode: Mode, routing_idx: usize) -> Result<Sample, Miss> {
        let id = self.prepared_id(problem, tile)?;
        let started = Instant::now();
        match self.ask(&Request::Replay { id, mode, routing_idx }, REPLAY_LIMIT)? {
            Reply::Sampled(sample) => {
                self.spent.timing += started.elapsed();
                Ok(sample)
            }
            other => Err(Miss::Fatal(unexpected(other).to_string())),
        }
    }

    fn release(&mut self, problem: &Problem, tile: &Tile) {
        let id = self.ids.remove(&(problem.clone(), tile.clone()));
        // A child that is lost has nothing left to release.
        if let Some(id) = id.filter(|_| self.worker.is_some()) {
            let _ = self.ask(&Request::Release { id }, REPLAY_LIMIT);
        }
    }

    fn is_warm(&self) -> bool {
        self.is_warm
    }
}

/// Opening a context takes well under a second; a cold driver takes longer.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The largest references take a second or two.
const OPEN_LIMIT: Duration = Duration::from_secs(120);

/// Compilation has its own limit in the child.
const PREPARE_LIMIT: Duration = Duration::from_secs(75);

/// A graph runs for milliseconds; the slowest candidate of the largest problem for a second.
const REPLAY_LIMIT: Duration = Duration::from_secs(15);

/// Four beats a second come from a child that is alive.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);
