//! Hands the right to run from thread to thread.
//!
//! `turn` says whose it is. A thread that waits for its turn yields for a moment and then sleeps;
//! whoever hands over writes `turn` first and wakes then, and a wake-up is remembered by the
//! thread it is for, so none is lost.
//!
//! The state is behind a lock of `std`: it decides for the locks of `lockdep::sync`, and a task
//! that spawns or joins comes in while its own scheduler is installed.

use super::Options;
use super::report::Run;
use super::state::{Next, Role, State, TaskId};
use super::worker::{self, Job};
use crate::clock::SimClock;
use core::any::Any;
use core::cell::Cell;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use lockdep::Scheduler;
use lockdep::scheduler::{self, Point, PointKind, Wake};
use lockdep::sync::Waited;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};

/// Looks at the turn before a thread sleeps, each followed by a yield. One task of many runs, so
/// the processor is worth more to whoever has the turn than a quick look is to the others:
/// spinning made runs several times slower, yielding makes them up to five times as fast.
const YIELDS: u32 = 20;

/// A turn that is no task's: the run is over.
const OVER: usize = usize::MAX;

pub(super) struct Baton {
    turn: AtomicUsize,
    state: Mutex<State>,
    threads: Mutex<Vec<Thread>>,
    clock: Arc<SimClock>,
    options: Options,
}

/// A task's way to the baton: what it installs.
struct Seat {
    me: TaskId,
    baton: Arc<Baton>,
}

/// What the tasks of a run that is over unwind with.
struct Over;

thread_local! {
    static ME: Cell<Option<TaskId>> = const { Cell::new(None) };
}

impl Baton {
    pub(super) fn new(options: Options) -> Arc<Self> {
        let clock = Arc::new(SimClock::new());
        Arc::new(Self {
            turn: AtomicUsize::new(0),
            state: Mutex::new(State::new(options.clone(), Arc::clone(&clock))),
            threads: Mutex::new(vec![thread::current()]),
            clock,
            options,
        })
    }

    pub(super) fn clock(&self) -> &Arc<SimClock> {
        &self.clock
    }

    /// Runs the body as task zero, on this thread, and waits until all tasks have ended.
    pub(super) fn run_main(self: &Arc<Self>, body: impl FnOnce()) -> Run {
        self.run_task(0, body);
        self.wait_for_turn(OVER);
        let outcome = self.state().take_outcome();
        Run::new(&self.options, outcome)
    }

    pub(super) fn spawn(self: &Arc<Self>, name: &str, role: Role, task: Job) {
        let me = me();
        let id = self.state().add(Arc::from(name), role);
        let baton = Arc::clone(self);
        let thread = worker::start(Box::new(move |home| {
            baton.wait_for_turn(id);
            // Whoever comes next may use this thread: it goes home before the baton does.
            baton.run_task_then(id, task, || home.enter());
        }));
        self.threads().push(thread);
        self.reach(
            me,
            Point {
                kind: PointKind::User,
                class: "spawn",
                addr: 0,
            },
        );
    }

    pub(super) fn join_all(&self) {
        let me = me();
        loop {
            let Some(next) = self.state().block_to_join(me) else {
                return;
            };
            let _: Waited = self.pass(me, next);
        }
    }

    fn run_task(self: &Arc<Self>, me: TaskId, task: impl FnOnce()) {
        self.run_task_then(me, task, || ());
    }

    /// Runs a task that has its turn, and passes the turn on when it has ended.
    fn run_task_then(self: &Arc<Self>, me: TaskId, task: impl FnOnce(), then: impl FnOnce()) {
        let seat = Seat {
            me,
            baton: Arc::clone(self),
        };
        let before = ME.replace(Some(me));
        let installed = scheduler::install(Arc::new(seat));
        // The task is dropped inside, also when it is not to run: its destructors may take locks.
        let result = panic::catch_unwind(AssertUnwindSafe(|| {
            let task = task;
            self.go_on_unless_over();
            task();
        }));
        let message = result.err().and_then(message_of);
        drop(installed);
        ME.set(before);
        let next = self.state().ended(me, message);
        then();
        self.hand_over(next);
    }

