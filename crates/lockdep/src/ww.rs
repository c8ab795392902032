//! Wound/wait locks: many locks of one class, taken in any order under one context.
//!
//! A context is a ticket: it says how old its work is, and the younger of two that meet backs off.
//! The lock decides that; what stands here is the protocol around it, for whoever builds such a
//! lock. All locks under one context nest in it, so taking several is no recursion, and an order
//! between two of them is no order. One that is refused must be answered by letting go of all that
//! is held under the context, before the one that was refused is waited for.
//!
//! ```
//! use lockdep::ww::{AcquireContext, Family, LockState};
//! use lockdep::{Attributes, DynamicClass, Validator};
//!
//! let validator = Validator::new();
//! let _entered = validator.enter();
//! let class = |name| DynamicClass::new(name, Attributes::SLEEP);
//! let [tickets, locks] = ["tickets", "buffers"].map(class);
//! let family = Family { tickets: tickets.id(), locks: locks.id() };
//! let buffers = [LockState::new(), LockState::new()];
//!
//! let context = AcquireContext::begin(family);
//! for buffer in &buffers {
//!     context.acquire(family.locks, buffer);
//!     context.granted(buffer);
//! }
//! context.done();
//! buffers.iter().for_each(|buffer| context.release(buffer));
//! drop(context);
//! assert!(validator.reports().is_empty());
//! ```
//!
//! Linux counterpart: include/linux/ww_mutex.h.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::event::{self, Acquire};
use crate::report::Kind;
use crate::task::{Held, Site};
use crate::word::{ClassId, Mode, Word};

/// A kind of wound/wait lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Family {
    /// The class of the contexts.
    pub tickets: ClassId,
    /// The class of the locks.
    pub locks: ClassId,
}

/// Under which context a lock is held: a field of the lock, whose address stands for it.
#[derive(Debug, Default)]
pub struct LockState {
    /// The stamp of the context, 0 for none. Relaxed: the lock itself orders who writes it.
    holder: AtomicU64,
}

