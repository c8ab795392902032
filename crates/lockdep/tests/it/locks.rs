//! Mutual exclusion, trying, and holders that panic.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};

use lockdep::event::{self, HeldAs};
use lockdep::scheduler::scheduler_point;
use lockdep::sync::{Completion, Mutex, RwLock, ShortLock};
use lockdep::{Kind, Severity, Validator};

use crate::world::{self, Task, World};

/// A counter that several tasks raise: how to raise it, and how to read it at the end.
trait Counter: Sync {
    fn raise(&self);
    fn total(&mut self) -> u64;
}

/// Raises a number in two halves, between which others may run.
fn raise_in_halves(value: &mut u64) {
    let before = *value;
    scheduler_point("between the halves", 0);
    *value = before + 1;
}

impl Counter for Mutex<u64> {
    fn raise(&self) {
        raise_in_halves(&mut self.lock());
    }
    fn total(&mut self) -> u64 {
        *self.get_mut()
    }
}

/// Raises by trying until it works.
struct Tried(Mutex<u64>);

impl Counter for Tried {
    fn raise(&self) {
        lockdep::sync::spin_wait("trying", 0, || match self.0.try_lock() {
            Some(mut value) => {
                raise_in_halves(&mut value);
                true
            }
            None => false,
        });
    }
    fn total(&mut self) -> u64 {
        *self.0.get_mut()
    }
}

impl Counter for RwLock<u64> {
    fn raise(&self) {
        let before = *self.read();
        raise_in_halves(&mut self.write());
        assert!(*self.read() > before, "a raise got lost");
    }
    fn total(&mut self) -> u64 {
        *self.get_mut()
    }
}

impl Counter for ShortLock<u64> {
    fn raise(&self) {
        raise_in_halves(&mut self.lock());
    }
    fn total(&mut self) -> u64 {
        *self.get_mut()
    }
}

/// Nothing keeps the halves together.
impl Counter for AtomicU64 {
    fn raise(&self) {
        let before = self.load(Ordering::Relaxed);
        scheduler_point("between the halves", 0);
        self.store(before + 1, Ordering::Relaxed);
    }
    fn total(&mut self) -> u64 {
        *self.get_mut()
    }
}

/// Lets four tasks raise the counter ten times each, and says where it ended.
fn raise_by_four(world: World, mut counter: impl Counter) -> u64 {
    let shared = &counter;
    let task = |_| Box::new(move || (0..10).for_each(|_| shared.raise())) as Task<'_>;
    world.run((0..4).map(task).collect());
    counter.total()
}

#[test]
fn every_lock_excludes() {
    #[track_caller]
    fn check(world: World, counter: impl Counter) {
        assert_eq!(raise_by_four(world, counter), 40, "in {world:?}");
    }
    world::everywhere(|world| {
        check(world, Mutex::new("counter", 0));
        check(world, Tried(Mutex::new("counter", 0)));
        check(world, RwLock::new("counter", 0));
        check(world, ShortLock::new("counter", 0));
    });
}

/// Canary: the battery must notice a counter without a lock.
#[test]
fn no_lock_does_not_exclude() {
    assert!(world::some_seed(|seed| {
        raise_by_four(World::Scheduled { seed }, AtomicU64::new(0)) < 40
    }));
}

#[test]
fn trying_fails_while_the_lock_is_held() {
    /// Which tries succeed while `guard` lives: mutex, short lock, read, write.
    #[track_caller]
    fn check<G>(guard: G, expected: [bool; 4]) {
        assert_eq!(tries(), expected);
        drop(guard);
        assert_eq!(tries(), [true; 4]);
    }
    static MUTEX: Mutex<()> = Mutex::new("mutex", ());
    static SHORT: ShortLock<()> = ShortLock::new("short", ());
    static RW: RwLock<()> = RwLock::new("rw", ());
    fn tries() -> [bool; 4] {
        [
            MUTEX.try_lock().map(drop).is_some(),
            SHORT.try_lock().map(drop).is_some(),
            RW.try_read().map(drop).is_some(),
            RW.try_write().map(drop).is_some(),
        ]
    }
    for world in [World::Threads, World::Scheduled { seed: 0 }] {
        world.run(vec![Box::new(|| {
            check(MUTEX.lock(), [false, true, true, true]);
            check(MUTEX.try_lock(), [false, true, true, true]);
            check(SHORT.lock(), [true, false, true, true]);
            check(SHORT.try_lock(), [true, false, true, true]);
            check(RW.read(), [true, true, true, false]);
            check(RW.try_read(), [true, true, true, false]);
            check(RW.write(), [true, true, false, false]);
            check(RW.try_write(), [true, true, false, false]);
        })]);
    }
}

