//! Whose turn it is to compile a kernel in this process, for when no file can be locked.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard};

use super::Stop;
use super::cache::POLL;

/// Kernels that a thread is at.
#[derive(Default)]
pub(super) struct Turns {
    taken: Mutex<HashSet<String>>,
    freed: Condvar,
}

/// A thread's turn, until it is dropped.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    hash: String,
}

impl Turns {
    /// Waits until no other thread is at the kernel called `hash`, or until `stop` is due.
    pub(super) fn take(&self, hash: &str, stop: &Stop) -> Option<Turn<'_>> {
        let mut taken = self.lock();
        while taken.contains(hash) {
            if stop.is_due() {
                return None;
            }
            taken = self.freed.wait_timeout(taken, POLL).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        taken.insert(hash.to_string());
        Some(Turn { turns: self, hash: hash.to_string() })
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.taken.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.lock().remove(&self.hash);
        self.turns.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_at_a_time_is_at_a_kernel() {
        let (turns, stop) = (Turns::default(), Stop::default());
        let first = turns.take("a", &stop);
        assert!(first.is_some() && turns.take("b", &stop).is_some());
        std::thread::scope(|scope| {
            let second = scope.spawn(|| turns.take("a", &stop).is_some());
            drop(first);
            assert!(second.join().unwrap());
        });
        let _held = turns.take("a", &stop);
        stop.now();
        assert!(turns.take("a", &stop).is_none());
    }
}