    /// `me` is at a point; returns when it has its turn again.
    fn reach(&self, me: TaskId, point: Point) {
        let mut state = self.state();
        if state.is_over() {
            drop(state);
            return self.go_on_unless_over();
        }
        let next = state.point(me, point);
        drop(state);
        let _: Waited = self.pass(me, next);
    }

    /// Gives the turn to `next`, and returns when it is back.
    fn pass(&self, me: TaskId, next: Next) -> Waited {
        if next != Next::Task(me) {
            self.hand_over(next);
            self.wait_for_turn(me);
        }
        let state = self.state();
        if state.is_over() {
            drop(state);
            self.go_on_unless_over();
            return Waited::Done;
        }
        state.resumed(me)
    }

    /// Unwinds a task of a run that is over. One that unwinds already goes on.
    fn go_on_unless_over(&self) {
        if self.state().is_over() && !thread::panicking() {
            // Not `panic!`: this is no failure, so no hook shall hear of it.
            panic::resume_unwind(Box::new(Over));
        }
    }

    fn hand_over(&self, next: Next) {
        let (turn, thread) = match next {
            Next::Task(id) => (id, self.threads()[id].clone()),
            Next::Nobody | Next::Abandoned => (OVER, self.threads()[0].clone()),
        };
        // Release: pairs with the Acquire in `wait_for_turn`.
        self.turn.store(turn, Ordering::Release);
        if thread.id() != thread::current().id() {
            thread.unpark();
        }
    }

    fn wait_for_turn(&self, me: usize) {
        let mut nr_looks = 0;
        // Acquire: pairs with the Release in `hand_over`; what the others did before is seen.
        while self.turn.load(Ordering::Acquire) != me {
            if nr_looks < YIELDS {
                nr_looks += 1;
                thread::yield_now();
            } else {
                thread::park();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn threads(&self) -> MutexGuard<'_, Vec<Thread>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits in a destructor of a run that is over, until the others had their chance to unwind.
    fn wait_unwinding(&self, me: TaskId) {
        let next = self.state().yield_unwinding(me);
        if next == Next::Abandoned {
            self.abandon(me);
        }
        if next != Next::Task(me) {
            self.hand_over(next);
            self.wait_for_turn(me);
        }
    }

    /// Gives the run up: its threads sleep for ever, but for the one that has to return.
    fn abandon(&self, me: TaskId) -> ! {
        if me == 0 {
            // A destructor that waits for ever cannot return. A panic in it ends the process, and
            // says why.
            let run = Run::new(&self.options, self.state().take_outcome());
            panic!("its destructors wait for each other, so it cannot be unwound: {run}");
        }
        let next = self.state().next_after_abandoned();
        self.hand_over(next);
        loop {
            thread::park();
        }
    }
}

impl Scheduler for Seat {
    fn point(&self, point: Point) {
        self.baton.reach(self.me, point);
    }

    fn block(&self, point: Point, timeout: Option<Duration>) -> Waited {
        let mut state = self.baton.state();
        if state.is_over() {
            drop(state);
            self.baton.go_on_unless_over();
            self.baton.wait_unwinding(self.me);
            return Waited::Done;
        }
        let timeout_ns = timeout.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        let next = state.block(self.me, point, timeout_ns);
        drop(state);
        self.baton.pass(self.me, next)
    }

    fn wake(&self, addr: usize, wake: Wake) {
        let mut state = self.baton.state();
        if !state.is_over() {
            state.wake(self.me, addr, wake);
        }
    }
}

fn me() -> TaskId {
    ME.get().expect("only a task of a run may spawn and join")
}

/// What a panic said; `None` if it only unwound a run that was over.
fn message_of(payload: Box<dyn Any + Send>) -> Option<String> {
    if payload.is::<Over>() {
        return None;
    }
    let message = match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => match payload.downcast::<&'static str>() {
            Ok(message) => (*message).to_owned(),
            Err(_) => "a panic without a message".to_owned(),
        },
    };
    Some(message)
}
