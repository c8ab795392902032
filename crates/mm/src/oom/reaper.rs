//! The reaper: takes a victim's memory back without waiting for its threads or its devices.
//!
//! Every bracket is non-blockable. A device that refuses a chunk is asked again for its halves,
//! down to single pages, so that only what it really holds stays behind; that is tried again in
//! the next pass. After the last pass the rest is left to whoever holds it, by name.
//!
//! Linux counterpart: `oom_reap_task`, `__oom_reap_task_mm`.

use super::Reaping;
use super::report::{Held, SKIPPED_MAX, Skipped};
use crate::addr::PageRun;
use crate::limits::REAP_CHUNK_PAGES;
use crate::memcg::Memcg;
use crate::mm_struct::{Busy, Mm, Scope, Vma, VmaId, ZapOutcome};
use crate::mmu_notifier::{Event, MmId};
use crate::watch::is_replaced;
use std::sync::Arc;

/// What one pass over a victim left behind.
struct ReapPass {
    skipped: Vec<Skipped>,
    /// Pages left alone because they are pinned.
    pinned: u64,
}

impl ReapPass {
    fn begin(&mut self) {
        self.skipped.clear();
        self.pinned = 0;
    }

    fn skip(&mut self, holder: &Arc<str>, how: Held, pages: u64) {
        let is_known = |known: &&mut Skipped| known.holder == *holder && known.how == how;
        if let Some(known) = self.skipped.iter_mut().find(is_known) {
            known.pages += pages;
            return;
        }
        let skipped = Skipped {
            holder: Arc::clone(holder),
            how,
            pages,
        };
        if self.skipped.len() < SKIPPED_MAX {
            self.skipped.push(skipped);
        } else if let Some(least) = self.skipped.iter_mut().min_by_key(|known| known.pages)
            && least.pages < pages
        {
            *least = skipped;
        }
    }

    /// Tells whose pins the pages that were left alone have, as far as they have names.
    fn name_pins(&mut self, victim: &Mm, holders: &Holders) {
        let pinned = self.pinned;
        if pinned == 0 {
            return;
        }
        let mut nr_named = 0;
        // Where somebody is changing the list, the next pass has the names.
        let _ = victim.try_visit_pin_holders(&mut |holder, pages| {
            nr_named += pages;
            self.skip(holder, Held::Pinned, pages.min(pinned));
        });
        let nr_others = match nr_named {
            0 => pinned,
            _ => victim.nr_pins().saturating_sub(nr_named).min(pinned),
        };
        if nr_others > 0 {
            self.skip(&holders.pin, Held::Pinned, nr_others);
        }
    }
}

/// Names for what holds memory and is no subscription; made before they are needed.
struct Holders {
    pin: Arc<str>,
    user: Arc<str>,
    notifier: Arc<str>,
}

impl Memcg {
    /// The loop of [`Memcg::run_reaper`].
    pub(crate) fn reap_until_over(&self) {
        let holders = Holders {
            pin: Arc::from("a pin"),
            user: Arc::from("a thread in a fault"),
            notifier: Arc::from("a notifier that may block"),
        };
        let mut pass = ReapPass {
            skipped: Vec::with_capacity(SKIPPED_MAX),
            pinned: 0,
        };
        // Whoever had the post before may be stuck in the middle of them.
        let mut state = self.oom.state.lock();
        state.is_woken |= !state.leftovers.is_empty();
        drop(state);
        while let Some(work) = self.next_victim() {
            match work {
                Work::Victim(victim) => self.reap_victim(&victim, &mut pass, &holders),
                Work::Leftovers => self.reap_leftovers(&mut pass, &holders),
            }
        }
    }

    fn next_victim(&self) -> Option<Work> {
        let mut state = self.oom.state.lock();
        loop {
            if self.is_over() {
                return None;
            }
            if let Some(victim) = &state.victim {
                return Some(Work::Victim(Arc::clone(victim)));
            }
            if core::mem::take(&mut state.is_woken) && !state.leftovers.is_empty() {
                return Some(Work::Leftovers);
            }
            state = self.oom.wake.wait(state);
        }
    }

    fn reap_victim(&self, victim: &Arc<Mm>, pass: &mut ReapPass, holders: &Holders) {
        let reaping = self.oom.state.lock().reaping;
        if reaping == Reaping::GivesUp && victim.notifiers().has_subscriptions() {
            pass.begin();
            let pages = victim.nr_frames() + victim.nr_swapped();
            pass.skip(&holders.notifier, Held::NotAsked, pages);
            self.record(victim.id(), pass, 1, true);
            return self.finish_victim();
        }
        for attempt in 1..=self.limits.reap_passes {
            self.reap_pass(victim, pass, holders);
            if is_replaced() {
                // Somebody else began again.
                return;
            }
            let is_clean = pass.skipped.is_empty();
            let is_last = is_clean || attempt == self.limits.reap_passes;
            self.record(victim.id(), pass, attempt, is_last);
            if is_last || self.is_stopped() {
                break;
            }
            lockdep::sync::sleep("mm.oom.reaper", self.limits.reap_interval);
        }
        let is_clean = pass.skipped.is_empty();
        self.finish_victim();
        let mut state = self.oom.state.lock();
        // Whoever tears the address space down later takes it out again; see `forget`. Who has done
        // so already will not: what is pinned then goes with its last pin.
        let has_mappings = !matches!(victim.try_vma_after(VmaId(0)), Ok(None));
        let is_left = !is_clean && has_mappings && !victim.is_back();
        if is_left && state.leftovers.len() < state.leftovers.capacity() {
            state.leftovers.push(Arc::clone(victim));
        }
    }

