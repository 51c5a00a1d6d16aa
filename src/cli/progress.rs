//! What a person sees while a run goes on: a bar on a terminal, at least a line a second elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::voice::talk;

/// Shows how far a run is. Everything goes to standard error.
pub struct ProgressView {
    bar: Option<ProgressBar>,
    shared: Arc<Shared>,
    ticker: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    is_over: AtomicBool,
}

struct State {
    status: String,
    done: usize,
    of: usize,
    started: Instant,
    last_line: Instant,
}

impl ProgressView {
    /// A view of a run with `of` steps.
    pub fn start(of: usize) -> Self {
        let now = Instant::now();
        let state = State { status: "starting".to_string(), done: 0, of, started: now, last_line: now };
        let shared = Arc::new(Shared { state: Mutex::new(state), is_over: AtomicBool::new(false) });
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(of as u64), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed_precise} eta {eta} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(200));
            return Self { bar: Some(bar), shared, ticker: None };
        }
        let ticking = shared.clone();
        let ticker = std::thread::spawn(move || ticking.tick());
        Self { bar: None, shared, ticker: Some(ticker) }
    }

    /// What is going on.
    pub fn status(&self, status: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(status.clone());
        }
        self.shared.lock().status = status;
    }

    /// How many steps are done.
    pub fn done(&self, done: usize) {
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
        }
        self.shared.lock().done = done;
    }

    /// A line that stays.
    pub fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| talk(line)),
            None => {
                talk(line);
                self.shared.lock().last_line = Instant::now();
            }
        }
    }
}

impl Drop for ProgressView {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if let Some(ticker) = self.ticker.take() {
            let _ = ticker.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A line a second, unless one was just written.
    fn tick(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(100));
            let mut state = self.lock();
            if state.last_line.elapsed() < LONGEST_SILENCE {
                continue;
            }
            let elapsed = state.started.elapsed().as_secs_f64();
            let eta = match state.done {
                0 => String::new(),
                done => format!(", about {:.0} s left", elapsed / done as f64 * (state.of - done.min(state.of)) as f64),
            };
            talk(&format!("[{elapsed:>5.0} s] {}/{}{eta}: {}", state.done, state.of, state.status));
            state.last_line = Instant::now();
        }
    }
}

const LONGEST_SILENCE: Duration = Duration::from_millis(900);
