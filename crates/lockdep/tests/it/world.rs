//! Where tasks run: plain threads, or a scheduler that draws lots at every point.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lockdep::Scheduler;
use lockdep::scheduler::{self, Point, PointKind, Wake};
use lockdep::sync::{Condvar, Mutex, Waited};

/// What one thread of a test does.
pub(crate) type Task<'a> = Box<dyn FnOnce() + Send + 'a>;

/// How many seeds a test runs under.
const NR_SEEDS: u64 = if cfg!(miri) { 1 } else { 60 };
/// How often a test runs on threads.
const NR_THREAD_ROUNDS: u64 = if cfg!(miri) { 1 } else { 20 };

/// Where the tasks of a test run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum World {
    /// Threads that block in the operating system.
    Threads,
    /// Threads of which one at a time runs, as this seed has it.
    Scheduled { seed: u64 },
}

/// What came of a run under a scheduler.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Run {
    /// The tasks waited for each other, and were unwound.
    pub(crate) is_stuck: bool,
    /// The virtual time at the end.
    pub(crate) now: Duration,
    /// Each point, with the task that passed it and its address numbered by first appearance.
    pub(crate) trace: Vec<(usize, PointKind, usize)>,
}

/// Runs `test` in every world.
#[track_caller]
pub(crate) fn everywhere(test: impl Fn(World)) {
    (0..NR_THREAD_ROUNDS).for_each(|_| test(World::Threads));
    for seed in seeds() {
        test(World::Scheduled { seed });
    }
}

/// The seeds that tests run under.
pub(crate) fn seeds() -> impl Iterator<Item = u64> {
    0..NR_SEEDS
}

/// Whether a seed shows something: for canaries, which look until they see it.
pub(crate) fn some_seed(shows: impl Fn(u64) -> bool) -> bool {
    (0..60).any(shows)
}

impl World {
    /// Runs the tasks side by side until all have ended; a stuck run fails the test.
    #[track_caller]
    pub(crate) fn run(self, tasks: Vec<Task<'_>>) {
        match self {
            Self::Threads => thread::scope(|scope| {
                tasks.into_iter().for_each(|task| drop(scope.spawn(task)));
            }),
            Self::Scheduled { seed } => {
                assert!(!run_scheduled(seed, tasks).is_stuck, "stuck in {self:?}");
            }
        }
    }
}

/// Runs the tasks under a scheduler until all have ended or none can go on.
pub(crate) fn run_scheduled(seed: u64, tasks: Vec<Task<'_>>) -> Run {
    let baton = Arc::new(Baton::new(seed, tasks.len()));
    thread::scope(|scope| {
        for (me, task) in tasks.into_iter().enumerate() {
            let seat = Arc::new(Seat {
                me,
                baton: Arc::clone(&baton),
            });
            scope.spawn(move || seat.run(task));
        }
    });
    let mut state = baton.state.lock();
    Run {
        is_stuck: state.is_stuck,
        now: state.now,
        trace: std::mem::take(&mut state.trace),
    }
}

/// What a stuck task unwinds with.
struct Stuck;

/// One task's view of the baton; what it installs.
struct Seat {
    me: usize,
    baton: Arc<Baton>,
}

/// Hands the right to run from task to task; takes its own locks from the crate under test.
struct Baton {
    state: Mutex<State>,
    turn: Condvar,
}

struct State {
    random: u64,
    tasks: Vec<Status>,
    running: usize,
    now: Duration,
    is_stuck: bool,
    addrs: Vec<usize>,
    trace: Vec<(usize, PointKind, usize)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Ready(Waited),
    Blocked {
        addr: usize,
        until: Option<Duration>,
    },
    Ended,
}

impl Seat {
    fn run(self: Arc<Self>, task: Task<'_>) {
        let _: Waited = self.pass_on(|_| ());
        let installed = scheduler::install(Arc::clone(&self) as Arc<dyn Scheduler>);
        let result = panic::catch_unwind(AssertUnwindSafe(task));
        drop(installed);
        let mut state = self.baton.state.lock();
        state.tasks[self.me] = Status::Ended;
        state.choose(None);
        self.baton.turn.notify_all();
        drop(state);
        match result {
            Err(payload) if !payload.is::<Stuck>() => panic::resume_unwind(payload),
            _ => (),
        }
    }

