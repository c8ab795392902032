//! Questions and flushes outside of brackets: whether devices use pages, and users of the page
//! table itself.
//!
//! Linux counterpart: mmu_notifier_clear_flush_young(), mmu_notifier_test_young() and
//! mmu_notifier_arch_invalidate_secondary_tlbs()

use super::bracket::{contain, contain_member};
use super::context::EndContext;
use super::member::Member;
use super::notifiers::Notifiers;
use super::range::{Event, Mode, Range};
use super::registry::Registry;
use crate::addr::Vaddr;
use crate::gfp::Notifying;
use crate::watch::{Callback, Suspect, Watched};
use core::fmt;
use core::marker::PhantomData;
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU32, Ordering};
use lockdep::sync::{ShortGuard, ShortLock};
use std::sync::Arc;

/// A device that has no translations of its own but caches those of the program: it walks the
/// page table of the address space.
///
/// It needs no bracket. It is told where an entry of the table was changed, by whoever holds that
/// entry, and so may do next to nothing: no sleep, no allocation, no page.
///
/// ```
/// use core::sync::atomic::{AtomicU64, Ordering};
/// use mm::mmu_notifier::{Range, TlbContext, TlbUser};
/// # use pinless_mm as mm;
///
/// struct Iommu {
///     flushed: AtomicU64,
/// }
///
/// impl TlbUser for Iommu {
///     fn flush(&self, range: &Range, _cx: &TlbContext<'_>) {
///         self.flushed.fetch_add(range.pages(), Ordering::Relaxed);
///     }
/// }
/// ```
///
/// There is nothing in the context that could wait:
///
/// ```compile_fail,E0599
/// # use lockdep::sync::Mutex;
/// # use pinless_mm::mmu_notifier::TlbContext;
/// fn take(table: &Mutex<u32>, cx: &TlbContext<'_>) {
///     cx.lock(table);
/// }
/// ```
///
/// And it has no start: who keeps translations of its own is a [`Notifier`](super::Notifier), and
/// no subscription is both.
pub trait TlbUser: Send + Sync + 'static {
    /// Forget what was cached of `range`, before returning.
    ///
    /// While one does not return, the pages of `range` stay where they are, and nothing of its
    /// address space is changed: each bracket is refused in its name.
    fn flush(&self, range: &Range, cx: &TlbContext<'_>);
}

/// A [`TlbUser`], as long as a flush can reach it.
pub(super) struct TlbMember {
    id: u64,
    name: Arc<str>,
    user: Arc<dyn TlbUser>,
    /// Flushes that have not returned in their time.
    nr_overdue: AtomicU32,
}

impl TlbMember {
    pub(super) fn new(id: u64, name: &str, user: Arc<dyn TlbUser>) -> Self {
        Self {
            id,
            name: Arc::from(name),
            user,
            nr_overdue: AtomicU32::new(0),
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether a flush has not returned in its time.
    pub(super) fn is_overdue(&self) -> bool {
        self.nr_overdue.load(Ordering::Relaxed) > 0
    }
}

impl Suspect for TlbMember {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn convict(&self) {
        self.nr_overdue.fetch_add(1, Ordering::Relaxed);
    }

    fn acquit(&self) {
        self.nr_overdue.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The context of [`TlbUser::flush`]: short locks only.
pub struct TlbContext<'a> {
    /// Binds the context to the call that made it.
    call: PhantomData<&'a ()>,
}

impl TlbContext<'_> {
    /// Takes a short lock.
    pub fn short<'a, T>(&self, lock: &'a ShortLock<T>) -> ShortGuard<'a, T> {
        lock.lock()
    }
}

/// A place among the [`TlbUser`]s; a drop ends it, and [`synchronize`](Self::synchronize) also
/// waits for flushes that run.
#[must_use = "a subscription ends when it is dropped"]
pub struct TlbSubscription {
    id: u64,
    registry: Arc<Registry>,
}

impl TlbSubscription {
    /// Ends the subscription and waits until no flush of it runs or ever will. Never call it in a
    /// callback or with a bracket open.
    pub fn synchronize(self) {
        let registry = Arc::clone(&self.registry);
        drop(self);
        registry.synchronize();
    }
}

