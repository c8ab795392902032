//! Address spaces and their mappings.
//!
//! An [`Mm`] is an address space: it has subscriptions, mappings, charges, and can be killed. A
//! [`Vma`] is one mapping: a range of pages with a state word each, on a [`PrimaryMmu`].
//!
//! One verb a file: [`Mm::map`] in `map`, [`Mm::unmap`] in `unmap`, [`Vma::advise`] in `advise`,
//! faults in `fault`, [`Vma::pin`] in `pin`, [`Mm::pin_holder`] in `pin_holder`, [`Vma::mlock`] in
//! `mlock`, [`Building`] in `building`, device translations in `bus`.
//!
//! Linux counterpart: `struct mm_struct`, `struct vm_area_struct`.

mod advise;
mod building;
mod bus;
mod demand;
mod fault;
mod map;
mod mlock;
mod pin;
mod pin_holder;
mod prefetch;
mod stored;
mod unmap;
mod vma;
mod zap;

pub use advise::{Advice, AdviseError};
pub use building::Building;
pub use map::MapError;
pub use mlock::{Mlock, MlockError};
pub use pin::{Pin, PinError};
pub use pin_holder::{PinHolder, PinnedBy};
pub use unmap::UnmapError;
pub(crate) use vma::Owned;
pub use vma::{Vma, VmaId};
pub(crate) use zap::{Scope, ZapOutcome};

use crate::addr::PageRun;
use crate::event::{Event, Log, Record};
use crate::memcg::Memcg;
use crate::mmu_notifier::{MmId, Mode, Notifiers};
use crate::oom::contained;
use crate::watch::{Callback, Suspect, Watched};
use core::fmt;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use lockdep::sync::RwLock;
use pin_holder::PinHolders;
use std::sync::{Arc, OnceLock};

#[cfg(doc)]
use crate::limits::Limits;
#[cfg(doc)]
use crate::primary_mmu::PrimaryMmu;

/// An address space.
pub struct Mm {
    id: MmId,
    name: Arc<str>,
    memcg: Arc<Memcg>,
    notifiers: Notifiers,
    vmas: RwLock<Vec<Arc<Vma>>>,
    pub(crate) rss: Arc<Rss>,
    pin_holders: PinHolders,
    exited: AtomicBool,
    on_kill: RwLock<Option<Arc<dyn Fn() + Send + Sync>>>,
    on_cancel: RwLock<Option<Arc<dyn Fn() -> bool + Send + Sync>>>,
    was_told: AtomicBool,
    /// Calls of what was set that have not returned in their time.
    nr_overdue: AtomicU32,
    event_log: OnceLock<Arc<Log>>,
}

/// What an address space holds, in pages, and how the OOM killer looks at that. Apart from the
/// rest, so that a choice among thousands reads one cache line of each.
///
/// Linux counterpart: `struct mm_rss_stat`, `oom_score_adj`.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Rss {
    pub(crate) frames: AtomicU64,
    /// Of these, the ones that hold pages of shared mappings.
    pub(super) shmem: AtomicU64,
    /// Of those, the ones that stand by.
    pub(super) shmem_standby: AtomicU64,
    pub(crate) swapped: AtomicU64,
    pub(crate) pins: AtomicU64,
    pub(crate) oom_score_adj: AtomicI32,
    killed: AtomicBool,
}

