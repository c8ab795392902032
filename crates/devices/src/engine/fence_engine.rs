//! The engine of pattern A: a ring of jobs that uses bus addresses as they were submitted, and
//! says by fences when it has done with them.
//!
//! The hardware cannot fault: a job that was submitted runs to its end in the frames it was given.
//! When the ring hangs, its driver waits for [`JOB_TIMEOUT`], resets it and signals what was queued
//! as lost.

use super::dma_fence::{DmaFence, JOB_TIMEOUT, Timeline, WorkLost};
use super::doorbell::{Doorbell, Next};
use super::{Counters, Operation};
use crate::DmaError;
use lockdep::sync::{Fence, Mutex, ShortLock, Waited};
use lockdep::wait;
use pinless_mm::bus::{Bus, BusAddr, StaleDma};
use std::collections::VecDeque;
use std::sync::Arc;

/// How many jobs are queued at once.
pub const JOBS_MAX: usize = 32;

/// One transfer, made before it is submitted: everything that it needs is allocated.
#[derive(Clone)]
pub struct Job {
    inner: Arc<Inner>,
    /// Lost if this is.
    after: Option<DmaFence>,
}

struct Inner {
    /// None: it uses no page.
    at: Option<BusAddr>,
    offset: usize,
    transfer: ShortLock<Transfer>,
    fence: DmaFence,
}

/// The bytes of a job, which outlive whoever submitted it.
struct Transfer {
    is_write: bool,
    bytes: Vec<u8>,
    far_end: Option<FarEnd>,
    outcome: Result<(), StaleDma>,
}

/// The other memory of a copy: takes the bytes that were read, or gives those to be written, when
/// the job runs. Runs on the way to a signal: it takes short locks and allocates nothing.
pub type FarEnd = Box<dyn FnOnce(&mut [u8]) + Send>;

/// The ring, and the hardware behind it.
pub struct FenceEngine {
    timeline: Timeline,
    ring: ShortLock<Ring>,
    /// Held while the queue is emptied by a reset, so that fences signal in order.
    losing: Mutex<()>,
    doorbell: Doorbell,
}

struct Ring {
    jobs: VecDeque<Job>,
    running: Option<Job>,
    state: State,
}

enum State {
    Running,
    /// The fence signals when it hangs no more.
    Hung(Fence),
    Stopped,
}

impl Job {
    /// What `operation` wants, at a bus address.
    pub fn new(at: BusAddr, offset: usize, operation: &Operation<'_>) -> Self {
        let (is_write, bytes) = match operation {
            Operation::Read(into) => (false, vec![0; into.len()]),
            Operation::Write(from) => (true, from.to_vec()),
        };
        let transfer = Transfer {
            is_write,
            bytes,
            far_end: None,
            outcome: Ok(()),
        };
        Self::of(Some(at), offset, transfer)
    }

    /// A copy of `nr` bytes from `at` to the far end.
    pub fn to_far_end(at: BusAddr, offset: usize, nr: usize, far_end: FarEnd) -> Self {
        Self::of(Some(at), offset, Transfer::between(false, nr, far_end))
    }

    /// A copy of `nr` bytes from the far end to `at`.
    pub fn from_far_end(at: BusAddr, offset: usize, nr: usize, far_end: FarEnd) -> Self {
        Self::of(Some(at), offset, Transfer::between(true, nr, far_end))
    }

    /// Tells the far end that everything before it is over.
    pub fn status(far_end: FarEnd) -> Self {
        Self::of(None, 0, Transfer::between(false, 0, far_end))
    }

    fn of(at: Option<BusAddr>, offset: usize, transfer: Transfer) -> Self {
        let inner = Inner {
            at,
            offset,
            transfer: ShortLock::new("devices.job", transfer),
            fence: DmaFence::new(),
        };
        Self {
            inner: Arc::new(inner),
            after: None,
        }
    }

