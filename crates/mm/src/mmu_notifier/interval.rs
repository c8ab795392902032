//! Subscriptions to one interval, with the sequence protocol for devices that look pages up.
//!
//! A device that looks up a page without a lock must know, before it keeps the answer, that the
//! page has not changed since. It reads the sequence, looks up, takes the lock under which it
//! installs translations (and under which its callback drops them), and asks whether the sequence
//! has changed:
//!
//! ```
//! # use pinless_mm as mm;
//! # use std::sync::Arc;
//! use lockdep::sync::Mutex;
//! use mm::addr::Vaddr;
//! use mm::mmu_notifier::{
//!     Context, IntervalNotifier, MmId, Notifier, Notifiers, Range, Witness,
//! };
//!
//! struct Window {
//!     translation: Mutex<Option<u64>>,
//! }
//!
//! impl Notifier for Window {
//!     fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
//!         *cx.lock(&self.translation)? = None;
//!         Ok(())
//!     }
//! }
//!
//! impl IntervalNotifier for Window {
//!     type Lock = Mutex<Option<u64>>;
//!
//!     fn lock(&self) -> &Self::Lock {
//!         &self.translation
//!     }
//! }
//!
//! # fn look_up() -> u64 { 7 }
//! let notifiers = Notifiers::new(MmId(1));
//! let window = Arc::new(Window { translation: Mutex::new("window", None) });
//! let subscription = notifiers
//!     .subscribe_interval("window", Vaddr(0x1000), Vaddr(0x3000), window)
//!     .expect("the interval is not empty");
//! loop {
//!     let seen = subscription.read_begin(); // waits for brackets over the interval
//!     let page = look_up(); // without a lock
//!     let mut translation = subscription.lock();
//!     if !subscription.read_retry(seen, &translation) {
//!         *translation = Some(page);
//!         break;
//!     }
//! }
//! subscription.remove();
//! ```
//!
//! Asking without the lock does not compile:
//!
//! ```compile_fail,E0061
//! # use pinless_mm::mmu_notifier::{IntervalNotifier, IntervalSubscription, Seen};
//! fn ask<N: IntervalNotifier>(subscription: &IntervalSubscription<N>, seen: Seen) -> bool {
//!     subscription.read_retry(seen)
//! }
//! ```
//!
//! Nor does a lock of another type, and one of the same type that is another object is found out
//! when it is used:
//!
//! ```compile_fail,E0308
//! # use lockdep::sync::{Mutex, ShortLock};
//! # use pinless_mm::mmu_notifier::{IntervalNotifier, IntervalSubscription, Seen, Witness};
//! fn ask<N: IntervalNotifier<Lock = Mutex<u64>>>(
//!     subscription: &IntervalSubscription<N>,
//!     seen: Seen,
//!     other: &ShortLock<u64>,
//! ) -> bool {
//!     subscription.read_retry(seen, &Witness::lock(other))
//! }
//! ```
//!
//! Linux counterpart: mmu_interval_read_begin() and mmu_interval_read_retry()

use super::Notifier;
use super::callback::running_callback;
use super::member::Member;
use super::misuse::Misuse;
use super::registry::Registry;
use super::sequence::Look;
use super::stats::Inject;
use crate::gfp::might_notify;
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::time::Duration;
use lockdep::sync::{Mutex, MutexGuard, RwLock, RwLockWriteGuard, ShortGuard, ShortLock};
use std::sync::Arc;

/// A [`Notifier`] for an interval: says which lock guards its translations.
pub trait IntervalNotifier: Notifier {
    /// [`Mutex`], [`RwLock`] (taken to write) or [`ShortLock`].
    type Lock: UpdateLock;

    /// The lock under which translations are installed, and under which `start` drops them. Always
    /// the same one.
    fn lock(&self) -> &Self::Lock;
}

/// A lock under which a device installs translations.
pub trait UpdateLock: sealed::Sealed {
    /// What it guards.
    type Data: ?Sized;

