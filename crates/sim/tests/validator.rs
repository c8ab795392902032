//! The lock validator itself under schedules: tasks that meet new classes and orders, and free
//! classes, at the same time. Faults put into it on purpose must be found.
//!
//! In a process of its own, as the epoch of chains is the process's: a class that is freed by
//! another test, or a guard that is released in another thread, would change a run.

use lockdep::event::{self, Acquire};
use lockdep::testing::Inject;
use lockdep::{Attributes, DynamicClass, Kind, Mode, Validator};
use pinless_sim::{Explore, Sim, Strategy};
use std::sync::Arc;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Which classes each task takes, one under the other: both take the first order at one time, and
/// the others close a circle.
const ORDERS: [[(usize, usize); 3]; 2] = [[(0, 1), (0, 2), (2, 1)], [(0, 1), (1, 2), (0, 2)]];

fn class(name: &'static str) -> DynamicClass {
    DynamicClass::new(name, Attributes::SLEEP)
}

/// Takes one under the other; both names must then be known as an order.
fn take(validator: &Validator, [outer, inner]: [&DynamicClass; 2], names: [&str; 2]) {
    event::acquire(&Acquire::new(outer.id(), 1, Mode::Exclusive));
    event::acquire(&Acquire::new(inner.id(), 2, Mode::Exclusive));
    assert!(knows(validator, names), "{names:?} is not known");
    event::release(2);
    event::release(1);
}

/// Names have a number where several classes of the process share one.
fn knows(validator: &Validator, [held, taken]: [&str; 2]) -> bool {
    let is = |name: &str, wanted: &str| name.split('#').next() == Some(wanted);
    let orders = validator.orders();
    orders
        .iter()
        .any(|order| is(&order.held, held) && is(&order.taken, taken))
}

fn program(sim: &Sim, fault: Inject) {
    let validator = Validator::tight();
    validator.inject(fault);
    let classes = Arc::new(NAMES.map(class));
    for orders in ORDERS {
        let (validator, classes) = (validator.clone(), Arc::clone(&classes));
        sim.spawn("takes", move || {
            let _entered = validator.enter();
            for (outer, inner) in orders {
                let pair = [&classes[outer], &classes[inner]];
                take(&validator, pair, [NAMES[outer], NAMES[inner]]);
            }
        });
    }
    let frees = validator.clone();
    let outer = Arc::clone(&classes);
    sim.spawn("frees", move || {
        let _entered = frees.enter();
        for _ in 0..2 {
            take(&frees, [&outer[0], &class("freed")], ["a", "freed"]);
        }
    });
    sim.join_all();
    for (outer, inner) in ORDERS.into_iter().flatten() {
        assert!(
            knows(&validator, [NAMES[outer], NAMES[inner]]),
            "an order is lost"
        );
    }
    assert!(!knows(&validator, ["a", "freed"]), "a freed class is kept");
    let kinds: Vec<Kind> = validator
        .reports()
        .iter()
        .map(|report| report.kind)
        .collect();
    assert_eq!(kinds, [Kind::Circular], "one circle, reported once");
}

const STRATEGIES: [Strategy; 3] = [
    Strategy::Drawn,
    Strategy::SwitchOneIn(2),
    Strategy::Pct { depth: 3, steps: 0 },
];

/// Whether a run fails; where none may, the first that does fails the test.
fn is_found(fault: Inject, strategy: Strategy) -> bool {
    const NR_RUNS: u64 = 200;
    const NR_RUNS_MAX: u64 = 5_000;
    let explored = match fault {
        Inject::Nothing => Explore::new(0..NR_RUNS)
            .strategy(strategy)
            .check(move |sim| program(sim, fault)),
        _ => Explore::new(0..NR_RUNS_MAX)
            .strategy(strategy)
            .as_found()
            .find(move |sim| program(sim, fault)),
    };
    explored.failure.is_some()
}

#[test]
fn the_validator_loses_no_order_under_schedules_and_faults_of_it_are_found() {
    for (fault, expected) in [
        (Inject::Nothing, false),
        (Inject::StaleChains, true),
        (Inject::EarlyChains, true),
    ] {
        for strategy in STRATEGIES {
            assert_eq!(
                is_found(fault, strategy),
                expected,
                "{fault:?}, {strategy:?}"
            );
        }
    }
}
