//! What the validator costs: our locks while it watches, beside bare locks and other validators.
//!
//! All in one process and in one run. `parking_lot` stands here twice: a feature of a package is on
//! for all who use it, so the one that looks for deadlocks is of another version.

mod orders;

use super::report::{BenchError, Budget, Contender, Measured, Outcome, Row, interleave};
use lockdep::sync;
use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

/// Pairs of lock and unlock in one slice, and slices in one timing: the fastest counts, as a slice
/// is short enough for some to pass without an interruption.
const NR_PAIRS: u32 = 20_000;
const NR_SLICES: u32 = 20;
/// How many locks are held meanwhile.
const NR_HELD: [usize; 4] = [0, 1, 4, 8];
/// How many locks of one class there are.
const NR_INSTANCES: usize = 10_000;

const ABOVE_BARE_NS_MAX: f64 = 5.0;
const TRACING_MIN: f64 = 0.2;
const THREADS_MAX: f64 = 2.0;
const INSTANCES_KIB_MAX: f64 = 64.0;

const UNPOISONED: &str = "nobody panics while holding it";

/// A lock to be measured.
trait Lock: Sync {
    type Guard<'a>: std::ops::DerefMut<Target = u64>
    where
        Self: 'a;

    /// One of a class of its own, if there are classes: `at` is below [`NAMES`]' length.
    fn new(at: usize) -> Self;

    fn lock(&self) -> Self::Guard<'_>;
}

const NAMES: [&str; 9] = [
    "bench.0", "bench.1", "bench.2", "bench.3", "bench.4", "bench.5", "bench.6", "bench.7",
    "bench.8",
];

impl Lock for sync::Mutex<u64> {
    type Guard<'a> = sync::MutexGuard<'a, u64>;

    fn new(at: usize) -> Self {
        Self::new(NAMES[at], 0)
    }

    #[inline(always)]
    fn lock(&self) -> Self::Guard<'_> {
        self.lock()
    }
}

/// A peer without classes.
macro_rules! peer {
    ($lock:ty, $guard:ident, $unpoisoned:ident) => {
        impl Lock for $lock {
            type Guard<'a> = $guard<'a, u64>;

            fn new(_: usize) -> Self {
                Self::new(0)
            }

            #[inline(always)]
            fn lock(&self) -> Self::Guard<'_> {
                $unpoisoned(self.lock())
            }
        }
    };
}

fn unpoisoned<G>(result: std::sync::LockResult<G>) -> G {
    result.expect(UNPOISONED)
}

use parking_lot::MutexGuard as ParkingGuard;
use parking_lot_detecting::MutexGuard as DetectingGuard;
use std::convert::identity;
use std::sync::MutexGuard as StdGuard;
use tracing_mutex::stdsync::tracing::MutexGuard as TracingGuard;
peer!(std::sync::Mutex<u64>, StdGuard, unpoisoned);
peer!(
    tracing_mutex::stdsync::tracing::Mutex<u64>,
    TracingGuard,
    unpoisoned
);
peer!(parking_lot::Mutex<u64>, ParkingGuard, identity);
peer!(parking_lot_detecting::Mutex<u64>, DetectingGuard, identity);

const OURS: &str = "lockdep::sync::Mutex";
const STD: &str = "std::sync::Mutex";
const TRACING: &str = "tracing_mutex 0.3";
const PARKING: &str = "parking_lot 0.12";
const DETECTING: &str = "parking_lot 0.13, deadlock_detection";

/// Nanoseconds of the fastest slice, each of `nr_pairs` pairs.
fn fastest(nr_pairs: u32, mut slice: impl FnMut()) -> f64 {
    let slices = (0..NR_SLICES).map(|_| {
        let begun = Instant::now();
        slice();
        begun.elapsed().as_secs_f64() * 1e9 / f64::from(nr_pairs)
    });
    slices.fold(f64::INFINITY, f64::min)
}

fn ns_per_pair<L: Lock>(lock: &L) -> f64 {
    fastest(NR_PAIRS, || {
        for _ in 0..NR_PAIRS {
            *black_box(lock).lock() += 1;
        }
    })
}

/// A metric for each number of held locks.
fn held<L: Lock>() -> impl FnMut() -> Result<Vec<f64>, BenchError> {
    let locks: Vec<L> = (0..NAMES.len()).map(L::new).collect();
    move || {
        let at_depth = |nr_held: usize| {
            let guards: Vec<_> = locks[..nr_held].iter().map(L::lock).collect();
            let ns = ns_per_pair(&locks[nr_held]);
            // In the reverse order of their making.
            guards.into_iter().rev().for_each(drop);
            ns
        };
        Ok(NR_HELD.map(at_depth).to_vec())
    }
}