    /// What holds it.
    type Guard<'a>: DerefMut<Target = Self::Data>
    where
        Self: 'a;

    /// Takes it.
    fn acquire(&self) -> Self::Guard<'_>;
}

impl<T> sealed::Sealed for Mutex<T> {}
impl<T> sealed::Sealed for RwLock<T> {}
impl<T> sealed::Sealed for ShortLock<T> {}

impl<T> UpdateLock for Mutex<T> {
    type Data = T;
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        T: 'a;

    #[inline]
    fn acquire(&self) -> MutexGuard<'_, T> {
        self.lock()
    }
}

impl<T> UpdateLock for RwLock<T> {
    type Data = T;
    type Guard<'a>
        = RwLockWriteGuard<'a, T>
    where
        T: 'a;

    #[inline]
    fn acquire(&self) -> RwLockWriteGuard<'_, T> {
        self.write()
    }
}

impl<T> UpdateLock for ShortLock<T> {
    type Data = T;
    type Guard<'a>
        = ShortGuard<'a, T>
    where
        T: 'a;

    #[inline]
    fn acquire(&self) -> ShortGuard<'_, T> {
        self.lock()
    }
}

/// Holds a lock, and knows which: the witness that a lookup is judged under it.
///
/// One lock may serve many subscriptions, and one witness then judges for all of them.
#[must_use = "the lock is released when the witness is dropped"]
pub struct Witness<'a, L: UpdateLock> {
    lock: &'a L,
    guard: L::Guard<'a>,
}

impl<'a, L: UpdateLock> Witness<'a, L> {
    /// Takes the lock.
    #[inline]
    pub fn lock(lock: &'a L) -> Self {
        Self {
            lock,
            guard: lock.acquire(),
        }
    }
}

impl<L: UpdateLock> Deref for Witness<'_, L> {
    type Target = L::Data;

    #[inline]
    fn deref(&self) -> &L::Data {
        &self.guard
    }
}

impl<L: UpdateLock> DerefMut for Witness<'_, L> {
    #[inline]
    fn deref_mut(&mut self) -> &mut L::Data {
        &mut self.guard
    }
}

/// What [`read_begin`](IntervalSubscription::read_begin) saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a lookup is worth nothing until it was judged"]
pub struct Seen(u64);

/// Why there is no subscription.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IntervalError {
    /// The interval has no address.
    Empty,
    /// The address space is gone.
    Released,
}

impl fmt::Display for IntervalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the interval is empty",
            Self::Released => "the address space is gone",
        })
    }
}

impl core::error::Error for IntervalError {}

/// A subscription to one interval; made by [`Notifiers::subscribe_interval`].
///
/// A drop ends it without waiting: brackets that begin later do not call it, those that are open
/// still deliver their `end`, which is reported. [`remove`](Self::remove) also waits for them.
///
/// Before either, the device must have dropped its translations: nobody will tell it again.
///
/// [`Notifiers::subscribe_interval`]: super::Notifiers::subscribe_interval
#[must_use = "a subscription ends when it is dropped"]
pub struct IntervalSubscription<N> {
    member: Arc<Member>,
    notifier: Arc<N>,
    registry: Arc<Registry>,
    /// Whoever ends it also waits.
    is_awaited: bool,
}

impl<N: IntervalNotifier> IntervalSubscription<N> {
    pub(super) fn new(member: Arc<Member>, notifier: Arc<N>, registry: Arc<Registry>) -> Self {
        Self {
            member,
            notifier,
            registry,
            is_awaited: false,
        }
    }

    /// The subscriber.
    pub fn notifier(&self) -> &Arc<N> {
        &self.notifier
    }

