//! What was seen in one round, before anybody judges it.

use pinless_host::memcg::Stat;
use pinless_host::psi::Pressure;
use pinless_host::tracefs::Event;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::process::ExitStatus;

/// Something that happened at a moment of the monotonic clock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct At<T> {
    pub(super) ns: u64,
    pub(super) what: T,
}

/// A process that the OOM killer chose.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Victim {
    pub(super) pid: u32,
    pub(super) name: String,
    pub(super) rss_bytes: u64,
    /// Whether no other process of the group had more memory.
    pub(super) is_largest: bool,
    /// When its memory was unmapped by its own exit, or it was gone.
    pub(super) gone_ns: Option<u64>,
}

/// A step of the kernel's OOM reaper.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reaper {
    Woken,
    Started,
    Finished,
    Skipped,
}

/// A thread that did not get on with its death.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Blocked {
    pub(super) name: String,
    pub(super) state: char,
    pub(super) wchan: Option<String>,
    pub(super) stack: Vec<String>,
    pub(super) first_ns: u64,
    pub(super) last_ns: u64,
}

impl Blocked {
    /// The function of the kernel that it sleeps in.
    pub(super) fn place(&self) -> &str {
        self.wchan.as_deref().unwrap_or("an unknown place")
    }
}

/// Invalidations of a KVM guest's memory that reached its MMU notifier, by who asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct KvmUnmaps {
    /// Threads of the program: faults, reclaim, exit.
    pub(super) program: u64,
    /// The OOM reaper: never blocking.
    pub(super) reaper: u64,
}

/// All that one round showed.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Every process and thread of the group that was ever seen.
    pub(super) tasks: BTreeSet<u32>,
    /// Names of the processes.
    pub(super) names: BTreeSet<String>,
    /// What they had open.
    pub(super) devices: BTreeSet<String>,
    /// When the limit came, if it was not there from the beginning.
    pub(super) limit_set_ns: Option<u64>,
    pub(super) limit_hit_ns: Option<u64>,
    /// When the counter of kills was first seen above zero.
    pub(super) kill_seen_ns: Option<u64>,
    pub(super) oom_kills: u64,
    pub(super) victims: Vec<At<Victim>>,
    pub(super) signals: Vec<At<u32>>,
    pub(super) reaper: Vec<At<(Reaper, u32)>>,
    pub(super) kvm: KvmUnmaps,
    /// Memory maps that were taken down, by the thread that did it.
    pub(super) unmapped: Vec<At<u32>>,
    pub(super) usage_at_kill: u64,
    /// The program itself.
    pub(super) exit: Option<At<ExitStatus>>,
    pub(super) empty_ns: Option<u64>,
    pub(super) back_ns: Option<u64>,
    /// What the reaper alone gave back, while the address space was held.
    pub(super) reaped_bytes: Option<u64>,
    pub(super) log: Vec<String>,
    pub(super) blocked: BTreeMap<u32, Blocked>,
    /// What stays charged after everybody has gone, and the kernel dropped what it could.
    pub(super) left: Stat,
    pub(super) left_bytes: u64,
    pub(super) peak_bytes: u64,
    pub(super) pressure: Option<Pressure>,
    pub(super) lost_events: u64,
    /// The process whose address space is kept after its end: only its unmapping, or the reaper's
    /// last step, says that its memory is gone. None where tracing would not tell.
    pub(super) held: Option<u32>,
    /// How many processes went on, and when they were ended.
    pub(super) survivors: Option<At<usize>>,
    /// What the kernel answered when it was asked to take the rest back.
    pub(super) mrelease: Option<String>,
}

impl Facts {
    /// When the first victim was chosen, as exactly as it is known.
    pub(super) fn kill_ns(&self) -> Option<u64> {
        let chosen = self.victims.iter().map(|victim| victim.ns).min();
        chosen.or(self.kill_seen_ns)
    }

    /// When the reaper first took such a step.
    pub(super) fn reaper_ns(&self, step: Reaper) -> Option<u64> {
        let mut steps = self.reaper.iter();
        steps.find(|at| at.what.0 == step).map(|at| at.ns)
    }

    pub(super) fn nr_reaper(&self, step: Reaper) -> usize {
        let steps = self.reaper.iter();
        steps.filter(|at| at.what.0 == step).count()
    }

    /// The lines with which the reaper says that it could not do it.
    pub(super) fn gave_up(&self) -> Option<&str> {
        let mut lines = self.log.iter().map(String::as_str);
        lines.find(|line| {
            let rest = line.strip_prefix("oom_reaper: unable to reap pid:");
            let pid = rest.and_then(|rest| rest.split(' ').next()?.parse().ok());
            pid.is_some_and(|pid| self.tasks.contains(&pid))
        })
    }

