//! Locks and waits allocate nothing, however many threads contend.
//!
//! In a binary of its own, since it replaces the allocator. Allocations are counted per thread, so
//! that whatever the test harness does meanwhile is not held against a lock.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use lockdep::Scheduler;
use lockdep::scheduler::{self, Point, Wake};
use lockdep::sync::park::Parker;
use lockdep::sync::{Completion, Condvar, Fence, Mutex, RwLock, ShortLock, Waited, spin_wait};

/// The system's allocator, counting.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// Needs no destructor and no lazy start, so counting does not itself allocate.
    static NR_ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        NR_ALLOCATIONS.set(NR_ALLOCATIONS.get() + 1);
        // SAFETY: our caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System.alloc` with this layout, as our caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }
}

const NR_THREADS: usize = if cfg!(miri) { 2 } else { 8 };
const NR_ROUNDS: usize = if cfg!(miri) { 10 } else { 500 };

/// How many allocations the calling thread makes in `act`.
fn nr_allocations(act: impl FnOnce()) -> usize {
    // The validator reserves its tables at its start, and makes do with them.
    lockdep::start();
    let before = NR_ALLOCATIONS.get();
    act();
    NR_ALLOCATIONS.get() - before
}

/// Runs `act` in many threads at once, each told its number; none of them may allocate in it.
#[track_caller]
fn check_contended(act: impl Fn(usize) + Sync) {
    let counts: Vec<usize> = thread::scope(|scope| {
        let act = &act;
        let threads: Vec<_> = (0..NR_THREADS)
            .map(|me| scope.spawn(move || nr_allocations(|| act(me))))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no thread panics"))
            .collect()
    });
    assert_eq!(counts, [0; NR_THREADS]);
}

/// Holds a lock long enough for others to queue up.
fn linger<G>(guard: G) {
    thread::yield_now();
    drop(guard);
}

#[test]
fn the_counter_counts() {
    assert_eq!(nr_allocations(|| drop(black_box(Box::new(1)))), 1);
    assert_eq!(nr_allocations(|| ()), 0);
}

#[test]
fn contended_locks_allocate_nothing() {
    let mutex = Mutex::new("mutex", ());
    let rw = RwLock::new("rw", ());
    let short = ShortLock::new("short", ());
    check_contended(|_| (0..NR_ROUNDS).for_each(|_| linger(mutex.lock())));
    check_contended(|_| (0..NR_ROUNDS).for_each(|_| linger(short.lock())));
    check_contended(|me| {
        for round in 0..NR_ROUNDS {
            if (me + round).is_multiple_of(3) {
                linger(rw.write())
            } else {
                linger(rw.read())
            }
        }
    });
    check_contended(|_| {
        for _ in 0..NR_ROUNDS {
            linger((mutex.try_lock(), rw.try_read(), short.try_lock()));
            linger(rw.try_write());
        }
    });
}

#[test]
fn waits_and_notifications_allocate_nothing() {
    let (turn, passed) = (Mutex::new("turn", 0), Condvar::new("passed"));
    check_contended(|me| {
        for round in 0..NR_ROUNDS / 10 {
            let mine = round * NR_THREADS + me;
            let mut turn = passed.wait_while(turn.lock(), |turn| *turn != mine);
            *turn += 1;
            passed.notify_all();
            passed.notify_one();
        }
    });
    let (mutex, unnotified) = (Mutex::new("mutex", ()), Condvar::new("unnotified"));
    check_contended(|_| {
        let (guard, _) = unnotified.wait_timeout(mutex.lock(), Duration::from_micros(1));
        drop(guard);
    });
    let parkers: Vec<Parker> = (0..NR_THREADS).map(|_| Parker::new("parker")).collect();
    parkers[0].unpark();
    check_contended(|me| {
        for _ in 0..NR_ROUNDS / 10 {
            parkers[me].park();
            parkers[(me + 1) % NR_THREADS].unpark();
        }
    });
}

#[test]
fn events_allocate_nothing() {
    let fences: Vec<Fence> = (0..NR_ROUNDS).map(|_| Fence::new("fence")).collect();
    let completion = Completion::new("completion");
    let nr_past = AtomicUsize::new(0);
    check_contended(|me| {
        for (round, fence) in fences.iter().enumerate() {
            if round % NR_THREADS == me {
                assert!(fence.signal());
            }
            fence.clone().wait();
        }
        if me == 0 {
            completion.complete_all();
        }
        completion.wait();
        assert_eq!(completion.wait_timeout(Duration::ZERO), Waited::Done);
        nr_past.fetch_add(1, Ordering::Relaxed);
        spin_wait("all past", 0, || {
            nr_past.load(Ordering::Relaxed) == NR_THREADS
        });
        completion.reset();
    });
}

/// Has nothing to decide: one task.
struct Alone;

impl Scheduler for Alone {
    fn point(&self, _point: Point) {}

    fn block(&self, _point: Point, _timeout: Option<Duration>) -> Waited {
        Waited::TimedOut
    }

    fn wake(&self, _addr: usize, _wake: Wake) {}
}

#[test]
fn asking_a_scheduler_allocates_nothing() {
    let (mutex, condvar) = (Mutex::new("mutex", ()), Condvar::new("condvar"));
    let (rw, fence) = (RwLock::new("rw", ()), Fence::new("fence"));
    let _installed = scheduler::install(Arc::new(Alone));
    let nr = nr_allocations(|| {
        for _ in 0..NR_ROUNDS {
            let (guard, _) = condvar.wait_timeout(mutex.lock(), Duration::from_secs(1));
            condvar.notify_all();
            drop((guard, rw.read()));
            drop(rw.write());
            assert_eq!(fence.wait_timeout(Duration::from_secs(1)), Waited::TimedOut);
        }
        fence.signal();
        fence.wait();
    });
    assert_eq!(nr, 0);
}
