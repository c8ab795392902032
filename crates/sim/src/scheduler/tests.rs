//! Tests of the scheduler: what must be found, what must pass, and that it happens again.

mod explorations;
mod strategies;
mod validator;

use super::{End, Options, Run, Sim, Strategy};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use core::time::Duration;
use lockdep::sync::park::Parker;
use lockdep::sync::{Completion, Condvar, Mutex, RwLock, ShortLock, Waited};
use pinless_mm::env::Clock;
use std::sync::{Arc, LazyLock};

/// Seeds that a test runs where a bug must be found or must not be there.
const NR_SEEDS: u64 = 300;

/// Three tasks that add to a number, each with a lock of its own around each step.
fn adders(sim: &Sim) {
    let total = Arc::new(Mutex::new("total", 0));
    for name in ["a", "b", "c"] {
        let total = Arc::clone(&total);
        sim.spawn(name, move || (0..5).for_each(|_| *total.lock() += 1));
    }
    sim.join_all();
    assert_eq!(*total.lock(), 15);
}

/// Watches the calling task apart: what is wrong on purpose is no report of the process.
fn apart() -> lockdep::Entered {
    static APART: LazyLock<lockdep::Validator> = LazyLock::new(lockdep::Validator::new);
    APART.enter()
}

/// Two tasks that take two locks, each in the order that its name says.
fn two_locks(sim: &Sim, orders: [&'static str; 2]) {
    let locks = Arc::new([Mutex::new("a", ()), Mutex::new("b", ())]);
    for order in orders {
        let locks = Arc::clone(&locks);
        sim.spawn(order, move || {
            let _apart = apart();
            let mut order = order
                .bytes()
                .map(|name| locks[usize::from(name - b'a')].lock());
            let _first = order.next();
            let _second = order.next();
        });
    }
    sim.join_all();
}

/// A waiter and a notifier. The flag is to be set under the lock; without it, the notification
/// can come after the waiter looked and before it sleeps.
fn wake_up(sim: &Sim, set_under_lock: bool) {
    let shared = Arc::new((
        Mutex::new("mutex", ()),
        Condvar::new("condvar"),
        AtomicBool::new(false),
    ));
    let waiter = Arc::clone(&shared);
    sim.spawn("waiter", move || {
        let (mutex, condvar, flag) = &*waiter;
        let mut guard = mutex.lock();
        while !flag.load(Relaxed) {
            lockdep::scheduler::scheduler_point("between look and sleep", 0);
            guard = condvar.wait(guard);
        }
    });
    let (mutex, condvar, flag) = &*shared;
    let guard = set_under_lock.then(|| mutex.lock());
    flag.store(true, Relaxed);
    condvar.notify_all();
    drop(guard);
    sim.join_all();
}

/// G15: a seed decides a run.
#[test]
fn a_seed_replays() {
    let run = |seed| Sim::run_with(Options::new(seed).with_timeline(), adders);
    let mut digests = Vec::new();
    for seed in 0..50 {
        let first = run(seed);
        first.expect_pass();
        assert_eq!(first, run(seed));
        assert!(!first.timeline().is_empty());
        digests.push(first.digest);
    }
    digests.sort_unstable();
    digests.dedup();
    assert!(
        digests.len() > 30,
        "50 seeds gave only {} schedules",
        digests.len()
    );
}

#[test]
fn a_schedule_replays_without_its_seed() {
    let first = Sim::run(7, |sim| wake_up(sim, true));
    first.expect_pass();
    let again = Sim::replay(1234, &first.schedule, |sim| wake_up(sim, true));
    assert_eq!(
        (again.digest, &again.schedule),
        (first.digest, &first.schedule)
    );
    let other = Sim::replay(7, &[60_000; 10], adders);
    assert_eq!(other.end, End::Diverged { choice: 0 });
}

/// Canary, G14's counterpart: two orders of two locks.
#[test]
fn a_lock_order_deadlock_is_found_and_told() {
    let body = |sim: &Sim| two_locks(sim, ["ab", "ba"]);
    let run = Sim::find(0..NR_SEEDS, body).expect("two orders of two locks deadlock");
    assert!(matches!(run.end, End::Deadlock { .. }), "{run}");
    let report = run.to_string();
    for line in [
        "deadlock:",
        "  main waits at wait `the other tasks`",
        "  ab waits at lock `b` #0, holds `a` #0",
        "  ba waits at lock `a` #0, holds `b` #0",
        "strategy drawn: deadlock",
        "; shown with 3",
        "to see it again: PINLESS_SIM='at=",
    ] {
        assert!(report.contains(line), "{line:?} is not in:\n{report}");
    }
    assert_eq!(Sim::replay(0, &run.schedule, body).end, run.end);
    Sim::check(0..NR_SEEDS, |sim| two_locks(sim, ["ab", "ab"]));
}

/// Canary: a notification that comes too early.
#[test]
fn a_lost_wake_up_is_found() {
    let run = Sim::find(0..NR_SEEDS, |sim| wake_up(sim, false));
    let run = run.expect("the notification can get lost");
    let report = run.to_string();
    assert!(
        report.contains("waiter waits at wait `condvar` #0"),
        "{report}"
    );
    Sim::check(0..NR_SEEDS, |sim| wake_up(sim, true));
}

/// Canary: a sum that is read and written in two critical sections.
#[test]
fn a_lost_update_is_found() {
    let run = Sim::find(0..NR_SEEDS, |sim| {
        let total = Arc::new(Mutex::new("total", 0));
        for _ in 0..2 {
            let total = Arc::clone(&total);
            sim.spawn("adder", move || {
                let seen = *total.lock();
                *total.lock() = seen + 1;
            });
        }
        sim.join_all();
        let total = *total.lock();
        assert_eq!(total, 2, "the sum is wrong");
    });
    let run = run.expect("both can read before one writes");
    let End::Panicked { task, message } = &run.end else {
        panic!("{run}");
    };
    assert_eq!(task, "main");
    assert!(message.contains("the sum is wrong"), "{message}");
    assert!(message.contains(file!()), "{message}");
}

#[test]
fn a_task_that_never_ends_is_found() {
    let options = |seed| Options {
        steps_max: 10_000,
        ..Options::new(seed)
    };
    for seed in 0..20 {
        let spinning = Sim::run_with(options(seed), |sim| {
            sim.spawn("spinner", || lockdep::sync::spin_wait("never", 0, || false));
            sim.join_all();
        });
        assert!(matches!(spinning.end, End::Livelock { .. }), "{spinning}");
        let report = spinning.to_string();
        for line in [
            "main waits at wait `the other tasks`",
            "spinner could run from spin `never`",
        ] {
            assert!(report.contains(line), "{line:?} is not in:\n{report}");
        }
        let busy = Sim::run_with(options(seed), |_| {
            let lock = Mutex::new("lock", ());
            loop {
                drop(lock.lock());
            }
        });
        assert!(matches!(busy.end, End::StepLimit { .. }), "{busy}");
        let waiting = Sim::run_with(options(seed), |_| Completion::new("never").wait());
        assert!(matches!(waiting.end, End::Deadlock { .. }), "{waiting}");
    }
}

#[test]
fn time_passes_when_everybody_waits() {
    Sim::check(0..50, |sim| {
        let clock = sim.clock();
        let done = Arc::new(Completion::new("done"));
        let seen = Arc::clone(&done);
        sim.spawn("sleeper", move || {
            lockdep::sync::sleep("nap", Duration::from_secs(3600));
            seen.complete_all();
        });
        assert_eq!(
            done.wait_timeout(Duration::from_secs(3599)),
            Waited::TimedOut
        );
        let early_ns = clock.now_ns();
        assert!(
            (3_599_000_000_000..3_599_000_100_000).contains(&early_ns),
            "{early_ns}"
        );
        assert_eq!(done.wait_timeout(Duration::from_secs(60)), Waited::Done);
        let late_ns = clock.now_ns();
        assert!(
            (3_600_000_000_000..3_600_000_100_000).contains(&late_ns),
            "{late_ns}"
        );
        // The deadline of a wait that has ended is no reason for time to pass.
        lockdep::sync::sleep("nap", Duration::from_nanos(100));
        assert!(clock.now_ns() < 3_600_000_200_000);
    });
}

#[test]
fn every_kind_of_wait_ends() {
    Sim::check(0..NR_SEEDS, |sim| {
        let table = Arc::new(RwLock::new("table", 0));
        let count = Arc::new(ShortLock::new("count", 0));
        let parker = Arc::new(Parker::new("parker"));
        let ready = Arc::new(AtomicBool::new(false));
        for name in ["r0", "r1", "w0", "w1"] {
            let (table, count) = (Arc::clone(&table), Arc::clone(&count));
            let (parker, ready) = (Arc::clone(&parker), Arc::clone(&ready));
            sim.spawn(name, move || {
                if name.starts_with('w') {
                    *table.write() += 1;
                } else {
                    let seen = *table.read();
                    assert!(seen <= 2);
                }
                *count.lock() += 1;
                if name == "w1" {
                    ready.store(true, Relaxed);
                    parker.unpark();
                }
            });
        }
        parker.park();
        lockdep::sync::spin_wait("ready", 0, || ready.load(Relaxed));
        sim.join_all();
        assert_eq!((*table.read(), *count.lock()), (2, 4));
    });
}

#[test]
fn tasks_spawn_tasks_and_daemons_are_left_behind() {
    static NR_UNWOUND: AtomicU32 = AtomicU32::new(0);
    struct OnUnwind(Arc<Mutex<u32>>);
    impl Drop for OnUnwind {
        fn drop(&mut self) {
            // A destructor that takes a lock goes through the scheduler while it unwinds.
            *self.0.lock() += 1;
            NR_UNWOUND.fetch_add(1, Relaxed);
        }
    }
    let run = Sim::run(3, |sim| {
        let count = Arc::new(Mutex::new("count", 0));
        for _ in 0..3 {
            let on_unwind = OnUnwind(Arc::clone(&count));
            sim.spawn_daemon("daemon", move || {
                let _guard = on_unwind;
                Completion::new("stop").wait();
            });
        }
        let inner = sim.clone();
        let outer_count = Arc::clone(&count);
        sim.spawn("outer", move || {
            let inner_count = Arc::clone(&outer_count);
            inner.spawn("inner", move || *inner_count.lock() += 10);
            *outer_count.lock() += 10;
        });
        sim.join_all();
        assert_eq!(*count.lock(), 20);
    });
    run.expect_pass();
    assert_eq!(NR_UNWOUND.load(Relaxed), 3);
}

/// A task dies while others are in its way: the report names its panic, not what came of it.
#[test]
fn a_panic_is_told_although_its_destructors_wait() {
    struct LockOnDrop(Arc<Mutex<u32>>);
    impl Drop for LockOnDrop {
        fn drop(&mut self) {
            *self.0.lock() += 1;
        }
    }
    let body = |seed, waits_for_ever: bool| {
        Sim::run(seed, move |sim| {
            let _apart = apart();
            let lock = Arc::new(Mutex::new("lock", 0));
            for name in ["a", "b"] {
                let on_drop = LockOnDrop(Arc::clone(&lock));
                sim.spawn(name, move || {
                    let _guard = on_drop.0.lock();
                });
            }
            let _on_drop = LockOnDrop(Arc::clone(&lock));
            let guard = waits_for_ever.then(|| lock.lock());
            std::mem::forget(guard);
            panic!("main is broken");
        })
    };
    for seed in 0..20 {
        for waits_for_ever in [false, true] {
            let run = body(seed, waits_for_ever);
            let End::Panicked { task, message } = &run.end else {
                panic!("{run}");
            };
            assert_eq!(task, "main");
            assert!(message.starts_with("main is broken, at "), "{message}");
        }
    }
}

/// Two tasks wait for ever, one of them in the middle of its panic: that is told, not a panic that
/// the other has long contained.
#[test]
fn a_panic_that_waits_is_told_of_no_other_task() {
    struct WaitOnDrop(Arc<Completion>);
    impl Drop for WaitOnDrop {
        fn drop(&mut self) {
            self.0.wait();
        }
    }
    let contain = |body: &dyn Fn()| {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        assert!(result.is_err());
    };
    for seed in 0..50 {
        let run = Sim::run(seed, move |sim| {
            let never = Arc::new(Completion::new("never"));
            let waits = Arc::clone(&never);
            sim.spawn("careful", move || {
                contain(&|| panic!("contained"));
                waits.wait();
            });
            sim.spawn("broken", move || {
                let _wait = WaitOnDrop(Arc::clone(&never));
                panic!("broken");
            });
        });
        let End::Panicked { task, .. } = &run.end else {
            panic!("{run}");
        };
        assert_eq!(task, "broken");
    }
}

/// A panic that is contained is no failure.
#[test]
fn a_task_may_contain_its_panic() {
    Sim::check(0..20, |sim| {
        let lock = Arc::new(Mutex::new("lock", 0));
        let inner = Arc::clone(&lock);
        sim.spawn("careful", move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _guard = inner.lock();
                panic!("contained");
            }));
            assert!(result.is_err());
            *inner.lock() += 1;
        });
        sim.join_all();
        assert_eq!(*lock.lock(), 1);
    });
}

