//! Faults: a page becomes usable.
//!
//! A fault allocates nothing, runs no notifier and waits for none (who walks the page table is told
//! that an entry has changed, and cannot wait). It may wait for a
//! machine operation on its page (microseconds) and for a frame (up to a deadline). While few
//! frames are left, it frees some itself, of memory that nobody has to be told about.
//!
//! Linux counterpart: `handle_mm_fault`, `do_anonymous_page`, `do_swap_page`.

use super::demand::Demand;
use super::stored::in_file;
use super::vma::Owned;
use super::{Mm, Vma};
use crate::addr::{PAGE_SIZE, PageBuf, PageIndex, PageRun};
use crate::event::{self, Source};
use crate::fault::{FaultError, FaultHandler, StoreError};
use crate::gfp::{Gfp, touching};
use crate::limits::{THROTTLE_MAX, THROTTLE_SERVICE_MAX};
use crate::memcg::stat::count;
use crate::mmu_notifier::Event;
use crate::page::{State, Word};
use crate::primary_mmu::{Access, MmuError};
use crate::reclaim::{Effort, InFlight, Spare};
use core::sync::atomic::Ordering;
use lockdep::MapGuard;

static ZEROS: PageBuf = [0; PAGE_SIZE];

/// Where a fault may take its frame from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FrameSource {
    /// What is free, or what others free within the deadline.
    Wait,
    /// The same, in a thread that others wait for, too.
    Serve,
    /// The same, and before it waits it reclaims itself, as far as this allows. Not in a fault of
    /// the machine.
    Reclaim(Gfp),
    /// What is free now.
    Free,
}

impl FrameSource {
    /// What an allocation outside of a fault may do, in the scopes of the calling thread.
    pub(crate) fn of(gfp: Gfp) -> Self {
        match gfp.scoped() {
            Gfp::NoWait => Self::Free,
            gfp => Self::Reclaim(gfp),
        }
    }

    /// The time in which a fault is resolved that takes its frame from here.
    #[track_caller]
    fn touching(self) -> Option<MapGuard<'static>> {
        match self {
            Self::Wait | Self::Serve => touching(Gfp::Kernel),
            Self::Reclaim(gfp) => touching(gfp),
            Self::Free => None,
        }
    }
}

impl FaultHandler for Vma {
    fn fault(&self, page: PageIndex, access: Access) -> Result<(), FaultError> {
        self.mm().notifiers().note_touch();
        self.fault_in(page, Demand::Trap(access), FrameSource::Wait)
            .map(drop::<Resolved>)
    }

    fn serve(&self, page: PageIndex, access: Access) -> Result<(), FaultError> {
        self.mm().notifiers().note_touch();
        self.fault_in(page, Demand::Trap(access), FrameSource::Serve)
            .map(drop::<Resolved>)
    }

    fn touched(&self, thread: u32) {
        self.mm().notifiers().note_touch_by(thread);
    }

    fn denied(&self, page: PageIndex) -> FaultError {
        let seen = self.pages.load(page);
        match self.gone() {
            Some(error) => error,
            None if seen.state() == State::Poisoned => FaultError::Lost {
                page,
                cause: seen.cause(),
            },
            // It stays where it is, for the file may be read again.
            None if in_file(seen).is_some() && self.has_file_failed() => FaultError::Lost {
                page,
                cause: StoreError::Unreadable,
            },
            None => FaultError::NoFrame {
                waited: self.memcg().limits.fault_deadline,
            },
        }
    }

    fn stale_dma(&self, _page: PageIndex) {
        count(&self.stat().stale_dma_traps);
    }
}

/// How a fault was resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Resolved {
    /// The page did not come: it was there, or is not yet. Whoever uses it looks again.
    InPlace,
    /// It came without the store, and is as the demand has it.
    Softly,
    /// It came from the store.
    Hard,
}

/// A charged frame that goes back unless it is used.
pub(super) struct FrameCharge<'a> {
    vma: &'a Vma,
    frame: Frame<'a>,
}

/// What a [`FrameCharge`] has.
enum Frame<'a> {
    Nothing,
    /// A charge; the machine has a frame for it.
    Charged,
    /// A frame that has come free, with its charge.
    Spare(Spare<'a, 1>),
}

