//! How far an allocation may go to get a frame, and what the lock validator is told of it.
//!
//! Reclaim and the callbacks of notifiers are two *maps* to the validator: locks that nobody takes,
//! which stand for being inside. Whoever may reclaim touches both, so a lock that is held there and
//! taken in a callback closes a cycle, though memory was not short and no callback ran.
//!
//! ```text
//! the caller's locks --> fs_reclaim --> mmu_notifier.start --> locks taken in callbacks
//!          `---------------------------------^
//! ```
//!
//! * [`might_alloc`] stands wherever a frame may be charged: pins, faults, locking, advice.
//! * What a callback settles is waited for outside of the map: that wait has a deadline, and gives
//!   up with the holder's name. A callback that waits itself does so inside.
//! * Reclaim that runs holds `fs_reclaim`; the map of the notifiers is held during callbacks only,
//!   for a start would find it held by reclaim otherwise.
//! * Who is inside a map is a reader of it, since two threads inside do not wait for each other.
//!   Who *might* enter it takes it alone: what is held then keeps all of those inside waiting.
//! * A thread's scopes are applied *before* either map is touched: what cannot happen in a scope
//!   is not annotated. A report shows the scopes of each acquisition.
//!
//! A charge counts like an allocation: a frame of a memory cgroup comes from the reclaim of that
//! memory cgroup, which calls the same notifiers.
//!
//! Linux counterpart: `gfp_t` in `include/linux/gfp_types.h`, the scopes of
//! `include/linux/sched/mm.h`, `fs_reclaim_acquire()` in `mm/page_alloc.c`.

#[cfg(feature = "notifiers")]
use crate::mmu_notifier::Published;
#[cfg(feature = "notifiers")]
use lockdep::context;
use lockdep::context::{ContextGuard, Scope};
use lockdep::{Map, MapGuard, might_sleep};
#[cfg(feature = "notifiers")]
use std::sync::Arc;

/// What an allocation outside a fault may do when no frame is free.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Gfp {
    /// May reclaim in the calling thread, which may call notifiers in non-blockable mode, and may
    /// wait for frames. Never under a lock that a notifier takes.
    Kernel,
    /// The same without calling a file system. Notifiers are called all the same.
    NoFs,
    /// The same without input or output of any kind. Notifiers are called all the same.
    NoIo,
    /// Neither reclaims nor waits for frames: gives up at once when none is free. The only kind
    /// that may be asked for in a callback, or under a lock that one takes.
    NoWait,
}

impl Gfp {
    /// What is left of it in the scopes of the calling thread.
    #[must_use]
    pub fn scoped(self) -> Self {
        let is_in = |scope: Scope| scope.is_active();
        if self == Self::NoWait || is_in(NO_RECLAIM) || is_in(RECLAIMER) {
            Self::NoWait
        } else if self == Self::NoIo || is_in(NO_IO) {
            Self::NoIo
        } else if self == Self::NoFs || is_in(NO_FS) {
            Self::NoFs
        } else {
            Self::Kernel
        }
    }

    /// Whether it may reclaim, and so call notifiers.
    #[must_use]
    pub const fn may_reclaim(self) -> bool {
        !matches!(self, Self::NoWait)
    }

    const fn may_call_fs(self) -> bool {
        matches!(self, Self::Kernel)
    }
}

const NO_IO: Scope = Scope::new(0);
const NO_FS: Scope = Scope::new(1);
const NO_RECLAIM: Scope = Scope::new(2);
const RECLAIMER: Scope = Scope::new(3);

/// The thread reclaims, or could.
static FS_RECLAIM: Map = Map::new("fs_reclaim");

/// The thread runs a callback of a notifier, or could.
pub(crate) static NOTIFIER_START: Map = Map::new("mmu_notifier.start");

/// The thread uses managed memory, so it may fault.
static TOUCH: Map = Map::new("mm.touch");