    /// Takes the lock under which translations are installed.
    #[inline]
    pub fn lock(&self) -> Witness<'_, N::Lock> {
        Witness::lock(self.notifier.lock())
    }

    /// Waits until no bracket over the interval is open, and says which change was the last.
    /// Then look up pages, take the lock, and ask [`read_retry`](Self::read_retry).
    ///
    /// Brackets over other ranges are not waited for. May sleep; allocates nothing. Never call it
    /// in a callback, under a lock that a callback takes, or with a bracket over the interval open.
    #[inline]
    pub fn read_begin(&self) -> Seen {
        might_notify();
        match self.member.sequence().look() {
            Look::Idle(number) => Seen(number),
            Look::Open => self.wait(None).unwrap_or(NEVER),
        }
    }

    /// Like [`read_begin`](Self::read_begin) without the wait; `None` while a bracket is open.
    #[inline]
    pub fn try_read_begin(&self) -> Option<Seen> {
        match self.member.sequence().look() {
            Look::Idle(number) => Some(Seen(number)),
            Look::Open => None,
        }
    }

    /// Like [`read_begin`](Self::read_begin), but each sleep lasts no longer than `timeout`; `None`
    /// if a bracket is still open then.
    pub fn read_begin_timeout(&self, timeout: Duration) -> Option<Seen> {
        self.try_read_begin().or_else(|| self.wait(Some(timeout)))
    }

    /// Whether the interval has changed, or is about to, since `seen`: then what was looked up
    /// must be thrown away. If not, it may be installed before the lock is released.
    #[inline]
    #[must_use]
    pub fn read_retry(&self, seen: Seen, witness: &Witness<'_, N::Lock>) -> bool {
        if !core::ptr::eq(witness.lock, self.notifier.lock()) {
            self.misuse(Misuse::ForeignWitness);
            return true;
        }
        self.check_retry(seen)
    }

    /// The same without the lock: `true` holds, `false` is a guess. Worth asking before long work.
    #[inline]
    #[must_use]
    pub fn check_retry(&self, seen: Seen) -> bool {
        !self.member.sequence().is_at(seen.0)
    }

    /// Ends the subscription and waits until no callback of it runs or ever will. Gives the
    /// subscriber back.
    ///
    /// Never call it in a callback (it is reported, and does not wait), under a lock that a
    /// callback takes, or with a bracket open.
    pub fn remove(mut self) -> Arc<N> {
        let notifier = Arc::clone(&self.notifier);
        let registry = Arc::clone(&self.registry);
        self.is_awaited = true;
        drop(self);
        if registry.common().counters.injected() != Inject::RemoveEarly {
            registry.synchronize();
        }
        notifier
    }
}

impl<N> IntervalSubscription<N> {
    /// The name under which reports speak of the subscriber.
    pub fn name(&self) -> &str {
        self.member.name()
    }

    /// How many brackets are open over the interval, and how often it has changed.
    pub fn snapshot(&self) -> (u64, u64) {
        self.member.sequence().snapshot()
    }

    #[cold]
    fn wait(&self, timeout: Option<Duration>) -> Option<Seen> {
        if running_callback().is_some() {
            self.misuse(Misuse::ReadInCallback);
            return Some(NEVER);
        }
        let common = self.registry.common();
        self.member.wait(common, timeout).map(Seen)
    }

    #[cold]
    fn misuse(&self, misuse: Misuse) {
        self.registry.common().misuse(misuse, self.member.name());
    }
}

/// No number of a change: whoever holds it is told to try again.
const NEVER: Seen = Seen(u64::MAX);

impl<N> Drop for IntervalSubscription<N> {
    fn drop(&mut self) {
        if !self.is_awaited && self.member.is_under_bracket() {
            self.misuse(Misuse::DroppedWhileOpen);
        }
        self.registry.leave(self.member.place());
    }
}

impl<N> fmt::Debug for IntervalSubscription<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntervalSubscription")
            .field("name", &self.member.name())
            .field("interval", &self.member.place())
            .finish_non_exhaustive()
    }
}

mod sealed {
    /// Keeps [`super::UpdateLock`] to the locks that are known to keep others out.
    pub trait Sealed {}
}
