//! What a scheduler is told, and when it is asked.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lockdep::Scheduler;
use lockdep::scheduler::{self, Installed, Point, PointKind, Wake};
use lockdep::sync::park::Parker;
use lockdep::sync::{self, Completion, Condvar, Fence, Mutex, RwLock, ShortLock, Waited};

use crate::world::{self, Task};

/// One call of a scheduler.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Call {
    At(PointKind, &'static str),
    Block(PointKind, &'static str, Option<Duration>),
    Wake(Wake),
}

use Call::{At, Block};
use PointKind::{
    Complete, Lock, Notify, Park, Read, Signal, Sleep, Spin, TryLock, TryRead, TryWrite, Unlock,
    Unpark, User, Wait, Write,
};

const WAKE_ALL: Call = Call::Wake(Wake::All);
const WAKE_ONE: Call = Call::Wake(Wake::One);
const SECOND: Duration = Duration::from_secs(1);

/// Writes down every call; lets time run out at every block.
struct Recorder {
    calls: Mutex<Vec<Call>>,
    /// The point that panics, if any.
    panics_at: Option<PointKind>,
}

impl Recorder {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            calls: Mutex::new("calls", Vec::new()),
            panics_at: None,
        })
    }

    fn push(&self, call: Call) {
        // A lock of the crate itself: inside a scheduler it must not lead back to the scheduler.
        assert!(!scheduler::is_scheduled());
        self.calls.lock().push(call);
    }

    fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock())
    }
}

impl Scheduler for Recorder {
    fn point(&self, point: Point) {
        self.push(At(point.kind, point.class));
        if Some(point.kind) == self.panics_at {
            panic::resume_unwind(Box::new("on purpose"));
        }
    }

    fn block(&self, point: Point, timeout: Option<Duration>) -> Waited {
        self.push(Block(point.kind, point.class, timeout));
        assert!(timeout.is_some(), "nobody would wake this task");
        Waited::TimedOut
    }

    fn wake(&self, _addr: usize, wake: Wake) {
        self.push(Call::Wake(wake));
    }
}

/// Runs `act` in a fresh thread under a recorder.
fn record(act: impl FnOnce() + Send) -> Vec<Call> {
    let recorder = Recorder::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let _installed = scheduler::install(Arc::clone(&recorder) as Arc<dyn Scheduler>);
            act();
        });
    });
    recorder.take()
}

#[test]
fn each_operation_tells_the_scheduler_what_it_does() {
    #[track_caller]
    fn check(act: impl FnOnce() + Send, expected: &[Call]) {
        assert_eq!(record(act), expected);
    }
    let released = [WAKE_ALL, At(Unlock, "x")];
    let (mutex, rw, short) = (
        Mutex::new("x", 1),
        RwLock::new("x", 1),
        ShortLock::new("x", 1),
    );
    let after = |kind| [&[At(kind, "x")], &released[..]].concat();
    check(|| drop(mutex.lock()), &after(Lock));
    check(|| drop(mutex.try_lock()), &after(TryLock));
    check(|| drop(short.lock()), &after(Lock));
    check(|| drop(short.try_lock()), &after(TryLock));
    check(|| drop(rw.read()), &after(Read));
    check(|| drop(rw.try_read()), &after(TryRead));
    check(|| drop(rw.write()), &after(Write));
    check(|| drop(rw.try_write()), &after(TryWrite));
    let (completion, fence) = (Completion::new("x"), Fence::new("x"));
    check(|| completion.complete_all(), &[At(Complete, "x"), WAKE_ALL]);
    check(|| completion.complete_all(), &[At(Complete, "x")]);
    check(|| completion.wait(), &[At(Wait, "x")]);
    check(|| completion.reset(), &[]);
    let timed_out = [At(Wait, "x"), Block(Wait, "x", Some(SECOND))];
    check(
        || assert_eq!(completion.wait_timeout(SECOND), Waited::TimedOut),
        &timed_out,
    );
    check(
        || assert_eq!(fence.wait_timeout(SECOND), Waited::TimedOut),
        &timed_out,
    );
    check(|| assert!(fence.signal()), &[At(Signal, "x"), WAKE_ALL]);
    check(|| assert!(!fence.signal()), &[At(Signal, "x")]);
    check(|| assert!(fence.is_signalled()), &[]);
    let parker = Parker::new("x");
    check(|| parker.unpark(), &[At(Unpark, "x"), WAKE_ONE]);
    check(|| parker.park(), &[At(Park, "x")]);
    let timed_out = [At(Park, "x"), Block(Park, "x", Some(SECOND))];
    check(
        || assert_eq!(parker.park_timeout(SECOND), Waited::TimedOut),
        &timed_out,
    );
    let condvar = Condvar::new("x");
    check(|| condvar.notify_one(), &[At(Notify, "x"), WAKE_ONE]);
    check(|| condvar.notify_all(), &[At(Notify, "x"), WAKE_ALL]);
    check(
        || sync::sleep("x", SECOND),
        &[Block(Sleep, "x", Some(SECOND))],
    );
    check(|| sync::spin_wait("x", 0, || true), &[At(Wait, "x")]);
    let mut rounds = 0..2;
    let spun = [At(Wait, "x"), At(Spin, "x"), At(Spin, "x")];
    check(
        || sync::spin_wait("x", 0, || rounds.next().is_none()),
        &spun,
    );
    check(|| scheduler::scheduler_point("x", 0), &[At(User, "x")]);
}

