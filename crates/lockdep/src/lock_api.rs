//! Watches locks of other crates: every raw lock with the traits of the `lock_api` crate.
//!
//! That is `parking_lot`, `spin`, and a lock of one's own.
//!
//! ```
//! use lockdep::Validator;
//! use lockdep::lock_api::{Mutex, mutex};
//!
//! static ACCOUNTS: Mutex<parking_lot::RawMutex, u64> = mutex("accounts", 0);
//! static AUDIT: Mutex<parking_lot::RawMutex, u64> = mutex("audit", 0);
//!
//! let validator = Validator::new();
//! let _entered = validator.enter();
//! let (accounts, audit) = (ACCOUNTS.lock(), AUDIT.lock());
//! drop((accounts, audit));
//! let (audit, accounts) = (AUDIT.lock(), ACCOUNTS.lock());
//! assert_eq!(validator.reports().len(), 1);
//! # drop((audit, accounts));
//! ```
//!
//! Where guards can be sent, a lock may be released by another thread than took it. That is no
//! fault: from then on this lock is an event to the validator, which somebody waits for and
//! somebody else ends, and no longer a lock that a thread holds; see [`crate::wait`].
//!
//! No scheduler hears of these locks: a simulated program takes those of [`crate::sync`].
#![expect(
    unsafe_code,
    reason = "the traits of `lock_api` are unsafe to implement"
)]

#[cfg(not(feature = "validate"))]
#[path = "lock_api/unwatched.rs"]
mod watch;
#[cfg(feature = "validate")]
mod watch;

use std::any::TypeId;

use lock_api::{
    GuardSend, RawMutex, RawMutexFair, RawMutexTimed, RawRwLock, RawRwLockDowngrade, RawRwLockFair,
    RawRwLockRecursive, RawRwLockTimed, RawRwLockUpgrade, RawRwLockUpgradeDowngrade,
};

use self::watch::Watch;
use crate::contention;
use crate::hooks;
use crate::registry::WaitType;
use crate::word::Mode;

/// The class name of a lock that was given none.
const UNNAMED: &str = "";

/// A mutex of `lock_api` over a watched raw lock.
pub type Mutex<R, T> = lock_api::Mutex<Checked<R>, T>;
/// A guard of [`Mutex`].
pub type MutexGuard<'a, R, T> = lock_api::MutexGuard<'a, Checked<R>, T>;
/// A reader-writer lock of `lock_api` over a watched raw lock.
pub type RwLock<R, T> = lock_api::RwLock<Checked<R>, T>;
/// A reader's guard of [`RwLock`].
pub type RwLockReadGuard<'a, R, T> = lock_api::RwLockReadGuard<'a, Checked<R>, T>;
/// A writer's guard of [`RwLock`].
pub type RwLockWriteGuard<'a, R, T> = lock_api::RwLockWriteGuard<'a, Checked<R>, T>;

/// A mutex around `value`, of the class of this name and place, whose waiters sleep.
#[track_caller]
pub const fn mutex<R: RawMutex, T>(class: &'static str, value: T) -> Mutex<R, T> {
    Mutex::from_raw(
        Checked {
            watch: Watch::new(class, WaitType::Sleep),
            raw: R::INIT,
        },
        value,
    )
}

/// A mutex around `value`, of the class of this name and place, whose waiters spin.
#[track_caller]
pub const fn spin_mutex<R: RawMutex, T>(class: &'static str, value: T) -> Mutex<R, T> {
    Mutex::from_raw(
        Checked {
            watch: Watch::new(class, WaitType::Spin),
            raw: R::INIT,
        },
        value,
    )
}

/// A reader-writer lock around `value`, of the class of this name and place, whose waiters sleep.
#[track_caller]
pub const fn rw_lock<R: RawRwLock, T>(class: &'static str, value: T) -> RwLock<R, T> {
    RwLock::from_raw(
        Checked {
            watch: Watch::new(class, WaitType::Sleep),
            raw: R::INIT,
        },
        value,
    )
}

