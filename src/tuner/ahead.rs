//! Compiling ahead of the GPU: threads work through what will be asked for, so that the worker finds it in the cache.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use crate::arch::GpuSpec;
use crate::codegen::{self, Request};
use crate::jit::{CameFrom, Jit};

/// A pool of compile threads with a queue.
pub struct CompileAhead {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    jit: Arc<Jit>,
    gpu: GpuSpec,
    queue: Mutex<Queue>,
    changed: Condvar,
    compiled: AtomicU32,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Request>,
    seen: HashSet<Request>,
    at_work: usize,
    is_closed: bool,
}

impl CompileAhead {
    /// Starts `n_threads` threads that compile for `gpu`.
    pub fn start(jit: Arc<Jit>, gpu: GpuSpec, n_threads: usize) -> Self {
        let (queue, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { jit, gpu, queue, changed, compiled: AtomicU32::new(0) });
        let threads = (0..n_threads.max(1)).map(|_| {
            let shared = shared.clone();
            std::thread::spawn(move || shared.work())
        });
        Self { threads: threads.collect(), shared }
    }

    /// Adds kernels to the end of the queue; each is compiled once.
    pub fn enqueue(&self, requests: impl IntoIterator<Item = Request>) {
        let mut queue = self.shared.lock();
        for request in requests {
            if queue.seen.insert(request.clone()) {
                queue.waiting.push_back(request);
            }
        }
        self.shared.changed.notify_all();
    }

    /// Kernels that wait or are being compiled.
    pub fn n_left(&self) -> usize {
        let queue = self.shared.lock();
        queue.waiting.len() + queue.at_work
    }

    /// Ends the threads, whatever still waits, and gives the number of kernels that were compiled.
    pub fn finish(self) -> u32 {
        let shared = self.shared.clone();
        drop(self);
        shared.compiled.load(Ordering::Relaxed)
    }

    /// Kernels that were compiled, not taken from the cache.
    pub fn n_compiled(&self) -> u32 {
        self.shared.compiled.load(Ordering::Relaxed)
    }
}

impl Drop for CompileAhead {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.waiting.clear();
        queue.is_closed = true;
        drop(queue);
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn work(&self) {
        while let Some(request) = self.next() {
            // What fails here fails again, with its words, when the candidate is prepared.
            let source = codegen::render(&request, self.gpu.arch, &self.gpu.target);
            let came_from =
                source.ok().and_then(|source| self.jit.compile(&source).ok()).map(|(_, came_from)| came_from);
            if came_from == Some(CameFrom::Compilation) {
                self.compiled.fetch_add(1, Ordering::Relaxed);
            }
            self.lock().at_work -= 1;
        }
    }

    fn next(&self) -> Option<Request> {
        let mut queue = self.lock();
        loop {
            if let Some(request) = queue.waiting.pop_front() {
                queue.at_work += 1;
                return Some(request);
            }
            if queue.is_closed {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}
