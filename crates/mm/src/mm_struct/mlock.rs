//! Locked memory: pages that reclaim never takes.
//!
//! A locked page stays in its frame for the sake of the program, not of a device: devices may be
//! told about it like about any other, and the reaper of a killed address space takes it. So a
//! lock is no pin. Windows of locked pages do not count among those that the hands of reclaim look
//! at: that is the unevictable list.
//!
//! Linux counterpart: `mm/mlock.c`. There a range is locked or it is not; here each [`Mlock`]
//! counts, and a page is let go with the last one that covers it.

use super::Vma;
use super::demand::Demand;
use super::fault::FrameSource;
use crate::addr::{PageIndex, PageRun};
use crate::fault::FaultError;
use crate::gfp::Gfp;
use crate::page::State;
use crate::primary_mmu::Access;
use core::fmt;
use core::sync::atomic::Ordering;
use std::sync::Arc;

/// Why pages cannot be locked. Nothing stays locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MlockError {
    /// A page cannot be made resident.
    Fault {
        /// The page.
        page: PageIndex,
        /// Why.
        error: FaultError,
    },
    /// The run leaves the mapping.
    OutOfRange {
        /// The run.
        run: PageRun,
        /// The pages of the mapping.
        nr_pages: u32,
    },
}

impl fmt::Display for MlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault { page, error } => write!(f, "page {page} cannot be locked: {error}"),
            Self::OutOfRange { run, nr_pages } => {
                write!(f, "{run} is outside of a mapping of {nr_pages} pages")
            }
        }
    }
}

impl std::error::Error for MlockError {}

/// Keeps pages in their frames until it is dropped, or they are unmapped, or their address space is
/// killed.
#[derive(Debug)]
#[must_use = "the pages are let go when this is dropped"]
pub struct Mlock {
    vma: Arc<Vma>,
    run: PageRun,
}

impl Vma {
    /// Makes the pages of `run` resident and locks them. What is locked counts against the limit:
    /// to lock more than fits is to run out of memory. May reclaim and wait for frames: not
    /// callable under a lock that a notifier takes, nor from a notifier.
    ///
    /// # Errors
    ///
    /// See [`MlockError`].
    pub fn mlock(self: &Arc<Self>, run: PageRun) -> Result<Mlock, MlockError> {
        let nr_pages = self.nr_pages();
        if run
            .first
            .checked_add(run.nr)
            .is_none_or(|end| end > nr_pages)
        {
            return Err(MlockError::OutOfRange { run, nr_pages });
        }
        // From here on no other lock's end unlocks these pages; an error ends this one.
        self.locked.lock().push(run);
        let mlock = Mlock {
            vma: Arc::clone(self),
            run,
        };
        for page in run.pages() {
            self.lock_page(page)
                .map_err(|error| MlockError::Fault { page, error })?;
        }
        Ok(mlock)
    }

    /// Pages that are locked now.
    pub fn nr_locked(&self) -> u64 {
        self.nr_locked.load(Ordering::Relaxed)
    }

    /// The first locked page of `run`.
    pub(super) fn locked_in(&self, run: PageRun) -> Option<PageIndex> {
        if self.nr_locked() == 0 {
            return None;
        }
        run.pages().find(|&page| self.pages.load(page).is_locked())
    }

    fn lock_page(&self, page: PageIndex) -> Result<(), FaultError> {
        loop {
            let seen = self.load_settled(page);
            if let Some(error) = self.gone() {
                return Err(error);
            }
            if seen.is_mapped() && seen.is_locked() {
                return Ok(());
            }
            if !seen.is_mapped() {
                let demand = Demand::Use(Access::Read);
                self.fault_in(page, demand, FrameSource::of(Gfp::Kernel))?;
                continue;
            }
            let Some(owned) = self.try_own(page, seen) else {
                continue;
            };
            if let Some(error) = self.gone() {
                self.restore(owned);
                return Err(error);
            }
            // This also rescues a page that reclaim has chosen. It will not be stored for long, so
            // the store need not keep a copy.
            let was = owned.was;
            let next = was.with_state(State::Resident).used().locked();
            self.publish(owned, next.dirty().without_copy());
            self.free_copy(was.copy());
            return Ok(());
        }
    }

    fn unlock_page(&self, page: PageIndex) {
        loop {
            let seen = self.load_settled(page);
            if !seen.is_locked() {
                return;
            }
            if let Some(owned) = self.try_own(page, seen) {
                let was = owned.was;
                return self.publish(owned, was.unlocked());
            }
        }
    }
}

impl Mlock {
    /// The mapping.
    pub fn vma(&self) -> &Arc<Vma> {
        &self.vma
    }

    /// The pages.
    pub fn run(&self) -> PageRun {
        self.run
    }
}

impl Drop for Mlock {
    fn drop(&mut self) {
        // Held to the end: a lock that begins meanwhile must not lose its pages to this one.
        let mut locked = self.vma.locked.lock();
        if let Some(at) = locked.iter().position(|run| *run == self.run) {
            locked.swap_remove(at);
        }
        for page in self.run.pages() {
            if !locked.iter().any(|run| run.contains(page)) {
                self.vma.unlock_page(page);
            }
        }
    }
}
