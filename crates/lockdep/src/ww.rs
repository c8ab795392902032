//! Wound/wait locks: many locks of one class, taken in any order under one context.
//!
//! A context is a ticket of one class of its own, a map that is entered while locks are acquired.
//! Locks taken under it nest in it, so taking several is no recursion; who must back off is told by
//! the lock. What the validator checks here is the protocol: nothing is acquired after it is said
//! to be done, and a context ends with nothing held.
//!
//! Linux counterpart: include/linux/ww_mutex.h.

use crate::event::{self, Acquire};
use crate::map::{Map, MapGuard};
use crate::word::{ClassId, Mode};

/// The ticket under which locks are acquired; borrows the map of its kind.
#[derive(Debug)]
pub struct AcquireContext<'a> {
    _inside: MapGuard<'a>,
    instance: usize,
}

/// The ticket after the last acquisition: locks are released under it.
#[derive(Debug)]
pub struct AcquiredContext<'a> {
    _inside: MapGuard<'a>,
}

impl<'a> AcquireContext<'a> {
    /// Begins to acquire; `tickets` stands for all contexts of one kind.
    #[track_caller]
    pub fn begin(tickets: &'a Map) -> Self {
        Self {
            _inside: tickets.enter(),
            instance: tickets.addr(),
        }
    }

    /// Tells that a lock is taken under the context, before it blocks.
    #[track_caller]
    pub fn acquire(&self, class: ClassId, instance: usize) {
        let acquire = Acquire::new(class, instance, Mode::Exclusive);
        event::acquire(&acquire.nested_under(self.instance));
    }

    /// Says that no more locks will be acquired.
    #[must_use = "the context ends when this is dropped"]
    pub fn done(self) -> AcquiredContext<'a> {
        AcquiredContext {
            _inside: self._inside,
        }
    }
}
