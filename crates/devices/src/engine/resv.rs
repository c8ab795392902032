//! Reservation objects: a lock that can be taken in any order, and the fences of a buffer.
//!
//! A submission locks its buffers one after the other under one [`Ticket`]; of two submissions that
//! meet, the younger lets go of all it has and begins again. Fences are added to a locked buffer,
//! in a slot that was reserved before there was no way back, and are read without the lock: a
//! notifier that took it would wait for a submitter, who may be waiting for the notifier.
//!
//! Linux counterpart: drivers/dma-buf/dma-resv.c and kernel/locking/ww_mutex.h

use super::dma_fence::DmaFence;
use lockdep::sync::{Condvar, Mutex, ShortLock};
use lockdep::ww::{AcquireContext, Family, LockState};
use lockdep::{Attributes, DynamicClass, Level, context};
use std::sync::OnceLock;

/// How many timelines a buffer can be in use by.
pub const SLOTS: usize = 8;

/// What a fence is to the buffer. A query for one class yields it and those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Usage {
    /// The buffer is being moved: everybody waits.
    Kernel,
    /// Writes to the buffer.
    Write,
    /// Reads from it.
    Read,
    /// Present, and ignored by implicit synchronization: updates of page tables, preemption. A
    /// notifier waits for these too.
    Bookkeep,
}

/// An older submission has the buffer: let go of all, then [`Resv::lock_slowly`] this one first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackOff;

/// Every slot is taken by a fence that has not signalled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotsFull;

/// What one submission locks its buffers under.
pub struct Ticket {
    context: AcquireContext,
}

/// The lock and the fences of one buffer.
pub struct Resv {
    state: LockState,
    /// The ticket that has it, by its age.
    owner: Mutex<Option<u64>>,
    freed: Condvar,
    fences: ShortLock<[Option<(DmaFence, Usage)>; SLOTS]>,
}

/// A locked buffer.
#[must_use = "the buffer is unlocked when this is dropped"]
pub struct Reserved<'a> {
    resv: &'a Resv,
    ticket: &'a Ticket,
}

/// Room for one fence, in a locked buffer.
#[must_use = "room was reserved for a fence"]
pub struct Slot<'a> {
    resv: &'a Resv,
    at: usize,
}

fn family() -> Family {
    static CLASSES: OnceLock<[DynamicClass; 2]> = OnceLock::new();
    let [tickets, locks] = CLASSES.get_or_init(|| {
        ["devices.resv.ticket", "devices.resv"]
            .map(|name| DynamicClass::new(name, Attributes::SLEEP))
    });
    Family {
        tickets: tickets.id(),
        locks: locks.id(),
    }
}

impl Ticket {
    /// Younger than every ticket before.
    pub fn begin() -> Self {
        Self {
            context: AcquireContext::begin(family()),
        }
    }
}

impl Resv {
    /// A buffer that nobody uses.
    pub fn new() -> Self {
        Self {
            state: LockState::new(),
            owner: Mutex::new("devices.resv.owner", None),
            freed: Condvar::new("devices.resv.freed"),
            fences: ShortLock::new("devices.resv.fences", [const { None }; SLOTS]),
        }
    }

    /// Locks the buffer, after it was let go by a younger submission.
    ///
    /// # Errors
    ///
    /// [`BackOff`] if an older one has it.
    pub fn lock<'a>(&'a self, ticket: &'a Ticket) -> Result<Reserved<'a>, BackOff> {
        ticket.context.acquire(family().locks, &self.state);
        let own = ticket.context.stamp();
        let mut owner = self.owner.lock();
        while let Some(holder) = *owner {
            if holder < own {
                drop(owner);
                ticket.context.refused(&self.state);
                return Err(BackOff);
            }
            owner = self.freed.wait(owner);
        }
        *owner = Some(own);
        drop(owner);
        Ok(self.granted(ticket))
    }

    /// Locks the buffer that was refused, with nothing held: waits whoever has it.
    pub fn lock_slowly<'a>(&'a self, ticket: &'a Ticket) -> Reserved<'a> {
        ticket.context.acquire_slowly(family().locks, &self.state);
        let mut owner = self
            .freed
            .wait_while(self.owner.lock(), |owner| owner.is_some());
        *owner = Some(ticket.context.stamp());
        drop(owner);
        self.granted(ticket)
    }

