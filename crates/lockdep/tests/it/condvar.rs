//! Waiting on a condition variable: nothing is lost, and time runs out when it should.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockdep::sync::{self, Condvar, Mutex, Waited};

use crate::world::{self, Task, World};

/// A queue with room for two.
struct Queue {
    items: Mutex<VecDeque<u64>>,
    has_items: Condvar,
    has_room: Condvar,
}

const NR_ITEMS: u64 = if cfg!(miri) { 6 } else { 30 };

impl Queue {
    fn new() -> Self {
        Self {
            items: Mutex::new("items", VecDeque::new()),
            has_items: Condvar::new("has items"),
            has_room: Condvar::new("has room"),
        }
    }

    fn push(&self, item: u64) {
        let mut items = self
            .has_room
            .wait_while(self.items.lock(), |items| items.len() == 2);
        items.push_back(item);
        self.has_items.notify_one();
    }

    fn pop(&self) -> u64 {
        let mut items = self.items.lock();
        let item = loop {
            match items.pop_front() {
                Some(item) => break item,
                None => items = self.has_items.wait(items),
            }
        };
        drop(items);
        // Notifying without the mutex is as good.
        self.has_room.notify_one();
        item
    }
}

#[test]
fn a_bounded_queue_loses_no_wake_up() {
    world::everywhere(|world| {
        let queue = Queue::new();
        let popped = AtomicU64::new(0);
        let (queue, popped) = (&queue, &popped);
        let producer = |first: u64| {
            Box::new(move || {
                (first..NR_ITEMS)
                    .step_by(3)
                    .for_each(|item| queue.push(item))
            }) as Task<'_>
        };
        let consumer = || {
            Box::new(move || {
                for _ in 0..NR_ITEMS / 2 {
                    popped.fetch_add(queue.pop(), Ordering::Relaxed);
                }
            }) as Task<'_>
        };
        world.run(vec![
            producer(0),
            consumer(),
            producer(1),
            consumer(),
            producer(2),
        ]);
        assert_eq!(popped.load(Ordering::Relaxed), (0..NR_ITEMS).sum::<u64>());
    });
}

#[test]
fn notify_all_reaches_everybody() {
    world::everywhere(|world| {
        let (gate, opened) = (Mutex::new("gate", false), Condvar::new("opened"));
        let (gate, opened) = (&gate, &opened);
        let waiter = |_| {
            Box::new(move || drop(opened.wait_while(gate.lock(), |is_open| !*is_open))) as Task<'_>
        };
        let mut tasks: Vec<_> = (0..4).map(waiter).collect();
        tasks.push(Box::new(|| {
            *gate.lock() = true;
            opened.notify_all();
        }));
        world.run(tasks);
    });
}

/// Canary: a waiter that looks before it locks misses wake-ups, and the runs must show it.
#[test]
fn looking_without_the_mutex_loses_a_wake_up_under_some_seed() {
    let is_lost = world::some_seed(|seed| {
        let (gate, opened) = (Mutex::new("gate", false), Condvar::new("opened"));
        let waiter = || {
            let is_open = *gate.lock();
            if !is_open {
                drop(opened.wait(gate.lock()));
            }
        };
        let opener = || {
            *gate.lock() = true;
            opened.notify_all();
        };
        world::run_scheduled(seed, vec![Box::new(waiter), Box::new(opener)]).is_stuck
    });
    assert!(is_lost);
}

#[test]
fn a_wait_times_out_when_nobody_notifies() {
    #[track_caller]
    fn check(timeout: Duration) {
        let wait = || {
            let (mutex, condvar) = (Mutex::new("mutex", ()), Condvar::new("condvar"));
            let mut guard = mutex.lock();
            // Threads may wake early for no reason.
            loop {
                let waited;
                (guard, waited) = condvar.wait_timeout(guard, timeout);
                if waited == Waited::TimedOut {
                    break;
                }
            }
            assert!(mutex.try_lock().is_none(), "the mutex is held again");
            drop(guard);
        };
        World::Threads.run(vec![Box::new(wait)]);
        let run = world::run_scheduled(0, vec![Box::new(wait)]);
        assert_eq!((run.is_stuck, run.now), (false, timeout));
    }
    check(Duration::ZERO);
    check(Duration::from_micros(1));
    check(Duration::from_millis(2));
}

#[test]
fn a_notified_wait_does_not_time_out() {
    #[track_caller]
    fn check(world: World, timeout: Duration) {
        let (ready, changed) = (Mutex::new("ready", false), Condvar::new("changed"));
        let waiter = || {
            let mut guard = ready.lock();
            while !*guard {
                let waited;
                (guard, waited) = changed.wait_timeout(guard, timeout);
                assert_eq!(waited, Waited::Done);
            }
        };
        let notifier = || {
            *ready.lock() = true;
            changed.notify_one();
        };
        world.run(vec![Box::new(waiter), Box::new(notifier)]);
    }
    world::everywhere(|world| {
        check(world, Duration::from_secs(100_000));
        check(world, Duration::MAX);
    });
}

#[test]
fn virtual_time_passes_in_the_order_of_the_timeouts() {
    for seed in world::seeds() {
        let order = Mutex::new("order", Vec::new());
        let sleeper = |nr_secs: u64| {
            let order = &order;
            Box::new(move || {
                sync::sleep("pause", Duration::from_secs(nr_secs));
                order.lock().push(nr_secs);
            }) as Task<'_>
        };
        let run = world::run_scheduled(seed, [3, 1, 4, 2].map(sleeper).into());
        assert_eq!((run.is_stuck, run.now), (false, Duration::from_secs(4)));
        assert_eq!(order.into_inner(), [1, 2, 3, 4]);
    }
}
