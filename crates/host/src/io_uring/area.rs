//! An attached mapping: the side of the ring that is told when memory changes.

use super::drive::Core;
use super::error::AttachError;
use super::index::{AreaId, SlotNr};
use super::stats::count;
use crate::fork::is_forked_child;
use crate::mapping::HostMapping;
use crate::primary_mmu::HostMmu;
use core::convert::Infallible;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use pinless_mm::addr::{PAGE_SIZE, PageIndex, PageRun, Vaddr};
use pinless_mm::mm_struct::{PinHolder, Vma};
use pinless_mm::mmu_notifier::{
    Blockable, Context, EndContext, Event, Notifier, Range, Ranges, Subscription,
};
use std::sync::Arc;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// The notifier of one mapping.
pub(super) struct AreaShared {
    core: Arc<Core>,
    id: AreaId,
    base: Vaddr,
    nr_pages: u32,
    /// The address space was torn down: nobody will tell of changes any more.
    is_released: AtomicBool,
}

/// An attached mapping, for as long as somebody uses it: the program, or an operation in flight.
///
/// # Invariants
///
/// `vma` is over the pages of `mmu`, so its addresses stay valid while this lives.
pub(super) struct AreaOwner {
    shared: Arc<AreaShared>,
    vma: Arc<Vma>,
    holder: PinHolder,
    #[expect(dead_code, reason = "keeps the memory mapped")]
    mmu: Arc<HostMmu>,
    #[expect(
        dead_code,
        reason = "ends with the area, after its slots were taken back"
    )]
    subscription: Subscription,
}

impl fmt::Debug for AreaOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AreaOwner")
            .field("id", &self.shared.id)
            .field("vma", &self.vma)
            .finish_non_exhaustive()
    }
}

impl AreaOwner {
    /// Attaches `vma`, which is over the pages of `mapping`.
    pub(super) fn attach(
        core: &Arc<Core>,
        mapping: &HostMapping,
        vma: &Arc<Vma>,
    ) -> Result<Self, AttachError> {
        let (base, nr_pages) = (vma.base(), vma.nr_pages());
        let is_same = mapping.as_ptr().addr() as u64 == base.0
            && mapping.len_bytes() == nr_pages as usize * PAGE_SIZE;
        if !is_same {
            return Err(AttachError::NotTheSamePages);
        }
        let shared = Arc::new(AreaShared {
            core: Arc::clone(core),
            id: AreaId(NEXT_ID.fetch_add(1, Ordering::Relaxed)),
            base,
            nr_pages,
            is_released: AtomicBool::new(false),
        });
        let ranges = Ranges::Only(vec![base..vma.address(nr_pages)]);
        let notifiers = vma.mm().notifiers();
        let subscription = notifiers.subscribe(super::NAME, ranges, Arc::clone(&shared));
        // INVARIANT: compared above. Two live mappings never share an address.
        Ok(Self {
            shared,
            vma: Arc::clone(vma),
            holder: vma.mm().pin_holder(super::NAME),
            mmu: mapping.mmu(),
            subscription,
        })
    }

    pub(super) fn id(&self) -> AreaId {
        self.shared.id
    }

    pub(super) fn vma(&self) -> &Arc<Vma> {
        &self.vma
    }

    /// In whose name its operations pin.
    pub(super) fn holder(&self) -> &PinHolder {
        &self.holder
    }

    pub(super) fn is_of(&self, core: &Arc<Core>) -> bool {
        Arc::ptr_eq(&self.shared.core, core)
    }

    pub(super) fn address(&self, page: PageIndex) -> usize {
        self.vma.address(page).0 as usize
    }

    /// Whether nobody may be telling of changes any more.
    pub(super) fn is_gone(&self) -> bool {
        // Relaxed: `release` sets it under the ring's lock, and the caller holds that.
        self.shared.is_released.load(Ordering::Relaxed)
            || self.vma.is_dead()
            || self.vma.mm().is_killed()
    }
}

impl Drop for AreaOwner {
    fn drop(&mut self) {
        if is_forked_child() {
            // What the kernel holds, it holds for the parent.
            return;
        }
        // Before the subscription ends: no operation of the area is in flight, for each of them
        // would keep it, and from here on none of its slots will be used. On another's
        // single-issuer ring the kernel holds the pages a little longer, and moves none of them.
        let shared = &self.shared;
        let mut state = shared.core.state.lock();
        let core = &shared.core;
        core.revoke_overlapping(&mut state, shared.id, shared.all());
    }
}

impl AreaShared {
    fn all(&self) -> PageRun {
        PageRun::new(0, self.nr_pages)
    }

    /// The pages of the mapping that `range` touches.
    fn pages_of(&self, range: &Range) -> Option<PageRun> {
        let page = |address: u64| (address.saturating_sub(self.base.0)) / PAGE_SIZE as u64;
        let first = page(range.start.0).min(u64::from(self.nr_pages));
        let end = page(range.end.0.saturating_add(PAGE_SIZE as u64 - 1));
        let end = end.min(u64::from(self.nr_pages));
        (first < end).then(|| PageRun::new(first as u32, (end - first) as u32))
    }

    /// Takes the slots of `run` back. When this returns `Ok`, the invalidation is noted as open.
    fn revoke<C: Context>(&self, run: PageRun, event: Event, cx: &C) -> Result<(), C::Refusal> {
        let core = &*self.core;
        let mut state = cx.lock(&core.state)?;
        if core.is_used_unpinned(&state, self.id, run, event) {
            cx.would_block()?;
        }
        core.revoke_overlapping(&mut state, self.id, run);
        // Under the same lock as the look at the slots, so that no slot is added in between.
        core.index.lock().open(self.id, run);
        let is_settled = core
            .next_unsettled(&state, self.id, run, event, 0)
            .is_none();
        drop(state);
        if is_settled {
            return Ok(());
        }
        self.settle(run, event, cx)
            .inspect_err(|_| cx.short(&core.index).close(self.id, run))
    }

    /// Has the bracket wait for the slots of `run`. Not under the lock: `settle` may wait itself,
    /// and whoever lets go of a slot needs it.
    fn settle<C: Context>(&self, run: PageRun, event: Event, cx: &C) -> Result<(), C::Refusal> {
        let mut from: SlotNr = 0;
        loop {
            let state = cx.lock(&self.core.state)?;
            let unsettled = self.core.next_unsettled(&state, self.id, run, event, from);
            drop(state);
            let Some((slot, released)) = unsettled else {
                return Ok(());
            };
            cx.settle(&released)?;
            from = slot + 1;
        }
    }
}

impl Notifier for AreaShared {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let Some(run) = self.pages_of(range) else {
            return Ok(());
        };
        if cx.short(&self.core.index).try_open(self.id, run) {
            return Ok(());
        }
        self.revoke(run, range.event, cx)
            .inspect_err(|_| count(&self.core.counters.refusals))
    }

    fn end(&self, range: &Range, cx: &EndContext<'_>) {
        if let Some(run) = self.pages_of(range) {
            cx.short(&self.core.index).close(self.id, run);
        }
    }

    fn release(&self, cx: &Blockable<'_>) {
        let (core, all) = (&*self.core, self.all());
        let locked: Result<_, Infallible> = cx.lock(&core.state);
        let Ok(mut state) = locked;
        // Relaxed: see `AreaOwner::is_gone`.
        self.is_released.store(true, Ordering::Relaxed);
        core.revoke_overlapping(&mut state, self.id, all);
        drop(state);
        let Ok(()) = self.settle(all, Event::Release, cx);
    }
}
