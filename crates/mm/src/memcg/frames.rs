//! Frames: charged before a page is filled, waited for when there are none.

use super::counter::Counter;
use crate::env::Clock;
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU64, Ordering, fence};
use core::time::Duration;
use lockdep::sync::{Condvar, Mutex};
use lockdep::{Level, context};

/// The frames of one level and the queue of those who wait for one.
#[derive(Debug)]
pub(crate) struct Frames {
    counter: Counter,
    nr_waiting: AtomicU64,
    nr_throttled: AtomicU64,
    /// Frames that came back so far; only grows.
    nr_freed: AtomicU64,
    /// Frames that somebody got who had waited for one; only grows.
    nr_served: AtomicU64,
    /// How often those who wait were woken.
    queue: Mutex<u64>,
    freed: Condvar,
}

/// What somebody waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WaitFor {
    /// A frame: without one he cannot go on.
    Frame,
    /// That less is in use: he goes on in any case.
    Room,
}

impl Frames {
    pub(crate) fn new(max: u64) -> Self {
        Self {
            counter: Counter::new(max),
            nr_waiting: AtomicU64::new(0),
            nr_throttled: AtomicU64::new(0),
            nr_freed: AtomicU64::new(0),
            nr_served: AtomicU64::new(0),
            queue: Mutex::new("mm.frames", 0),
            freed: Condvar::new("mm.frames.freed"),
        }
    }

    pub(crate) fn counter(&self) -> &Counter {
        &self.counter
    }

    pub(crate) fn nr_waiting(&self) -> u64 {
        self.nr_waiting.load(Ordering::Relaxed)
    }

    /// How many frames came back so far.
    pub(crate) fn nr_freed(&self) -> u64 {
        self.nr_freed.load(Ordering::Relaxed)
    }

    /// Another number whenever memory has moved: a frame came back, or somebody got one who had
    /// waited. He may have waited for room in a total, of which no frame tells.
    pub(crate) fn nr_moved(&self) -> u64 {
        self.nr_freed() + self.nr_served.load(Ordering::Relaxed)
    }

    /// Somebody got a frame who had waited for it.
    pub(crate) fn note_served(&self) {
        self.nr_served.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn uncharge(&self, n: u64) {
        if n > 0 {
            self.nr_freed.fetch_add(n, Ordering::Relaxed);
            self.undo(n);
        }
    }

    /// `n` frames came back, and were taken by somebody else at once: memory moves.
    pub(crate) fn note_reused(&self, n: u64) {
        self.nr_freed.fetch_add(n, Ordering::Relaxed);
    }

    /// Takes back a charge of which nothing came.
    pub(crate) fn undo(&self, n: u64) {
        self.counter.uncharge(n);
        self.tell_of_room();
    }

    /// Wakes those who wait, if anybody does: after something was given back that they may be
    /// waiting for.
    pub(crate) fn tell_of_room(&self) {
        // SeqCst fence: pairs with the one in `wait`. Either this thread sees the waiter, or the
        // waiter's next look sees what was given back.
        fence(Ordering::SeqCst);
        if self.nr_waiting() + self.nr_throttled.load(Ordering::Relaxed) > 0 {
            self.wake_all();
        }
    }

    /// Makes everybody who waits look again.
    pub(crate) fn wake_all(&self) {
        *self.queue.lock() += 1;
        // Nobody waits for this thread: any frame would do, and reclaim owes one. To the validator
        // the signal comes from outside of the thread's own work, as an interrupt's does.
        let _outside = context::enter(Level::Soft);
        self.freed.notify_all();
    }

    /// Calls `attempt` now, whenever something may have changed, and when `until_ns` has come,
    /// until it is done with: at the end there may be no answer. `kick` is called once it is known
    /// that somebody waits. Neither is called with a lock held.
    pub(crate) fn wait<R>(
        &self,
        what: WaitFor,
        (clock, until_ns): (&dyn Clock, u64),
        mut attempt: impl FnMut() -> ControlFlow<R>,
        kick: impl FnOnce(),
    ) -> Option<R> {
        let nr = match what {
            WaitFor::Frame => &self.nr_waiting,
            WaitFor::Room => &self.nr_throttled,
        };
        nr.fetch_add(1, Ordering::Relaxed);
        // SeqCst fence: pairs with the one in `wait_for_work`. A worker that took the last kick
        // sees this waiter, or this kick comes after it and is not dropped.
        fence(Ordering::SeqCst);
        kick();
        let result = loop {
            let nr_woken = *self.queue.lock();
            // SeqCst fence: pairs with the one in `tell_of_room`.
            fence(Ordering::SeqCst);
            if let ControlFlow::Break(result) = attempt() {
                break Some(result);
            }
            if !self.sleep_since(nr_woken, (clock, until_ns)) {
                break attempt().break_value();
            }
        };
        nr.fetch_sub(1, Ordering::Relaxed);
        result
    }

    /// Sleeps until those who wait are woken once more than `nr_woken` times; false when
    /// `until_ns` has come before.
    fn sleep_since(&self, nr_woken: u64, (clock, until_ns): (&dyn Clock, u64)) -> bool {
        let mut queue = self.queue.lock();
        while *queue == nr_woken {
            let left_ns = until_ns.saturating_sub(clock.now_ns());
            if left_ns == 0 {
                return false;
            }
            let left = Duration::from_nanos(left_ns);
            queue = self.freed.wait_timeout(queue, left).0;
        }
        true
    }
}
