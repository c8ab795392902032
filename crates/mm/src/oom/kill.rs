//! The decision.
//!
//! Linux counterpart: `out_of_memory`, `oom_kill_process`.

use super::State;
use super::badness::badness;
use super::report::OomReport;
use crate::memcg::Memcg;
use crate::memcg::stat::count;
use crate::mm_struct::Mm;
use core::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

impl Memcg {
    /// A pass of reclaim freed nothing and somebody waits: kills, if nothing else can help.
    pub(crate) fn out_of_memory(&self) {
        if self.reclaim.refused.is_pending() || self.reclaim.in_flight.load(Ordering::Relaxed) > 0 {
            return;
        }
        let mut state = self.oom.state.lock();
        if state.victim.is_some() {
            return;
        }
        let Some((victim, badness, candidates)) = self.select_victim() else {
            return;
        };
        self.kill(&mut state, &victim, badness, candidates);
        drop(state);
        victim.call_on_kill();
        // Whoever waits for a frame on the victim's behalf stops waiting.
        self.frames.wake_all();
        self.oom.wake.notify_all();
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
