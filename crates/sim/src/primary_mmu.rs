//! A primary MMU without a kernel, which checks how it is used.
//!
//! # What is simulated
//!
//! Each page has the two places of [`PrimaryMmu`]'s contract, write protection, poison, and pins
//! that only the machine knows of. An operation on a run works page by page, with a scheduler
//! point at each, so that everything that may race with it does, in some run. CPU accesses come in
//! through [`SimMmu::cpu_read`] and [`SimMmu::cpu_write`]: they fault, wait and repeat as a
//! processor does.
//!
//! # What is checked
//!
//! Two operations that meet on one page, a reattach from an empty slot, a fill over a page that is
//! in its slot, and whatever else the contract rules out, end the run with a panic that begins
//! with "broken contract". What other programs may do to the range is no breach but an error:
//! [`SimMmu::foreign_fill`], [`SimMmu::foreign_discard`].

mod cpu;
mod pin;
#[cfg(test)]
mod tests;

pub use pin::KernelPin;

use crate::frames::{Frame, Frames};
use crate::rng;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use lockdep::sync::ShortLock;
use pinless_mm::addr::{PAGE_SIZE, PageBuf, PageIndex, PageRun, Vaddr};
use pinless_mm::primary_mmu::{
    Access, Detached, DmaFault, MapStopped, MmuError, PrimaryMmu, ReuseFrames,
};
use std::fmt;
use std::sync::Arc;

/// Operations of one mapping that may be under way at the same time.
const OPERATIONS_MAX: usize = 256;

/// The simulated primary MMU of one mapping.
pub struct SimMmu {
    base: Vaddr,
    is_shared: bool,
    pages: Box<[ShortLock<Page>]>,
    frames: Arc<Frames>,
    operations: ShortLock<Vec<Operation>>,
    faults: ShortLock<MachineFaults>,
    nr_lots: AtomicU64,
    /// How often it was asked how it detaches.
    nr_asked: AtomicU64,
}

/// How the machine misbehaves: all but the last within its contract. Zero means never.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct MachineFaults {
    /// Where chance starts.
    pub seed: u64,
    /// One page in this many is busy when it is to be detached.
    pub busy_one_in: u32,
    /// At one page in this many a detach stops with [`MmuError::Gone`].
    pub detach_fails_one_in: u32,
    /// One page in this many cannot be filled, for [`MmuError::NoMemory`].
    pub no_memory_one_in: u32,
    /// One page in this many is detached by copying it and discarding it afterwards, which loses
    /// what is written between. Breaks the contract: for tests that must fail.
    pub copy_then_discard_one_in: u32,
}

/// An operation that owns its pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Operation {
    name: &'static str,
    run: PageRun,
}

/// One page and its two places.
#[derive(Default)]
struct Page {
    address: Option<Frame>,
    slot: Option<Frame>,
    is_protected: bool,
    is_poisoned: bool,
    /// Pins on the frame at the address.
    nr_pins: u32,
    /// Frames that left while they were pinned.
    doomed: Vec<pin::Doomed>,
    /// Counts the frames that left while they were pinned: tells whose pin is whose.
    nr_doomed: u64,
}

impl SimMmu {
    /// A private mapping of `nr_pages` holes at `base`, on a machine's frames.
    ///
    /// # Panics
    ///
    /// If the base is not at a page boundary.
    pub fn new(base: Vaddr, nr_pages: u32, frames: &Arc<Frames>) -> Arc<Self> {
        Arc::new(Self::holes(base, nr_pages, frames))
    }

    /// The same of a file: a frame stays with its page.
    ///
    /// # Panics
    ///
    /// If the base is not at a page boundary.
    pub fn shared(base: Vaddr, nr_pages: u32, frames: &Arc<Frames>) -> Arc<Self> {
        let mut mmu = Self::holes(base, nr_pages, frames);
        mmu.is_shared = true;
        Arc::new(mmu)
    }

    fn holes(base: Vaddr, nr_pages: u32, frames: &Arc<Frames>) -> Self {
        assert_eq!(base.0 % PAGE_SIZE as u64, 0, "{base} is inside a page");
        let page = |_| ShortLock::new("sim.page", Page::default());
        Self {
            base,
            is_shared: false,
            pages: (0..nr_pages).map(page).collect(),
            frames: Arc::clone(frames),
            operations: ShortLock::new("sim.operations", Vec::with_capacity(OPERATIONS_MAX)),
            faults: ShortLock::new("sim.faults", MachineFaults::default()),
            nr_lots: AtomicU64::new(0),
            nr_asked: AtomicU64::new(0),
        }
    }

