//! The subscriptions at one moment, and when the last bracket that uses them is over.
//!
//! A version never changes. Each change of the subscriptions publishes a new one, and a bracket
//! keeps the version that it began with, so its ends go to those whose start it called. What has
//! to wait for the brackets that are open (a device that joined may not look up pages before, one
//! that left may not be freed before) is *deferred*: it is applied when the last of them closes.
//! Brackets that begin later are not waited for, however many there are.
//!
//! ```text
//!  version 1    version 2    version 3        what brackets hold, newest last
//!      |            |            |
//!      v            v            v
//!   epoch 1 ---> epoch 2 ---> epoch 3         gone when its version and all older ones are
//! ```
//!
//! Linux counterpart: srcu_struct and the deferred list of mm/mmu_notifier.c

use super::hooks::TlbMember;
use super::member::Member;
use super::misuse::{Misuse, Misuses};
use super::range::Range;
use super::stats::Counters;
use super::tree::{Path, Tree};
use super::wait::Waits;
use core::ops::ControlFlow;
use lockdep::sync::Fence;
use std::sync::{Arc, OnceLock};

/// What all versions of one address space have in common.
pub(super) struct Common {
    pub(super) counters: Counters,
    pub(super) waits: Waits,
    pub(super) misuses: Misuses,
}

impl Common {
    pub(super) fn misuse(&self, misuse: Misuse, subscriber: &Arc<str>) {
        let count = &self.counters.misuses;
        self.misuses.report(count, misuse, subscriber);
    }
}

/// Who is subscribed, in the order in which they are called.
#[derive(Clone)]
pub(super) struct Members {
    /// Called first, in the order of their starts.
    pub(super) tree: Tree<Member>,
    /// Called then, newest first.
    pub(super) list: Box<[Arc<Member>]>,
    /// Told outside of brackets.
    pub(super) tlb_users: Box<[Arc<TlbMember>]>,
}

impl Members {
    pub(super) fn nobody() -> Self {
        Self {
            tree: Tree::new(),
            list: Box::default(),
            tlb_users: Box::default(),
        }
    }
}

/// The subscriptions at one moment.
///
/// The fields drop in order: the epoch goes after the members are let go of.
pub(super) struct Version {
    pub(super) members: Members,
    pub(super) common: Arc<Common>,
    pub(super) epoch: Arc<Epoch>,
}

impl Version {
    /// Calls `visit` for each subscription that a change of `range` concerns, until it breaks.
    #[inline]
    pub(super) fn visit<'a, B>(
        &'a self,
        range: &Range,
        mut visit: impl FnMut(&'a Arc<Member>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        self.visit_intervals(range, &mut |member, _| visit(member))?;
        self.list(range).try_for_each(visit)
    }

    /// Whether there is an interval.
    #[inline]
    pub(super) fn has_intervals(&self) -> bool {
        self.members.tree.len() > 0
    }

    /// Calls `visit` for each interval that a change of `range` concerns, until it breaks.
    #[inline]
    pub(super) fn visit_intervals<'a, B>(
        &'a self,
        range: &Range,
        visit: &mut impl FnMut(&'a Arc<Member>, Path) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        self.members
            .tree
            .visit(range.start.0, range.end.0, &mut |member, path| {
                if member.is_left_out(range) {
                    ControlFlow::Continue(())
                } else {
                    visit(member, path)
                }
            })
    }

    /// The interval that was found on this way.
    #[inline]
    pub(super) fn interval(&self, path: Path) -> Option<&Arc<Member>> {
        self.members.tree.at(path)
    }

    /// The members of the list that a change of `range` concerns.
    #[inline]
    pub(super) fn list(&self, range: &Range) -> impl Iterator<Item = &Arc<Member>> {
        let list = self.members.list.iter();
        list.filter(|member| member.is_concerned(range))
    }

    /// Calls `visit` for each subscription, until it breaks.
    pub(super) fn visit_all<'a, B>(
        &'a self,
        visit: &mut impl FnMut(&'a Arc<Member>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let intervals = &self.members.tree;
        intervals.visit(0, u64::MAX, &mut |member, _| visit(member))?;
        self.members.list.iter().try_for_each(visit)
    }

    /// How many subscriptions there are.
    pub(super) fn len(&self) -> usize {
        self.members.tree.len() + self.members.list.len() + self.members.tlb_users.len()
    }

    /// The name of one that walks the page table and does not return from a flush. Nothing may
    /// change then: it would have to be told.
    #[inline]
    pub(super) fn overdue_tlb_user(&self) -> Option<&Arc<str>> {
        let mut users = self.members.tlb_users.iter();
        users.find(|user| user.is_overdue()).map(|user| user.name())
    }
}

/// What is applied when the last bracket of a version, and of those before it, is over.
pub(super) enum Deferred {
    /// It joined: from then on its device may look up pages.
    Joined(Arc<Member>, Arc<Common>),
    /// Somebody waits for those brackets.
    Awaited(Fence),
}

impl Deferred {
    fn apply(self) {
        match self {
            Self::Joined(member, common) => member.join(&common),
            Self::Awaited(fence) => {
                fence.signal();
            }
        }
    }
}

/// The time in which a bracket can hold a version or an older one.
pub(super) struct Epoch {
    /// Keeps the next epoch going: it is over only after this one.
    next: OnceLock<Arc<Self>>,
    /// What the change to the next version left to do.
    deferred: OnceLock<Deferred>,
}

impl Epoch {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            next: OnceLock::new(),
            deferred: OnceLock::new(),
        })
    }

    /// The version of this epoch is replaced by that of `next`. Called once.
    pub(super) fn replace(&self, next: &Arc<Self>, deferred: Option<Deferred>) {
        if let Some(deferred) = deferred {
            let is_first = self.deferred.set(deferred).is_ok();
            assert!(is_first, "a version is replaced once");
        }
        let is_first = self.next.set(Arc::clone(next)).is_ok();
        assert!(is_first, "a version is replaced once");
    }
}

impl Drop for Epoch {
    /// Applies what was deferred, here and in the epochs that were kept only by this one: one
    /// after the other, as there may be a million of them.
    fn drop(&mut self) {
        let mut deferred = self.deferred.take();
        let mut next = self.next.take();
        loop {
            if let Some(deferred) = deferred.take() {
                deferred.apply();
            }
            let Some(mut epoch) = next.take().and_then(Arc::into_inner) else {
                break;
            };
            deferred = epoch.deferred.take();
            next = epoch.next.take();
        }
    }
}
