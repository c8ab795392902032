//! Looks at a group every few milliseconds, and keeps what it saw.

use super::facts::{At, Blocked, Facts, Victim};
use pinless_host::MonotonicClock;
use pinless_host::kmsg::Kmsg;
use pinless_host::memcg::{Memcg, Stat};
use pinless_host::process::{self, Status};
use pinless_host::psi::{self, Pressure};
use pinless_host::tracefs::{Trace, Wanted};
use pinless_mm::env::Clock;
use std::path::PathBuf;

/// Who does not die within this time after the kill is asked where it is.
const BLOCKED_NS: u64 = 50_000_000;

/// How often it looks which devices are open: some programs have many files.
const DEVICES_NS: u64 = 50_000_000;

/// The events that tell the story.
pub(super) const WANTED: [Wanted<'static>; 9] = [
    wanted("oom", "mark_victim"),
    wanted("oom", "wake_reaper"),
    wanted("oom", "start_task_reaping"),
    wanted("oom", "finish_task_reaping"),
    wanted("oom", "skip_task_reaping"),
    // Who goes over its limit reclaims first.
    wanted("vmscan", "mm_vmscan_memcg_reclaim_begin"),
    wanted("mmap", "exit_mmap"),
    wanted("kvm", "kvm_unmap_hva_range"),
    Wanted {
        system: "signal",
        event: "signal_generate",
        filter: "sig == 9",
    },
];

const fn wanted(system: &'static str, event: &'static str) -> Wanted<'static> {
    Wanted {
        system,
        event,
        filter: "",
    }
}

/// Monotonic time in nanoseconds.
pub(super) fn now_ns() -> u64 {
    MonotonicClock.now_ns()
}

/// Eyes on a group.
pub(super) struct Watcher<'a> {
    memcg: &'a Memcg,
    trace: Option<Trace>,
    kmsg: Option<Kmsg>,
    pressure_file: PathBuf,
    pressure_before: Option<Pressure>,
    pub(super) facts: Facts,
    /// A process in the group that is not the program's, see [`super::press`].
    pub(super) stranger: Option<u32>,
    largest: Option<(u32, u64)>,
    /// Charges that processors keep in stock may stay.
    slack_bytes: u64,
    usage: u64,
    devices_at_ns: u64,
}

impl<'a> Watcher<'a> {
    pub(super) fn new(memcg: &'a Memcg, trace: Option<Trace>, slack_bytes: u64) -> Self {
        let pressure_file = memcg.pressure_file();
        let pressure_file = pressure_file.unwrap_or_else(|| PathBuf::from(psi::SYSTEM));
        Self {
            memcg,
            trace,
            kmsg: Kmsg::from_now().ok(),
            pressure_before: Pressure::read(&pressure_file),
            pressure_file,
            facts: Facts::default(),
            stranger: None,
            largest: None,
            slack_bytes,
            usage: 0,
            devices_at_ns: 0,
        }
    }

    pub(super) fn has_log(&self) -> bool {
        self.kmsg.is_some()
    }

    pub(super) fn is_traced(&self) -> bool {
        self.trace.is_some()
    }

    /// Bytes charged when it looked last.
    pub(super) fn usage(&self) -> u64 {
        self.usage
    }

    /// Looks once. Whether the kernel has killed is known afterwards.
    pub(super) fn look(&mut self) {
        let now = now_ns();
        let alive = self.look_at_processes(now);
        let events = self.memcg.events();
        self.usage = self.memcg.usage();
        if events.max > 0 {
            self.facts.limit_hit_ns.get_or_insert(now);
        }
        if events.oom_kill > 0 && self.facts.kill_seen_ns.is_none() {
            self.facts.kill_seen_ns = Some(now);
            // It may have grown, and be gone, since the last look.
            self.facts.usage_at_kill = self.memcg.peak().max(self.facts.usage_at_kill);
        }
        self.look_at_log();
        let is_new_kill = events.oom_kill > self.facts.oom_kills;
        self.facts.oom_kills = events.oom_kill;
        if is_new_kill && self.trace.is_none() {
            self.untraced_victim(now);
        }
        if self.facts.kill_seen_ns.is_none() {
            self.facts.usage_at_kill = self.facts.usage_at_kill.max(self.usage);
            return;
        }
        self.look_at_the_dying(now, &alive);
        self.look_at_memory(now);
    }