#[test]
fn readers_share() {
    world::everywhere(|world| {
        let lock = RwLock::new("lock", ());
        let inside = [Completion::new("inside"), Completion::new("inside")];
        let reader = |me: usize| {
            let (lock, inside) = (&lock, &inside);
            Box::new(move || {
                let guard = lock.read();
                inside[me].complete_all();
                inside[1 - me].wait();
                drop(guard);
            }) as Task<'_>
        };
        world.run(vec![reader(0), reader(1)]);
    });
}

#[test]
fn a_panicking_holder_leaves_the_lock_usable() {
    fn unwind_holding<G>(guard: G) {
        let result = panic::catch_unwind(AssertUnwindSafe(|| {
            let _guard = guard;
            panic::resume_unwind(Box::new("on purpose"));
        }));
        assert!(result.is_err());
    }
    world::everywhere(|world| {
        let mutex = Mutex::new("mutex", 1);
        let rw = RwLock::new("rw", 2);
        let short = ShortLock::new("short", 3);
        let task = || {
            Box::new(|| {
                unwind_holding(mutex.lock());
                unwind_holding(rw.write());
                unwind_holding(rw.read());
                unwind_holding(short.lock());
                assert_eq!((*mutex.lock(), *rw.read(), *short.lock()), (1, 2, 3));
                assert_eq!((*rw.write(), mutex.try_lock().is_some()), (2, true));
            }) as Task<'_>
        };
        // One after the other for the try at the end, which another holder would fail.
        world.run(vec![task()]);
        world.run(vec![task()]);
        assert_eq!(
            (mutex.into_inner(), rw.into_inner(), short.into_inner()),
            (1, 2, 3)
        );
    });
}

#[test]
fn locks_taken_in_two_orders_get_stuck_under_some_seed() {
    #[track_caller]
    fn check(orders: [[usize; 2]; 2], can_stick: bool) {
        // What is wrong on purpose is no report of the process.
        let validator = Validator::new();
        let gets_stuck = |seed: u64| {
            let locks = [Mutex::new("a", ()), Mutex::new("b", ())];
            let task = |order: [usize; 2]| {
                let (locks, validator) = (&locks, &validator);
                Box::new(move || {
                    let _entered = validator.enter();
                    let _outer = locks[order[0]].lock();
                    let _inner = locks[order[1]].lock();
                }) as Task<'_>
            };
            world::run_scheduled(seed, orders.map(task).into()).is_stuck
        };
        let sticks = if can_stick {
            world::some_seed(gets_stuck)
        } else {
            world::seeds().any(gets_stuck)
        };
        assert_eq!(sticks, can_stick, "{orders:?}");
        assert_eq!(!validator.reports().is_empty(), can_stick, "{orders:?}");
    }
    check([[0, 1], [0, 1]], false);
    check([[0, 1], [1, 0]], true);
    // One task taking a lock twice.
    check([[0, 1], [1, 1]], true);
}

/// A table is taken under a mutex in some way, and the mutex might be by a reader of the table.
#[test]
fn what_might_be_taken_is_judged_as_if_it_were() {
    type Act = fn(&RwLock<()>);
    let rows: [(Act, &[Kind]); 5] = [
        (|table| drop(table.write()), &[Kind::Circular]),
        (RwLock::might_write, &[Kind::Circular]),
        (|table| drop(table.read()), &[]),
        (RwLock::might_read, &[]),
        (|table| drop(table.try_write()), &[]),
    ];
    for (nth, (under, expected)) in rows.into_iter().enumerate() {
        let validator = Validator::new();
        let entered = validator.enter();
        let (mutex, table) = (
            Mutex::new("might.mutex", ()),
            RwLock::new("might.table", ()),
        );
        let held = mutex.lock();
        under(&table);
        drop(held);
        let reader = table.read();
        mutex.might_lock();
        drop(reader);
        assert_eq!(event::nr_held(), 0);
        drop(entered);
        let reports = validator.reports();
        let bad = reports.iter().filter(|r| r.severity > Severity::Unlikely);
        let found: Vec<Kind> = bad.map(|report| report.kind).collect();
        assert_eq!(found, expected, "row {nth}: {reports:?}");
    }
}

#[test]
fn a_lock_knows_whether_this_thread_holds_it() {
    let (mutex, table) = (Mutex::new("held.mutex", ()), RwLock::new("held.table", ()));
    let how = || {
        let ways = [HeldAs::Any, HeldAs::Exclusive, HeldAs::Reader];
        (
            mutex.is_held(),
            ways.map(|how| table.is_held(how) == Some(true)),
        )
    };
    assert_eq!(how(), (Some(false), [false; 3]));
    let guards = (mutex.lock(), table.read());
    assert_eq!(how(), (Some(true), [true, false, true]));
    // Somebody else does not.
    let elsewhere = std::thread::scope(|scope| scope.spawn(how).join());
    assert_eq!(elsewhere.expect("no panic"), (Some(false), [false; 3]));
    drop(guards);
    let guard = table.write();
    assert_eq!(how(), (Some(false), [true, true, false]));
    drop(guard);
}
