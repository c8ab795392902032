//! The sequence of an interval, and the sleep until it is idle, under every order that the memory
//! model allows: the production types, over loom's atomics and locks.
//!
//! The page is a relaxed atomic, so nothing but the sequence and the driver's lock orders it.

use super::super::sequence::{Ended, Look, Sequence};
use super::super::wait::Waits;
use core::time::Duration;
use loom::model::Builder;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, MutexGuard};
use loom::thread;

pub(in super::super) use lockdep::sync::Waited;

/// `lockdep::sync::Mutex`, as loom knows it.
pub(in super::super) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(in super::super) fn new(_class: &'static str, value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(in super::super) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("not poisoned")
    }

    pub(in super::super) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok()
    }
}

/// `lockdep::sync::Condvar`, as loom knows it.
pub(in super::super) struct Condvar(loom::sync::Condvar);

impl Condvar {
    pub(in super::super) fn new(_class: &'static str) -> Self {
        Self(loom::sync::Condvar::new())
    }

    pub(in super::super) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).expect("not poisoned")
    }

    /// Time does not pass in a model.
    pub(in super::super) fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        _timeout: Duration,
    ) -> (MutexGuard<'a, T>, Waited) {
        (self.wait(guard), Waited::Done)
    }

    pub(in super::super) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// `lockdep::sync::spin_wait`, as loom knows it.
pub(in super::super) fn spin_wait(
    _class: &'static str,
    _instance: usize,
    mut is_over: impl FnMut() -> bool,
) {
    while !is_over() {
        thread::yield_now();
    }
}

/// What a model does with the sequence, so that a weaker one can take its place.
trait Protocol: Send + Sync + 'static {
    fn new() -> Self;
    fn begin(&self);
    fn end(&self) -> Ended;
    fn look(&self) -> Look;
    fn is_at(&self, number: u64) -> bool;
}

impl Protocol for Sequence {
    fn new() -> Self {
        let sequence = Self::new_open(0);
        let _nobody_waits = sequence.end();
        sequence
    }

    fn begin(&self) {
        Self::begin(self);
    }

    fn end(&self) -> Ended {
        Self::end(self)
    }

    fn look(&self) -> Look {
        Self::look(self)
    }

    fn is_at(&self, number: u64) -> bool {
        Self::is_at(self, number)
    }
}

/// A page, its sequence, and a device's translation of it.
struct World<S> {
    sequence: S,
    page: AtomicU64,
    /// The value of the page for which the device has a translation.
    table: Mutex<Option<u64>>,
}

impl<S: Protocol> World<S> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            sequence: S::new(),
            page: AtomicU64::new(0),
            table: Mutex::new("table", None),
        })
    }

    /// A bracket with its callback; the page grows by `by`.
    fn change(&self, by: u64) {
        self.sequence.begin();
        *self.table.lock() = None;
        self.page.fetch_add(by, Ordering::Relaxed);
        let _nobody_waits = self.sequence.end();
    }

    /// One attempt to translate the page.
    fn translate(&self) {
        let Look::Idle(number) = self.sequence.look() else {
            return;
        };
        let page = self.page.load(Ordering::Relaxed);
        let mut table = self.table.lock();
        if self.sequence.is_at(number) {
            *table = Some(page);
        }
    }

    /// With no bracket open, what is translated is what is there.
    fn check(&self) {
        let page = self.page.load(Ordering::Relaxed);
        assert!(self.table.lock().is_none_or(|at| at == page), "stale");
    }
}

fn model(body: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

fn no_translation_is_stale<S: Protocol>() {
    model(|| {
        let world = World::<S>::new();
        let changes = Arc::clone(&world);
        let changer = thread::spawn(move || changes.change(1));
        world.translate();
        world.translate();
        changer.join().expect("no panic");
        world.check();
    });
}

#[test]
fn loom_n54_no_translation_is_stale() {
    no_translation_is_stale::<Sequence>();
}

#[test]
fn loom_n28_n54_no_translation_is_stale_beside_two_brackets() {
    model(|| {
        let world = World::<Sequence>::new();
        let changers = [1, 16].map(|by| {
            let changes = Arc::clone(&world);
            thread::spawn(move || changes.change(by))
        });
        world.translate();
        for changer in changers {
            changer.join().expect("no panic");
        }
        world.check();
        world.translate();
        assert_eq!(*world.table.lock(), Some(17));
    });
}

/// The member whose sequence it is: it chooses the queue.
const MEMBER: u64 = 1;

/// Who waits is woken by the last who closes, and finds the page changed.
#[test]
fn loom_n51_a_waiter_is_woken_and_sees_the_change() {
    model(|| {
        let world = World::<Sequence>::new();
        let waits = Arc::new(Waits::new());
        world.sequence.begin();
        let (changes, wakes) = (Arc::clone(&world), Arc::clone(&waits));
        let changer = thread::spawn(move || {
            changes.page.store(1, Ordering::Relaxed);
            if changes.sequence.end() == Ended::Wake {
                wakes.wake(MEMBER, &changes.sequence);
            }
        });
        assert_eq!(waits.wait(MEMBER, &world.sequence, None), Some(1));
        assert_eq!(world.page.load(Ordering::Relaxed), 1);
        changer.join().expect("no panic");
    });
}

/// A bracket that was refused leaves the number as it was, whatever happens beside it.
#[test]
fn loom_n27_n55_a_roll_back_leaves_the_number() {
    model(|| {
        let world = World::<Sequence>::new();
        let refused = Arc::clone(&world);
        let other = thread::spawn(move || {
            refused.sequence.begin();
            let _nobody_waits = refused.sequence.roll_back();
        });
        world.change(1);
        other.join().expect("no panic");
        assert_eq!(world.sequence.look(), Look::Idle(1));
        assert_eq!(world.sequence.snapshot(), (0, 1));
    });
}

/// The same word, with a look that does not acquire.
struct WeakLook {
    number: AtomicU64,
    open: Sequence,
}

impl Protocol for WeakLook {
    fn new() -> Self {
        Self {
            number: AtomicU64::new(0),
            open: Protocol::new(),
        }
    }

    fn begin(&self) {
        self.number.fetch_add(2, Ordering::Relaxed);
        self.open.begin();
    }

    fn end(&self) -> Ended {
        let ended = self.open.end();
        self.number.fetch_add(2, Ordering::Relaxed);
        ended
    }

    fn look(&self) -> Look {
        match self.number.load(Ordering::Relaxed) {
            number if number % 4 == 0 => Look::Idle(number / 4),
            _ => Look::Open,
        }
    }

    fn is_at(&self, number: u64) -> bool {
        self.open.is_at(number)
    }
}

/// The model can fail: without the acquire in the look a stale page is translated.
#[test]
fn loom_canary_a_look_that_does_not_acquire_is_found() {
    let found = std::panic::catch_unwind(no_translation_is_stale::<WeakLook>);
    assert!(found.is_err(), "no stale translation was found");
}
