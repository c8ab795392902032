//! Grants: foreign pages that are mapped here, and that their owner wants back.
//!
//! A start waits until nobody does input or output on the pages, unmaps the grant, and tells its
//! owner. It comes back by a new registration only.
//!
//! The first driver that could refuse also refused where it may block, nobody looked at the answer,
//! and the grant stayed in use while its page table entry went (bug 1 of the zoo). That cannot be
//! written here:
//!
//! ```compile_fail,E0308
//! # use pinless_mm::mmu_notifier::{Blockable, Context, WouldBlock};
//! type Refusal = <Blockable<'static> as Context>::Refusal;
//!
//! fn start(_cx: &Blockable<'_>, refused: WouldBlock) -> Result<(), Refusal> {
//!     Err(refused) // in a bracket that may block, there is no value to refuse with
//! }
//! ```
//!
//! Linux counterpart: drivers/xen/gntdev.c

use crate::engine::{
    Counters, GrantTable, Operation, Tracking, fetch_run, ranges_of, run_of, until_done,
};
use crate::{Bug, Bugs, DeviceMemory, DeviceStats, DmaDevice, DmaError};
use lockdep::sync::Fence;
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::mmu_notifier::{Blockable, Context, EndContext, Notifier, Range, Subscription};
use pinless_mm::primary_mmu::Access;
use std::sync::Arc;

/// One open file of grants.
pub struct Gntdev {
    name: Box<str>,
    memory: Arc<dyn DeviceMemory>,
    bugs: Bugs,
    table: GrantTable,
    counters: Counters,
}

impl Notifier for Gntdev {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let Some(run) = run_of(&*self.memory, range) else {
            return Ok(());
        };
        self.counters.answered(self.invalidate(run, cx))
    }

    fn end(&self, range: &Range, cx: &EndContext<'_>) {
        if run_of(&*self.memory, range).is_some() {
            cx.short(&self.table.rounds).end();
        }
    }

    fn release(&self, cx: &Blockable<'_>) {
        let all = PageRun::new(0, self.memory.nr_pages());
        let Ok(mut grants) = cx.lock(&self.table.grants);
        grants.is_over = true;
        grants.unmap(all, Tracking::Pages);
        drop(grants);
        for fence in self.table.busy(all).fences() {
            let Ok(()) = cx.settle(fence);
        }
    }
}

impl Gntdev {
    /// Opens the file and subscribes it.
    pub(crate) fn attach(
        memory: &Arc<dyn DeviceMemory>,
        name: &str,
        bugs: Bugs,
    ) -> (Arc<Self>, Subscription) {
        let device = Arc::new(Self {
            name: name.into(),
            bugs,
            table: GrantTable::new(memory.nr_pages()),
            counters: Counters::default(),
            memory: Arc::clone(memory),
        });
        let ranges = ranges_of(&**memory);
        let listed = memory
            .notifiers()
            .subscribe(name, ranges, Arc::clone(&device));
        (device, listed)
    }

    fn invalidate<C: Context>(&self, run: PageRun, cx: &C) -> Result<(), C::Refusal> {
        // Whoever uses a page marks it under this lock: none is missed, and none comes after.
        let mut grants = cx.lock(&self.table.grants)?;
        let busy = self.table.busy(run);
        if !busy.is_empty() {
            cx.would_block()?;
        }
        let tracking = if self.bugs.has(Bug::SplitUntracked) {
            Tracking::FirstPage
        } else {
            Tracking::Pages
        };
        cx.short(&self.table.rounds).begin(run);
        grants.unmap(run, tracking);
        if self.bugs.has(Bug::WaitsUnderLock) {
            busy.fences().for_each(Fence::wait);
        }
        drop(grants);
        busy.fences().try_for_each(|fence| cx.settle(fence))
    }

    fn transfer(
        &self,
        page: PageIndex,
        offset: usize,
        mut operation: Operation<'_>,
    ) -> Result<(), DmaError> {
        let (at, mark, hung) = until_done(|| {
            let done = Fence::new("devices.gntdev.io");
            self.table.get(page, operation.access(), done)
        })?;
        if let Some(hung) = hung {
            hung.wait();
        }
        let outcome = operation.run(&*self.memory, at, offset);
        drop(mark);
        self.counters.ended(&operation, outcome)
    }

    /// Maps a grant, unless something changed meanwhile.
    fn try_map(&self, run: PageRun) -> Result<bool, DmaError> {
        let sequence = self.table.rounds.lock().sequence();
        self.counters.faults.add();
        let at = fetch_run(&*self.memory, run, Access::Write).map_err(DmaError::Fault)?;
        let mut grants = self.table.grants.lock();
        if grants.is_over {
            return Err(DmaError::Stopped);
        }
        if !self.table.rounds.lock().is_fresh(run, sequence) {
            return Ok(false);
        }
        grants.map(run, &at).map(|()| true)
    }

    fn end_hang(&self) {
        let hung = self.table.grants.lock().hung.take();
        if let Some(hung) = hung {
            hung.signal();
        }
    }

    /// How often owners were told that pages are theirs again.
    pub fn nr_notified(&self) -> u64 {
        self.table.grants.lock().nr_notified
    }
}

impl DmaDevice for Gntdev {
    fn name(&self) -> &str {
        &self.name
    }

    fn register(&self, run: PageRun) -> Result<(), DmaError> {
        until_done(|| {
            let mapped = self.try_map(run)?.then_some(());
            Ok(self.counters.tried(mapped))
        })
    }

    fn unregister(&self, run: PageRun) {
        self.table.grants.lock().unmap(run, Tracking::Pages);
        self.table.busy(run).fences().for_each(Fence::wait);
    }

    fn read(&self, page: PageIndex, offset: usize, into: &mut [u8]) -> Result<(), DmaError> {
        self.transfer(page, offset, Operation::Read(into))
    }

    fn write(&self, page: PageIndex, offset: usize, from: &[u8]) -> Result<(), DmaError> {
        self.transfer(page, offset, Operation::Write(from))
    }

    fn hang(&self, hang: bool) {
        if hang {
            let fence = Fence::new("devices.gntdev.hung");
            self.table.grants.lock().hung.get_or_insert(fence);
        } else {
            self.end_hang();
        }
    }

    fn stats(&self) -> DeviceStats {
        self.counters.snapshot()
    }

    fn holds(&self) -> u32 {
        self.table.grants.lock().tlb.nr_held()
    }

    fn nr_servers(&self) -> u32 {
        0
    }

    fn serve(&self) {}

    fn stop(&self) {
        let all = PageRun::new(0, self.memory.nr_pages());
        let mut grants = self.table.grants.lock();
        grants.is_over = true;
        grants.unmap(all, Tracking::Pages);
        drop(grants);
        self.end_hang();
        self.table.busy(all).fences().for_each(Fence::wait);
    }
}