macro_rules! scopes {
    ($($(#[$doc:meta])* $name:ident = $scope:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// Lasts until the guard is dropped; stays in its thread. Scopes nest, and end in any
        /// order.
        #[must_use = "the scope ends when the guard is dropped"]
        #[derive(Debug)]
        pub struct $name(#[expect(dead_code, reason = "held for its destructor")] ContextGuard);

        impl $name {
            /// Enters the scope.
            pub fn enter() -> Self {
                $scope.name(stringify!($name));
                Self($scope.enter())
            }
        }
    )*};
}

scopes! {
    /// Allocations of this thread do no input or output: [`Gfp::Kernel`] means [`Gfp::NoIo`].
    ///
    /// Linux counterpart: `memalloc_noio_save()`.
    NoIo = NO_IO;
    /// Allocations of this thread call no file system: [`Gfp::Kernel`] means [`Gfp::NoFs`].
    ///
    /// Linux counterpart: `memalloc_nofs_save()`.
    NoFs = NO_FS;
    /// Allocations of this thread do not reclaim: every [`Gfp`] means [`Gfp::NoWait`].
    ///
    /// Linux counterpart: `memalloc_noreclaim_save()`.
    NoReclaim = NO_RECLAIM;
    /// This thread frees memory itself, so its allocations do not reclaim.
    ///
    /// Linux counterpart: `PF_MEMALLOC`.
    Reclaimer = RECLAIMER;
}

/// Says that a frame may be charged or memory allocated here, as `gfp` allows in the scopes of the
/// calling thread: the thread might reclaim, call notifiers, and sleep.
///
/// Linux counterpart: `might_alloc()`.
#[track_caller]
#[inline]
pub fn might_alloc(gfp: Gfp) {
    if lockdep::is_enabled() {
        annotate(gfp.scoped());
    }
}

/// `gfp` is what the scopes have left: they come first, always.
#[track_caller]
fn annotate(gfp: Gfp) {
    if !gfp.may_reclaim() {
        return;
    }
    let _reclaim = gfp.may_call_fs().then(|| FS_RECLAIM.enter());
    // Whether or not a file system may be called: clean pages are unmapped all the same.
    NOTIFIER_START.might_acquire();
    might_sleep();
}

/// Says that notifiers might be called here, in blockable mode.
#[track_caller]
#[inline]
pub(crate) fn might_notify() {
    if lockdep::is_enabled() {
        NOTIFIER_START.might_acquire();
        might_sleep();
    }
}

/// Says that managed memory is used here: the thread might fault, which charges a frame.
///
/// Never under a lock of this library, nor under one that a notifier takes.
#[track_caller]
#[inline]
pub fn might_touch() {
    if lockdep::is_enabled() {
        TOUCH.might_acquire();
        annotate(Gfp::Kernel.scoped());
    }
}

/// The time in which a fault on managed memory is resolved, whose frame is charged as `gfp` allows.
#[track_caller]
#[inline]
pub(crate) fn touching(gfp: Gfp) -> Option<MapGuard<'static>> {
    lockdep::is_enabled().then(|| {
        let touching = TOUCH.read_recursive();
        annotate(gfp.scoped());
        touching
    })
}

/// The time in which the calling thread reclaims: it is inside reclaim, and a reclaimer.
#[must_use = "reclaim ends when the guard is dropped"]
pub(crate) struct Reclaiming {
    /// What was entered is left, whatever the scopes are by then.
    #[expect(dead_code, reason = "held for its destructor")]
    map: MapGuard<'static>,
    #[expect(dead_code, reason = "held for its destructor")]
    scope: Reclaimer,
}

impl Reclaiming {
    /// Enters reclaim.
    #[track_caller]
    pub(crate) fn enter() -> Self {
        Self {
            map: FS_RECLAIM.read_recursive(),
            scope: Reclaimer::enter(),
        }
    }
}

/// The time in which the calling thread runs a callback of a notifier.
#[cfg(feature = "notifiers")]
#[must_use = "the callback ends when the guard is dropped"]
pub(crate) struct Notifying {
    #[expect(dead_code, reason = "held for its destructor")]
    inside: MapGuard<'static>,
    #[expect(dead_code, reason = "held for its destructor")]
    section: Option<ContextGuard>,
}

#[cfg(feature = "notifiers")]
impl Notifying {
    /// Runs a start that may block.
    #[track_caller]
    #[inline(always)]
    pub(crate) fn blockable<R>(whose: &Arc<str>, callback: impl FnOnce() -> R) -> R {
        if lockdep::is_enabled() {
            return Self::run(whose, || None, callback);
        }
        callback()
    }

    /// Runs a callback that may not block: such a start, or an end.
    #[track_caller]
    #[inline(always)]
    pub(crate) fn nonblock<R>(whose: &Arc<str>, callback: impl FnOnce() -> R) -> R {
        if lockdep::is_enabled() {
            return Self::run(whose, || Some(context::non_block()), callback);
        }
        callback()
    }

    /// Runs `callback` inside. Not inlined: who is not watched keeps no room for the guard.
    #[track_caller]
    #[cold]
    #[inline(never)]
    fn run<R>(
        whose: &Arc<str>,
        section: impl FnOnce() -> Option<ContextGuard>,
        callback: impl FnOnce() -> R,
    ) -> R {
        let _published = Published::enter(whose);
        let _inside = Self::enter(section);
        callback()
    }

    #[track_caller]
    fn enter(section: impl FnOnce() -> Option<ContextGuard>) -> Self {
        Self {
            inside: NOTIFIER_START.read_recursive(),
            section: section(),
        }
    }
}

#[cfg(all(test, feature = "notifiers"))]
mod tests;
