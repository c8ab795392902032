//! Hands the right to run from task to task.
//!
//! All tasks of a run are coroutines on the thread that makes it. Whoever is at a point draws who
//! goes on; if that is another, it gives the thread back to the driver, which resumes the other. A
//! task gets a stack when its first turn comes: that of a task that has ended, if there is one.
//!
//! The state is behind a lock of `std`: it decides for the locks of `lockdep::sync`, and a task
//! that spawns or joins comes in while its own scheduler is installed.

use super::fiber::{self, Fiber, Idle};
use super::panics;
use super::report::Run;
use super::state::{Next, Plan, Role, State, TaskId};
use crate::clock::SimClock;
use core::cell::{Cell, RefCell};
use core::time::Duration;
use lockdep::Scheduler;
use lockdep::event;
use lockdep::scheduler::{self, Point, PointKind, Wake};
use lockdep::sync::Waited;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a task does.
pub(super) type Job = Box<dyn FnOnce() + Send>;

pub(super) struct Baton {
    crew: Mutex<Crew>,
    clock: Arc<SimClock>,
}

/// The tasks: what decides between them, and what those do that have had no turn yet.
struct Crew {
    state: State,
    jobs: Vec<Option<Job>>,
}

thread_local! {
    static ME: Cell<Option<TaskId>> = const { Cell::new(None) };
    /// The run that this thread makes.
    static RUN: RefCell<Option<Arc<Baton>>> = const { RefCell::new(None) };
}

/// Whether this thread runs a task.
pub(super) fn is_task() -> bool {
    ME.get().is_some()
}

/// Ends the run of the calling task as a failure, where the task stands: nothing of it is unwound,
/// since its destructors have no part in what failed. Returns only if the caller is no task.
#[cfg(feature = "conformance")]
pub(crate) fn fail(message: String) {
    let (Some(me), Some(baton)) = (ME.get(), RUN.with_borrow(Clone::clone)) else {
        return;
    };
    let next = baton.crew().state.fail_told(me, message);
    // This stack is never resumed: it keeps of the run what it held before.
    drop(baton);
    fiber::suspend(next);
}

/// Calls `act`. If it panics, that ends the run, where the calling task stands: what the task has
/// outside of `act` is not dropped while it unwinds, as a destructor that panics then would end the
/// process. A daemon of a run that is over returns, and drops what it has as any task that ends.
#[cfg(feature = "conformance")]
pub(crate) fn contained(act: impl FnOnce()) {
    let Err(payload) = panic::catch_unwind(AssertUnwindSafe(act)) else {
        return;
    };
    if let Some(message) = panics::message_of(payload) {
        fail(message);
    }
}

/// A run that has ended.
pub(super) struct Ended {
    pub(super) run: Run,
    /// Whether tasks were left where they are, perhaps in the middle of a panic: the thread then
    /// counts as panicking for ever.
    pub(super) is_thread_spent: bool,
}

impl Baton {
    pub(super) fn new(plan: Plan) -> Arc<Self> {
        let clock = Arc::new(SimClock::new());
        panics::listen();
        Arc::new(Self {
            crew: Mutex::new(Crew {
                state: State::new(plan, Arc::clone(&clock)),
                jobs: Vec::with_capacity(8),
            }),
            clock,
        })
    }

    pub(super) fn clock(&self) -> &Arc<SimClock> {
        &self.clock
    }

    /// Runs the body as task zero, and all that it spawns, on this thread, until all have ended or
    /// the run has failed.
    pub(super) fn run(self: &Arc<Self>, body: Job, idle: &mut Idle) -> Ended {
        let mut fibers: Vec<Option<Fiber>> = Vec::with_capacity(8);
        RUN.set(Some(Arc::clone(self)));
        let mut next = Next::Task(self.add("main", Role::Task, body));
        while let Next::Task(id) = next {
            while fibers.len() <= id {
                fibers.push(None);
            }
            let fiber = fibers[id].get_or_insert_with(|| self.begin(id, idle));
            ME.set(Some(id));
            next = fiber.resume();
            ME.set(None);
            if fiber.has_ended()
                && let Some(fiber) = fibers[id].take()
            {
                idle.put(fiber);
            }
        }
        RUN.set(None);
        Ended {
            run: Run::new(self.crew().state.take_outcome()),
            is_thread_spent: fibers.iter().any(Option::is_some),
        }
    }

