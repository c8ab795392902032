//! Random lock programs: the validator beside a search of all interleavings, and of all cycles.
//!
//! The input is up to three programs over four locks, each of a class of its own. The validator
//! sees one after the other. A deadlock that a search of their interleavings finds must have been
//! reported, of any severity; and what is reported as a cycle must be a strong one among the orders
//! that a plain enumeration gives.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use lockdep::event::{self, Acquire};
use lockdep::{Attributes, DynamicClass, Kind, Mode, Validator};

const NR_LOCKS: usize = 4;
const NR_PROGRAMS: usize = 3;
const NR_STEPS_MAX: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Take(usize, Mode),
    Drop(usize),
}

/// Programs that hold each lock once at a time and release all: the bytes are steps, modulo.
fn parse(input: &[u8]) -> Vec<Vec<Step>> {
    let parts = input.chunks(NR_STEPS_MAX).take(NR_PROGRAMS);
    parts.map(|bytes| program(bytes)).collect()
}

fn program(bytes: &[u8]) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut held: Vec<usize> = Vec::new();
    for &byte in bytes {
        let lock = byte as usize % NR_LOCKS;
        if let Some(at) = held.iter().position(|&other| other == lock) {
            held.remove(at);
            steps.push(Step::Drop(lock));
            continue;
        }
        let mode = match byte / NR_LOCKS as u8 % 4 {
            0 | 1 => Mode::Exclusive,
            2 => Mode::Shared,
            _ => Mode::SharedRecursive,
        };
        held.push(lock);
        steps.push(Step::Take(lock, mode));
    }
    steps.extend(held.into_iter().rev().map(Step::Drop));
    steps
}

/// Each thread's next step, and whether it has queued for it.
type State = Vec<(usize, bool)>;

/// How threads hold a lock in a state, without `me`.
fn holders(programs: &[Vec<Step>], state: &State, lock: usize, me: usize) -> Vec<Mode> {
    let others = (0..programs.len()).filter(|&other| other != me);
    others
        .filter_map(|other| {
            let done = &programs[other][..state[other].0];
            let last = done.iter().rev().find(|step| match step {
                Step::Take(taken, _) => *taken == lock,
                Step::Drop(dropped) => *dropped == lock,
            });
            match last {
                Some(Step::Take(_, mode)) => Some(*mode),
                _ => None,
            }
        })
        .collect()
}

/// Whether a writer, other than `me`, has queued for a lock.
fn has_queued_writer(programs: &[Vec<Step>], state: &State, lock: usize, me: usize) -> bool {
    (0..programs.len())
        .filter(|&other| other != me)
        .any(|other| {
            let next = programs[other].get(state[other].0);
            state[other].1 && next == Some(&Step::Take(lock, Mode::Exclusive))
        })
}

/// Whether a thread that has queued can take its step.
fn can_go(programs: &[Vec<Step>], state: &State, me: usize) -> bool {
    let Some(&Step::Take(lock, mode)) = programs[me].get(state[me].0) else {
        return true;
    };
    let holders = holders(programs, state, lock, me);
    match mode {
        Mode::Exclusive => holders.is_empty(),
        Mode::Shared => {
            !holders.contains(&Mode::Exclusive) && !has_queued_writer(programs, state, lock, me)
        }
        Mode::SharedRecursive => !holders.contains(&Mode::Exclusive),
    }
}

/// Whether some interleaving ends with threads that wait for each other.
fn can_deadlock(programs: &[Vec<Step>]) -> bool {
    let mut seen = BTreeSet::new();
    let mut left: Vec<State> = vec![vec![(0, false); programs.len()]];
    while let Some(state) = left.pop() {
        if !seen.insert(state.clone()) {
            continue;
        }
        let mut is_stuck = true;
        let mut is_over = true;
        for me in 0..programs.len() {
            let (at, has_queued) = state[me];
            if at == programs[me].len() {
                continue;
            }
            is_over = false;
            if has_queued && !can_go(programs, &state, me) {
                continue;
            }
            is_stuck = false;
            let mut next = state.clone();
            next[me] = if has_queued {
                (at + 1, false)
            } else {
                (at, true)
            };
            left.push(next);
        }
        if is_stuck && !is_over {
            return true;
        }
    }
    false
}

/// An order: what was held and how, and what was taken and how.
type Order = ((usize, Mode), (usize, Mode));

/// Every pair of a lock that is held and one that is taken.
fn orders(programs: &[Vec<Step>]) -> Vec<Order> {
    let mut orders = Vec::new();
    for program in programs {
        let mut held: Vec<(usize, Mode)> = Vec::new();
        for &step in program {
            match step {
                Step::Take(lock, mode) => {
                    orders.extend(held.iter().map(|&outer| (outer, (lock, mode))));
                    held.push((lock, mode));
                }
                Step::Drop(lock) => held.retain(|&(other, _)| other != lock),
            }
        }
    }
    orders
}

/// Whether a thread that takes a lock so can wait for one that holds it so.
fn blocks(taken: (usize, Mode), held: (usize, Mode)) -> bool {
    taken.0 == held.0 && !(taken.1 == Mode::SharedRecursive && held.1 != Mode::Exclusive)
}

/// Whether orders follow each other in a circle, each blocked by the next.
fn has_strong_cycle(orders: &[Order]) -> bool {
    (0..orders.len()).any(|first| {
        let mut reached = vec![false; orders.len()];
        let mut left = vec![first];
        while let Some(at) = left.pop() {
            for next in 0..orders.len() {
                if blocks(orders[at].1, orders[next].0) && !reached[next] {
                    reached[next] = true;
                    left.push(next);
                }
            }
        }
        reached[first]
    })
}

/// The kinds of what the validator reports.
fn validate(programs: &[Vec<Step>]) -> Vec<Kind> {
    let validator = Validator::new();
    let outside = validator.enter();
    let classes: Vec<DynamicClass> = (0..NR_LOCKS)
        .map(|at| DynamicClass::new(format!("lock {at}"), Attributes::SLEEP))
        .collect();
    for program in programs {
        // Another thread, as far as the validator is concerned.
        let inside = validator.enter();
        for step in program {
            match *step {
                Step::Take(at, mode) => {
                    event::acquire(&Acquire::new(classes[at].id(), at + 1, mode));
                }
                Step::Drop(at) => event::release(at + 1),
            }
        }
        drop(inside);
    }
    let kinds = validator
        .reports()
        .iter()
        .map(|report| report.kind)
        .collect();
    drop(classes);
    drop(outside);
    kinds
}

fuzz_target!(|input: &[u8]| {
    let programs = parse(input);
    let kinds = validate(&programs);
    let is_cyclic = has_strong_cycle(&orders(&programs));
    assert_eq!(
        kinds.contains(&Kind::Circular),
        is_cyclic,
        "{programs:?}: {kinds:?}"
    );
    assert!(
        kinds.iter().all(|&kind| kind == Kind::Circular),
        "{programs:?}: {kinds:?}"
    );
    assert!(
        is_cyclic || !can_deadlock(&programs),
        "missed: {programs:?}"
    );
});
