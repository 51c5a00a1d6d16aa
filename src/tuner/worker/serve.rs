//! The child: opens the GPU, and answers until the parent is gone.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::protocol::{GpuReport, Reply, Request, Sabotage, receive, send};
use crate::device::{DeviceError, Gpu};
use crate::dispatch::LaunchError;
use crate::jit::{Jit, JitError};
use crate::store::Outcome;
use crate::tuner::live::{Ceiling, Chain, Live, LiveError, run_sabotage};

/// What the child is started with.
pub struct ServeOptions {
    /// The parent's socket.
    pub socket: PathBuf,
    /// Number of the GPU.
    pub ordinal: u32,
    /// Compiles what the cache does not hold.
    pub jit: Arc<Jit>,
}

/// Why the child could not work.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket is gone, or somebody else is on it.
    #[error("the parent cannot be reached at {}: {source}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Serves one parent until it closes the socket.
///
/// # Errors
/// [`ServeError`] if the parent cannot be reached.
pub fn serve(options: ServeOptions) -> Result<(), ServeError> {
    let path = options.socket.clone();
    let lost = |source| ServeError::Socket { path: path.clone(), source };
    let stream = UnixStream::connect(&options.socket).map_err(lost)?;
    let mut requests = stream.try_clone().map_err(lost)?;
    let replies = Arc::new(Mutex::new(stream));
    // A cold driver takes longer than a parent bears silence.
    let is_over = Arc::new(AtomicBool::new(false));
    let heart = beat(replies.clone(), is_over.clone());
    let served = serve_requests(options, &mut requests, &replies);
    is_over.store(true, Ordering::Relaxed);
    let _ = heart.join();
    served.map_err(lost)
}

fn serve_requests(
    options: ServeOptions,
    requests: &mut UnixStream,
    replies: &Arc<Mutex<UnixStream>>,
) -> io::Result<()> {
    let gpu = match Gpu::open(options.ordinal) {
        Ok(gpu) => Arc::new(gpu),
        Err(error) => {
            let hint = error.hint().map(str::to_string);
            return reply(replies, &Reply::NotReady { reason: error.to_string(), hint });
        }
    };
    let report = GpuReport {
        identity: gpu.spec().identity.clone(),
        driver: gpu.driver_version().to_string(),
        memory: gpu.memory().unwrap_or_default(),
    };
    reply(replies, &Reply::Ready(report))?;
    let mut server = Server { gpu, jit: options.jit, live: None };
    // The parent closes the socket when it is done, or when it has died.
    while let Ok(request) = receive::<Request>(requests) {
        if reply(replies, &server.answer(request)).is_err() {
            break;
        }
    }
    Ok(())
}

struct Server {
    gpu: Arc<Gpu>,
    jit: Arc<Jit>,
    live: Option<Live>,
}

impl Server {
    fn answer(&mut self, request: Request) -> Reply {
        self.try_answer(request).unwrap_or_else(|error| {
            let is_lost = error.is_sticky();
            Reply::Failed { outcome: outcome(error), is_lost }
        })
    }

    fn try_answer(&mut self, request: Request) -> Result<Reply, LiveError> {
        match request {
            Request::Open { problem, routings, seed } => {
                // The old data goes first: both may not fit.
                self.live = None;
                let live = Live::open(self.gpu.clone(), self.jit.clone(), &problem, &routings, seed)?;
                let is_warm = live.is_warm();
                self.live = Some(live);
                Ok(Reply::Opened { is_warm })
            }
            Request::Prepare { id, problem, tile } => {
                let live = self.live()?;
                let relative_l2 = live.prepare(id, &problem, &tile)?;
                Ok(Reply::Prepared { relative_l2, loading: live.last_loading() })
            }
            Request::Replay { id, mode, routing_idx } => {
                Ok(Reply::Sampled(self.live()?.replay(id, mode, routing_idx)?))
            }
            Request::Release { id } => {
                self.live()?.drop_candidate(id);
                Ok(Reply::Done)
            }
            Request::Ceiling { bytes } => {
                self.live = None;
                let ceiling = Ceiling::measure(self.gpu.clone(), self.jit.clone(), bytes)?;
                Ok(Reply::Timed { chained_us: ceiling.chained_us, unchained_us: ceiling.unchained_us })
            }
            Request::Chain { links, seed } => {
                self.live = None;
                let (chained_us, unchained_us) = Chain::measure(self.gpu.clone(), &self.jit, &links, seed)?;
                Ok(Reply::Timed { chained_us, unchained_us })
            }
            Request::Sabotage(Sabotage::Crash) => std::process::abort(),
            Request::Sabotage(sabotage) => {
                run_sabotage(&self.gpu, &self.jit, sabotage == Sabotage::Hang)?;
                Ok(Reply::Done)
            }
        }
    }

    fn live(&mut self) -> Result<&mut Live, LiveError> {
        self.live.as_mut().ok_or_else(|| LiveError::Data("no data was asked for".to_string()))
    }
}

/// What became of a candidate, as it is recorded.
fn outcome(error: LiveError) -> Outcome {
    match error {
        LiveError::Rejected(rejection) => Outcome::Rejected { rule: rejection.rule.to_string() },
        LiveError::Wrong(wrong) => match wrong {
            crate::check::Wrong::Error { found, .. } => Outcome::Wrong { relative_l2: found },
            crate::check::Wrong::Element { found, limit } => Outcome::WrongElement { found, limit },
            crate::check::Wrong::NotFinite { .. } => Outcome::Wrong { relative_l2: f64::MAX },
        },
        LiveError::Jit(JitError::TimedOut { limit, .. }) => Outcome::TimedOut { seconds: limit.as_secs_f64() },
        LiveError::Jit(error) => Outcome::FailedToCompile { message: error.to_string() },
        LiveError::Codegen(error) => Outcome::FailedToCompile { message: error.to_string() },
        LiveError::Launch(LaunchError::Device(DeviceError::OutOfMemory { needed, free })) => {
            Outcome::FailedToRun { message: format!("out of memory: {needed} bytes needed, {free} free") }
        }
        other => Outcome::FailedToRun { message: other.to_string() },
    }
}

fn reply(to: &Mutex<UnixStream>, message: &Reply) -> io::Result<()> {
    let mut stream: MutexGuard<'_, UnixStream> = to.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    send(&mut *stream, message)
}

/// Says that the process lives, also while a kernel runs.
fn beat(replies: Arc<Mutex<UnixStream>>, is_over: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        while !is_over.load(Ordering::Relaxed) {
            std::thread::sleep(HEARTBEAT);
            if reply(&replies, &Reply::Heartbeat).is_err() {
                return;
            }
        }
    })
}

const HEARTBEAT: Duration = Duration::from_millis(250);