    /// Starts to misbehave, or stops.
    pub fn inject(&self, faults: MachineFaults) {
        *self.faults.lock() = faults;
    }

    /// Another program puts a page at the address of `page`.
    pub fn foreign_fill(&self, page: PageIndex, contents: &PageBuf) {
        let frame = self
            .frames
            .take(contents)
            .expect("the machine has a frame for the intruder");
        let mut at = self.page(page).lock();
        let taken = at.take_address();
        at.address = Some(frame);
        drop(at);
        drop(taken);
    }

    /// Another program discards the pages at the addresses of `run`.
    pub fn foreign_discard(&self, run: PageRun) {
        for page in run.pages() {
            let taken = self.page(page).lock().take_address();
            drop(taken);
        }
    }

    /// Whether a page is in the slot of `page`.
    pub fn is_in_slot(&self, page: PageIndex) -> bool {
        self.page(page).lock().slot.is_some()
    }

    /// The contents at the address of `page`, without a fault.
    pub fn peek(&self, page: PageIndex) -> Option<PageBuf> {
        let page = self.page(page).lock();
        page.address.as_ref().map(|frame| *frame.contents())
    }

    fn page(&self, page: PageIndex) -> &ShortLock<Page> {
        let nr_pages = self.pages.len();
        self.pages
            .get(page as usize)
            .unwrap_or_else(|| breach(format_args!("page {page} of a mapping of {nr_pages}")))
    }

    /// Whether something that happens once in `one_in` times happens now.
    fn draw(&self, one_in: impl FnOnce(&MachineFaults) -> u32) -> bool {
        let faults = *self.faults.lock();
        let one_in = u64::from(one_in(&faults));
        if one_in == 0 {
            return false;
        }
        let lot = rng::nth(faults.seed, self.nr_lots.fetch_add(1, Relaxed));
        lot.is_multiple_of(one_in)
    }