/// A raw lock that tells the validator.
///
/// Made by [`mutex`] and [`rw_lock`], with a class. One that is made by a `new` of `lock_api`,
/// which knows no class, is of the class of the place where it is taken first.
pub struct Checked<R> {
    watch: Watch,
    raw: R,
}

impl<R> Checked<R> {
    /// The raw lock, for what is not watched.
    pub const fn raw(&self) -> &R {
        &self.raw
    }
}

impl<R> std::fmt::Debug for Checked<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checked")
            .field("class", &self.watch.name())
            .finish_non_exhaustive()
    }
}

/// Whether a guard may have been sent to the thread that drops it.
fn is_sent<Marker: 'static>() -> bool {
    TypeId::of::<Marker>() == TypeId::of::<GuardSend>()
}

// SAFETY: every operation is that of the raw lock, which keeps the contract.
unsafe impl<R: RawMutex> RawMutex for Checked<R>
where
    R::GuardMarker: 'static,
{
    const INIT: Self = Self {
        watch: Watch::new(UNNAMED, WaitType::Sleep),
        raw: R::INIT,
    };
    type GuardMarker = R::GuardMarker;

    #[track_caller]
    fn lock(&self) {
        self.watch.taking(Mode::Exclusive);
        self.wait(|raw| raw.try_lock(), R::lock);
        self.watch.taken(Mode::Exclusive);
    }

    #[track_caller]
    fn try_lock(&self) -> bool {
        let is_taken = self.raw.try_lock();
        if is_taken {
            self.watch.tried(Mode::Exclusive);
        }
        is_taken
    }

    #[track_caller]
    unsafe fn unlock(&self) {
        self.watch.releasing(is_sent::<R::GuardMarker>());
        // SAFETY: the caller holds the lock.
        unsafe { self.raw.unlock() };
    }

    fn is_locked(&self) -> bool {
        self.raw.is_locked()
    }
}

// SAFETY: as above.
unsafe impl<R: RawMutexTimed> RawMutexTimed for Checked<R>
where
    R::GuardMarker: 'static,
{
    type Duration = R::Duration;
    type Instant = R::Instant;

    #[track_caller]
    fn try_lock_for(&self, timeout: Self::Duration) -> bool {
        self.timed(Mode::Exclusive, |raw| raw.try_lock_for(timeout))
    }

    #[track_caller]
    fn try_lock_until(&self, timeout: Self::Instant) -> bool {
        self.timed(Mode::Exclusive, |raw| raw.try_lock_until(timeout))
    }
}

impl<R> Checked<R> {
    /// Takes the lock, counting the wait where that is asked for.
    #[track_caller]
    fn wait(&self, attempt: impl FnOnce(&R) -> bool, lock: impl FnOnce(&R)) {
        let attempt = || attempt(&self.raw).then_some(());
        let class = || self.watch.id();
        contention::take(hooks::load(), class, attempt, || lock(&self.raw));
    }

    /// Takes the lock with a time limit: what is told before it blocks is taken back if the time
    /// runs out.
    #[track_caller]
    fn timed(&self, mode: Mode, try_lock: impl FnOnce(&R) -> bool) -> bool {
        self.watch.taking(mode);
        let is_taken = try_lock(&self.raw);
        if is_taken {
            self.watch.taken(mode);
        } else {
            self.watch.given_up();
        }
        is_taken
    }
}

