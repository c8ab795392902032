//! Tests of what an exploration reports: short schedules, drawn options, and how to see it again.

use super::super::place::{Place, Wish};
use super::super::{End, Explore, Knob, Run, Sim, Strategy};
use super::two_locks;
use core::panic::Location;
use lockdep::sync::Mutex;
use pinless_mm::env::Clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Two orders of two locks, in the middle of much that has nothing to do with it.
fn noisy_deadlock(sim: &Sim) {
    let noise = Arc::new(Mutex::new("noise", 0));
    for _ in 0..2 {
        let noise = Arc::clone(&noise);
        sim.spawn("noise", move || (0..20).for_each(|_| *noise.lock() += 1));
    }
    two_locks(sim, ["ab", "ba"]);
}

fn words(run: &Run) -> String {
    let report = run.to_string();
    let (_, command) = report
        .split_once("PINLESS_SIM='")
        .expect("a report says how");
    command.split_once('\'').expect("quotes close").0.to_owned()
}

#[test]
fn a_schedule_is_shortened_and_replays() {
    let explore = Explore::new(0..1_000).strategy(Strategy::SwitchOneIn(1));
    let found = explore
        .clone()
        .as_found()
        .find(noisy_deadlock)
        .failure
        .unwrap();
    let short = explore.find(noisy_deadlock).failure.unwrap();
    assert!(found.nr_switches() > 20, "{found}");
    // To each of the four tasks, and back to the first of the two that wait.
    assert_eq!(short.nr_switches(), 5, "{short}");
    assert!(matches!(short.end, End::Deadlock { .. }), "{short}");
    let again = Sim::replay(0, &short.schedule, noisy_deadlock);
    assert_eq!((again.digest, again.end), (short.digest, short.end));
}

/// A task finds that another was in the middle of something. Others do much meanwhile.
fn noisy_panic(sim: &Sim) {
    let noise = Arc::new(Mutex::new("noise", 0));
    let counter = Arc::new(Mutex::new("counter", 0));
    for name in ["noise", "adds", "noise", "looks"] {
        let (noise, counter) = (Arc::clone(&noise), Arc::clone(&counter));
        sim.spawn(name, move || match name {
            "noise" => (0..20).for_each(|_| *noise.lock() += 1),
            "adds" => (0..20).for_each(|_| *counter.lock() += 1),
            _ => assert_eq!(*counter.lock() % 20, 0, "in the middle"),
        });
    }
}

#[test]
fn a_shortened_schedule_has_no_step_that_has_nothing_to_do_with_it() {
    let explore = Explore::new(0..1_000).strategy(Strategy::SwitchOneIn(1));
    let run = explore.find(noisy_panic).failure.unwrap();
    let is_noise = |task: u16| &*run.task_names[usize::from(task)] == "noise";
    assert!(!run.steps.iter().any(|step| is_noise(step.task)), "{run}");
    assert_eq!(run.nr_switches(), 2, "{run}");
    // Main spawns and ends, one is added, and somebody looks.
    assert!(run.nr_steps <= 10, "{run}");
}

const TABLE: &[Knob] = &[
    Knob::flag("hang"),
    Knob::number("tasks", 1, 4),
    Knob::flag("other"),
];

fn fails_with_three_that_hang(sim: &Sim) {
    assert!(!(sim.is_on("hang") && sim.knob("tasks") == 3), "the bug");
}

#[test]
fn options_are_drawn_from_the_seed_and_told() {
    let explore = Explore::new(0..100).knobs(TABLE);
    let run = explore.clone().find(fails_with_three_that_hang).failure;
    let run = run.expect("one seed in eight draws these");
    assert_eq!(run.knobs[..2], [("hang", 1), ("tasks", 3)]);
    let report = run.to_string();
    assert!(report.starts_with(&format!(
        "seed {}, strategy drawn, hang 1, tasks 3, ",
        run.seed
    )));
    assert_eq!(
        explore
            .find(fails_with_three_that_hang)
            .failure
            .unwrap()
            .seed,
        run.seed
    );
}

/// What a report prints for the shell makes the same run again.
#[test]
fn a_report_says_how_to_see_it_again() {
    let explore = Explore::new(0..500)
        .knobs(TABLE)
        .strategy(Strategy::Pct { depth: 2, steps: 0 });
    let body = |sim: &Sim| match sim.knob("tasks") {
        1 | 2 => two_locks(sim, ["ab", "ba"]),
        _ => two_locks(sim, ["ab", "ab"]),
    };
    let here = Place::new(Location::caller());
    let first = explore
        .clone()
        .find_at(here.clone(), Wish::default(), body)
        .failure
        .unwrap();
    let words = words(&first);
    let wish = here.parse(&words).unwrap();
    let again = Explore::new(0..1)
        .knobs(TABLE)
        .find_at(here.clone(), wish, body);
    assert_eq!(again.nr_runs, 1);
    let again = again.failure.unwrap();
    assert_eq!(
        (again.digest, &again.knobs),
        (first.digest, &first.knobs),
        "{words}"
    );
    // Words for another exploration are none for this one.
    let other = words.replace("at=", "at=other/");
    assert_eq!(here.parse(&other), Ok(Wish::default()));
    for wrong in ["seed=x", "hang", "seeds=1-2", "schedule=1x", "strategy=no"] {
        assert_eq!(here.parse(wrong), Err(wrong.to_owned()));
    }
}

#[test]
fn tasks_that_spin_for_each_other_are_found_and_named() {
    let body = |sim: &Sim| {
        let flags = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        for (name, mine) in [("a", 0), ("b", 1)] {
            let flags = Arc::clone(&flags);
            sim.spawn(name, move || {
                lockdep::sync::spin_wait(name, 0, || flags[1 - mine].load(Relaxed));
                flags[mine].store(true, Relaxed);
            });
        }
        sim.join_all();
    };
    for strategy in ["random", "pct:3:100", "exhaustive:0"] {
        let explore = Explore::new(0..3).strategy(strategy.parse().unwrap());
        let run = explore
            .find(body)
            .failure
            .expect("each waits for the other");
        assert!(matches!(run.end, End::Livelock { .. }), "{run}");
        let report = run.to_string();
        for line in ["a could run from spin `a`", "b could run from spin `b`"] {
            assert!(report.contains(line), "{line:?} is not in:\n{report}");
        }
    }
}

/// Whoever polls the clock is right to spin, with every strategy.
#[test]
fn spinning_for_time_or_for_others_ends() {
    for strategy in ["random", "pct:3:100", "exhaustive:1"] {
        let explore = Explore::new(0..20).strategy(strategy.parse().unwrap());
        explore.runs_max(200).check(|sim| {
            let (clock, flag) = (sim.clock(), Arc::new(AtomicBool::new(false)));
            for name in ["a", "b"] {
                let flag = Arc::clone(&flag);
                sim.spawn(name, move || {
                    lockdep::sync::spin_wait(name, 0, || flag.load(Relaxed));
                });
            }
            lockdep::sync::spin_wait("clock", 0, || clock.now_ns() > 1_000_000_000);
            flag.store(true, Relaxed);
            sim.join_all();
        });
    }
}
