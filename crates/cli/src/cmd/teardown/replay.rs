//! The judge on recordings: what the kernel told in a round, as lines of text, and what came of it.
//!
//! A recording has lines as the kernel prints them in `trace_pipe`, and between them what was seen
//! by looking. Times are seconds, memory is in KiB:
//!
//! ```text
//! task PID NAME                     a process of the program
//! held PID                          its address space is kept
//! largest PID                       it has most memory
//! at TIME alive PID,PID usage KIB   a look at the group; `-` for nobody
//! asleep TIME PID NAME STATE WCHAN  a look at a thread
//! ended TIME NR                     so many went on, and were ended
//! log LINE                          the kernel's log
//! left KIB                          charged at the end
//! ```

use super::facts::{At, Blocked, Facts, Reaper};
use super::report::Round;
use super::round::Played;
use super::splat;
use super::verdict::{Measure, judge};
use crate::exit::Exit;
use pinless_host::memcg::{Stat, Version};
use pinless_host::tracefs::Event;

const SLACK_BYTES: u64 = 1 << 19;

/// Nanoseconds.
fn time(text: &str) -> u64 {
    let seconds: f64 = text.parse().expect("a time");
    (seconds * 1e6).round() as u64 * 1000
}

fn number<T: core::str::FromStr>(text: &str) -> T {
    text.parse().ok().expect("a number")
}

fn replay(recording: &str) -> Facts {
    let mut facts = Facts::default();
    let mut largest = None;
    for line in recording.lines().filter(|line| !line.starts_with('#')) {
        if let Some(logged) = line.strip_prefix("log ") {
            facts.log.push(logged.to_owned());
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["task", pid, name] => {
                facts.tasks.insert(number(pid));
                facts.names.insert(name.to_owned());
            }
            ["held", pid] => facts.held = Some(number(pid)),
            ["largest", pid] => largest = Some(number(pid)),
            ["at", at, "alive", alive, "usage", kib] => look(&mut facts, at, alive, kib),
            ["asleep", at, pid, name, state, wchan] => {
                let now = time(at);
                facts.see_asleep(number(pid), now, || Blocked {
                    name: name.to_owned(),
                    state: number(state),
                    wchan: Some(wchan.to_owned()),
                    stack: Vec::new(),
                    first_ns: now,
                    last_ns: now,
                });
            }
            ["ended", at, nr] => {
                let (ns, what) = (time(at), number(nr));
                facts.survivors = Some(At { ns, what });
            }
            ["left", kib] => facts.left_bytes = number::<u64>(kib) << 10,
            _ => facts.trace(&Event::parse(line).expect("an event"), largest),
        }
    }
    facts
}

fn look(facts: &mut Facts, at: &str, alive: &str, kib: &str) {
    let (now, usage) = (time(at), number::<u64>(kib) << 10);
    if facts.victims.is_empty() {
        facts.usage_at_kill = usage;
        return;
    }
    facts.kill_seen_ns.get_or_insert(now);
    let pids = alive.split(',').filter(|&pid| pid != "-");
    let alive: Vec<u32> = pids.map(number).collect();
    facts.see_alive(now, &alive);
    facts.see_usage(now, usage, SLACK_BYTES, &Stat::default());
}

/// What came of a recording: the code, what the sentence says, and what the timeline has.
#[track_caller]
fn check(recording: &str, code: Exit, why_has: &str, timeline_has: &[&str]) {
    let facts = replay(recording);
    let words = splat::words(facts.names.iter(), facts.tasks.iter(), facts.devices.iter());
    let complaints = splat::complaints(&facts.log, &words);
    let measure = Measure {
        slow_ns: 1_000_000_000,
        slack_bytes: SLACK_BYTES,
        is_held: recording.contains("\nheld "),
    };
    let (verdict, why) = judge(&facts, &complaints, measure);
    assert_eq!(verdict.exit(), code, "{recording}\n{why}");
    assert!(why.contains(why_has), "{why}");
    let played = Played {
        facts,
        begun_ns: 0,
        version: Version::V1,
        is_traced: true,
        has_log: true,
        slack_bytes: SLACK_BYTES,
        limit_bytes: 64 << 20,
        notes: Vec::new(),
    };
    let told = Round::new(&played, complaints, verdict, why);
    for words in timeline_has {
        let is_there = told.timeline.iter().any(|step| step.what.contains(words));
        assert!(is_there, "{words}: {:#?}", told.timeline);
    }
}

macro_rules! recording {
    ($name:literal) => {
        include_str!(concat!("recordings/", $name, ".txt"))
    };
}

#[test]
fn a_clean_teardown_is_told_from_one_that_took_too_long() {
    let all = "all memory came back in time";
    let steps = [
        "limit hit",
        "SIGKILL to 5747",
        "victim: leaker (5747), 33M, the largest",
        "memory of the victim (5747) unmapped",
        "memory back",
    ];
    check(recording!("clean"), Exit::Held, all, &steps);
    let steps = ["reaper woken for 5848", "reaper pass over 5848 ended"];
    check(recording!("held_guest"), Exit::Held, all, &steps);
    let facts = replay(recording!("held_guest"));
    assert_eq!((facts.kvm.program, facts.kvm.reaper), (16, 28));
    let slept = "nic-test slept for 1730 ms in dma_fence_default_wait";
    check(recording!("sleeps_in_release"), Exit::Slow, slept, &[]);
}

#[test]
fn what_does_not_come_back_is_stuck_with_its_place() {
    let pinned = "1M stay charged: pages are pinned";
    check(recording!("kept_pages"), Exit::Stuck, pinned, &[]);
    let place = "nic-test is in state D in i915_gem_object_wait";
    check(recording!("hangs_in_release"), Exit::Stuck, place, &[]);
}

#[test]
fn what_the_kernel_says_of_its_reaper_counts() {
    let unable = "unable to reap pid:41 (nic-test)";
    let steps = ["reaper skipped 41"];
    check(
        recording!("refuses_always"),
        Exit::ReaperGaveUp,
        unable,
        &steps,
    );
    let facts = replay(recording!("refuses_always"));
    assert_eq!(facts.nr_reaper(Reaper::Started), 8);
    let sleeping = "BUG: sleeping function called from invalid context";
    check(
        recording!("sleeps_in_notifier"),
        Exit::Complaint,
        sleeping,
        &[],
    );
}

#[test]
fn a_second_victim_is_one_while_the_first_has_memory() {
    let early = "bystander (42) was killed before the memory of nic-test (41) was back";
    check(recording!("two_at_once"), Exit::SecondVictim, early, &[]);
    check(
        recording!("held_and_a_second"),
        Exit::SecondVictim,
        early,
        &[],
    );
    let both = ["victim: leaker (41)", "victim: leaker-too (42)"];
    check(recording!("one_after_the_other"), Exit::Held, "", &both);
}

/// The wrong one is named; its teardown is judged as any other.
#[test]
fn who_was_not_the_largest_is_named() {
    let wrong = [
        "victim: small (41), 11M, NOT the largest of the group",
        "1 processes that went on ended",
    ];
    check(recording!("wrong_victim"), Exit::Held, "", &wrong);
}