/// Between giving the mutex up and blocking lies no point, or a notification could be lost there.
#[test]
fn a_wait_on_a_condvar_is_one_step() {
    let (mutex, condvar) = (Mutex::new("mutex", ()), Condvar::new("condvar"));
    let calls = record(|| {
        let (guard, waited) = condvar.wait_timeout(mutex.lock(), SECOND);
        assert_eq!(waited, Waited::TimedOut);
        drop(guard);
    });
    let expected = [
        At(Lock, "mutex"),
        WAKE_ALL,
        Block(Wait, "condvar", Some(SECOND)),
        WAKE_ALL,
        At(Unlock, "mutex"),
    ];
    assert_eq!(calls, expected);
}

#[test]
fn a_scheduler_lasts_as_long_as_its_guard() {
    #[track_caller]
    fn pass(class: &'static str, is_scheduled: bool) {
        assert_eq!(scheduler::is_scheduled(), is_scheduled);
        scheduler::scheduler_point(class, 0);
    }
    let (outer, inner) = (Recorder::new(), Recorder::new());
    pass("before", false);
    let outer_installed = scheduler::install(Arc::clone(&outer) as Arc<dyn Scheduler>);
    pass("outer", true);
    let inner_installed = scheduler::install(Arc::clone(&inner) as Arc<dyn Scheduler>);
    pass("inner", true);
    thread::scope(|scope| {
        scope.spawn(|| pass("other thread", false));
    });
    drop(inner_installed);
    pass("outer again", true);
    drop(outer_installed);
    pass("after", false);
    assert_eq!(outer.take(), [At(User, "outer"), At(User, "outer again")]);
    assert_eq!(inner.take(), [At(User, "inner")]);
    assert_eq!(
        (Arc::strong_count(&outer), Arc::strong_count(&inner)),
        (1, 1)
    );
}

/// A task that unwinds wakes whom it kept waiting, but goes through no point on the way.
#[test]
fn a_release_while_panicking_wakes_without_a_point() {
    let mutex = Mutex::new("mutex", ());
    let calls = record(|| {
        let result = panic::catch_unwind(AssertUnwindSafe(|| {
            let _guard = mutex.lock();
            panic::resume_unwind(Box::new("on purpose"));
        }));
        assert!(result.is_err());
    });
    assert_eq!(calls, [At(Lock, "mutex"), WAKE_ALL]);
}

#[test]
fn a_scheduler_that_panics_stays_installed() {
    let recorder = Arc::new(Recorder {
        calls: Mutex::new("calls", Vec::new()),
        panics_at: Some(Signal),
    });
    let fence = Fence::new("fence");
    thread::scope(|scope| {
        scope.spawn(|| {
            let _installed = scheduler::install(Arc::clone(&recorder) as Arc<dyn Scheduler>);
            assert!(panic::catch_unwind(AssertUnwindSafe(|| fence.signal())).is_err());
            assert!(scheduler::is_scheduled() && !fence.is_signalled());
            scheduler::scheduler_point("still here", 0);
        });
    });
    assert_eq!(
        recorder.take(),
        [At(Signal, "fence"), At(User, "still here")]
    );
}

/// Thread-locals are destroyed in some order, and one that outlives the hook still may lock.
#[test]
fn a_dying_thread_may_lock() {
    static MUTEX: Mutex<u32> = Mutex::new("mutex", 0);
    struct LocksWhenDropped;
    impl Drop for LocksWhenDropped {
        fn drop(&mut self) {
            *MUTEX.lock() += 1;
        }
    }
    thread_local! {
        static FIRST: RefCell<Option<LocksWhenDropped>> = const { RefCell::new(None) };
        static HELD: RefCell<Option<Installed>> = const { RefCell::new(None) };
        static LAST: RefCell<Option<LocksWhenDropped>> = const { RefCell::new(None) };
    }
    let recorder = Recorder::new();
    let dying = Arc::clone(&recorder);
    let thread = thread::spawn(move || {
        FIRST.set(Some(LocksWhenDropped));
        HELD.set(Some(scheduler::install(dying)));
        LAST.set(Some(LocksWhenDropped));
    });
    thread.join().expect("no destructor panics");
    assert_eq!(*MUTEX.lock(), 2);
    assert_eq!(Arc::strong_count(&recorder), 1);
}

#[test]
fn a_seed_repeats_its_run() {
    let run = |seed| {
        let (mutex, condvar) = (Mutex::new("mutex", 0), Condvar::new("condvar"));
        let (rw, fence) = (RwLock::new("rw", 0), Fence::new("fence"));
        let task = |me: u64| {
            let (mutex, condvar, rw, fence) = (&mutex, &condvar, &rw, fence.clone());
            Box::new(move || {
                *rw.write() += me;
                *mutex.lock() += 1;
                condvar.notify_all();
                drop(condvar.wait_while(mutex.lock(), |nr| *nr < 3));
                sync::sleep("pause", Duration::from_secs(me));
                fence.signal();
                fence.wait();
                assert_eq!(*rw.read(), 3);
            }) as Task<'_>
        };
        world::run_scheduled(seed, (0..3).map(task).collect())
    };
    let mut nr_different = 0;
    for seed in world::seeds() {
        let first = run(seed);
        assert!(!first.is_stuck);
        assert_eq!(first, run(seed), "seed {seed}");
        nr_different += usize::from(first != run(seed + 1));
    }
    assert!(nr_different > 0, "every seed ran the same way");
}
