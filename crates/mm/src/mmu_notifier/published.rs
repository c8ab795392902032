//! Whose callback runs in which thread, for a thread that resolves the faults of others.
//!
//! A callback that uses managed memory waits, where another thread resolves its fault, for one that
//! runs no callback itself. So while the validator of locks is on, each callback is published under
//! the number that the machine has for its thread. While it is off nothing is.

use crate::env::thread_number;
use core::sync::atomic::{AtomicU32, Ordering};
use lockdep::scheduler::is_scheduled;
use lockdep::sync::ShortLock;
use std::sync::Arc;

/// In how many threads callbacks can be found at one time. Those of further ones are not.
const NR_SLOTS: usize = 64;

/// A thread that runs a callback.
struct Slot {
    /// Its number; zero when the slot is free.
    thread: AtomicU32,
    /// Whose callback it is, of several inside of one another the innermost.
    name: ShortLock<Option<Arc<str>>>,
}

static SLOTS: [Slot; NR_SLOTS] = [const {
    Slot {
        thread: AtomicU32::new(0),
        name: ShortLock::new("mmu_notifier.published", None),
    }
}; NR_SLOTS];

/// The time in which the callback that the calling thread runs can be found.
#[must_use = "the callback is found until this is dropped"]
pub(crate) struct Published {
    slot: &'static Slot,
    outer: Option<Arc<str>>,
}

impl Published {
    /// A callback of the subscription with this name begins, if it is to be published.
    pub(crate) fn enter(name: &Arc<str>) -> Option<Self> {
        // Tasks of a scheduler share a thread, and resolve their faults themselves.
        if !lockdep::is_enabled() || is_scheduled() {
            return None;
        }
        let thread = thread_number()?;
        // Relaxed, here and below: who asks for this thread has a message of the machine's that
        // this thread caused after this, and the lock orders the names of a slot.
        let claim = |slot: &&Slot| {
            let free =
                slot.thread
                    .compare_exchange(0, thread, Ordering::Relaxed, Ordering::Relaxed);
            free.is_ok()
        };
        let slot = find(thread).or_else(|| SLOTS.iter().find(claim))?;
        let outer = slot.name.lock().replace(Arc::clone(name));
        Some(Self { slot, outer })
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        let outer = self.outer.take();
        let is_outermost = outer.is_none();
        let name = core::mem::replace(&mut *self.slot.name.lock(), outer);
        if is_outermost {
            self.slot.thread.store(0, Ordering::Relaxed);
        }
        // Not under the lock: it may be the last that has it.
        drop(name);
    }
}

fn find(thread: u32) -> Option<&'static Slot> {
    let is_its = |slot: &&Slot| slot.thread.load(Ordering::Relaxed) == thread;
    SLOTS.iter().find(is_its)
}

/// Whose callback the thread with this number runs, as far as it was published. The thread waits
/// for the caller.
pub(super) fn running_in(thread: u32) -> Option<Arc<str>> {
    if !lockdep::is_enabled() || thread == 0 {
        return None;
    }
    find(thread)?.name.lock().clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::number_threads;
    use crate::mmu_notifier::{MmId, Notifiers};
    use core::time::Duration;
    use lockdep::scheduler::{Point, Scheduler, Wake, install};
    use lockdep::sync::Waited;

    std::thread_local! {
        static NUMBER: u32 = {
            static NEXT: AtomicU32 = AtomicU32::new(1);
            NEXT.fetch_add(1, Ordering::Relaxed)
        };
    }

    #[track_caller]
    fn check(thread: u32, expected: Option<&str>) {
        assert_eq!(running_in(thread).as_deref(), expected);
    }

    /// The innermost is found, then the one around it again, and nobody in another thread.
    #[test]
    fn a_callback_is_found_by_its_thread() {
        number_threads(|| NUMBER.with(|number| *number));
        let own = NUMBER.with(|number| *number);
        check(own, None);
        let outer = Published::enter(&"outer".into()).expect("there is room");
        check(own, Some("outer"));
        let inner = Published::enter(&"inner".into()).expect("it has its slot");
        assert!(core::ptr::eq(outer.slot, inner.slot));
        check(own, Some("inner"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let other = NUMBER.with(|number| *number);
                check(other, None);
                let beside = Published::enter(&"beside".into()).expect("there is room");
                check(other, Some("beside"));
                check(own, Some("inner"));
                drop(beside);
                check(other, None);
            });
        });
        drop(inner);
        check(own, Some("outer"));
        drop(outer);
        check(own, None);
        check(0, None);
    }

    /// Whoever resolves the fault of a callback tells of it, and of no other fault.
    #[test]
    fn who_resolves_the_fault_of_a_callback_tells_of_it() {
        number_threads(|| NUMBER.with(|number| *number));
        let own = NUMBER.with(|number| *number);
        let notifiers = Notifiers::new(MmId(1));
        let check = |expected| {
            std::thread::scope(|scope| {
                scope.spawn(|| notifiers.note_touch_by(own));
            });
            assert_eq!(notifiers.stats().misuses, expected);
        };
        check(0);
        let published = Published::enter(&"device".into()).expect("there is room");
        check(1);
        drop(published);
        check(1);
    }

    /// Lets everybody run.
    struct Anarchy;

    impl Scheduler for Anarchy {
        fn point(&self, _: Point) {}

        fn block(&self, _: Point, _: Option<Duration>) -> Waited {
            Waited::Done
        }

        fn wake(&self, _: usize, _: Wake) {}
    }

    #[test]
    fn tasks_of_a_scheduler_are_not_published() {
        number_threads(|| NUMBER.with(|number| *number));
        let scheduled = install(Arc::new(Anarchy));
        assert!(Published::enter(&"task".into()).is_none());
        drop(scheduled);
        assert!(Published::enter(&"thread".into()).is_some());
    }
}
