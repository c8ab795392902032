//! Mutual exclusion that never sleeps, for sections of a few instructions.
//!
//! Linux counterpart: include/linux/spinlock.h.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::sync;

use ::spin::mutex::{SpinMutex, SpinMutexGuard};

use super::ignore_poison_try;
use super::scheduler::{self, Point, PointKind};
use super::spin::Backoff;
use super::watch::{self, Pending, Release};
use crate::identity::ClassRef;
use crate::{Class, Mode, contention, hooks};

/// A lock for short, bounded sections; waiters spin, and yield the processor when that takes long.
///
/// It may be taken where sleeping is forbidden. In return its holder must not wait, allocate,
/// fault, call foreign code or take another lock. No poison; see [`Mutex`](super::Mutex).
///
/// Kernel counterpart: `spinlock_t`.
pub struct ShortLock<T: ?Sized> {
    class: Class,
    /// Not the lock of `std`, as nobody sleeps here: to let go of it is one store, and not one more
    /// exchange that the processor waits for.
    inner: SpinMutex<T>,
}

/// Holds a [`ShortLock`] until dropped.
///
/// Stays in the thread that took it.
#[must_use = "the lock is released when the guard is dropped"]
pub struct ShortGuard<'a, T: ?Sized> {
    // INVARIANT: `inner` stands before `release`: fields drop in order, and the scheduler must hear
    // of the release after it.
    inner: SpinMutexGuard<'a, T>,
    /// Held for its destructor.
    release: Release<ClassRef<'a>>,
    /// Who holds it is the thread; the guard inside could be sent.
    not_send: PhantomData<sync::MutexGuard<'a, T>>,
}

// Somebody who panics in a section is met by nobody's poison, as with the other locks.
impl<T: ?Sized> UnwindSafe for ShortLock<T> {}
impl<T: ?Sized> RefUnwindSafe for ShortLock<T> {}
impl<T: ?Sized> UnwindSafe for ShortGuard<'_, T> {}
impl<T: ?Sized> RefUnwindSafe for ShortGuard<'_, T> {}

impl<T> ShortLock<T> {
    /// A free lock around `value`, of the class of this name and place.
    #[track_caller]
    pub const fn new(class: &'static str, value: T) -> Self {
        Self {
            class: Class::new(class),
            inner: SpinMutex::new(value),
        }
    }

    /// The value, without the lock.
    pub fn into_inner(self) -> T {
        self.inner.into_inner()
    }
}

impl<T: ?Sized> ShortLock<T> {
    /// Takes the lock, spinning while somebody else holds it.
    ///
    /// Never sleeps; allocates nothing. Under a scheduler each failed try is a
    /// [`PointKind::Spin`]. Kernel counterpart: `spin_lock()`.
    #[inline]
    #[track_caller]
    pub fn lock(&self) -> ShortGuard<'_, T> {
        let hooks = watch::hooks();
        if !hooks.is_idle() {
            watch::lock(
                hooks,
                &self.class,
                &watch::SHORT,
                Mode::Exclusive,
                Location::caller(),
            );
            if hooks.has_scheduler() {
                return self.lock_asking().unpacked();
            }
        }
        match self.try_guard() {
            Some(guard) => guard,
            None => self.lock_counting().unpacked(),
        }
    }

    /// Takes the lock if it is free.
    ///
    /// Kernel counterpart: `spin_trylock()`.
    #[inline]
    #[track_caller]
    pub fn try_lock(&self) -> Option<ShortGuard<'_, T>> {
        let hooks = watch::hooks();
        if hooks.has_scheduler() {
            scheduler::point_at(PointKind::TryLock, &self.class);
        }
        let guard = self.try_guard()?;
        watch::tried(
            hooks,
            &self.class,
            &watch::SHORT,
            Mode::Exclusive,
            Location::caller(),
        );
        Some(guard)
    }

    /// The value, without locking: having the only reference proves that nobody holds the lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }

    /// What the lock is called, and where it was built.
    pub const fn class(&self) -> &Class {
        &self.class
    }

    #[cold]
    fn lock_asking(&self) -> ShortGuard<'_, T> {
        let pending = Pending::of(&self.class);
        let is_scheduled = scheduler::point_at(PointKind::Lock, &self.class);
        let wait = || match is_scheduled {
            true => self.lock_spinning(),
            false => self.lock_counting(),
        };
        let guard = self.try_guard().unwrap_or_else(wait);
        pending.taken();
        guard
    }

    #[cold]
    fn lock_counting(&self) -> ShortGuard<'_, T> {
        let class = || self.class.id(&watch::SHORT);
        contention::take(hooks::load(), class, || None, || self.lock_spinning())
    }

    #[cold]
    fn lock_spinning(&self) -> ShortGuard<'_, T> {
        let point = Point {
            kind: PointKind::Spin,
            class: self.class.name(),
            addr: self.class.addr(),
        };
        let mut backoff = Backoff::new();
        loop {
            backoff.pause(point);
            if let Some(guard) = self.try_guard() {
                return guard;
            }
        }
    }

    #[inline]
    fn try_guard(&self) -> Option<ShortGuard<'_, T>> {
        let inner = self.inner.try_lock()?;
        Some(ShortGuard {
            inner,
            release: Release::of(&self.class),
            not_send: PhantomData,
        })
    }
}

impl<T: ?Sized> ShortGuard<'_, T> {
    /// The same guard, put together anew. One that was returned by a function that is not inlined
    /// lies in memory; this keeps that from whoever finds the lock free, whose guard is registers.
    #[inline(always)]
    fn unpacked(self) -> Self {
        let Self {
            inner,
            release,
            not_send,
        } = self;
        Self {
            inner,
            release,
            not_send,
        }
    }
}

/// Takes a lock inside this crate without sleeping.
///
/// For locks under which no scheduler is called: their holder is never another scheduled task, so
/// none needs to run for it to be released.
pub(super) fn spin_for<T>(lock: &sync::Mutex<T>) -> sync::MutexGuard<'_, T> {
    let mut backoff = Backoff::new();
    loop {
        if let Some(guard) = ignore_poison_try(lock.try_lock()) {
            return guard;
        }
        backoff.pause_unscheduled();
    }
}

impl<T: ?Sized> Deref for ShortGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T: ?Sized> DerefMut for ShortGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for ShortLock<T> {
    /// Shows the value if the lock is free, without passing a scheduler point.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("ShortLock");
        out.field("class", &self.class.name());
        match self.inner.try_lock() {
            Some(value) => out.field("value", &&*value),
            None => out.field("value", &format_args!("<locked>")),
        };
        out.finish()
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for ShortGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
