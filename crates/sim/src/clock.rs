//! Virtual time.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use pinless_mm::env::Clock;

/// A clock that goes forward when it is told to.
///
/// The clock of a [`Sim`](crate::Sim) is told by the scheduler: a little for each step, and to the
/// next deadline when every task waits.
#[derive(Debug, Default)]
pub struct SimClock {
    // Relaxed: one task at a time runs, and the baton orders what they do.
    now_ns: AtomicU64,
}

impl SimClock {
    /// A clock that shows zero.
    pub const fn new() -> Self {
        Self {
            now_ns: AtomicU64::new(0),
        }
    }

    /// Puts the clock forward.
    pub fn advance(&self, by: Duration) {
        let by_ns = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.now_ns.fetch_add(by_ns, Relaxed);
    }

    /// Puts the clock to a time that is not before what it shows.
    pub(crate) fn set_ns(&self, now_ns: u64) {
        debug_assert!(now_ns >= self.now_ns.load(Relaxed), "a clock went back");
        self.now_ns.store(now_ns, Relaxed);
    }
}

impl Clock for SimClock {
    fn now_ns(&self) -> u64 {
        self.now_ns.load(Relaxed)
    }
}
