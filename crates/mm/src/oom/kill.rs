//! The decision.
//!
//! Linux counterpart: `out_of_memory`, `oom_kill_process`.

use super::badness::{Worst, badness};
use super::report::{Considered, Lists, OomReport, Reason};
use super::{Reaping, State, Verdict};
use crate::event::Event;
use crate::memcg::stat::count;
use crate::memcg::{Member, Memcg};
use crate::mm_struct::Mm;
use crate::mmu_notifier::MmId;
use crate::reclaim::Stall;
use crate::watch::is_replaced;
use core::ops::Bound;
use std::sync::Arc;

impl Memcg {
    /// A row of passes freed nothing, and nothing is under way that may, and somebody waits: kills,
    /// if nothing else can help.
    pub(crate) fn out_of_memory(&self, stall: &Stall) -> Verdict {
        if let Some(verdict) = self.climb(stall) {
            return verdict;
        }
        let mut state = self.oom.state.lock();
        // Looked at again under the lock: an earlier victim may have given something back since.
        if state.victim.is_some() || self.frames.nr_moved() != stall.nr_moved {
            return Verdict::Acted;
        }
        if !self.kill_worst(&mut state) {
            return Verdict::Wait;
        }
        drop(state);
        self.tell_of_kill();
        Verdict::Acted
    }

    /// Kills an address space because somebody wants it to (the kernel's `cgroup.kill`): from now
    /// on every fault in it ends in an error, and the reaper takes its memory, so that soon every
    /// access does. False when it was killed before, or lives in another memory cgroup. Neither
    /// waits nor allocates; what it set with [`Mm::set_on_kill`] is called.
    pub fn kill(&self, mm: &Arc<Mm>) -> bool {
        let mut state = self.oom.state.lock();
        if mm.is_killed() || !core::ptr::eq(Arc::as_ptr(mm.memcg()), self) {
            return false;
        }
        let lists = state.reports.empty_lists();
        self.kill_one(&mut state, mm, Reason::Asked, 0, lists);
        if state.victim.is_none() {
            state.victim = Some(Arc::clone(mm));
        } else {
            // There is room for every address space, and each comes here once.
            state.group.push(Arc::clone(mm));
        }
        drop(state);
        self.tell_of_kill();
        true
    }

    /// Who would be killed if memory ran out now, worst first, as many as a report names.
    pub fn worst(&self) -> Vec<Considered> {
        self.worst_now().mms().map(considered).collect()
    }

    /// The reaper goes first: it waits for nobody who is told.
    fn tell_of_kill(&self) {
        self.oom.wake.notify_all();
        // Whoever waits for a frame on a victim's behalf stops waiting.
        self.wake_waiters();
        self.call_on_kill();
    }

    /// Tells each victim that has not been told. No lock is held while one is. When one does not
    /// come back, whoever takes over tells the rest.
    pub(crate) fn call_on_kill(&self) {
        let mut last = MmId(0);
        while let Some(mm) = self.mm_after(last) {
            if mm.is_killed() {
                mm.call_on_kill();
            }
            if is_replaced() {
                return;
            }
            last = mm.id();
        }
    }

    fn mm_after(&self, last: MmId) -> Option<Arc<Mm>> {
        let mms = self.mms.read();
        let after = (Bound::Excluded(last), Bound::Unbounded);
        mms.range(after).find_map(|(_, member)| member.mm.upgrade())
    }

    /// Whether something that was under way when the row began could still free memory: a fault or
    /// a piece of reclaim, a device that was asked and has time to answer, or the worker that
    /// writes to the file. What began later does not count, or memory could never run out beside a
    /// busy device.
    pub(crate) fn may_still_free(&self, stall: &Stall) -> bool {
        let (now_ns, reclaim) = (self.clock.now_ns(), &self.reclaim);
        let age_max_ns = 2 * self.limits.settle_deadline.as_nanos() as u64;
        reclaim.has_old_in_flight()
            || reclaim
                .refused
                .is_pending(stall.nr_refused, now_ns, age_max_ns)
            || reclaim.pending.is_any(stall.began_ns, now_ns, age_max_ns)
            || self.awaits_write_back(stall, now_ns, age_max_ns)
    }

