//! What happens in address spaces, for whoever watches.
//!
//! Nobody watches unless a [`Log`] is given to an address space ([`Mm::set_event_log`]); then each
//! event costs a clock reading and a place in the log. A full log drops what is new and counts it.
//! So nothing is allocated where events happen, nobody there waits for a watcher, and no code of a
//! watcher runs there: in a fault, under a lock, in a signal handler.
//!
//! Linux counterpart: `include/trace/events/`, `kernel/trace/ring_buffer.c`.
//!
//! [`Mm::set_event_log`]: crate::mm_struct::Mm::set_event_log

use crate::addr::PageRun;
use crate::mmu_notifier::{MmId, Mode};
use crate::page::State;
use core::sync::atomic::{AtomicU64, Ordering};
use lockdep::sync::Mutex;
use std::sync::Arc;

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A fault was resolved.
    Fault {
        /// Where the contents came from.
        from: Source,
        /// The page.
        run: PageRun,
        /// How long it took, in nanoseconds.
        took_ns: u64,
    },
    /// Pages were taken from their addresses.
    Evict {
        /// The window that was looked at.
        run: PageRun,
        /// How many pages of it went.
        pages: u64,
        /// How long the bracket was open, in nanoseconds.
        took_ns: u64,
    },
    /// The program changed a range: it gave up contents, or unmapped.
    Bracket {
        /// The pages.
        run: PageRun,
        /// Whether devices were waited for.
        mode: Mode,
        /// How long the bracket was open, in nanoseconds.
        took_ns: u64,
    },
    /// A device could not let go without waiting.
    Refusal {
        /// The pages, which were left alone.
        run: PageRun,
        /// The name of its subscription.
        holder: Arc<str>,
    },
    /// The OOM killer chose the address space.
    Kill {
        /// Its badness.
        badness: i64,
    },
}

/// Where a fault found the contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Nowhere: the page was never touched.
    Zero,
    /// In its slot: it stood by.
    Standby,
    /// In the store.
    Store,
    /// At its address: it was write-protected, or somebody else was faster.
    Present,
}

impl Source {
    /// Where the contents of a page were that was found in this state.
    pub(crate) fn of(state: State) -> Self {
        match state {
            State::Empty => Self::Zero,
            State::Swapped => Self::Store,
            State::Standby | State::Storing => Self::Standby,
            _ => Self::Present,
        }
    }
}

/// An event, and where and when.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// When, on the clock of the memory cgroup, in nanoseconds.
    pub at_ns: u64,
    /// The address space.
    pub mm: MmId,
    /// What.
    pub event: Event,
}

/// Events that nobody has looked at yet.
#[derive(Debug)]
pub struct Log {
    records: Mutex<Vec<Record>>,
    capacity: usize,
    lost: AtomicU64,
}

impl Log {
    /// A log with room for `capacity` events between two looks.
    pub fn new(capacity: usize) -> Self {
        Self {
            records: Mutex::new("mm.events", Vec::with_capacity(capacity)),
            capacity,
            lost: AtomicU64::new(0),
        }
    }

    /// Notes an event, if there is room.
    pub(crate) fn push(&self, record: Record) {
        let mut records = self.records.lock();
        if records.len() < self.capacity {
            records.push(record);
        } else {
            // Let go of after the lock.
            drop(records);
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Exchanges the events so far, oldest first, for `empty`, which has room for as many.
    ///
    /// # Panics
    ///
    /// If `empty` is not empty, or has less room than the log.
    pub fn take(&self, empty: &mut Vec<Record>) {
        assert!(
            empty.is_empty() && empty.capacity() >= self.capacity,
            "a log is exchanged for an empty one of its size"
        );
        core::mem::swap(&mut *self.records.lock(), empty);
    }

    /// How many events it had room for between two looks.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many events were dropped so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_drops_what_is_new_and_never_grows() {
        let log = Log::new(2);
        let record = |badness| Record {
            at_ns: 0,
            mm: MmId(1),
            event: Event::Kill { badness },
        };
        let mut seen = Vec::with_capacity(2);
        for round in 0..3 {
            let place = log.records.lock().as_ptr();
            (0..5).for_each(|badness| log.push(record(badness)));
            log.take(&mut seen);
            assert_eq!(seen, [record(0), record(1)]);
            assert_eq!(seen.as_ptr(), place, "nothing grew");
            assert_eq!(log.lost(), 3 * (round + 1));
            seen.clear();
        }
    }
}