/// A destructor that waits for what never comes must not hang the test.
#[test]
fn daemons_that_cannot_be_unwound_are_abandoned() {
    struct WaitOnDrop;
    impl Drop for WaitOnDrop {
        fn drop(&mut self) {
            Completion::new("never").wait();
        }
    }
    let run = Sim::run(1, |sim| {
        for _ in 0..2 {
            sim.spawn_daemon("stuck", || {
                let _guard = WaitOnDrop;
                Completion::new("stop").wait();
            });
        }
    });
    run.expect_pass();
    // The next run has threads of its own.
    Sim::check(0..10, adders);
}

#[test]
fn a_timeline_has_a_column_for_each_task() {
    let options = Options {
        strategy: Strategy::SwitchOneIn(u32::MAX),
        ..Options::new(1).with_timeline()
    };
    let run: Run = Sim::run_with(options, |sim| {
        let lock = Arc::new(Mutex::new("lock", ()));
        let other = Arc::clone(&lock);
        sim.spawn("other", move || drop(other.lock()));
        sim.join_all();
        drop(lock.lock());
    });
    let expected = "          ns  main                       other
          20  at spawn#0
          40  ... wait the other tasks#0
          60                             lock lock#0
          80                             unlock lock#0
         100                             ends
         120  lock lock#0
         140  unlock lock#0
         160  ends
";
    assert_eq!(run.timeline(), expected);
    assert_eq!((run.nr_steps, run.now_ns), (8, 160));
}

