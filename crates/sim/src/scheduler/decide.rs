//! Who has the turn next, and what happens when nobody can have it.

use super::report::End;
use super::state::{Next, State, Status, Task, TaskId};
use super::strategy::Choice;
use lockdep::sync::Waited;

/// Virtual nanoseconds that a step takes.
const STEP_NS: u64 = 20;

/// Fruitless rounds of spinning after which time goes faster, in case it is what they wait for.
const FRUITLESS_SLOW: u32 = 100;

/// Fruitless rounds in which the time of a step doubles.
const FRUITLESS_TO_DOUBLE: u32 = 20;

/// Fruitless rounds after which nothing will come of it. Hours of virtual time have passed then.
const FRUITLESS_MAX: u32 = FRUITLESS_SLOW + 40 * FRUITLESS_TO_DOUBLE;

impl State {
    /// Says who goes on after `me`, which is at a point, waits, or has ended.
    pub(super) fn choose(&mut self, me: TaskId) -> Next {
        if self.end().is_some() {
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
            self.find_candidates(me);
            match *self.candidates {
                [] => {}
                [only] => return self.give_turn(only),
                _ => return self.choose_among(me),
            }
            // Everybody waits: time goes to the first deadline.
            if !self.skip_to_deadline() {
                let waits = self.waits();
                return self.fail_stuck(End::Deadlock { waits });
            }
        }
    }

    /// `me` took a step. Whoever spins may look again after a step that was none of spinning.
    pub(super) fn note_progress(&mut self, me: TaskId, spins: bool) {
        if spins {
            self.nr_fruitless += 1;
        } else if self.nr_fruitless > 0 {
            self.nr_fruitless = 0;
            self.tasks.iter_mut().for_each(|task| task.spins = false);
        }
        self.tasks[me].spins = spins;
    }

    /// How long a step takes: longer and longer while all that can run do nothing but spin.
    pub(super) fn step_ns(&self) -> u64 {
        let nr_doubled = self.nr_fruitless.saturating_sub(FRUITLESS_SLOW) / FRUITLESS_TO_DOUBLE;
        STEP_NS << nr_doubled.min(36)
    }

    /// Those who can run, without those who look for what nobody can have done yet.
    fn find_candidates(&mut self, me: TaskId) {
        let mut list = |may_run: &dyn Fn(TaskId, &Task) -> bool| {
            let tasks = self.tasks.iter().enumerate();
            let those = tasks.filter(|&(id, task)| task.is_ready() && may_run(id, task));
            self.candidates.clear();
            self.candidates.extend(those.map(|(id, _)| id as u16));
            !self.candidates.is_empty()
        };
        // All spin: another than the one that has just looked, if there is one.
        let _found = list(&|_, task| !task.spins) || list(&|id, _| id != me) || list(&|_, _| true);
    }

    /// The turn goes to the only one that can have it.
    fn give_turn(&mut self, only: u16) -> Next {
        self.stop_if_fruitless()
            .unwrap_or(Next::Task(usize::from(only)))
    }

    /// Ends a run in which nothing has happened for long, and no deadline is left to come.
    fn stop_if_fruitless(&mut self) -> Option<Next> {
        if self.nr_fruitless < FRUITLESS_MAX {
            return None;
        }
        self.nr_fruitless = 0;
        if self.skip_to_deadline() {
            return None;
        }
        let waits = self.waits();
        Some(self.fail_stuck(End::Livelock { waits }))
    }

    fn choose_among(&mut self, me: TaskId) -> Next {
        if let Some(next) = self.stop_if_fruitless() {
            return next;
        }
        let current = (me as u16, self.candidates.contains(&(me as u16)));
        let current = current.1.then_some(current.0);
        let chosen = match self.replayed() {
            Some(chosen) if self.candidates.contains(&chosen) => chosen,
            Some(_) => {
                let choice = self.nr_replayed - 1;
                return self.fail(End::Diverged { choice });
            }
            None => self.picker.pick(me, current, &self.candidates),
        };
        self.keep(chosen, current);
        Next::Task(usize::from(chosen))
    }

    /// Which of those blocked at `addr` is woken; `None` if there is none, or if the run was
    /// replayed and has diverged.
    pub(super) fn choose_woken(&mut self, addr: usize) -> Option<TaskId> {
        let blocked = self.tasks.iter().enumerate();
        let blocked = blocked.filter(|(_, task)| task.is_blocked_at(addr));
        self.candidates.clear();
        self.candidates.extend(blocked.map(|(id, _)| id as u16));
        if self.candidates.len() <= 1 {
            return self.candidates.first().copied().map(usize::from);
        }
        let chosen = match self.replayed() {
            Some(chosen) if self.candidates.contains(&chosen) => chosen,
            Some(_) => {
                self.diverged = Some(self.nr_replayed - 1);
                return None;
            }
            None => self.picker.pick_woken(&self.candidates),
        };
        self.keep(chosen, None);
        Some(usize::from(chosen))
    }

    /// The next choice of the run that is replayed.
    fn replayed(&mut self) -> Option<u16> {
        let choices = self.options.replay.as_ref()?;
        let chosen = choices.get(self.nr_replayed).copied()?;
        self.nr_replayed += 1;
        Some(chosen)
    }

    fn keep(&mut self, chosen: u16, current: Option<u16>) {
        self.schedule.push(chosen);
        let bit = |&id: &u16| 1_u64.checked_shl(u32::from(id)).unwrap_or(0);
        if let Some(choices) = &mut self.choices {
            choices.push(Choice {
                chosen,
                current,
                candidates: self.candidates.iter().map(bit).sum(),
            });
        }
    }

    /// Puts the clock to the first deadline; false if there is none.
    fn skip_to_deadline(&mut self) -> bool {
        let Some(first_ns) = self.tasks.iter().filter_map(Task::deadline_ns).min() else {
            return false;
        };
        self.clock.set_ns(first_ns.max(self.now_ns()));
        self.expire();
        true
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
}
