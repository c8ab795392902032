//! Mutual exclusion that sleeps.
//!
//! Linux counterpart: kernel/locking/mutex.c.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::sync;

use super::scheduler::{self, PointKind};
use super::watch::{self, Place, Release, Watched};
use super::{ignore_poison, ignore_poison_try};
use crate::event::{self, HeldAs};
use crate::hooks::Hooks;
use crate::{Class, Mode};

/// A lock with one holder at a time; waiters sleep.
///
/// Not recursive: taking it twice in one thread deadlocks. A holder that panics leaves it usable,
/// with the value as it stood: there is no poison, as there is none in the kernel, so whoever must
/// keep an invariant across a panic restores it in a destructor.
///
/// Kernel counterpart: `struct mutex`.
pub struct Mutex<T: ?Sized> {
    class: Class,
    inner: sync::Mutex<T>,
}

/// Holds a [`Mutex`] until dropped.
///
/// Stays in the thread that took it.
#[must_use = "the lock is released when the guard is dropped"]
pub struct MutexGuard<'a, T: ?Sized> {
    // INVARIANT: `inner` stands before `release`: fields drop in order, and the scheduler must hear
    // of the release after it.
    inner: sync::MutexGuard<'a, T>,
    release: Release<Owner<'a, T>>,
}

/// The mutex of a guard, for waits that give it up; nothing where nobody is told of that.
pub(super) struct Owner<'a, T: ?Sized> {
    #[cfg(feature = "validate")]
    mutex: &'a Mutex<T>,
    #[cfg(not(feature = "validate"))]
    mutex: std::marker::PhantomData<&'a Mutex<T>>,
}

impl<T> Mutex<T> {
    /// A free mutex around `value`, of the class of this name and place.
    #[track_caller]
    pub const fn new(class: &'static str, value: T) -> Self {
        Self {
            class: Class::new(class),
            inner: sync::Mutex::new(value),
        }
    }

    /// The value, without the lock.
    pub fn into_inner(self) -> T {
        ignore_poison(self.inner.into_inner())
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Takes the lock, sleeping while somebody else holds it.
    ///
    /// May sleep, also when called by the holder: then forever. Allocates nothing. Kernel
    /// counterpart: `mutex_lock()`.
    #[inline]
    #[track_caller]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let hooks = watch::hooks();
        if !hooks.is_idle() {
            return self.lock_watched(hooks, Location::caller());
        }
        self.guard(ignore_poison(self.inner.lock()))
    }

    /// Takes the lock if it is free; never sleeps.
    ///
    /// Kernel counterpart: `mutex_trylock()`.
    #[inline]
    #[track_caller]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let hooks = watch::hooks();
        if hooks.has_scheduler() {
            scheduler::point_at(PointKind::TryLock, &self.class);
        }
        let guard = self.try_guard()?;
        watch::tried(
            hooks,
            &self.class,
            &watch::SLEEP,
            Mode::Exclusive,
            Location::caller(),
        );
        Some(guard)
    }

    /// Says that the caller might take the lock here, and does not: judged as if it did.
    ///
    /// Never sleeps. Kernel counterpart: `might_lock()`.
    #[track_caller]
    pub fn might_lock(&self) {
        let site = Location::caller();
        watch::might_lock(&self.class, &watch::SLEEP, Mode::Exclusive, site);
    }

    /// Whether the calling thread holds the lock; `None` where the validator is off.
    ///
    /// Kernel counterpart: `lockdep_is_held()`.
    #[must_use]
    pub fn is_held(&self) -> Option<bool> {
        event::is_held(self.class.addr(), HeldAs::Any)
    }

    /// The value, without locking: having the only reference proves that nobody holds the lock.
    pub fn get_mut(&mut self) -> &mut T {
        ignore_poison(self.inner.get_mut())
    }

    /// What the lock is called, and where it was built.
    pub const fn class(&self) -> &Class {
        &self.class
    }

    #[inline(always)]
    fn lock_watched(&self, hooks: Hooks, site: Place) -> MutexGuard<'_, T> {
        watch::lock(hooks, &self.class, &watch::SLEEP, Mode::Exclusive, site);
        if hooks.is_special() {
            return self.lock_asking(hooks);
        }
        self.guard(ignore_poison(self.inner.lock()))
    }

    #[cold]
    fn lock_asking(&self, hooks: Hooks) -> MutexGuard<'_, T> {
        let attempt = || self.try_guard();
        let wait = || self.guard(ignore_poison(self.inner.lock()));
        watch::take(hooks, PointKind::Lock, &self.class, attempt, wait)
    }

    #[inline]
    fn try_guard(&self) -> Option<MutexGuard<'_, T>> {
        ignore_poison_try(self.inner.try_lock()).map(|inner| self.guard(inner))
    }

    #[inline]
    fn guard<'a>(&'a self, inner: sync::MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        Owner::of(self).guard(inner)
    }
}

impl<T: ?Sized> Clone for Owner<'_, T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized> Copy for Owner<'_, T> {}

impl<T: ?Sized> Watched for Owner<'_, T> {
    #[inline(always)]
    fn class(&self) -> &Class {
        (*self).class()
    }
}

#[cfg(feature = "validate")]
impl<'a, T: ?Sized> Owner<'a, T> {
    fn of(mutex: &'a Mutex<T>) -> Self {
        Self { mutex }
    }

    pub(super) fn class(self) -> &'a Class {
        &self.mutex.class
    }

    /// Takes the lock again at the end of a scheduled wait.
    pub(super) fn relock_scheduled(self) -> MutexGuard<'a, T> {
        scheduler::acquire_now(PointKind::Lock, self.class(), || self.mutex.try_guard())
    }
}

#[cfg(not(feature = "validate"))]
impl<'a, T: ?Sized> Owner<'a, T> {
    fn of(_mutex: &'a Mutex<T>) -> Self {
        Self {
            mutex: std::marker::PhantomData,
        }
    }

    pub(super) fn class(self) -> &'a Class {
        const { &Class::new("") }
    }

    pub(super) fn relock_scheduled(self) -> MutexGuard<'a, T> {
        unreachable!("no thread has a scheduler")
    }
}

impl<'a, T: ?Sized> Owner<'a, T> {
    #[inline]
    pub(super) fn guard(self, inner: sync::MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        MutexGuard {
            inner,
            release: Release::new(self),
        }
    }
}

impl<'a, T: ?Sized> MutexGuard<'a, T> {
    /// Takes the guard apart for a wait: the lock stays held, and no scheduler hears of it.
    pub(super) fn into_parts(self) -> (Owner<'a, T>, sync::MutexGuard<'a, T>) {
        (self.release.into_inner(), self.inner)
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    /// Shows the value if the lock is free, without passing a scheduler point.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Mutex");
        out.field("class", &self.class.name());
        match ignore_poison_try(self.inner.try_lock()) {
            Some(value) => out.field("value", &&*value),
            None => out.field("value", &format_args!("<locked>")),
        };
        out.finish()
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