impl<'a> FrameCharge<'a> {
    fn none(vma: &'a Vma) -> Self {
        let frame = Frame::Nothing;
        Self { vma, frame }
    }

    fn take(&mut self, source: FrameSource) -> Result<(), FaultError> {
        if !matches!(self.frame, Frame::Nothing) {
            return Ok(());
        }
        let memcg = self.vma.memcg();
        let (effort, hold_max) = match source {
            FrameSource::Free if memcg.try_charge_frame() => {
                self.frame = Frame::Charged;
                return Ok(());
            }
            FrameSource::Free => {
                return Err(FaultError::NoFrame {
                    waited: Default::default(),
                });
            }
            FrameSource::Reclaim(_) => (Effort::Direct, THROTTLE_MAX),
            FrameSource::Wait => (Effort::Fault, THROTTLE_MAX),
            FrameSource::Serve => (Effort::Fault, THROTTLE_SERVICE_MAX),
        };
        self.frame = match self.vma.take_spare(1, effort) {
            Some(spare) => Frame::Spare(spare),
            None => {
                memcg.reclaim_directly(effort);
                memcg.charge_fault(self.vma.mm(), hold_max)?;
                Frame::Charged
            }
        };
        Ok(())
    }

    /// Takes a frame that is free.
    pub(super) fn take_charge(vma: &'a Vma) -> Option<Self> {
        let frame = vma.memcg().try_charge_frame().then_some(Frame::Charged)?;
        Some(Self { vma, frame })
    }

    /// Takes a frame that is free, or one that comes free for it.
    pub(super) fn take_free(vma: &'a Vma, effort: Effort) -> Option<Self> {
        let frame = match vma.take_spare(1, effort) {
            Some(spare) => Frame::Spare(spare),
            None => return Self::take_charge(vma),
        };
        Some(Self { vma, frame })
    }

    /// Before this thread waits for anything: whose frame it has must not wait for it.
    fn stop_holding(&mut self) {
        if let Frame::Spare(_) = self.frame
            && let Frame::Spare(spare) = core::mem::replace(&mut self.frame, Frame::Charged)
        {
            spare.into_charge();
        }
    }

    /// Puts a page with `contents` at its address.
    pub(super) fn fill(
        &mut self,
        page: PageIndex,
        contents: &PageBuf,
        access: Access,
    ) -> Result<(), MmuError> {
        let vma = self.vma;
        match (&mut self.frame, access) {
            (Frame::Spare(spare), Access::Write) => {
                vma.install(page, || spare.fill(page, contents))
            }
            _ => {
                // A page comes write-protected from the machine alone.
                self.stop_holding();
                vma.install(page, || vma.primary().map_filled(page, contents, access))
            }
        }
    }

    /// The same with zeros.
    fn fill_zeros(&mut self, page: PageIndex, access: Access) -> Result<(), MmuError> {
        if access == Access::Write {
            return self.fill(page, &ZEROS, access);
        }
        self.map_zero(page)
    }

    /// Puts a page of zeros at its address, which has no frame of its own before it is written.
    pub(super) fn map_zero(&mut self, page: PageIndex) -> Result<(), MmuError> {
        self.stop_holding();
        let vma = self.vma;
        vma.install(page, || vma.primary().map_zero(PageRun::single(page)))
    }

    /// The frame is used: from now on the mapping holds it.
    pub(super) fn commit(mut self, mm: &Mm) {
        let frame = core::mem::replace(&mut self.frame, Frame::Nothing);
        assert!(
            !matches!(frame, Frame::Nothing),
            "a page was filled without a charge"
        );
        mm.rss.frames.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for FrameCharge<'_> {
    fn drop(&mut self) {
        if let Frame::Charged = self.frame {
            self.vma.memcg().uncharge_frames(1);
        }
    }
}

impl Vma {
    /// Whether nothing may be filled here any more.
    pub(crate) fn gone(&self) -> Option<FaultError> {
        if self.mm().is_killed() {
            return Some(FaultError::Killed);
        }
        self.is_dead().then_some(FaultError::Unmapped)
    }

