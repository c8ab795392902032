//! The engine of pattern B: queues that programs fill without asking anybody, over one table.
//!
//! There are no fences of jobs to wait for. To take pages away, the queues are stopped: what runs
//! is preempted, and the acknowledgement is a fence that *everybody* waits for who needs them
//! stopped, not only the one who stopped them first. A worker looks the pages up again and lets the
//! queues go on, unless something was taken away meanwhile.
//!
//! Linux counterpart: drivers/gpu/drm/amd/amdkfd/kfd_device_queue_manager.c

use super::{Counters, Doorbell, Next, Operation, PageSet, Rounds, Tlb};
use crate::DmaError;
use core::time::Duration;
use lockdep::sync::{Fence, ShortLock, Waited};
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::bus::{Bus, BusAddr, StaleDma};
use pinless_mm::primary_mmu::Access;
use std::collections::VecDeque;
use std::sync::Arc;

/// How many accesses are queued at once.
pub const QUEUE_MAX: usize = 32;

/// Hardware that was not preempted for this long is reset.
pub const PREEMPT_TIMEOUT: Duration = Duration::from_secs(1);

/// The queues of one process, and their table.
pub struct QueueEngine {
    /// All of it: whether queues may run depends on the table.
    pub process: ShortLock<Process>,
    doorbell: Doorbell,
}

/// What there is of one process.
pub struct Process {
    /// What the hardware was told.
    pub tlb: Tlb,
    /// The brackets.
    pub rounds: Rounds,
    /// The pages that the process registered.
    pub registered: PageSet,
    /// Starts that came since the queues last ran; they run while it is zero.
    pub nr_evictions: u32,
    /// The memory is gone, or the device is stopped.
    pub is_over: bool,
    queue: VecDeque<Access64>,
    /// Signals when what runs has stopped.
    running: Option<Fence>,
    /// Signals when the hardware hangs no more.
    hung: Option<Fence>,
}

/// One access of a kernel that runs on a queue.
type Access64 = Arc<Request>;

struct Request {
    page: PageIndex,
    offset: usize,
    bytes: ShortLock<Bytes>,
    stopped: Fence,
    done: Fence,
}

struct Bytes {
    is_write: bool,
    bytes: Vec<u8>,
    outcome: Result<(), DmaError>,
}

impl Process {
    /// Stops the queues. What is still running, if anything is: whoever needs them stopped waits
    /// for that, and for the end of a hang.
    pub fn preempt(&mut self) -> Option<Fence> {
        self.nr_evictions += 1;
        self.busy()
    }

    /// What has to end before the queues have stopped.
    pub fn busy(&self) -> Option<Fence> {
        self.hung.as_ref().or(self.running.as_ref()).cloned()
    }

    /// The pages that are registered and not known to the hardware.
    fn missing(&self, into: &mut Vec<PageIndex>) {
        into.extend(
            self.tlb
                .all()
                .pages()
                .filter(|&page| self.registered.overlaps(PageRun::single(page)))
                .filter(|&page| self.tlb.get(page, Access::Write).is_none()),
        );
    }
}

impl QueueEngine {
    /// No queue over a mapping of `nr_pages`.
    pub fn new(nr_pages: u32) -> Self {
        let process = Process {
            tlb: Tlb::new(nr_pages),
            rounds: Rounds::new(),
            registered: PageSet::new(nr_pages),
            nr_evictions: 0,
            is_over: false,
            queue: VecDeque::with_capacity(QUEUE_MAX),
            running: None,
            hung: None,
        };
        Self {
            process: ShortLock::new("devices.kfd.process", process),
            doorbell: Doorbell::new(),
        }
    }

    /// Something has changed that the hardware waits for.
    pub fn ring(&self) {
        self.doorbell.ring();
    }

    /// Queues an access and waits for its end.
    ///
    /// # Errors
    ///
    /// [`DmaError`]
    pub fn transfer(
        &self,
        page: PageIndex,
        offset: usize,
        mut operation: Operation<'_>,
        counters: &Counters,
    ) -> Result<(), DmaError> {
        let (is_write, bytes) = match &operation {
            Operation::Read(into) => (false, vec![0; into.len()]),
            Operation::Write(from) => (true, from.to_vec()),
        };
        let outcome = Ok(());
        let request = Arc::new(Request {
            page,
            offset,
            bytes: ShortLock::new(
                "devices.kfd.request",
                Bytes {
                    is_write,
                    bytes,
                    outcome,
                },
            ),
            stopped: Fence::new("devices.kfd.preempted"),
            done: Fence::new("devices.kfd.done"),
        });
        let mut process = self.process.lock();
        if process.is_over {
            return Err(DmaError::Stopped);
        }
        if process.queue.len() == QUEUE_MAX {
            return Err(DmaError::Starved);
        }
        process.queue.push_back(Arc::clone(&request));
        drop(process);
        self.ring();
        request.done.wait();
        let bytes = request.bytes.lock();
        bytes.outcome?;
        if let Operation::Read(into) = &mut operation {
            into.copy_from_slice(&bytes.bytes);
        }
        counters.done(&operation);
        Ok(())
    }