impl LockState {
    /// Of a lock that no context holds.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            holder: AtomicU64::new(0),
        }
    }

    /// The [stamp](AcquireContext::stamp) of the context that holds the lock, if one does.
    #[must_use]
    pub fn holder(&self) -> Option<u64> {
        let holder = self.holder.load(Ordering::Relaxed);
        (holder != 0).then_some(holder)
    }

    /// The address by which events know the lock.
    #[must_use]
    pub fn instance(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

/// The ticket under which locks are acquired; stays in its thread, and ends when dropped.
///
/// Breaking the protocol is reported as [`Kind::WoundWait`], and changes nothing else.
#[derive(Debug)]
pub struct AcquireContext {
    family: Family,
    stamp: u64,
    nr_held: Cell<u32>,
    /// The lock that was refused, until it is acquired; 0 for none.
    contended: Cell<usize>,
    phase: Cell<Phase>,
    not_send: PhantomData<*const ()>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Acquiring,
    Done,
    Ended,
}

impl AcquireContext {
    /// Begins to acquire locks of a family; younger than every context begun before.
    #[track_caller]
    pub fn begin(family: Family) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let context = Self {
            family,
            // Relaxed: a ticket number, which orders nothing else.
            stamp: NEXT.fetch_add(1, Ordering::Relaxed),
            nr_held: Cell::new(0),
            contended: Cell::new(0),
            phase: Cell::new(Phase::Acquiring),
            not_send: PhantomData,
        };
        let ticket = Acquire::new(family.tickets, context.instance(), Mode::Exclusive);
        event::acquire(&ticket);
        context
    }

    /// How old the context is: the smaller, the older.
    #[must_use]
    pub const fn stamp(&self) -> u64 {
        self.stamp
    }

    /// A lock will be taken under the context: before it blocks.
    ///
    /// Ends in [`granted`](Self::granted) or [`refused`](Self::refused).
    #[track_caller]
    pub fn acquire(&self, class: ClassId, lock: &LockState) {
        let site = Site::caller();
        if let Some(note) = self.misuse(class, lock) {
            report(class, lock, site, note);
        }
        self.contended.set(0);
        let acquire = Acquire::new(class, lock.instance(), Mode::Exclusive);
        event::acquire(&Acquire { site, ..acquire }.nested_under(self.instance()));
    }

    /// The lock that was refused will be waited for, with nothing held.
    #[track_caller]
    pub fn acquire_slowly(&self, class: ClassId, lock: &LockState) {
        if self.contended.get() == 0 {
            let note = "a lock is waited for as after a refusal, and none was refused";
            report(class, lock, Site::caller(), note);
        }
        self.acquire(class, lock);
    }

    /// What is wrong with taking this lock now.
    fn misuse(&self, class: ClassId, lock: &LockState) -> Option<&'static str> {
        if class != self.family.locks {
            return Some("the lock is of another family than the context");
        }
        if self.phase.get() != Phase::Acquiring {
            return Some("a lock is acquired under a context that was done");
        }
        match self.contended.get() {
            0 => None,
            _ if self.nr_held.get() > 0 => Some("a lock was refused, and others are still held"),
            contended if contended != lock.instance() => {
                Some("a lock was refused, and another is acquired first")
            }
            _ => None,
        }
    }

    /// The lock is taken.
    #[track_caller]
    pub fn granted(&self, lock: &LockState) {
        let before = lock.holder.swap(self.stamp, Ordering::Relaxed);
        self.nr_held.set(self.nr_held.get() + 1);
        if before != 0 {
            let note = "a lock is granted that another context holds";
            report(self.family.locks, lock, Site::caller(), note);
        }
    }

    /// The lock was not taken, as its holder is older: all that is held must be let go.
    pub fn refused(&self, lock: &LockState) {
        self.contended.set(lock.instance());
        event::release_at(lock.instance(), Site::Unknown);
    }

    /// A lock is released that was taken under the context.
    #[track_caller]
    pub fn release(&self, lock: &LockState) {
        if lock.holder() != Some(self.stamp) {
            let note = "a lock is released under a context that does not hold it";
            report(self.family.locks, lock, Site::caller(), note);
            return;
        }
        lock.holder.store(0, Ordering::Relaxed);
        self.nr_held.set(self.nr_held.get() - 1);
        event::release_at(lock.instance(), Site::caller());
    }

    /// Says that no more locks will be acquired.
    #[track_caller]
    pub fn done(&self) {
        if self.phase.replace(Phase::Done) != Phase::Acquiring {
            report_context(self, Site::caller(), "a context is done twice");
        }
    }

    /// The end of the context, which holds nothing any more.
    #[track_caller]
    pub fn end(&self) {
        let site = Site::caller();
        if self.nr_held.get() > 0 {
            report_context(self, site, "a context ends, and locks are held under it");
        }
        self.phase.set(Phase::Ended);
        event::release_at(self.instance(), site);
    }

    /// No object lies at the far end of the address space, so nothing else has this address.
    fn instance(&self) -> usize {
        usize::MAX - self.stamp as usize
    }
}

impl Drop for AcquireContext {
    fn drop(&mut self) {
        if self.phase.get() != Phase::Ended {
            self.end();
        }
    }
}

fn report(class: ClassId, lock: &LockState, site: Site, note: &'static str) {
    report_at(class, lock.instance(), site, note);
}

fn report_context(context: &AcquireContext, site: Site, note: &'static str) {
    report_at(context.family.tickets, context.instance(), site, note);
}

fn report_at(class: ClassId, instance: usize, site: Site, note: &'static str) {
    event::work(|inner, task, findings| {
        let word = Word::new(class, Mode::Exclusive, 0, task.context());
        let held = Held::new(instance, word, site);
        let finding = inner.finding(task, Kind::WoundWait, &held);
        findings.add(finding.note(note));
    });
}
