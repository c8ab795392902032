//! Completions, fences, parkers and spinning: events that are waited for.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use lockdep::scheduler;
use lockdep::sync::park::Parker;
use lockdep::sync::{Completion, Fence, Waited, spin_wait};

use crate::world::{self, Task, World};

const LONG: Duration = Duration::from_secs(100_000);

#[test]
fn one_signal_of_a_fence_wins_and_every_waiter_goes_on() {
    world::everywhere(|world| {
        let fence = Fence::new("fence");
        let data: [AtomicU64; 2] = Default::default();
        let nr_won = AtomicUsize::new(0);
        let (data, nr_won) = (&data, &nr_won);
        let signaller = |me: usize| {
            let fence = fence.clone();
            Box::new(move || {
                data[me].store(7, Ordering::Relaxed);
                nr_won.fetch_add(usize::from(fence.signal()), Ordering::Relaxed);
                assert!(fence.is_signalled() && !fence.signal());
            }) as Task<'_>
        };
        let waiter = |timeout: Option<Duration>| {
            let fence = fence.clone();
            Box::new(move || {
                match timeout {
                    Some(timeout) => assert_eq!(fence.wait_timeout(timeout), Waited::Done),
                    None => fence.wait(),
                }
                assert!(fence.is_signalled());
                // Whoever won wrote before it signalled.
                assert!(data.iter().any(|data| data.load(Ordering::Relaxed) == 7));
            }) as Task<'_>
        };
        world.run(vec![
            waiter(None),
            signaller(0),
            waiter(Some(LONG)),
            signaller(1),
            waiter(Some(Duration::MAX)),
        ]);
        assert_eq!(nr_won.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn fences_are_equal_by_identity() {
    let make = || Fence::new("fence");
    let (fence, other) = (make(), make());
    let clone = fence.clone();
    assert_eq!(fence, clone);
    assert_ne!(fence, other);
    assert_eq!(fence.class(), other.class(), "one place, one class");
    assert!(clone.signal());
    assert!(fence.is_signalled() && !other.is_signalled());
}

#[test]
fn a_wait_for_nothing_times_out() {
    #[track_caller]
    fn check(wait: impl Fn(Duration) -> Waited + Sync) {
        for timeout in [
            Duration::ZERO,
            Duration::from_micros(1),
            Duration::from_millis(2),
        ] {
            let task = || assert_eq!(wait(timeout), Waited::TimedOut);
            World::Threads.run(vec![Box::new(task)]);
            let run = world::run_scheduled(0, vec![Box::new(task)]);
            assert_eq!((run.is_stuck, run.now), (false, timeout));
        }
    }
    check(|timeout| Completion::new("completion").wait_timeout(timeout));
    check(|timeout| Fence::new("fence").wait_timeout(timeout));
    check(|timeout| Parker::new("parker").park_timeout(timeout));
}

#[test]
fn what_has_happened_is_not_waited_for() {
    let run = || {
        let completion = Completion::new("completion");
        completion.complete_all();
        completion.complete_all();
        completion.wait();
        assert_eq!(completion.wait_timeout(Duration::ZERO), Waited::Done);
        assert!(completion.is_done());
        completion.reset();
        completion.reset();
        assert!(!completion.is_done());
        assert_eq!(completion.wait_timeout(Duration::ZERO), Waited::TimedOut);
        completion.complete_all();
        assert_eq!(completion.wait_timeout(LONG), Waited::Done);
    };
    for world in [World::Threads, World::Scheduled { seed: 0 }] {
        world.run(vec![Box::new(run)]);
    }
}

#[test]
fn completing_and_resetting_at_once_frees_the_waiters() {
    world::everywhere(|world| {
        let completion = Completion::new("completion");
        let nr_freed = AtomicUsize::new(0);
        let (completion, nr_freed) = (&completion, &nr_freed);
        let waiter = |_| {
            Box::new(move || {
                completion.wait();
                nr_freed.fetch_add(1, Ordering::Relaxed);
            }) as Task<'_>
        };
        let mut tasks: Vec<_> = (0..3).map(waiter).collect();
        tasks.push(Box::new(|| {
            spin_wait("all freed", 0, || {
                completion.complete_all();
                completion.reset();
                nr_freed.load(Ordering::Relaxed) == 3
            });
        }));
        world.run(tasks);
    });
}

/// A waiter that is blocked when the completion is done and reset goes on, though it never sees the
/// completion done: whatever the seed, one round of the two is enough.
#[test]
fn one_completion_frees_a_sleeper_whatever_follows() {
    for seed in world::seeds() {
        let completion = Completion::new("completion");
        let waiter = || completion.wait();
        let completer = || {
            // Virtual time passes only when the waiter cannot go on.
            lockdep::sync::sleep("until the waiter sleeps", Duration::from_secs(1));
            completion.complete_all();
            completion.reset();
        };
        let run = world::run_scheduled(seed, vec![Box::new(waiter), Box::new(completer)]);
        assert!(!run.is_stuck, "seed {seed}");
    }
}

#[test]
fn resetting_what_is_not_done_frees_nobody() {
    for seed in world::seeds() {
        let completion = Completion::new("completion");
        let waiter = || {
            assert_eq!(
                completion.wait_timeout(Duration::from_secs(2)),
                Waited::TimedOut
            );
        };
        let resetter = || {
            lockdep::sync::sleep("until the waiter sleeps", Duration::from_secs(1));
            completion.reset();
        };
        World::Scheduled { seed }.run(vec![Box::new(waiter), Box::new(resetter)]);
    }
}

/// The window in which a wake-up could get lost is a few instructions wide, so the two meet often,
/// each time a little earlier or later.
#[test]
fn a_signal_meets_a_wait_at_any_moment() {
    const NR_ROUNDS: usize = if cfg!(miri) { 20 } else { 20_000 };
    let fences: Vec<Fence> = (0..NR_ROUNDS).map(|_| Fence::new("fence")).collect();
    let nr_met = AtomicUsize::new(0);
    let meet = |round: usize| {
        nr_met.fetch_add(1, Ordering::Relaxed);
        spin_wait("both met", 0, || {
            nr_met.load(Ordering::Relaxed) >= 2 * round + 2
        });
    };
    let signaller = || {
        for (round, fence) in fences.iter().enumerate() {
            meet(round);
            (0..round % 512).for_each(|step| _ = std::hint::black_box(step));
            fence.signal();
        }
    };
    let waiter = || {
        for (round, fence) in fences.iter().enumerate() {
            meet(round);
            fence.wait();
        }
    };
    World::Threads.run(vec![Box::new(signaller), Box::new(waiter)]);
}

#[test]
fn a_token_ends_one_park() {
    let run = || {
        let parker = Parker::new("parker");
        parker.unpark();
        parker.unpark();
        parker.park();
        assert_eq!(parker.park_timeout(Duration::ZERO), Waited::TimedOut);
        parker.unpark();
        assert_eq!(parker.park_timeout(LONG), Waited::Done);
    };
    for world in [World::Threads, World::Scheduled { seed: 0 }] {
        world.run(vec![Box::new(run)]);
    }
}

#[test]
fn two_parkers_hand_a_turn_to_and_fro() {
    const NR_ROUNDS: usize = if cfg!(miri) { 3 } else { 20 };
    world::everywhere(|world| {
        let parkers = [Parker::new("ping"), Parker::new("pong")];
        let turn = AtomicUsize::new(0);
        let player = |me: usize| {
            let (parkers, turn) = (&parkers, &turn);
            Box::new(move || {
                for round in 0..NR_ROUNDS {
                    parkers[me].park();
                    assert_eq!(turn.load(Ordering::Relaxed), 2 * round + me);
                    turn.fetch_add(1, Ordering::Relaxed);
                    parkers[1 - me].unpark();
                }
            }) as Task<'_>
        };
        parkers[0].unpark();
        world.run(vec![player(0), player(1)]);
        assert_eq!(turn.load(Ordering::Relaxed), 2 * NR_ROUNDS);
    });
}

#[test]
fn several_may_park_at_one_parker() {
    world::everywhere(|world| {
        let parker = Parker::new("parker");
        let nr_ended = AtomicUsize::new(0);
        let (parker, nr_ended) = (&parker, &nr_ended);
        let parked = |_| {
            Box::new(move || {
                assert_eq!(parker.park_timeout(LONG), Waited::Done);
                nr_ended.fetch_add(1, Ordering::Relaxed);
            }) as Task<'_>
        };
        let mut tasks: Vec<_> = (0..3).map(parked).collect();
        tasks.push(Box::new(|| {
            for nr_expected in 1..=3 {
                parker.unpark();
                spin_wait("one ended", 0, || {
                    nr_ended.load(Ordering::Relaxed) >= nr_expected
                });
            }
        }));
        world.run(tasks);
    });
}

#[test]
fn spinning_sees_what_others_set() {
    world::everywhere(|world| {
        let flags: [AtomicBool; 2] = Default::default();
        let data: [AtomicU64; 2] = Default::default();
        let task = |me: usize| {
            let (flags, data) = (&flags, &data);
            Box::new(move || {
                data[me].store(9, Ordering::Relaxed);
                // Release pairs with the Acquire of the other task's spin.
                flags[me].store(true, Ordering::Release);
                let other = &flags[1 - me];
                spin_wait("flag", other.as_ptr().addr(), || {
                    other.load(Ordering::Acquire)
                });
                assert_eq!(data[1 - me].load(Ordering::Relaxed), 9);
            }) as Task<'_>
        };
        world.run(vec![task(0), task(1)]);
    });
}

#[test]
fn spinning_for_what_never_comes_is_stuck() {
    let run = world::run_scheduled(0, vec![Box::new(|| spin_wait("never", 0, || false))]);
    assert!(run.is_stuck);
}

/// A scheduled task may signal to a thread that knows no scheduler.
#[test]
fn scheduled_tasks_wake_unscheduled_threads() {
    for seed in world::seeds() {
        let (completion, parker) = (Completion::new("completion"), Parker::new("parker"));
        let fence = Fence::new("fence");
        let queue = (
            lockdep::sync::Mutex::new("queue", 0),
            lockdep::sync::Condvar::new("pushed"),
        );
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(!scheduler::is_scheduled());
                completion.wait();
                parker.park();
                fence.wait();
                drop(queue.1.wait_while(queue.0.lock(), |nr| *nr == 0));
            });
            let insider = || {
                assert!(scheduler::is_scheduled());
                completion.complete_all();
                parker.unpark();
                fence.signal();
                // The outsider holds the mutex for a moment, unknown to the scheduler.
                while queue.0.try_lock().map(|mut nr| *nr += 1).is_none() {
                    std::thread::yield_now();
                }
                queue.1.notify_one();
            };
            World::Scheduled { seed }.run(vec![Box::new(insider), Box::new(|| ())]);
        });
    }
}
