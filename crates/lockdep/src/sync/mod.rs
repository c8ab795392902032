//! The one door for locks and waits.
//!
//! Every type sits on the futex locks of `std`, which allocate nothing, also under contention, but
//! the one whose waiters never sleep: that is `spin`'s.
//! Every operation that may block, and every one that may let another thread go on, first asks
//! whether a [`scheduler`] is installed for the calling thread.
//!
//! An object is either used by scheduled threads or by unscheduled ones, as far as blocking goes:
//! an unscheduled thread cannot wake a scheduled one, since it knows no scheduler. The other
//! direction works: whatever a scheduled thread releases, signals or notifies also wakes
//! unscheduled threads.

mod completion;
mod condvar;
mod fence;
mod gate;
mod mutex;
pub mod park;
pub(crate) mod raw;
mod rwlock;
pub mod scheduler;
mod short;
mod spin;
mod watch;

pub use crate::event::HeldAs;
pub use completion::Completion;
pub use condvar::Condvar;
pub use fence::Fence;
pub use mutex::{Mutex, MutexGuard};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use short::{ShortGuard, ShortLock};
pub use spin::{sleep, spin_wait};

use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};
use std::time::{Duration, Instant};

/// How a wait with a time limit ended.
///
/// Running out of time is no error: it is the answer to the question that was asked. Kernel
/// counterpart: the zero or non-zero result of `wait_for_completion_timeout()`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Waited {
    /// What was waited for happened.
    Done,
    /// The time limit passed first.
    TimedOut,
}

/// The guard of a lock, whether or not an earlier holder panicked.
///
/// The kernel's locks know no poison. A holder that panics has failed loudly already, the guards
/// of what it was doing put the data right while unwinding, and turning one panic into one more in
/// each thread that comes along would bury the first.
fn ignore_poison<G>(result: LockResult<G>) -> G {
    result.unwrap_or_else(PoisonError::into_inner)
}

/// The guard of a lock that was free, whether or not an earlier holder panicked.
fn ignore_poison_try<G>(result: TryLockResult<G>) -> Option<G> {
    match result {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// The end of a wait in real time, for waits that go through more than one sleep.
#[derive(Clone, Copy)]
enum Deadline {
    Never,
    At(Instant),
}

impl Deadline {
    /// The deadline `timeout` from now; a time too far off for the clock never comes.
    fn after(timeout: Option<Duration>) -> Self {
        match timeout.and_then(|timeout| Instant::now().checked_add(timeout)) {
            Some(instant) => Self::At(instant),
            None => Self::Never,
        }
    }

    /// Sleeps once on `condvar`, until it is notified or the deadline has come.
    fn sleep<'a, T>(
        self,
        condvar: &std::sync::Condvar,
        guard: std::sync::MutexGuard<'a, T>,
    ) -> (std::sync::MutexGuard<'a, T>, Waited) {
        let Self::At(instant) = self else {
            return (ignore_poison(condvar.wait(guard)), Waited::Done);
        };
        let left = instant.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return (guard, Waited::TimedOut);
        }
        let (guard, result) = ignore_poison(condvar.wait_timeout(guard, left));
        (
            guard,
            if result.timed_out() {
                Waited::TimedOut
            } else {
                Waited::Done
            },
        )
    }
}
