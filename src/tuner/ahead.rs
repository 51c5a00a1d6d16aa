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
    /// The search under way asks for it next if its leaders stay, or may ask for it behind that: the latest call first.
    Soon,
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
    waiting: [VecDeque<Request>; 4],
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
            Urgency::Now | Urgency::Soon => unstarted.into_iter().rev().for_each(|request| waiting.push_front(request)),
            Urgency::Planned | Urgency::Perhaps => waiting.extend(unstarted),
        }
        self.shared.changed.notify_all();
    }

    /// Takes back what was asked for as `Now` or `Soon` and was not begun: a search has ended.
    pub fn forget_haste(&self) {
        let mut queue = self.shared.lock();
        for urgency in [Urgency::Now, Urgency::Soon] {
            queue.waiting[urgency as usize].clear();
        }
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

    /// A queue without threads, and a compiler that nobody asks.
    fn shared() -> Arc<Shared> {
        let jit = Jit::new(crate::jit::Search::from_environment(), crate::jit::KernelCache::new("nowhere"));
        let gpu = GpuSpec::named("h100").unwrap().clone();
        let (queue, changed) = (Mutex::default(), Condvar::new());
        Arc::new(Shared { jit: jit.into(), gpu, queue, changed, compiled: AtomicU32::new(0) })
    }

    fn taken(shared: &Shared) -> Vec<Request> {
        shared.lock().is_closed = true;
        std::iter::from_fn(|| shared.next()).collect()
    }

    #[test]
    fn the_urgent_go_first_and_nothing_goes_twice() {
        let shared = shared();
        let ahead = CompileAhead { shared: shared.clone(), threads: Vec::new() };
        ahead.enqueue(Urgency::Perhaps, [request(1), request(2)]);
        ahead.enqueue(Urgency::Planned, [request(3), request(4), request(1)]);
        ahead.enqueue(Urgency::Soon, [request(8)]);
        ahead.enqueue(Urgency::Soon, [request(9)]);
        ahead.enqueue(Urgency::Now, [request(5), request(6)]);
        ahead.enqueue(Urgency::Now, [request(4), request(7)]);
        assert_eq!(ahead.n_left(), 9);
        assert_eq!(taken(&shared), [4, 7, 5, 6, 9, 8, 3, 1, 2].map(request));
        ahead.enqueue(Urgency::Now, [request(3)]);
        assert_eq!(taken(&shared), []);
    }

    #[test]
    fn what_a_search_was_in_haste_for_is_forgotten_and_plans_are_not() {
        let shared = shared();
        let ahead = CompileAhead { shared: shared.clone(), threads: Vec::new() };
        ahead.enqueue(Urgency::Planned, [request(1)]);
        ahead.enqueue(Urgency::Now, [request(2), request(1)]);
        ahead.enqueue(Urgency::Soon, [request(3)]);
        ahead.enqueue(Urgency::Perhaps, [request(4)]);
        ahead.forget_haste();
        assert_eq!(taken(&shared), [1, 4].map(request));
    }
}
