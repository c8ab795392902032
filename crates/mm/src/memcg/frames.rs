//! Frames: charged before a page is filled, waited for when there are none.

use super::counter::Counter;
use crate::env::Clock;
use core::sync::atomic::{AtomicU64, Ordering, fence};
use core::time::Duration;
use lockdep::sync::{Condvar, Mutex};
use lockdep::{Level, context};

/// The frames of a memory cgroup and the queue of those who wait for one.
#[derive(Debug)]
pub(crate) struct Frames {
    counter: Counter,
    nr_waiting: AtomicU64,
    /// Frames that came back so far; only grows.
    nr_freed: AtomicU64,
    queue: Mutex<()>,
    freed: Condvar,
}

/// A charge that could not be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoFrame {
    /// The deadline passed.
    TimedOut(Duration),
    /// The one who waited must not go on.
    Cancelled,
}

impl Frames {
    pub(crate) fn new(max: u64) -> Self {
        Self {
            counter: Counter::new(max),
            nr_waiting: AtomicU64::new(0),
            nr_freed: AtomicU64::new(0),
            queue: Mutex::new("mm.frames", ()),
            freed: Condvar::new("mm.frames.freed"),
        }
    }

    pub(crate) fn counter(&self) -> &Counter {
        &self.counter
    }

    pub(crate) fn try_charge(&self, n: u64) -> bool {
        self.counter.try_charge(n).is_some()
    }

    pub(crate) fn nr_waiting(&self) -> u64 {
        self.nr_waiting.load(Ordering::Relaxed)
    }

    /// How many frames came back so far.
    pub(crate) fn nr_freed(&self) -> u64 {
        self.nr_freed.load(Ordering::Relaxed)
    }

    pub(crate) fn uncharge(&self, n: u64) {
        if n == 0 {
            return;
        }
        self.counter.uncharge(n);
        self.nr_freed.fetch_add(n, Ordering::Relaxed);
        // SeqCst fence: pairs with the one in `charge_wait`. Either this thread sees the waiter,
        // or the waiter's next look sees the frames.
        fence(Ordering::SeqCst);
        if self.nr_waiting() > 0 {
            self.wake_all();
        }
    }

    /// Makes everybody who waits look again.
    pub(crate) fn wake_all(&self) {
        drop(self.queue.lock());
        // Nobody waits for this thread: any frame would do, and reclaim owes one. To the validator
        // the signal comes from outside of the thread's own work, as an interrupt's does.
        let _outside = context::enter(Level::Soft);
        self.freed.notify_all();
    }

    /// Charges one frame, waiting up to `deadline` for it. `is_cancelled` is asked whenever
    /// something may have changed; `kick` is called once it is known that somebody waits.
    pub(crate) fn charge_wait(
        &self,
        clock: &dyn Clock,
        deadline: Duration,
        is_cancelled: impl Fn() -> bool,
        kick: impl FnOnce(),
    ) -> Result<(), NoFrame> {
        let started_ns = clock.now_ns();
        self.nr_waiting.fetch_add(1, Ordering::Relaxed);
        // SeqCst fence: pairs with the one in `wait_for_work`. A worker that took the last kick
        // sees this waiter, or this kick comes after it and is not dropped.
        fence(Ordering::SeqCst);
        kick();
        let mut guard = self.queue.lock();
        let result = loop {
            // SeqCst fence: pairs with the one in `uncharge`.
            fence(Ordering::SeqCst);
            if is_cancelled() {
                break Err(NoFrame::Cancelled);
            }
            if self.try_charge(1) {
                break Ok(());
            }
            let waited = Duration::from_nanos(clock.now_ns().saturating_sub(started_ns));
            let Some(left) = deadline.checked_sub(waited).filter(|left| !left.is_zero()) else {
                break Err(NoFrame::TimedOut(waited));
            };
            guard = self.freed.wait_timeout(guard, left).0;
        };
        drop(guard);
        self.nr_waiting.fetch_sub(1, Ordering::Relaxed);
        result
    }
}