    /// Makes `page` usable for `demand`.
    pub(super) fn fault_in(
        &self,
        page: PageIndex,
        demand: Demand,
        source: FrameSource,
    ) -> Result<Resolved, FaultError> {
        // Who is served sleeps until the page comes. Had it come first, he would run beside the
        // prefetch: interrupted by each page that moves, and soon waiting for the next.
        if source == FrameSource::Serve && self.page_state(page) == State::Swapped {
            self.prefetch(page, Effort::Fault);
        }
        let resolved = self.resolve_fault(page, demand, source)?;
        match source {
            _ if resolved != Resolved::Hard => {}
            FrameSource::Serve | FrameSource::Free => {}
            FrameSource::Wait => self.prefetch(page, Effort::Fault),
            FrameSource::Reclaim(_) => self.prefetch(page, Effort::Direct),
        }
        Ok(resolved)
    }

    fn resolve_fault(
        &self,
        page: PageIndex,
        demand: Demand,
        source: FrameSource,
    ) -> Result<Resolved, FaultError> {
        // Also when no frame turns out to be needed: that is luck.
        let _touching = source.touching();
        let started_ns = self.memcg().clock.now_ns();
        let mut charge = FrameCharge::none(self);
        loop {
            if let Some(error) = self.gone() {
                if error == FaultError::Killed {
                    count(&self.stat().pgfault_killed);
                }
                return Err(error);
            }
            let seen = self.pages.load(page);
            if !demand.fits(seen) {
                return Ok(Resolved::InPlace);
            }
            match seen.state() {
                State::Moving => {
                    charge.stop_holding();
                    self.waiters.wait(&self.pages, page);
                    continue;
                }
                State::Poisoned => {
                    return Err(FaultError::Lost {
                        page,
                        cause: seen.cause(),
                    });
                }
                State::Empty | State::Swapped => charge.take(source)?,
                // Somebody else has filled it, and a device may be asked before it can be used.
                _ => charge.stop_holding(),
            }
            if let Some(place) = in_file(seen) {
                charge.stop_holding();
                match self.fill_from_file((page, seen), place, demand, charge)? {
                    None => {
                        let resolved = self.note_hard_fault(started_ns);
                        self.tell_of_fault(Source::of(seen.state()), page, started_ns);
                        if source != FrameSource::Free {
                            self.prefetch_cluster(place.0.cluster());
                        }
                        return Ok(resolved);
                    }
                    Some(unused) => charge = unused,
                }
                continue;
            }
            let _in_flight = InFlight::new(&self.memcg().reclaim);
            let Some(owned) = self.try_own(page, seen) else {
                continue;
            };
            // A killed or unmapped mapping is emptied page by page after the mark was set. Whoever
            // owns a page after that sees the mark; whoever owned it before is waited for.
            if let Some(error) = self.gone() {
                self.restore(owned);
                return Err(error);
            }
            let from = Source::of(owned.was.state());
            let resolved = self.resolve(owned, demand, charge, started_ns)?;
            self.tell_of_fault(from, page, started_ns);
            return Ok(resolved);
        }
    }

    fn tell_of_fault(&self, from: Source, page: PageIndex, started_ns: u64) {
        self.mm().note(|now_ns| event::Event::Fault {
            from,
            run: PageRun::single(page),
            took_ns: now_ns.saturating_sub(started_ns),
        });
    }

    fn note_hard_fault(&self, started_ns: u64) -> Resolved {
        count(&self.stat().pgmajfault);
        let elapsed_ns = self.memcg().clock.now_ns().saturating_sub(started_ns);
        self.stat().hard_fault_ns.record(elapsed_ns);
        Resolved::Hard
    }

    fn resolve(
        &self,
        owned: Owned,
        demand: Demand,
        charge: FrameCharge<'_>,
        started_ns: u64,
    ) -> Result<Resolved, FaultError> {
        let elapsed_ns = || self.memcg().clock.now_ns().saturating_sub(started_ns);
        match owned.was.state() {
            State::Empty => self.fill_zero(owned, demand, charge)?,
            State::Swapped => {
                self.fill_stored(owned, demand, charge)?;
                return Ok(self.note_hard_fault(started_ns));
            }
            State::Standby | State::Storing => {
                self.reattach(owned, demand)?;
                self.stat().soft_fault_ns.record(elapsed_ns());
            }
            State::Resident | State::Evicting => {
                self.refault(owned, demand.access())?;
                return Ok(Resolved::InPlace);
            }
            State::Moving | State::Poisoned => unreachable!("handled before the page was owned"),
        }
        Ok(Resolved::Softly)
    }

