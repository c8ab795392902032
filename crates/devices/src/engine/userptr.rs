//! What a driver knows of the buffers that a program registered: where they are, what the hardware
//! was told of their pages, and which jobs use them.

use super::Tlb;
use super::dma_fence::DmaFence;
use super::resv::{Reserved, Resv, Ticket, Usage};
use crate::DmaError;
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::mmu_notifier::Context;
use std::sync::Arc;

/// How many buffers one device can have.
pub const BUFFERS_MAX: usize = 16;

/// How many jobs a start can wait for; what is above that is waited for at the next question.
const PENDING_MAX: usize = 64;

/// A buffer: some pages, and the jobs that use them.
struct Buffer {
    run: PageRun,
    resv: Arc<Resv>,
    /// It takes no job any more. Starts still find it, for those that it has.
    is_closed: bool,
}

/// All buffers of one device. The driver chooses the lock around it.
pub struct Userptrs {
    /// What the hardware was told.
    pub tlb: Tlb,
    /// How many starts came.
    pub nr_invalidations: u64,
    /// The memory is gone, or the device is stopped.
    pub is_over: bool,
    buffers: Vec<Buffer>,
}

/// Jobs that have to end before pages may go.
pub struct Pending {
    fences: [Option<DmaFence>; PENDING_MAX],
    nr: usize,
}

impl Userptrs {
    /// No buffer in a mapping of `nr_pages`.
    pub fn new(nr_pages: u32) -> Self {
        Self {
            tlb: Tlb::new(nr_pages),
            nr_invalidations: 0,
            is_over: false,
            buffers: Vec::with_capacity(BUFFERS_MAX),
        }
    }

    /// Registers a buffer.
    ///
    /// # Errors
    ///
    /// [`DmaError::Stopped`], and [`DmaError::LimitReached`] of [`BUFFERS_MAX`].
    pub fn add(&mut self, run: PageRun, resv: Arc<Resv>) -> Result<(), DmaError> {
        if self.is_over {
            return Err(DmaError::Stopped);
        }
        if self.buffers.len() == BUFFERS_MAX {
            let limit = BUFFERS_MAX as u32;
            return Err(DmaError::LimitReached { limit });
        }
        self.buffers.push(Buffer {
            run,
            resv,
            is_closed: false,
        });
        Ok(())
    }

    /// The buffers inside of `run` take no job any more. To be [removed](Self::remove) when those
    /// are over that they have.
    pub fn close(&mut self, run: PageRun) -> Pending {
        let inside = self.buffers.iter_mut();
        inside
            .filter(|buffer| buffer.run.hull(run) == run)
            .for_each(|buffer| buffer.is_closed = true);
        self.tlb.zap(run);
        self.pending(run)
    }

    /// Forgets the buffers inside of `run` that are closed.
    pub fn remove(&mut self, run: PageRun) {
        self.buffers
            .retain(|buffer| !buffer.is_closed || buffer.run.hull(run) != run);
    }

    /// The jobs of the buffer that has `page`.
    ///
    /// # Errors
    ///
    /// [`DmaError::Unregistered`], [`DmaError::Stopped`]
    pub fn find(&self, page: PageIndex) -> Result<Arc<Resv>, DmaError> {
        if self.is_over {
            return Err(DmaError::Stopped);
        }
        let mut open = self.buffers.iter().filter(|buffer| !buffer.is_closed);
        match open.find(|buffer| buffer.run.contains(page)) {
            Some(buffer) => Ok(Arc::clone(&buffer.resv)),
            None => Err(DmaError::Unregistered { page }),
        }
    }

    /// Whether a job may be added to `resv`, which [`find`](Self::find) has answered: its buffer
    /// may have been closed since.
    pub fn is_open(&self, resv: &Resv) -> bool {
        let mut open = self.buffers.iter().filter(|buffer| !buffer.is_closed);
        open.any(|buffer| core::ptr::eq(&*buffer.resv, resv))
    }

    /// The jobs that use buffers which overlap `run`. Allocates nothing.
    pub fn pending(&self, run: PageRun) -> Pending {
        let mut pending = Pending::new();
        for buffer in self
            .buffers
            .iter()
            .filter(|buffer| buffer.run.overlaps(run))
        {
            buffer
                .resv
                .for_each_pending(Usage::Bookkeep, |fence| pending.add(fence));
        }
        pending
    }
}

impl Pending {
    /// None.
    pub fn new() -> Self {
        Self {
            fences: [const { None }; PENDING_MAX],
            nr: 0,
        }
    }

    /// One more.
    ///
    /// # Panics
    ///
    /// If there are more than a device can have.
    pub fn add(&mut self, fence: &DmaFence) {
        self.fences[self.nr] = Some(fence.clone());
        self.nr += 1;
    }

    /// Whether nothing has to end.
    pub fn is_empty(&self) -> bool {
        self.nr == 0
    }

    /// What has to end.
    pub fn fences(&self) -> impl Iterator<Item = &DmaFence> {
        self.fences.iter().flatten()
    }

    /// Waits for all, or refuses.
    ///
    /// # Errors
    ///
    /// The refusal of the context.
    pub fn settle<C: Context>(&self, cx: &C) -> Result<(), C::Refusal> {
        self.fences().try_for_each(|fence| fence.settle(cx))
    }

    /// Waits for all, outside of a callback.
    pub fn wait(&self) {
        for fence in self.fences() {
            let _over = fence.wait();
        }
    }
}

impl Default for Pending {
    fn default() -> Self {
        Self::new()
    }
}

/// Locks one buffer for a submission: what backs off waits for the older one and has it then.
pub fn reserve<'a>(resv: &'a Resv, ticket: &'a Ticket) -> Reserved<'a> {
    match resv.lock(ticket) {
        Ok(reserved) => reserved,
        Err(_) => resv.lock_slowly(ticket),
    }
}
