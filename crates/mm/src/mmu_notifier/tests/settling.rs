//! How a deadline is spent on fences: which is waited for, how long, and who is named.

use super::super::context::{Blockable, Settling};
use super::super::{Context, SETTLE_QUEUE};
use core::time::Duration;
use lockdep::scheduler::{self, Point, Scheduler, Wake};
use lockdep::sync::{Fence, ShortLock, Waited};
use std::sync::Arc;

/// One part of the deadline: with it the waits are whole numbers.
const STEP: Duration = Duration::from_millis(1);
/// Of so many parts is the deadline.
const NR_STEPS: u32 = 64;

/// A time that passes only in waits: each takes as long as it may, but for those that say which
/// fence signals in them.
struct Turned {
    fences: Vec<Fence>,
    /// In the first wait the second signals, and so on.
    signals: &'static [(usize, usize)],
    waits: ShortLock<Vec<Duration>>,
}

impl Scheduler for Turned {
    fn point(&self, _: Point) {}

    fn block(&self, _: Point, timeout: Option<Duration>) -> Waited {
        let mut waits = self.waits.lock();
        let nth = waits.len();
        waits.push(timeout.expect("a bracket waits for no fence without an end"));
        drop(waits);
        match self.signals.iter().find(|signal| signal.0 == nth) {
            Some(&(_, fence)) => {
                assert!(self.fences[fence].signal(), "signalled before");
                Waited::Done
            }
            None => Waited::TimedOut,
        }
    }

    fn wake(&self, _: usize, _: Wake) {}
}

/// Settles on so many fences and waits: `expected` are the waits, as how many of how many steps
/// each; `late` is whose fence did not signal.
#[track_caller]
fn check(
    nr_fences: usize,
    signals: &'static [(usize, usize)],
    expected: &[(usize, u32)],
    late: Option<usize>,
) {
    let fences: Vec<_> = (0..nr_fences).map(|_| Fence::new("test.fence")).collect();
    let turned = Arc::new(Turned {
        fences: fences.clone(),
        signals,
        waits: ShortLock::new("test.waits", Vec::new()),
    });
    let installed = scheduler::install(Arc::clone(&turned) as _);
    let settling = Settling::new(STEP * NR_STEPS);
    let cx = Blockable::new(&settling);
    for (holder, fence) in fences.iter().enumerate() {
        settling.enter(holder);
        let Ok(()) = cx.settle(fence);
    }
    let is_late_early = late.is_some_and(|late| nr_fences - late > SETTLE_QUEUE);
    assert_eq!(settling.has_failed(), is_late_early);
    assert_eq!(settling.is_idle(), nr_fences == 0);
    let answer = settling.wait();
    drop(installed);
    let named = answer.map_err(|late| (late.holder, late.fence, late.waited));
    let right = late.map(|late| (late, fences[late].clone(), STEP * NR_STEPS));
    assert_eq!(named.err(), right);
    let expected: Vec<_> = expected
        .iter()
        .flat_map(|&(nr, steps)| core::iter::repeat_n(STEP * steps, nr))
        .collect();
    assert_eq!(*turned.waits.lock(), expected);
}

#[test]
fn n118_a_deadline_is_spent_once_for_all() {
    check(0, &[], &[], None);
    // The last gets all that is left, in one wait.
    check(1, &[], &[(1, NR_STEPS)], Some(0));
    check(1, &[(0, 0)], &[(1, NR_STEPS)], None);
    check(2, &[], &[(64, 1)], Some(0));
    // A wait that ends early is not charged.
    check(2, &[(3, 0)], &[(4, 1), (1, NR_STEPS - 3)], Some(1));
    check(3, &[(0, 0)], &[(65, 1)], Some(1));
    check(3, &[(0, 0), (1, 1), (2, 2)], &[(2, 1), (1, NR_STEPS)], None);
    // One that signals meanwhile is not waited for.
    check(3, &[(5, 1), (9, 0)], &[(10, 1), (1, NR_STEPS - 8)], Some(2));
}

#[test]
fn what_the_queue_does_not_hold_is_waited_for_at_once() {
    check(SETTLE_QUEUE, &[], &[(64, 1)], Some(0));
    check(SETTLE_QUEUE + 1, &[], &[(64, 1)], Some(0));
    // What comes after a failure is let go of: the first that was late is named, and no other.
    check(SETTLE_QUEUE + 2, &[], &[(64, 1)], Some(0));
    check(SETTLE_QUEUE + 1, &[(0, 0)], &[(65, 1)], Some(1));
    check(SETTLE_QUEUE + 2, &[(1, 0)], &[(65, 1)], Some(1));
    check(
        SETTLE_QUEUE + 3,
        &[(0, 0), (1, 1), (2, 2)],
        &[(67, 1)],
        Some(3),
    );
}

#[test]
fn without_a_deadline_nothing_is_waited_for() {
    let fence = Fence::new("test.fence");
    let settling = Settling::new(Duration::ZERO);
    let Ok(()) = Blockable::new(&settling).settle(&fence);
    let late = settling.wait().expect_err("nobody signals");
    assert_eq!((late.holder, late.waited), (0, Duration::ZERO));
}

/// What has signalled takes no place in the queue: no other is waited for because of it.
#[test]
fn what_has_signalled_is_not_queued() {
    let [signalled, late] = ["test.signalled", "test.late"].map(Fence::new);
    assert!(signalled.signal(), "nobody else does");
    let settling = Settling::new(Duration::ZERO);
    let cx = Blockable::new(&settling);
    let settle_many = || {
        for _ in 0..=SETTLE_QUEUE {
            let Ok(()) = cx.settle(&signalled);
        }
    };
    settle_many();
    assert!(settling.is_idle(), "there is nothing to wait for");
    let Ok(()) = cx.settle(&late);
    settle_many();
    assert!(
        !settling.has_failed(),
        "the queue has room, so nobody waits"
    );
    assert!(late.signal(), "nobody else does");
    assert!(settling.wait().is_ok());
}