    /// The hardware: runs what is queued while it may, until the device is stopped.
    pub fn serve(&self, bus: &dyn Bus, counters: &Counters) {
        self.doorbell.serve(|| {
            let mut process = self.process.lock();
            if process.is_over {
                drop(process);
                self.fail_all(DmaError::Stopped);
                return Next::End;
            }
            if let Some(hung) = process.hung.clone() {
                if process.nr_evictions == 0 && process.queue.is_empty() {
                    return Next::Sleep;
                }
                drop(process);
                // Not the bell, which rings for each access that is queued behind.
                if hung.wait_timeout(PREEMPT_TIMEOUT) == Waited::TimedOut {
                    self.reset(&hung, counters);
                }
                return Next::Step;
            }
            if process.nr_evictions > 0 {
                return Next::Sleep;
            }
            let Some(request) = process.queue.pop_front() else {
                return Next::Sleep;
            };
            process.running = Some(request.stopped.clone());
            let at = process.tlb.get(request.page, Access::Write);
            drop(process);
            Self::run(&request, at, bus, counters);
            self.process.lock().running = None;
            request.stopped.signal();
            request.done.signal();
            Next::Step
        });
    }

    fn run(request: &Request, at: Option<BusAddr>, bus: &dyn Bus, counters: &Counters) {
        let page = request.page;
        let mut bytes = request.bytes.lock();
        let Some(at) = at else {
            bytes.outcome = Err(DmaError::Unregistered { page });
            return;
        };
        let (is_write, mut buffer) = (bytes.is_write, core::mem::take(&mut bytes.bytes));
        drop(bytes);
        let outcome: Result<(), StaleDma> = if is_write {
            bus.write(at, request.offset, &buffer)
        } else {
            bus.read(at, request.offset, &mut buffer)
        };
        if outcome.is_err() {
            counters.stale.add();
        }
        let mut bytes = request.bytes.lock();
        bytes.bytes = buffer;
        bytes.outcome = outcome.map_err(DmaError::Stale);
    }

    /// Looks up what is missing and lets the queues go on; false if it has to be done again.
    ///
    /// # Errors
    ///
    /// [`DmaError::Fault`]: a page cannot be had, and no queue can go on.
    pub fn restore(&self, bus: &dyn Bus, check: Check) -> Result<bool, DmaError> {
        let mut missing = Vec::with_capacity(bus.nr_pages() as usize);
        let process = self.process.lock();
        let sequence = process.rounds.sequence();
        process.missing(&mut missing);
        drop(process);
        let mut found = Vec::with_capacity(missing.len());
        for page in missing {
            found.push(super::fetch(bus, page, Access::Write).map_err(DmaError::Fault)?);
        }
        let mut process = self.process.lock();
        if process.is_over {
            return Ok(true);
        }
        let all = process.tlb.all();
        if check == Check::Sequence && !process.rounds.is_fresh(all, sequence) {
            return Ok(false);
        }
        for at in found {
            if process.registered.overlaps(PageRun::single(at.page)) {
                process.tlb.install(at);
            }
        }
        process.nr_evictions = 0;
        drop(process);
        self.ring();
        Ok(true)
    }

    /// Everything that is queued ends with this error.
    pub fn fail_all(&self, error: DmaError) {
        self.fail(usize::MAX, error);
    }

    /// The first `nr` of the queue end with this error, or as many as there are.
    fn fail(&self, nr: usize, error: DmaError) {
        for _ in 0..nr {
            let Some(request) = self.process.lock().queue.pop_front() else {
                return;
            };
            request.bytes.lock().outcome = Err(error);
            request.done.signal();
        }
    }

    /// The hardware hangs, or goes on.
    pub fn hang(&self, hang: bool) {
        if hang {
            let fence = Fence::new("devices.kfd.hung");
            let mut process = self.process.lock();
            if process.hung.is_none() {
                process.hung = Some(fence);
            }
        } else {
            self.end_hang(|_| true);
        }
        self.ring();
    }

    /// Ends the hang, if this is the one.
    fn end_hang(&self, is_this: impl FnOnce(&Fence) -> bool) {
        let hung = self.process.lock().hung.take_if(|hung| is_this(hung));
        if let Some(hung) = hung {
            hung.signal();
        }
    }

    /// What is queued in this hang, if it is not over, is lost, and the hardware has stopped.
    fn reset(&self, hung: &Fence, counters: &Counters) {
        let process = self.process.lock();
        if process.hung.as_ref() != Some(hung) {
            return;
        }
        counters.timeouts.add();
        let nr_lost = process.queue.len();
        drop(process);
        self.fail(nr_lost, DmaError::Hung);
        self.end_hang(|now| now == hung);
    }

    /// Runs nothing any more; waits for what runs.
    pub fn stop(&self) {
        let mut process = self.process.lock();
        process.is_over = true;
        let all = process.tlb.all();
        process.tlb.zap(all);
        let running = process.running.clone();
        drop(process);
        if let Some(running) = running {
            running.wait();
        }
        self.end_hang(|_| true);
        self.fail_all(DmaError::Stopped);
        self.ring();
    }
}

/// Whether a restore asks if something was taken away meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// It does.
    Sequence,
    /// It does not: a fault.
    Nothing,
}
