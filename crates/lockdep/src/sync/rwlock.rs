//! Many readers or one writer.
//!
//! Linux counterpart: kernel/locking/rwsem.c.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::sync;

use super::scheduler::{self, PointKind};
use super::watch::{self, Release};
use super::{ignore_poison, ignore_poison_try};
use crate::event::{self, HeldAs};
use crate::hooks::Hooks;
use crate::identity::ClassRef;
use crate::{Class, Mode};

/// A lock with many readers or one writer at a time; waiters sleep.
///
/// A reader that comes while a writer waits may have to wait for that writer, so reading twice in
/// one thread can deadlock, as it can in the kernel. No poison; see [`Mutex`](super::Mutex).
///
/// Kernel counterpart: `struct rw_semaphore`.
pub struct RwLock<T: ?Sized> {
    class: Class,
    inner: sync::RwLock<T>,
}

/// Holds a [`RwLock`] for reading until dropped.
///
/// Stays in the thread that took it.
#[must_use = "the lock is released when the guard is dropped"]
pub struct RwLockReadGuard<'a, T: ?Sized> {
    // INVARIANT: `inner` stands before `release`: fields drop in order, and the scheduler must hear
    // of the release after it.
    inner: sync::RwLockReadGuard<'a, T>,
    #[expect(dead_code, reason = "held for its destructor")]
    release: Release<ClassRef<'a>>,
}

/// Holds a [`RwLock`] for writing until dropped.
///
/// Stays in the thread that took it.
#[must_use = "the lock is released when the guard is dropped"]
pub struct RwLockWriteGuard<'a, T: ?Sized> {
    // INVARIANT: as in `RwLockReadGuard`.
    inner: sync::RwLockWriteGuard<'a, T>,
    #[expect(dead_code, reason = "held for its destructor")]
    release: Release<ClassRef<'a>>,
}

impl<T> RwLock<T> {
    /// A free lock around `value`, of the class of this name and place.
    #[track_caller]
    pub const fn new(class: &'static str, value: T) -> Self {
        Self {
            class: Class::new(class),
            inner: sync::RwLock::new(value),
        }
    }

    /// The value, without the lock.
    pub fn into_inner(self) -> T {
        ignore_poison(self.inner.into_inner())
    }
}

