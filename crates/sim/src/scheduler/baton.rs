//! Hands the right to run from thread to thread.
//!
//! `turn` says whose it is. A thread that waits for its turn yields for a moment and then sleeps;
//! whoever hands over writes `turn` first and wakes then, and a wake-up is remembered by the
//! thread it is for, so none is lost.
//!
//! A switch of threads costs more than all else in a run, so there are as few as can be. Who
//! chooses itself just goes on. The body runs on the thread that makes the runs. A task gets a
//! thread when its first turn comes: the one of a task that has just ended, or of one that waits
//! for all others, whose stack is free until then.
//!
//! The state is behind a lock of `std`: it decides for the locks of `lockdep::sync`, and a task
//! that spawns or joins comes in while its own scheduler is installed.

use super::course::Course;
use super::panics;
use super::report::{End, Run};
use super::state::{Next, Plan, Role, State, TaskId};
use super::worker::{self, Home, Job};
use crate::clock::SimClock;
use core::cell::Cell;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use lockdep::event;
use lockdep::scheduler::{self, Point, PointKind, Wake};
use lockdep::sync::Waited;
use lockdep::{Scheduler, TaskState};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};

/// Looks at the turn before a thread sleeps, each followed by a yield. The threads of a run share
/// a processor, so a yield lets whoever has the turn go on, and often it comes back in one step.
const YIELDS: u32 = 1;

/// A turn that is no task's: the run has passed, and the driver goes on.
const OVER: usize = usize::MAX;

/// A turn that is nobody's: the run has failed, and its threads sleep for ever.
const NOBODY: usize = usize::MAX - 1;

pub(super) struct Baton {
    turn: AtomicUsize,
    crew: Mutex<Crew>,
    clock: Arc<SimClock>,
    /// Who hears of a failure.
    course: Arc<Course>,
}

/// The tasks, as the decisions see them and as threads.
struct Crew {
    state: State,
    members: Vec<Member>,
    /// Who made the run and waits for its end.
    driver: Thread,
}

/// How far a task is.
enum Member {
    /// It has had no turn yet.
    Fresh(Role, Job),
    /// It runs on this thread, or did.
    Started(Thread),
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
    pub(super) fn new(plan: Plan, course: Arc<Course>) -> Arc<Self> {
        let clock = Arc::new(SimClock::new());
        panics::listen();
        Arc::new(Self {
            turn: AtomicUsize::new(OVER),
            crew: Mutex::new(Crew {
                state: State::new(plan, Arc::clone(&clock)),
                members: Vec::with_capacity(8),
                driver: thread::current(),
            }),
            clock,
            course,
        })
    }

    pub(super) fn clock(&self) -> &Arc<SimClock> {
        &self.clock
    }

    /// Runs the body as task zero, on this thread, and returns at the end of the run. It does not
    /// return when the run fails while this thread is in the middle of a task: the course hears.
    pub(super) fn run(self: &Arc<Self>, body: Job) -> Run {
        let id = self.add("main", Role::Task, body);
        let next = self.run_fresh(Next::Task(id));
        if let Next::Task(_) = next {
            self.hand_over(next);
            self.wait_for_turn(OVER);
        }
        self.take_run()
    }

    pub(super) fn spawn(self: &Arc<Self>, name: &str, role: Role, task: Job) {
        let me = me();
        self.add(name, role, task);
        let point = Point {
            kind: PointKind::User,
            class: "spawn",
            addr: 0,
        };
        self.reach(me, point);
    }

    pub(super) fn join_all(self: &Arc<Self>) {
        let me = me();
        loop {
            let Some(next) = self.crew().state.block_to_join(me) else {
                return;
            };
            // Until all others have ended this thread has nothing better to do than to run them.
            let next = if thread::panicking() {
                next
            } else {
                self.run_fresh(next)
            };
            let _: Waited = self.pass(me, next);
        }
    }

    fn add(&self, name: &str, role: Role, task: Job) -> TaskId {
        let mut crew = self.crew();
        crew.members.push(Member::Fresh(role, task));
        crew.state.add(Arc::from(name), role)
    }

    /// Runs `next` on this thread if it has not begun, and so on; says who is next then. A daemon
    /// may never end, and this thread may be wanted again: it gets one of its own.
    fn run_fresh(self: &Arc<Self>, mut next: Next) -> Next {
        while let Next::Task(id) = next
            && let Some(task) = self.take_fresh(id, Role::Task)
        {
            next = self.run_task(id, task);
        }
        next
    }