impl Drop for TlbSubscription {
    fn drop(&mut self) {
        self.registry.leave_tlb(self.id);
    }
}

impl fmt::Debug for TlbSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlbSubscription")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Notifiers {
    /// Tells `user` where entries of the page table are changed, from now on; `name` is for
    /// reports. Allocates.
    pub fn subscribe_tlb(&self, name: &str, user: Arc<dyn TlbUser>) -> TlbSubscription {
        TlbSubscription {
            id: self.registry().join_tlb(name, user),
            registry: Arc::clone(self.registry()),
        }
    }

    /// Whether any device has used a page of `start..end` since it was last asked. All are asked
    /// and forget it, and each makes sure that it notices the next use. Never sleeps.
    ///
    /// # Panics
    ///
    /// If the range is empty.
    pub fn age(&self, start: Vaddr, end: Vaddr) -> bool {
        self.ask_all(start, end, |member, range, cx| {
            member.callbacks().age(range, cx)
        })
    }

    /// Whether any device has used a page of `start..end` since it was last asked. All are asked
    /// and forget it; later answers may be too low. Never sleeps.
    ///
    /// # Panics
    ///
    /// If the range is empty.
    pub fn clear_young(&self, start: Vaddr, end: Vaddr) -> bool {
        self.ask_all(start, end, |member, range, cx| {
            member.callbacks().clear_young(range, cx)
        })
    }

    /// Whether any device has used a page of `start..end` since it was last asked. Asks until the
    /// first that has; nobody forgets it. Never sleeps.
    ///
    /// # Panics
    ///
    /// If the range is empty.
    pub fn test_young(&self, start: Vaddr, end: Vaddr) -> bool {
        let is_first_enough = |is_young| is_young;
        self.ask(start, end, is_first_enough, |member, range, cx| {
            member.callbacks().test_young(range, cx)
        })
    }

    /// Tells those who walk the page table that entries of `start..end` were changed. The caller
    /// owns these pages. Never sleeps, allocates nothing.
    ///
    /// # Panics
    ///
    /// If the range is empty.
    #[inline]
    pub fn flush_tlb_users(&self, start: Vaddr, end: Vaddr, event: Event) {
        let range = self.range(start, end, event, Mode::NonBlock, None);
        if !self.registry().has_tlb_users() {
            return;
        }
        let handle = self.registry().look();
        let cx = TlbContext { call: PhantomData };
        let common = &handle.version().common;
        for member in &handle.version().members.tlb_users {
            let _watched = Watched::enter(Callback::FlushTlb, member);
            let _: Option<()> = contain(common, Mode::NonBlock, &**member, || {
                Notifying::nonblock(member.name(), || member.user.flush(&range, &cx));
            });
        }
    }

    /// Whether one that walks the page table does not return from a flush: nothing of it may be
    /// changed then.
    pub(crate) fn has_overdue_tlb_user(&self) -> bool {
        self.registry().has_tlb_users()
            && (self.registry().look().version())
                .overdue_tlb_user()
                .is_some()
    }

    fn ask_all(
        &self,
        start: Vaddr,
        end: Vaddr,
        call: impl Fn(&Member, &Range, &EndContext<'_>) -> bool,
    ) -> bool {
        self.ask(start, end, |_| false, call)
    }

    fn ask(
        &self,
        start: Vaddr,
        end: Vaddr,
        is_enough: impl Fn(bool) -> bool,
        call: impl Fn(&Member, &Range, &EndContext<'_>) -> bool,
    ) -> bool {
        let range = self.range(start, end, Event::Clear, Mode::NonBlock, None);
        if self.is_empty() {
            return false;
        }
        let handle = self.registry().look();
        let common = &handle.version().common;
        let cx = EndContext::new();
        let mut is_young = false;
        let _: ControlFlow<()> = handle.version().visit(&range, |member: &Arc<Member>| {
            if member.is_overdue() {
                return ControlFlow::Continue(());
            }
            let answer = contain_member(common, Mode::NonBlock, Callback::Young, member, || {
                Notifying::nonblock(member.name(), || call(member, &range, &cx))
            });
            is_young |= answer.unwrap_or(false);
            if is_enough(is_young) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        is_young
    }
}