impl Rss {
    pub(crate) fn is_killed(&self) -> bool {
        // SeqCst: see `PageTable::load`; pairs with `mark_killed`.
        self.killed.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for Mm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mm")
            .field("id", &self.id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Memcg {
    /// A new address space that is charged to this memory cgroup.
    pub fn new_mm(self: &Arc<Self>, name: &str) -> MmHandle {
        let id = MmId(self.next_id());
        let mm = Arc::new(Mm {
            id,
            name: Arc::from(name),
            memcg: Arc::clone(self),
            notifiers: Notifiers::new(id),
            vmas: RwLock::new("mm.vmas", Vec::new()),
            rss: Arc::new(Rss::default()),
            pin_holders: PinHolders::new(),
            exited: AtomicBool::new(false),
            on_kill: RwLock::new("mm.on_kill", None),
            on_cancel: RwLock::new("mm.on_cancel", None),
            was_told: AtomicBool::new(false),
            nr_overdue: AtomicU32::new(0),
            event_log: OnceLock::new(),
        });
        self.add_mm(&mm);
        self.note_born(&mm);
        MmHandle { mm }
    }
}

impl Mm {
    /// Its number.
    pub fn id(&self) -> MmId {
        self.id
    }

    /// Its name, for reports.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Who pays for its memory.
    pub fn memcg(&self) -> &Arc<Memcg> {
        &self.memcg
    }

    /// Its subscriptions.
    pub fn notifiers(&self) -> &Notifiers {
        &self.notifiers
    }

    /// Frames it is charged for: resident and standby.
    pub fn nr_frames(&self) -> u64 {
        self.rss.frames.load(Ordering::Relaxed)
    }

    /// Of these, the ones of shared mappings, and those of them that stand by.
    pub(crate) fn nr_shmem(&self) -> (u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.rss.shmem), load(&self.rss.shmem_standby))
    }

    /// Pages of it that are in the store only.
    pub fn nr_swapped(&self) -> u64 {
        self.rss.swapped.load(Ordering::Relaxed)
    }

    /// Pins on its pages: a page that is pinned twice counts twice. [`Mm::pin_holders`] says whose
    /// they are.
    pub fn nr_pins(&self) -> u64 {
        self.rss.pins.load(Ordering::Relaxed)
    }

    /// Whether the OOM killer chose it: every access ends in an error from then on.
    pub fn is_killed(&self) -> bool {
        self.rss.is_killed()
    }

    /// Marks it killed; false when it was already.
    pub(crate) fn mark_killed(&self) -> bool {
        // SeqCst: pairs with `Rss::is_killed`.
        !self.rss.killed.swap(true, Ordering::SeqCst)
    }

    /// Whether its handle was dropped: it gets no new mappings, and devices no new translations.
    pub fn is_exited(&self) -> bool {
        // SeqCst: see `PageTable::load`; pairs with `mark_exited`.
        self.exited.load(Ordering::SeqCst)
    }

    fn mark_exited(&self) {
        let vmas = self.vmas.write();
        // SeqCst: pairs with `is_exited`.
        self.exited.store(true, Ordering::SeqCst);
        drop(vmas);
    }

    /// The share of the limit, in thousandths, that is added to its badness; -1000 means never
    /// (the kernel's `oom_score_adj`).
    pub fn oom_score_adj(&self) -> i32 {
        self.rss.oom_score_adj.load(Ordering::Relaxed)
    }

    /// Sets [`Mm::oom_score_adj`]; values outside -1000..=1000 are moved to the nearer end.
    pub fn set_oom_score_adj(&self, adj: i32) {
        let adj = adj.clamp(-1000, 1000);
        self.rss.oom_score_adj.store(adj, Ordering::Relaxed);
    }

    /// Sets what is called once when the OOM killer chooses this address space.
    ///
    /// It runs on the thread that found the memory cgroup out of memory: it must not block, touch
    /// managed memory, or allocate any. A panic of it goes nowhere.
    pub fn set_on_kill(&self, on_kill: impl Fn() + Send + Sync + 'static) {
        let older = self.on_kill.write().replace(Arc::new(on_kill));
        // Out of the lock: what is destroyed is not ours.
        drop(older);
    }

    /// Sets what is called before the OOM killer chooses this address space, when nobody has more:
    /// it is asked to give memory back itself, by ending work or by
    /// [`Advice::DontNeed`], and returns whether it is going to. If no
    /// frame came free after [`Limits::cancel_deadline`], it is killed all the same.
    ///
    /// It runs on the reclaim worker: it hands the work to another thread and must not block,
    /// touch managed memory, or allocate any. A panic of it means no, and so does a call that has
    /// not returned in its time ([`Limits::nonblock_budget`]): until it does, it is not called.
    pub fn set_on_cancel(&self, on_cancel: impl Fn() -> bool + Send + Sync + 'static) {
        let older = self.on_cancel.write().replace(Arc::new(on_cancel));
        // As above.
        drop(older);
    }

    /// Has what happens here noted in `log`, from now on and for good. False when there is one
    /// already.
    pub fn set_event_log(&self, log: Arc<Log>) -> bool {
        self.event_log.set(log).is_ok()
    }

    /// Notes what happened, if anybody watches; `event` gets the time now.
    #[inline]
    pub(crate) fn note(&self, event: impl FnOnce(u64) -> Event) {
        if let Some(log) = self.event_log.get() {
            let at_ns = self.memcg.clock.now_ns();
            let (mm, event) = (self.id, event(at_ns));
            log.push(Record { at_ns, mm, event });
        }
    }

    /// Notes a bracket over `run` that the program asked for, and that began at `began_ns`.
    pub(crate) fn note_bracket(&self, run: PageRun, began_ns: u64) {
        self.note(|now_ns| Event::Bracket {
            run,
            mode: Mode::Blockable,
            took_ns: now_ns.saturating_sub(began_ns),
        });
    }

    /// When something began that is going to be noted; zero when nobody watches.
    #[inline]
    pub(crate) fn note_begin(&self) -> u64 {
        let log = self.event_log.get();
        log.map_or(0, |_| self.memcg.clock.now_ns())
    }

    /// Calls what was set, the first time.
    pub(crate) fn call_on_kill(self: &Arc<Self>) {
        // Relaxed: it only chooses who calls.
        if self.was_told.swap(true, Ordering::Relaxed) {
            return;
        }
        // Not under the lock: it may never return.
        let on_kill = self.on_kill.read().clone();
        if let Some(on_kill) = on_kill {
            let _watched = Watched::enter(Callback::OnKill, self);
            let _: Option<()> = contained(&*on_kill);
        }
    }

    /// Calls what was set to ask for memory back; whether it promised any.
    pub(crate) fn call_on_cancel(self: &Arc<Self>) -> bool {
        if self.nr_overdue.load(Ordering::Relaxed) > 0 {
            return false;
        }
        // As above.
        let on_cancel = self.on_cancel.read().clone();
        on_cancel.is_some_and(|on_cancel| {
            let _watched = Watched::enter(Callback::Cancel, self);
            contained(&*on_cancel).unwrap_or(false)
        })
    }

    /// Whether nothing of it is in memory or in a store.
    pub(crate) fn is_back(&self) -> bool {
        self.nr_frames() + self.nr_swapped() == 0
    }

    /// The mapping with the lowest number above `last`. Neither allocates nor waits: an error says
    /// that somebody is changing the list.
    pub(crate) fn try_vma_after(&self, last: VmaId) -> Result<Option<Arc<Vma>>, Busy> {
        let vmas = self.vmas.try_read().ok_or(Busy)?;
        let after = vmas.iter().filter(|vma| vma.id() > last);
        Ok(after.min_by_key(|vma| vma.id()).cloned())
    }

    /// Whether its memory is another process's, that of whom this one was forked from: then there
    /// is nothing to give back, and a lock may be held by a thread that is not there.
    fn is_elsewhere(&self) -> bool {
        let vmas = self.vmas.try_read();
        vmas.is_some_and(|vmas| vmas.iter().any(|vma| vma.primary().is_elsewhere()))
    }

    /// The mappings, oldest first.
    pub fn vmas(&self) -> Vec<Arc<Vma>> {
        self.vmas.read().clone()
    }
}

/// What is called when it is killed comes once; what comes more often is kept from while it is
/// overdue.
impl Suspect for Mm {
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

/// A lock is held by somebody else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Busy;

/// Owns an address space: its drop tears it down.
///
/// Pages that are pinned stay charged until they are let go. When a device does not answer in
/// time, everything stays until it does; then the settle worker goes on. Otherwise all is free
/// when the drop returns.
#[derive(Debug)]
pub struct MmHandle {
    mm: Arc<Mm>,
}

impl MmHandle {
    /// The address space, shared.
    pub fn share(&self) -> Arc<Mm> {
        Arc::clone(&self.mm)
    }
}

impl Deref for MmHandle {
    type Target = Arc<Mm>;

    fn deref(&self) -> &Arc<Mm> {
        &self.mm
    }
}

impl Drop for MmHandle {
    fn drop(&mut self) {
        if !self.mm.is_elsewhere() {
            self.mm.exit();
        }
    }
}
