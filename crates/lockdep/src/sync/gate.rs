//! What completions and fences have in common: an event that is over or not, and its waiters.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use super::scheduler::{self, PointKind, Wake};
use super::{Deadline, Waited, ignore_poison, short};
use crate::wait::{EVENT, EventKind, EventState, Limit, Waiting};
use crate::{Class, Site, hooks};

/// A gate that threads wait at until it is open.
///
/// No wake-up is lost: `state` has one order of changes. Either the opener's change comes first,
/// and the waiter sees `OPEN` before it sleeps, or the waiter's `WAITED` comes first, and the
/// opener sees that; it then takes `sleepers`, which the waiter holds until it sleeps, and notifies
/// afterwards.
///
/// ```text
/// waiter                              opener
/// take sleepers
/// set WAITED, not OPEN: sleep
///   (gives sleepers up)               set OPEN, sees WAITED
///                                     take and release sleepers
///                                     notify
/// wakes, sees OPEN
/// ```
pub(super) struct Gate {
    class: Class,
    /// `OPEN`, `WAITED`, and above them how often the gate was closed again.
    state: AtomicU64,
    sleepers: Mutex<()>,
    opened: Condvar,
    waits: EventState,
}

/// Tells the validator of a wait, before it blocks; it lasts until the guard is dropped.
pub(super) fn waiting<'a>(
    waits: &'a EventState,
    class: &Class,
    timeout: Option<Duration>,
    site: Site,
) -> Option<Waiting<'a>> {
    let limit = match timeout {
        // It only asks.
        Some(Duration::ZERO) => return None,
        Some(_) => Limit::Timed,
        None => Limit::Forever,
    };
    let watches = hooks::load().has_validator();
    watches.then(|| waits.wait(class.id(&EVENT), limit, site))
}

/// The gate is open.
const OPEN: u64 = 1;
/// Somebody has slept here; stays set, since a sleeper may outlast a closing.
const WAITED: u64 = 2;
/// One closing.
const CLOSING: u64 = 4;

impl Gate {
    /// A closed gate.
    pub(super) const fn new(class: Class) -> Self {
        Self {
            class,
            state: AtomicU64::new(0),
            sleepers: Mutex::new(()),
            opened: Condvar::new(),
            waits: EventState::new(EventKind::Once),
        }
    }

    pub(super) const fn class(&self) -> &Class {
        &self.class
    }

    /// What was taken before has nothing to do with this use of the gate.
    pub(super) fn begin(&self) {
        self.waits.begin();
    }

    #[inline]
    pub(super) fn is_open(&self) -> bool {
        // Acquire pairs with the Release in `open`: what was done before it is seen after this.
        self.state.load(Ordering::Acquire) & OPEN != 0
    }

    /// Opens the gate and lets all waiters go on; false if it was open.
    ///
    /// Never sleeps: it spins for `sleepers`, which is held for a few instructions at a time.
    #[track_caller]
    pub(super) fn open(&self, kind: PointKind) -> bool {
        let asks = scheduler::in_use();
        if hooks::load().has_validator() && !self.is_open() {
            self.waits.signal(self.class.id(&EVENT), Site::caller());
        }
        if asks {
            scheduler::point_at(kind, &self.class);
        }
        // Release pairs with the Acquire loads in `is_open` and `is_over`.
        let before = self.state.fetch_or(OPEN, Ordering::Release);
        if before & OPEN != 0 {
            return false;
        }
        if asks {
            scheduler::wake_at(&self.class, Wake::All);
        }
        if before & WAITED != 0 {
            drop(short::spin_for(&self.sleepers));
            self.opened.notify_all();
        }
        true
    }

    /// Closes the gate if it is open.
    ///
    /// Counts the closing, so that a waiter of the time before, slow to wake, still finds that its
    /// wait is over.
    pub(super) fn close(&self) {
        self.begin();
        // Relaxed on success too: nothing is handed on. Being a read-modify-write it continues the
        // release sequence of `open`, so a waiter that reads it still pairs with that Release.
        let _ = self
            .state
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| {
                (state & OPEN != 0).then_some((state & !OPEN).wrapping_add(CLOSING))
            });
    }

    /// Waits until the gate is opened, or was opened since the wait began.
    #[track_caller]
    pub(super) fn wait(&self, timeout: Option<Duration>) -> Waited {
        let _waiting = waiting(&self.waits, &self.class, timeout, Site::caller());
        if scheduler::in_use() && scheduler::point_at(PointKind::Wait, &self.class) {
            return self.wait_scheduled(timeout);
        }
        let began = self.state.load(Ordering::Relaxed);
        if self.is_open() {
            return Waited::Done;
        }
        self.wait_sleeping(began, timeout)
    }

    #[cold]
    fn wait_scheduled(&self, timeout: Option<Duration>) -> Waited {
        let began = self.state.load(Ordering::Relaxed);
        while !self.is_over(began) {
            if scheduler::block_at(PointKind::Wait, &self.class, timeout) == Waited::TimedOut {
                return self.at_timeout(began);
            }
        }
        Waited::Done
    }

    #[cold]
    fn wait_sleeping(&self, began: u64, timeout: Option<Duration>) -> Waited {
        let deadline = Deadline::after(timeout);
        let mut sleepers = ignore_poison(self.sleepers.lock());
        // Relaxed: the order of changes to one word is all that is asked; see `Gate`.
        self.state.fetch_or(WAITED, Ordering::Relaxed);
        while !self.is_over(began) {
            let waited;
            (sleepers, waited) = deadline.sleep(&self.opened, sleepers);
            if waited == Waited::TimedOut {
                return self.at_timeout(began);
            }
        }
        Waited::Done
    }

    /// Time is up, but an opening that came as late as the time is still an opening.
    fn at_timeout(&self, began: u64) -> Waited {
        if self.is_over(began) {
            Waited::Done
        } else {
            Waited::TimedOut
        }
    }

    /// Whether the gate is open, or was opened and closed since its state was `began`.
    fn is_over(&self, began: u64) -> bool {
        // Acquire pairs with the Release in `open`, also by way of `close`.
        let state = self.state.load(Ordering::Acquire);
        state & OPEN != 0 || state / CLOSING != began / CLOSING
    }
}
