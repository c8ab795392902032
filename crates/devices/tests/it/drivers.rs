//! Each driver against the contract of the notifiers. The names in brackets are the invariants of
//! the conformance list: R no stale use, P progress, E events.

use crate::machine::{Driver, EVER, Machine, NR_BYTES, NR_PAGES, await_done};
use core::time::Duration;
use lockdep::sync::{Completion, Mutex, Waited};
use pinless_devices::engine::COMMANDS_MAX;
use pinless_devices::{DmaDevice, DmaError};
use pinless_mm::addr::PageRun;
use pinless_mm::bus::Caught;
use pinless_mm::mmu_notifier::{BracketError, Inject};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

fn page(nr: u32) -> PageRun {
    PageRun::single(nr)
}

fn everything() -> PageRun {
    PageRun::new(0, NR_PAGES)
}

/// [R1, R2, R6] Devices read and write while every page is taken back over and over: no access is
/// stale, and none is lost.
#[test]
fn nothing_is_stale_under_racing_invalidators() {
    const ROUNDS: u32 = 400;
    const NR_THREADS: u8 = 3;
    for driver in Driver::ALL {
        Machine::run(driver, |machine| {
            thread::scope(|scope| {
                for own in 0..NR_THREADS {
                    scope.spawn(move || keep_counting(machine, own, ROUNDS));
                }
                scope.spawn(|| take_back(machine, ROUNDS));
            });
            let stats = machine.device.stats();
            assert_eq!(stats.stale, 0, "{driver:?}");
            let accesses = u64::from(NR_THREADS) * u64::from(ROUNDS);
            assert_eq!(
                (stats.reads, stats.writes),
                (accesses, accesses),
                "{driver:?}"
            );
            assert!(stats.invalidations >= u64::from(ROUNDS) / 2, "{driver:?}");
            assert_eq!(machine.notifiers.stats().panics, 0, "{driver:?}");
        });
    }
}

/// Each thread owns one byte of every page, and counts in it.
fn keep_counting(machine: &Machine, own: u8, rounds: u32) {
    let device = &machine.device;
    let mut expected = [0u8; NR_PAGES as usize];
    for round in 0..rounds {
        let page = (round * 7 + u32::from(own)) % NR_PAGES;
        let mut found = [0];
        device
            .read(page, usize::from(own), &mut found)
            .expect("the device is right");
        let count = &mut expected[page as usize];
        assert_eq!(found[0], *count, "a write was lost");
        *count = count.wrapping_add(1);
        device
            .write(page, usize::from(own), &[*count])
            .expect("the device is right");
    }
}

/// Brackets of both modes, some of them nested and crossed; a refused one takes nothing.
fn take_back(machine: &Machine, rounds: u32) {
    for round in 0..rounds {
        let run = PageRun::new(round % NR_PAGES, 1 + round % 3);
        let run = PageRun::new(run.first, run.nr.min(NR_PAGES - run.first));
        if round.is_multiple_of(2) {
            if let Ok(_invalidation) = machine.nonblock(run) {
                machine.frames.take(run);
            }
            continue;
        }
        let outer = machine.blockable(run, EVER).expect("the device answers");
        let inner = machine.nonblock(everything());
        if inner.is_ok() {
            machine.frames.take(everything());
        } else {
            machine.frames.take(run);
        }
        drop(outer);
        drop(inner);
    }
}

/// The canaries: with a fault in the notifier core, a stale access is seen, reported once, and the
/// device goes on.
#[test]
fn injected_faults_are_seen_as_stale() {
    for driver in Driver::ALL {
        for fault in [Inject::None, Inject::SkipNotifier, Inject::LateEnd] {
            Machine::run(driver, |machine| {
                machine.touch(3).expect("nothing happened yet");
                machine.notifiers.inject(fault);
                let invalidation = machine
                    .blockable(page(3), EVER)
                    .expect("the device answers");
                if fault == Inject::LateEnd {
                    machine.touch(3).expect("the page is still there");
                }
                machine.frames.take(page(3));
                drop(invalidation);
                machine.notifiers.inject(Inject::None);

                let touched = machine.touch(3);
                let is_seen = matches!(
                    touched,
                    Err(DmaError::Stale(stale)) if stale.caught == Caught::Before
                );
                assert_eq!(
                    is_seen,
                    fault != Inject::None,
                    "{driver:?} {fault:?}: {touched:?}"
                );
                assert_eq!(machine.device.stats().stale, u64::from(is_seen));
                if is_seen {
                    // The card's engine needs a moment for that.
                    let began = Instant::now();
                    while machine.device.holds() > 0 {
                        assert!(began.elapsed() < EVER, "{driver:?}");
                        thread::yield_now();
                    }
                }
                machine
                    .touch(3)
                    .expect("one report for each invalidation missed");
            });
        }
    }
}

