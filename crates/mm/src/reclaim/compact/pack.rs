//! Packing: pages that have been away for long are compressed once more, densely.
//!
//! A page is looked at once for each time that it is stored: it is *settled* after that. The slot
//! is copied, and packed while nobody owns the page; when the page was used meanwhile, the smaller
//! slot is given back. A slot that is not what was stored stays, for its page to tell.

use super::super::Effort;
use super::super::hands::{Hand, Lap};
use super::super::write_back::slot_of;
use crate::addr::PageIndex;
use crate::memcg::stat::{add, count};
use crate::memcg::{Memcg, Protection};
use crate::mm_struct::Vma;
use crate::swap::{Encoder, Packed, SLOT_BYTES_MAX, Stored};

/// Windows that are looked at in a step.
const STEP_WINDOWS: u64 = 64;

/// Pages that are compressed in a step: half a millisecond of work.
const STEP_PAGES: u32 = 32;

/// Pages of a run of the hand.
const RUN_PAGES: u64 = 16;

/// A page is long away after as many evictions as there are frames, so many times.
const ROUNDS_AWAY: u64 = 4;

/// The work of a round, and what it needs.
pub(super) struct Packer {
    encoder: Encoder,
    windows_left: u64,
}

impl Packer {
    pub(super) fn new() -> Self {
        Self {
            encoder: Encoder::new(),
            windows_left: 0,
        }
    }

    /// A round begins over so many windows.
    pub(super) fn begin(&mut self, nr_windows: u64) {
        // One window more, because the first may be left out in part.
        self.windows_left = nr_windows + 1;
    }

    /// A step of the round; false when the round is over.
    pub(super) fn step(&mut self, memcg: &Memcg) -> bool {
        let nr_windows = self.windows_left.min(STEP_WINDOWS);
        let mut lap = memcg.start_lap(Hand::Pack, Effort::Worker, Protection::Min);
        lap.shorten(nr_windows);
        let mut nr_left = STEP_PAGES;
        while nr_left > 0 && self.pack_run(memcg, &mut lap, &mut nr_left) {}
        // A hand that stops before the end of its way has met no mapping.
        self.windows_left = match lap.windows_left() {
            left if left > 0 && nr_left > 0 => 0,
            left => self.windows_left - (nr_windows - left),
        };
        self.windows_left > 0
    }

    fn pack_run(&mut self, memcg: &Memcg, lap: &mut Lap, nr_left: &mut u32) -> bool {
        let Some((vma, run)) = memcg.next_run(Hand::Pack, lap, RUN_PAGES) else {
            return false;
        };
        for page in run.pages() {
            if vma.pack(page, &mut self.encoder) {
                *nr_left = nr_left.saturating_sub(1);
            }
        }
        true
    }
}

impl Vma {
    /// Packs a stored page closer if it has been away for long; false if there was nothing to do.
    fn pack(&self, page: PageIndex, encoder: &mut Encoder) -> bool {
        let seen = self.pages.load(page);
        let Some((handle, tag)) = slot_of(seen) else {
            return false;
        };
        if seen.is_settled() || !self.has_been_away(seen, ROUNDS_AWAY) {
            return false;
        }
        let generation = self.generation(page);
        let mut slot = [0; SLOT_BYTES_MAX];
        let Some(len) = self.copy_slot(page, seen, (handle, tag), &mut slot) else {
            return false;
        };
        let (memcg, owner) = (self.memcg(), self.owner(page));
        let packed = memcg.zswap.pack(memcg, owner, (&slot[..len], tag), encoder);
        let packed = match packed {
            Packed::Into(packed) => Some(packed),
            Packed::No => None,
            Packed::NoRoom => return true,
        };
        let old = Stored::Slot { handle, tag };
        let Some(owned) = self.try_own(page, seen) else {
            packed.into_iter().for_each(|new| memcg.leave_slot(new));
            return true;
        };
        if self.generation(page) != generation {
            self.restore(owned);
            packed.into_iter().for_each(|new| memcg.leave_slot(new));
            return true;
        }
        let settled = owned.was.settled();
        let Some(new) = packed else {
            self.publish(owned, settled);
            return true;
        };
        // Before anybody can free the new one, whose block may be of another class then.
        let won = memcg.zswap.charge_of(old) - memcg.zswap.charge_of(new);
        self.publish(owned, settled.with_copy(new));
        memcg.leave_slot(old);
        count(&self.stat().zswprecomp);
        add(&self.stat().zswprecomp_bytes, won);
        true
    }
}
