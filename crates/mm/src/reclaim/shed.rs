//! Giving back the stored copies of clean pages when the store is full.
//!
//! Linux counterpart: freeing swap slots of resident pages when swap is nearly full.

use super::hands::Hand;
use crate::addr::PageRun;
use crate::memcg::Memcg;
use crate::memcg::stat::add;
use crate::mm_struct::Vma;
use crate::page::State;

impl Memcg {
    /// Gives back the stored copies of up to `target` clean mapped pages. Returns how many.
    pub(super) fn shed_copies(&self, target: u64) -> u64 {
        let mut lap = self.start_lap(Hand::Shed);
        let mut shed = 0;
        while shed < target {
            let Some((vma, run)) = self.next_run(Hand::Shed, &mut lap, target) else {
                break;
            };
            shed += vma.shed_window(run);
        }
        add(&self.stat.copies_shed, shed);
        shed
    }
}

impl Vma {
    /// The clean mapped pages of a window lose their copies, and count as dirty.
    fn shed_window(&self, run: PageRun) -> u64 {
        let mut shed = 0;
        for page in run.pages() {
            let seen = self.pages.load(page);
            let Some(copy) = seen.copy() else { continue };
            if seen.state() != State::Resident || seen.is_dirty() || copy.is_same_filled() {
                continue;
            }
            if self
                .pages
                .try_change(page, seen, seen.dirty().without_copy())
                .is_ok()
            {
                self.free_copy(Some(copy));
                shed += 1;
            }
        }
        shed
    }
}