    /// The next of the group, if there is one, is the victim.
    fn finish_victim(&self) {
        let mut state = self.oom.state.lock();
        state.victim = state.group.pop();
    }

    /// Somebody let go of a page of a victim that was reaped before.
    fn reap_leftovers(&self, pass: &mut ReapPass, holders: &Holders) {
        let mut index = 0;
        loop {
            let victim = self.oom.state.lock().leftovers.get(index).cloned();
            let Some(victim) = victim else { break };
            self.reap_pass(&victim, pass, holders);
            if is_replaced() {
                return;
            }
            let mut state = self.oom.state.lock();
            let is_back = victim.is_back();
            let now_ns = self.clock.now_ns();
            if let Some(report) = state.reports.last_of(victim.id()) {
                let after_ns = now_ns.saturating_sub(report.killed_at_ns);
                report.back_ns = report.back_ns.or(is_back.then_some(after_ns));
            }
            if is_back {
                // The next one moves up.
                state.leftovers.retain(|left| !Arc::ptr_eq(left, &victim));
            } else {
                index += 1;
            }
        }
    }

    fn reap_pass(&self, victim: &Mm, pass: &mut ReapPass, holders: &Holders) {
        pass.begin();
        self.reap_mappings(victim, pass, holders);
        pass.name_pins(victim, holders);
    }

    fn reap_mappings(&self, victim: &Mm, pass: &mut ReapPass, holders: &Holders) {
        let mut last = VmaId(0);
        loop {
            let vma = match victim.try_vma_after(last) {
                Ok(Some(vma)) => vma,
                Ok(None) => return,
                Err(Busy) => return pass.skip(&holders.user, Held::InUse, 1),
            };
            let mut first = 0;
            while first < vma.nr_pages() && !is_replaced() {
                let nr = REAP_CHUNK_PAGES.min(vma.nr_pages() - first);
                self.reap_run(&vma, PageRun::new(first, nr), pass, holders);
                first += nr;
            }
            last = vma.id();
        }
    }

    fn reap_run(&self, vma: &Vma, run: PageRun, pass: &mut ReapPass, holders: &Holders) {
        if is_replaced() || !vma.has_contents(run) {
            return;
        }
        let (start, end) = (vma.address(run.first), vma.address(run.end()));
        match vma
            .mm()
            .notifiers()
            .start_nonblock(start, end, Event::Unmap)
        {
            // It took long to open. Whoever does this work now finds what the device let go of.
            Ok(_bracket) if is_replaced() => {}
            Ok(_bracket) => {
                let outcome = vma.zap_told(run, Scope::Reap);
                // Before the bracket ends: that calls devices, and may never return.
                self.book(vma.mm().id(), &outcome);
                pass.pinned += outcome.pinned;
                if outcome.busy > 0 {
                    pass.skip(&holders.user, Held::InUse, outcome.busy);
                }
            }
            Err(refused) if run.nr == 1 => {
                pass.skip(&refused.holder, Held::Refused(refused.cause), 1);
            }
            Err(_) => {
                let half = run.nr / 2;
                self.reap_run(vma, PageRun::new(run.first, half), pass, holders);
                let rest = PageRun::new(run.first + half, run.nr - half);
                self.reap_run(vma, rest, pass, holders);
            }
        }
    }

    /// Counts what was taken from a victim.
    fn book(&self, victim: MmId, outcome: &ZapOutcome) {
        if outcome.frames + outcome.swapped == 0 {
            return;
        }
        let now_ns = self.clock.now_ns();
        let mut state = self.oom.state.lock();
        if let Some(report) = state.reports.last_of(victim) {
            let after_ns = now_ns.saturating_sub(report.killed_at_ns);
            report.first_page_ns.get_or_insert(after_ns);
            report.freed_frames += outcome.frames;
            report.freed_swapped += outcome.swapped;
        }
    }

    fn record(&self, victim: MmId, pass: &mut ReapPass, attempt: u32, is_last: bool) {
        let now_ns = self.clock.now_ns();
        let mut state = self.oom.state.lock();
        let Some(report) = state.reports.last_of(victim) else {
            return;
        };
        let after = |ns: u64| ns.saturating_sub(report.killed_at_ns);
        report.passes = attempt;
        report.first_pass_ns = report.first_pass_ns.or(Some(after(now_ns)));
        report.done_ns = is_last.then_some(after(now_ns));
        report.back_ns = report.done_ns.filter(|_| pass.skipped.is_empty());
        pass.skipped
            .sort_unstable_by_key(|skipped| core::cmp::Reverse(skipped.pages));
        report.skipped.clear();
        report.skipped.extend(pass.skipped.iter().cloned());
    }
}

enum Work {
    Victim(Arc<Mm>),
    Leftovers,
}