    /// The same job, which is lost if that of `after` is. That one was submitted before to the same
    /// ring.
    pub fn after(self, after: Option<DmaFence>) -> Self {
        Self { after, ..self }
    }

    /// What came of that which it was to come after, which is over.
    fn may_run(&self) -> Result<(), WorkLost> {
        self.after.as_ref().map_or(Ok(()), DmaFence::outcome)
    }

    /// Signals when it is over.
    pub fn fence(&self) -> &DmaFence {
        &self.inner.fence
    }

    /// Waits for the end of the job and hands over what it read.
    ///
    /// # Errors
    ///
    /// [`DmaError::Hung`] if the hardware was reset, [`DmaError::Stale`] if the address was.
    pub fn finish(self, mut operation: Operation<'_>, counters: &Counters) -> Result<(), DmaError> {
        self.fence().wait().map_err(|WorkLost| DmaError::Hung)?;
        let transfer = self.inner.transfer.lock();
        if let Err(stale) = transfer.outcome {
            counters.stale.add();
            return Err(DmaError::Stale(stale));
        }
        if let Operation::Read(into) = &mut operation {
            into.copy_from_slice(&transfer.bytes);
        }
        counters.done(&operation);
        Ok(())
    }

    /// It will not be submitted, though its fence is known to others already.
    pub fn abandon(&self) {
        self.fence().abandon();
    }

    fn run(&self, bus: &dyn Bus) {
        let Inner { at, offset, .. } = *self.inner;
        let mut transfer = self.inner.transfer.lock();
        let (is_write, mut bytes) = (transfer.is_write, core::mem::take(&mut transfer.bytes));
        let far_end = transfer.far_end.take();
        drop(transfer);
        let outcome = match (at, is_write) {
            (Some(at), true) => {
                if let Some(far_end) = far_end {
                    far_end(&mut bytes);
                }
                bus.write(at, offset, &bytes)
            }
            (at, _) => {
                let read = at.map_or(Ok(()), |at| bus.read(at, offset, &mut bytes));
                if let (Ok(()), Some(far_end)) = (read, far_end) {
                    far_end(&mut bytes);
                }
                read
            }
        };
        let mut transfer = self.inner.transfer.lock();
        (transfer.bytes, transfer.outcome) = (bytes, outcome);
    }
}

impl Transfer {
    fn between(is_write: bool, nr: usize, far_end: FarEnd) -> Self {
        Self {
            is_write,
            bytes: vec![0; nr],
            far_end: Some(far_end),
            outcome: Ok(()),
        }
    }
}

impl FenceEngine {
    /// An empty ring.
    pub fn new() -> Self {
        let ring = Ring {
            jobs: VecDeque::with_capacity(JOBS_MAX),
            running: None,
            state: State::Running,
        };
        Self {
            timeline: Timeline::new(),
            ring: ShortLock::new("devices.ring", ring),
            losing: Mutex::new("devices.ring.losing", ()),
            doorbell: Doorbell::new(),
        }
    }

    /// Queues a job and publishes its fence, if the ring has room: whether it had. Never sleeps;
    /// allocates nothing.
    ///
    /// # Errors
    ///
    /// [`DmaError::Stopped`]; the fence was not published.
    pub fn submit(&self, job: &Job) -> Result<bool, DmaError> {
        let mut ring = self.ring.lock();
        if matches!(ring.state, State::Stopped) {
            return Err(DmaError::Stopped);
        }
        if ring.jobs.len() == JOBS_MAX {
            return Ok(false);
        }
        self.timeline.publish(job.fence());
        ring.jobs.push_back(job.clone());
        drop(ring);
        self.doorbell.ring();
        Ok(true)
    }

