//! Tasks of executors: what they hold is theirs, on whichever thread, and none holds a lock while
//! it waits.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;

use lockdep::instrument::{Instrument, Instrumented};
use lockdep::sync::{Completion, Mutex};
use lockdep::{Kind, Map, Report, Severity, Validator, event};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Waits once.
struct Yield(bool);

impl Future for Yield {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

fn pause() -> Yield {
    Yield(false)
}

fn poll(task: &mut Task) -> Poll<()> {
    task.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// Polls the tasks in turn until all are done; each poll is on a thread of its own, or all on one.
#[track_caller]
fn check(tasks: impl IntoIterator<Item = Task>, is_moving: bool, expected: &[Kind]) {
    let validator = Validator::new();
    let mut tasks: Vec<Task> = tasks.into_iter().collect();
    let once = |task: &mut Task| {
        let _entered = validator.enter();
        let is_done = poll(task).is_ready();
        // Whatever the task holds, its thread does not.
        event::check_none_held();
        !is_done
    };
    while !tasks.is_empty() {
        tasks.retain_mut(|task| {
            if is_moving {
                thread::scope(|scope| scope.spawn(|| once(task)).join().expect("no panic"))
            } else {
                once(task)
            }
        });
    }
    let kinds: Vec<Kind> = validator.reports().iter().map(|r| r.kind).collect();
    assert_eq!(kinds, expected);
}

fn locks() -> Arc<[Mutex<()>; 2]> {
    Arc::new([Mutex::new("task.a", ()), Mutex::new("task.b", ())])
}

/// Takes two locks, waiting in between, without any.
fn polite(order: [usize; 2]) -> Task {
    let locks = locks();
    Box::pin(
        async move {
            for at in order {
                drop(locks[at].lock());
                pause().await;
            }
        }
        .instrument("polite"),
    )
}

#[test]
fn tasks_that_wait_with_empty_hands_are_fine() {
    for is_moving in [false, true] {
        check([polite([0, 1]), polite([1, 0])], is_moving, &[]);
    }
}

/// Inside a map, which is no lock, a task may wait; and it comes along.
fn inside_map(map: &'static Map, lock: &'static Mutex<()>) -> Task {
    // Guards of maps stay in their thread, so the events are told by hand, as an executor would.
    let instance = std::ptr::from_ref(map).addr();
    let task = async move {
        event::acquire(&event::Acquire::new(
            map.id(),
            instance,
            lockdep::Mode::Exclusive,
        ));
        pause().await;
        drop(lock.lock());
        pause().await;
        event::release(instance);
    };
    Box::pin(task.instrument("inside a map"))
}

#[test]
fn what_a_task_is_inside_of_goes_with_it() {
    static MAP: Map = Map::new("task.map");
    static LOCK: Mutex<()> = Mutex::new("task.under_map", ());
    let against = || {
        let task = async {
            let held = LOCK.lock();
            MAP.might_acquire();
            drop(held);
        };
        Box::pin(task.instrument("against")) as Task
    };
    for is_moving in [false, true] {
        // The other task runs while the first waits, on its thread, and is in no map.
        check([inside_map(&MAP, &LOCK), polite([0, 1])], is_moving, &[]);
        check(
            [inside_map(&MAP, &LOCK), against()],
            is_moving,
            &[Kind::Circular],
        );
    }
}

/// A task that waits with a lock; the guard is leaked and released by hand, so that it may move.
fn rude() -> Task {
    let task = async {
        let lock = Mutex::new("task.rude", ());
        let instance = std::ptr::from_ref(&lock).addr();
        let class = lockdep::prime::named("task.rude", lockdep::Attributes::SLEEP);
        event::acquire(&event::Acquire::new(
            class,
            instance,
            lockdep::Mode::Exclusive,
        ));
        pause().await;
        pause().await;
        event::release(instance);
    };
    Box::pin(task.instrument("rude"))
}

#[test]
fn a_lock_held_across_an_await_is_reported_once() {
    for is_moving in [false, true] {
        check([rude()], is_moving, &[Kind::HeldAtExit]);
        check(
            [rude(), rude(), polite([0, 1])],
            is_moving,
            &[Kind::HeldAtExit],
        );
    }
}

#[test]
fn a_guard_held_across_an_await_is_reported_with_its_place() {
    let validator = Validator::new();
    let entered = validator.enter();
    let lock = Mutex::new("task.guard", ());
    let task = async {
        let held = lock.lock();
        pause().await;
        drop(held);
    };
    let mut task: Pin<Box<Instrumented<_>>> = Box::pin(task.instrument("guard"));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(task.as_mut().poll(&mut cx).is_pending());
    assert_eq!((task.nr_held(), event::nr_held()), (1, 0));
    assert!(task.as_mut().poll(&mut cx).is_ready());
    drop(entered);
    let reports = validator.reports();
    assert_eq!(reports.len(), 1);
    let text = reports[0].text();
    assert!(text.contains("across an await"), "{text}");
    assert!(text.contains("let held = lock.lock();"), "{text}");
}

#[test]
fn a_task_that_is_cancelled_releases_what_it_held() {
    let validator = Validator::new();
    let entered = validator.enter();
    let lock = Mutex::new("task.cancelled", ());
    let own = Mutex::new("task.own", ());
    let task = async {
        let _held = lock.lock();
        pause().await;
    };
    let mut task = Box::pin(task.instrument("cancelled"));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(task.as_mut().poll(&mut cx).is_pending());
    let held = own.lock();
    drop(task);
    drop(held);
    assert!(lock.try_lock().is_some());
    drop(entered);
    let kinds: Vec<Kind> = validator.reports().iter().map(|r| r.kind).collect();
    assert_eq!(kinds, [Kind::HeldAtExit], "only that it waited");
}

/// Polls one task after the other to its end, on this thread; the one report.
#[track_caller]
fn report_of(tasks: impl IntoIterator<Item = Task>) -> Arc<Report> {
    let validator = Validator::new();
    let entered = validator.enter();
    for mut task in tasks {
        assert!(poll(&mut task).is_ready());
    }
    drop(entered);
    let reports = validator.reports();
    assert_eq!(reports.len(), 1, "{reports:?}");
    Arc::clone(&reports[0])
}

#[test]
fn a_report_calls_tasks_by_their_names() {
    let locks = locks();
    let nested = |name, [outer, inner]: [usize; 2]| -> Task {
        let locks = Arc::clone(&locks);
        let inner_task = async move {
            let held = locks[outer].lock();
            drop(locks[inner].lock());
            drop(held);
        };
        // A task within a task, as a runtime within an executor has them.
        Box::pin(async move { inner_task.instrument(name).await }.instrument("around"))
    };
    let report = report_of([nested("first", [0, 1]), nested("second task", [1, 0])]);
    assert_eq!(report.severity, Severity::Error);
    let names = report.orders.iter().map(|order| order.thread.as_deref());
    let names: Vec<&str> = names.map(|name| name.expect("it was seen")).collect();
    let is_called = |name: &str, part: &str| name.starts_with(part);
    assert!(is_called(names[0], "first (task ") && is_called(names[1], "second task (task "));
    assert!(report.text().contains("second task (task"), "{report}");
}

/// One thread that ends a wait and another time waits may be alone; tasks of one name are not one.
#[test]
fn tasks_on_one_thread_are_not_one() {
    let check = |name: fn(Task) -> Task, expected: Severity| {
        let lock = Arc::new(Mutex::new("task.lock", ()));
        let done = Arc::new(Completion::new("task.done"));
        let (its, end) = (Arc::clone(&lock), Arc::clone(&done));
        let signals: Task = Box::pin(async move {
            drop(its.lock());
            end.complete_all();
            end.reset();
        });
        let waits: Task = Box::pin(async move {
            let _held = lock.lock();
            let _ = done.wait_timeout(std::time::Duration::from_nanos(1));
        });
        let report = report_of([name(signals), name(waits)]);
        assert_eq!(report.severity, expected, "{report}");
    };
    check(|task| task, Severity::Unlikely);
    check(
        |task| Box::pin(task.instrument("worker")),
        Severity::Warning,
    );
}
