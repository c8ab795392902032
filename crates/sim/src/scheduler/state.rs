//! Who can run, and who does: the decisions, without threads and locks.

use super::report::{End, Wait};
use super::timeline::{Event, Objects, Step};
use super::{Options, Strategy, Timeline};
use crate::clock::SimClock;
use crate::rng::Rng;
use lockdep::scheduler::{Point, PointKind, Wake};
use lockdep::sync::Waited;
use pinless_mm::env::Clock;
use std::mem;
use std::sync::Arc;

/// Virtual nanoseconds that a step takes.
const STEP_NS: u64 = 20;

/// Waits of daemons inside destructors, after which those that are left are abandoned.
const UNWINDING_MAX: u32 = 1_000;

/// What those are blocked at who wait for the other tasks. Odd, so it is no object's address.
const JOIN: usize = usize::MAX;

/// The number of a task: the body of the run is number zero.
pub(super) type TaskId = usize;

/// Whether the run waits for a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// It does.
    Task,
    /// It does not.
    Daemon,
}

pub(super) struct State {
    options: Options,
    rng: Rng,
    /// The baton goes on at one point in this many.
    switch_one_in: u64,
    tasks: Vec<Task>,
    clock: Arc<SimClock>,
    /// No deadline is earlier; there may be none at it, if its task was woken before.
    deadline_min_ns: u64,
    nr_steps: u64,
    nr_unwinding: u32,
    /// Who was chosen, wherever there was a choice.
    schedule: Vec<u16>,
    nr_replayed: usize,
    digest: u64,
    steps: Vec<Step>,
    objects: Objects,
    /// The choice that could not be made again when somebody was to be woken.
    diverged: Option<usize>,
    end: Option<End>,
}

