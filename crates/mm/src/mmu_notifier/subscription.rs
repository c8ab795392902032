//! Who is told: subscriptions, what they match, and the list of them that a bracket holds.
//!
//! A list never changes. A new subscription, or the end of one, publishes a new list, and each
//! bracket keeps the one that it began with: so its ends go to those whose start it called, and
//! the last bracket to drop a list tells whoever waits in [`Subscription::synchronize`].

use super::Notifier;
use super::context::{Blockable, EndContext, NonBlock, WouldBlock};
use super::range::Range;
use super::stats::Counters;
use crate::addr::Vaddr;
use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use lockdep::sync::{Fence, Mutex, ShortLock};
use std::sync::{Arc, Weak};

/// Which changes a subscription is told of. Fixed when it is made.
#[derive(Clone, Debug)]
pub enum Ranges {
    /// All of the address space.
    WholeMm,
    /// Those that overlap one of these; empty ranges match nothing.
    Only(Vec<core::ops::Range<Vaddr>>),
}

impl Ranges {
    /// The same ranges in ascending order, disjoint and not empty, so that one look finds a match.
    fn normalize(self) -> Self {
        let Self::Only(mut ranges) = self else {
            return self;
        };
        ranges.retain(|range| range.start < range.end);
        ranges.sort_by_key(|range| range.start);
        ranges.dedup_by(|next, kept| {
            let is_joined = next.start <= kept.end;
            if is_joined {
                kept.end = kept.end.max(next.end);
            }
            is_joined
        });
        Self::Only(ranges)
    }

    /// Whether a change of `range` concerns these. They are normalized.
    fn matches(&self, range: &Range) -> bool {
        match self {
            Self::WholeMm => true,
            Self::Only(ranges) => {
                let after = ranges.partition_point(|own| own.end <= range.start);
                ranges
                    .get(after)
                    .is_some_and(|own| range.overlaps(own.start, own.end))
            }
        }
    }
}

