//! The accesses that run at this moment, so that a start can tell whether its range is in use.

use lockdep::sync::{Fence, ShortLock};
use pinless_mm::addr::{PageIndex, PageRun};

/// How many accesses of one device run at once; the next one has to try again.
pub const IN_FLIGHT_MAX: usize = 32;

/// The accesses of one device that run at this moment.
pub struct InFlight {
    slots: ShortLock<[Option<(PageIndex, Fence)>; IN_FLIGHT_MAX]>,
}

/// An access that runs; signals its fence when dropped.
#[must_use = "the access ends when this is dropped"]
pub struct Mark<'a> {
    in_flight: &'a InFlight,
    slot: usize,
}

impl InFlight {
    /// No access.
    pub fn new() -> Self {
        crate::lock_order::prime();
        let slots = [const { None }; IN_FLIGHT_MAX];
        Self {
            slots: ShortLock::new("devices.in_flight", slots),
        }
    }

    /// An access to `page` begins, if there is room; `done` signals at its end. The caller holds
    /// the lock of its table, so that the mark stands before a start can look for it.
    pub fn mark(&self, page: PageIndex, done: Fence) -> Option<Mark<'_>> {
        let mut slots = self.slots.lock();
        let slot = slots.iter().position(Option::is_none)?;
        slots[slot] = Some((page, done));
        Some(Mark {
            in_flight: self,
            slot,
        })
    }

    /// Adds the accesses to pages of `run` to `busy`. Allocates nothing.
    pub fn find(&self, run: PageRun, busy: &mut Busy) {
        for (page, done) in self.slots.lock().iter().flatten() {
            if run.contains(*page) {
                busy.add(done);
            }
        }
    }
}

impl Default for InFlight {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        let ended = self.in_flight.slots.lock()[self.slot].take();
        if let Some((_, done)) = ended {
            done.signal();
        }
    }
}

/// What has to end before a range may go. Room for every access, and for a device that hangs.
pub struct Busy {
    fences: [Option<Fence>; IN_FLIGHT_MAX + 1],
    nr: usize,
}

impl Busy {
    /// Nothing.
    pub fn new() -> Self {
        Self {
            fences: [const { None }; IN_FLIGHT_MAX + 1],
            nr: 0,
        }
    }

    /// One thing more.
    pub fn add(&mut self, fence: &Fence) {
        self.fences[self.nr] = Some(fence.clone());
        self.nr += 1;
    }

    /// Whether nothing has to end.
    pub fn is_empty(&self) -> bool {
        self.nr == 0
    }

    /// What has to end.
    pub fn fences(&self) -> impl Iterator<Item = &Fence> {
        self.fences.iter().flatten()
    }
}

impl Default for Busy {
    fn default() -> Self {
        Self::new()
    }
}
