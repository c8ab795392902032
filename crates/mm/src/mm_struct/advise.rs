//! Advice: what the program knows of its own future.
//!
//! Linux counterpart: `madvise`.

use super::demand::Demand;
use super::fault::FrameSource;
use super::{Scope, Vma};
use crate::addr::{PageIndex, PageRun};
use crate::fault::FaultError;
use crate::gfp::might_notify;
use crate::limits::REAP_CHUNK_PAGES;
use crate::mmu_notifier::{BracketError, Event};
use core::fmt;

/// What is going to happen to a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// The contents are not needed: the range reads as zeros afterwards (`MADV_DONTNEED`).
    DontNeed,
    /// The range will not be used for long: it is moved to the store (`MADV_PAGEOUT`). Pinned and
    /// locked pages stay.
    PageOut,
    /// The range will not be used soon: it stands by, and goes before anything else if memory runs
    /// short (`MADV_COLD`). Pinned and locked pages stay.
    Cold,
    /// The contents can be done without when memory runs out: they are given up before anybody is
    /// killed, and the range reads as zeros then. Written or not, it stays so until
    /// [`Advice::Keep`]. Pinned and locked pages stay. (`MADV_FREE`, for the last resort.)
    Discardable,
    /// The contents are needed again: those that were not given up until now stay.
    Keep,
    /// The range will be used soon: it is made resident as far as frames are free
    /// (`MADV_WILLNEED`).
    WillNeed,
}

/// Why advice was not taken.
#[derive(Clone, Debug)]
pub enum AdviseError {
    /// The run leaves the mapping.
    OutOfRange {
        /// The run.
        run: PageRun,
        /// The pages of the mapping.
        nr_pages: u32,
    },
    /// A page is pinned, so its contents cannot be given up. If it was pinned after the call began,
    /// other pages may have been given up.
    Pinned {
        /// The first such page.
        page: PageIndex,
    },
    /// A page is locked, so its contents cannot be given up.
    Locked {
        /// The first such page.
        page: PageIndex,
    },
    /// A device did not let go in time. Pages before the one named by the error's range may have
    /// been given up.
    Notifier(BracketError),
    /// Devices subscribe and threads use the range all the time, so that it cannot be given up.
    Contended,
    /// A page cannot be made resident.
    Fault(FaultError),
}

/// Rounds before the range counts as contended.
const DONT_NEED_ROUNDS: u32 = 256;

fn pinned(page: PageIndex) -> AdviseError {
    AdviseError::Pinned { page }
}

impl fmt::Display for AdviseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange { run, nr_pages } => {
                write!(f, "{run} is outside of a mapping of {nr_pages} pages")
            }
            Self::Pinned { page } => {
                write!(
                    f,
                    "page {page} is pinned; drop its guards and finish its I/O first"
                )
            }
            Self::Locked { page } => write!(f, "page {page} is locked; drop its `Mlock` first"),
            Self::Contended => {
                write!(f, "the range is in use all the time; stop using it first")
            }
            Self::Notifier(error) => write!(f, "{error}"),
            Self::Fault(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for AdviseError {}

impl Vma {
    /// Takes advice for `run`. May block for devices; not callable from a notifier, nor under a
    /// lock that one takes.
    ///
    /// # Errors
    ///
    /// See [`AdviseError`].
    pub fn advise(&self, run: PageRun, advice: Advice) -> Result<(), AdviseError> {
        if run
            .first
            .checked_add(run.nr)
            .is_none_or(|end| end > self.nr_pages())
        {
            return Err(AdviseError::OutOfRange {
                run,
                nr_pages: self.nr_pages(),
            });
        }
        if let Some(error) = self.gone() {
            return Err(AdviseError::Fault(error));
        }
        if advice != Advice::WillNeed {
            might_notify();
        }
        match advice {
            Advice::DontNeed => self.dont_need(run),
            Advice::PageOut => self.page_out(run).map_err(AdviseError::Notifier),
            Advice::Cold => self.cool(run).map_err(AdviseError::Notifier),
            Advice::Discardable => {
                self.add_discardable(run);
                Ok(())
            }
            Advice::Keep => {
                self.keep(run);
                Ok(())
            }
            Advice::WillNeed => self.will_need(run),
        }
    }

    fn dont_need(&self, run: PageRun) -> Result<(), AdviseError> {
        if let Some(page) = self.pinned_in(run) {
            return Err(pinned(page));
        }
        if let Some(page) = self.locked_in(run) {
            return Err(AdviseError::Locked { page });
        }
        let mut first = run.first;
        while first < run.end() {
            let chunk = PageRun::new(first, REAP_CHUNK_PAGES.min(run.end() - first));
            self.dont_need_chunk(chunk)?;
            first = chunk.end();
        }
        Ok(())
    }

    fn dont_need_chunk(&self, chunk: PageRun) -> Result<(), AdviseError> {
        let (start, end) = (self.address(chunk.first), self.address(chunk.end()));
        let memcg = self.memcg();
        let deadline = memcg.limits.settle_deadline;
        // Again when a device has subscribed meanwhile, which was not told.
        for _ in 0..DONT_NEED_ROUNDS {
            let _pending = memcg.reclaim.pending.begin(memcg.clock.now_ns());
            let began_ns = self.mm().note_begin();
            let bracket = self
                .mm()
                .notifiers()
                .start_blockable(start, end, Event::Clear, deadline)
                .map_err(AdviseError::Notifier)?;
            let outcome = self.zap_told(chunk, Scope::Told(&bracket));
            self.mm().note_bracket(chunk, began_ns);
            if outcome.pinned > 0 {
                let locked = |page| AdviseError::Locked { page };
                let found = self.pinned_in(chunk).map(pinned);
                let found = found.or_else(|| self.locked_in(chunk).map(locked));
                return Err(found.unwrap_or(AdviseError::Contended));
            }
            if outcome.busy == 0 || self.gone().is_some() {
                return Ok(());
            }
        }
        Err(AdviseError::Contended)
    }

    fn pinned_in(&self, run: PageRun) -> Option<PageIndex> {
        run.pages().find(|&page| self.pages.load(page).pins() > 0)
    }

    fn will_need(&self, run: PageRun) -> Result<(), AdviseError> {
        for page in run.pages() {
            if self.pages.load(page).is_mapped() {
                continue;
            }
            match self.fault_in(page, Demand::Ahead, FrameSource::Free) {
                Ok(_) => {}
                Err(FaultError::NoFrame { .. }) => return Ok(()),
                Err(error) => return Err(AdviseError::Fault(error)),
            }
        }
        Ok(())
    }
}