struct Task {
    name: Arc<str>,
    role: Role,
    status: Status,
    /// Where it was last seen.
    at: Point,
    /// The lock that it is taking: held when the task is next seen at a point.
    pending: Option<(usize, &'static str)>,
    held: Vec<(usize, &'static str)>,
    /// The lock that it released since it was last seen: a wait on a condition variable takes it
    /// again at the end, without a point.
    released: Option<(usize, &'static str)>,
    /// What its panic said, if it was unwinding when it was last seen.
    panic: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Status {
    Ready(Waited),
    Blocked { addr: usize, until_ns: Option<u64> },
    Ended,
}

/// Who gets the baton.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    Task(TaskId),
    /// Nobody: all have ended, or the run has failed.
    Nobody,
}

/// What is left of a run.
pub(super) struct Outcome {
    pub(super) end: End,
    pub(super) nr_steps: u64,
    pub(super) now_ns: u64,
    pub(super) schedule: Vec<u16>,
    pub(super) digest: u64,
    pub(super) steps: Vec<Step>,
    pub(super) task_names: Vec<Arc<str>>,
}

impl State {
    pub(super) fn new(options: Options, clock: Arc<SimClock>) -> Self {
        let mut rng = Rng::new(options.seed);
        let switch_one_in = match options.strategy {
            Strategy::Drawn => [1, 2, 4, 16, 64][rng.below(5) as usize],
            Strategy::SwitchOneIn(one_in) => u64::from(one_in.max(1)),
        };
        Self {
            options,
            rng,
            switch_one_in,
            tasks: Vec::with_capacity(8),
            clock,
            deadline_min_ns: u64::MAX,
            nr_steps: 0,
            nr_unwinding: 0,
            schedule: Vec::new(),
            nr_replayed: 0,
            digest: 0xcbf2_9ce4_8422_2325,
            steps: Vec::new(),
            objects: Objects::default(),
            diverged: None,
            end: None,
        }
    }

    /// Adds a task, ready to run.
    pub(super) fn add(&mut self, name: Arc<str>, role: Role) -> TaskId {
        let id = self.tasks.len();
        assert!(
            id < usize::from(u16::MAX),
            "a schedule names tasks by 16 bits"
        );
        self.tasks.push(Task {
            name,
            role,
            status: Status::Ready(Waited::Done),
            at: Point {
                kind: PointKind::User,
                class: "start",
                addr: 0,
            },
            pending: None,
            held: Vec::new(),
            released: None,
            panic: None,
        });
        id
    }

    /// Whether the daemons that are left are to be unwound.
    pub(super) fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// `me` is at a point; says who goes on.
    pub(super) fn point(&mut self, me: TaskId, point: Point) -> Next {
        self.record(me, Event::Point(point.kind), point);
        let task = &mut self.tasks[me];
        task.at = point;
        task.released = None;
        if let Some(lock) = task.pending.take() {
            task.held.push(lock);
        }
        if matches!(
            point.kind,
            PointKind::Lock | PointKind::Read | PointKind::Write
        ) {
            task.pending = Some((point.addr, point.class));
        }
        let not = (point.kind == PointKind::Spin).then_some(me);
        self.choose(me, not)
    }

    /// `me` cannot go on until it is woken or `timeout_ns` have passed; says who goes on.
    pub(super) fn block(&mut self, me: TaskId, point: Point, timeout_ns: Option<u64>) -> Next {
        self.record(me, Event::Block(point.kind), point);
        let until_ns = timeout_ns.and_then(|ns| self.now_ns().checked_add(ns));
        self.deadline_min_ns = self.deadline_min_ns.min(until_ns.unwrap_or(u64::MAX));
        let task = &mut self.tasks[me];
        task.at = point;
        if point.kind == PointKind::Wait && task.pending.is_none() {
            task.pending = task.released.take();
        }
        task.status = Status::Blocked {
            addr: point.addr,
            until_ns,
        };
        self.choose(me, None)
    }

    /// `me` waits until all other tasks have ended; `None` if they have.
    pub(super) fn block_to_join(&mut self, me: TaskId) -> Option<Next> {
        let others = self.tasks.iter().enumerate().filter(|(id, _)| *id != me);
        if others.into_iter().all(|(_, task)| task.is_out()) {
            return None;
        }
        let point = Point {
            kind: PointKind::Wait,
            class: "the other tasks",
            addr: JOIN,
        };
        Some(self.block(me, point, None))
    }

    /// Those blocked at `addr` can go on. `me` has just released it, if it is a lock.
    pub(super) fn wake(&mut self, me: TaskId, addr: usize, wake: Wake) {
        let task = &mut self.tasks[me];
        if task.pending.is_some_and(|(pending, _)| pending == addr) {
            task.released = task.pending.take();
        } else if let Some(nth) = task.held.iter().rposition(|&(held, _)| held == addr) {
            task.released = Some(task.held.swap_remove(nth));
        }
        let is_blocked = |task: &Task| task.is_blocked_at(addr);
        match wake {
            Wake::All => {
                for task in self.tasks.iter_mut().filter(|task| is_blocked(task)) {
                    task.status = Status::Ready(Waited::Done);
                }
            }
            Wake::One => {
                let nr = self.tasks.iter().filter(|task| is_blocked(task)).count();
                if let Some(chosen) = self.draw_among(nr, is_blocked) {
                    self.tasks[chosen].status = Status::Ready(Waited::Done);
                }
            }
        }
    }

    /// `me` runs again: how its wait ended.
    pub(super) fn resumed(&self, me: TaskId) -> Waited {
        match self.tasks[me].status {
            Status::Ready(waited) => waited,
            status => unreachable!("task {me} runs and is {status:?}"),
        }
    }

    /// `me` has ended, with the message of its panic; says who goes on.
    pub(super) fn ended(&mut self, me: TaskId, panic: Option<String>) -> Next {
        let task = &mut self.tasks[me];
        let point = Point {
            class: "end",
            ..task.at
        };
        task.status = Status::Ended;
        self.record(me, Event::End, point);
        if let (Some(message), None | Some(End::Passed)) = (panic, &self.end) {
            let task = self.tasks[me].name.to_string();
            return self.fail(End::Panicked { task, message });
        }
        if self.end.is_none() {
            if self.tasks.iter().all(Task::is_out) {
                self.pass();
            } else {
                self.wake(me, JOIN, Wake::All);
            }
        }
        self.choose(me, Some(me))
    }

    /// A daemon that is being unwound waits: lets the others unwind.
    pub(super) fn yield_unwinding(&mut self, me: TaskId) -> Next {
        self.nr_unwinding += 1;
        self.next_to_unwind(me)
    }

    /// Notes whether `me` unwinds for a panic: one that then waits for ever has failed for that.
    pub(super) fn note_panic(&mut self, me: TaskId, panic: Option<String>) {
        self.tasks[me].panic = panic;
    }

    fn into_outcome(self) -> Outcome {
        Outcome {
            end: self.end.expect("a run that is over has an end"),
            nr_steps: self.nr_steps,
            now_ns: self.clock.now_ns(),
            schedule: self.schedule,
            digest: self.digest,
            steps: self.steps,
            task_names: self.tasks.into_iter().map(|task| task.name).collect(),
        }
    }

    /// Takes what a report needs. Threads of a run that has failed may still hold the state.
    pub(super) fn take_outcome(&mut self) -> Outcome {
        let options = self.options.clone();
        let clock = Arc::new(SimClock::new());
        mem::replace(self, Self::new(options, clock)).into_outcome()
    }

    fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    fn record(&mut self, me: TaskId, event: Event, point: Point) {
        self.nr_steps += 1;
        let now_ns = self.now_ns() + STEP_NS;
        self.clock.set_ns(now_ns);
        for part in [me as u64, event.code(), point.class.len() as u64] {
            self.digest = (self.digest ^ part).wrapping_mul(0x0100_0000_01b3);
        }
        for &byte in point.class.as_bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.options.timeline == Timeline::Kept {
            let object = self.objects.number(point.class, point.addr);
            self.steps.push(Step {
                task: me as u16,
                event,
                class: point.class,
                object,
                at_ns: now_ns,
            });
        }
    }

    fn choose(&mut self, me: TaskId, not: Option<TaskId>) -> Next {
        if self.end.is_some() {
            return self.next_to_unwind(me);
        }
        if let Some(choice) = self.diverged {
            return self.fail(End::Diverged { choice });
        }
        if self.nr_steps >= self.options.steps_max {
            let waits = self.waits();
            return self.fail_stuck(End::StepLimit { waits });
        }
        if self.now_ns() >= self.deadline_min_ns {
            self.expire();
        }
        loop {
            let nr_ready = self.nr_ready(not);
            if nr_ready > 0 {
                return self.choose_among(me, not, nr_ready);
            }
            if let Some(first_ns) = self.tasks.iter().filter_map(Task::deadline_ns).min() {
                // Everybody waits: time goes to the first deadline.
                self.clock.set_ns(first_ns.max(self.now_ns()));
                self.expire();
                continue;
            }
            if let Some(me) = not.filter(|&me| self.tasks[me].is_ready()) {
                // The only one who could make progress spins; time passes at least.
                return Next::Task(me);
            }
            let waits = self.waits();
            return self.fail_stuck(End::Deadlock { waits });
        }
    }

    fn nr_ready(&self, not: Option<TaskId>) -> usize {
        let ready = |(id, task): (TaskId, &Task)| task.is_ready() && Some(id) != not;
        self.tasks
            .iter()
            .enumerate()
            .filter(|&task| ready(task))
            .count()
    }

    fn choose_among(&mut self, me: TaskId, not: Option<TaskId>, nr_ready: usize) -> Next {
        let ready = |id: TaskId, task: &Task| task.is_ready() && Some(id) != not;
        if nr_ready == 1 {
            let only = self
                .tasks
                .iter()
                .enumerate()
                .find(|&(id, task)| ready(id, task));
            return Next::Task(only.expect("one was counted").0);
        }
        if let Some(chosen) = self.replayed() {
            if !self
                .tasks
                .get(chosen)
                .is_some_and(|task| ready(chosen, task))
            {
                return self.fail(End::Diverged {
                    choice: self.nr_replayed - 1,
                });
            }
            self.schedule.push(chosen as u16);
            return Next::Task(chosen);
        }
        let stays = ready(me, &self.tasks[me])
            && self.switch_one_in > 1
            && !self.rng.one_in(self.switch_one_in);
        let chosen = if stays {
            me
        } else {
            let lot = self.rng.below(nr_ready as u64) as usize;
            let nth = |(id, task): &(TaskId, &Task)| ready(*id, task);
            let drawn = self.tasks.iter().enumerate().filter(nth).nth(lot);
            drawn.expect("the lot is below their number").0
        };
        self.schedule.push(chosen as u16);
        Next::Task(chosen)
    }

    /// Draws one of the `nr` tasks for which `is_candidate` holds; `None` if there is none, or if
    /// the run was replayed and has diverged.
    fn draw_among(&mut self, nr: usize, is_candidate: impl Fn(&Task) -> bool) -> Option<TaskId> {
        if nr <= 1 {
            return self.tasks.iter().position(is_candidate);
        }
        let chosen = match self.replayed() {
            Some(chosen) if self.tasks.get(chosen).is_some_and(&is_candidate) => chosen,
            Some(_) => {
                self.diverged = Some(self.nr_replayed - 1);
                return None;
            }
            None => {
                let lot = self.rng.below(nr as u64) as usize;
                let nth = |(_, task): &(TaskId, &Task)| is_candidate(task);
                let drawn = self.tasks.iter().enumerate().filter(nth).nth(lot);
                drawn.expect("the lot is below their number").0
            }
        };
        self.schedule.push(chosen as u16);
        Some(chosen)
    }

    /// The next choice of the run that is replayed.
    fn replayed(&mut self) -> Option<TaskId> {
        let choices = self.options.replay.as_ref()?;
        let chosen = choices.get(self.nr_replayed).copied()?;
        self.nr_replayed += 1;
        Some(usize::from(chosen))
    }

    /// Ends the waits whose deadline has come.
    fn expire(&mut self) {
        let now_ns = self.now_ns();
        self.deadline_min_ns = u64::MAX;
        for task in &mut self.tasks {
            match task.deadline_ns() {
                Some(until_ns) if until_ns <= now_ns => {
                    task.status = Status::Ready(Waited::TimedOut);
                }
                Some(until_ns) => self.deadline_min_ns = self.deadline_min_ns.min(until_ns),
                None => {}
            }
        }
    }

    /// The run has passed: the daemons that are left are unwound.
    fn pass(&mut self) {
        self.end = Some(End::Passed);
        for task in &mut self.tasks {
            if task.status != Status::Ended {
                task.status = Status::Ready(Waited::Done);
            }
        }
    }

    /// The run has failed. Nobody goes on: destructors of a state that is broken, or that waits
    /// for ever, would only hide what happened.
    fn fail(&mut self, end: End) -> Next {
        self.end = Some(end);
        Next::Nobody
    }

    /// Nobody gets anywhere. If a task waits while it unwinds, its panic came first.
    fn fail_stuck(&mut self, end: End) -> Next {
        let panicked = self.tasks.iter().find_map(|task| {
            let message = task.panic.clone()?;
            let task = task.name.to_string();
            Some(End::Panicked { task, message })
        });
        self.fail(panicked.unwrap_or(end))
    }

    /// The next one after `me`, round and round, that has not ended.
    fn next_to_unwind(&self, me: TaskId) -> Next {
        let nr = self.tasks.len();
        let mut others = (1..=nr).map(|step| (me + step) % nr);
        match others.find(|&id| self.tasks[id].status != Status::Ended) {
            Some(id) if self.nr_unwinding < UNWINDING_MAX => Next::Task(id),
            _ => Next::Nobody,
        }
    }

    /// Where everybody is.
    fn waits(&mut self) -> Vec<Wait> {
        let mut waits = Vec::new();
        for task in &self.tasks {
            if task.status == Status::Ended {
                continue;
            }
            let mut named = |addr, class| {
                let object = self.objects.number(class, addr);
                format!("`{class}` #{object}")
            };
            waits.push(Wait {
                task: task.name.to_string(),
                is_daemon: task.role == Role::Daemon,
                is_blocked: !task.is_ready(),
                kind: task.at.kind,
                at: match task.at.addr {
                    0 | JOIN => format!("`{}`", task.at.class),
                    addr => named(addr, task.at.class),
                },
                holds: task
                    .held
                    .iter()
                    .map(|&(addr, class)| named(addr, class))
                    .collect(),
            });
        }
        waits
    }
}

impl Task {
    fn is_ready(&self) -> bool {
        matches!(self.status, Status::Ready(_))
    }

    fn deadline_ns(&self) -> Option<u64> {
        match self.status {
            Status::Blocked { until_ns, .. } => until_ns,
            _ => None,
        }
    }

    fn is_blocked_at(&self, addr: usize) -> bool {
        matches!(self.status, Status::Blocked { addr: at, .. } if at == addr)
    }

    /// Whether nobody waits for it.
    fn is_out(&self) -> bool {
        self.role == Role::Daemon || self.status == Status::Ended
    }
}