    /// The processes of the program that still have something to end; keeps their names and
    /// devices while they live.
    fn look_at_processes(&mut self, now: u64) -> Vec<u32> {
        let is_killed = self.facts.kill_seen_ns.is_some();
        let is_time_for_devices = now >= self.devices_at_ns;
        if is_time_for_devices {
            self.devices_at_ns = now + DEVICES_NS;
        }
        let mut alive = Vec::new();
        let mut largest = None;
        for pid in self.memcg.processes() {
            if Some(pid) == self.stranger {
                continue;
            }
            let Some(status) = Status::read(pid).filter(|status| status.state != 'Z') else {
                continue;
            };
            alive.push(pid);
            if !is_killed {
                let rss = status.rss.unwrap_or(0);
                largest = largest.max(Some((rss, pid)));
                self.facts.names.insert(status.name);
                if is_time_for_devices {
                    self.facts.devices.extend(process::devices(pid));
                }
            }
        }
        if !is_killed {
            let stranger = self.stranger;
            let threads = self.memcg.threads().into_iter();
            self.facts
                .tasks
                .extend(threads.filter(|&task| Some(task) != stranger));
            // Who has no memory any more is being killed just now: the last look counts.
            let largest = largest.filter(|&(rss, _)| rss > 0);
            self.largest = largest.map(|(rss, pid)| (pid, rss)).or(self.largest);
        }
        alive
    }

    fn look_at_log(&mut self) {
        if let Some(kmsg) = &mut self.kmsg {
            self.facts.log.extend(kmsg.drain());
        }
        if let Some(trace) = &mut self.trace {
            let largest = self.largest.map(|(pid, _)| pid);
            for event in trace.drain() {
                self.facts.trace(&event, largest);
            }
            self.facts.lost_events = trace.lost();
        }
    }

    /// Tracing told of nobody: in another PID namespace its numbers are not ours.
    fn unnamed_victim(&mut self) {
        if let Some(ns) = self
            .facts
            .kill_seen_ns
            .filter(|_| self.facts.victims.is_empty())
        {
            self.untraced_victim(ns);
            let gone = self.facts.empty_ns;
            for victim in &mut self.facts.victims {
                victim.what.gone_ns = gone;
            }
        }
    }

    /// Without tracing the victim is who had most memory; the kernel chooses it by that.
    fn untraced_victim(&mut self, now: u64) {
        let known: Vec<u32> = self.facts.victims.iter().map(|at| at.what.pid).collect();
        let Some((pid, rss)) = self.largest.filter(|(pid, _)| !known.contains(pid)) else {
            return;
        };
        let name = self.facts.names.iter().next().cloned().unwrap_or_default();
        self.facts.victims.push(At {
            ns: now,
            what: Victim {
                pid,
                name: Status::read(pid).map_or(name, |status| status.name),
                rss_bytes: rss,
                is_largest: true,
                gone_ns: None,
            },
        });
    }

    fn look_at_the_dying(&mut self, now: u64, alive: &[u32]) {
        self.facts.see_alive(now, alive);
        let killed = self.facts.kill_ns().unwrap_or(now);
        if now.saturating_sub(killed) < BLOCKED_NS || alive.is_empty() {
            return;
        }
        for task in self.memcg.threads() {
            self.look_at_thread(task, now);
        }
    }

    /// A thread that sleeps and cannot be woken by its death.
    fn look_at_thread(&mut self, task: u32, now: u64) {
        if Some(task) == self.stranger {
            return;
        }
        let Some(status) = Status::read(task) else {
            return;
        };
        if status.state != 'D' {
            return;
        }
        self.facts.see_asleep(task, now, || Blocked {
            name: status.name,
            state: status.state,
            wchan: process::wchan(task),
            stack: process::stack(task),
            first_ns: now,
            last_ns: now,
        });
    }

    fn look_at_memory(&mut self, now: u64) {
        if self.facts.back_ns.is_some() {
            return;
        }
        let is_much = self.usage > self.slack_bytes;
        // What there is of each kind costs more to find out.
        let stat = if is_much {
            self.memcg.stat()
        } else {
            Stat::default()
        };
        let (usage, slack_bytes) = (self.usage, self.slack_bytes);
        self.facts.see_usage(now, usage, slack_bytes, &stat);
    }

    /// The last look, when nobody is left in the group.
    pub(super) fn finish(mut self) -> Facts {
        self.facts.peak_bytes = self.memcg.peak();
        if self.facts.empty_ns.is_some() {
            self.memcg.reclaim();
        }
        self.look();
        self.unnamed_victim();
        self.facts.left = self.memcg.stat();
        self.facts.left_bytes = self.memcg.usage();
        let pressure = Pressure::read(&self.pressure_file);
        self.facts.pressure = pressure
            .zip(self.pressure_before)
            .map(|(after, before)| after - before);
        self.facts
    }
}
