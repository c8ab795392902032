//! Reuse: the frame of a page that was stored goes to the next fill.
//!
//! To give a frame back and to ask for another costs the machine two calls, and an allocation. So
//! while few frames are left, a fault stores a page of the same mapping, writes its own contents
//! into that page's slot, and has the frame moved to where they belong. The frame stays charged all
//! the time.

use super::hands::Hand;
use super::{DIRECT_PAGES, Effort, InFlight};
use crate::addr::{PageBuf, PageIndex, PageRun};
use crate::gfp::Reclaiming;
use crate::memcg::stat::{add, count};
use crate::memcg::{Memcg, Protection};
use crate::mm_struct::{Owned, Vma};
use crate::page::Word;
use crate::primary_mmu::{MapStopped, MmuError, ReuseFrames};
use crate::swap::Stored;
use core::sync::atomic::Ordering;

/// Up to `N` frames in neighbouring slots of a mapping, charged, whose contents are in the store.
///
/// Their pages are owned: whoever has this waits for nobody, and drops it soon. Then the pages are
/// seen as stored, and what was not used is given back.
pub(crate) struct Spare<'a, const N: usize> {
    vma: &'a Vma,
    machine: &'a dyn ReuseFrames,
    slots: PageRun,
    /// The pages of the slots as they were found, and as what they are seen afterwards.
    words: [(Word, Word); N],
    /// Frames at the start that have left their slots.
    nr_moved: u32,
    /// Charges that were taken over, with or without a frame.
    nr_taken: u32,
}

impl<'a, const N: usize> Spare<'a, N> {
    fn new(vma: &'a Vma, machine: &'a dyn ReuseFrames) -> Self {
        Self {
            vma,
            machine,
            slots: PageRun::new(0, 0),
            words: [(Word::EMPTY, Word::EMPTY); N],
            nr_moved: 0,
            nr_taken: 0,
        }
    }

    /// How many frames there are.
    pub(crate) fn nr(&self) -> u32 {
        self.slots.nr
    }

    /// Whether the frame of `page` fits, of which no more than `nr` are wanted.
    pub(super) fn has_room_for(&self, page: PageIndex, nr: u32) -> bool {
        let is_next = self.slots.nr == 0 || self.slots.end() == page;
        is_next && self.slots.nr < nr.min(N as u32)
    }

    /// Takes the frame of a page that is in the store.
    pub(super) fn push(&mut self, owned: Owned, stored: Option<Stored>) {
        let vma = self.vma;
        // Before the page is seen as swapped: a fault takes it away again.
        vma.mm().rss.swapped.fetch_add(1, Ordering::Relaxed);
        let shadow = vma.memcg().domain.evict(1);
        let next = vma.note_stored(owned.was, stored, shadow);
        if stored.is_some() {
            vma.free_copy(owned.was.copy());
        }
        if self.slots.nr == 0 {
            self.slots.first = owned.page;
        }
        self.words[self.slots.nr as usize] = (owned.was, next);
        self.slots.nr += 1;
    }

    /// Nothing, where no frame was kept.
    pub(super) fn if_any(self) -> Option<Self> {
        (self.slots.nr > 0).then_some(self)
    }

    /// Puts contents into the frame with this number.
    pub(crate) fn write(&self, nth: u32, contents: &PageBuf) {
        assert!(nth < self.slots.nr, "there is no frame number {nth}");
        self.machine
            .write_detached(self.slots.first + nth, contents);
    }

    /// Moves the first frames to the addresses of `run`, whose pages the caller owns: they hold
    /// what was written, and their charge goes with them.
    pub(crate) fn map(&mut self, run: PageRun) -> Result<(), MapStopped> {
        assert!(
            self.nr_moved == 0 && run.nr <= self.slots.nr,
            "frames are used once"
        );
        let mapped = self.machine.map_detached(run, self.slots.first);
        self.nr_moved = match mapped {
            Ok(()) => run.nr,
            Err(stopped) => stopped.nr_done,
        };
        self.nr_taken = self.nr_moved;
        mapped
    }

