//! Waits for locks are counted by class while that is switched on, and only then.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use lockdep::contention::{self, Contention};
use lockdep::lock_api;
use lockdep::sync::{Mutex, RwLock, ShortLock};

fn counted(class: &str) -> Option<Contention> {
    let waits = lockdep::snapshot().contention;
    waits.into_iter().find(|waits| waits.class == class)
}

/// One thread takes the lock while another holds it.
fn collide<G>(hold: impl FnOnce() -> G, take: impl FnOnce() + Send, until: impl Fn() -> bool) {
    let is_about_to = AtomicBool::new(false);
    thread::scope(|scope| {
        let held = hold();
        scope.spawn(|| {
            is_about_to.store(true, Ordering::Relaxed);
            take();
        });
        while !is_about_to.load(Ordering::Relaxed) || !until() {
            thread::yield_now();
        }
        drop(held);
    });
}

/// A lock of this class: in turn switched off, on without anybody in the way, and on with somebody.
#[track_caller]
fn check<G>(class: &str, hold: impl Fn() -> G, take: impl Fn() + Sync) {
    contention::set_enabled(false);
    contention::reset();
    collide(&hold, &take, || true);
    assert_eq!(counted(class), None, "off");
    contention::set_enabled(true);
    take();
    assert_eq!(counted(class), None, "nobody in the way");
    for nr in 1..=2 {
        // Whoever waits is counted before it has the lock.
        let is_waiting = || counted(class).is_some_and(|waits| waits.nr_waits == nr);
        collide(&hold, &take, is_waiting);
        let waits = counted(class).expect("it waited");
        assert_eq!(waits.nr_waits, nr);
        assert!(
            !waits.longest.is_zero() && waits.longest <= waits.total,
            "{waits:?}"
        );
        assert_eq!(waits.longest == waits.total, nr == 1, "{waits:?}");
    }
    let snapshot = lockdep::snapshot();
    let start = format!(r#"{{"class":"{class}","nr_waits":2,"longest_ns":"#);
    assert!(snapshot.json().contains(&start), "{}", snapshot.json());
    let text = snapshot.contention_text();
    let line = text.lines().find(|line| line.starts_with(class));
    assert_eq!(
        line.and_then(|line| line.split_whitespace().nth(1)),
        Some("2"),
        "{text}"
    );
    assert!(contention::set_enabled(false));
    collide(&hold, &take, || true);
    assert_eq!(
        counted(class).map(|waits| waits.nr_waits),
        Some(2),
        "off again"
    );
}

/// One test, as there is one switch.
#[test]
fn waits_are_counted_while_that_is_on() {
    let mutex = Mutex::new("contention.mutex", ());
    check("contention.mutex", || mutex.lock(), || drop(mutex.lock()));
    // Each look at the counts takes seconds there.
    if cfg!(miri) {
        return;
    }
    let short = ShortLock::new("contention.short", ());
    check("contention.short", || short.lock(), || drop(short.lock()));
    let rw = RwLock::new("contention.read", ());
    check("contention.read", || rw.write(), || drop(rw.read()));
    let rw = RwLock::new("contention.write", ());
    check("contention.write", || rw.read(), || drop(rw.write()));
    let foreign = lock_api::mutex::<parking_lot::RawMutex, ()>("contention.foreign", ());
    check(
        "contention.foreign",
        || foreign.lock(),
        || drop(foreign.lock()),
    );
}
