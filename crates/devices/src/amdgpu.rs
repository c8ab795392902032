//! Buffers of user memory in a graphics card, as they are now: each buffer is told of its own
//! interval, and one lock of the device stands around the check and the submission.
//!
//! A start waits for all jobs of the buffer, whatever they do with it; a submission looks pages up,
//! takes the lock, and asks whether the interval has changed meanwhile.
//!
//! Linux counterpart: drivers/gpu/drm/amd/amdgpu/amdgpu_hmm.c

use crate::engine::{
    Counters, FenceEngine, Job, Operation, Pending, Registrations, Resv, Ticket, Tlb, Usage, fetch,
    interval_of, reserve, run_of, until_done,
};
use crate::{Bug, Bugs, DeviceMemory, DeviceStats, DmaDevice, DmaError};
use lockdep::sync::Mutex;
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::mmu_notifier::{
    Blockable, Context, IntervalNotifier, IntervalSubscription, Notifier, Range,
};
use std::sync::Arc;

/// The card, and its driver.
pub struct Amdgpu {
    shared: Arc<Shared>,
    buffers: Registrations<Buffer>,
}

/// What the buffers of one card have in common.
struct Shared {
    name: Box<str>,
    memory: Arc<dyn DeviceMemory>,
    bugs: Bugs,
    engine: FenceEngine,
    /// The one lock of the device: what the hardware was told.
    table: Mutex<Table>,
    counters: Counters,
}

/// What the device's lock guards.
struct Table {
    tlb: Tlb,
    is_over: bool,
}

/// A buffer of user memory, and who is told when it changes.
struct Buffer {
    shared: Arc<Shared>,
    run: PageRun,
    resv: Resv,
}

impl Notifier for Buffer {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let shared = &*self.shared;
        let Some(run) = run_of(&*shared.memory, range) else {
            return Ok(());
        };
        shared.counters.answered(self.invalidate(run, cx))
    }

    fn release(&self, cx: &Blockable<'_>) {
        let Ok(mut table) = cx.lock(&self.shared.table);
        table.is_over = true;
        table.tlb.zap(self.run);
        drop(table);
        let Ok(()) = self.pending().settle(cx);
    }
}

impl IntervalNotifier for Buffer {
    type Lock = Mutex<Table>;

    fn lock(&self) -> &Self::Lock {
        &self.shared.table
    }
}

impl Buffer {
    fn invalidate<C: Context>(&self, run: PageRun, cx: &C) -> Result<(), C::Refusal> {
        if self.shared.bugs.has(Bug::RangeBlind) {
            cx.would_block()?;
        }
        let mut table = cx.lock(&self.shared.table)?;
        if self.resv.is_busy(Usage::Bookkeep) {
            cx.would_block()?;
        }
        table.tlb.zap(run);
        // Under the lock, so that each job that was submitted before is among them.
        let pending = self.pending();
        drop(table);
        pending.settle(cx)
    }

    fn pending(&self) -> Pending {
        let mut pending = Pending::new();
        self.resv
            .for_each_pending(Usage::Bookkeep, |fence| pending.add(fence));
        pending
    }
}

impl Amdgpu {
    /// Makes a card, which subscribes each buffer by itself.
    pub(crate) fn attach(memory: &Arc<dyn DeviceMemory>, name: &str, bugs: Bugs) -> Arc<Self> {
        crate::lock_order::prime();
        let table = Table {
            tlb: Tlb::new(memory.nr_pages()),
            is_over: false,
        };
        let shared = Arc::new(Shared {
            name: name.into(),
            memory: Arc::clone(memory),
            bugs,
            engine: FenceEngine::new(),
            table: Mutex::new("devices.amdgpu.notifier", table),
            counters: Counters::default(),
        });
        Arc::new(Self {
            shared,
            buffers: Registrations::new(),
        })
    }

    fn submit(
        &self,
        page: PageIndex,
        offset: usize,
        operation: &Operation<'_>,
    ) -> Result<Job, DmaError> {
        let found = self.buffers.find(|buffer| buffer.run.contains(page));
        let buffer = found.ok_or(DmaError::Unregistered { page })?;
        until_done(|| {
            let job = self.try_submit(&buffer, page, offset, operation)?;
            Ok(self.shared.counters.tried(job))
        })
    }

    fn try_submit(
        &self,
        buffer: &IntervalSubscription<Buffer>,
        page: PageIndex,
        offset: usize,
        operation: &Operation<'_>,
    ) -> Result<Option<Job>, DmaError> {
        let shared = &*self.shared;
        let seen = buffer.read_begin();
        shared.counters.faults.add();
        let at = fetch(&*shared.memory, page, operation.access()).map_err(DmaError::Fault)?;
        let job = Job::new(at, offset, operation);
        let ticket = Ticket::begin();
        let reserved = reserve(&buffer.notifier().resv, &ticket);
        let Ok(slot) = reserved.reserve() else {
            return Ok(None);
        };
        let mut table = buffer.lock();
        if table.is_over {
            return Err(DmaError::Stopped);
        }
        if buffer.read_retry(seen, &table) {
            return Ok(None);
        }
        if !shared.engine.submit(&job)? {
            return Ok(None);
        }
        slot.add(job.fence(), Usage::Bookkeep);
        table.tlb.install(at);
        Ok(Some(job))
    }

    fn transfer(
        &self,
        page: PageIndex,
        offset: usize,
        operation: Operation<'_>,
    ) -> Result<(), DmaError> {
        let job = self.submit(page, offset, &operation)?;
        job.finish(operation, &self.shared.counters)
    }

    /// Nobody uses the buffer any more, and it is about to be told of nothing.
    fn quiesce(&self, buffer: &Buffer) {
        buffer.pending().wait();
        self.shared.table.lock().tlb.zap(buffer.run);
    }
}

impl DmaDevice for Amdgpu {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn register(&self, run: PageRun) -> Result<(), DmaError> {
        let buffer = Arc::new(Buffer {
            shared: Arc::clone(&self.shared),
            run,
            resv: Resv::new(),
        });
        let (start, end) = interval_of(&*self.shared.memory, run);
        let notifiers = self.shared.memory.notifiers();
        let subscribed = notifiers.subscribe_interval(&self.shared.name, start, end, buffer);
        let subscription = subscribed.map_err(|_| DmaError::Stopped)?;
        self.buffers.add(subscription)
    }

    fn unregister(&self, run: PageRun) {
        let is_inside = |buffer: &Buffer| buffer.run.hull(run) == run;
        self.buffers
            .remove(is_inside, |buffer| self.quiesce(buffer));
    }

    fn read(&self, page: PageIndex, offset: usize, into: &mut [u8]) -> Result<(), DmaError> {
        self.transfer(page, offset, Operation::Read(into))
    }

    fn write(&self, page: PageIndex, offset: usize, from: &[u8]) -> Result<(), DmaError> {
        self.transfer(page, offset, Operation::Write(from))
    }

    fn wait_idle(&self) {
        self.shared.engine.wait_idle();
    }

    fn hang(&self, hang: bool) {
        self.shared.engine.hang(hang);
    }

    fn stats(&self) -> DeviceStats {
        self.shared.counters.snapshot()
    }

    fn holds(&self) -> u32 {
        self.shared.table.lock().tlb.nr_held()
    }

    fn serve(&self) {
        let shared = &*self.shared;
        shared.engine.serve(&*shared.memory, &shared.counters);
    }

    fn stop(&self) {
        self.shared.table.lock().is_over = true;
        self.shared.engine.stop();
        self.buffers.close(|buffer| self.quiesce(buffer));
    }
}
