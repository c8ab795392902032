//! The front hand: mapped pages go into their slots.

use super::Effort;
use super::hands::Youth;
use super::settle::RefusedWindow;
use crate::addr::{PageIndex, PageRun};
use crate::event;
use crate::fault::StoreError;
use crate::limits::WINDOW_PAGES;
use crate::memcg::stat::{add, count};
use crate::mm_struct::{Owned, Vma};
use crate::mmu_notifier::{BracketError, Event, Invalidation};
use crate::page::{State, Word};
use crate::primary_mmu::Detached;
use core::sync::atomic::Ordering;
use std::sync::Arc;

/// A set of pages of one window.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct PageSet(u64);

impl PageSet {
    pub(super) fn insert(&mut self, index: u32) {
        self.0 |= 1 << index;
    }

    pub(super) fn remove(&mut self, index: u32) {
        self.0 &= !(1 << index);
    }

    pub(super) fn contains(self, index: u32) -> bool {
        self.0 >> index & 1 != 0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The shortest run of the window starting at `first` that holds the set.
    pub(super) fn hull(self, first: PageIndex) -> PageRun {
        let low = self.0.trailing_zeros();
        PageRun::new(first + low, WINDOW_PAGES - self.0.leading_zeros() - low)
    }
}

impl Vma {
    /// Detaches the pages of a window that were not used lately, if no device refuses. Returns
    /// how many were detached.
    pub(crate) fn detach_window(&self, run: PageRun, effort: Effort, youth: Youth) -> u64 {
        let mut chosen = self.choose_unreferenced(run, effort, youth);
        if youth == Youth::Counts {
            self.spare_young(run, &mut chosen);
        }
        if chosen.is_empty() {
            return 0;
        }
        let hull = chosen.hull(run.first);
        let (start, end) = (self.address(hull.first), self.address(hull.end()));
        let notifiers = self.mm().notifiers();
        if effort == Effort::Fault {
            let Some(bracket) = notifiers.start_for_nobody(start, end, Event::Clear) else {
                self.unchoose(hull);
                return 0;
            };
            return self.detach_noted(run, chosen, &bracket);
        }
        match notifiers.start_nonblock(start, end, Event::Clear) {
            Ok(bracket) => self.detach_noted(run, chosen, &bracket),
            Err(refused) => {
                self.unchoose(hull);
                self.mm().note(|_| event::Event::Refusal {
                    run: hull,
                    holder: Arc::clone(&refused.holder),
                });
                count(&self.stat().reclaim_refused);
                self.ask_later(hull, &refused.holder);
                if effort == Effort::LastResort && hull.nr > 1 {
                    return self.detach_halves(hull, effort);
                }
                0
            }
        }
    }

    fn detach_noted(&self, run: PageRun, chosen: PageSet, bracket: &Invalidation) -> u64 {
        let began_ns = self.mm().note_begin();
        let pages = self.detach_told(run, chosen, bracket);
        self.mm().note(|now_ns| event::Event::Evict {
            run,
            pages,
            took_ns: now_ns.saturating_sub(began_ns),
        });
        pages
    }

    /// A device refused the whole. It may hold no more than a part.
    fn detach_halves(&self, run: PageRun, effort: Effort) -> u64 {
        let half = run.nr / 2;
        let rest = PageRun::new(run.first + half, run.nr - half);
        let first = PageRun::new(run.first, half);
        // They were asked what they use when the whole was chosen.
        self.detach_window(first, effort, Youth::Ignored)
            + self.detach_window(rest, effort, Youth::Ignored)
    }

    /// Has the worker that may wait ask for a run of a window, which `holder` refused.
    fn ask_later(&self, run: PageRun, holder: &Arc<str>) {
        let reclaim = &self.memcg().reclaim;
        if reclaim.stuck.owes(holder) || !self.begin_refused(run.first) {
            return;
        }
        let refused = RefusedWindow {
            vma: self.id(),
            run,
            holder: Arc::clone(holder),
        };
        if !reclaim.refused.push(refused) {
            self.end_refused(run.first);
        }
    }

    /// The same with devices that are waited for. Not from a thread that a fault waits for.
    pub(super) fn detach_window_blockable(&self, run: PageRun) -> Result<u64, BracketError> {
        let chosen = self.choose_unreferenced(run, Effort::Worker, Youth::Ignored);
        if chosen.is_empty() {
            return Ok(0);
        }
        let hull = chosen.hull(run.first);
        let (start, end) = (self.address(hull.first), self.address(hull.end()));
        let deadline = self.memcg().limits.settle_deadline;
        match self
            .mm()
            .notifiers()
            .start_blockable(start, end, Event::Clear, deadline)
        {
            Ok(bracket) => Ok(self.detach_noted(run, chosen, &bracket)),
            Err(error) => {
                self.unchoose(hull);
                Err(error)
            }
        }
    }

