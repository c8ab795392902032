//! The published version, where brackets find it, and how it is replaced.

use super::Notifier;
use super::callback::{self, place, running};
use super::hooks::{TlbMember, TlbUser};
use super::member::{Member, Place, Target};
use super::misuse::{Misuse, Misuses};
use super::range::{Event, Mode};
use super::stats::{Counters, Inject, Starts, add_one};
use super::version::{Common, Deferred, Epoch, Members, Version};
use super::wait::Waits;
use crate::gfp::{Gfp, might_alloc, might_notify};
use crate::lock_order;
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use lockdep::scheduler::is_scheduled;
use lockdep::sync::{Fence, Mutex, ShortLock};
use std::sync::Arc;

/// Places where brackets find the version. Threads that begin brackets at the same time mostly use
/// different ones, and so do not wait for each other's cache lines.
const NR_SHARDS: usize = 8;

/// Threads whose stacks are this far apart use different shards.
const STACK_BITS: u32 = 21;

/// A version as the brackets of one shard hold it.
pub(super) struct Handle {
    version: Arc<Version>,
    #[expect(
        dead_code,
        reason = "keeps the counts of two handles on different cache lines"
    )]
    apart: Apart,
}

/// With the counts in front of a [`Handle`], two cache lines; an alignment would do it too, but is
/// what an allocator is slow at, and each change of the subscriptions makes one for each shard.
type Apart = [u64; 13];

impl Handle {
    fn new(version: &Arc<Version>) -> Arc<Self> {
        Arc::new(Self {
            version: Arc::clone(version),
            apart: Apart::default(),
        })
    }

    #[inline]
    pub(super) fn version(&self) -> &Version {
        &self.version
    }
}

#[repr(align(128))]
struct Shard {
    current: ShortLock<Current>,
}

struct Current {
    handle: Arc<Handle>,
    starts: Starts,
}

/// What one version was replaced by; dropped with no lock held, as members may go with it.
struct Replaced {
    #[expect(dead_code, reason = "held for its destructor")]
    handles: [Arc<Handle>; NR_SHARDS],
    #[expect(dead_code, reason = "held for its destructor")]
    version: Arc<Version>,
}

/// Whoever holds it may replace the version.
struct Writer {
    lifetime: Lifetime,
    version: Arc<Version>,
    next_id: u64,
    /// What has to signal before the address space may go.
    owed: Vec<Owed>,
    /// Somebody did not come through its release, or not yet: it is told of changes to the end.
    is_broken: bool,
}

