//! Random lock programs against a search of all their interleavings, see [`model`].

use std::cell::Cell;

use lockdep::testing::Inject;
use lockdep::testing::model::{self, Model};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

/// Judges random programs by a validator with this fault; how many there were of each kind, in the
/// order of [`Truth`], or what was wrong with the first that was judged wrong.
fn judge_random(fault: Inject) -> Result<[u32; 3], String> {
    let config = ProptestConfig {
        cases: NR_CASES,
        failure_persistence: None,
        // What a canary finds need not be small.
        max_shrink_iters: if fault == Inject::Nothing { 1000 } else { 0 },
        ..ProptestConfig::default()
    };
    // The seed is printed with what fails, and stands here so that all runs are one.
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let nr = [const { Cell::new(0) }; 3];
    let bytes = proptest::collection::vec(any::<u8>(), 0..=24);
    let result = runner.run(&bytes, |bytes| {
        let truth = Model::from_bytes(&bytes).judge(fault);
        let counter = &nr[truth.map_err(TestCaseError::fail)? as usize];
        counter.set(counter.get() + 1);
        Ok(())
    });
    result.map_err(|error| error.to_string())?;
    Ok(nr.map(Cell::into_inner))
}

const NR_CASES: u32 = if cfg!(miri) { 3 } else { 1500 };

#[test]
fn random_programs_are_judged_as_by_trying_every_interleaving() {
    let nr = judge_random(Inject::Nothing).expect("every program is judged right");
    println!("{nr:?} are harmless, have a cycle, deadlock");
    // There is something to find, and something to leave alone.
    assert!(cfg!(miri) || nr.into_iter().all(|nr| nr > NR_CASES / 40));
}

#[test]
fn a_validator_that_misses_orders_from_readers_is_found_by_random_programs() {
    if cfg!(miri) {
        return;
    }
    let wrong = judge_random(Inject::MissReaders).expect_err("a deadlock is missed");
    assert!(wrong.contains("said: None"), "{wrong}");
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
        model.judge(Inject::Nothing).expect("the validator agrees");
    }
}
