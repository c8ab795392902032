//! Buffers of user memory in a graphics card, as they were in 2018: no job is submitted while a
//! bracket is open.
//!
//! The read side of a lock is taken by each start and let go by its end, so that submissions, which
//! take the write side, see no open bracket. That lock is no `RwLock`: brackets of one address
//! space are many, nest in a thread, and may end in another, so it counts its readers, and lets
//! them in however long a writer waits. What that costs: steady brackets anywhere in the mapping
//! keep all submissions waiting.
//!
//! Linux counterpart: drivers/gpu/drm/amd/amdgpu/amdgpu_mn.c, version 4.19

use crate::engine::{
    Counters, FenceEngine, Job, Operation, Resv, Ticket, Usage, Userptrs, fetch, ranges_of,
    reserve, run_of, until_done,
};
use crate::{Bug, Bugs, DeviceMemory, DeviceStats, DmaDevice, DmaError};
use core::time::Duration;
use lockdep::Map;
use lockdep::sync::{Mutex, ShortLock, sleep};
use lockdep::wait::begin_signalling;
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::bus::BusAddr;
use pinless_mm::gfp::{Gfp, might_alloc};
use pinless_mm::mmu_notifier::{
    Blockable, Context, EndContext, Mode, Notifier, Range, Subscription,
};
use std::sync::Arc;

/// The lock that is held from start to end, as the validator sees it.
static HELD_ACROSS: Map = Map::new("devices.amdgpu.held_across");

/// How long between two looks at that lock.
const PAUSE: Duration = Duration::from_micros(10);

/// The card, and its driver.
pub struct Amdgpu2018 {
    name: Box<str>,
    memory: Arc<dyn DeviceMemory>,
    bugs: Bugs,
    engine: FenceEngine,
    /// The buffers; callbacks look them up one at a time.
    buffers: Mutex<Userptrs>,
    held: ShortLock<Held>,
    counters: Counters,
}

/// The lock that is held from start to end.
struct Held {
    /// Brackets that are open.
    nr_readers: u32,
    is_written: bool,
    nr_writers_waiting: u32,
}

