//! Buffers of user memory in an older graphics card: a mutex, and no protocol at all.
//!
//! A start locks the buffers it overlaps, waits for their jobs and unbinds them; the next job binds
//! them again. The driver as it shipped looks pages up while a bracket is open and never asks
//! whether what it found is still there: this model does ask, unless [`Bug::NoRetry`] is on.
//!
//! Linux counterpart: drivers/gpu/drm/radeon/radeon_mn.c, version 4.19

use crate::engine::{
    Counters, FenceEngine, Job, Operation, Pending, Resv, Rounds, Ticket, Usage, Userptrs, fetch,
    ranges_of, reserve, run_of, until_done,
};
use crate::{Bug, Bugs, DeviceMemory, DeviceStats, DmaDevice, DmaError};
use core::time::Duration;
use lockdep::sync::{Mutex, ShortLock};
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::gfp::{Gfp, might_alloc};
use pinless_mm::mmu_notifier::{
    Blockable, Context, EndContext, Mode, Notifier, Range, Subscription,
};
use std::sync::Arc;

/// After this long a driver with [`Bug::TimeoutIgnored`] goes on.
const PATIENCE: Duration = Duration::from_millis(1);

/// The card, and its driver.
pub struct Radeon {
    name: Box<str>,
    memory: Arc<dyn DeviceMemory>,
    bugs: Bugs,
    engine: FenceEngine,
    buffers: Mutex<Userptrs>,
    /// Inside of `buffers`, and alone in `end`.
    rounds: ShortLock<Rounds>,
    counters: Counters,
}

impl Notifier for Radeon {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let Some(run) = run_of(&*self.memory, range) else {
            return Ok(());
        };
        self.counters.answered(self.invalidate(run, cx))
    }

    fn end(&self, range: &Range, cx: &EndContext<'_>) {
        if run_of(&*self.memory, range).is_some() {
            cx.short(&self.rounds).end();
        }
    }

    fn release(&self, cx: &Blockable<'_>) {
        let Ok(mut buffers) = cx.lock(&self.buffers);
        buffers.is_over = true;
        let all = buffers.tlb.all();
        buffers.tlb.zap(all);
        let pending = buffers.pending(all);
        drop(buffers);
        let Ok(()) = pending.settle(cx);
    }
}

impl Radeon {
    /// Makes a card and subscribes its driver.
    pub(crate) fn attach(
        memory: &Arc<dyn DeviceMemory>,
        name: &str,
        bugs: Bugs,
    ) -> (Arc<Self>, Subscription) {
        crate::lock_order::prime();
        let device = Arc::new(Self {
            name: name.into(),
            bugs,
            engine: FenceEngine::new(),
            buffers: Mutex::new("devices.radeon.buffers", Userptrs::new(memory.nr_pages())),
            rounds: ShortLock::new("devices.radeon.rounds", Rounds::new()),
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
        let mut buffers = cx.lock(&self.buffers)?;
        let pending = buffers.pending(run);
        if !pending.is_empty() {
            cx.would_block()?;
        }
        cx.short(&self.rounds).begin(run);
        buffers.tlb.zap(run);
        drop(buffers);
        if self.bugs.has(Bug::TimeoutIgnored) && cx.mode() == Mode::Blockable {
            Self::wait_a_little(&pending);
            return Ok(());
        }
        pending.settle(cx)
    }

    /// The fault: whoever gives up waiting may not go on as if the work were over.
    fn wait_a_little(pending: &Pending) {
        for fence in pending.fences() {
            let _ignored = fence.wait_timeout(PATIENCE);
        }
    }

    fn submit(
        &self,
        page: PageIndex,
        offset: usize,
        operation: &Operation<'_>,
    ) -> Result<Job, DmaError> {
        until_done(|| {
            let job = self.try_submit(page, offset, operation)?;
            Ok(self.counters.tried(job))
        })
    }

    fn try_submit(
        &self,
        page: PageIndex,
        offset: usize,
        operation: &Operation<'_>,
    ) -> Result<Option<Job>, DmaError> {
        let buffers = self.buffers.lock();
        let resv = buffers.find(page)?;
        let known = buffers.tlb.get(page, operation.access());
        let sequence = self.rounds.lock().sequence();
        drop(buffers);
        let at = match known {
            Some(at) => at,
            None => {
                self.counters.faults.add();
                fetch(&*self.memory, page, operation.access()).map_err(DmaError::Fault)?
            }
        };
        let job = Job::new(at, offset, operation);
        let ticket = Ticket::begin();
        let reserved = reserve(&resv, &ticket);
        let Ok(slot) = reserved.reserve() else {
            return Ok(None);
        };
        let mut buffers = self.buffers.lock();
        if buffers.is_over {
            return Err(DmaError::Stopped);
        }
        let is_fresh = self.bugs.has(Bug::NoRetry)
            || self.rounds.lock().is_fresh(PageRun::single(page), sequence);
        if !is_fresh || !buffers.is_open(&resv) {
            return Ok(None);
        }
        if !self.engine.submit(&job)? {
            return Ok(None);
        }
        slot.add(job.fence(), Usage::Bookkeep);
        buffers.tlb.install(at);
        Ok(Some(job))
    }

    fn transfer(
        &self,
        page: PageIndex,
        offset: usize,
        operation: Operation<'_>,
    ) -> Result<(), DmaError> {
        let job = self.submit(page, offset, &operation)?;
        job.finish(operation, &self.counters)
    }
}

impl DmaDevice for Radeon {
    fn name(&self) -> &str {
        &self.name
    }

    fn register(&self, run: PageRun) -> Result<(), DmaError> {
        let resv = Arc::new(Resv::new());
        let mut buffers = self.buffers.lock();
        if self.bugs.has(Bug::AllocUnderLock) {
            might_alloc(Gfp::Kernel);
        }
        buffers.add(run, resv)
    }

    fn unregister(&self, run: PageRun) {
        let pending = self.buffers.lock().close(run);
        pending.wait();
        self.buffers.lock().remove(run);
    }

    fn read(&self, page: PageIndex, offset: usize, into: &mut [u8]) -> Result<(), DmaError> {
        self.transfer(page, offset, Operation::Read(into))
    }

    fn write(&self, page: PageIndex, offset: usize, from: &[u8]) -> Result<(), DmaError> {
        self.transfer(page, offset, Operation::Write(from))
    }

    fn wait_idle(&self) {
        self.engine.wait_idle();
    }

    fn hang(&self, hang: bool) {
        self.engine.hang(hang);
    }

    fn stats(&self) -> DeviceStats {
        self.counters.snapshot()
    }

    fn holds(&self) -> u32 {
        self.buffers.lock().tlb.nr_held()
    }

    fn serve(&self) {
        self.engine.serve(&*self.memory, &self.counters);
    }

    fn stop(&self) {
        let mut buffers = self.buffers.lock();
        buffers.is_over = true;
        let all = buffers.tlb.all();
        buffers.tlb.zap(all);
        drop(buffers);
        self.engine.stop();
    }
}
