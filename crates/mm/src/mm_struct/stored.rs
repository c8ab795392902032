//! Hard faults: contents come back from the store.
//!
//! Linux counterpart: `do_swap_page`.

use super::Vma;
use super::demand::Demand;
use super::fault::FrameCharge;
use super::vma::Owned;
use crate::addr::{PAGE_SIZE, PageBuf, PageIndex};
use crate::fault::{FaultError, StoreError};
use crate::memcg::stat::count;
use crate::page::{State, Word};
use crate::primary_mmu::Access;
use crate::reclaim::InFlight;
use crate::swap::{FileHandle, Stored};
use core::sync::atomic::Ordering;

/// Where in the file a page is that is nowhere else.
pub(super) fn in_file(word: Word) -> Option<(FileHandle, u16)> {
    match word.copy() {
        Some(Stored::File { handle, tag }) if word.state() == State::Swapped => Some((handle, tag)),
        _ => None,
    }
}

impl Vma {
    /// Fills an owned page from the compressed store.
    pub(super) fn fill_stored(
        &self,
        owned: Owned,
        demand: Demand,
        charge: FrameCharge<'_>,
    ) -> Result<(), FaultError> {
        let stored = owned.was.copy().expect("a swapped page has a stored copy");
        let mut contents = [0; PAGE_SIZE];
        let zswap = &self.memcg().zswap;
        match zswap.load(self.owner(owned.page), stored, &mut contents) {
            Ok(()) => self.fill_with(owned, demand, charge, &contents),
            Err(cause) => Err(self.lose_stored(owned, cause)),
        }
    }

    /// Fills a page, found as `seen`, from the file, in which it is at `place`. It is read before
    /// the page is owned: a device takes its time, and whoever else needs the page goes on. Gives
    /// the charge back when the page has changed meanwhile.
    #[inline(never)]
    pub(super) fn fill_from_file<'a>(
        &self,
        (page, seen): (PageIndex, Word),
        place: (FileHandle, u16),
        demand: Demand,
        charge: FrameCharge<'a>,
    ) -> Result<Option<FrameCharge<'a>>, FaultError> {
        let generation = self.generation(page);
        let mut contents = [0; PAGE_SIZE];
        let read = self.read_file(page, place, &mut contents);
        let _in_flight = InFlight::new(&self.memcg().reclaim);
        let Some(owned) = self.try_own(page, seen) else {
            return Ok(Some(charge));
        };
        if self.generation(page) != generation {
            self.restore(owned);
            return Ok(Some(charge));
        }
        if let Some(error) = self.gone() {
            self.restore(owned);
            return Err(error);
        }
        match read {
            Ok(()) => self.fill_with(owned, demand, charge, &contents)?,
            Err(StoreError::Unreadable) => {
                let cause = StoreError::Unreadable;
                self.restore(owned);
                return Err(FaultError::Lost { page, cause });
            }
            Err(cause) => return Err(self.lose_stored(owned, cause)),
        }
        Ok(None)
    }

    fn read_file(
        &self,
        page: PageIndex,
        place: (FileHandle, u16),
        into: &mut PageBuf,
    ) -> Result<(), StoreError> {
        let memcg = self.memcg();
        let _stalled = memcg.stall();
        let file = memcg.file().expect("a page is in the file");
        file.load(self.owner(page), place, &memcg.zswap, into)
    }

    /// Whether the file has given something else than what was stored, or nothing.
    pub(super) fn has_file_failed(&self) -> bool {
        let file = self.memcg().file();
        file.is_some_and(|file| file.stats().read_errors > 0)
    }

    /// What is in the store is not what was stored.
    fn lose_stored(&self, owned: Owned, cause: StoreError) -> FaultError {
        let page = owned.page;
        self.mm().rss.swapped.fetch_sub(1, Ordering::Relaxed);
        match self.lose(owned, cause) {
            Ok(()) => FaultError::Lost { page, cause },
            Err(error) => error,
        }
    }

    /// Puts the contents of a stored page at its address.
    pub(super) fn fill_with(
        &self,
        owned: Owned,
        demand: Demand,
        mut charge: FrameCharge<'_>,
        contents: &PageBuf,
    ) -> Result<(), FaultError> {
        let page = owned.page;
        let stored = owned.was.copy().expect("a swapped page has a stored copy");
        let is_kept = self.is_kept(stored, demand);
        let access = if is_kept { Access::Read } else { Access::Write };
        let filled = match stored {
            Stored::SameFilled(0) if is_kept => charge.map_zero(page),
            _ => charge.fill(page, contents, access),
        };
        if let Err(error) = filled {
            self.restore(owned);
            return Err(error.into());
        }
        charge.commit(self.mm());
        if matches!(stored, Stored::File { .. }) {
            count(&self.stat().pswpin);
        }
        self.publish_filled(owned, demand, is_kept);
        Ok(())
    }

    /// A stored page is at its address, and write-protected if its copy is kept.
    pub(super) fn publish_filled(&self, owned: Owned, demand: Demand, is_kept: bool) {
        self.mm().rss.swapped.fetch_sub(1, Ordering::Relaxed);
        let stored = owned.was.copy().expect("a swapped page has a stored copy");
        let filled = owned.was.with_state(State::Resident).unsettled();
        let back = match demand {
            Demand::Trap(_) | Demand::Pin(_) | Demand::Use(_) => self.refault_as(filled),
            Demand::Ahead => filled,
        };
        let next = demand.arrive(back.fresh());
        // A zero page cannot be write-protected: it counts as dirty, and costs nothing to store.
        if is_kept && stored != Stored::SameFilled(0) {
            if !stored.is_same_filled() {
                self.memcg().note_kept_copy(stored);
            }
            self.publish(owned, next.protected().clean());
        } else {
            self.publish(owned, next.dirty().without_copy());
            self.free_copy(Some(stored));
        }
    }

    /// Whether a page that is filled for this stays in the store, too.
    pub(super) fn is_kept(&self, stored: Stored, demand: Demand) -> bool {
        demand.access() == Access::Read && self.keeps_copy(stored)
    }

    /// A clean page need not be stored again. Its copy is kept while the store has room, as the
    /// kernel keeps its swap cache.
    fn keeps_copy(&self, stored: Stored) -> bool {
        let zswap = &self.memcg().zswap;
        match stored {
            Stored::SameFilled(_) | Stored::File { .. } => true,
            Stored::Slot { .. } => zswap.bytes() * 2 <= zswap.max_bytes(),
        }
    }
}
