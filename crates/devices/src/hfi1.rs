//! A network card with two caches of pinned pages: buffers that it sends from, and buffers that
//! its peers write into.
//!
//! A start takes the pages of its range out of the caches and nothing else; transfers that use them
//! go on in the old frames, which stay pinned; a worker unpins after the last of them. New
//! transfers find nothing and pin what is there now.
//!
//! Linux counterpart: drivers/infiniband/hw/hfi1/mmu_rb.c and user_exp_rcv.c

use crate::engine::{
    Counters, Doom, Doorbell, Insert, Next, Operation, PinCache, ranges_of, run_of, until_done,
};
use crate::{Bug, Bugs, DeviceMemory, DeviceStats, DmaDevice, DmaError};
use core::sync::atomic::{AtomicBool, Ordering};
use lockdep::sync::{Fence, Mutex, spin_wait};
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::mmu_notifier::{Blockable, Context, EndContext, Notifier, Range, Subscription};
use std::sync::Arc;

/// The card, and its driver.
pub struct Hfi1 {
    name: Box<str>,
    memory: Arc<dyn DeviceMemory>,
    bugs: Bugs,
    /// Buffers that the card sends from.
    sdma: PinCache,
    /// Entries of the card's array of receive buffers.
    tids: PinCache,
    worker: Doorbell,
    hung: Mutex<Option<Fence>>,
    is_over: AtomicBool,
    counters: Counters,
}

impl Notifier for Hfi1 {
    fn start<C: Context>(&self, range: &Range, _cx: &C) -> Result<(), C::Refusal> {
        let Some(run) = run_of(&*self.memory, range) else {
            return Ok(());
        };
        let sdma = if self.bugs.has(Bug::BusyStaysInTree) {
            Doom::Idle
        } else {
            Doom::All
        };
        let tids = if self.bugs.has(Bug::HardwareEntryKept) {
            Doom::None
        } else {
            Doom::All
        };
        let is_doomed = [self.sdma.begin(run, sdma), self.tids.begin(run, tids)];
        if is_doomed.contains(&true) {
            self.worker.ring();
        }
        self.counters.answered(Ok(()))
    }

    fn end(&self, range: &Range, _cx: &EndContext<'_>) {
        if run_of(&*self.memory, range).is_some() {
            self.sdma.end();
            self.tids.end();
        }
    }

    fn release(&self, _cx: &Blockable<'_>) {
        self.sdma.close();
        self.tids.close();
        self.worker.ring();
    }
}

impl Hfi1 {
    /// Makes a card and subscribes its driver.
    pub(crate) fn attach(
        memory: &Arc<dyn DeviceMemory>,
        name: &str,
        bugs: Bugs,
    ) -> (Arc<Self>, Subscription) {
        let limit = (memory.nr_pages() / 2).max(4);
        let device = Arc::new(Self {
            name: name.into(),
            bugs,
            sdma: PinCache::new(name, limit),
            tids: PinCache::new(name, limit),
            worker: Doorbell::new(),
            hung: Mutex::new("devices.hfi1.hung", None),
            is_over: AtomicBool::new(false),
            counters: Counters::default(),
            memory: Arc::clone(memory),
        });
        let ranges = ranges_of(&**memory);
        let listed = memory
            .notifiers()
            .subscribe(name, ranges, Arc::clone(&device));
        (device, listed)
    }

    fn transfer(
        &self,
        cache: &PinCache,
        page: PageIndex,
        offset: usize,
        mut operation: Operation<'_>,
    ) -> Result<(), DmaError> {
        let insert = if self.bugs.has(Bug::InsertUnchecked) {
            Insert::Unchecked
        } else {
            Insert::Checked
        };
        let (run, access) = (PageRun::single(page), operation.access());
        let using = until_done(|| cache.get(&self.memory, run, access, insert, &self.counters))?;
        // A packet that hangs keeps its pages.
        let hung = self.hung.lock().clone();
        if let Some(hung) = hung {
            hung.wait();
        }
        let outcome = operation.run(&*self.memory, using.at(page), offset);
        drop(using);
        self.worker.ring();
        self.counters.ended(&operation, outcome)
    }

    fn reap(&self) -> Next {
        if self.sdma.reap_one() || self.tids.reap_one() {
            return Next::Step;
        }
        // Relaxed: the bell that rings after it was set orders it.
        if self.is_over.load(Ordering::Relaxed) {
            Next::End
        } else {
            Next::Sleep
        }
    }

    fn end_hang(&self) {
        let hung = self.hung.lock().take();
        if let Some(hung) = hung {
            hung.signal();
        }
    }
}

impl DmaDevice for Hfi1 {
    fn name(&self) -> &str {
        &self.name
    }

    fn unregister(&self, run: PageRun) {
        self.sdma.forget(run);
        self.tids.forget(run);
        self.worker.ring();
    }

    fn read(&self, page: PageIndex, offset: usize, into: &mut [u8]) -> Result<(), DmaError> {
        self.transfer(&self.sdma, page, offset, Operation::Read(into))
    }

    fn write(&self, page: PageIndex, offset: usize, from: &[u8]) -> Result<(), DmaError> {
        self.transfer(&self.tids, page, offset, Operation::Write(from))
    }

    fn wait_idle(&self) {
        self.sdma.reap_all();
        self.tids.reap_all();
    }

    fn hang(&self, hang: bool) {
        if hang {
            let fence = Fence::new("devices.hfi1.packet");
            self.hung.lock().get_or_insert(fence);
        } else {
            self.end_hang();
        }
    }

    fn stats(&self) -> DeviceStats {
        let mut stats = self.counters.snapshot();
        for cache in [&self.sdma, &self.tids] {
            let (pinned, doomed) = cache.nr_pinned();
            stats.pinned += u64::from(pinned);
            stats.doomed += u64::from(doomed);
        }
        stats
    }

    fn holds(&self) -> u32 {
        self.sdma.nr_live() + self.tids.nr_live()
    }

    fn serve(&self) {
        self.worker.serve(|| self.reap());
    }

    fn stop(&self) {
        self.sdma.close();
        self.tids.close();
        self.end_hang();
        // The last transfers may still be letting go of their pages, and then nobody unpins them.
        spin_wait("devices.pin_cache.reaped", 0, || {
            self.wait_idle();
            self.stats().pinned == 0
        });
        self.is_over.store(true, Ordering::Relaxed);
        self.worker.ring();
    }
}