/// A fence that a device settled when it was released.
#[derive(Clone)]
pub(super) struct Owed {
    /// The name of the subscription.
    pub(super) holder: Arc<str>,
    pub(super) fence: Fence,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lifetime {
    Live,
    Released,
}

/// The subscriptions of one address space.
pub(super) struct Registry {
    /// How many there are, for brackets that meet none.
    nr: AtomicUsize,
    /// How many have joined so far.
    nr_joined: AtomicU64,
    /// How many walk the page table.
    nr_tlb_users: AtomicUsize,
    common: Arc<Common>,
    shards: [Shard; NR_SHARDS],
    writer: Mutex<Writer>,
}

impl Registry {
    pub(super) fn new() -> Arc<Self> {
        lock_order::ORDER.prime();
        let common = Arc::new(Common {
            counters: Counters::default(),
            waits: Waits::new(),
            misuses: Misuses::new(),
        });
        let version = Arc::new(Version {
            members: Members::nobody(),
            common: Arc::clone(&common),
            epoch: Epoch::new(),
        });
        let shard = |_| Shard {
            current: ShortLock::new(
                "mmu_notifier.current",
                Current {
                    handle: Handle::new(&version),
                    starts: Starts::default(),
                },
            ),
        };
        Arc::new(Self {
            nr: AtomicUsize::new(0),
            nr_joined: AtomicU64::new(0),
            nr_tlb_users: AtomicUsize::new(0),
            common,
            shards: core::array::from_fn(shard),
            writer: Mutex::new(
                "mmu_notifier.change",
                Writer {
                    lifetime: Lifetime::Live,
                    version,
                    next_id: 0,
                    owed: Vec::new(),
                    is_broken: false,
                },
            ),
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

    /// The version as it is now, for a bracket that is counted.
    #[inline(always)]
    pub(super) fn begin(&self, event: Event, mode: Mode) -> Arc<Handle> {
        let mut current = self.shard().current.lock();
        current.starts.count(event, mode);
        Arc::clone(&current.handle)
    }

    /// The version as it is now.
    pub(super) fn look(&self) -> Arc<Handle> {
        Arc::clone(&self.shard().current.lock().handle)
    }

    /// The shard of the calling thread: by where its stack is, which costs nothing to find out.
    /// Nothing but speed hangs on it; under a scheduler it is always the first.
    #[inline]
    fn shard(&self) -> &Shard {
        if is_scheduled() {
            return &self.shards[0];
        }
        let on_stack = 0_u8;
        let at = core::ptr::from_ref(&on_stack).addr() >> STACK_BITS;
        &self.shards[at % NR_SHARDS]
    }

    pub(super) fn common(&self) -> &Arc<Common> {
        &self.common
    }

    /// Brackets that began while anybody was subscribed.
    pub(super) fn starts(&self) -> Starts {
        let mut sum = Starts::default();
        for shard in &self.shards {
            sum += shard.current.lock().starts;
        }
        sum
    }

    /// Makes a member, and tells it of brackets that begin from now on.
    ///
    /// # Errors
    ///
    /// The place that it would have had, if the address space was released: then there is nothing
    /// to be told of.
    pub(super) fn join<N: Notifier>(
        &self,
        name: &Arc<str>,
        target: Target,
        notifier: Arc<N>,
    ) -> Result<Arc<Member>, Place> {
        might_alloc(Gfp::Kernel);
        let mut writer = self.writer.lock();
        let id = writer.next_id;
        writer.next_id += 1;
        let member = Arc::new(Member::new(name, id, target, notifier));
        if writer.lifetime == Lifetime::Released {
            return Err(member.place());
        }
        let mut members = writer.version.members.clone();
        let mut deferred = None;
        match member.place() {
            Place::Interval(..) => {
                members.tree.insert(Arc::clone(&member));
                deferred = self.defer(&member);
            }
            Place::List(_) => {
                let older = members.list.into_iter();
                members.list = core::iter::once(Arc::clone(&member)).chain(older).collect();
            }
        }
        let replaced = self.publish(&mut writer, members, deferred);
        // SeqCst: pairs with `nr_joined`. After the version, so that a bracket which counts this
        // subscriber also calls it.
        self.nr_joined.fetch_add(1, Ordering::SeqCst);
        drop(writer);
        drop(replaced);
        Ok(member)
    }

    /// The device of an interval may look up pages when the brackets are over that do not know it.
    fn defer(&self, member: &Arc<Member>) -> Option<Deferred> {
        if self.common.counters.injected() == Inject::ForgetDeferred {
            member.join(&self.common);
            return None;
        }
        Some(Deferred::Joined(
            Arc::clone(member),
            Arc::clone(&self.common),
        ))
    }

    /// Takes out who is at `place`; nothing if nobody is. Brackets that are open keep it.
    pub(super) fn leave(&self, place: Place) {
        let mut writer = self.writer.lock();
        let mut members = writer.version.members.clone();
        match place {
            Place::Interval(key, _) => {
                if members.tree.remove(key).is_none() {
                    return;
                }
            }
            Place::List(_) => {
                let older = members.list.into_iter();
                members.list = older.filter(|other| other.place() != place).collect();
                if members.list.len() == writer.version.members.list.len() {
                    return;
                }
            }
        }
        let replaced = self.publish(&mut writer, members, None);
        drop(writer);
        drop(replaced);
    }

    #[inline]
    pub(super) fn has_tlb_users(&self) -> bool {
        // SeqCst: as in `is_empty`.
        self.nr_tlb_users.load(Ordering::SeqCst) > 0
    }

    /// Tells `user` of flushes from now on; returns its number.
    pub(super) fn join_tlb(&self, name: &str, user: Arc<dyn TlbUser>) -> u64 {
        might_alloc(Gfp::Kernel);
        let mut writer = self.writer.lock();
        let id = writer.next_id;
        writer.next_id += 1;
        let mut members = writer.version.members.clone();
        let older = members.tlb_users.into_iter();
        let member = Arc::new(TlbMember::new(id, name, user));
        members.tlb_users = core::iter::once(member).chain(older).collect();
        let replaced = self.publish(&mut writer, members, None);
        drop(writer);
        drop(replaced);
        id
    }

    /// Tells the user with this number of nothing more.
    pub(super) fn leave_tlb(&self, id: u64) {
        let mut writer = self.writer.lock();
        let mut members = writer.version.members.clone();
        let older = members.tlb_users.into_iter();
        members.tlb_users = older.filter(|other| other.id() != id).collect();
        let replaced = self.publish(&mut writer, members, None);
        drop(writer);
        drop(replaced);
    }

    /// Reports a misuse by the callback that the calling thread runs.
    #[cold]
    pub(super) fn report(&self, misuse: Misuse) {
        let Some(running) = running() else { return };
        let handle = self.look();
        let found = handle.version().visit_all(&mut |member| {
            if place::<Member>(member) == running.whose {
                ControlFlow::Break(Arc::clone(member.name()))
            } else {
                ControlFlow::Continue(())
            }
        });
        let mut walkers = handle.version().members.tlb_users.iter();
        let is_running = |user: &&Arc<TlbMember>| place::<TlbMember>(user) == running.whose;
        let name = found
            .break_value()
            .or_else(|| walkers.find(is_running).map(|user| Arc::clone(user.name())));
        if let Some(name) = name {
            return self.common.misuse(misuse, &name);
        }
        // One that has left, or of another address space: who called it knows its name.
        add_one(&self.common.counters.misuses);
        if !callback::owe(misuse, &self.common) {
            self.common.misuses.tell(misuse, &"?".into());
        }
    }

    /// Waits until every bracket is closed that is open now. In a callback it cannot, as that is
    /// part of one: it reports that instead.
    pub(super) fn synchronize(&self) {
        if running().is_some() {
            return self.report(Misuse::WaitInCallback);
        }
        // Whoever is waited for may be in a callback.
        might_notify();
        let over = Fence::new("mmu_notifier.unreachable");
        let mut writer = self.writer.lock();
        let members = writer.version.members.clone();
        let deferred = Deferred::Awaited(over.clone());
        let replaced = self.publish(&mut writer, members, Some(deferred));
        drop(writer);
        drop(replaced);
        over.wait();
    }

    /// Nobody joins any more. Returns who is subscribed, which stays as it is: as long as pages
    /// are there, whoever may still use them is told. `None` when it was closed before.
    pub(super) fn close(&self) -> Option<Arc<Handle>> {
        let mut writer = self.writer.lock();
        let was = core::mem::replace(&mut writer.lifetime, Lifetime::Released);
        // Until all have come through: see `owe`.
        writer.is_broken |= was == Lifetime::Live;
        drop(writer);
        (was == Lifetime::Live).then(|| self.look())
    }

    /// Keeps what devices settled when they were released, and whether one of them panicked.
    pub(super) fn owe(&self, owed: Vec<Owed>, is_broken: bool) {
        let mut writer = self.writer.lock();
        (writer.owed, writer.is_broken) = (owed, is_broken);
    }

    /// Whether all came through their release.
    pub(super) fn is_whole(&self) -> bool {
        !self.writer.lock().is_broken
    }

    /// What of that has not signalled yet.
    pub(super) fn owed(&self) -> Vec<Owed> {
        let mut writer = self.writer.lock();
        writer.owed.retain(|owed| !owed.fence.is_signalled());
        writer.owed.clone()
    }

    /// Takes out everybody who was released. Who walks the page table is told until nothing is
    /// left there.
    pub(super) fn forget_all(&self) {
        let mut writer = self.writer.lock();
        let members = Members {
            tlb_users: writer.version.members.tlb_users.clone(),
            ..Members::nobody()
        };
        let replaced = self.publish(&mut writer, members, None);
        drop(writer);
        drop(replaced);
    }

    /// Replaces the version. The caller drops what it is given after `writer`.
    fn publish(
        &self,
        writer: &mut Writer,
        members: Members,
        deferred: Option<Deferred>,
    ) -> Replaced {
        let epoch = Epoch::new();
        writer.version.epoch.replace(&epoch, deferred);
        let version = Arc::new(Version {
            members,
            common: Arc::clone(&self.common),
            epoch,
        });
        let nr = version.len();
        let nr_tlb_users = version.members.tlb_users.len();
        let mut handles = core::array::from_fn(|_| Handle::new(&version));
        for (shard, handle) in self.shards.iter().zip(&mut handles) {
            core::mem::swap(&mut shard.current.lock().handle, handle);
        }
        let version = core::mem::replace(&mut writer.version, version);
        self.nr.store(nr, Ordering::Relaxed);
        self.nr_tlb_users.store(nr_tlb_users, Ordering::Relaxed);
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
        Replaced { handles, version }
    }
}