    /// Says that an operation owns `run` until the guard is dropped.
    fn begin(&self, name: &'static str, run: PageRun) -> Owning<'_> {
        if run.end() as usize > self.pages.len() || run.nr == 0 {
            breach(format_args!("{name} of {run}, which is not in the mapping"));
        }
        let new = Operation { name, run };
        let mut operations = self.operations.lock();
        let met = operations
            .iter()
            .find(|other| other.run.overlaps(run))
            .copied();
        assert!(
            operations.len() < OPERATIONS_MAX,
            "more operations at once than are watched"
        );
        operations.push(new);
        drop(operations);
        if let Some(other) = met {
            let _owning = Owning {
                mmu: self,
                operation: new,
            };
            breach(format_args!(
                "{name} of {run} met {} of {}",
                other.name, other.run
            ));
        }
        Owning {
            mmu: self,
            operation: new,
        }
    }

    /// Puts a page at an address that is a hole.
    fn fill(&self, page: PageIndex, contents: &PageBuf, access: Access) -> Result<(), MmuError> {
        if self.draw(|faults| faults.no_memory_one_in) {
            return Err(MmuError::NoMemory);
        }
        let frame = self.frames.take(contents).ok_or(MmuError::NoMemory)?;
        let mut at = self.page(page).lock();
        if at.slot.is_some() {
            drop(at);
            breach(format_args!(
                "a fill of page {page}, whose contents are in its slot"
            ));
        }
        if at.address.is_some() || at.is_poisoned {
            // The frame goes back after the lock is released: short locks do not nest.
            drop(at);
            drop(frame);
            return Err(MmuError::ForeignFill { page });
        }
        at.address = Some(frame);
        at.is_protected = access == Access::Read;
        Ok(())
    }

    fn detach_one(&self, page: PageIndex) -> Detached {
        let is_busy = self.draw(|faults| faults.busy_one_in);
        if self.draw(|faults| faults.copy_then_discard_one_in) {
            return self.copy_then_discard(page);
        }
        let mut at = self.page(page).lock();
        match (at.address.is_some(), at.slot.is_some()) {
            (false, false) => Detached::Hole,
            (false, true) => Detached::Done,
            (true, true) => {
                drop(at);
                breach(format_args!("a detach of page {page}, whose slot is taken"))
            }
            (true, false) if is_busy || at.nr_pins > 0 => Detached::Busy,
            (true, false) => {
                at.slot = at.address.take();
                at.is_protected = false;
                Detached::Done
            }
        }
    }

    fn copy_then_discard(&self, page: PageIndex) -> Detached {
        let Some(contents) = self.peek(page) else {
            return Detached::Hole;
        };
        let copy = self.frames.take(&contents);
        let mut at = self.page(page).lock();
        at.slot = copy;
        let taken = at.take_address();
        drop(at);
        drop(taken);
        Detached::Done
    }

    fn reattach_one(&self, page: PageIndex) -> Result<(), MmuError> {
        let mut at = self.page(page).lock();
        if at.slot.is_none() {
            drop(at);
            breach(format_args!(
                "a reattach of page {page}, whose slot is empty"
            ));
        }
        if at.address.is_some() || at.is_poisoned {
            return Err(MmuError::ForeignFill { page });
        }
        at.address = at.slot.take();
        at.is_protected = false;
        Ok(())
    }
}

impl SimMmu {
    /// Moves what is in the slot of `from` to the address of `page`.
    fn map_one_detached(&self, page: PageIndex, from: PageIndex) -> Result<(), MmuError> {
        if self.draw(|faults| faults.no_memory_one_in) {
            return Err(MmuError::NoMemory);
        }
        let Some(frame) = self.page(from).lock().slot.take() else {
            breach(format_args!(
                "a move from the slot of page {from}, which is empty"
            ));
        };
        let mut at = self.page(page).lock();
        if at.slot.is_some() {
            drop(at);
            breach(format_args!(
                "a fill of page {page}, whose contents are in its slot"
            ));
        }
        if at.address.is_some() || at.is_poisoned {
            drop(at);
            self.page(from).lock().slot = Some(frame);
            return Err(MmuError::ForeignFill { page });
        }
        at.address = Some(frame);
        at.is_protected = false;
        Ok(())
    }
}

/// What has to be given back after a page was taken from its address.
#[must_use = "to be dropped after the lock of the page"]
struct Taken(#[expect(dead_code, reason = "held for its destructor")] Option<Frame>);

impl Page {
    /// Takes the frame from the address. One that is pinned stays with who pinned it.
    fn take_address(&mut self) -> Taken {
        self.is_protected = false;
        let frame = self.address.take();
        match frame {
            Some(frame) if self.nr_pins > 0 => {
                self.doom(frame);
                Taken(None)
            }
            frame => Taken(frame),
        }
    }
}

/// Ends an operation when dropped.
struct Owning<'a> {
    mmu: &'a SimMmu,
    operation: Operation,
}

impl Drop for Owning<'_> {
    fn drop(&mut self) {
        let mut operations = self.mmu.operations.lock();
        let found = operations.iter().position(|other| *other == self.operation);
        operations.swap_remove(found.expect("an operation ends once"));
    }
}

/// Ends the run: the memory manager used the machine in a way that the contract rules out.
#[track_caller]
fn breach(what: fmt::Arguments<'_>) -> ! {
    panic!("broken contract of PrimaryMmu: {what}")
}

impl PrimaryMmu for SimMmu {
    fn base(&self) -> Vaddr {
        self.base
    }

    fn nr_pages(&self) -> u32 {
        self.pages.len() as u32
    }

    fn is_shared(&self) -> bool {
        self.is_shared
    }

    fn map_zero(&self, run: PageRun) -> Result<(), MmuError> {
        let _owning = self.begin("map_zero", run);
        let zeros = [0; PAGE_SIZE];
        run.pages()
            .try_for_each(|page| self.fill(page, &zeros, Access::Write))
    }

    fn map_filled(
        &self,
        page: PageIndex,
        contents: &PageBuf,
        access: Access,
    ) -> Result<(), MmuError> {
        let _owning = self.begin("map_filled", PageRun::single(page));
        self.fill(page, contents, access)
    }

    fn detach(&self, run: PageRun, outcome: &mut [Detached]) -> Result<(), MmuError> {
        let _owning = self.begin("detach", run);
        assert_eq!(outcome.len(), run.nr as usize, "one outcome for each page");
        let mut stopped = None;
        for (page, outcome) in run.pages().zip(outcome) {
            if stopped.is_none() && self.draw(|faults| faults.detach_fails_one_in) {
                stopped = Some(page);
            }
            *outcome = match stopped {
                None => self.detach_one(page),
                Some(_) => match self.page(page).lock().places() {
                    (true, _) => Detached::Busy,
                    (false, true) => Detached::Done,
                    (false, false) => Detached::Hole,
                },
            };
        }
        stopped.map_or(Ok(()), |page| Err(MmuError::Gone { page }))
    }

