//! Pins: pages that stay where they are.
//!
//! A pin makes its pages resident and keeps them so: reclaim passes over them before it asks any
//! notifier. It is both the way in which the processor uses memory without a trap (a *guard*) and
//! the way in which an operation of a device is protected from submission to completion.
//!
//! Linux counterpart: `pin_user_pages`, `unpin_user_pages`.

use super::demand::Demand;
use super::fault::{FrameSource, Resolved};
use super::pin_holder::PinHolder;
use super::{Scope, Vma};
use crate::addr::{PageIndex, PageRun};
use crate::fault::FaultError;
use crate::gfp::{Gfp, might_alloc};
use crate::limits::PINS_PER_PAGE_MAX;
use crate::page::State;
use crate::primary_mmu::Access;
use core::fmt;
use core::sync::atomic::Ordering;
use std::sync::Arc;

/// Why pages cannot be pinned. Nothing stays pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PinError {
    /// A page cannot be made resident.
    Fault {
        /// The page.
        page: PageIndex,
        /// Why.
        error: FaultError,
    },
    /// The page is pinned as often as a page can be.
    TooManyPins {
        /// The page.
        page: PageIndex,
    },
    /// The run has more pages than the memory cgroup has frames: it can never be pinned at once.
    AboveLimit {
        /// The pages of the run.
        nr_pages: u32,
        /// The frames that there are.
        frames_max: u64,
    },
    /// The run leaves the mapping.
    OutOfRange {
        /// The run.
        run: PageRun,
        /// The pages of the mapping.
        nr_pages: u32,
    },
}

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault { page, error } => write!(f, "page {page} cannot be pinned: {error}"),
            Self::TooManyPins { page } => write!(f, "page {page} has too many pins already"),
            Self::AboveLimit {
                nr_pages,
                frames_max,
            } => write!(
                f,
                "{nr_pages} pages cannot be pinned at once under a limit of {frames_max} frames; \
                 pin fewer at a time, or raise `max`"
            ),
            Self::OutOfRange { run, nr_pages } => {
                write!(f, "{run} is outside of a mapping of {nr_pages} pages")
            }
        }
    }
}

impl std::error::Error for PinError {}

/// Keeps pages resident until it is dropped.
#[derive(Debug)]
#[must_use = "the pages are unpinned when this is dropped"]
pub struct Pin {
    vma: Arc<Vma>,
    run: PageRun,
    access: Access,
    holder: Option<PinHolder>,
}

impl Vma {
    /// Pins the pages of `run` for `access`. Not callable under a lock that a notifier takes, nor
    /// from a notifier.
    ///
    /// Such a pin is counted, and nobody is told whose it is: for memory that is let go of soon.
    /// What stays pinned for longer should have a name; see [`Vma::pin_for`].
    ///
    /// # Errors
    ///
    /// See [`PinError`].
    #[track_caller]
    pub fn pin(self: &Arc<Self>, run: PageRun, access: Access, gfp: Gfp) -> Result<Pin, PinError> {
        self.pin_with(None, run, access, gfp)
    }

    /// The same in the name of `holder`: its pages are counted by it from the moment in which each
    /// is pinned, also while the rest of `run` waits for frames.
    ///
    /// # Errors
    ///
    /// See [`PinError`].
    ///
    /// # Panics
    ///
    /// If `holder` is of another address space.
    #[track_caller]
    pub fn pin_for(
        self: &Arc<Self>,
        holder: &PinHolder,
        run: PageRun,
        access: Access,
        gfp: Gfp,
    ) -> Result<Pin, PinError> {
        holder.assert_of(self.mm().id());
        self.pin_with(Some(holder), run, access, gfp)
    }

