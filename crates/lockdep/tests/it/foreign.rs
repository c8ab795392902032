//! Locks of other crates, guards that are sent, and threads that are joined.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use lock_api::{
    MutexGuard, RawMutex, RawRwLock, RwLockReadGuard, RwLockUpgradableReadGuard, RwLockWriteGuard,
};
use lockdep::lock_api::{Mutex, RwLock, mutex, rw_lock, spin_mutex};
use lockdep::{Kind, Severity, Validator, event, sync};

/// What was reported, worse than unlikely.
fn kinds(validator: &Validator) -> Vec<Kind> {
    let reports = validator.reports();
    let bad = reports.iter().filter(|r| r.severity > Severity::Unlikely);
    bad.map(|report| report.kind).collect()
}

/// Two mutexes in two orders.
#[track_caller]
fn check_mutexes<R: RawMutex>()
where
    R::GuardMarker: 'static,
{
    let validator = Validator::new();
    let entered = validator.enter();
    let locks: [Mutex<R, u32>; 2] = [mutex("foreign.a", 1), spin_mutex("foreign.b", 2)];
    let both = |one: usize, other: usize| {
        let first = locks[one].try_lock().expect("it is free");
        let second = locks[other].lock();
        assert_eq!(*first + *second, 3);
    };
    both(0, 1);
    both(0, 1);
    assert_eq!(kinds(&validator), []);
    assert_eq!(event::nr_held(), 0);
    both(1, 0);
    drop(entered);
    // The spinning one is held where the other sleeps.
    assert_eq!(kinds(&validator), [Kind::WaitContext, Kind::Circular]);
    let text = validator.reports()[1].text();
    assert!(text.contains("let second = locks[other].lock();"), "{text}");
}

/// Readers and a writer of one lock, and a mutex.
#[track_caller]
fn check_rw_locks<R: RawRwLock, M: RawMutex>()
where
    R::GuardMarker: 'static,
    M::GuardMarker: 'static,
{
    let validator = Validator::new();
    let entered = validator.enter();
    let table: RwLock<R, u32> = rw_lock("foreign.table", 0);
    let log: Mutex<M, u32> = mutex("foreign.log", 0);
    let read = table.read();
    drop(log.lock());
    drop(read);
    let held = log.lock();
    drop(table.try_read().expect("nobody writes"));
    assert_eq!(kinds(&validator), []);
    drop(table.write());
    drop(held);
    drop(entered);
    assert_eq!(kinds(&validator), [Kind::Circular]);
}

#[test]
fn locks_of_other_crates_are_watched() {
    check_mutexes::<parking_lot::RawMutex>();
    check_mutexes::<spin::Mutex<()>>();
    check_rw_locks::<parking_lot::RawRwLock, parking_lot::RawMutex>();
    check_rw_locks::<spin::RwLock<()>, spin::Mutex<()>>();
}

/// What `parking_lot` has beside the plain operations: each takes and gives back what it says.
#[test]
fn every_way_to_take_and_to_release_is_watched() {
    type Table = RwLock<parking_lot::RawRwLock, u32>;
    type Log = Mutex<parking_lot::RawMutex, u32>;
    const LONG: Duration = Duration::from_secs(100_000);
    // Takes the lock in some way, and does something under it.
    type Way = fn(&Table, &dyn Fn());
    const WAYS: [(Way, &[Kind]); 9] = [
        (|table, act| (table.read(), act()).1, &[]),
        (|table, act| (table.read_recursive(), act()).1, &[]),
        (|table, act| (table.try_read_for(LONG), act()).1, &[]),
        (
            |table, act| (table.try_write_for(LONG), act()).1,
            &[Kind::Circular],
        ),
        (
            |table, act| (table.upgradable_read(), act()).1,
            &[Kind::Circular],
        ),
        (
            |table, act| (table.try_upgradable_read(), act()).1,
            &[Kind::Circular],
        ),
        (
            |table, act| {
                let writer = RwLockUpgradableReadGuard::upgrade(table.upgradable_read());
                act();
                drop(RwLockWriteGuard::downgrade_to_upgradable(writer));
            },
            &[Kind::Circular],
        ),
        (
            |table, act| (RwLockWriteGuard::downgrade(table.write()), act()).1,
            &[],
        ),
        (
            |table, act| {
                let reader = RwLockUpgradableReadGuard::downgrade(table.upgradable_read());
                act();
                RwLockReadGuard::unlock_fair(reader);
            },
            &[],
        ),
    ];
    for (nth, (way, expected)) in WAYS.into_iter().enumerate() {
        let validator = Validator::new();
        let entered = validator.enter();
        let table: Table = rw_lock("foreign.any_table", 0);
        let log: Log = mutex("foreign.any_log", 0);
        way(&table, &|| MutexGuard::unlock_fair(log.lock()));
        assert_eq!((event::nr_held(), kinds(&validator)), (0, vec![]), "{nth}");
        // A reader that comes to it waits for a writer only.
        let held = log.try_lock_for(LONG).expect("it is free");
        drop(table.read_recursive());
        drop(held);
        assert_eq!(event::nr_held(), 0);
        drop(entered);
        assert_eq!(kinds(&validator), expected, "{nth}");
    }
}

