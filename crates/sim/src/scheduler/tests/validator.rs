//! The lock validator itself under schedules. More of it is in a process of its own: see
//! `tests/validator.rs`.

use super::super::{Explore, Sim};
use core::time::Duration;
use lockdep::Validator;
use lockdep::sync::{Condvar, Mutex};
use std::sync::Arc;

/// Two notify for the first time at once, each under a lock of its own: so neither lock is needed
/// to notify, and who waits with one of them waits for nobody who cannot come.
fn notify_at_once(sim: &Sim) {
    let validator = Validator::tight();
    let locks = Arc::new(["first", "second"].map(|class| Mutex::new(class, ())));
    let (door, opens) = (Mutex::new("door", ()), Condvar::new("opens"));
    let wait = Arc::new((door, opens));
    for nth in 0..2 {
        let (validator, locks, wait) = (validator.clone(), Arc::clone(&locks), Arc::clone(&wait));
        sim.spawn("notifies", move || {
            let _entered = validator.enter();
            let _held = locks[nth].lock();
            wait.1.notify_all();
        });
    }
    sim.join_all();
    let _entered = validator.enter();
    for lock in &*locks {
        let _held = lock.lock();
        let _ = wait.1.wait_timeout(wait.0.lock(), Duration::from_millis(1));
    }
    let reports = validator.reports();
    assert!(reports.is_empty(), "{reports:?}");
}

#[test]
fn two_first_notifiers_at_once_need_no_lock() {
    let explored = Explore::new(0..200).check(notify_at_once);
    println!("{} runs", explored.nr_runs);
}