    /// Moves the pages of `run` to the store, because the program said that it does not need them
    /// for long. Pinned and locked pages stay.
    pub(crate) fn page_out(&self, run: PageRun) -> Result<(), BracketError> {
        self.put_aside(run, |chunk| {
            self.memcg()
                .with_workspace(|space| self.store_window(chunk, space, Effort::Direct));
        })
    }

    /// Has the pages of `run` stand by, because the program said that it does not need them soon.
    pub(crate) fn cool(&self, run: PageRun) -> Result<(), BracketError> {
        self.put_aside(run, |_| ())
    }

    /// Detaches the pages of `run` piece by piece, each followed by `then`.
    fn put_aside(&self, run: PageRun, then: impl Fn(PageRun)) -> Result<(), BracketError> {
        let mut first = run.first;
        while first < run.end() {
            let chunk = PageRun::new(first, WINDOW_PAGES.min(run.end() - first));
            let memcg = self.memcg();
            let _pending = memcg.reclaim.pending.begin(memcg.clock.now_ns());
            for page in chunk.pages() {
                let seen = self.load_settled(page);
                let unused = seen.unreferenced().inactive();
                if seen != unused && seen.state() == State::Resident {
                    let _ = self.remark(page, seen, unused);
                }
            }
            self.detach_window_blockable(chunk)?;
            then(chunk);
            first = chunk.end();
        }
        Ok(())
    }

    /// Chooses the mapped pages of a window that are neither pinned, locked, referenced nor active,
    /// and takes the referenced marks away. Active pages that nobody was seen to use since the hand
    /// came by become inactive; the others do, too, when there are too few inactive ones, and when
    /// nothing else was found.
    fn choose_unreferenced(&self, run: PageRun, effort: Effort, youth: Youth) -> PageSet {
        let mut chosen = PageSet::default();
        let ages_active = youth == Youth::Ignored || self.memcg().is_inactive_low();
        let stuck = &self.memcg().reclaim.stuck;
        for (index, page) in (0..).zip(run.pages()) {
            let seen = self.pages.load(page);
            let is_kept = seen.pins() > 0 || seen.is_locked();
            // What did not answer for a whole range is asked again when nothing else is left.
            let is_stuck = || effort != Effort::LastResort && stuck.holds(self.id(), page);
            if seen.state() != State::Resident || is_kept || is_stuck() {
                continue;
            }
            let next = match (seen.is_active(), seen.is_referenced()) {
                (true, true) if !ages_active => seen.unreferenced(),
                (false, false) => seen.with_state(State::Evicting),
                _ => seen.unreferenced().inactive(),
            };
            let changed = self.remark(page, seen, next);
            if changed && next.state() == State::Evicting {
                chosen.insert(index);
            }
        }
        chosen
    }

    /// Spares the chosen pages that a device has used lately: they count as referenced. Devices
    /// are asked about each page only if there is one that used any.
    fn spare_young(&self, window: PageRun, chosen: &mut PageSet) {
        let notifiers = self.mm().notifiers();
        if chosen.is_empty() || !notifiers.has_subscriptions() {
            return;
        }
        let hull = chosen.hull(window.first);
        if !notifiers.test_young(self.address(hull.first), self.address(hull.end())) {
            return;
        }
        for page in hull.pages() {
            let index = page - window.first;
            if !chosen.contains(index)
                || !notifiers.clear_young(self.address(page), self.address(page + 1))
            {
                continue;
            }
            chosen.remove(index);
            let seen = self.pages.load(page);
            if seen.state() == State::Evicting {
                let spared = seen.with_state(State::Resident).referenced();
                let _ = self.try_change(page, seen, spared);
            }
        }
    }

    /// Takes the marks of reclaim away again.
    fn unchoose(&self, run: PageRun) {
        for page in run.pages() {
            let seen = self.pages.load(page);
            if seen.state() == State::Evicting {
                let resident = seen.with_state(State::Resident);
                let _ = self.try_change(page, seen, resident);
            }
        }
    }

    /// Detaches the chosen pages of a window, of which the bracket told the devices. A page that
    /// was used since then is left alone.
    fn detach_told(&self, window: PageRun, chosen: PageSet, bracket: &Invalidation) -> u64 {
        let mut detached = 0;
        let mut batch = Batch::new();
        let hull = chosen.hull(window.first);
        // Who walks the page table is told of each run.
        let over_holes =
            self.primary().detaches_over_holes() || self.mm().notifiers().has_tlb_users();
        for page in hull.pages() {
            let is_chosen = chosen.contains(page - window.first);
            let owned = if is_chosen || over_holes {
                self.own_to_detach(page, is_chosen, bracket)
            } else {
                None
            };
            match owned {
                Some(owned) => batch.push(owned, is_chosen),
                None => {
                    if is_chosen {
                        count(&self.stat().pgrescued);
                    }
                    detached += self.detach_batch(&mut batch);
                }
            }
        }
        detached + self.detach_batch(&mut batch)
    }

