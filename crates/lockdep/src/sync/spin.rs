//! Waiting without an object to wait on: for an atomic, or for time to pass.

use std::hint;
use std::thread;
use std::time::Duration;

use super::scheduler::{self, Point, PointKind};
use crate::might_sleep;

/// How often to spin before giving the processor away each round: about a microsecond, less than
/// what two switches cost.
const SPIN_ROUNDS_MAX: u32 = 64;

/// Waits until `condition` holds, without sleeping: for atomics that somebody else sets.
///
/// Spins for about a microsecond and then yields the processor between rounds. Under a scheduler it
/// passes a [`PointKind::Wait`] first and a [`PointKind::Spin`] after each round that found the
/// condition false. `addr_hint` tells the scheduler what is waited for, usually the address of the
/// atomic; 0 if there is none to name. Wait only for what a running thread will do soon.
///
/// Kernel counterpart: `smp_cond_load_relaxed()`; the condition chooses its own memory order.
pub fn spin_wait(class: &'static str, addr_hint: usize, mut condition: impl FnMut() -> bool) {
    let at = |kind| Point {
        kind,
        class,
        addr: addr_hint,
    };
    if scheduler::in_use() {
        scheduler::point(at(PointKind::Wait));
    }
    let mut backoff = Backoff::new();
    while !condition() {
        backoff.pause(at(PointKind::Spin));
    }
}

/// Pauses the calling thread; under a scheduler, in virtual time only.
///
/// Nothing ends it early. Reported where sleeping is forbidden, however short it is. The scheduler
/// sees [`PointKind::Sleep`] with no address. Kernel counterpart: `fsleep()`.
#[track_caller]
pub fn sleep(class: &'static str, duration: Duration) {
    might_sleep();
    let point = Point {
        kind: PointKind::Sleep,
        class,
        addr: 0,
    };
    if !scheduler::in_use() || scheduler::block(point, Some(duration)).is_none() {
        thread::sleep(duration);
    }
}

/// The pauses of one wait that does not sleep.
pub(super) struct Backoff {
    nr_rounds: u32,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { nr_rounds: 0 }
    }

    /// One pause: to the scheduler if there is one, else a spin, else a yield.
    pub(super) fn pause(&mut self, point: Point) {
        if !scheduler::in_use() || !scheduler::point(point) {
            self.pause_unscheduled();
        }
    }

    /// One pause that no scheduler hears of.
    pub(super) fn pause_unscheduled(&mut self) {
        if self.nr_rounds < SPIN_ROUNDS_MAX {
            self.nr_rounds += 1;
            hint::spin_loop();
        } else {
            thread::yield_now();
        }
    }
}
