//! Compaction: what is stored takes less room while nobody asks for it.
//!
//! A worker packs pages that have been away for long with the dense codec, where that makes a slot
//! smaller, and empties blocks of the store that have become sparse. It works in small steps with a
//! pause after each, so that it takes a few hundredths of a processor at most; a round begins when
//! enough was evicted or freed since the last.
//!
//! Linux counterpart: `kcompactd`, `zs_compact`; recompression in zram.

use super::bell::Bell;
use crate::addr::PageIndex;
use crate::memcg::Memcg;
use crate::memcg::stat::add;
use crate::mm_struct::{Vma, VmaId};
use crate::page::{State, Word};
use crate::swap::{Owner, SlotHandle, Stored};
use core::time::Duration;
use std::sync::Arc;

#[cfg(feature = "zstd")]
mod pack;

/// The pause after a step.
const PAUSE: Duration = Duration::from_millis(20);

/// The worker's sleep.
#[derive(Debug)]
pub(crate) struct Compaction {
    pub(super) bell: Bell,
}

impl Compaction {
    pub(super) fn new() -> Self {
        Self {
            bell: Bell::new("mm.compact.idle", "mm.compact.wake"),
        }
    }
}

impl Memcg {
    /// The loop of the worker that packs stored pages closer, until [`Memcg::stop`]. One thread; no
    /// fault ever waits for it.
    pub fn run_compact(&self) {
        #[cfg(feature = "zstd")]
        let mut packer = pack::Packer::new();
        let bell = &self.reclaim.compaction.bell;
        while !self.is_stopped() {
            bell.wait(|| self.is_stopped(), None);
            #[cfg(feature = "zstd")]
            packer.begin(self.domain.nr_windows());
            loop {
                let is_done = !self.empty_blocks();
                #[cfg(feature = "zstd")]
                let is_done = !packer.step(self) && is_done;
                if is_done || self.is_stopped() {
                    break;
                }
                bell.rest(|| self.is_stopped(), PAUSE);
            }
        }
    }

    /// Much has changed in the store: wakes the worker.
    pub(crate) fn kick_compaction(&self) {
        self.reclaim.compaction.bell.ring();
    }

    /// Empties the emptiest block of each size that has room for what is in it elsewhere; false
    /// when there is nothing more to win.
    fn empty_blocks(&self) -> bool {
        let mut nr_moved = 0;
        let goes_on = self.zswap.empty_blocks(|owner, slot| {
            nr_moved += u64::from(self.relocate(owner, slot).is_some());
        });
        add(&self.stat.zswpcompact, nr_moved);
        goes_on
    }

    /// Moves the copy of a page to another slot of its size, if that is its slot.
    fn relocate(&self, owner: Owner, (handle, tag): (SlotHandle, u16)) -> Option<()> {
        let old = Stored::Slot { handle, tag };
        let (vma, page) = self.page_at(owner, old)?;
        let seen = vma.pages.load(page);
        if !is_at_rest(seen) || seen.copy() != Some(old) {
            return None;
        }
        let owned = vma.try_own(page, seen)?;
        let Some(new) = self.zswap.copy_slot(owner, (handle, tag)) else {
            vma.restore(owned);
            return None;
        };
        let next = owned.was.with_copy(new);
        vma.publish(owned, next);
        // What is charged for it to the memory cgroups is what was charged before.
        self.zswap.free(old);
        Some(())
    }

    /// The page that a slot says it belongs to, if that is where its copy is: what is in a slot
    /// nobody may have checked yet.
    pub(super) fn page_at(&self, owner: Owner, copy: Stored) -> Option<(Arc<Vma>, PageIndex)> {
        let vma = self.vma_of(owner)?;
        let page = owner.page();
        let is_there = page < vma.nr_pages() && vma.pages.load(page).copy() == Some(copy);
        is_there.then_some((vma, page))
    }

    /// The mapping whose page somebody says he is.
    fn vma_of(&self, owner: Owner) -> Option<Arc<Vma>> {
        let vmas = self.vmas.read();
        vmas.get(&VmaId(owner.mapping().into())).cloned()
    }
}

/// Whether nobody is about to change the page, and its copy with it.
pub(super) fn is_at_rest(word: Word) -> bool {
    matches!(
        word.state(),
        State::Swapped | State::Resident | State::Standby
    )
}
