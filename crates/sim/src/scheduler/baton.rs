//! Hands the right to run from thread to thread.
//!
//! `turn` says whose it is. A thread that waits for its turn yields for a moment and then sleeps;
//! whoever hands over writes `turn` first and wakes then, and a wake-up is remembered by the
//! thread it is for, so none is lost.
//!
//! The state is behind a lock of `std`: it decides for the locks of `lockdep::sync`, and a task
//! that spawns or joins comes in while its own scheduler is installed.

use super::Options;
use super::panics;
use super::report::Run;
use super::state::{Next, Role, State, TaskId};
use super::worker::{self, Job};
use crate::clock::SimClock;
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
    /// Who made the run and waits for its end.
    caller: Thread,
    clock: Arc<SimClock>,
    options: Options,
}

/// A task's way to the baton: what it installs.
struct Seat {
    me: TaskId,
    baton: Arc<Baton>,
}

thread_local! {
    static ME: Cell<Option<TaskId>> = const { Cell::new(None) };
}

/// Whether this thread runs a task.
pub(super) fn is_task() -> bool {
    ME.get().is_some()
}

impl Baton {
    pub(super) fn new(options: Options) -> Arc<Self> {
        let clock = Arc::new(SimClock::new());
        panics::listen();
        Arc::new(Self {
            turn: AtomicUsize::new(OVER),
            state: Mutex::new(State::new(options.clone(), Arc::clone(&clock))),
            threads: Mutex::new(Vec::new()),
            caller: thread::current(),
            clock,
            options,
        })
    }

    pub(super) fn clock(&self) -> &Arc<SimClock> {
        &self.clock
    }

    /// Runs the body as task zero and waits for the end of the run.
    pub(super) fn run(self: &Arc<Self>, body: Job) -> Run {
        let id = self.start("main", Role::Task, body);
        self.hand_over(Next::Task(id));
        self.wait_for_turn(OVER);
        let outcome = self.state().take_outcome();
        Run::new(&self.options, outcome)
    }

    pub(super) fn spawn(self: &Arc<Self>, name: &str, role: Role, task: Job) {
        let me = me();
        self.start(name, role, task);
        let point = Point {
            kind: PointKind::User,
            class: "spawn",
            addr: 0,
        };
        self.reach(me, point);
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

    fn start(self: &Arc<Self>, name: &str, role: Role, task: Job) -> TaskId {
        let id = self.state().add(Arc::from(name), role);
        let baton = Arc::clone(self);
        let thread = worker::start(Box::new(move |home| {
            baton.wait_for_turn(id);
            let next = baton.run_task(id, task);
            // Whoever comes next may use this thread: it goes home before the baton goes on.
            home.enter();
            baton.hand_over(next);
        }));
        self.threads().push(thread);
        id
    }

    /// Runs a task that has its turn; says who has it afterwards.
    fn run_task(self: &Arc<Self>, me: TaskId, task: Job) -> Next {
        let seat = Seat {
            me,
            baton: Arc::clone(self),
        };
        ME.set(Some(me));
        let installed = scheduler::install(Arc::new(seat));
        // The task is dropped inside, also when it is not to run: its destructors may take locks.
        let result = panic::catch_unwind(AssertUnwindSafe(|| {
            let task = task;
            self.unwind_if_over();
            task();
        }));
        let message = result.err().and_then(panics::message_of);
        drop(installed);
        ME.set(None);
        self.state().ended(me, message)
    }

    /// `me` is at a point; returns when it has its turn again.
    fn reach(&self, me: TaskId, point: Point) {
        let mut state = self.state();
        if state.is_over() {
            drop(state);
            return self.unwind_if_over();
        }
        state.note_panic(me, panics::under_way());
        let next = state.point(me, point);
        drop(state);
        let _: Waited = self.pass(me, next);
    }

    /// Gives the turn to `next`, and returns when it is back: never, if the run has failed.
    fn pass(&self, me: TaskId, next: Next) -> Waited {
        if next != Next::Task(me) {
            self.hand_over(next);
            self.wait_for_turn(me);
        }
        let state = self.state();
        if state.is_over() {
            drop(state);
            self.unwind_if_over();
            return Waited::Done;
        }
        state.resumed(me)
    }

    /// Unwinds a daemon of a run that is over. One that unwinds already goes on.
    fn unwind_if_over(&self) {
        if self.state().is_over() && !thread::panicking() {
            panics::unwind();
        }
    }

    fn hand_over(&self, next: Next) {
        let (turn, thread) = match next {
            Next::Task(id) => (id, self.threads()[id].clone()),
            Next::Nobody => (OVER, self.caller.clone()),
        };
        // Release: pairs with the Acquire in `wait_for_turn`.
        self.turn.store(turn, Ordering::Release);
        thread.unpark();
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
}

impl Scheduler for Seat {
    fn point(&self, point: Point) {
        self.baton.reach(self.me, point);
    }

    fn block(&self, point: Point, timeout: Option<Duration>) -> Waited {
        let mut state = self.baton.state();
        let next = if state.is_over() {
            drop(state);
            self.baton.unwind_if_over();
            // Waits in a destructor: the others may have to unwind first.
            self.baton.state().yield_unwinding(self.me)
        } else {
            state.note_panic(self.me, panics::under_way());
            let timeout_ns = timeout.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
            let next = state.block(self.me, point, timeout_ns);
            drop(state);
            next
        };
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