impl Notifier for Amdgpu2018 {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let Some(run) = run_of(&*self.memory, range) else {
            return Ok(());
        };
        self.counters.answered(self.invalidate(run, cx))
    }

    fn end(&self, range: &Range, cx: &EndContext<'_>) {
        if run_of(&*self.memory, range).is_some() {
            cx.short(&self.held).nr_readers -= 1;
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

impl Amdgpu2018 {
    /// Makes a card and subscribes its driver.
    pub(crate) fn attach(
        memory: &Arc<dyn DeviceMemory>,
        name: &str,
        bugs: Bugs,
    ) -> (Arc<Self>, Subscription) {
        crate::lock_order::prime();
        let held = Held {
            nr_readers: 0,
            is_written: false,
            nr_writers_waiting: 0,
        };
        let device = Arc::new(Self {
            name: name.into(),
            bugs,
            engine: FenceEngine::new(),
            buffers: Mutex::new("devices.amdgpu.buffers", Userptrs::new(memory.nr_pages())),
            held: ShortLock::new("devices.amdgpu.held", held),
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
        self.hold(cx)?;
        let answer = self.wait_for_jobs(run, cx);
        if answer.is_err() {
            // No end comes for a start that was refused.
            cx.short(&self.held).nr_readers -= 1;
        }
        answer
    }

    /// Takes the read side, which the end lets go.
    fn hold<C: Context>(&self, cx: &C) -> Result<(), C::Refusal> {
        let is_blind = self.bugs.has(Bug::BlockingLock);
        if cx.mode() == Mode::Blockable || is_blind {
            HELD_ACROSS.might_acquire();
        }
        loop {
            let mut held = cx.short(&self.held);
            let is_fair = self.bugs.has(Bug::FairLockHeldAcross);
            let waits_its_turn = is_fair && held.nr_writers_waiting > 0;
            if !held.is_written && !waits_its_turn {
                held.nr_readers += 1;
                return Ok(());
            }
            drop(held);
            if !is_blind {
                cx.would_block()?;
            }
            lockdep::might_sleep();
            sleep("devices.amdgpu.pause", PAUSE);
        }
    }

    fn wait_for_jobs<C: Context>(&self, run: PageRun, cx: &C) -> Result<(), C::Refusal> {
        let mut buffers = cx.lock(&self.buffers)?;
        let pending = buffers.pending(run);
        if !pending.is_empty() {
            cx.would_block()?;
        }
        buffers.nr_invalidations += 1;
        buffers.tlb.zap(run);
        drop(buffers);
        pending.settle(cx)
    }

    /// Submits one job: looks the page up, and has it run only if nothing was invalidated since.
    fn submit(
        &self,
        page: PageIndex,
        offset: usize,
        operation: &Operation<'_>,
    ) -> Result<Job, DmaError> {
        until_done(|| {
            self.counters.faults.add();
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
        let (resv, seen) = (buffers.find(page)?, buffers.nr_invalidations);
        let known = buffers.tlb.get(page, operation.access());
        drop(buffers);
        // In this order: a start that counted before is seen here as long as it is open.
        if self.held.lock().nr_readers > 0 {
            return Ok(None); // what is looked up now may be about to go
        }
        let at = match known {
            Some(at) => at,
            None => fetch(&*self.memory, page, operation.access()).map_err(DmaError::Fault)?,
        };
        let job = Job::new(at, offset, operation);
        let Some(_written) = self.write() else {
            return Ok(None);
        };
        self.publish(&job, at, seen, &resv)
    }

    /// Under the write side: allocates nothing.
    fn publish(
        &self,
        job: &Job,
        at: BusAddr,
        seen: u64,
        resv: &Resv,
    ) -> Result<Option<Job>, DmaError> {
        let _held = HELD_ACROSS.enter();
        if self.bugs.has(Bug::AllocUnderLock) {
            might_alloc(Gfp::Kernel);
        }
        let ticket = Ticket::begin();
        let reserved = reserve(resv, &ticket);
        let Ok(slot) = reserved.reserve() else {
            return Ok(None);
        };
        let mut buffers = self.buffers.lock();
        if buffers.is_over {
            return Err(DmaError::Stopped);
        }
        if buffers.nr_invalidations != seen || !buffers.is_open(resv) {
            return Ok(None);
        }
        let _owed = begin_signalling();
        if !self.engine.submit(job)? {
            return Ok(None);
        }
        if self.bugs.has(Bug::PublishedTooEarly) {
            might_alloc(Gfp::Kernel);
        }
        slot.add(job.fence(), Usage::Bookkeep);
        buffers.tlb.install(at);
        Ok(Some(job.clone()))
    }

    /// The write side, if no bracket is open: otherwise waits a little first, and says no.
    fn write(&self) -> Option<Written<'_>> {
        let mut held = self.held.lock();
        if held.nr_readers == 0 && !held.is_written {
            held.is_written = true;
            return Some(Written { held: &self.held });
        }
        held.nr_writers_waiting += 1;
        drop(held);
        loop {
            sleep("devices.amdgpu.pause", PAUSE);
            let mut held = self.held.lock();
            // Where a waiting writer keeps readers out, it waits for its turn.
            let is_fair = self.bugs.has(Bug::FairLockHeldAcross);
            if !is_fair || held.nr_readers == 0 {
                held.nr_writers_waiting -= 1;
                return None;
            }
        }
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

/// Holds the write side until dropped.
struct Written<'a> {
    held: &'a ShortLock<Held>,
}

impl Drop for Written<'_> {
    fn drop(&mut self) {
        self.held.lock().is_written = false;
    }
}

impl DmaDevice for Amdgpu2018 {
    fn name(&self) -> &str {
        &self.name
    }

    fn register(&self, run: PageRun) -> Result<(), DmaError> {
        let resv = Arc::new(Resv::new());
        self.buffers.lock().add(run, resv)
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