    /// Now this and now that: both ways are right on any machine.
    fn detaches_over_holes(&self) -> bool {
        self.nr_asked.fetch_add(1, Relaxed).is_multiple_of(2)
    }

    fn reattach(&self, run: PageRun) -> Result<(), MmuError> {
        let _owning = self.begin("reattach", run);
        run.pages().try_for_each(|page| self.reattach_one(page))
    }

    fn read_detached(&self, page: PageIndex, into: &mut PageBuf) {
        let _owning = self.begin("read_detached", PageRun::single(page));
        let at = self.page(page).lock();
        match &at.slot {
            Some(frame) => *into = *frame.contents(),
            None => {
                drop(at);
                breach(format_args!(
                    "a read of the slot of page {page}, which is empty"
                ));
            }
        }
    }

    fn free_detached(&self, run: PageRun) -> Result<(), MmuError> {
        let _owning = self.begin("free_detached", run);
        for page in run.pages() {
            let taken = self.page(page).lock().slot.take();
            drop(taken);
        }
        Ok(())
    }

    fn reuse(&self) -> Option<&dyn ReuseFrames> {
        (!self.is_shared).then_some(self)
    }

    fn zap(&self, run: PageRun) -> Result<(), MmuError> {
        let _owning = self.begin("zap", run);
        for page in run.pages() {
            let mut at = self.page(page).lock();
            at.is_poisoned = false;
            let taken = at.take_address();
            drop(at);
            drop(taken);
        }
        Ok(())
    }

    fn protect(&self, run: PageRun, access: Access) -> Result<(), MmuError> {
        for page in run.pages() {
            let mut at = self.page(page).lock();
            at.is_protected = at.address.is_some() && access == Access::Read;
        }
        Ok(())
    }

    fn poison(&self, run: PageRun) -> Result<(), MmuError> {
        let _owning = self.begin("poison", run);
        for page in run.pages() {
            let mut at = self.page(page).lock();
            at.is_poisoned |= at.address.is_none();
        }
        Ok(())
    }

    fn is_present(&self, page: PageIndex) -> bool {
        self.page(page).lock().address.is_some()
    }

    fn dma_read(&self, offset: u64, into: &mut [u8]) -> Result<(), DmaFault> {
        let (page, within) = cpu::place(offset, into.len());
        let at = self.page(page).lock();
        let frame = at.address.as_ref().ok_or(DmaFault)?;
        into.copy_from_slice(&frame.contents()[within]);
        Ok(())
    }

    /// A page that is write-protected is a fault too: nobody would learn that it is dirty.
    fn dma_write(&self, offset: u64, from: &[u8]) -> Result<(), DmaFault> {
        let (page, within) = cpu::place(offset, from.len());
        let mut at = self.page(page).lock();
        if at.is_protected {
            return Err(DmaFault);
        }
        let frame = at.address.as_mut().ok_or(DmaFault)?;
        frame.contents_mut()[within].copy_from_slice(from);
        Ok(())
    }
}

impl ReuseFrames for SimMmu {
    fn write_detached(&self, page: PageIndex, contents: &PageBuf) {
        let _owning = self.begin("write_detached", PageRun::single(page));
        let mut at = self.page(page).lock();
        if let Some(frame) = at.slot.as_mut() {
            *frame.contents_mut() = *contents;
            return;
        }
        drop(at);
        breach(format_args!(
            "a write to the slot of page {page}, which is empty"
        ));
    }

    fn map_detached(&self, run: PageRun, from: PageIndex) -> Result<(), MapStopped> {
        let _owning = self.begin("map_detached to", run);
        let _owning_slots = self.begin("map_detached from", PageRun::new(from, run.nr));
        for (nr_done, page) in (0..).zip(run.pages()) {
            self.map_one_detached(page, from + nr_done)
                .map_err(|error| MapStopped { nr_done, error })?;
        }
        Ok(())
    }
}

impl Page {
    /// Whether there is a page at the address, and in the slot.
    fn places(&self) -> (bool, bool) {
        (self.address.is_some(), self.slot.is_some())
    }
}

impl fmt::Debug for SimMmu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimMmu")
            .field("base", &self.base)
            .field("nr_pages", &self.pages.len())
            .finish_non_exhaustive()
    }
}