/// [R1] A translation that was fetched before a start is not installed after it, whether the
/// bracket is open at the install or closed by then.
#[test]
fn fault_that_began_before_a_bracket_is_thrown_away() {
    for driver in Driver::ALL {
        Machine::run(driver, |machine| {
            thread::scope(|scope| {
                let in_first = Completion::new("test.first");
                let in_second = Completion::new("test.second");
                let is_open = Completion::new("test.open");
                let is_closed = Completion::new("test.closed");
                let [in_first, in_second, is_open, is_closed] =
                    [in_first, in_second, is_open, is_closed].map(Arc::new);
                let rendezvous = |here: &Arc<Completion>, there: &Arc<Completion>| {
                    let (here, there) = (Arc::clone(here), Arc::clone(there));
                    Box::new(move || {
                        here.complete_all();
                        await_done(&there);
                    }) as Box<dyn FnOnce() + Send>
                };
                machine.frames.in_fault(vec![
                    rendezvous(&in_first, &is_open),
                    rendezvous(&in_second, &is_closed),
                ]);
                scope.spawn(move || {
                    await_done(&in_first);
                    let invalidation = machine.nonblock(page(5)).expect("nothing is held");
                    is_open.complete_all();
                    await_done(&in_second);
                    machine.frames.take(page(5));
                    drop(invalidation);
                    is_closed.complete_all();
                });
                machine.touch(5).expect("the third translation is fresh");
            });
            let stats = machine.device.stats();
            assert_eq!(
                (stats.faults, stats.retries, stats.stale),
                (3, 2, 0),
                "{driver:?}"
            );
        });
    }
}

/// [P1, P8] A device refuses only where it may not wait and has something to wait for.
#[test]
fn refuses_only_what_overlaps_something_in_use() {
    // For the template that is an access in flight, for the card a translation.
    for driver in Driver::ALL {
        Machine::run(driver, |machine| {
            machine.touch(4).expect("nothing happened yet");
            machine.touch(6).expect("nothing happened yet");
            machine.device.hang(driver == Driver::Template);
            let rows = [
                (page(3), false),
                (page(4), true),
                (page(5), false),
                (page(6), true),
                (page(7), false),
                (PageRun::new(2, 2), false),
                (PageRun::new(2, 3), true),
                (everything(), true),
            ];
            for (run, expected) in rows {
                let refused = machine.nonblock(run);
                assert_eq!(refused.is_err(), expected, "{driver:?} {run}");
            }
            assert_eq!(machine.device.stats().refusals, 4);
            machine.device.hang(false);
        });
    }
}

/// [P2, R2] An access in flight: the non-blockable start is refused, the blockable one waits for
/// its end, and one beside it does neither.
#[test]
fn template_waits_for_accesses_in_flight() {
    Machine::run(Driver::Template, |machine| {
        let bus = Arc::new(crate::machine::SlowBus::new(Arc::clone(&machine.frames)));
        let (device, subscription) = pinless_devices::Template::attach(
            &machine.notifiers,
            Arc::clone(&bus) as Arc<dyn pinless_mm::bus::Bus>,
            "slow",
        );
        let log = Mutex::new("test.log", Vec::new());
        thread::scope(|scope| {
            scope.spawn(|| {
                device.read(9, 0, &mut [0]).expect("the device is right");
                log.lock().push("read");
            });
            await_done(&bus.is_reading);
            let refused = machine
                .nonblock(page(9))
                .expect_err("an access is in flight");
            assert_eq!(&*refused.holder, "slow");
            drop(
                machine
                    .nonblock(page(8))
                    .expect("nothing is in flight there"),
            );
            let error = machine
                .blockable(page(9), Duration::ZERO)
                .expect_err("in flight");
            assert_eq!(&**error.holder(), "slow");
            scope.spawn(|| {
                lockdep::sync::spin_wait("test.start", 0, || device.stats().invalidations == 3);
                log.lock().push("go on");
                bus.may_go_on.complete_all();
            });
            drop(machine.blockable(page(9), EVER).expect("the access ends"));
            log.lock().push("started");
        });
        let log = log.into_inner();
        assert_eq!(log[0], "go on");
        assert_eq!(log.len(), 3);
        device.stop();
        subscription.synchronize();
    });
}

