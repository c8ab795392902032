//! Giving back the stored copies of clean pages when the store is full.
//!
//! Linux counterpart: freeing swap slots of resident pages when swap is nearly full.

use super::Effort;
use super::hands::Hand;
use crate::addr::PageRun;
use crate::memcg::stat::add;
use crate::memcg::{Counter, Memcg, Protection};
use crate::mm_struct::Vma;
use crate::page::State;
use crate::swap::{NoRoom, Stored};
use core::sync::atomic::{AtomicU64, Ordering};

/// Whether there may be clean mapped pages with a copy in the store. A store that is full asks for
/// each page that does not fit, and must not look at all pages each time.
#[derive(Debug)]
pub(crate) struct KeptCopies {
    /// Copies kept so far, in slots and in the file; these only grow.
    nr_slots: AtomicU64,
    nr_files: AtomicU64,
    /// As many had been kept when the last round found none, of those it looked for.
    nr_when_none: [AtomicU64; 2],
}

/// Which copies are given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Which {
    /// Those that take compressed bytes.
    Slots,
    /// Those in the file, too: each counts as a stored page.
    Any,
}

impl KeptCopies {
    pub(super) const fn new() -> Self {
        Self {
            nr_slots: AtomicU64::new(0),
            nr_files: AtomicU64::new(0),
            nr_when_none: [const { AtomicU64::new(0) }; 2],
        }
    }

    fn note(&self, copy: Stored) {
        let nr = match copy {
            Stored::File { .. } => &self.nr_files,
            _ => &self.nr_slots,
        };
        nr.fetch_add(1, Ordering::Relaxed);
    }

    fn nr(&self, which: Which) -> u64 {
        let nr_slots = self.nr_slots.load(Ordering::Relaxed);
        match which {
            Which::Slots => nr_slots,
            Which::Any => nr_slots + self.nr_files.load(Ordering::Relaxed),
        }
    }
}

/// Copies that are given back at a time.
const SHED_PAGES: u64 = 64;

impl Memcg {
    /// A page was filled, and its copy stays.
    pub(crate) fn note_kept_copy(&self, copy: Stored) {
        self.levels()
            .for_each(|level| level.domain.kept_copies.note(copy));
    }

    /// Gives back stored copies wherever there is no room for what was `refused`; false when that
    /// is not worth another try. Not in a fault, which would have to look at all pages for them.
    pub(super) fn shed(&self, refused: NoRoom, effort: Effort) -> bool {
        if effort == Effort::Fault {
            return false;
        }
        let bytes = refused.slot_bytes();
        // What is stored may also be in the way of a frame that somebody waits for.
        let is_full =
            |level: &&Self| !level.store_charges.has_room(bytes) || level.is_short_of_total();
        let sheds = |level: &Self| level.shed_copies(SHED_PAGES, effort) > 0;
        let (mut is_any_full, mut has_shed) = (false, false);
        for level in self.levels().filter(is_full) {
            is_any_full = true;
            has_shed |= sheds(level);
        }
        if is_any_full {
            return has_shed;
        }
        // It was the store itself, which is everybody's.
        self.zswap.has_room_for(refused) || self.levels().last().is_some_and(sheds)
    }

    /// Gives back stored copies until what they are charged to is under its new bound, as far as
    /// there are any.
    pub(crate) fn shed_for_limit(&self, counter: &Counter) {
        while counter.excess() > 0 && self.shed_copies(SHED_PAGES, Effort::Worker) > 0 {}
    }

    /// Gives back the stored copies of up to `target` clean mapped pages. Returns how many.
    fn shed_copies(&self, target: u64, effort: Effort) -> u64 {
        // Those in the file make no room but for the number of stored pages.
        let which = match self.store_charges.swap_pages.free() {
            0 => Which::Any,
            _ => Which::Slots,
        };
        let kept = &self.domain.kept_copies;
        let nr_kept = kept.nr(which);
        let nr_when_none = &kept.nr_when_none[which as usize];
        if nr_kept == nr_when_none.load(Ordering::Relaxed) {
            return 0;
        }
        let mut lap = self.start_lap(Hand::Shed, effort, Protection::Min);
        let (mut shed, mut left) = (0, 0);
        while shed < target {
            let Some((vma, run)) = self.next_run(Hand::Shed, &mut lap, target) else {
                break;
            };
            let window = vma.shed_window(run, which);
            shed += window.0;
            left += window.1;
        }
        if shed + left == 0 && effort.windows_max() == u64::MAX {
            nr_when_none.store(nr_kept, Ordering::Relaxed);
        }
        add(&self.stat.copies_shed, shed);
        shed
    }
}

impl Vma {
    /// The clean mapped pages of a window lose their copies, and count as dirty. Returns how many
    /// did, and how many could not now.
    fn shed_window(&self, run: PageRun, which: Which) -> (u64, u64) {
        let (mut shed, mut left) = (0, 0);
        for page in run.pages() {
            let seen = self.pages.load(page);
            let Some(copy) = seen.copy() else { continue };
            let is_wanted = match copy {
                Stored::SameFilled(_) => false,
                Stored::File { .. } => which == Which::Any,
                Stored::Slot { .. } => true,
            };
            if seen.state() == State::Swapped || seen.is_dirty() || !is_wanted {
                continue;
            }
            let dirty = seen.dirty().without_copy();
            let is_mapped = seen.state() == State::Resident;
            if is_mapped && self.try_change(page, seen, dirty) {
                self.free_copy(Some(copy));
                shed += 1;
            } else {
                left += 1;
            }
        }
        (shed, left)
    }
}