/// However many tasks there are, a line fits a terminal, and each task has its place in it.
#[test]
fn a_timeline_of_many_tasks_fits_a_terminal() {
    let options = Options::new(1).with_timeline();
    let run: Run = Sim::run_with(options, |sim| {
        for _ in 0..12 {
            let lock = Arc::new(Mutex::new("a lock with a long name", ()));
            sim.spawn("a task with a name", move || drop(lock.lock()));
        }
        sim.join_all();
    });
    let text = run.timeline();
    let widest = text.lines().map(str::len).max();
    assert!(widest <= Some(100), "{text}");
    let ends = text.lines().filter_map(|line| line.find("ends"));
    let mut ends: Vec<_> = ends.collect();
    ends.sort_unstable();
    ends.dedup();
    assert_eq!(ends.len(), 13, "{text}");
}

/// Tasks take turns on one thread, and hold what is theirs and nothing else.
#[test]
fn tasks_on_one_thread_are_told_apart_by_the_validator() {
    #[track_caller]
    fn check(is_nested_call: bool, expected: &[&str]) {
        let validator = lockdep::Validator::new();
        let watched = validator.clone();
        let run = Sim::run(1, move |sim| {
            let _entered = watched.enter();
            let locks = Arc::new([Mutex::new("outer", ()), Mutex::new("inner", ())]);
            let (of_task, of_thread) = (Arc::clone(&locks), watched.clone());
            let task = move || {
                let _entered = of_thread.enter();
                drop(of_task[1].lock());
            };
            let held = locks[0].lock();
            if is_nested_call {
                drop(locks[1].lock());
            }
            let section = lockdep::context::non_block();
            sim.spawn("inner", task);
            drop(section);
            sim.join_all();
            assert_eq!(lockdep::event::nr_held(), 1);
            drop(held);
        });
        run.expect_pass();
        let orders = validator.orders();
        let orders: Vec<String> = orders
            .iter()
            .map(|order| format!("{} {}", order.held, order.taken))
            .collect();
        assert_eq!(orders, expected);
        assert_eq!(validator.reports().len(), 0);
    }
    check(false, &[]);
    // The same on the task's own stack is seen.
    check(true, &["outer inner"]);
}