#[test]
fn a_lock_without_a_name_is_known_by_where_it_is_taken_first() {
    let validator = Validator::new();
    let entered = validator.enter();
    let [a, b]: [Mutex<parking_lot::RawMutex, ()>; 2] = [Mutex::new(()), Mutex::new(())];
    let held = a.lock();
    drop(b.lock());
    drop(held);
    let held = b.lock();
    drop(a.lock());
    drop(held);
    drop(entered);
    assert_eq!(kinds(&validator), [Kind::Circular]);
}

/// Takes `lock` here and releases it in another thread, after `there` was done.
fn send(validator: &Validator, lock: &Mutex<parking_lot::RawMutex, ()>, there: impl Fn() + Sync) {
    thread::scope(|scope| {
        let guard = lock.lock();
        let (send, sent) = mpsc::channel();
        let there = &there;
        scope.spawn(move || {
            let _entered = validator.enter();
            let guard = sent.recv().expect("a guard is sent");
            there();
            drop(guard);
        });
        send.send(guard).expect("somebody receives it");
    });
}

#[test]
fn a_guard_that_is_sent_is_an_event() {
    let validator = Validator::new();
    let _entered = validator.enter();
    let permit = mutex("foreign.permit", ());
    let table = sync::Mutex::new("foreign.held", ());
    send(&validator, &permit, || ());
    assert_eq!(kinds(&validator), [], "no imbalance");
    // It is off the stack of the thread that took it: what comes next is not under it.
    drop(table.lock());
    assert_eq!(event::nr_held(), 0);
    assert!(
        validator
            .orders()
            .iter()
            .all(|order| order.held != "foreign.permit")
    );
    // Whoever gives it back takes the table first, which is fine while nobody waits under that.
    send(&validator, &permit, || drop(table.lock()));
    assert_eq!(kinds(&validator), []);
    let held = table.lock();
    drop(permit.lock());
    drop(held);
    assert_eq!(kinds(&validator), [Kind::Circular]);
}

#[test]
fn many_guards_that_are_sent_leave_nothing_behind() {
    let validator = Validator::new();
    let _entered = validator.enter();
    for _ in 0..if cfg!(miri) { 5 } else { 200 } {
        let permit = mutex("foreign.many", ());
        send(&validator, &permit, || ());
        drop(permit.lock());
        assert_eq!(event::nr_held(), 0);
    }
    assert_eq!(kinds(&validator), []);
}

#[test]
fn a_thread_must_not_need_what_is_held_by_who_joins_it() {
    #[track_caller]
    fn check(holds: bool, needs: bool, expected: &[Kind]) {
        static TABLE: sync::Mutex<()> = sync::Mutex::new("foreign.joined", ());
        let validator = Validator::new();
        let _entered = validator.enter();
        let worker = lockdep::thread::spawn("joined", move || {
            if needs {
                drop(TABLE.lock());
            }
        });
        while !worker.is_finished() {
            thread::yield_now();
        }
        let held = holds.then(|| TABLE.lock());
        worker.join().expect("it does not panic");
        drop(held);
        assert_eq!(kinds(&validator), expected, "{holds} {needs}");
    }
    check(true, true, &[Kind::Circular]);
    check(true, false, &[]);
    check(false, true, &[]);
}

#[test]
fn threads_share_out_work_among_their_like() {
    fn sum(from: u64, to: u64) -> u64 {
        if to - from < 2 {
            return from;
        }
        let half = u64::midpoint(from, to);
        let upper = lockdep::thread::spawn("sum", move || sum(half, to));
        sum(from, half) + upper.join().expect("it does not panic")
    }
    let validator = Validator::new();
    let _entered = validator.enter();
    assert_eq!(sum(0, 8), 28);
    assert_eq!(kinds(&validator), []);
}
