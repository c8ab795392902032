//! What is right passes, and each way of being wrong is found, named, and shown shortly.

use crate::mirror::{Mirror, Wrong};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use lockdep::scheduler::scheduler_point;
use pinless_mm::bus::{Checks, DeviceMemory, DmaDevice};
use pinless_sim::conformance::{Invariant, Kit, Report, Subject};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Steps that a schedule may have which is shown.
const STEPS_MAX: u64 = 60;

fn judge(kit: Kit, wrong: Wrong) -> Report {
    kit.judge(move |memory| {
        let (device, listed) = Mirror::attach(memory, wrong);
        Subject::new(device, listed)
    })
}

#[test]
fn a_driver_that_is_right_passes() {
    let report = judge(Kit::new("mirror").schedules(150), Wrong::Nothing);
    assert!(report.has_passed(), "{report}");
    let json = report.json();
    assert!(json.contains("\"P1\""), "{json}");
}

#[track_caller]
fn check(wrong: Wrong, expected: &[Invariant]) {
    let report = judge(Kit::new("mirror").wanted(expected), wrong);
    assert!(report.convicts(expected), "{wrong:?}: {report}");
    let of_it = |one: &&pinless_sim::conformance::Conviction| expected.contains(&one.invariant);
    let found = report.convictions.iter().find(of_it).expect("convicted");
    assert!(found.steps <= STEPS_MAX, "{found}");
    assert!(found.replay.contains("seed="), "{}", found.replay);
}

/// Whoever keeps a translation too long uses a freed frame, which poison tells, too. Nobody is told
/// of it where nobody looks.
#[test]
fn each_level_of_checks_judges_by_what_it_looks_at() {
    use Invariant::{R1, R2, R4};
    for (checks, expected) in [
        (Checks::Generation, Some(R1)),
        (Checks::Poison, Some(R4)),
        (Checks::Off, None),
    ] {
        let kit = Kit::new("mirror").scene("race").checks(checks);
        let right = judge(kit.clone().schedules(60), Wrong::Nothing);
        assert!(right.has_passed(), "{checks:?}: {right}");
        let wrong = judge(kit.as_found(), Wrong::NoRetry);
        let found = wrong.broken().find(|one| [R1, R2, R4].contains(one));
        assert_eq!(found, expected, "{checks:?}: {wrong}");
    }
}

#[test]
fn each_wrong_driver_is_convicted_by_name() {
    use Invariant::{E1, E2, E3, L1, L2, P1, P3, P6, P8, P10, R1, R2, R4, R7, R8};
    for (wrong, expected) in [
        (Wrong::NoRetry, &[R1][..]),
        (Wrong::DropsAtEnd, &[R1, R2, R4]),
        (Wrong::Sleeps, &[P3]),
        (Wrong::RefusesAll, &[P1]),
        (Wrong::IgnoresRelease, &[P10]),
        (Wrong::UnmapOnly, &[E1, E2]),
        (Wrong::WritesReadOnly, &[R7]),
        (Wrong::KeepsWriting, &[E3]),
        (Wrong::WaitsForAll, &[P8]),
        (Wrong::LosesWakeups, &[P6]),
        (Wrong::FaultsUnderLock, &[L2]),
        (Wrong::FaultsInStart, &[L1]),
        (Wrong::LeaksPins, &[R8]),
    ] {
        check(wrong, expected);
    }
}

/// A device that is detached and stays subscribed is convicted: it is told of changes for ever.
#[test]
fn a_device_that_stays_subscribed_is_convicted() {
    let report = Kit::new("mirror")
        .scene("too-late")
        .schedules(9)
        .judge(|memory| {
            let (device, listed) = Mirror::attach(memory, Wrong::Nothing);
            let stopped = Arc::clone(&device);
            Subject::with(device, move || {
                stopped.stop();
                core::mem::forget(listed);
            })
        });
    let broken: Vec<Invariant> = report.broken().collect();
    assert_eq!(broken, [Invariant::P10], "{report}");
    let what = &report.convictions[0].what;
    assert!(what.contains("is still told of changes"), "{what}");
}

/// G15: a device that counts outside of its run does not repeat, though every run of it passes.
#[test]
fn a_driver_that_its_seed_does_not_decide_is_found_out() {
    let nr = AtomicU32::new(0);
    let make = move |memory: &Arc<dyn DeviceMemory>| {
        for _ in 0..nr.fetch_add(1, Relaxed) {
            scheduler_point("test.counted", 0);
        }
        let (device, listed) = Mirror::attach(memory, Wrong::Nothing);
        Subject::new(device, listed)
    };
    let judged = catch_unwind(AssertUnwindSafe(|| {
        Kit::new("mirror").schedules(3).scene("race").judge(make)
    }));
    let panic = judged.expect_err("it does not repeat");
    let message = panic.downcast_ref::<String>().expect("a breach");
    assert_eq!(message, "G15: seed 0 gave two different runs");
}

/// Whoever panics is convicted in every scene that it panics in, by name and with a schedule, and
/// the others are played all the same.
#[test]
fn a_driver_that_panics_is_convicted_and_judged_to_the_end() {
    for (wrong, what) in [
        (
            Wrong::PanicsInStart,
            "`mirror` panicked inside a callback, its start",
        ),
        (
            Wrong::PanicsInEnd,
            "`mirror` panicked inside a callback, its end: a mirror breaks",
        ),
        (Wrong::PanicsInAccess, "panicked: a mirror breaks"),
        (Wrong::PanicsInDrop, "panicked: a mirror breaks as it goes"),
        (Wrong::PanicsTwice, "panicked: a mirror breaks, at"),
    ] {
        let report = judge(Kit::new("mirror").schedules(9), wrong);
        let scenes = report.convictions.iter().filter(|one| {
            let place = "mirror.rs:";
            one.what.contains(what) && one.what.contains(place) && one.steps <= STEPS_MAX
        });
        let scenes: Vec<&str> = scenes.map(|one| one.scene).collect();
        for scene in ["race", "hung", "release"] {
            let is_told = [Wrong::PanicsInStart, Wrong::PanicsInEnd].contains(&wrong);
            let is_blind = scene == "release" && is_told;
            assert!(is_blind || scenes.contains(&scene), "{scene}: {report}");
        }
    }
}