impl<T: ?Sized> RwLock<T> {
    /// Takes the lock for reading, sleeping while a writer holds it or waits for it.
    ///
    /// May sleep. Allocates nothing.
    ///
    /// # Panics
    ///
    /// When more readers than `std` can count hold it, about a billion. Kernel counterpart:
    /// `down_read()`.
    #[inline]
    #[track_caller]
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        let hooks = watch::hooks();
        if !hooks.is_idle() {
            watch::lock(
                hooks,
                &self.class,
                &watch::SLEEP,
                Mode::Shared,
                Location::caller(),
            );
            if hooks.is_special() {
                return self.read_asking(hooks);
            }
        }
        self.reading(ignore_poison(self.inner.read()))
    }

    /// Takes the lock for reading if that can be had at once; never sleeps.
    ///
    /// Kernel counterpart: `down_read_trylock()`.
    #[inline]
    #[track_caller]
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        let hooks = watch::hooks();
        if hooks.has_scheduler() {
            scheduler::point_at(PointKind::TryRead, &self.class);
        }
        let guard = self.try_reading()?;
        watch::tried(
            hooks,
            &self.class,
            &watch::SLEEP,
            Mode::Shared,
            Location::caller(),
        );
        Some(guard)
    }

    /// Takes the lock for writing, sleeping while anybody else holds it.
    ///
    /// May sleep. Allocates nothing. Kernel counterpart: `down_write()`.
    #[inline]
    #[track_caller]
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        let hooks = watch::hooks();
        if !hooks.is_idle() {
            watch::lock(
                hooks,
                &self.class,
                &watch::SLEEP,
                Mode::Exclusive,
                Location::caller(),
            );
            if hooks.is_special() {
                return self.write_asking(hooks);
            }
        }
        self.writing(ignore_poison(self.inner.write()))
    }

    /// Takes the lock for writing if nobody holds it; never sleeps.
    ///
    /// Kernel counterpart: `down_write_trylock()`.
    #[inline]
    #[track_caller]
    pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
        let hooks = watch::hooks();
        if hooks.has_scheduler() {
            scheduler::point_at(PointKind::TryWrite, &self.class);
        }
        let guard = self.try_writing()?;
        watch::tried(
            hooks,
            &self.class,
            &watch::SLEEP,
            Mode::Exclusive,
            Location::caller(),
        );
        Some(guard)
    }

    /// Says that the caller might take the lock for reading here, and does not.
    ///
    /// Never sleeps. Kernel counterpart: `might_lock_read()`.
    #[track_caller]
    pub fn might_read(&self) {
        let site = Location::caller();
        watch::might_lock(&self.class, &watch::SLEEP, Mode::Shared, site);
    }

    /// Says that the caller might take the lock for writing here, and does not.
    ///
    /// Never sleeps. Kernel counterpart: `might_lock()`.
    #[track_caller]
    pub fn might_write(&self) {
        let site = Location::caller();
        watch::might_lock(&self.class, &watch::SLEEP, Mode::Exclusive, site);
    }

    /// Whether the calling thread holds the lock in this way; `None` where the validator is off.
    ///
    /// Kernel counterpart: `lockdep_is_held_type()`.
    #[must_use]
    pub fn is_held(&self, how: HeldAs) -> Option<bool> {
        event::is_held(self.class.addr(), how)
    }

    /// The value, without locking: having the only reference proves that nobody holds the lock.
    pub fn get_mut(&mut self) -> &mut T {
        ignore_poison(self.inner.get_mut())
    }

    /// What the lock is called, and where it was built.
    pub const fn class(&self) -> &Class {
        &self.class
    }

    #[cold]
    fn read_asking(&self, hooks: Hooks) -> RwLockReadGuard<'_, T> {
        let attempt = || self.try_reading();
        let wait = || self.reading(ignore_poison(self.inner.read()));
        watch::take(hooks, PointKind::Read, &self.class, attempt, wait)
    }

    #[cold]
    fn write_asking(&self, hooks: Hooks) -> RwLockWriteGuard<'_, T> {
        let attempt = || self.try_writing();
        let wait = || self.writing(ignore_poison(self.inner.write()));
        watch::take(hooks, PointKind::Write, &self.class, attempt, wait)
    }

    #[inline]
    fn try_reading(&self) -> Option<RwLockReadGuard<'_, T>> {
        ignore_poison_try(self.inner.try_read()).map(|inner| self.reading(inner))
    }

    #[inline]
    fn try_writing(&self) -> Option<RwLockWriteGuard<'_, T>> {
        ignore_poison_try(self.inner.try_write()).map(|inner| self.writing(inner))
    }

    #[inline]
    fn reading<'a>(&'a self, inner: sync::RwLockReadGuard<'a, T>) -> RwLockReadGuard<'a, T> {
        RwLockReadGuard {
            inner,
            release: Release::of(&self.class),
        }
    }

    #[inline]
    fn writing<'a>(&'a self, inner: sync::RwLockWriteGuard<'a, T>) -> RwLockWriteGuard<'a, T> {
        RwLockWriteGuard {
            inner,
            release: Release::of(&self.class),
        }
    }
}

impl<T: ?Sized> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> DerefMut for RwLockWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLock<T> {
    /// Shows the value if no writer holds the lock, without passing a scheduler point.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("RwLock");
        out.field("class", &self.class.name());
        match ignore_poison_try(self.inner.try_read()) {
            Some(value) => out.field("value", &&*value),
            None => out.field("value", &format_args!("<locked>")),
        };
        out.finish()
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLockWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
