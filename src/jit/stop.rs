//! A wish to stop, seen by every compilation and fetch that shares it: a run ends within a moment, not within a kernel.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Tells compilations and fetches to stop, at once or at a given time. Clones share the wish.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<Wish>);

#[derive(Debug, Default)]
struct Wish {
    is_now: AtomicBool,
    at: OnceLock<Instant>,
}

impl Stop {
    /// Everything is to stop now.
    pub fn now(&self) {
        self.0.is_now.store(true, Ordering::SeqCst);
    }

    /// Everything is to stop at `deadline`; the first deadline counts.
    pub fn at(&self, deadline: Instant) {
        let _ = self.0.at.set(deadline);
    }

    /// Whether it is time to stop.
    pub fn is_due(&self) -> bool {
        self.0.is_now.load(Ordering::Relaxed) || self.0.at.get().is_some_and(|at| Instant::now() >= *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wish_is_shared_and_a_deadline_passes() {
        let (stop, late) = (Stop::default(), Stop::default());
        let clone = stop.clone();
        assert!(!clone.is_due());
        stop.now();
        assert!(clone.is_due());
        late.at(Instant::now() + Duration::from_secs(3600));
        assert!(!late.is_due());
        let late = Stop::default();
        late.at(Instant::now());
        assert!(late.is_due());
    }
}
