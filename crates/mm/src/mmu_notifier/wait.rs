//! Where devices sleep that found a bracket open over their interval.
//!
//! Linux counterpart: the wait queue of struct mmu_notifier_subscriptions.

use super::sequence::{Look, Sequence};
use core::time::Duration;
#[cfg(not(all(loom, test)))]
use lockdep::sync::{Condvar, Mutex, Waited, spin_wait};

#[cfg(all(loom, test))]
use super::tests::weak_memory::{Condvar, Mutex, Waited, spin_wait};

/// Queues for the intervals of one address space. An interval's word says whether somebody waits,
/// so that who ends a bracket looks here only then.
const NR_QUEUES: usize = 8;

#[repr(align(128))]
struct Queue {
    lock: Mutex<()>,
    changed: Condvar,
}

/// The queues of one address space.
pub(super) struct Waits {
    queues: [Queue; NR_QUEUES],
}

impl Waits {
    pub(super) fn new() -> Self {
        Self {
            queues: core::array::from_fn(|_| Queue {
                lock: Mutex::new("mmu_notifier.wait", ()),
                changed: Condvar::new("mmu_notifier.idle"),
            }),
        }
    }

    /// Which queue belongs to the subscription with this number: the same one whoever asks.
    fn queue(&self, id: u64) -> &Queue {
        &self.queues[(id % NR_QUEUES as u64) as usize]
    }

    /// Sleeps until no bracket is open over the subscription, or for no longer than `timeout`.
    /// Returns the number that was found then. `id` is the number of the subscription.
    #[cold]
    pub(super) fn wait(
        &self,
        id: u64,
        sequence: &Sequence,
        timeout: Option<Duration>,
    ) -> Option<u64> {
        let queue = self.queue(id);
        let mut guard = queue.lock.lock();
        loop {
            if let Look::Idle(number) = sequence.announce_wait() {
                return Some(number);
            }
            match timeout {
                None => guard = queue.changed.wait(guard),
                Some(timeout) => {
                    let (again, waited) = queue.changed.wait_timeout(guard, timeout);
                    guard = again;
                    if waited == Waited::TimedOut {
                        return match sequence.look() {
                            Look::Idle(number) => Some(number),
                            Look::Open => None,
                        };
                    }
                }
            }
        }
    }

    /// Wakes whoever waits for `sequence`. Never sleeps: the lock is held by others for a few
    /// instructions, since they sleep without it.
    #[cold]
    pub(super) fn wake(&self, id: u64, sequence: &Sequence) {
        let queue = self.queue(id);
        let mut guard = None;
        spin_wait("mmu_notifier.wake", 0, || {
            guard = queue.lock.try_lock();
            guard.is_some()
        });
        sequence.forget_waits();
        drop(guard);
        queue.changed.notify_all();
    }
}
