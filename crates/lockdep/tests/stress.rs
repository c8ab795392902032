//! Many threads make classes, orders and faults at once, and take classes out, in one validator.

use std::thread;

use lockdep::event::{self, Acquire};
use lockdep::sync::Completion;
use lockdep::{Attributes, DynamicClass, Kind, Mode, Severity, Validator};

/// Miri takes a thousand times as long.
const NR_THREADS: usize = if cfg!(miri) { 3 } else { 16 };
const NR_ROUNDS: usize = if cfg!(miri) { 2 } else { 200 };
const NR_LASTING: usize = if cfg!(miri) { 6 } else { 24 };

/// A step of a generator of lots; its upper bits are used.
fn draw(random: &mut u64, bound: usize) -> usize {
    *random = random
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*random >> 33) as usize % bound
}

/// Takes the classes one under the other, and releases them in an order drawn by lot.
fn nest(classes: &[&DynamicClass], random: &mut u64) {
    for (at, class) in classes.iter().enumerate() {
        let mode = [Mode::Exclusive, Mode::Shared, Mode::SharedRecursive][draw(random, 3)];
        event::acquire(&Acquire::new(class.id(), at + 1, mode));
    }
    let mut held: Vec<usize> = (1..=classes.len()).collect();
    while !held.is_empty() {
        event::release(held.swap_remove(draw(random, held.len())));
    }
    assert_eq!(event::nr_held(), 0);
}

/// What one thread does: orders among lasting classes upwards only, and a class of its own among
/// them, which is taken out at the end of each round; now and then a fault with two of its own.
fn run(me: usize, lasting: &[DynamicClass]) -> usize {
    let mut random = me as u64;
    let mut nr_faults = 0;
    for round in 0..NR_ROUNDS {
        let own = DynamicClass::new(format!("own {me}"), Attributes::SLEEP);
        let mut picked: Vec<usize> = (0..4).map(|_| draw(&mut random, NR_LASTING)).collect();
        picked.sort_unstable();
        picked.dedup();
        let mut classes: Vec<&DynamicClass> = picked.iter().map(|&at| &lasting[at]).collect();
        nest(&classes, &mut random);
        classes.insert(draw(&mut random, classes.len() + 1), &own);
        if classes.len() > 2 {
            nest(&classes, &mut random);
        }
        if round % 50 == me {
            let other = DynamicClass::new(format!("other {me}"), Attributes::SLEEP);
            for pair in [[&own, &other], [&other, &own]] {
                for (at, class) in pair.iter().enumerate() {
                    event::acquire(&Acquire::new(class.id(), at + 1, Mode::Exclusive));
                }
                event::release(2);
                event::release(1);
            }
            nr_faults += 1;
        }
    }
    nr_faults
}

#[test]
fn threads_that_make_and_free_classes_find_their_faults_and_no_others() {
    let validator = Validator::new();
    let lasting: Vec<DynamicClass> = (0..NR_LASTING)
        .map(|at| DynamicClass::new(format!("lasting {at}"), Attributes::SLEEP))
        .collect();
    let start = Completion::new("start");
    let nr_faults: usize = thread::scope(|scope| {
        let threads: Vec<_> = (0..NR_THREADS)
            .map(|me| {
                let (validator, lasting, start) = (&validator, &lasting, &start);
                scope.spawn(move || {
                    start.wait();
                    let _entered = validator.enter();
                    run(me, lasting)
                })
            })
            .collect();
        start.complete_all();
        let count = |thread: thread::ScopedJoinHandle<'_, usize>| thread.join();
        let counts = threads.into_iter().map(count);
        counts.map(|count| count.expect("no thread panics")).sum()
    });
    let reports = validator.reports();
    let of_kind = |kind: Kind| reports.iter().filter(move |report| report.kind == kind);
    for report in of_kind(Kind::Circular).filter(|report| report.severity > Severity::Unlikely) {
        assert!(report.signature.contains("other"), "{report}");
    }
    let faulty: std::collections::BTreeSet<_> = of_kind(Kind::Circular)
        .map(|report| &report.signature)
        .filter(|signature| signature.contains("other"))
        .collect();
    // The pair of one thread has the same signature each time, so it is told once.
    let nr_expected = nr_faults.min((0..NR_THREADS).filter(|&me| me < NR_ROUNDS).count());
    assert_eq!(faulty.len(), nr_expected, "{faulty:?}");
    assert_eq!(of_kind(Kind::BadUnlock).count(), 0);
    assert_eq!(of_kind(Kind::Limit).count(), 0);
    validator.reset();
    assert_eq!(validator.stats().nr_orders, 0);
}
