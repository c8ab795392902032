//! Random lock programs against a search of all their interleavings, see [`model`].

use std::cell::Cell;

use lockdep::Severity;
use lockdep::testing::World;
use lockdep::testing::model::{self, Model};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

/// What was said of a program: nothing, only that it is unlikely, or more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Said {
    Nothing,
    Unlikely,
    Wrong,
}

fn said_of(model: &Model) -> Said {
    let reports = World::new().run(&model.program());
    let worst = reports.iter().map(|report| report.severity).max();
    match worst {
        None => Said::Nothing,
        Some(Severity::Unlikely) => Said::Unlikely,
        Some(_) => Said::Wrong,
    }
}

/// No deadlock is missed, and nothing is said without a cycle.
fn judge(model: &Model) -> Result<(bool, bool), TestCaseError> {
    let said = said_of(model);
    let (can_deadlock, has_cycle) = (model.can_deadlock(), model.has_cycle());
    let program = model.program();
    if can_deadlock {
        prop_assert_eq!(said, Said::Wrong, "it deadlocks: {}", program);
    }
    prop_assert_eq!(said > Said::Nothing, has_cycle, "cycle: {}", program);
    Ok((can_deadlock, has_cycle))
}

#[test]
fn random_programs_are_judged_as_by_trying_every_interleaving() {
    const NR_CASES: u32 = 1500;
    let config = ProptestConfig {
        cases: NR_CASES,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    // The seed is printed with what fails, and stands here so that all runs are one.
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let nr = [const { Cell::new(0) }; 3];
    let count = |counter: &Cell<u32>| counter.set(counter.get() + 1);
    let bytes = proptest::collection::vec(any::<u8>(), 0..=24);
    let result = runner.run(&bytes, |bytes| {
        let (can_deadlock, has_cycle) = judge(&Model::from_bytes(&bytes))?;
        match (can_deadlock, has_cycle) {
            (true, _) => count(&nr[0]),
            (false, true) => count(&nr[1]),
            (false, false) => count(&nr[2]),
        }
        Ok(())
    });
    result.expect("every program is judged right");
    let [deadlocks, cycles, neither] = nr.map(Cell::into_inner);
    println!("{deadlocks} deadlock, {cycles} have a cycle, {neither} have neither");
    // Canary: there is something to find, and something to leave alone.
    let few = NR_CASES / 40;
    assert!(deadlocks > few && cycles > few && neither > few);
}

/// The search itself, on programs whose answers are known.
#[test]
fn the_search_of_interleavings_knows_a_deadlock() {
    use lockdep::Mode::{Exclusive, Shared, SharedRecursive};
    use model::Step::{Release, Take, Try};
    let take = |lock| Take(lock, Exclusive);
    let pair = |first, then| vec![take(first), take(then), Release(then), Release(first)];
    let read_twice = |mode| vec![Take(0, mode), Take(0, mode), Release(0), Release(0)];
    let write = || vec![take(0), Release(0)];
    let tries = |first, then| vec![take(first), Try(then), Release(then), Release(first)];
    let gated = |mut steps: Vec<model::Step>| {
        steps.insert(0, take(2));
        steps.push(Release(2));
        steps
    };
    for (threads, can_deadlock, has_cycle) in [
        (vec![pair(0, 1), pair(1, 0)], true, true),
        (vec![pair(0, 1), pair(0, 1)], false, false),
        (vec![pair(0, 1), pair(1, 2), pair(2, 0)], true, true),
        (vec![tries(0, 1), tries(1, 0)], false, false),
        (vec![read_twice(Shared), write()], true, true),
        (vec![read_twice(SharedRecursive), write()], false, false),
        (vec![gated(pair(0, 1)), gated(pair(1, 0))], false, true),
        (vec![gated(pair(0, 1)), pair(1, 0)], true, true),
    ] {
        let model = Model::new(threads);
        let found = (model.can_deadlock(), model.has_cycle());
        assert_eq!(found, (can_deadlock, has_cycle), "{}", model.program());
        judge(&model).expect("the validator agrees");
    }
}
