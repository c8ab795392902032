//! Small lock programs with every interleaving searched: what a validator is compared with.
//!
//! A model is made from bytes, so that property tests and fuzzers share it. Nothing of the
//! validator's own graph or search is used here: the answers come from trying everything.

use std::collections::BTreeSet;

use super::{Inject, World};
use crate::{Mode, Severity};

/// What a thread does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Takes a lock, waiting for it.
    Take(usize, Mode),
    /// Takes a lock alone if it is free; if not, lets go of everything and ends.
    Try(usize),
    /// Releases what it took last of this lock.
    Release(usize),
}

/// What a program can do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Truth {
    /// Its orders have no cycle.
    Harmless,
    /// They have one, and no interleaving of it locks up.
    HasCycle,
    /// Some interleaving locks up.
    Deadlocks,
}

/// Threads that take locks, each a class of its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Model {
    threads: Vec<Vec<Step>>,
}

const NR_LOCKS: usize = 4;
const NR_STEPS_MAX: usize = 7;

/// Where one thread is: its next step, and whether it waits there already.
type Place = (usize, bool);

/// A lock held, and how.
type Held = (usize, Mode);

impl Model {
    /// Threads of these steps, which name four locks at most, and release what they take.
    #[must_use]
    pub const fn new(threads: Vec<Vec<Step>>) -> Self {
        Self { threads }
    }

    /// A model of two or three threads. Any bytes make one.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut bytes = bytes.iter().copied();
        let nr_threads = 2 + bytes.next().unwrap_or(0) as usize % 2;
        let mut thread = || {
            let nr_steps = bytes.next().unwrap_or(0) as usize % (NR_STEPS_MAX + 1);
            thread_of(bytes.by_ref().take(nr_steps))
        };
        Self {
            threads: (0..nr_threads).map(|_| thread()).collect(),
        }
    }

    /// The same for [`World::run`](super::World::run): one thread after another, all alive.
    #[must_use]
    pub fn program(&self) -> String {
        let thread = |steps: &Vec<Step>| -> Vec<String> { steps.iter().map(write).collect() };
        let threads: Vec<String> = self.threads.iter().map(|t| thread(t).join(" ")).collect();
        threads.join(" || ")
    }

    /// Whether some interleaving ends with threads that wait for each other.
    ///
    /// A waiting writer keeps readers out, unless they are recursive.
    #[must_use]
    pub fn can_deadlock(&self) -> bool {
        let start: Vec<Place> = vec![(0, false); self.threads.len()];
        let mut seen = BTreeSet::from([start.clone()]);
        let mut open = vec![start];
        while let Some(state) = open.pop() {
            let next: Vec<_> = (0..state.len())
                .filter_map(|thread| self.go_on(&state, thread))
                .collect();
            let is_done = |(steps, &(at, _)): (&Vec<Step>, &Place)| at == steps.len();
            if next.is_empty() && !self.threads.iter().zip(&state).all(is_done) {
                return true;
            }
            open.extend(next.into_iter().filter(|next| seen.insert(next.clone())));
        }
        false
    }

    /// Whether the orders of locks form a cycle in which each can block the next, or a thread takes
    /// a lock that it holds and can block itself: by looking at all pairs and all cycles.
    #[must_use]
    pub fn has_cycle(&self) -> bool {
        let mut orders = BTreeSet::new();
        for steps in &self.threads {
            for (at, step) in steps.iter().enumerate() {
                let Step::Take(lock, mode) = *step else {
                    continue;
                };
                let held = held_before(steps, at);
                let mut own = held.iter().filter(|held| held.0 == lock);
                let is_recursive = mode == Mode::SharedRecursive;
                if own.any(|held| !is_recursive || held.1 == Mode::Exclusive) {
                    return true;
                }
                let others = held.iter().filter(|held| held.0 != lock);
                orders.extend(others.map(|held| Order {
                    from: held.0,
                    to: lock,
                    blocks_all: held.1 == Mode::Exclusive,
                    waits_for_all: !is_recursive,
                }));
            }
        }
        let orders: Vec<Order> = orders.into_iter().collect();
        orders
            .iter()
            .any(|&order| closes(&orders, &mut vec![order]))
    }

    /// Compares what a validator says of the program, with a fault in it, with what the program can
    /// do: no deadlock may be missed, and nothing said where there is no cycle.
    ///
    /// # Errors
    ///
    /// The program, with what was said and what is so.
    pub fn judge(&self, fault: Inject) -> Result<Truth, String> {
        let truth = match (self.can_deadlock(), self.has_cycle()) {
            (true, _) => Truth::Deadlocks,
            (false, true) => Truth::HasCycle,
            (false, false) => Truth::Harmless,
        };
        let world = World::new();
        world.validator().inject(fault);
        let program = self.program();
        let reports = world.run(&program);
        let said = reports.iter().map(|report| report.severity).max();
        let is_right = match truth {
            Truth::Deadlocks => said > Some(Severity::Unlikely),
            Truth::HasCycle => said.is_some(),
            Truth::Harmless => said.is_none(),
        };
        if is_right {
            Ok(truth)
        } else {
            Err(format!(
                "said: {said:?}, but it is so: {truth:?}, of {program}"
            ))
        }
    }

    /// The state after a move of one thread, if it can move.
    fn go_on(&self, state: &[Place], thread: usize) -> Option<Vec<Place>> {
        let steps = &self.threads[thread];
        let (at, waits) = state[thread];
        let next = match *steps.get(at)? {
            Step::Release(_) => (at + 1, false),
            Step::Try(lock) if self.is_free(state, thread, lock, Mode::Exclusive) => {
                (at + 1, false)
            }
            Step::Try(_) => (steps.len(), false),
            Step::Take(..) if !waits => (at, true),
            Step::Take(lock, mode) if self.is_free(state, thread, lock, mode) => (at + 1, false),
            Step::Take(..) => return None,
        };
        let mut state = state.to_vec();
        state[thread] = next;
        Some(state)
    }

    fn is_free(&self, state: &[Place], thread: usize, lock: usize, mode: Mode) -> bool {
        let threads = || self.threads.iter().zip(state).enumerate();
        let mut holders = threads().flat_map(|(_, (steps, place))| held_before(steps, place.0));
        let is_held = holders
            .any(|held| held.0 == lock && (mode == Mode::Exclusive || held.1 == Mode::Exclusive));
        let writer_waits = threads().any(|(other, (steps, &(at, waits)))| {
            let writes = Some(&Step::Take(lock, Mode::Exclusive));
            other != thread && waits && steps.get(at) == writes
        });
        let must_queue = mode == Mode::Shared && writer_waits;
        !(is_held || must_queue)
    }
}

