//! A witness of brackets: does every page leave its address inside of one?
//!
//! The witness listens twice. As a subscriber it notes which windows have an open bracket, and as a
//! layer between the memory manager and the machine it sees when pages leave. A page that leaves
//! while nobody is being told is a change that some device may have missed, whether or not one
//! did.

use super::judge::Failure;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use pinless::mmu_notifier::{Context, EndContext, Notifier, Range};
use pinless::{Access, PAGE_SIZE, PageIndex, PageRun, PrimaryMmu};
use pinless_mm::addr::{PageBuf, Vaddr};
use pinless_mm::primary_mmu::{Detached, DmaFault, MmuError, ReuseFrames};
use std::sync::Arc;

/// The name under which it subscribes.
pub(crate) const NAME: &str = "witness";

/// Pages that share a count.
const WINDOW_PAGES: u64 = 64;

const NO_PAGE: u64 = u64::MAX;

/// What was seen of one mapping.
#[derive(Debug)]
pub(crate) struct Witness {
    base: Vaddr,
    windows: Box<[Window]>,
    is_armed: AtomicBool,
    /// The first page that left outside of a bracket.
    page: AtomicU64,
    /// Whether its window was told of a change since the witness was armed.
    was_told: AtomicBool,
}

#[derive(Debug, Default)]
struct Window {
    nr_open: AtomicU32,
    /// Brackets since the witness was armed.
    nr_begun: AtomicU32,
}

impl Witness {
    pub(crate) fn new(base: Vaddr, nr_pages: u32) -> Arc<Self> {
        let nr_windows = u64::from(nr_pages).div_ceil(WINDOW_PAGES);
        Arc::new(Self {
            base,
            windows: (0..nr_windows).map(|_| Window::default()).collect(),
            is_armed: AtomicBool::new(false),
            page: AtomicU64::new(NO_PAGE),
            was_told: AtomicBool::new(false),
        })
    }

    /// Begins to judge.
    pub(crate) fn arm(&self) {
        for window in &self.windows {
            window.nr_begun.store(0, Ordering::Relaxed);
        }
        self.is_armed.store(true, Ordering::Relaxed);
    }

    /// Ends judging: what follows is a teardown, of which nobody needs to be told.
    pub(crate) fn disarm(&self) {
        self.is_armed.store(false, Ordering::Relaxed);
    }

    /// What did not hold, if anything.
    pub(crate) fn verdict(&self, whose: &str) -> Option<Failure> {
        let page = self.page.load(Ordering::Relaxed);
        let what = if self.was_told.load(Ordering::Relaxed) {
            "it left its address after the bracket had ended: `end` came before the change"
        } else {
            "it left its address outside of any bracket: no device was told of the change"
        };
        (page != NO_PAGE).then(|| Failure {
            whose: whose.to_owned(),
            actor: NAME.to_owned(),
            step: "watching pages leave",
            page: Some(page as PageIndex),
            what: what.to_owned(),
        })
    }

    fn left(&self, run: PageRun) {
        if !self.is_armed.load(Ordering::Relaxed) {
            return;
        }
        for page in run.pages() {
            let window = &self.windows[page as usize / WINDOW_PAGES as usize];
            // Relaxed: the bracket was opened by the thread that now makes the change.
            if window.nr_open.load(Ordering::Relaxed) > 0 {
                continue;
            }
            let was_told = window.nr_begun.load(Ordering::Relaxed) > 0;
            let order = Ordering::Relaxed;
            let first = self
                .page
                .compare_exchange(NO_PAGE, page.into(), order, order);
            if first.is_ok() {
                self.was_told.store(was_told, Ordering::Relaxed);
            }
            return;
        }
    }

    fn windows_of(&self, range: &Range) -> &[Window] {
        let window_bytes = PAGE_SIZE as u64 * WINDOW_PAGES;
        let first = range.start.0.saturating_sub(self.base.0) / window_bytes;
        let end = range
            .end
            .0
            .saturating_sub(self.base.0)
            .div_ceil(window_bytes);
        let end = (end as usize).min(self.windows.len());
        &self.windows[(first as usize).min(end)..end]
    }
}

impl Notifier for Witness {
    fn start<C: Context>(&self, range: &Range, _cx: &C) -> Result<(), C::Refusal> {
        for window in self.windows_of(range) {
            window.nr_begun.fetch_add(1, Ordering::Relaxed);
            window.nr_open.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn end(&self, range: &Range, _cx: &EndContext<'_>) {
        for window in self.windows_of(range) {
            window.nr_open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The machine, with a witness.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) machine: Arc<dyn PrimaryMmu>,
    pub(crate) witness: Arc<Witness>,
}

impl PrimaryMmu for Watched {
    fn base(&self) -> Vaddr {
        self.machine.base()
    }

    fn nr_pages(&self) -> u32 {
        self.machine.nr_pages()
    }

    fn is_shared(&self) -> bool {
        self.machine.is_shared()
    }

    fn map_zero(&self, run: PageRun) -> Result<(), MmuError> {
        self.machine.map_zero(run)
    }

    fn map_filled(&self, page: PageIndex, from: &PageBuf, access: Access) -> Result<(), MmuError> {
        self.machine.map_filled(page, from, access)
    }

    fn detach(&self, run: PageRun, outcome: &mut [Detached]) -> Result<(), MmuError> {
        self.witness.left(run);
        self.machine.detach(run, outcome)
    }

    fn detaches_over_holes(&self) -> bool {
        self.machine.detaches_over_holes()
    }

    fn reattach(&self, run: PageRun) -> Result<(), MmuError> {
        self.machine.reattach(run)
    }

    fn read_detached(&self, page: PageIndex, into: &mut PageBuf) {
        self.machine.read_detached(page, into);
    }

    fn free_detached(&self, run: PageRun) -> Result<(), MmuError> {
        self.machine.free_detached(run)
    }

    fn reuse(&self) -> Option<&dyn ReuseFrames> {
        self.machine.reuse()
    }

    fn zap(&self, run: PageRun) -> Result<(), MmuError> {
        self.witness.left(run);
        self.machine.zap(run)
    }

    fn protect(&self, run: PageRun, access: Access) -> Result<(), MmuError> {
        self.machine.protect(run, access)
    }

    fn poison(&self, run: PageRun) -> Result<(), MmuError> {
        self.machine.poison(run)
    }

    fn is_present(&self, page: PageIndex) -> bool {
        self.machine.is_present(page)
    }

    fn remap(&self, page: PageIndex) -> bool {
        self.machine.remap(page)
    }

    fn dma_read(&self, offset: u64, into: &mut [u8]) -> Result<(), DmaFault> {
        self.machine.dma_read(offset, into)
    }

    fn dma_write(&self, offset: u64, from: &[u8]) -> Result<(), DmaFault> {
        self.machine.dma_write(offset, from)
    }
}