    /// A fault on a page that is mapped: a write to a protected page, a race that somebody else
    /// won, or a page that was taken away behind the library's back.
    fn refault(&self, owned: Owned, access: Access) -> Result<(), FaultError> {
        let (page, was) = (owned.page, owned.was.with_state(State::Resident));
        if access == Access::Write && was.is_protected() {
            return self.unprotect(owned);
        }
        if self.primary().remap(page) {
            self.publish(owned, was);
            return Ok(());
        }
        count(&self.stat().foreign_changes);
        self.bump_generation(page);
        match was.copy() {
            Some(_) if !was.is_dirty() => {
                self.mm().rss.swapped.fetch_add(1, Ordering::Relaxed);
                self.publish(owned, was.swapped());
                self.uncharge(1);
                Ok(()) // The access faults again and finds the stored copy.
            }
            _ => {
                let lost = self.lose(owned, StoreError::Misplaced);
                self.uncharge(1);
                lost?;
                Err(FaultError::Lost {
                    page,
                    cause: StoreError::Misplaced,
                })
            }
        }
    }

    /// Lets writes through to a mapped page; it is dirty from now on.
    pub(crate) fn unprotect(&self, owned: Owned) -> Result<(), FaultError> {
        let was = owned.was.with_state(State::Resident);
        if self.mm().notifiers().has_overdue_tlb_user() {
            self.publish(owned, was);
            return Err(FaultError::Overdue);
        }
        if let Err(error) = self
            .primary()
            .protect(PageRun::single(owned.page), Access::Write)
        {
            self.publish(owned, was);
            return Err(error.into());
        }
        // They may have kept that it must not be written.
        self.flush_tlb_users(PageRun::single(owned.page), Event::ProtectionPage);
        self.publish(owned, was.unprotected().dirty().without_copy());
        self.free_copy(was.copy());
        count(&self.stat().pgfault_wp);
        Ok(())
    }

    fn fill_zero(
        &self,
        owned: Owned,
        demand: Demand,
        mut charge: FrameCharge<'_>,
    ) -> Result<(), FaultError> {
        let page = owned.page;
        if let Err(error) = charge.fill_zeros(page, demand.access()) {
            self.restore(owned);
            return Err(error.into());
        }
        charge.commit(self.mm());
        // A zero page cannot be write-protected, so the page counts as dirty from the start.
        let next = owned.was.with_state(State::Resident).dirty();
        self.publish(owned, demand.arrive(next.fresh()));
        count(&self.stat().pgfault_zero);
        Ok(())
    }

    /// The second chance: the page goes back from its slot.
    fn reattach(&self, owned: Owned, demand: Demand) -> Result<(), FaultError> {
        let page = owned.page;
        let back = self.install(page, || self.primary().reattach(PageRun::single(page)));
        if let Err(error) = back {
            // The storer of a page found `Storing` gives up when it sees `Standby`.
            let was = owned.was.with_state(State::Standby);
            self.publish(owned, was);
            return Err(error.into());
        }
        // The move drops the write protection, so the page counts as dirty.
        let was = owned.was;
        let next = was.with_state(State::Resident).unprotected().dirty();
        self.publish(owned, demand.arrive(next.without_copy()));
        self.free_copy(was.copy());
        count(&self.stat().pgfault_soft);
        Ok(())
    }

    /// Puts a page at its address. What somebody else put there is taken away, and counted: it
    /// is never accepted in place of the contents.
    pub(super) fn install(
        &self,
        page: PageIndex,
        mut put: impl FnMut() -> Result<(), MmuError>,
    ) -> Result<(), MmuError> {
        match put() {
            Err(MmuError::ForeignFill { .. }) => {
                count(&self.stat().foreign_changes);
                self.primary().zap(PageRun::single(page))?;
                put()
            }
            result => result,
        }
    }

    /// The contents of an owned page are lost: every access ends in an error from now on.
    pub(super) fn lose(&self, owned: Owned, cause: StoreError) -> Result<(), FaultError> {
        count(&self.stat().pages_lost);
        let was = owned.was;
        let poisoned = self.primary().poison(PageRun::single(owned.page));
        self.publish(owned, Word::lost(cause).with_pins_of(was));
        self.free_copy(was.copy());
        Ok(poisoned?)
    }
}
