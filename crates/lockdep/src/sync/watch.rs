//! What a lock of this module tells the scheduler and the validator, in one place.
//!
//! Both hang on one word: where neither watches, an operation costs one load and one branch.

use crate::class::Class;
use crate::contention;
use crate::event;
use crate::hooks::{self, Hooks};
use crate::identity::ClassRef;
use crate::registry::{Attributes, WaitType};
use crate::sync::scheduler::{self, PointKind};
use crate::task::Site;
use crate::word::{ClassId, Context, Mode, Word};

/// A lock whose waiters sleep.
pub(super) const SLEEP: Attributes = Attributes::SLEEP;

/// A short lock: taken where sleeping is forbidden, and its holder takes no other lock.
pub(super) const SHORT: Attributes = Attributes {
    inner: WaitType::Free,
    ..Attributes::SPIN
};

/// The place of a call.
pub(super) type Place = &'static std::panic::Location<'static>;

/// Who watches.
#[inline(always)]
pub(super) fn hooks() -> Hooks {
    hooks::load()
}

/// Tells that a lock is about to be taken, and may block.
#[inline(always)]
pub(super) fn lock(hooks: Hooks, class: &Class, as_: &Attributes, mode: Mode, site: Place) {
    acquire(hooks, class, as_, (mode, 0), site);
}

/// Tells that a lock might be taken here, and is not.
pub(super) fn might_lock(class: &Class, as_: &Attributes, mode: Mode, site: Place) {
    let hooks = hooks();
    if hooks.has_validator() {
        lock(hooks, class, as_, mode, site);
        event::release_at(class.addr(), Site::Place(site));
    }
}

/// Tells that a lock was taken by trying.
#[inline(always)]
pub(super) fn tried(hooks: Hooks, class: &Class, as_: &Attributes, mode: Mode, site: Place) {
    acquire(hooks, class, as_, (mode, Word::TRY), site);
}

#[inline(always)]
fn acquire(
    hooks: Hooks,
    class: &Class,
    as_: &Attributes,
    (mode, flags): (Mode, u64),
    place: Place,
) {
    if hooks.has_validator() {
        let id = class.known_id().unwrap_or_else(|| resolve(class, as_));
        let what = Word::new(id, mode, flags, Context::default());
        event::acquire_plain(what, class.addr(), place, hooks);
    }
}

/// Takes a lock whose waiters sleep, where a scheduler is asked or waits are counted.
pub(super) fn take<G>(
    hooks: Hooks,
    kind: PointKind,
    class: &Class,
    attempt: impl Fn() -> Option<G>,
    wait: impl FnOnce() -> G,
) -> G {
    if hooks.has_scheduler()
        && let Some(guard) = scheduler::acquire(kind, class, &attempt)
    {
        return guard;
    }
    contention::take(hooks, || class.id(&SLEEP), attempt, wait)
}

#[cold]
fn resolve(class: &Class, attributes: &Attributes) -> ClassId {
    class.id(attributes)
}

/// What a guard keeps of its lock: enough to say which it is.
pub(super) trait Watched: Copy {
    /// The class of the lock.
    fn class(&self) -> &Class;
}

impl Watched for ClassRef<'_> {
    #[inline(always)]
    fn class(&self) -> &Class {
        self.get()
    }
}

/// Tells whoever watches of a release when dropped; the field of a guard after the one it releases.
pub(super) struct Release<W: Watched>(W);

impl<'a> Release<ClassRef<'a>> {
    #[inline(always)]
    pub(super) fn of(class: &'a Class) -> Self {
        Self(ClassRef::new(class))
    }
}

impl<W: Watched> Release<W> {
    #[inline(always)]
    pub(super) fn new(lock: W) -> Self {
        Self(lock)
    }

    /// Tells nobody: the lock stays held.
    pub(super) fn into_inner(self) -> W {
        let lock = self.0;
        std::mem::forget(self);
        lock
    }
}

impl<W: Watched> Drop for Release<W> {
    #[inline(always)]
    fn drop(&mut self) {
        let hooks = hooks::load();
        if !hooks.is_idle() {
            released(hooks, self.0.class());
        }
    }
}

#[inline(always)]
fn released(hooks: Hooks, class: &Class) {
    if hooks.has_validator() {
        event::release_plain(hooks, class.addr(), Site::Unknown);
    }
    if hooks.has_scheduler() {
        scheduler::released(class);
    }
}

/// An acquisition that was told and may not come: told as released when dropped, unless
/// [`taken`](Self::taken).
///
/// A scheduler may end a run by panicking where a task waits for a lock.
pub(super) struct Pending<'a> {
    release: Option<&'a Class>,
}

impl<'a> Pending<'a> {
    pub(super) fn of(class: &'a Class) -> Self {
        Self {
            release: Some(class),
        }
    }

    /// The lock was taken.
    pub(super) fn taken(mut self) {
        self.release = None;
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(class) = self.release {
            event::release_at(class.addr(), Site::Unknown);
        }
    }
}
