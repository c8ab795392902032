//! Memory of compute queues that run at will: a start stops them, a worker resumes them.
//!
//! Every start that comes back finds the queues stopped, not merely somebody who is stopping them.
//! The variant of 2018 and that of today differ in how they are told; what the model shows is the
//! protocol, and what went wrong in both: [`Bug::FirstStops`].
//!
//! Linux counterpart: drivers/gpu/drm/amd/amdgpu/amdgpu_amdkfd_gpuvm.c and amdkfd/kfd_svm.c

use crate::engine::{Check, Counters, Doorbell, Next, Operation, QueueEngine, ranges_of, run_of};
use crate::{Bug, Bugs, DeviceMemory, DeviceStats, DmaDevice, DmaError};
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use lockdep::sync::{Mutex, sleep};
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::mmu_notifier::{
    Blockable, Context, EndContext, Notifier, Range, Ranges, Subscription,
};
use std::sync::Arc;

/// How long a restore waits for the next start, so that one restore serves many.
const RESTORE_DELAY: Duration = Duration::from_millis(1);

/// The card, and its driver.
pub struct Kfd {
    name: Box<str>,
    memory: Arc<dyn DeviceMemory>,
    bugs: Bugs,
    engine: QueueEngine,
    worker: Doorbell,
    nr_servers: AtomicU32,
    /// What a start takes besides the queues: only in a driver that ends another subscription in
    /// its worker, under a lock.
    evictions: Mutex<Option<Subscription>>,
    counters: Counters,
}

impl Notifier for Kfd {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let Some(run) = run_of(&*self.memory, range) else {
            return Ok(());
        };
        self.counters.answered(self.invalidate(run, cx))
    }

    fn end(&self, range: &Range, cx: &EndContext<'_>) {
        if run_of(&*self.memory, range).is_some() {
            cx.short(&self.engine.process).rounds.end();
            self.worker.ring();
        }
    }

    fn release(&self, cx: &Blockable<'_>) {
        let mut process = cx.short(&self.engine.process);
        process.is_over = true;
        let stopped = process.preempt();
        let all = process.tlb.all();
        process.tlb.zap(all);
        drop(process);
        self.engine.ring();
        self.worker.ring();
        if let Some(stopped) = stopped {
            let Ok(()) = cx.settle(&stopped);
        }
    }
}

impl Kfd {
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
            engine: QueueEngine::new(memory.nr_pages()),
            worker: Doorbell::new(),
            nr_servers: AtomicU32::new(0),
            evictions: Mutex::new("devices.kfd.evictions", None),
            counters: Counters::default(),
            memory: Arc::clone(memory),
        });
        let subscribe = |ranges: Ranges| {
            memory
                .notifiers()
                .subscribe(name, ranges, Arc::clone(&device))
        };
        if bugs.has(Bug::LastReferenceInWorker) {
            *device.evictions.lock() = Some(subscribe(Ranges::Only(Vec::new())));
        }
        let listed = subscribe(ranges_of(&**memory));
        (device, listed)
    }

    fn invalidate<C: Context>(&self, run: PageRun, cx: &C) -> Result<(), C::Refusal> {
        let _evictions = if self.bugs.has(Bug::LastReferenceInWorker) {
            Some(cx.lock(&self.evictions)?)
        } else {
            None
        };
        let mut process = cx.short(&self.engine.process);
        let is_used = process.registered.overlaps(run);
        if is_used && process.busy().is_some() && !self.bugs.has(Bug::ModeBlind) {
            drop(process);
            cx.would_block()?;
            process = cx.short(&self.engine.process);
        }
        process.rounds.begin(run);
        if !process.registered.overlaps(run) {
            return Ok(());
        }
        let is_first = process.nr_evictions == 0;
        let stopped = process.preempt();
        process.tlb.zap(run);
        drop(process);
        self.engine.ring();
        self.worker.ring();
        match stopped {
            Some(_) if self.bugs.has(Bug::FirstStops) && !is_first => Ok(()),
            Some(stopped) if self.bugs.has(Bug::ModeBlind) => {
                stopped.wait();
                Ok(())
            }
            Some(stopped) => cx.settle(&stopped),
            None => Ok(()),
        }
    }

    /// The worker: looks the pages up again, and has the queues go on.
    fn restore(&self) -> Next {
        let process = self.engine.process.lock();
        let (is_over, nr_evictions) = (process.is_over, process.nr_evictions);
        drop(process);
        if is_over {
            if self.bugs.has(Bug::LastReferenceInWorker) {
                let mut evictions = self.evictions.lock();
                if let Some(subscription) = evictions.take() {
                    subscription.synchronize();
                }
            }
            return Next::End;
        }
        if nr_evictions == 0 {
            return Next::Sleep;
        }
        sleep("devices.kfd.restore", RESTORE_DELAY);
        self.counters.faults.add();
        let check = if self.bugs.has(Bug::RestoresBlindly) {
            Check::Nothing
        } else {
            Check::Sequence
        };
        match self.engine.restore(&*self.memory, check) {
            Ok(true) => {}
            Ok(false) => self.counters.retries.add(),
            Err(error) => {
                self.engine.fail_all(error);
                return Next::SleepFor(RESTORE_DELAY);
            }
        }
        Next::Step
    }
}

impl DmaDevice for Kfd {
    fn name(&self) -> &str {
        &self.name
    }

    fn register(&self, run: PageRun) -> Result<(), DmaError> {
        let mut process = self.engine.process.lock();
        if process.is_over {
            return Err(DmaError::Stopped);
        }
        run.pages().for_each(|page| process.registered.insert(page));
        let _running = process.preempt();
        drop(process);
        self.worker.ring();
        Ok(())
    }

    fn unregister(&self, run: PageRun) {
        let mut process = self.engine.process.lock();
        process.registered.remove(run, |_| ());
        process.tlb.zap(run);
        let stopped = process.preempt();
        drop(process);
        if let Some(stopped) = stopped {
            stopped.wait();
        }
        self.worker.ring();
    }

    fn read(&self, page: PageIndex, offset: usize, into: &mut [u8]) -> Result<(), DmaError> {
        let operation = Operation::Read(into);
        self.engine
            .transfer(page, offset, operation, &self.counters)
    }

    fn write(&self, page: PageIndex, offset: usize, from: &[u8]) -> Result<(), DmaError> {
        let operation = Operation::Write(from);
        self.engine
            .transfer(page, offset, operation, &self.counters)
    }

    fn hang(&self, hang: bool) {
        self.engine.hang(hang);
    }

    fn stats(&self) -> DeviceStats {
        self.counters.snapshot()
    }

    fn holds(&self) -> u32 {
        self.engine.process.lock().tlb.nr_held()
    }

    fn nr_servers(&self) -> u32 {
        2
    }

    fn serve(&self) {
        match self.nr_servers.fetch_add(1, Ordering::Relaxed) {
            0 => self.engine.serve(&*self.memory, &self.counters),
            _ => self.worker.serve(|| self.restore()),
        }
    }

    fn stop(&self) {
        self.engine.stop();
        self.worker.ring();
    }
}
