//! Waiting for a page that somebody else is moving.
//!
//! Linux counterpart: the hashed page wait queues of `mm/filemap.c`.

use crate::addr::PageIndex;
use crate::page::{PageTable, State};
use lockdep::sync::{Condvar, Mutex};
use lockdep::{Level, context};

const BUCKETS: usize = 16;

/// Rounds of looking before a waiter sleeps: a machine operation on one page takes about a
/// microsecond, a sleep and its wake-up take ten.
const SPINS: u32 = 200;

/// Wait queues for the pages of one mapping, hashed by page number.
#[derive(Debug)]
pub(crate) struct PageWaiters {
    buckets: [(Mutex<()>, Condvar); BUCKETS],
}

impl PageWaiters {
    pub(crate) fn new() -> Self {
        let bucket = |_| {
            (
                Mutex::new("mm.page_wait", ()),
                Condvar::new("mm.page_wait.done"),
            )
        };
        Self {
            buckets: core::array::from_fn(bucket),
        }
    }

    fn bucket(&self, page: PageIndex) -> &(Mutex<()>, Condvar) {
        &self.buckets[page as usize % BUCKETS]
    }

    /// Looks a bounded number of times whether `page` is still `Moving`. Never sleeps.
    pub(crate) fn spin(&self, pages: &PageTable, page: PageIndex) {
        for _ in 0..SPINS {
            if pages.load(page).state() != State::Moving {
                return;
            }
            if lockdep::scheduler::is_scheduled() {
                break;
            }
            core::hint::spin_loop();
        }
    }

    /// Returns when `page` is not `Moving`, or was not for a moment.
    pub(crate) fn wait(&self, pages: &PageTable, page: PageIndex) {
        self.spin(pages, page);
        let (mutex, done) = self.bucket(page);
        let mut guard = mutex.lock();
        // The mark is set under the bucket's lock, and `wake` takes that lock after it saw the
        // mark: a waiter either finds the page published or is asleep when it is woken.
        while pages.note_waiter(page) {
            guard = done.wait(guard);
        }
    }

    /// Wakes who waits for `page`. Called when `publish` said that somebody does.
    pub(crate) fn wake(&self, page: PageIndex) {
        let (mutex, done) = self.bucket(page);
        drop(mutex.lock());
        // A queue is shared by pages: who ends the wait for one of them says nothing of those who
        // wait for others. To the validator the signal is nobody's, as an interrupt's is.
        let _outside = context::enter(Level::Soft);
        done.notify_all();
    }
}