    /// The hardware: runs jobs in order until it is stopped.
    pub fn serve(&self, bus: &dyn Bus, counters: &Counters) {
        self.doorbell.serve(|| {
            let mut ring = self.ring.lock();
            let hung = match &ring.state {
                State::Stopped => return Next::End,
                State::Hung(_) if ring.jobs.is_empty() => return Next::Sleep,
                State::Hung(hung) => Some(hung.clone()),
                State::Running => None,
            };
            if let Some(hung) = hung {
                drop(ring);
                // Not the bell, which rings for each job that is queued behind.
                if hung.wait_timeout(JOB_TIMEOUT) == Waited::TimedOut {
                    self.reset(&hung, counters);
                }
                return Next::Step;
            }
            let Some(job) = ring.jobs.pop_front() else {
                return Next::Sleep;
            };
            ring.running = Some(job.clone());
            drop(ring);
            self.run(&job, bus);
            Next::Step
        });
    }

    fn run(&self, job: &Job, bus: &dyn Bus) {
        let _owed = wait::begin_signalling();
        let may_run = job.may_run();
        if may_run.is_ok() {
            job.run(bus);
        }
        self.ring.lock().running = None;
        self.timeline.signal(job.fence(), may_run);
    }

    /// What was queued in this hang, if it is not over, is lost; what is submitted from now on is
    /// run. The ring runs again only when the last lost job is out of it.
    fn reset(&self, hung: &Fence, counters: &Counters) {
        let _in_order = self.losing.lock();
        let ring = self.ring.lock();
        if !matches!(&ring.state, State::Hung(now) if now == hung) {
            return;
        }
        counters.timeouts.add();
        let nr_lost = ring.jobs.len();
        drop(ring);
        self.lose(nr_lost);
        self.end_hang(|now| now == hung);
    }

    /// The first `nr` jobs of the queue are lost, or as many as there are. The caller holds the
    /// lock for it.
    fn lose(&self, nr: usize) {
        for _ in 0..nr {
            let job = self.ring.lock().jobs.pop_front();
            let Some(job) = job else {
                return;
            };
            self.timeline.signal(job.fence(), Err(WorkLost));
        }
    }

    /// The hardware hangs, or goes on. No bell: without jobs it is idle either way, and with some
    /// it waits for the end of the hang, or is about to look.
    pub fn hang(&self, hang: bool) {
        if hang {
            let hung = Fence::new("devices.ring.hung");
            let mut ring = self.ring.lock();
            if matches!(ring.state, State::Running) {
                ring.state = State::Hung(hung);
            }
        } else {
            self.end_hang(|_| true);
        }
    }

    /// Ends the hang, if this is the one.
    fn end_hang(&self, is_this: impl FnOnce(&Fence) -> bool) {
        let mut ring = self.ring.lock();
        let hung = match &ring.state {
            State::Hung(hung) if is_this(hung) => hung.clone(),
            _ => return,
        };
        ring.state = State::Running;
        drop(ring);
        hung.signal();
    }

    /// Runs no job any more: waits for the one that runs, and the others are lost.
    pub fn stop(&self) {
        let mut ring = self.ring.lock();
        let was = core::mem::replace(&mut ring.state, State::Stopped);
        let running = ring.running.clone();
        drop(ring);
        if let State::Hung(hung) = was {
            hung.signal();
        }
        self.doorbell.ring();
        if let Some(job) = running {
            let _over = job.fence().wait();
        }
        let _in_order = self.losing.lock();
        // It takes no job any more.
        self.lose(JOBS_MAX);
    }

    /// Whether it was stopped.
    pub fn is_stopped(&self) -> bool {
        matches!(self.ring.lock().state, State::Stopped)
    }

    /// Waits until no job is queued.
    pub fn wait_idle(&self) {
        loop {
            let ring = self.ring.lock();
            let last = ring.jobs.back().or(ring.running.as_ref()).cloned();
            drop(ring);
            match last {
                Some(job) => {
                    let _over = job.fence().wait();
                }
                None => return,
            }
        }
    }
}

impl Default for FenceEngine {
    fn default() -> Self {
        Self::new()
    }
}
