//! Who can run: what is known of the tasks, without threads and locks.

use super::report::{End, Wait};
use super::segments::{Script, Segment};
use super::strategy::{Choice, Picker};
use super::timeline::{Event, Objects, Step};
use super::{Options, Strategy, Timeline};
use crate::clock::SimClock;
use crate::rng::Rng;
use lockdep::scheduler::{Point, PointKind, Wake};
use lockdep::sync::Waited;
use pinless_mm::env::Clock;
use std::mem;
use std::sync::Arc;

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

/// What a run is made from.
pub(super) struct Plan {
    pub(super) options: Options,
    /// What is followed in place of the strategy.
    pub(super) script: Option<Vec<Segment>>,
    /// Whether the choices are kept with their alternatives.
    pub(super) keeps_choices: bool,
}

impl Plan {
    pub(super) fn of(options: Options) -> Self {
        let keeps_choices = matches!(options.strategy, Strategy::Exhaustive { .. });
        Self {
            options,
            script: None,
            keeps_choices,
        }
    }
}

pub(super) struct State {
    pub(super) options: Options,
    pub(super) picker: Picker,
    pub(super) tasks: Vec<Task>,
    pub(super) clock: Arc<SimClock>,
    /// No deadline is earlier; there may be none at it, if its task was woken before.
    pub(super) deadline_min_ns: u64,
    pub(super) nr_steps: u64,
    /// Rounds of spinning since a task last did anything else.
    pub(super) nr_fruitless: u32,
    nr_unwinding: u32,
    /// Who was chosen, wherever there was a choice.
    pub(super) schedule: Vec<u16>,
    pub(super) nr_replayed: usize,
    /// The same with the alternatives, if they are kept.
    pub(super) choices: Option<Vec<Choice>>,
    /// Room for those among whom one is chosen.
    pub(super) candidates: Vec<u16>,
    digest: u64,
    steps: Vec<Step>,
    objects: Objects,
    /// The choice that could not be made again when somebody was to be woken.
    pub(super) diverged: Option<usize>,
    pub(super) end: Option<End>,
}

