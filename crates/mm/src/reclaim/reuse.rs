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

/// Up to `N` frames in slots of a mapping, charged, whose contents are in the store.
///
/// Their pages are owned: whoever has this waits for nobody, and drops it soon. Then the pages are
/// seen as stored, and what was not used is given back.
pub(crate) struct Spare<'a, const N: usize> {
    vma: &'a Vma,
    machine: &'a dyn ReuseFrames,
    frames: [Frame; N],
    nr: u32,
    /// Frames at the start that have left their slots.
    nr_moved: u32,
    /// Charges that were taken over, with or without a frame.
    nr_taken: u32,
}

/// A frame in the slot of `page`.
#[derive(Clone, Copy)]
struct Frame {
    page: PageIndex,
    /// The page as it was found, and as what it is seen afterwards.
    was: Word,
    next: Word,
}

impl<'a, const N: usize> Spare<'a, N> {
    fn new(vma: &'a Vma, machine: &'a dyn ReuseFrames) -> Self {
        let none = Frame {
            page: 0,
            was: Word::EMPTY,
            next: Word::EMPTY,
        };
        Self {
            vma,
            machine,
            frames: [none; N],
            nr: 0,
            nr_moved: 0,
            nr_taken: 0,
        }
    }

    /// How many frames there are.
    pub(crate) fn nr(&self) -> u32 {
        self.nr
    }

    /// Whether one more fits, of which no more than `nr` are wanted.
    pub(super) fn has_room(&self, nr: u32) -> bool {
        self.nr < nr.min(N as u32)
    }

    /// Takes the frame of a page that is in the store.
    pub(super) fn push(&mut self, owned: Owned, stored: Option<Stored>) {
        let (vma, Owned { page, was }) = (self.vma, owned);
        // Before the page is seen as swapped: a fault takes it away again.
        vma.mm().rss.swapped.fetch_add(1, Ordering::Relaxed);
        let shadow = vma.memcg().note_evicted(1);
        let next = vma.note_stored(was, stored, shadow);
        if stored.is_some() {
            vma.free_copy(was.copy());
        }
        self.frames[self.nr as usize] = Frame { page, was, next };
        self.nr += 1;
    }

    /// Nothing, where no frame was kept.
    pub(super) fn if_any(self) -> Option<Self> {
        (self.nr > 0).then_some(self)
    }

    /// Puts contents into the frame with this number.
    pub(crate) fn write(&self, nth: u32, contents: &PageBuf) {
        assert!(nth < self.nr, "there is no frame number {nth}");
        let slot = self.frames[nth as usize].page;
        self.machine.write_detached(slot, contents);
    }

    /// Moves the first frames that were not moved yet to the addresses of `run`, whose pages the
    /// caller owns: they hold what was written, and their charge goes with them. As many as are
    /// neighbours, at least one: how many.
    pub(crate) fn map(&mut self, run: PageRun) -> Result<u32, MapStopped> {
        let slots = neighbours(&self.frames[self.nr_moved as usize..self.nr as usize]);
        assert!(slots.nr > 0 && run.nr > 0, "a frame for each page");
        let run = PageRun::new(run.first, run.nr.min(slots.nr));
        let mapped = self.machine.map_detached(run, slots.first);
        let nr_moved = mapped.map_or_else(|stopped| stopped.nr_done, |()| run.nr);
        self.nr_moved += nr_moved;
        self.nr_taken += nr_moved;
        mapped.map(|()| run.nr)
    }

    /// Puts a page with `contents` at its address, in the only frame that is here.
    pub(crate) fn fill(&mut self, page: PageIndex, contents: &PageBuf) -> Result<(), MmuError> {
        self.write(0, contents);
        let mapped = self.map(PageRun::single(page));
        mapped.map(drop).map_err(|stopped| stopped.error)
    }

    /// Gives the frames back, and keeps the charge of one.
    pub(crate) fn into_charge(mut self) {
        self.nr_taken = 1;
    }

    fn give_back_slots(&self) {
        let mut left = &self.frames[self.nr_moved as usize..self.nr as usize];
        while !left.is_empty() {
            let slots = neighbours(left);
            if self.vma.primary().free_detached(slots).is_err() {
                // Something else changed the slots. What was stored is as good as what is there.
                count(&self.vma.stat().foreign_changes);
            }
            left = &left[slots.nr as usize..];
        }
    }
}

impl<const N: usize> Drop for Spare<'_, N> {
    fn drop(&mut self) {
        let vma = self.vma;
        self.give_back_slots();
        for &Frame { page, was, next } in &self.frames[..self.nr as usize] {
            vma.publish(Owned { page, was }, next);
        }
        let (nr, nr_taken) = (u64::from(self.nr), u64::from(self.nr_taken));
        add(&vma.stat().pgsteal, nr);
        add(&vma.stat().pgreuse, u64::from(self.nr_moved));
        vma.mm().rss.frames.fetch_sub(nr, Ordering::Relaxed);
        vma.memcg().note_reused(nr_taken);
        vma.memcg().uncharge_frames(nr - nr_taken);
    }
}

/// The slots at the start of `frames` that are neighbours.
fn neighbours(frames: &[Frame]) -> PageRun {
    PageRun::leading(frames.iter().map(|frame| frame.page))
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
            let _sitting = self.sit_for(effort);
            self.advance(Hand::Front, lacking.min(at_once).max(missing), how);
        }
        let mut lap = self.start_lap(Hand::Back, effort, Protection::LowAndMin);
        let _under_way = InFlight::new(&self.reclaim);
        let (vma, run) = self.next_run(Hand::Back, &mut lap, u64::from(nr))?;
        let into = spare.vma;
        let kept = self.with_workspace(|space| {
            if core::ptr::eq(&*vma, into) {
                return into.store_window_for(spare, (run, nr), (space, effort));
            }
            vma.store_window(run, space, effort);
            None
        });
        self.let_go(vma, effort);
        kept
    }
}
