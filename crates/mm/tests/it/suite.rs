//! The shared suite on the simulated machine, under schedules and on threads.

use crate::machine::{OnTasks, OnThreads};
use pinless_mm::lock_order::ORDER;
use pinless_mm::suite::{CASES, Case};
use pinless_sim::{Options, Sim};

/// Seeds for each case: a few for every change, many at night.
const NR_SEEDS: u64 = 3;

/// The longest case takes a few million steps.
const STEPS_MAX: u64 = 100_000_000;

/// What was locked so far in this process, by all tests, agrees with the list.
#[track_caller]
fn check_lock_order() {
    let seen = lockdep::snapshot();
    let known = |name: &str| seen.orders.iter().any(|order| order.taken == name);
    assert!(known("zswap.block"), "nothing was seen: {}", seen.json());
    assert_eq!(ORDER.contradictions(&seen), [""; 0]);
}

/// All cases, or those whose names contain `PINLESS_CASE`: for whoever works on one.
fn cases() -> impl Iterator<Item = &'static Case> {
    let wanted = std::env::var("PINLESS_CASE").unwrap_or_default();
    CASES.iter().filter(move |case| case.name.contains(&wanted))
}

#[test]
fn the_suite_holds_under_schedules() {
    for case in cases() {
        for seed in 0..NR_SEEDS {
            let options = Options {
                steps_max: STEPS_MAX,
                ..Options::new(seed)
            };
            let run = Sim::run_with(options, move |sim| (case.run)(&OnTasks::new(sim)));
            assert!(run.has_passed(), "{}: {run}", case.name);
        }
    }
    check_lock_order();
}

/// On threads time is real: a case whose deadline is short says nothing on a busy machine.
const NEEDS_TIME: &str = "a_fault_without_frames_ends_in_an_error";

#[test]
fn the_suite_holds_on_threads() {
    assert!(CASES.iter().any(|case| case.name == NEEDS_TIME));
    for case in cases().filter(|case| case.name != NEEDS_TIME) {
        (case.run)(&OnThreads::new());
    }
    check_lock_order();
}