// SAFETY: every operation is that of the raw lock, which keeps the contract.
unsafe impl<R: RawRwLock> RawRwLock for Checked<R>
where
    R::GuardMarker: 'static,
{
    const INIT: Self = Self {
        watch: Watch::new(UNNAMED, WaitType::Sleep),
        raw: R::INIT,
    };
    type GuardMarker = R::GuardMarker;

    #[track_caller]
    fn lock_shared(&self) {
        self.watch.taking(Mode::Shared);
        self.wait(|raw| raw.try_lock_shared(), R::lock_shared);
        self.watch.taken(Mode::Shared);
    }

    #[track_caller]
    fn try_lock_shared(&self) -> bool {
        let is_taken = self.raw.try_lock_shared();
        if is_taken {
            self.watch.tried(Mode::Shared);
        }
        is_taken
    }

    #[track_caller]
    unsafe fn unlock_shared(&self) {
        self.watch.releasing(is_sent::<R::GuardMarker>());
        // SAFETY: the caller is a reader.
        unsafe { self.raw.unlock_shared() };
    }

    #[track_caller]
    fn lock_exclusive(&self) {
        self.watch.taking(Mode::Exclusive);
        self.wait(|raw| raw.try_lock_exclusive(), R::lock_exclusive);
        self.watch.taken(Mode::Exclusive);
    }

    #[track_caller]
    fn try_lock_exclusive(&self) -> bool {
        let is_taken = self.raw.try_lock_exclusive();
        if is_taken {
            self.watch.tried(Mode::Exclusive);
        }
        is_taken
    }

    #[track_caller]
    unsafe fn unlock_exclusive(&self) {
        self.watch.releasing(is_sent::<R::GuardMarker>());
        // SAFETY: the caller is the writer.
        unsafe { self.raw.unlock_exclusive() };
    }

    fn is_locked(&self) -> bool {
        self.raw.is_locked()
    }

    fn is_locked_exclusive(&self) -> bool {
        self.raw.is_locked_exclusive()
    }
}

// SAFETY: as above.
unsafe impl<R: RawRwLockDowngrade> RawRwLockDowngrade for Checked<R>
where
    R::GuardMarker: 'static,
{
    unsafe fn downgrade(&self) {
        self.watch.downgrading();
        // SAFETY: the caller is the writer.
        unsafe { self.raw.downgrade() };
    }
}

// SAFETY: as above.
unsafe impl<R: RawRwLockRecursive> RawRwLockRecursive for Checked<R>
where
    R::GuardMarker: 'static,
{
    #[track_caller]
    fn lock_shared_recursive(&self) {
        self.watch.taking(Mode::SharedRecursive);
        self.wait(
            |raw| raw.try_lock_shared_recursive(),
            R::lock_shared_recursive,
        );
        self.watch.taken(Mode::SharedRecursive);
    }

    #[track_caller]
    fn try_lock_shared_recursive(&self) -> bool {
        let is_taken = self.raw.try_lock_shared_recursive();
        if is_taken {
            self.watch.tried(Mode::SharedRecursive);
        }
        is_taken
    }
}

// SAFETY: as above.
unsafe impl<R: RawMutexFair> RawMutexFair for Checked<R>
where
    R::GuardMarker: 'static,
{
    #[track_caller]
    unsafe fn unlock_fair(&self) {
        self.watch.releasing(is_sent::<R::GuardMarker>());
        // SAFETY: the caller holds the lock.
        unsafe { self.raw.unlock_fair() };
    }
}

// SAFETY: as above.
unsafe impl<R: RawRwLockFair> RawRwLockFair for Checked<R>
where
    R::GuardMarker: 'static,
{
    #[track_caller]
    unsafe fn unlock_shared_fair(&self) {
        self.watch.releasing(is_sent::<R::GuardMarker>());
        // SAFETY: the caller is a reader.
        unsafe { self.raw.unlock_shared_fair() };
    }

    #[track_caller]
    unsafe fn unlock_exclusive_fair(&self) {
        self.watch.releasing(is_sent::<R::GuardMarker>());
        // SAFETY: the caller is the writer.
        unsafe { self.raw.unlock_exclusive_fair() };
    }
}

