//! The decision.
//!
//! Linux counterpart: `out_of_memory`, `oom_kill_process`.

use super::badness::badness;
use super::report::OomReport;
use super::{State, Verdict};
use crate::memcg::Memcg;
use crate::memcg::stat::count;
use crate::mm_struct::Mm;
use crate::reclaim::Stall;
use std::sync::{Arc, Weak};

impl Memcg {
    /// A row of passes freed nothing and somebody waits: kills, if nothing else can help.
    pub(crate) fn out_of_memory(&self, stall: &Stall) -> Verdict {
        if self.may_still_free(stall) {
            return Verdict::Wait;
        }
        let mut state = self.oom.state.lock();
        // Looked at again under the lock: an earlier victim may have given something back since.
        if state.victim.is_some() || self.frames.nr_freed() != stall.nr_freed {
            return Verdict::Acted;
        }
        let Some((victim, badness, candidates)) = self.select_victim() else {
            return Verdict::Wait;
        };
        self.kill(&mut state, &victim, badness, candidates);
        drop(state);
        victim.call_on_kill();
        // Whoever waits for a frame on the victim's behalf stops waiting.
        self.frames.wake_all();
        self.oom.wake.notify_all();
        Verdict::Acted
    }

    /// Whether something that was under way when the row began could still free memory: a fault or
    /// a piece of reclaim, or a device that was asked and has time to answer. What began later
    /// does not count, or memory could never run out beside a busy device.
    fn may_still_free(&self, stall: &Stall) -> bool {
        let (now_ns, reclaim) = (self.clock.now_ns(), &self.reclaim);
        let age_max_ns = 2 * self.limits.settle_deadline.as_nanos() as u64;
        reclaim.has_old_in_flight()
            || reclaim
                .refused
                .is_pending(stall.nr_refused, now_ns, age_max_ns)
            || reclaim.pending.is_any(stall.began_ns, now_ns, age_max_ns)
    }

    /// The address space with the highest badness; of equals, the later one.
    fn select_victim(&self) -> Option<(Arc<Mm>, i64, u64)> {
        let mut candidates = 0;
        let mut worst: Option<(Arc<Mm>, i64)> = None;
        for mm in self.mms.read().iter().filter_map(Weak::upgrade) {
            let Some(badness) = badness(&mm, self.limits.frames_max()) else {
                continue;
            };
            candidates += 1;
            if worst.as_ref().is_none_or(|(_, most)| badness >= *most) {
                worst = Some((mm, badness));
            }
        }
        worst.map(|(mm, badness)| (mm, badness, candidates))
    }

    fn kill(&self, state: &mut State, victim: &Arc<Mm>, badness: i64, candidates: u64) {
        count(&self.stat.oom_kill);
        let report = OomReport {
            mm: victim.id(),
            victim: Arc::clone(victim.name()),
            badness,
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
            skipped: state.reports.empty_list(),
        };
        state.reports.push(report);
        victim.mark_killed();
        state.victim = Some(Arc::clone(victim));
    }

    /// The stories of the kills so far, oldest first.
    pub fn oom_reports(&self) -> Vec<OomReport> {
        self.oom.state.lock().reports.told().to_vec()
    }
}