    /// Puts a page with `contents` at its address, in the only frame that is here.
    pub(crate) fn fill(&mut self, page: PageIndex, contents: &PageBuf) -> Result<(), MmuError> {
        self.write(0, contents);
        self.map(PageRun::single(page))
            .map_err(|stopped| stopped.error)
    }

    /// Gives the frames back, and keeps the charge of one.
    pub(crate) fn into_charge(mut self) {
        self.nr_taken = 1;
    }
}

impl<const N: usize> Drop for Spare<'_, N> {
    fn drop(&mut self) {
        let (vma, slots) = (self.vma, self.slots);
        let nr_left = slots.nr - self.nr_moved;
        let left = PageRun::new(slots.first + self.nr_moved, nr_left);
        if nr_left > 0 && vma.primary().free_detached(left).is_err() {
            // Something else changed the slots. What was stored is as good as what is there.
            count(&vma.stat().foreign_changes);
        }
        for (page, &(was, next)) in slots.pages().zip(&self.words) {
            vma.publish(Owned { page, was }, next);
        }
        let nr = u64::from(slots.nr);
        add(&vma.stat().pgsteal, nr);
        vma.mm().rss.frames.fetch_sub(nr, Ordering::Relaxed);
        let nr_taken = u64::from(self.nr_taken);
        add(&vma.stat().pgreuse, u64::from(self.nr_moved));
        vma.memcg().note_reused(nr_taken);
        vma.memcg().uncharge_frames(nr - nr_taken);
    }
}

impl Vma {
    /// Up to `nr` frames for fills of this mapping, while few are left, if they can be had cheaply.
    /// `None` also while others wait for frames, or there are too many.
    pub(crate) fn take_spare<const N: usize>(
        &self,
        nr: u32,
        effort: Effort,
    ) -> Option<Spare<'_, N>> {
        let spare = Spare::new(self, self.primary().reuse()?);
        let memcg = self.memcg();
        let level = memcg.level_with_few()?;
        let _held = memcg.hold_total(u64::from(nr))?;
        let began_ns = memcg.clock.now_ns();
        let spare = level.fill_spare(spare, nr, effort);
        memcg.kick_if_few();
        memcg.note_short_stall(memcg.clock.now_ns().saturating_sub(began_ns));
        spare
    }
}

impl Memcg {
    /// The first level with few frames left. None where frames should come free instead: where
    /// somebody waits for one, or more are in use than should be.
    fn level_with_few(&self) -> Option<&Self> {
        let is_calm = |level: &Self| {
            level.frames.nr_waiting() == 0 && level.frames().usage() <= level.high_frames()
        };
        if !self.levels().all(is_calm) {
            return None;
        }
        self.levels()
            .find(|level| level.room() <= level.marks().low)
    }

    fn fill_spare<'a, const N: usize>(
        &self,
        spare: Spare<'a, N>,
        nr: u32,
        effort: Effort,
    ) -> Option<Spare<'a, N>> {
        let _inside = Reclaiming::enter();
        let how = (effort, Protection::LowAndMin);
        let standby = self.domain.nr_standby();
        let lacking = self.marks().standby.saturating_sub(standby);
        let missing = u64::from(nr).saturating_sub(standby);
        let at_once = DIRECT_PAGES.max(u64::from(nr));
        // Not one by one: an operation of the machine on some neighbours costs little more than on
        // one page.
        if missing > 0 || lacking >= at_once {
            self.advance(Hand::Front, lacking.min(at_once).max(missing), how);
        }
        let mut lap = self.start_lap(Hand::Back, effort, Protection::LowAndMin);
        let _under_way = InFlight::new(&self.reclaim);
        let (vma, run) = self.next_run(Hand::Back, &mut lap, u64::from(nr))?;
        let into = spare.vma;
        let kept = self.with_scratch(|scratch| {
            if core::ptr::eq(&*vma, into) {
                return into.store_window_for(spare, (run, nr), (scratch, effort));
            }
            vma.store_window(run, scratch, effort);
            None
        });
        self.let_go(vma, effort);
        kept
    }
}
