//! Compiling ahead of the GPU: threads work through what will be asked for, so that the worker finds it in the cache.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use crate::arch::GpuSpec;
use crate::codegen::{self, Request};
use crate::jit::{CameFrom, Jit};

/// Whose turn comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// The GPU will wait for it: before all others, the latest call first.
    Now,
    /// It will be asked for.
    Planned,
    /// It may be asked for, and a core has nothing else to do.
    Perhaps,
}

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
    /// By urgency. A kernel may wait in more than one.
    waiting: [VecDeque<Request>; 3],
    /// Taken from a queue, ever.
    started: HashSet<Request>,
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

    /// Adds kernels to what waits; each is compiled once, when its turn comes by the most urgent of its calls.
    pub fn enqueue(&self, urgency: Urgency, requests: impl IntoIterator<Item = Request>) {
        let mut queue = self.shared.lock();
        let unstarted: Vec<Request> = requests.into_iter().filter(|request| !queue.started.contains(request)).collect();
        let waiting = &mut queue.waiting[urgency as usize];
        match urgency {
            // What was asked for a moment ago may be of no use any more.
            Urgency::Now => unstarted.into_iter().rev().for_each(|request| waiting.push_front(request)),
            Urgency::Planned | Urgency::Perhaps => waiting.extend(unstarted),
        }
        self.shared.changed.notify_all();
    }

    /// Kernels that wait or are being compiled.
    pub fn n_left(&self) -> usize {
        let queue = self.shared.lock();
        let waiting: HashSet<&Request> = queue.waiting.iter().flatten().collect();
        waiting.difference(&queue.started.iter().collect()).count() + queue.at_work
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
        queue.waiting.iter_mut().for_each(VecDeque::clear);
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
            while let Some(request) = queue.waiting.iter_mut().find_map(VecDeque::pop_front) {
                if queue.started.insert(request.clone()) {
                    queue.at_work += 1;
                    return Some(request);
                }
            }
            if queue.is_closed {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(number: u32) -> Request {
        let values = [("tile", [("number", number.into())].into())].into();
        Request { template: "none", values, wgmma_tokens: None }
    }

    fn taken(shared: &Shared) -> Vec<Request> {
        shared.lock().is_closed = true;
        std::iter::from_fn(|| shared.next()).collect()
    }

    #[test]
    fn the_urgent_go_first_and_nothing_goes_twice() {
        let root = tempfile::tempdir().unwrap();
        let jit = Jit::new(crate::jit::Search::from_environment(), crate::jit::KernelCache::new(root.path()));
        let gpu = GpuSpec::named("h100").unwrap().clone();
        let (queue, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { jit: jit.into(), gpu, queue, changed, compiled: AtomicU32::new(0) });
        let ahead = CompileAhead { shared: shared.clone(), threads: Vec::new() };
        ahead.enqueue(Urgency::Perhaps, [request(1), request(2)]);
        ahead.enqueue(Urgency::Planned, [request(3), request(4), request(1)]);
        ahead.enqueue(Urgency::Now, [request(5), request(6)]);
        ahead.enqueue(Urgency::Now, [request(4), request(7)]);
        assert_eq!(ahead.n_left(), 7);
        assert_eq!(taken(&shared), [4, 7, 5, 6, 3, 1, 2].map(request));
        ahead.enqueue(Urgency::Now, [request(3)]);
        assert_eq!(taken(&shared), []);
    }
}
