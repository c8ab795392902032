//! What a worker sleeps by: somebody rings, and one who has rung is not missed.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use lockdep::sync::{Condvar, Mutex};

/// A bell for one worker.
#[derive(Debug)]
pub(super) struct Bell {
    is_rung: AtomicBool,
    idle: Mutex<()>,
    wake: Condvar,
}

impl Bell {
    /// Its lock and its event are of these classes.
    pub(super) fn new(idle: &'static str, wake: &'static str) -> Self {
        Self {
            is_rung: AtomicBool::new(false),
            idle: Mutex::new(idle, ()),
            wake: Condvar::new(wake),
        }
    }

    /// Wakes the worker; cheap when it was rung already.
    pub(super) fn ring(&self) {
        // AcqRel: pairs with the swap in `wait`, as in `Control::kick`.
        if !self.is_rung.load(Ordering::Relaxed) && !self.is_rung.swap(true, Ordering::AcqRel) {
            self.wake_all();
        }
    }

    /// Has the worker look whether it is over.
    pub(super) fn wake_all(&self) {
        drop(self.idle.lock());
        self.wake.notify_all();
    }

    /// Waits until somebody rings or it is over; for no longer than `timeout`.
    pub(super) fn wait(&self, is_over: impl Fn() -> bool, timeout: Option<Duration>) {
        let mut idle = self.idle.lock();
        // AcqRel: pairs with the swap in `ring`.
        while !self.is_rung.swap(false, Ordering::AcqRel) && !is_over() {
            idle = match timeout {
                None => self.wake.wait(idle),
                Some(timeout) => {
                    drop(self.wake.wait_timeout(idle, timeout));
                    return;
                }
            };
        }
    }

    /// Waits for about `pause`, whoever rings, if it is not over.
    pub(super) fn rest(&self, is_over: impl Fn() -> bool, pause: Duration) {
        let idle = self.idle.lock();
        if !is_over() {
            drop(self.wake.wait_timeout(idle, pause));
        }
    }
}