    /// Whether the worker that writes to the file is at it, or has had no turn since the row began:
    /// on a busy machine it comes late.
    fn awaits_write_back(&self, stall: &Stall, now_ns: u64, age_max_ns: u64) -> bool {
        let write_back = &self.reclaim.write_back;
        let is_young = now_ns.saturating_sub(stall.began_ns) < age_max_ns;
        write_back.is_writing(now_ns, age_max_ns)
            || self.file().is_some() && is_young && write_back.is_due(stall)
    }

    /// Who is the most to blame at this moment.
    pub(super) fn worst_now(&self) -> Worst {
        Worst::of(self.mms.read().values().rev(), self.frames.counter().max())
    }

    /// Kills the worst, and its group if that is wanted; false when there is nobody to kill.
    fn kill_worst(&self, state: &mut State) -> bool {
        let worst = self.worst_now();
        let Some((_, victim)) = worst.mms().next() else {
            return false;
        };
        // Before the kill: who sees that somebody was killed finds out why.
        count(&self.stat.event_oom);
        let mut lists = state.reports.empty_lists();
        lists.considered.extend(worst.mms().map(considered));
        lists.ladder = self.take_ladder();
        let candidates = worst.candidates;
        self.kill_one(state, &victim, Reason::Badness, candidates, lists);
        if let Some(group) = victim.memcg().oom_group_within(self) {
            count(&group.stat.oom_group_kill);
            let of = victim.id();
            let limit_pages = self.frames.counter().max();
            let mms = group.mms.read();
            let is_candidate = |member: &&Member| badness(&member.rss, limit_pages).is_some();
            let others = mms.values().filter(is_candidate);
            for mm in others.filter_map(|member| member.mm.upgrade()) {
                if state.group.len() < state.group.capacity() {
                    let lists = state.reports.empty_lists();
                    self.kill_one(state, &mm, Reason::Group { of }, candidates, lists);
                    state.group.push(mm);
                }
            }
        }
        state.victim = Some(victim);
        true
    }

    fn kill_one(
        &self,
        state: &mut State,
        victim: &Mm,
        reason: Reason,
        candidates: u64,
        lists: Lists,
    ) {
        // Where it belongs to, and so at all levels above, wherever memory ran out.
        count(&victim.memcg().stat.oom_kill);
        let killed = badness(&victim.rss, self.frames.counter().max()).unwrap_or(0);
        victim.note(|_| Event::Kill { badness: killed });
        let report = OomReport {
            mm: victim.id(),
            victim: Arc::clone(victim.name()),
            reason,
            badness: killed,
            considered: lists.considered,
            candidates,
            frames: (self.frames.counter().usage(), self.frames.counter().max()),
            zswap: (self.zswap.bytes(), self.zswap.max_bytes()),
            held: (victim.nr_frames(), victim.nr_swapped()),
            killed_at_ns: self.clock.now_ns(),
            first_page_ns: None,
            first_pass_ns: None,
            done_ns: None,
            passes: 0,
            freed_frames: 0,
            freed_swapped: 0,
            back_ns: None,
            skipped: lists.skipped,
            ladder: lists.ladder,
        };
        state.reports.push(report);
        victim.mark_killed();
    }

    /// What the reaper does with victims that devices subscribe to.
    pub fn set_reaping(&self, reaping: Reaping) {
        self.oom.set_reaping(reaping);
    }

    /// The stories of the kills so far, oldest first.
    pub fn oom_reports(&self) -> Vec<OomReport> {
        self.oom.state.lock().reports.told().to_vec()
    }
}

fn considered((badness, mm): (i64, Arc<Mm>)) -> Considered {
    Considered {
        badness,
        name: Arc::clone(mm.name()),
        frames: mm.nr_frames(),
        swapped: mm.nr_swapped(),
        oom_score_adj: mm.oom_score_adj(),
    }
}
