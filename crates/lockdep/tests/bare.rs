//! Without the feature `validate`, locks are as large as those of the standard library, though not
//! all are made of them; with it, a class is added.

use lockdep::Class;
use lockdep::sync;
use std::cell::Cell;
use std::panic::{RefUnwindSafe, UnwindSafe};

#[test]
fn a_lock_is_as_large_as_the_lock_inside() {
    let class = if cfg!(feature = "validate") {
        size_of::<Class>()
    } else {
        0
    };
    let of = size_of::<usize>();
    for (name, ours, std) in [
        ("class", size_of::<Class>(), 0),
        (
            "mutex",
            size_of::<sync::Mutex<usize>>(),
            size_of::<std::sync::Mutex<usize>>(),
        ),
        (
            "rwlock",
            size_of::<sync::RwLock<usize>>(),
            size_of::<std::sync::RwLock<usize>>(),
        ),
        (
            "short",
            size_of::<sync::ShortLock<usize>>(),
            size_of::<std::sync::Mutex<usize>>(),
        ),
    ] {
        assert_eq!(ours, std + class, "{name}");
        assert!(class <= 4 * of, "{class} bytes");
    }
}

#[test]
fn locks_and_guards_may_cross_a_catch_of_a_panic() {
    fn check<T: UnwindSafe + RefUnwindSafe>() {}
    check::<sync::Mutex<Cell<u8>>>();
    check::<sync::MutexGuard<'_, Cell<u8>>>();
    check::<sync::ShortLock<Cell<u8>>>();
    check::<sync::ShortGuard<'_, Cell<u8>>>();
}

#[test]
#[cfg(not(feature = "validate"))]
fn whatever_is_wrapped_stays_as_large() {
    fn check<A, B>() {
        let name = std::any::type_name::<A>();
        assert_eq!(size_of::<A>(), size_of::<B>(), "{name}");
        assert_eq!(align_of::<A>(), align_of::<B>(), "{name}");
    }
    check::<sync::MutexGuard<'_, u8>, std::sync::MutexGuard<'_, u8>>();
    check::<sync::ShortGuard<'_, u8>, std::sync::MutexGuard<'_, u8>>();
    check::<sync::RwLockReadGuard<'_, u8>, std::sync::RwLockReadGuard<'_, u8>>();
    check::<sync::RwLockWriteGuard<'_, u8>, std::sync::RwLockWriteGuard<'_, u8>>();
    check::<sync::Mutex<[u64; 3]>, std::sync::Mutex<[u64; 3]>>();
    use lockdep::lock_api;
    use parking_lot::{RawMutex, RawRwLock};
    check::<lock_api::Mutex<RawMutex, u8>, parking_lot::Mutex<u8>>();
    check::<lock_api::RwLock<RawRwLock, u8>, parking_lot::RwLock<u8>>();
    check::<lock_api::MutexGuard<'_, RawMutex, u8>, parking_lot::MutexGuard<'_, u8>>();
}

#[test]
#[cfg(not(feature = "validate"))]
fn nothing_is_reported_and_waits_work() {
    use lockdep::sync::{Condvar, Mutex};
    let (a, b) = (Mutex::new("a", false), Mutex::new("b", ()));
    drop((a.lock(), b.lock()));
    drop((b.lock(), a.lock()));
    let foreign = lockdep::lock_api::mutex::<parking_lot::RawMutex, _>("foreign", ());
    let guard = foreign.lock();
    std::thread::scope(|scope| drop(scope.spawn(move || drop(guard))));
    assert!(foreign.try_lock().is_some());
    lockdep::assert_no_reports();
    let changed = Condvar::new("changed");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            *a.lock() = true;
            changed.notify_one();
        });
        assert!(*changed.wait_while(a.lock(), |is_done| !*is_done));
    });
    assert_eq!(lockdep::event::nr_held(), 0);
}
