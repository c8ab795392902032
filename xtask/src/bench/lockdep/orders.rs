//! What it costs to see an order for the first time, when ten thousand are known.

use super::super::report::{BenchError, Budget, Contender, Row, interleave};
use lockdep::event::{self, Acquire};
use lockdep::{Attributes, DynamicClass, Mode, Policy, Validator};
use std::time::Instant;

/// How many orders are known before the measured ones.
const NR_KNOWN: usize = 10_000;
/// How many new ones are timed.
const NR_TIMED: usize = 2_000;
/// Over how many classes the orders of the net are spread.
const NR_NET_CLASSES: usize = 2_500;

const MEDIAN_US_MAX: f64 = 5.0;
const P99_US_MAX: f64 = 50.0;

/// Takes one class under another; how long taking the second took, in microseconds.
fn pair(outer: &DynamicClass, inner: &DynamicClass) -> f64 {
    event::acquire(&Acquire::new(outer.id(), 1, Mode::Exclusive));
    let acquire = Acquire::new(inner.id(), 2, Mode::Exclusive);
    let begun = Instant::now();
    event::acquire(&acquire);
    let elapsed = begun.elapsed();
    event::release(2);
    event::release(1);
    elapsed.as_secs_f64() * 1e6
}

/// Median and 99th percentile of the last orders of a list, seen in this order.
fn time(classes: &[DynamicClass], orders: &[(usize, usize)]) -> Result<Vec<f64>, BenchError> {
    let validator = Validator::global();
    validator.reset();
    let times = orders
        .iter()
        .map(|&(outer, inner)| pair(&classes[outer], &classes[inner]));
    let mut times: Vec<f64> = times.skip(NR_KNOWN).collect();
    if !validator.reports().is_empty() || validator.stats().nr_orders != orders.len() {
        return Err(BenchError("the orders are not what was meant".to_owned()));
    }
    times.sort_by(f64::total_cmp);
    Ok(vec![times[times.len() / 2], times[times.len() * 99 / 100]])
}

/// Different pairs of classes, the smaller first, drawn by lot.
fn net() -> Vec<(usize, usize)> {
    let mut random = 1_u64;
    let mut draw = || {
        // The generator of Knuth's MMIX; its upper bits are good enough for lots.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % NR_NET_CLASSES
    };
    let mut seen = std::collections::BTreeSet::new();
    let mut orders = Vec::new();
    while orders.len() < NR_KNOWN + NR_TIMED {
        let (one, other) = (draw(), draw());
        let order = (one.min(other), one.max(other));
        if one != other && seen.insert(order) {
            orders.push(order);
        }
    }
    orders
}

/// Closes the longest chain to a cycle, which must be found; microseconds.
fn close(classes: &[DynamicClass], chain: &[(usize, usize)]) -> Result<Vec<f64>, BenchError> {
    let validator = Validator::global();
    validator.reset();
    chain.iter().for_each(|&(outer, inner)| {
        pair(&classes[outer], &classes[inner]);
    });
    let us = pair(&classes[chain.len()], &classes[0]);
    if validator.reports().len() != 1 {
        return Err(BenchError("the cycle was not found".to_owned()));
    }
    Ok(vec![us])
}

/// A row for each way in which orders become known.
pub(super) fn rows(rounds: u32) -> Result<Vec<Row>, BenchError> {
    let validator = Validator::global();
    validator.set_policy(Policy::Silent);
    let nr_orders = NR_KNOWN + NR_TIMED;
    let make = |at: usize| DynamicClass::new(format!("bench.order.{at}"), Attributes::SLEEP);
    let classes: Vec<DynamicClass> = (0..=nr_orders).map(make).collect();
    let net = net();
    let chain: Vec<(usize, usize)> = (0..nr_orders).map(|at| (at, at + 1)).collect();
    let leaf_first: Vec<(usize, usize)> = chain.iter().rev().copied().collect();
    const NAMES: [&str; 3] = [
        "new order, in a net of 10 000",
        "new order, in a chain of 10 000, root first",
        "new order, in a chain of 10 000, leaf first",
    ];
    const CLOSE: &str = "cycle of 12 000 found and reported";
    let measured = interleave(
        rounds,
        &mut [
            Contender::new(NAMES[0], || time(&classes, &net)),
            Contender::new(NAMES[1], || time(&classes, &chain)),
            Contender::new(NAMES[2], || time(&classes, &leaf_first)),
            Contender::new(CLOSE, || close(&classes, &chain)),
        ],
    )?;
    let mut rows = Vec::new();
    for name in NAMES {
        for (metric, what, max) in [(0, "median", MEDIAN_US_MAX), (1, "p99", P99_US_MAX)] {
            let row = Row::new(format!("{name}, {what}"), "us", measured.of(name, metric));
            rows.push(row.within(Budget::Max(max)));
        }
    }
    rows.push(Row::new(CLOSE, "us", measured.of(CLOSE, 0)));
    validator.reset();
    Ok(rows)
}
