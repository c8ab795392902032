//! What sleeps says so, and is reported wherever sleeping is forbidden, whether or not it comes to
//! that: each way to sleep in each such place.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use lockdep::context::{self, ContextGuard};
use lockdep::instrument::Instrument;
use lockdep::sync::park::Parker;
use lockdep::sync::{self, Completion, Condvar, Fence, Mutex, RwLock, ShortGuard, ShortLock};
use lockdep::{Kind, Level, Report, Validator, WaitType};

const SHORT: Duration = Duration::from_nanos(1);

static SECTION: ShortLock<()> = ShortLock::new("sleeps.short", ());

/// What keeps the thread from sleeping.
enum Awake {
    Context { _guard: ContextGuard },
    Lock { _guard: ShortGuard<'static, ()> },
}

impl Awake {
    fn in_context(guard: ContextGuard) -> Option<Self> {
        Some(Self::Context { _guard: guard })
    }
}

/// Goes to where something is done.
type Enter = fn() -> Option<Awake>;

/// Where something is done: with what keeps the thread from sleeping, if anything does.
const PLACES: [(&str, Enter); 7] = [
    ("anywhere", || None),
    ("where sleeping is allowed", || {
        Awake::in_context(context::wait_limit(WaitType::Sleep))
    }),
    ("non-block", || Awake::in_context(context::non_block())),
    ("hard level", || {
        Awake::in_context(context::enter(Level::Hard))
    }),
    ("soft level", || {
        Awake::in_context(context::enter(Level::Soft))
    }),
    ("spinning only", || {
        Awake::in_context(context::wait_limit(WaitType::Spin))
    }),
    ("short lock", || {
        let guard = SECTION.lock();
        Some(Awake::Lock { _guard: guard })
    }),
];

/// Does it in every place: reported as a wait for `class` where sleeping is forbidden, and silent
/// elsewhere.
#[track_caller]
fn check(class: &str, act: impl Fn(&dyn Fn() -> Option<Awake>)) {
    check_as(class, Kind::WaitContext, act);
}

/// The same for what is a fault of another kind under a lock.
#[track_caller]
fn check_as(class: &str, under_lock: Kind, act: impl Fn(&dyn Fn() -> Option<Awake>)) {
    for (place, enter) in PLACES {
        let validator = Validator::new();
        let entered = validator.enter();
        act(&enter);
        drop(entered);
        let reports = validator.reports();
        let has = |kind| {
            let is_it = |report: &&Arc<Report>| report.kind == kind;
            let mut of_kind = reports.iter().filter(is_it);
            of_kind.any(|report| report.text().contains(class))
        };
        // What a level does to the lock or the thread that is waited for is said besides.
        let is_right = match place {
            "anywhere" | "where sleeping is allowed" => reports.is_empty(),
            "short lock" => has(under_lock),
            _ => has(Kind::WaitContext),
        };
        assert!(is_right, "{class}, {place}: {reports:?}");
    }
}

#[test]
fn what_sleeps_is_reported_where_sleeping_is_forbidden() {
    let done = Completion::new("sleeps.done");
    done.complete_all();
    let fence = Fence::new("sleeps.fence");
    fence.signal();
    let parker = Parker::new("sleeps.parker");
    let (mutex, lock) = (
        Mutex::new("sleeps.mutex", ()),
        RwLock::new("sleeps.lock", ()),
    );
    let acts: [(&str, &dyn Fn()); 12] = [
        ("sleep", &lockdep::might_sleep),
        ("sleep", &|| sync::sleep("sleeps.pause", SHORT)),
        ("sleep", &|| sync::sleep("sleeps.pause", Duration::ZERO)),
        ("sleeps.done", &|| done.wait()),
        ("sleeps.done", &|| _ = done.wait_timeout(SHORT)),
        ("sleeps.fence", &|| fence.wait()),
        ("sleeps.fence", &|| _ = fence.wait_timeout(SHORT)),
        ("sleeps.parker", &|| _ = parker.park_timeout(SHORT)),
        ("sleeps.parker", &|| {
            parker.unpark();
            parker.park();
        }),
        ("sleeps.mutex", &|| drop(mutex.lock())),
        ("sleeps.lock", &|| drop(lock.read())),
        ("sleeps.lock", &|| drop(lock.write())),
    ];
    for (class, act) in acts {
        check(class, |enter| {
            let _awake = enter();
            act();
        });
    }
}

#[test]
fn what_only_tries_is_silent_everywhere() {
    let (mutex, lock) = (
        Mutex::new("sleeps.tried", ()),
        RwLock::new("sleeps.tried_too", ()),
    );
    let done = Completion::new("sleeps.asked");
    for (_, enter) in PLACES {
        let validator = Validator::new();
        let entered = validator.enter();
        let awake = enter();
        drop((mutex.try_lock(), lock.try_read()));
        let _ = done.wait_timeout(Duration::ZERO);
        drop((awake, entered));
        assert_eq!(validator.reports().len(), 0);
    }
}

#[test]
fn a_condvar_sleeps() {
    check("sleeps.changed", |enter| {
        let (mutex, changed) = (
            Mutex::new("sleeps.held", ()),
            Condvar::new("sleeps.changed"),
        );
        let held = mutex.lock();
        let awake = enter();
        let (held, _) = changed.wait_timeout(held, SHORT);
        drop((awake, held));
    });
}

#[test]
fn a_join_sleeps() {
    check("sleeps.joined", |enter| {
        let thread = lockdep::thread::spawn("sleeps.joined", || ());
        let _awake = enter();
        thread.join().expect("it does nothing");
    });
}

#[test]
fn a_task_that_waits_sleeps() {
    // With a lock, the lock is what is wrong.
    check_as("sleep", Kind::HeldAtExit, |enter| {
        let task = async {
            let _awake = enter();
            std::future::pending::<()>().await;
        };
        let mut task = pin!(task.instrument("sleeps.task"));
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(Future::poll(task.as_mut(), &mut cx), Poll::Pending);
    });
}
