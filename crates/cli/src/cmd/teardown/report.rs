//! What a teardown test tells: facts with their units, for people and machines.

use super::facts::{Facts, Reaper};
use super::round::Played;
use super::splat::Complaint;
use super::verdict::Verdict;
use crate::args::Bytes;
use crate::exit::Exit;
use serde::Serialize;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// A whole test.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) ok: bool,
    /// The worst of the rounds'; none if it was interrupted before the first was over.
    pub(crate) verdict: Option<Verdict>,
    pub(crate) interrupted: bool,
    /// What the command ends with: one number for each verdict.
    pub(crate) exit_code: Exit,
    pub(crate) program: Vec<String>,
    pub(crate) limit_bytes: u64,
    pub(crate) limit_when: String,
    pub(crate) swap_bytes: u64,
    pub(crate) held: bool,
    /// `v1` or `v2`.
    pub(crate) cgroup: Option<&'static str>,
    pub(crate) rounds: Vec<Round>,
    pub(crate) kill_to_exit: Option<Spread>,
    pub(crate) kill_to_back: Option<Spread>,
    pub(crate) kvm_unmap_hva_range: Option<Spread>,
    pub(crate) notes: Vec<String>,
}

/// A figure over the rounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Spread {
    pub(crate) min: u64,
    pub(crate) median: u64,
    pub(crate) max: u64,
}

impl Spread {
    pub(crate) fn of(values: impl Iterator<Item = u64>) -> Option<Self> {
        let mut values: Vec<u64> = values.collect();
        values.sort_unstable();
        Some(Self {
            min: *values.first()?,
            median: values[values.len() / 2],
            max: *values.last()?,
        })
    }
}

/// One round. Times are in microseconds; those of the timeline count from the kill.
#[derive(Debug, Serialize)]
pub(crate) struct Round {
    pub(crate) verdict: Verdict,
    pub(crate) why: String,
    pub(crate) traced: bool,
    pub(crate) limit_bytes: u64,
    pub(crate) usage_at_kill_bytes: u64,
    pub(crate) peak_bytes: u64,
    /// What stays charged when everybody has gone.
    pub(crate) left_bytes: u64,
    pub(crate) start_to_kill_us: Option<u64>,
    pub(crate) kill_to_exit_us: Option<u64>,
    pub(crate) kill_to_back_us: Option<u64>,
    pub(crate) victims: Vec<Victim>,
    pub(crate) exit: Option<String>,
    pub(crate) survivors: usize,
    pub(crate) reaper: ReaperReport,
    pub(crate) mmu_notifiers: MmuNotifiers,
    pub(crate) devices: Vec<String>,
    pub(crate) blocked: Vec<BlockedReport>,
    pub(crate) mrelease: Option<String>,
    pub(crate) stalled_some_us: Option<u64>,
    pub(crate) stalled_full_us: Option<u64>,
    /// None where the kernel's log cannot be read.
    pub(crate) complaints: Option<Vec<Complaint>>,
    pub(crate) lost_events: u64,
    pub(crate) timeline: Vec<Step>,
}

/// Who was killed.
#[derive(Debug, Serialize)]
pub(crate) struct Victim {
    pub(crate) pid: u32,
    pub(crate) name: String,
    pub(crate) rss_bytes: u64,
    /// Whether nobody in the group had more memory: the right one.
    pub(crate) largest: bool,
}

/// What the reaper did: how many steps of each kind.
#[derive(Debug, Serialize)]
pub(crate) struct ReaperReport {
    pub(crate) woken: usize,
    pub(crate) passes: usize,
    pub(crate) finished: usize,
    pub(crate) skipped: usize,
    pub(crate) gave_up: bool,
    pub(crate) wake_to_finish_us: Option<u64>,
    pub(crate) freed_bytes: Option<u64>,
}

/// What reached MMU notifiers, as far as the kernel tells.
#[derive(Debug, Serialize)]
pub(crate) struct MmuNotifiers {
    /// Invalidations in a thread of the program; none without trace events.
    pub(crate) kvm_unmap_hva_range: Option<u64>,
    /// Invalidations by the reaper, which never blocks.
    pub(crate) kvm_unmap_hva_range_by_reaper: Option<u64>,
}

/// A thread that did not die at once.
#[derive(Debug, Serialize)]
pub(crate) struct BlockedReport {
    pub(crate) task: u32,
    pub(crate) name: String,
    pub(crate) state: char,
    pub(crate) wchan: Option<String>,
    pub(crate) stack: Vec<String>,
    pub(crate) seen_for_us: u64,
}

/// A moment of the timeline.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Step {
    pub(crate) since_kill_us: i64,
    pub(crate) what: String,
}