/// [P9] A device that hangs gives nothing back and stops nobody else; released, it goes on.
#[test]
fn hung_device_keeps_what_it_holds_until_released() {
    for driver in Driver::ALL {
        Machine::run(driver, |machine| {
            machine
                .device
                .write(2, 0, &[7])
                .expect("nothing happened yet");
            machine.device.hang(true);
            machine.device.hang(true);
            assert_eq!(
                &*machine.nonblock(page(2)).expect_err("it hangs").holder,
                "device"
            );
            // More attempts than the card's queue holds.
            let attempts = 2 * COMMANDS_MAX;
            for _ in 0..attempts {
                match machine
                    .blockable(page(2), Duration::ZERO)
                    .expect_err("it hangs")
                {
                    BracketError::Stuck { holder, fence, .. } => {
                        assert_eq!((&*holder, fence.is_signalled()), ("device", false));
                    }
                    other => panic!("{driver:?}: {other}"),
                }
            }
            assert_eq!(machine.notifiers.stats().stuck, attempts as u64);
            assert_eq!(
                machine.device.holds(),
                1,
                "{driver:?}: what it holds it keeps"
            );
            assert_eq!(machine.touch(11), Err(DmaError::Hung), "{driver:?}");
            drop(machine.nonblock(page(11)).expect("it holds nothing there"));

            thread::scope(|scope| {
                scope.spawn(|| machine.device.hang(false));
                let invalidation = machine.blockable(page(2), EVER).expect("it goes on");
                assert_eq!(
                    machine.device.holds(),
                    0,
                    "{driver:?}: answered after it let go"
                );
                machine.frames.take(page(2));
                drop(invalidation);
            });
            assert_eq!(machine.touch(2), Ok(7), "{driver:?}");
            assert_eq!(machine.device.stats().stale, 0, "{driver:?}");
        });
    }
}

/// [R2] The card answers only after it has dropped the translation; until then it uses it.
#[test]
fn card_answers_after_it_dropped_the_translation() {
    Machine::run(Driver::Odp, |machine| {
        machine.touch(1).expect("nothing happened yet");
        machine.device.hang(true);
        let error = machine
            .blockable(page(1), Duration::ZERO)
            .expect_err("it does not answer");
        machine
            .touch(1)
            .expect("nothing has changed, and the card's data path goes on");
        let BracketError::Stuck { fence, .. } = error else {
            panic!("the card panicked");
        };
        assert!(!fence.is_signalled());
        machine.device.hang(false);
        assert_eq!(fence.wait_timeout(EVER), Waited::Done);
        assert_eq!(machine.device.holds(), 0);
        drop(machine.nonblock(page(1)).expect("the card holds nothing"));
    });
}

/// [R7] A page that was faulted for reading is faulted again for the first write.
#[test]
fn first_write_asks_for_the_right_to_write() {
    for driver in Driver::ALL {
        Machine::run(driver, |machine| {
            let mut bytes = [0; NR_BYTES];
            machine
                .device
                .read(0, 0, &mut bytes)
                .expect("the device is right");
            machine
                .device
                .read(0, 0, &mut bytes)
                .expect("the device is right");
            assert_eq!(machine.device.stats().faults, 1);
            machine
                .device
                .write(0, 1, &[5, 6])
                .expect("the device is right");
            machine
                .device
                .read(0, 0, &mut bytes)
                .expect("a right to write is one to read");
            assert_eq!(
                (bytes[..3].to_vec(), machine.device.holds()),
                (vec![0, 5, 6], 1)
            );
            assert_eq!(machine.device.stats().faults, 2, "{driver:?}");
        });
    }
}

/// [P10] After `release`, or after `stop`, no access begins and nothing is held.
#[test]
fn released_and_stopped_devices_touch_nothing() {
    for driver in Driver::ALL {
        for is_released in [true, false] {
            Machine::run(driver, |machine| {
                machine.touch(1).expect("nothing happened yet");
                if is_released {
                    machine.notifiers.release(EVER).expect("the device answers");
                } else {
                    machine.device.stop();
                }
                assert_eq!(machine.device.holds(), 0, "{driver:?}");
                assert_eq!(machine.touch(1), Err(DmaError::Stopped), "{driver:?}");
                machine.device.stop();
            });
        }
    }
}

/// [P9] A device that hangs can be stopped, and holds nobody up afterwards.
#[test]
fn hung_device_can_be_stopped() {
    for driver in Driver::ALL {
        Machine::run(driver, |machine| {
            machine.touch(1).expect("nothing happened yet");
            machine.device.hang(true);
            let error = machine
                .blockable(page(1), Duration::ZERO)
                .expect_err("it hangs");
            machine.device.stop();
            let BracketError::Stuck { fence, .. } = error else {
                panic!("{driver:?} panicked");
            };
            assert!(fence.is_signalled(), "{driver:?}");
            drop(machine.nonblock(page(1)).expect("it holds nothing"));
        });
    }
}

/// What was locked so far in this process, by all tests, agrees with the list.
#[test]
fn locks_are_taken_as_listed() {
    for driver in Driver::ALL {
        Machine::run(driver, |machine| {
            machine.touch(3).expect("nothing happened yet");
            drop(machine.blockable(page(3), EVER));
        });
    }
    let seen = lockdep::snapshot();
    let is_device = |order: &lockdep::prime::KnownOrder| order.taken.starts_with("devices.");
    assert!(seen.orders.iter().any(is_device), "{}", seen.json());
    assert_eq!(
        pinless_devices::lock_order::ORDER.contradictions(&seen),
        [""; 0]
    );
}