    #[track_caller]
    fn pin_with(
        self: &Arc<Self>,
        holder: Option<&PinHolder>,
        run: PageRun,
        access: Access,
        gfp: Gfp,
    ) -> Result<Pin, PinError> {
        if run
            .first
            .checked_add(run.nr)
            .is_none_or(|end| end > self.nr_pages())
        {
            return Err(PinError::OutOfRange {
                run,
                nr_pages: self.nr_pages(),
            });
        }
        let frames_max = self.memcg().frames().max();
        if u64::from(run.nr) > frames_max {
            return Err(PinError::AboveLimit {
                nr_pages: run.nr,
                frames_max,
            });
        }
        self.mm().notifiers().note_touch();
        might_alloc(gfp);
        let source = FrameSource::of(gfp);
        // Grows page by page, so that an error unpins what is pinned so far.
        let mut pin = Pin {
            vma: Arc::clone(self),
            run: PageRun::new(run.first, 0),
            access,
            holder: holder.cloned(),
        };
        for page in run.pages() {
            self.pin_page(page, access, source)?;
            pin.run.nr += 1;
            // Page by page, too: who waits for more is to be seen with what it has.
            if let Some(holder) = holder {
                holder.add(1);
            }
        }
        Ok(pin)
    }

    fn pin_page(
        &self,
        page: PageIndex,
        access: Access,
        source: FrameSource,
    ) -> Result<(), PinError> {
        loop {
            if let Some(error) = self.gone() {
                return Err(PinError::Fault { page, error });
            }
            let seen = self.pages.load(page);
            if seen.pins() == PINS_PER_PAGE_MAX {
                return Err(PinError::TooManyPins { page });
            }
            let is_usable = access == Access::Read || !seen.is_protected();
            let is_pinned = if seen.is_mapped() && is_usable {
                let pinned = seen.pinned().ok_or(PinError::TooManyPins { page })?;
                // This also rescues a page that reclaim has chosen.
                self.try_change(page, seen, pinned.with_state(State::Resident))
            } else {
                let resolved = self.fault_in(page, Demand::Pin(access), source);
                resolved.map_err(|error| PinError::Fault { page, error })? != Resolved::InPlace
            };
            if is_pinned {
                self.mm().rss.pins.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
        }
    }

    fn unpin_page(&self, page: PageIndex) {
        loop {
            let seen = self.pages.load(page);
            if seen.state() == State::Moving {
                self.waiters.wait(&self.pages, page);
                continue;
            }
            if self.try_change(page, seen, seen.unpinned()) {
                break;
            }
        }
        self.mm().rss.pins.fetch_sub(1, Ordering::Relaxed);
        if self.is_dead() {
            // Unmapped while it was pinned: every device was told then, so it may go now.
            // Nobody comes back to it, so this does while somebody else is moving it.
            while self.zap_told(PageRun::single(page), Scope::Gone).busy > 0 {}
        } else if self.mm().is_killed() {
            self.memcg().oom.wake_reaper();
        }
    }
}

impl Pin {
    /// The mapping.
    pub fn vma(&self) -> &Arc<Vma> {
        &self.vma
    }

    /// The pages.
    pub fn run(&self) -> PageRun {
        self.run
    }

    /// What the pages are pinned for.
    pub fn access(&self) -> Access {
        self.access
    }

    /// In whose name they are pinned, if in anybody's.
    pub fn holder(&self) -> Option<&PinHolder> {
        self.holder.as_ref()
    }

    /// The pages are pinned in the name of `holder` from now on: for who hands them on.
    ///
    /// # Panics
    ///
    /// If `holder` is of another address space.
    #[track_caller]
    pub fn hand_to(&mut self, holder: &PinHolder) {
        holder.assert_of(self.vma.mm().id());
        let nr_pages = u64::from(self.run.nr);
        // First: a page that is pinned for both is told of, never one that is pinned for neither.
        holder.add(nr_pages);
        if let Some(older) = self.holder.replace(holder.clone()) {
            older.sub(nr_pages);
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        for page in self.run.pages() {
            // First: what is left is told of as soon as a page is unpinned.
            if let Some(holder) = &self.holder {
                holder.sub(1);
            }
            self.vma.unpin_page(page);
        }
    }
}
