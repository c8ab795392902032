//! Lock and unlock, uncontended, nobody listening: our locks beside the standard library's.
//!
//! Neither a scheduler nor the validator; what that costs is measured by `bench lockdep`.

use super::report::{BenchError, Budget, Contender, Outcome, Row, interleave};
use lockdep::sync;
use std::hint::black_box;
use std::time::Instant;

/// Pairs of lock and unlock in one timing.
const PAIRS: u32 = 1_000_000;

/// What a lock of ours may cost above the standard one.
const ABOVE_STD_NS_MAX: f64 = 3.0;

/// Ours, and the peer beside it.
const PAIRINGS: &[(&str, &str)] = &[
    ("lockdep::sync::Mutex", "std::sync::Mutex"),
    ("lockdep::sync::RwLock read", "std::sync::RwLock read"),
    ("lockdep::sync::RwLock write", "std::sync::RwLock write"),
];

const UNPOISONED: &str = "nobody panics while holding it";

/// Nanoseconds for one pair, over [`PAIRS`] of them.
fn time(mut pair: impl FnMut()) -> Result<Vec<f64>, BenchError> {
    let begun = Instant::now();
    for _ in 0..PAIRS {
        pair();
    }
    Ok(vec![begun.elapsed().as_secs_f64() * 1e9 / f64::from(PAIRS)])
}

/// One row for each kind of lock.
pub(super) fn run(rounds: u32) -> Result<Outcome, BenchError> {
    let mutex = sync::Mutex::new("bench.mutex", 0_u64);
    let rwlock = sync::RwLock::new("bench.rwlock", 0_u64);
    let std_mutex = std::sync::Mutex::new(0_u64);
    let std_rwlock = std::sync::RwLock::new(0_u64);
    let mut contenders = [
        Contender::new(PAIRINGS[0].0, || time(|| *black_box(&mutex).lock() += 1)),
        Contender::new(PAIRINGS[0].1, || {
            time(|| *black_box(&std_mutex).lock().expect(UNPOISONED) += 1)
        }),
        Contender::new(PAIRINGS[1].0, || {
            time(|| {
                black_box(*black_box(&rwlock).read());
            })
        }),
        Contender::new(PAIRINGS[1].1, || {
            time(|| {
                black_box(*black_box(&std_rwlock).read().expect(UNPOISONED));
            })
        }),
        Contender::new(PAIRINGS[2].0, || time(|| *black_box(&rwlock).write() += 1)),
        Contender::new(PAIRINGS[2].1, || {
            time(|| *black_box(&std_rwlock).write().expect(UNPOISONED) += 1)
        }),
    ];
    let measured = interleave(rounds, &mut contenders)?;
    let row = |&(ours, peer): &(&str, &'static str)| {
        Row::new(ours, "ns", measured.of(ours, 0))
            .beside(peer, measured.of(peer, 0))
            .within(Budget::AbovePeerMax(ABOVE_STD_NS_MAX))
    };
    Ok(PAIRINGS.iter().map(row).collect::<Vec<Row>>().into())
}