/// A [`Notifier`] without its generic parameter.
trait Callbacks: Send + Sync {
    fn start_blockable(&self, range: &Range, cx: &Blockable<'_>);
    fn start_nonblock(&self, range: &Range, cx: &NonBlock<'_>) -> Result<(), WouldBlock>;
    fn end(&self, range: &Range, cx: &EndContext<'_>);
    fn release(&self, cx: &Blockable<'_>);
}

impl<N: Notifier> Callbacks for N {
    fn start_blockable(&self, range: &Range, cx: &Blockable<'_>) {
        let Ok(()) = self.start(range, cx);
    }

    fn start_nonblock(&self, range: &Range, cx: &NonBlock<'_>) -> Result<(), WouldBlock> {
        self.start(range, cx)
    }

    fn end(&self, range: &Range, cx: &EndContext<'_>) {
        Notifier::end(self, range, cx);
    }

    fn release(&self, cx: &Blockable<'_>) {
        Notifier::release(self, cx);
    }
}

/// A subscription as the lists hold it.
///
/// The fields drop in order: `unreachable` signals after the last list has let go of `callbacks`.
pub(super) struct Member {
    name: Arc<str>,
    ranges: Ranges,
    callbacks: Arc<dyn Callbacks>,
    #[expect(dead_code, reason = "held for its destructor")]
    unreachable: SignalOnDrop,
}

struct SignalOnDrop(Fence);

impl Drop for SignalOnDrop {
    fn drop(&mut self) {
        self.0.signal();
    }
}

impl Member {
    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn matches(&self, range: &Range) -> bool {
        self.ranges.matches(range)
    }

    pub(super) fn start_blockable(&self, range: &Range, cx: &Blockable<'_>) {
        self.callbacks.start_blockable(range, cx);
    }

    pub(super) fn start_nonblock(
        &self,
        range: &Range,
        cx: &NonBlock<'_>,
    ) -> Result<(), WouldBlock> {
        self.callbacks.start_nonblock(range, cx)
    }

    pub(super) fn end(&self, range: &Range, cx: &EndContext<'_>) {
        self.callbacks.end(range, cx);
    }

    pub(super) fn release(&self, cx: &Blockable<'_>) {
        self.callbacks.release(cx);
    }
}

/// The subscriptions at one moment, newest first.
pub(super) struct List {
    members: Box<[Arc<Member>]>,
    counters: Arc<Counters>,
}

impl List {
    pub(super) fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }
}

/// The published list and those who may replace it.
pub(super) struct Registry {
    /// The length of `current`, for brackets that meet an empty one.
    nr: AtomicUsize,
    /// How many have joined so far.
    nr_joined: AtomicU64,
    current: ShortLock<Arc<List>>,
    counters: Arc<Counters>,
    /// Held to replace the list; says whether the address space was released.
    change: Mutex<Lifetime>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lifetime {
    Live,
    Released,
}

impl Registry {
    pub(super) fn new() -> Arc<Self> {
        let counters = Arc::new(Counters::default());
        let empty = Arc::new(List {
            members: Box::default(),
            counters: Arc::clone(&counters),
        });
        Arc::new(Self {
            nr: AtomicUsize::new(0),
            nr_joined: AtomicU64::new(0),
            current: ShortLock::new("mmu_notifier.list", empty),
            counters,
            change: Mutex::new("mmu_notifier.change", Lifetime::Live),
        })
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        // SeqCst pairs with the SeqCst fence in `publish`: a thread that has marked a page
        // (SeqCst) and then reads zero here comes first, so the new subscriber finds the mark.
        self.nr.load(Ordering::SeqCst) == 0
    }

    /// How many have joined so far.
    #[inline]
    pub(super) fn nr_joined(&self) -> u64 {
        // SeqCst: in one order with the changes of the page words, see `PageTable::load`. A thread
        // that owns a page and then reads this, and a subscriber that joins and then looks at the
        // page, do not miss each other.
        self.nr_joined.load(Ordering::SeqCst)
    }

    /// The list as it is now.
    #[inline]
    pub(super) fn list(&self) -> Arc<List> {
        Arc::clone(&self.current.lock())
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(super) fn subscribe<N: Notifier>(
        self: &Arc<Self>,
        name: &str,
        ranges: Ranges,
        notifier: Arc<N>,
    ) -> Subscription {
        let name: Arc<str> = name.into();
        let unreachable = Fence::new("mmu_notifier.unreachable");
        let member = Arc::new(Member {
            name: Arc::clone(&name),
            ranges: ranges.normalize(),
            callbacks: notifier,
            unreachable: SignalOnDrop(unreachable.clone()),
        });
        let link = Arc::downgrade(&member);
        let lifetime = self.change.lock();
        if *lifetime == Lifetime::Live {
            let older = self.list();
            self.publish(
                core::iter::once(member)
                    .chain(older.members.iter().cloned())
                    .collect(),
            );
            // SeqCst: pairs with `nr_joined`. After the list, so that a bracket which counts this
            // subscriber also calls it.
            self.nr_joined.fetch_add(1, Ordering::SeqCst);
        }
        drop(lifetime);
        Subscription {
            name,
            link,
            unreachable,
            registry: Arc::clone(self),
        }
    }

    fn unlink(&self, link: &Weak<Member>) {
        let change = self.change.lock();
        let list = self.list();
        let is_other = |member: &&Arc<Member>| !core::ptr::eq(Arc::as_ptr(member), link.as_ptr());
        if list.members.iter().all(|member| is_other(&member)) {
            return;
        }
        self.publish(list.members.iter().filter(is_other).cloned().collect());
        // Whatever the old list alone still holds is dropped with no lock held.
        drop(change);
        drop(list);
    }

    /// Nobody joins any more. Returns who is on the list, which stays as it is: as long as pages
    /// are there, whoever may still use them is told. `None` when it was closed before.
    pub(super) fn close(&self) -> Option<Arc<List>> {
        let mut lifetime = self.change.lock();
        let was = core::mem::replace(&mut *lifetime, Lifetime::Released);
        (was == Lifetime::Live).then(|| self.list())
    }

    /// Empties the list.
    pub(super) fn forget_all(&self) {
        let change = self.change.lock();
        let list = self.list();
        self.publish(Box::default());
        // As in `unlink`.
        drop(change);
        drop(list);
    }

    /// Makes `members` the list. The caller holds `change` and a handle to the list before.
    fn publish(&self, members: Box<[Arc<Member>]>) {
        let nr = members.len();
        let list = Arc::new(List {
            members,
            counters: Arc::clone(&self.counters),
        });
        let older = core::mem::replace(&mut *self.current.lock(), list);
        drop(older);
        self.nr.store(nr, Ordering::Relaxed);
        // SeqCst pairs with the SeqCst load in `is_empty`:
        //
        //     bracket                          subscriber
        //     mark the page (SeqCst)           store nr
        //     load nr                          fence
        //                                      look at the page in `fault_range`
        //
        // Either the bracket sees the new length and calls the subscriber, or the subscriber sees
        // the mark. See "Joining late" in the module's head.
        fence(Ordering::SeqCst);
    }
}

/// A place in the list of those who are told; made by [`Notifiers::subscribe`].
///
/// A drop ends the subscription without waiting: brackets that begin later do not call it, those
/// that are open still deliver their `end`, and the last of them lets go of the notifier, which
/// may be dropped there. To reuse what the callbacks use, [`synchronize`](Self::synchronize).
///
/// Before either, the device must have stopped using its translations: nobody will tell it again.
///
/// [`Notifiers::subscribe`]: super::Notifiers::subscribe
#[must_use = "a subscription ends when it is dropped"]
pub struct Subscription {
    name: Arc<str>,
    link: Weak<Member>,
    unreachable: Fence,
    registry: Arc<Registry>,
}

impl Subscription {
    /// The name under which reports speak of the subscriber.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Ends the subscription and waits until no callback of it runs or ever will: until each
    /// bracket is closed that was open now. The notifier has been let go of by then.
    ///
    /// Never call it in a callback, under a lock that a callback takes, or with a bracket open.
    pub fn synchronize(self) {
        let unreachable = self.unreachable.clone();
        drop(self);
        unreachable.wait();
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.registry.unlink(&self.link);
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