    fn take_fresh(&self, id: TaskId, wanted: Role) -> Option<Job> {
        let mut crew = self.crew();
        let member = &mut crew.members[id];
        match member {
            Member::Fresh(role, _) if *role == wanted => {}
            _ => return None,
        }
        match core::mem::replace(member, Member::Started(thread::current())) {
            Member::Fresh(_, task) => Some(task),
            Member::Started(_) => None,
        }
    }

    /// Runs a task that has its turn; says who has it afterwards.
    fn run_task(self: &Arc<Self>, me: TaskId, task: Job) -> Next {
        let seat = Seat {
            me,
            baton: Arc::clone(self),
        };
        let outer = ME.replace(Some(me));
        // What this thread was in the middle of, when it waits for all others, is another task's.
        let mut other = TaskState::new();
        other.exchange();
        let installed = scheduler::install(Arc::new(seat));
        // The task is dropped inside, also when it is not to run: its destructors may take locks.
        let result = panic::catch_unwind(AssertUnwindSafe(|| {
            let task = task;
            self.unwind_if_over();
            task();
        }));
        let message = result.err().and_then(panics::message_of);
        drop(installed);
        event::check_none_held();
        other.exchange();
        ME.set(outer);
        self.crew().state.ended(me, message)
    }

    /// `me` is at a point; returns when it has its turn again.
    fn reach(self: &Arc<Self>, me: TaskId, point: Point) {
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
    fn pass(self: &Arc<Self>, me: TaskId, next: Next) -> Waited {
        if next != Next::Task(me) {
            self.hand_over(next);
            self.wait_for_turn(me);
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
        if self.crew().state.is_over() && !thread::panicking() {
            panics::unwind();
        }
    }

    fn hand_over(self: &Arc<Self>, next: Next) {
        let crew = self.crew();
        let (turn, thread) = match next {
            Next::Nobody if crew.state.end() == Some(&End::Passed) => (OVER, crew.driver.clone()),
            Next::Nobody => {
                drop(crew);
                // Relaxed: nobody acts on it.
                self.turn.store(NOBODY, Ordering::Relaxed);
                return self.course.report(Some(self.take_run()));
            }
            Next::Task(id) => match &crew.members[id] {
                Member::Started(thread) => (id, thread.clone()),
                Member::Fresh(..) => {
                    drop(crew);
                    return self.start(id);
                }
            },
        };
        drop(crew);
        // Release: pairs with the Acquire in `wait_for_turn`.
        self.turn.store(turn, Ordering::Release);
        thread.unpark();
    }

    /// Starts a task that has its turn on a thread that has nothing to do.
    fn start(self: &Arc<Self>, id: TaskId) {
        // Relaxed: nobody waits for it. The others have to see that it is not theirs, and the one
        // that hands over is the only one that could.
        self.turn.store(id, Ordering::Relaxed);
        let baton = Arc::clone(self);
        let work = move |home: &Home| {
            let fresh = |role| baton.take_fresh(id, role);
            let task = fresh(Role::Task).or_else(|| fresh(Role::Daemon));
            let task = task.expect("a task is started once");
            let next = baton.run_task(id, task);
            let next = baton.run_fresh(next);
            // Whoever comes next may use this thread: it goes home before the baton goes on.
            home.enter();
            baton.hand_over(next);
        };
        worker::start(self.course.cpu, Box::new(work));
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

    fn take_run(&self) -> Run {
        Run::new(self.crew().state.take_outcome())
    }

    fn crew(&self) -> MutexGuard<'_, Crew> {
        self.crew.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scheduler for Seat {
    fn point(&self, point: Point) {
        self.baton.reach(self.me, point);
    }

    fn block(&self, point: Point, timeout: Option<Duration>) -> Waited {
        let mut crew = self.baton.crew();
        let next = if crew.state.is_over() {
            drop(crew);
            self.baton.unwind_if_over();
            // Waits in a destructor: the others may have to unwind first.
            self.baton.crew().state.yield_unwinding(self.me)
        } else if waits_where_none_may(point) {
            let next = crew.state.fail_asleep(self.me, point);
            drop(crew);
            next
        } else {
            crew.state.note_panic(self.me, panics::under_way());
            let timeout_ns = timeout.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
            let next = crew.state.block(self.me, point, timeout_ns);
            drop(crew);
            next
        };
        self.baton.pass(self.me, next)
    }

    fn wake(&self, addr: usize, wake: Wake) {
        let mut crew = self.baton.crew();
        if !crew.state.is_over() {
            crew.state.wake(self.me, addr, wake);
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