/// Two threads, each with a lock of its own; the slower one counts.
fn two_threads<L: Lock>() -> impl FnMut() -> Result<Vec<f64>, BenchError> {
    /// Locks that do not share a line.
    #[repr(align(128))]
    struct Apart<L>(L);
    let locks = [0, 1].map(|at| Apart(L::new(at)));
    move || {
        let start = Barrier::new(locks.len());
        let run = |lock: &L| {
            start.wait();
            ns_per_pair(lock)
        };
        let run = &run;
        let ns = std::thread::scope(|scope| {
            let threads = locks
                .each_ref()
                .map(|lock| scope.spawn(move || run(&lock.0)));
            threads.map(|thread| thread.join().expect("it only measures"))
        });
        Ok(vec![ns[0].max(ns[1])])
    }
}

/// Many locks of one class, each taken under a parent: time of a pair, and memory in KiB.
fn instances<L: Lock>() -> impl FnMut() -> Result<Vec<f64>, BenchError> {
    move || {
        let parent = L::new(0);
        let locks: Vec<L> = (0..NR_INSTANCES).map(|_| L::new(1)).collect();
        let before = resident_kib()?;
        let _held = parent.lock();
        locks.iter().for_each(|lock| drop(lock.lock()));
        let kib = (resident_kib()? - before).max(0.0);
        let ns = fastest(NR_INSTANCES as u32, || {
            locks.iter().for_each(|lock| *black_box(lock).lock() += 1);
        });
        Ok(vec![ns, kib])
    }
}

/// What of the process is in memory.
fn resident_kib() -> Result<f64, BenchError> {
    let read = || {
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
        let line = text.lines().find(|line| line.starts_with("Rss:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    read().ok_or_else(|| BenchError("cannot read the size of the process".to_owned()))
}

/// Runs the same part for every contender.
macro_rules! contenders {
    ($part:ident) => {
        [
            Contender::new(OURS, $part::<sync::Mutex<u64>>()),
            Contender::new(STD, $part::<std::sync::Mutex<u64>>()),
            Contender::new(
                TRACING,
                $part::<tracing_mutex::stdsync::tracing::Mutex<u64>>(),
            ),
            Contender::new(PARKING, $part::<parking_lot::Mutex<u64>>()),
            Contender::new(DETECTING, $part::<parking_lot_detecting::Mutex<u64>>()),
        ]
    };
}

/// Costs of taking locks, and of new orders.
pub(super) fn run(rounds: u32) -> Result<Outcome, BenchError> {
    lockdep::set_enabled(true);
    lockdep::reset();
    let measured = interleave(rounds, &mut contenders!(held))?;
    let mut rows = held_rows(&measured);
    let measured = interleave(rounds, &mut contenders!(two_threads))?;
    let beside = |peer: &'static str, name: &str| {
        Row::new(name, "ns", measured.of(OURS, 0)).beside(peer, measured.of(peer, 0))
    };
    let name = "two threads, a lock each";
    rows.push(beside(STD, name).within(Budget::TimesPeerMax(THREADS_MAX)));
    rows.extend([TRACING, PARKING, DETECTING].map(|peer| beside(peer, name)));
    let measured = interleave(rounds, &mut contenders!(instances))?;
    let name = "10 000 locks of one class, one held";
    for peer in [STD, TRACING, PARKING, DETECTING] {
        let row = Row::new(name, "ns", measured.of(OURS, 0)).beside(peer, measured.of(peer, 0));
        rows.push(match peer {
            STD => row.within(Budget::AbovePeerMax(ABOVE_BARE_NS_MAX)),
            _ => row,
        });
    }
    let memory = Row::new("their memory", "KiB", measured.of(OURS, 1));
    rows.push(
        memory
            .beside(TRACING, measured.of(TRACING, 1))
            .within(Budget::Max(INSTANCES_KIB_MAX)),
    );
    rows.extend(orders::rows(rounds)?);
    Ok(rows.into())
}

fn held_rows(measured: &Measured) -> Vec<Row> {
    let mut rows = Vec::new();
    for (metric, nr_held) in NR_HELD.into_iter().enumerate() {
        let name = format!("lock and unlock, {nr_held} held");
        for peer in [STD, TRACING, PARKING, DETECTING] {
            let row = Row::new(name.as_str(), "ns", measured.of(OURS, metric))
                .beside(peer, measured.of(peer, metric));
            rows.push(match peer {
                STD => row.within(Budget::AbovePeerMax(ABOVE_BARE_NS_MAX)),
                TRACING if nr_held == 8 => row.within(Budget::TimesPeerMax(TRACING_MIN)),
                _ => row,
            });
        }
    }
    rows
}