/// One lock taken while another is held.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Order {
    from: usize,
    to: usize,
    /// Who holds the first blocks everybody, not only writers.
    blocks_all: bool,
    /// Who takes the second waits for everybody, not only for writers.
    waits_for_all: bool,
}

/// Whether a path of orders can be continued to a cycle in which each blocks the one before.
fn closes(orders: &[Order], path: &mut Vec<Order>) -> bool {
    let (first, last) = (path[0], path[path.len() - 1]);
    let blocks = |next: &Order| last.to == next.from && (last.waits_for_all || next.blocks_all);
    if last.to == first.from {
        return blocks(&first);
    }
    if path[..path.len() - 1]
        .iter()
        .any(|order| order.to == last.to)
    {
        return false;
    }
    orders.iter().filter(|next| blocks(next)).any(|&next| {
        path.push(next);
        let is_closed = closes(orders, path);
        path.pop();
        is_closed
    })
}

/// What a thread holds before a step; behind its last step, nothing.
fn held_before(steps: &[Step], at: usize) -> Vec<Held> {
    let mut held: Vec<Held> = Vec::new();
    if at == steps.len() {
        return held;
    }
    for step in &steps[..at] {
        match *step {
            Step::Take(lock, mode) => held.push((lock, mode)),
            Step::Try(lock) => held.push((lock, Mode::Exclusive)),
            Step::Release(lock) => {
                let last = held.iter().rposition(|held| held.0 == lock);
                held.remove(last.expect("a thread releases what it holds"));
            }
        }
    }
    held
}

/// A thread of these bytes, which releases all in the end.
fn thread_of(bytes: impl Iterator<Item = u8>) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut held: Vec<usize> = Vec::new();
    for byte in bytes {
        // Few take what they hold: that is a cycle by itself, and hides others.
        let locks = (byte as usize..).map(|lock| lock % NR_LOCKS);
        let may_repeat = byte >= 0xe0 || held.len() >= NR_LOCKS;
        let is_fit = |lock: &usize| may_repeat || !held.contains(lock);
        let lock = locks.take(NR_LOCKS).find(is_fit).unwrap_or(0);
        let step = match byte as usize / NR_LOCKS % 8 {
            0..=2 => Step::Take(lock, Mode::Exclusive),
            3 => Step::Take(lock, Mode::Shared),
            4 => Step::Take(lock, Mode::SharedRecursive),
            5 => Step::Try(lock),
            _ if held.is_empty() => continue,
            6 => Step::Release(held.remove(lock % held.len())),
            _ => Step::Release(held.remove(held.len() - 1)),
        };
        match step {
            Step::Take(lock, _) | Step::Try(lock) => held.push(lock),
            Step::Release(_) => (),
        }
        steps.push(step);
    }
    steps.extend(held.into_iter().rev().map(Step::Release));
    steps
}

fn write(step: &Step) -> String {
    let name = |lock: usize| ["A", "B", "C", "D"][lock];
    match *step {
        Step::Take(lock, mode) => format!("{}({})", mode.letter(), name(lock)),
        Step::Try(lock) => format!("?{}", name(lock)),
        Step::Release(lock) => format!("{}'", name(lock)),
    }
}