pub(super) struct Task {
    name: Arc<str>,
    role: Role,
    pub(super) status: Status,
    /// It found nothing to do, and nobody else has done anything since.
    pub(super) spins: bool,
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
pub(super) enum Status {
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
    pub(super) options: Options,
    pub(super) choices: Vec<Choice>,
    pub(super) end: End,
    pub(super) nr_steps: u64,
    pub(super) now_ns: u64,
    pub(super) schedule: Vec<u16>,
    pub(super) digest: u64,
    pub(super) steps: Vec<Step>,
    pub(super) task_names: Vec<Arc<str>>,
}

impl State {
    pub(super) fn new(plan: Plan, clock: Arc<SimClock>) -> Self {
        let Plan {
            options,
            script,
            keeps_choices,
        } = plan;
        let picker = match script {
            Some(segments) => Picker::Script(Script::new(segments)),
            None => Picker::new(options.strategy, Rng::new(options.seed)),
        };
        Self {
            options,
            picker,
            tasks: Vec::with_capacity(8),
            clock,
            deadline_min_ns: u64::MAX,
            nr_steps: 0,
            nr_fruitless: 0,
            nr_unwinding: 0,
            schedule: Vec::with_capacity(32),
            nr_replayed: 0,
            choices: keeps_choices.then(Vec::new),
            candidates: Vec::with_capacity(8),
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
            spins: false,
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
        self.picker.add();
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
        self.choose(me)
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
        self.choose(me)
    }

    /// `me` waits until all other tasks have ended; `None` if they have.
    pub(super) fn block_to_join(&mut self, me: TaskId) -> Option<Next> {
        if self.others_are_out(me) {
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
        match wake {
            Wake::All => {
                for task in self
                    .tasks
                    .iter_mut()
                    .filter(|task| task.is_blocked_at(addr))
                {
                    task.status = Status::Ready(Waited::Done);
                }
            }
            Wake::One => {
                if let Some(chosen) = self.choose_woken(addr) {
                    self.tasks[chosen].status = Status::Ready(Waited::Done);
                }
            }
        }
    }

    fn others_are_out(&self, me: TaskId) -> bool {
        let mut others = self.tasks.iter().enumerate().filter(|(id, _)| *id != me);
        others.all(|(_, task)| task.is_out())
    }

    /// Those who wait for all others go on, if the task that has just ended was the last of them.
    fn wake_joiners(&mut self) {
        for id in 0..self.tasks.len() {
            if self.tasks[id].is_blocked_at(JOIN) && self.others_are_out(id) {
                self.tasks[id].status = Status::Ready(Waited::Done);
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
                self.wake_joiners();
            }
        }
        self.choose(me)
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

    /// Takes what a report needs. Threads of a run that has failed may still hold the state.
    pub(super) fn take_outcome(&mut self) -> Outcome {
        let names = self.tasks.iter().map(|task| Arc::clone(&task.name));
        let options = Options {
            replay: None,
            knobs: mem::take(&mut self.options.knobs),
            ..self.options
        };
        Outcome {
            options,
            choices: self.choices.take().unwrap_or_default(),
            end: self.end.clone().expect("a run that is over has an end"),
            nr_steps: self.nr_steps,
            now_ns: self.clock.now_ns(),
            schedule: mem::take(&mut self.schedule),
            digest: self.digest,
            steps: mem::take(&mut self.steps),
            task_names: names.collect(),
        }
    }

    pub(super) fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    fn record(&mut self, me: TaskId, event: Event, point: Point) {
        self.nr_steps += 1;
        let spins = event == Event::Point(PointKind::Spin);
        self.note_progress(me, spins);
        self.picker.step(me, self.nr_steps, spins);
        let now_ns = self.now_ns().saturating_add(self.step_ns());
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

    /// The run has passed: the daemons that are left are unwound.
    fn pass(&mut self) {
        self.end = Some(End::Passed);
        for task in &mut self.tasks {
            if task.status != Status::Ended {
                task.status = Status::Ready(Waited::Done);
            }
        }
    }

    /// Where the run is, for a report.
    pub(super) fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// The run has failed. Nobody goes on: destructors of a state that is broken, or that waits
    /// for ever, would only hide what happened.
    pub(super) fn fail(&mut self, end: End) -> Next {
        self.end = Some(end);
        Next::Nobody
    }

    /// `me` sleeps in a section that may not. Its caller would contain a panic.
    pub(super) fn fail_asleep(&mut self, me: TaskId, point: Point) -> Next {
        let class = point.class;
        // As a checker says it: what drivers owe has this number.
        let message = format!("P3: slept at `{class}` in a callback that may not block");
        self.fail_told(me, message)
    }

    /// `me` has something to tell that nobody may contain.
    pub(super) fn fail_told(&mut self, me: TaskId, message: String) -> Next {
        let task = self.tasks[me].name.to_string();
        self.fail(End::Panicked { task, message })
    }

    /// Nobody gets anywhere. If a task waits while it unwinds, its panic came first.
    pub(super) fn fail_stuck(&mut self, end: End) -> Next {
        let panicked = self.tasks.iter().find_map(|task| {
            let message = task.panic.clone()?;
            let task = task.name.to_string();
            Some(End::Panicked { task, message })
        });
        self.fail(panicked.unwrap_or(end))
    }

    /// The next one after `me`, round and round, that has not ended.
    pub(super) fn next_to_unwind(&self, me: TaskId) -> Next {
        let nr = self.tasks.len();
        let mut others = (1..=nr).map(|step| (me + step) % nr);
        match others.find(|&id| self.tasks[id].status != Status::Ended) {
            Some(id) if self.nr_unwinding < UNWINDING_MAX => Next::Task(id),
            _ => Next::Nobody,
        }
    }

    /// Where everybody is.
    pub(super) fn waits(&mut self) -> Vec<Wait> {
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
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.status, Status::Ready(_))
    }

    pub(super) fn deadline_ns(&self) -> Option<u64> {
        match self.status {
            Status::Blocked { until_ns, .. } => until_ns,
            _ => None,
        }
    }

    pub(super) fn is_blocked_at(&self, addr: usize) -> bool {
        matches!(self.status, Status::Blocked { addr: at, .. } if at == addr)
    }

    /// Whether nobody waits for it.
    fn is_out(&self) -> bool {
        self.role == Role::Daemon || self.status == Status::Ended
    }
}