// SAFETY: as above.
unsafe impl<R: RawRwLockTimed> RawRwLockTimed for Checked<R>
where
    R::GuardMarker: 'static,
{
    type Duration = R::Duration;
    type Instant = R::Instant;

    #[track_caller]
    fn try_lock_shared_for(&self, timeout: Self::Duration) -> bool {
        self.timed(Mode::Shared, |raw| raw.try_lock_shared_for(timeout))
    }

    #[track_caller]
    fn try_lock_shared_until(&self, timeout: Self::Instant) -> bool {
        self.timed(Mode::Shared, |raw| raw.try_lock_shared_until(timeout))
    }

    #[track_caller]
    fn try_lock_exclusive_for(&self, timeout: Self::Duration) -> bool {
        self.timed(Mode::Exclusive, |raw| raw.try_lock_exclusive_for(timeout))
    }

    #[track_caller]
    fn try_lock_exclusive_until(&self, timeout: Self::Instant) -> bool {
        self.timed(Mode::Exclusive, |raw| raw.try_lock_exclusive_until(timeout))
    }
}

/// A reader that may become a writer counts as a writer from the start: no other of its kind gets
/// in beside it. That an upgrade waits for the readers inside is not told.
// SAFETY: as above.
unsafe impl<R: RawRwLockUpgrade> RawRwLockUpgrade for Checked<R>
where
    R::GuardMarker: 'static,
{
    #[track_caller]
    fn lock_upgradable(&self) {
        self.watch.taking(Mode::Exclusive);
        self.wait(|raw| raw.try_lock_upgradable(), R::lock_upgradable);
        self.watch.taken(Mode::Exclusive);
    }

    #[track_caller]
    fn try_lock_upgradable(&self) -> bool {
        let is_taken = self.raw.try_lock_upgradable();
        if is_taken {
            self.watch.tried(Mode::Exclusive);
        }
        is_taken
    }

    #[track_caller]
    unsafe fn unlock_upgradable(&self) {
        self.watch.releasing(is_sent::<R::GuardMarker>());
        // SAFETY: the caller is the reader that may become a writer.
        unsafe { self.raw.unlock_upgradable() };
    }

    unsafe fn upgrade(&self) {
        // SAFETY: as above.
        unsafe { self.raw.upgrade() };
    }

    unsafe fn try_upgrade(&self) -> bool {
        // SAFETY: as above.
        unsafe { self.raw.try_upgrade() }
    }
}

// SAFETY: as above.
unsafe impl<R: RawRwLockUpgradeDowngrade> RawRwLockUpgradeDowngrade for Checked<R>
where
    R::GuardMarker: 'static,
{
    unsafe fn downgrade_upgradable(&self) {
        self.watch.downgrading();
        // SAFETY: the caller is the reader that may become a writer.
        unsafe { self.raw.downgrade_upgradable() };
    }

    unsafe fn downgrade_to_upgradable(&self) {
        // SAFETY: the caller is the writer.
        unsafe { self.raw.downgrade_to_upgradable() };
    }
}

#[cfg(all(test, feature = "validate"))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::{Kind, Validator};

    /// A lock of one's own: it spins.
    struct Own(AtomicBool);

    // SAFETY: it is taken by whoever finds it free, in one atomic step, and freed by `unlock` only.
    unsafe impl RawMutex for Own {
        const INIT: Self = Self(AtomicBool::new(false));
        type GuardMarker = lock_api::GuardNoSend;

        fn lock(&self) {
            while !self.try_lock() {
                std::hint::spin_loop();
            }
        }

        fn try_lock(&self) -> bool {
            // Acquire pairs with the Release in `unlock`.
            !self.0.swap(true, Ordering::Acquire)
        }

        unsafe fn unlock(&self) {
            // Release pairs with the Acquire in `try_lock`.
            self.0.store(false, Ordering::Release);
        }
    }

    #[test]
    fn a_lock_of_ones_own_is_watched() {
        let validator = Validator::new();
        let _entered = validator.enter();
        let locks: [Mutex<Own, u32>; 2] = [spin_mutex("own.a", 1), spin_mutex("own.b", 2)];
        let both = |first: usize, then: usize| *locks[first].lock() + *locks[then].lock();
        assert_eq!(both(0, 1), 3);
        assert!(validator.reports().is_empty());
        assert_eq!(both(1, 0), 3);
        let kinds: Vec<Kind> = validator.reports().iter().map(|r| r.kind).collect();
        assert_eq!(kinds, [Kind::Circular]);
    }
}