    /// Changes the state, chooses who runs, and waits to be chosen.
    fn pass_on(&self, change: impl FnOnce(&mut State)) -> Waited {
        let mut state = self.baton.state.lock();
        change(&mut state);
        self.baton.turn.notify_all();
        let state = self
            .baton
            .turn
            .wait_while(state, |state| !state.may_run(self.me));
        let is_stuck = state.is_stuck;
        let status = state.tasks[self.me];
        drop(state);
        if is_stuck && !thread::panicking() {
            panic::resume_unwind(Box::new(Stuck));
        }
        match status {
            Status::Ready(waited) => waited,
            _ => Waited::Done,
        }
    }
}

impl Scheduler for Seat {
    fn point(&self, point: Point) {
        let _: Waited = self.pass_on(|state| {
            state.record(self.me, point);
            let not = (point.kind == PointKind::Spin).then_some(self.me);
            state.choose(not);
        });
    }

    fn block(&self, point: Point, timeout: Option<Duration>) -> Waited {
        self.pass_on(|state| {
            state.record(self.me, point);
            let until = timeout.and_then(|timeout| state.now.checked_add(timeout));
            state.tasks[self.me] = Status::Blocked {
                addr: point.addr,
                until,
            };
            state.choose(None);
        })
    }

    fn wake(&self, addr: usize, wake: Wake) {
        let mut state = self.baton.state.lock();
        let mut blocked: Vec<usize> = (0..state.tasks.len())
            .filter(
                |&task| matches!(state.tasks[task], Status::Blocked { addr: at, .. } if at == addr),
            )
            .collect();
        if wake == Wake::One && !blocked.is_empty() {
            let lot = state.draw(blocked.len());
            blocked = vec![blocked[lot]];
        }
        for task in blocked {
            state.tasks[task] = Status::Ready(Waited::Done);
        }
    }
}

impl Baton {
    fn new(seed: u64, nr_tasks: usize) -> Self {
        let mut state = State {
            random: seed,
            tasks: vec![Status::Ready(Waited::Done); nr_tasks],
            running: 0,
            now: Duration::ZERO,
            is_stuck: false,
            addrs: Vec::new(),
            trace: Vec::new(),
        };
        state.choose(None);
        Self {
            state: Mutex::new("baton", state),
            turn: Condvar::new("turn"),
        }
    }
}

impl State {
    fn may_run(&self, me: usize) -> bool {
        self.is_stuck || self.running == me
    }

    /// Chooses who runs next, other than `not`; lets time pass if nobody is ready.
    fn choose(&mut self, not: Option<usize>) {
        let ready = |state: &Self| -> Vec<usize> {
            (0..state.tasks.len())
                .filter(|&task| matches!(state.tasks[task], Status::Ready(_)) && Some(task) != not)
                .collect()
        };
        let mut candidates = ready(self);
        if candidates.is_empty() && self.pass_time() {
            candidates = ready(self);
        }
        if !candidates.is_empty() {
            let lot = self.draw(candidates.len());
            self.running = candidates[lot];
        } else if self.tasks.iter().any(|&task| task != Status::Ended) {
            self.is_stuck = true;
        }
    }

    /// Goes to the earliest timeout; false if there is none.
    fn pass_time(&mut self) -> bool {
        let until = |status: &Status| match *status {
            Status::Blocked { until, .. } => until,
            _ => None,
        };
        let Some(earliest) = self.tasks.iter().filter_map(until).min() else {
            return false;
        };
        self.now = earliest;
        for task in &mut self.tasks {
            if until(task) == Some(earliest) {
                *task = Status::Ready(Waited::TimedOut);
            }
        }
        true
    }

    /// A number below `bound`.
    fn draw(&mut self, bound: usize) -> usize {
        // A Weyl sequence through a multiply-xorshift: any mixing will do here.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 31)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        ((mixed ^ (mixed >> 32)) % bound as u64) as usize
    }

    fn record(&mut self, me: usize, point: Point) {
        let number = self
            .addrs
            .iter()
            .position(|&addr| addr == point.addr)
            .unwrap_or_else(|| {
                self.addrs.push(point.addr);
                self.addrs.len() - 1
            });
        self.trace.push((me, point.kind, number));
    }
}
