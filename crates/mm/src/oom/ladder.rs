//! What is tried before somebody is killed, one rung after the other.
//!
//! 1. *Shrink*: before it is said that memory has run out, each pass asks the caches; see
//!    [`Shrinker`](crate::memcg::Shrinker).
//! 2. *Discard*: contents that their program can do without are given up; see
//!    [`Advice::Discardable`](crate::Advice::Discardable).
//! 3. *Cancel*: who would be killed is asked to give memory back itself; see
//!    [`Mm::set_on_cancel`](crate::Mm::set_on_cancel).
//! 4. *Kill*.
//!
//! A rung is stood on until it is known that no frame came of it, which takes another row of passes
//! without any; then comes the next. When a frame comes free, or somebody gets one who had waited,
//! the ladder begins anew: a rung that promises much and gives nothing puts a kill off once.
//!
//! Linux counterpart: `shrink_slab` in `mm/shrinker.c`, `MADV_FREE`, `oom_notify_list`.

use super::Verdict;
use crate::addr::PageRun;
use crate::gfp::Reclaiming;
use crate::limits::WINDOW_PAGES;
use crate::memcg::Memcg;
use crate::memcg::stat::count;
use crate::mm_struct::{Scope, Vma, VmaId};
use crate::mmu_notifier::Event;
use crate::reclaim::Stall;
use crate::watch::is_replaced;
use core::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// What was tried since the last kill.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Ladder {
    /// What shrinkers gave back, in things of theirs.
    pub shrunk: u64,
    /// Pages whose contents were given up, because their program said that it can do without.
    pub discarded: u64,
    /// Who was asked last to give memory back itself, and said that it would.
    pub cancelling: Option<Arc<str>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Rung {
    #[default]
    Discard,
    Cancel,
    Kill,
}

/// How far the ladder was climbed since a frame moved; one for each memory cgroup of a tree.
#[derive(Default, Debug)]
pub(crate) struct Drought {
    /// What the row of passes said that had moved when it began.
    nr_moved: u64,
    next: Rung,
    /// Nobody is killed before this: somebody is giving memory back.
    cancelling_until_ns: u64,
    pub(super) ladder: Ladder,
}

impl Drought {
    /// The next rung, once it is known how many frames have moved.
    fn climb(&mut self, nr_moved: u64) -> Rung {
        if self.nr_moved != nr_moved {
            self.nr_moved = nr_moved;
            self.next = Rung::default();
        }
        let rung = self.next;
        self.next = match rung {
            Rung::Discard => Rung::Cancel,
            Rung::Cancel | Rung::Kill => Rung::Kill,
        };
        rung
    }
}

impl Memcg {
    /// Climbs until a rung gives something; `None` when there is nothing left but to kill.
    pub(super) fn climb(&self, stall: &Stall) -> Option<Verdict> {
        loop {
            let has_victim = self.oom.state.lock().victim.is_some();
            // Whoever was replaced leaves it to who took over: what it knows is old.
            if has_victim || is_replaced() || self.frames.nr_moved() != stall.nr_moved {
                return Some(Verdict::Acted);
            }
            let mut drought = self.domain.drought.lock();
            let rung = drought.climb(stall.nr_moved);
            let until_ns = drought.cancelling_until_ns;
            drop(drought);
            let has_given = match rung {
                Rung::Discard => self.discard(),
                Rung::Cancel => self.cancel(),
                Rung::Kill => {
                    let is_cancelling = self.clock.now_ns() < until_ns;
                    return is_cancelling.then_some(Verdict::Wait);
                }
            };
            if has_given {
                count(&self.stat.event_oom);
                return Some(Verdict::Acted);
            }
        }
    }

    /// What was tried before the kill that comes now.
    pub(super) fn take_ladder(&self) -> Ladder {
        core::mem::take(&mut self.domain.drought.lock().ladder)
    }

    /// Shrinkers gave something back.
    pub(crate) fn note_shrunk(&self, nr: u64) {
        self.domain.drought.lock().ladder.shrunk += nr;
    }

    /// Gives up the contents of every range that its program can do without, as far as no device
    /// refuses.
    fn discard(&self) -> bool {
        let _inside = Reclaiming::enter();
        let (mut last, mut discarded) = (VmaId(0), 0);
        while let Some(vma) = self.vma_after(last).filter(|_| !is_replaced()) {
            last = vma.id();
            for index in 0.. {
                let Some(run) = vma.discardable_at(index) else {
                    break;
                };
                discarded += vma.discard(run);
            }
        }
        self.domain.drought.lock().ladder.discarded += discarded;
        discarded > 0
    }

    fn vma_after(&self, last: VmaId) -> Option<Arc<Vma>> {
        let vmas = self.vmas.read();
        let mut after = vmas.range((Bound::Excluded(last), Bound::Unbounded));
        after.next().map(|(_, vma)| Arc::clone(vma))
    }

    /// Asks the one who would be killed.
    fn cancel(&self) -> bool {
        let Some(mm) = self.worst_now().mms().next().map(|(_, mm)| mm) else {
            return false;
        };
        if !mm.call_on_cancel() || is_replaced() {
            return false;
        }
        let deadline_ns = self.limits.cancel_deadline.as_nanos() as u64;
        let mut drought = self.domain.drought.lock();
        drought.cancelling_until_ns = self.clock.now_ns().saturating_add(deadline_ns);
        drought.ladder.cancelling = Some(Arc::clone(mm.name()));
        true
    }
}

impl Vma {
    /// Gives up what is in `run`; how many pages that were.
    fn discard(&self, run: PageRun) -> u64 {
        let (mut first, mut discarded) = (run.first, 0);
        while first < run.end() && !is_replaced() {
            let chunk = PageRun::new(first, WINDOW_PAGES.min(run.end() - first));
            let (start, end) = (self.address(chunk.first), self.address(chunk.end()));
            let notifiers = self.mm().notifiers();
            if let Ok(bracket) = notifiers.start_nonblock(start, end, Event::Clear) {
                let outcome = self.zap_told(chunk, Scope::Discard(&bracket));
                discarded += outcome.frames + outcome.swapped;
            }
            first = chunk.end();
        }
        discarded
    }
}

/// Runs foreign code; a panic of it goes nowhere.
pub(crate) fn contained<R>(call: impl FnOnce() -> R) -> Option<R> {
    // Unwind safe: nothing of ours is borrowed by what is called. What was thrown is foreign, too,
    // and its drop might throw again.
    catch_unwind(AssertUnwindSafe(call))
        .map_err(core::mem::forget)
        .ok()
}
