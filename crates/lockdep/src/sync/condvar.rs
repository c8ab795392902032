//! Waiting for what a mutex guards to change.
//!
//! Linux counterpart: the wait queues of kernel/sched/wait.c.

use std::fmt;
use std::panic::Location;
use std::sync;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::gate::waiting;
use super::mutex::Owner;
use super::scheduler::{self, PointKind, Wake};
use super::{Deadline, MutexGuard, Waited, watch};
use crate::wait::{EVENT, EventKind, EventState, Limit};
use crate::{Class, Mode, Site, event, hooks};

/// Lets threads sleep until somebody who changed the value of a [`Mutex`](super::Mutex) notifies
/// them.
///
/// Change the value under the mutex, then notify, with or without the mutex held: then no wake-up
/// is lost. All waiters of one condition variable use one mutex.
///
/// Kernel counterpart: `wait_queue_head_t` with a lock, as in `wait_event_cmd()`.
pub struct Condvar {
    class: Class,
    inner: sync::Condvar,
    /// How many wait in real time, so that notifying nobody costs no system call.
    ///
    /// Relaxed: it is raised under the mutex. A notifier that changed the value after the waiter
    /// looked at it took the mutex after the waiter gave it up, and so sees the count.
    nr_waiting: AtomicUsize,
    waits: EventState,
}

impl Condvar {
    /// A condition variable on which nobody waits, of the class of this name and place.
    #[track_caller]
    pub const fn new(class: &'static str) -> Self {
        Self {
            class: Class::new(class),
            inner: sync::Condvar::new(),
            nr_waiting: AtomicUsize::new(0),
            waits: EventState::new(EventKind::State),
        }
    }

    /// Releases the mutex, sleeps until notified, and takes the mutex again.
    ///
    /// Releasing and falling asleep are one step for whoever notifies. May return without a
    /// notification, so ask for the condition again, or use [`wait_while`](Self::wait_while).
    /// Allocates nothing.
    #[track_caller]
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.sleep(guard, None).0
    }

    /// Sleeps as long as `condition` holds, asking it under the mutex, first before sleeping.
    ///
    /// Kernel counterpart: `wait_event()`, with the condition the other way round.
    #[track_caller]
    pub fn wait_while<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        let mut guard = self.may_sleep(guard);
        while condition(&mut guard) {
            guard = self.wait(guard);
        }
        guard
    }

    /// Like [`wait`](Self::wait), but for no longer than `timeout`.
    ///
    /// [`Waited::TimedOut`] says that the time passed; the value may have changed all the same, as
    /// the mutex had to be taken again. Under a scheduler the time is virtual.
    #[track_caller]
    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> (MutexGuard<'a, T>, Waited) {
        self.sleep(guard, Some(timeout))
    }

    /// Lets one waiter go on, if there is any.
    ///
    /// Never sleeps; allocates nothing. Kernel counterpart: `wake_up()` with exclusive waiters.
    #[track_caller]
    pub fn notify_one(&self) {
        self.notify(Wake::One);
    }

    /// Lets all present waiters go on.
    ///
    /// Never sleeps; allocates nothing. Kernel counterpart: `wake_up_all()`.
    #[track_caller]
    pub fn notify_all(&self) {
        self.notify(Wake::All);
    }

    /// What the condition variable is called, and where it was built.
    pub const fn class(&self) -> &Class {
        &self.class
    }

    /// Tells that the caller sleeps here if it has to, with what it holds besides the mutex.
    #[track_caller]
    fn may_sleep<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let hooks = watch::hooks();
        if !hooks.has_validator() || event::nr_held() < 2 {
            return guard;
        }
        let (owner, inner) = guard.into_parts();
        let place = Location::caller();
        let site = Site::Place(place);
        let mutex = owner.class();
        event::release_at(mutex.addr(), site);
        let class = self.class.id(&EVENT);
        self.waits.might_wait(class, Limit::Forever, site);
        watch::lock(hooks, mutex, &watch::SLEEP, Mode::Exclusive, place);
        owner.guard(inner)
    }

    #[track_caller]
    fn sleep<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Option<Duration>,
    ) -> (MutexGuard<'a, T>, Waited) {
        let (owner, inner) = guard.into_parts();
        let class = owner.class();
        let place = Location::caller();
        let site = Site::Place(place);
        // The mutex is not held during the wait, and taken like any lock after it.
        event::release_at(class.addr(), site);
        let waiting = waiting(&self.waits, &self.class, timeout, site);
        let (guard, waited) = if scheduler::is_scheduled() {
            self.sleep_scheduled(owner, inner, timeout)
        } else {
            self.nr_waiting.fetch_add(1, Ordering::Relaxed);
            let (inner, waited) = Deadline::after(timeout).sleep(&self.inner, inner);
            self.nr_waiting.fetch_sub(1, Ordering::Relaxed);
            (owner.guard(inner), waited)
        };
        drop(waiting);
        let hooks = watch::hooks();
        watch::lock(hooks, class, &watch::SLEEP, Mode::Exclusive, place);
        (guard, waited)
    }

    /// The wait under a scheduler: one step for it, as no point lies between release and block.
    #[cold]
    fn sleep_scheduled<'a, T>(
        &self,
        owner: Owner<'a, T>,
        inner: sync::MutexGuard<'a, T>,
        timeout: Option<Duration>,
    ) -> (MutexGuard<'a, T>, Waited) {
        drop(inner);
        scheduler::wake_at(owner.class(), Wake::All);
        let waited = scheduler::block_at(PointKind::Wait, &self.class, timeout);
        (owner.relock_scheduled(), waited)
    }

    #[track_caller]
    fn notify(&self, wake: Wake) {
        if hooks::load().has_validator() {
            self.waits.signal(self.class.id(&EVENT), Site::caller());
        }
        if scheduler::in_use() {
            scheduler::point_at(PointKind::Notify, &self.class);
            scheduler::wake_at(&self.class, wake);
        }
        if self.nr_waiting.load(Ordering::Relaxed) == 0 {
            return;
        }
        match wake {
            Wake::One => self.inner.notify_one(),
            Wake::All => self.inner.notify_all(),
        }
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condvar")
            .field("class", &self.class.name())
            .finish_non_exhaustive()
    }
}