    /// Owns a chosen page that nobody has used since, or a page between two chosen ones that has
    /// nothing at its address: it must stay so while one machine operation goes over the whole
    /// run, where the machine is better at that.
    fn own_to_detach(
        &self,
        page: PageIndex,
        is_chosen: bool,
        bracket: &Invalidation,
    ) -> Option<Owned> {
        let seen = self.pages.load(page);
        let is_fit = match seen.state() {
            State::Evicting => is_chosen && seen.pins() == 0,
            State::Empty | State::Swapped | State::Standby => !is_chosen,
            _ => false,
        };
        let owned = if is_fit {
            self.try_own(page, seen)
        } else {
            None
        }?;
        // A device that has subscribed since the bracket began was not told. One that subscribes
        // after this look finds the page owned, and waits.
        if is_chosen && !self.mm().notifiers().is_current(bracket) {
            let resident = owned.was.with_state(State::Resident);
            self.publish(owned, resident);
            return None;
        }
        Some(owned)
    }

    fn detach_batch(&self, batch: &mut Batch) -> u64 {
        batch.drop_unchosen_tail(self);
        let Some(run) = batch.run() else { return 0 };
        for (index, page) in (0..).zip(run.pages()) {
            if batch.chosen.contains(index) {
                self.bump_generation(page);
            }
        }
        let mut outcome = [Detached::Hole; WINDOW_PAGES as usize];
        // An error is in the outcome too: pages that did not move are `Busy` or `Hole`.
        let _ = self.primary().detach(run, &mut outcome[..run.nr as usize]);
        // Before anybody gives a frame back.
        self.flush_tlb_users(run, Event::Clear);
        let mut detached = 0;
        for (index, page) in (0..).zip(run.pages()) {
            let owned = Owned {
                page,
                was: batch.words[index as usize],
            };
            if batch.chosen.contains(index) {
                detached += u64::from(self.publish_detached(owned, outcome[index as usize]));
            } else {
                if outcome[index as usize] == Detached::Done {
                    self.free_bridged(&owned);
                }
                self.restore(owned);
            }
        }
        add(&self.stat().pgdeactivate, detached);
        batch.clear();
        detached
    }

    /// A page that was only passed over has something in its slot. For one that stands by that is
    /// its own; for another it is what somebody else put at its address, and must not stay.
    fn free_bridged(&self, owned: &Owned) {
        if owned.was.state() != State::Standby {
            count(&self.stat().foreign_changes);
            let _ = self.primary().free_detached(PageRun::single(owned.page));
        }
    }

    fn publish_detached(&self, owned: Owned, outcome: Detached) -> bool {
        let was = owned.was;
        match outcome {
            Detached::Done => {
                // Dirty is what the word says now: whoever writes marks the page first.
                self.publish(
                    owned,
                    was.with_state(State::Standby).unprotected().unreferenced(),
                );
                true
            }
            Detached::Busy => {
                // Something holds the frame that nobody told us of. It gets one more round.
                count(&self.stat().pgbusy);
                self.publish(owned, was.with_state(State::Resident).referenced());
                false
            }
            Detached::Hole => {
                self.lose_foreign(owned);
                false
            }
        }
    }

    /// A mapped page was found gone: something else took it away.
    fn lose_foreign(&self, owned: Owned) {
        count(&self.stat().foreign_changes);
        let was = owned.was;
        if was.copy().is_some() && !was.is_dirty() {
            self.mm().rss.swapped.fetch_add(1, Ordering::Relaxed);
            self.publish(owned, was.swapped());
        } else {
            count(&self.stat().pages_lost);
            let _ = self.primary().poison(PageRun::single(owned.page));
            self.publish(owned, Word::lost(StoreError::Misplaced));
            self.free_copy(was.copy());
        }
        self.uncharge(1);
    }
}

/// Neighbouring owned pages of a window, some of them to be detached.
struct Batch {
    first: PageIndex,
    nr: u32,
    chosen: PageSet,
    words: [Word; WINDOW_PAGES as usize],
}

impl Batch {
    fn new() -> Self {
        Self {
            first: 0,
            nr: 0,
            chosen: PageSet::default(),
            words: [Word::EMPTY; WINDOW_PAGES as usize],
        }
    }

    fn push(&mut self, owned: Owned, is_chosen: bool) {
        if self.nr == 0 {
            self.first = owned.page;
        }
        assert_eq!(self.first + self.nr, owned.page, "a batch has no gaps");
        if is_chosen {
            self.chosen.insert(self.nr);
        }
        self.words[self.nr as usize] = owned.was;
        self.nr += 1;
    }

    /// Gives back the pages after the last chosen one.
    fn drop_unchosen_tail(&mut self, vma: &Vma) {
        while self.nr > 0 && !self.chosen.contains(self.nr - 1) {
            self.nr -= 1;
            let page = self.first + self.nr;
            vma.restore(Owned {
                page,
                was: self.words[self.nr as usize],
            });
        }
    }

    fn run(&self) -> Option<PageRun> {
        (self.nr > 0).then(|| PageRun::new(self.first, self.nr))
    }

    fn clear(&mut self) {
        self.nr = 0;
        self.chosen = PageSet::default();
    }
}