    pub(super) fn spawn(&self, name: &str, role: Role, task: Job) {
        let me = me();
        self.add(name, role, task);
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
            let Some(next) = self.crew().state.block_to_join(me) else {
                return;
            };
            let _: Waited = self.pass(me, next);
        }
    }

    fn add(&self, name: &str, role: Role, task: Job) -> TaskId {
        let mut crew = self.crew();
        crew.jobs.push(Some(task));
        crew.state.add(Arc::from(name), role)
    }

    fn begin(self: &Arc<Self>, id: TaskId, idle: &mut Idle) -> Fiber {
        let task = self.crew().jobs[id].take();
        let task = task.expect("a task begins once");
        let baton = Arc::clone(self);
        idle.begin(move || baton.run_task(id, task))
    }

    /// Runs a task that has its first turn; says who goes on afterwards.
    fn run_task(self: &Arc<Self>, me: TaskId, task: Job) -> Next {
        let installed = scheduler::install(Arc::clone(self) as Arc<dyn Scheduler>);
        // The task is dropped inside, also when it is not to run: its destructors may take locks.
        let result = panic::catch_unwind(AssertUnwindSafe(|| {
            let task = task;
            self.unwind_if_over();
            task();
        }));
        let message = result.err().and_then(panics::message_of);
        drop(installed);
        event::check_none_held();
        self.crew().state.ended(me, message)
    }

    /// `me` is at a point; returns when it has its turn again.
    fn reach(&self, me: TaskId, point: Point) {
        let mut crew = self.crew();
        if crew.state.is_over() {
            drop(crew);
            return self.unwind_if_over();
        }
        crew.state.note_panic(me, panics::under_way());
        let next = crew.state.point(me, point);
        drop(crew);
        if next != Next::Task(me) {
            let _: Waited = self.pass(me, next);
        }
    }

    /// Gives the turn to `next`, and returns when it is back: never, if the run has failed.
    fn pass(&self, me: TaskId, next: Next) -> Waited {
        if next != Next::Task(me) {
            fiber::suspend(next);
        }
        let crew = self.crew();
        if crew.state.is_over() {
            drop(crew);
            self.unwind_if_over();
            return Waited::Done;
        }
        crew.state.resumed(me)
    }

    /// Unwinds a daemon of a run that is over. One that unwinds already goes on.
    fn unwind_if_over(&self) {
        if self.crew().state.is_over() && !panics::may_be_under_way() {
            panics::unwind();
        }
    }

    fn crew(&self) -> MutexGuard<'_, Crew> {
        self.crew.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scheduler for Baton {
    fn point(&self, point: Point) {
        self.reach(me(), point);
    }

    fn block(&self, point: Point, timeout: Option<Duration>) -> Waited {
        let me = me();
        let mut crew = self.crew();
        let next = if crew.state.is_over() {
            drop(crew);
            self.unwind_if_over();
            // Waits in a destructor: the others may have to unwind first.
            self.crew().state.yield_unwinding(me)
        } else if waits_where_none_may(point) {
            let next = crew.state.fail_asleep(me, point);
            drop(crew);
            next
        } else {
            crew.state.note_panic(me, panics::under_way());
            let timeout_ns = timeout.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
            let next = crew.state.block(me, point, timeout_ns);
            drop(crew);
            next
        };
        self.pass(me, next)
    }

    fn wake(&self, addr: usize, wake: Wake) {
        let mut crew = self.crew();
        if !crew.state.is_over() {
            crew.state.wake(me(), addr, wake);
        }
    }
}

/// Whether a callback that may not block is about to sleep. Locks are the validator's affair.
fn waits_where_none_may(point: Point) -> bool {
    let is_sleep = matches!(
        point.kind,
        PointKind::Wait | PointKind::Sleep | PointKind::Park
    );
    is_sleep && lockdep::context::current().is_non_block()
}

fn me() -> TaskId {
    ME.get().expect("only a task of a run may spawn and join")
}
