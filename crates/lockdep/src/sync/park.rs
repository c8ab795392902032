//! Sleeping until handed a token.
//!
//! Linux counterpart: kthread_park() in kernel/kthread.c, of a thread instead of an object.

use std::fmt;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use super::gate::waiting;
use super::scheduler::{self, PointKind, Wake};
use super::{Deadline, Waited, ignore_poison, short};
use crate::wait::{EVENT, EventKind, EventState};
use crate::{Class, Site, hooks};

/// Holds at most one token; whoever parks takes it, or sleeps until there is one.
///
/// A token handed over before the park is kept, so the hand-over cannot be missed; several of them
/// are one. What was done before an [`unpark`](Self::unpark) is seen after the park that it ended.
/// Meant for one parking thread; if several park, each token lets one of them go on.
pub struct Parker {
    class: Class,
    seat: Mutex<Seat>,
    handed: Condvar,
    waits: EventState,
}

struct Seat {
    has_token: bool,
    /// How many sleep in real time, so that a token for nobody costs no system call.
    nr_parked: usize,
}

impl Parker {
    /// A parker without a token, of the class of this name and place.
    #[track_caller]
    pub const fn new(class: &'static str) -> Self {
        Self {
            class: Class::new(class),
            seat: Mutex::new(Seat {
                has_token: false,
                nr_parked: 0,
            }),
            handed: Condvar::new(),
            waits: EventState::new(EventKind::State),
        }
    }

    /// Takes the token, sleeping until there is one.
    ///
    /// Does not return without one. May sleep; allocates nothing.
    #[track_caller]
    pub fn park(&self) {
        let _: Waited = self.sleep(None);
    }

    /// Takes the token, sleeping until there is one, but for no longer than `timeout`, virtual
    /// under a scheduler.
    ///
    /// [`Waited::TimedOut`] says that no token was taken. May sleep; allocates nothing.
    #[track_caller]
    pub fn park_timeout(&self, timeout: Duration) -> Waited {
        self.sleep(Some(timeout))
    }

    /// Hands over a token, which ends one park, now or later.
    ///
    /// Never sleeps; allocates nothing.
    #[track_caller]
    pub fn unpark(&self) {
        if hooks::load().has_validator() {
            self.waits.signal(self.class.id(&EVENT), Site::caller());
        }
        let asks = scheduler::in_use();
        if asks {
            scheduler::point_at(PointKind::Unpark, &self.class);
        }
        let mut seat = short::spin_for(&self.seat);
        seat.has_token = true;
        let is_awaited = seat.nr_parked > 0;
        drop(seat);
        if asks {
            scheduler::wake_at(&self.class, Wake::One);
        }
        if is_awaited {
            self.handed.notify_one();
        }
    }

    /// What the parker is called, and where it was built.
    pub const fn class(&self) -> &Class {
        &self.class
    }

    #[track_caller]
    fn sleep(&self, timeout: Option<Duration>) -> Waited {
        let _waiting = waiting(&self.waits, &self.class, timeout, Site::caller());
        if scheduler::in_use() && scheduler::point_at(PointKind::Park, &self.class) {
            return self.sleep_scheduled(timeout);
        }
        let deadline = Deadline::after(timeout);
        let mut seat = ignore_poison(self.seat.lock());
        let mut waited = Waited::Done;
        while !seat.has_token && waited == Waited::Done {
            seat.nr_parked += 1;
            (seat, waited) = deadline.sleep(&self.handed, seat);
            seat.nr_parked -= 1;
        }
        seat.take_token()
    }

    #[cold]
    fn sleep_scheduled(&self, timeout: Option<Duration>) -> Waited {
        let mut waited = Waited::Done;
        // Each look gives the seat up before the block: another task may need it meanwhile.
        while short::spin_for(&self.seat).take_token() == Waited::TimedOut {
            if waited == Waited::TimedOut {
                return Waited::TimedOut;
            }
            waited = scheduler::block_at(PointKind::Park, &self.class, timeout);
        }
        Waited::Done
    }
}

impl Seat {
    /// Done if there was a token to take.
    fn take_token(&mut self) -> Waited {
        if std::mem::take(&mut self.has_token) {
            Waited::Done
        } else {
            Waited::TimedOut
        }
    }
}

impl fmt::Debug for Parker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parker")
            .field("class", &self.class.name())
            .finish_non_exhaustive()
    }
}