    /// Takes in what the kernel's tracing tells; `largest` is the process of the group that had
    /// most memory when it was last looked at.
    pub(super) fn trace(&mut self, event: &Event, largest: Option<u32>) {
        let ns = event.at_ns;
        let about = event.number("pid").and_then(|pid| u32::try_from(pid).ok());
        let ours = about.filter(|pid| self.tasks.contains(pid));
        match (event.name.as_str(), ours) {
            ("mark_victim", Some(pid)) => self.victims.push(At {
                ns,
                what: victim_of(event, pid, largest),
            }),
            ("signal_generate", Some(pid)) => self.signals.push(At { ns, what: pid }),
            ("wake_reaper", Some(pid)) => self.reap(ns, Reaper::Woken, pid),
            ("start_task_reaping", Some(pid)) => self.reap(ns, Reaper::Started, pid),
            ("finish_task_reaping", Some(pid)) => self.reap(ns, Reaper::Finished, pid),
            ("skip_task_reaping", Some(pid)) => self.reap(ns, Reaper::Skipped, pid),
            ("mm_vmscan_memcg_reclaim_begin", _) if self.tasks.contains(&event.task) => {
                let first = self.limit_hit_ns.map_or(ns, |earlier| earlier.min(ns));
                self.limit_hit_ns = Some(first);
            }
            ("exit_mmap", _) if self.tasks.contains(&event.task) => {
                self.unmapped.push(At {
                    ns,
                    what: event.task,
                });
            }
            ("kvm_unmap_hva_range", _) if self.tasks.contains(&event.task) => {
                self.kvm.program += 1;
            }
            // The reaper takes one victim after the other, so between its start and its finish
            // it works for us.
            ("kvm_unmap_hva_range", _) if self.is_reaping() => self.kvm.reaper += 1,
            _ => {}
        }
    }

    /// Takes in a look at the group after the kill: those in `alive` have not ended.
    pub(super) fn see_alive(&mut self, now: u64, alive: &[u32]) {
        if alive.is_empty() {
            self.empty_ns.get_or_insert(now);
        }
        for index in 0..self.victims.len() {
            let At { ns: after, what } = &self.victims[index];
            let pid = what.pid;
            if what.gone_ns.is_some() {
                continue;
            }
            let mut unmapped = self.unmapped.iter();
            let exit = unmapped.find(|at| at.what == pid && at.ns >= *after);
            let mut reaped = self.reaper.iter();
            let reaped = reaped.find(|at| at.what == (Reaper::Finished, pid));
            let told = exit.map(|at| at.ns).or(reaped.map(|at| at.ns));
            let has_ended = !alive.contains(&pid) && self.held != Some(pid);
            self.victims[index].what.gone_ns = told.or(has_ended.then_some(now));
        }
    }

    /// Takes in what is charged after the kill. Memory is back when that is no more than what the
    /// kernel may keep: `slack_bytes`, and what `stat` says is not the program's.
    pub(super) fn see_usage(&mut self, now: u64, usage: u64, slack_bytes: u64, stat: &Stat) {
        let mut kept = slack_bytes + stat.file + stat.kernel;
        if self.empty_ns.is_some() {
            // Files in a tmpfs, which nobody has to give back.
            kept += stat.shmem;
        }
        if usage <= kept {
            self.back_ns.get_or_insert(now);
        }
    }

    /// Takes in a thread that slept where its death does not wake it.
    pub(super) fn see_asleep(&mut self, task: u32, now: u64, asleep: impl FnOnce() -> Blocked) {
        self.blocked.entry(task).or_insert_with(asleep).last_ns = now;
    }

    fn is_reaping(&self) -> bool {
        let last = self.reaper.last().map(|at| at.what.0);
        last == Some(Reaper::Started)
    }

    fn reap(&mut self, ns: u64, step: Reaper, pid: u32) {
        self.reaper.push(At {
            ns,
            what: (step, pid),
        });
    }
}

/// Kernels before 6.9 tell the number and nothing else.
fn victim_of(event: &Event, pid: u32, largest: Option<u32>) -> Victim {
    let kib = |key| event.number(key).unwrap_or(0);
    Victim {
        pid,
        name: event.value("comm").unwrap_or_default().to_owned(),
        rss_bytes: (kib("anon-rss") + kib("file-rss") + kib("shmem-rss")) << 10,
        is_largest: largest.is_none_or(|largest| largest == pid),
        gone_ns: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, task: u32, fields: &str) -> Event {
        Event {
            at_ns: 7,
            task,
            name: name.into(),
            fields: fields.into(),
        }
    }

    #[test]
    fn events_of_other_processes_are_not_ours() {
        let mut facts = Facts::default();
        facts.tasks.insert(10);
        let unmap = |task| {
            event(
                "kvm_unmap_hva_range",
                task,
                "mmu notifier unmap range: 0 -- 1",
            )
        };
        for (event, nr_victims, program, reaper) in [
            (event("mark_victim", 1, "pid=11 comm=x"), 0, 0, 0),
            (
                event("mark_victim", 1, "pid=10 comm=x anon-rss=4kB"),
                1,
                0,
                0,
            ),
            (unmap(11), 1, 0, 0),
            (unmap(10), 1, 1, 0),
            (event("start_task_reaping", 60, "pid=10"), 1, 1, 0),
            (unmap(60), 1, 1, 1),
            (event("finish_task_reaping", 60, "pid=10"), 1, 1, 1),
            (unmap(60), 1, 1, 1),
        ] {
            facts.trace(&event, Some(10));
            let seen = (facts.victims.len(), facts.kvm.program, facts.kvm.reaper);
            assert_eq!(seen, (nr_victims, program, reaper), "{event:?}");
        }
        assert_eq!(facts.victims[0].what.rss_bytes, 4096);
        assert!(facts.victims[0].what.is_largest);
    }

    #[test]
    fn the_reaper_gave_up_only_on_ours() {
        let mut facts = Facts::default();
        facts.tasks.insert(10);
        facts.log = vec!["oom_reaper: unable to reap pid:11 (other)".into()];
        assert_eq!(facts.gave_up(), None);
        facts
            .log
            .push("oom_reaper: unable to reap pid:10 (a b)".into());
        assert!(facts.gave_up().is_some());
    }
}