    fn granted<'a>(&'a self, ticket: &'a Ticket) -> Reserved<'a> {
        ticket.context.granted(&self.state);
        Reserved { resv: self, ticket }
    }

    /// Calls `each` for the fences up to `usage` that have not signalled. Takes no lock of the
    /// buffer; a fence that is added meanwhile may be missed. Allocates nothing.
    pub fn for_each_pending(&self, usage: Usage, each: impl FnMut(&DmaFence)) {
        let mut found: [Option<DmaFence>; SLOTS] = [const { None }; SLOTS];
        let fences = self.fences.lock();
        for (into, (fence, class)) in found.iter_mut().zip(fences.iter().flatten()) {
            if *class <= usage && !fence.is_signalled() {
                *into = Some(fence.clone());
            }
        }
        drop(fences);
        found.iter().flatten().for_each(each);
    }

    /// Whether a fence up to `usage` has not signalled.
    pub fn is_busy(&self, usage: Usage) -> bool {
        let fences = self.fences.lock();
        let mut fences = fences.iter().flatten();
        fences.any(|(fence, class)| *class <= usage && !fence.is_signalled())
    }
}

impl Default for Resv {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Reserved<'a> {
    /// Room for one fence, so that [`Slot::add`] cannot fail.
    ///
    /// # Errors
    ///
    /// [`SlotsFull`]
    pub fn reserve(&self) -> Result<Slot<'a>, SlotsFull> {
        let fences = self.resv.fences.lock();
        let is_free = |slot: &Option<(DmaFence, Usage)>| {
            slot.as_ref().is_none_or(|(fence, _)| fence.is_signalled())
        };
        let at = fences.iter().position(is_free).ok_or(SlotsFull)?;
        Ok(Slot {
            resv: self.resv,
            at,
        })
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.ticket.context.release(&self.resv.state);
        *self.resv.owner.lock() = None;
        // The ticket has told the validator of this lock: that somebody is woken is a part of it.
        let _outside = context::enter(Level::Soft);
        self.resv.freed.notify_all();
    }
}

impl Slot<'_> {
    /// Adds the fence. Allocates nothing.
    pub fn add(self, fence: &DmaFence, usage: Usage) {
        self.resv.fences.lock()[self.at] = Some((fence.clone(), usage));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Timeline;

    #[test]
    fn younger_ticket_backs_off() {
        let [a, b] = [Resv::new(), Resv::new()];
        let older = Ticket::begin();
        let held = a.lock(&older).expect("free");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let younger = Ticket::begin();
                let other = b.lock(&younger).expect("free");
                assert!(matches!(a.lock(&younger), Err(BackOff)));
                drop(other);
            });
        });
        drop(b.lock(&older).expect("let go"));
        drop(held);
    }

    #[test]
    fn queries_yield_a_class_and_those_before() {
        let (timeline, resv, ticket) = (Timeline::new(), Resv::new(), Ticket::begin());
        let classes = [Usage::Kernel, Usage::Write, Usage::Read, Usage::Bookkeep];
        let fences = classes.map(|usage| {
            let fence = DmaFence::new();
            timeline.publish(&fence);
            let reserved = resv.lock(&ticket).expect("free");
            reserved.reserve().expect("room").add(&fence, usage);
            fence
        });
        for (at, usage) in classes.into_iter().enumerate() {
            let mut nr = 0;
            resv.for_each_pending(usage, |_| nr += 1);
            assert_eq!(nr, at + 1, "{usage:?}");
        }
        let mut nr_slots = 0;
        let reserved = resv.lock(&ticket).expect("free");
        while let Ok(slot) = reserved.reserve() {
            let fence = DmaFence::new();
            timeline.publish(&fence);
            slot.add(&fence, Usage::Read);
            nr_slots += 1;
        }
        assert_eq!(nr_slots, SLOTS - fences.len());
        timeline.signal(&fences[0], Ok(()));
        assert!(reserved.reserve().is_ok() && !resv.is_busy(Usage::Kernel));
    }
}