impl Round {
    /// Tells a round that was judged.
    pub(super) fn new(
        played: &Played,
        complaints: Vec<Complaint>,
        verdict: Verdict,
        why: String,
    ) -> Self {
        let facts = &played.facts;
        let kill = facts.kill_ns();
        let since_kill = |ns: Option<u64>| {
            ns.zip(kill)
                .map(|(ns, kill)| ns.saturating_sub(kill) / 1000)
        };
        let gone = facts.victims.first().and_then(|at| at.what.gone_ns);
        // Of who is held the memory goes later.
        let ended = gone.into_iter().chain(facts.empty_ns).min();
        let traced = |count: u64| played.is_traced.then_some(count);
        Self {
            verdict,
            why,
            traced: played.is_traced,
            limit_bytes: played.limit_bytes,
            usage_at_kill_bytes: facts.usage_at_kill,
            peak_bytes: facts.peak_bytes,
            left_bytes: facts.left_bytes,
            start_to_kill_us: kill.map(|kill| kill.saturating_sub(played.begun_ns) / 1000),
            kill_to_exit_us: since_kill(ended),
            kill_to_back_us: since_kill(facts.back_ns),
            victims: victims(facts),
            exit: facts.exit.as_ref().map(|exit| ending(exit.what)),
            survivors: facts.survivors.as_ref().map_or(0, |at| at.what),
            reaper: reaper(facts),
            mmu_notifiers: MmuNotifiers {
                kvm_unmap_hva_range: traced(facts.kvm.program),
                kvm_unmap_hva_range_by_reaper: traced(facts.kvm.reaper),
            },
            devices: facts.devices.iter().cloned().collect(),
            blocked: blocked(facts),
            mrelease: facts.mrelease.clone(),
            stalled_some_us: facts.pressure.map(|pressure| pressure.some_us),
            stalled_full_us: facts.pressure.map(|pressure| pressure.full_us),
            complaints: played.has_log.then_some(complaints),
            lost_events: facts.lost_events,
            timeline: timeline(facts, played.begun_ns),
        }
    }
}

/// How a process ended, in words.
pub(super) fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

fn victims(facts: &Facts) -> Vec<Victim> {
    let victims = facts.victims.iter().map(|at| Victim {
        pid: at.what.pid,
        name: at.what.name.clone(),
        rss_bytes: at.what.rss_bytes,
        largest: at.what.is_largest,
    });
    victims.collect()
}

fn reaper(facts: &Facts) -> ReaperReport {
    let wake = facts.reaper_ns(Reaper::Woken);
    let finish = facts.reaper_ns(Reaper::Finished);
    let took = wake.zip(finish);
    ReaperReport {
        woken: facts.nr_reaper(Reaper::Woken),
        passes: facts.nr_reaper(Reaper::Started),
        finished: facts.nr_reaper(Reaper::Finished),
        skipped: facts.nr_reaper(Reaper::Skipped),
        gave_up: facts.gave_up().is_some(),
        wake_to_finish_us: took.map(|(wake, finish)| finish.saturating_sub(wake) / 1000),
        freed_bytes: facts.reaped_bytes,
    }
}

fn blocked(facts: &Facts) -> Vec<BlockedReport> {
    let blocked = facts.blocked.iter().map(|(&task, blocked)| BlockedReport {
        task,
        name: blocked.name.clone(),
        state: blocked.state,
        wchan: blocked.wchan.clone(),
        stack: blocked.stack.clone(),
        seen_for_us: (blocked.last_ns - blocked.first_ns) / 1000,
    });
    blocked.collect()
}

/// What happened, in order.
fn timeline(facts: &Facts, begun_ns: u64) -> Vec<Step> {
    let Some(kill) = facts.kill_ns() else {
        return Vec::new();
    };
    let mut steps = vec![(begun_ns, "program started".to_owned())];
    let mut add = |ns: Option<u64>, what: String| steps.extend(ns.map(|ns| (ns, what)));
    add(facts.limit_set_ns, "limit set".to_owned());
    // Seen by polling, so it can seem to be later than the kill that it led to.
    let hit = facts.limit_hit_ns.map(|ns| ns.min(kill));
    add(hit, "limit hit".to_owned());
    for at in &facts.victims {
        let victim = &at.what;
        let right = if victim.is_largest {
            "the largest of the group"
        } else {
            "NOT the largest of the group"
        };
        let rss = Bytes(victim.rss_bytes & !((1 << 20) - 1));
        let what = format!("victim: {} ({}), {rss}, {right}", victim.name, victim.pid);
        add(Some(at.ns), what);
    }
    for at in &facts.signals {
        add(Some(at.ns), format!("SIGKILL to {}", at.what));
    }
    for at in &facts.reaper {
        let (step, pid) = at.what;
        let what = match step {
            Reaper::Woken => format!("reaper woken for {pid}"),
            Reaper::Started => format!("reaper pass over {pid}"),
            Reaper::Finished => format!("reaper pass over {pid} ended"),
            Reaper::Skipped => format!("reaper skipped {pid}"),
        };
        add(Some(at.ns), what);
    }
    let victims: Vec<u32> = facts.victims.iter().map(|at| at.what.pid).collect();
    for at in facts.unmapped.iter().filter(|at| at.ns >= kill) {
        let who = if victims.contains(&at.what) {
            "the victim"
        } else {
            "another task"
        };
        add(
            Some(at.ns),
            format!("memory of {who} ({}) unmapped", at.what),
        );
    }
    if let Some(at) = &facts.survivors {
        add(
            Some(at.ns),
            format!("{} processes that went on ended", at.what),
        );
    }
    add(facts.empty_ns, "no process left".to_owned());
    add(facts.back_ns, "memory back".to_owned());
    steps.sort();
    let steps = steps.into_iter().map(|(ns, what)| Step {
        since_kill_us: (ns as i64 - kill as i64) / 1000,
        what,
    });
    steps.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_something() {
        let of = |values: &[u64]| Spread::of(values.iter().copied());
        let spread = |min, median, max| Some(Spread { min, median, max });
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[3]), spread(3, 3, 3));
        assert_eq!(of(&[5, 1, 9]), spread(1, 5, 9));
    }
}
