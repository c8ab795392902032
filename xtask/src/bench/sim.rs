//! Schedules a second: the simulator beside shuttle, on one program of the same size.
//!
//! The program: threads that each take a lock, add one, and give it back, a few times; the first
//! task waits for all. Both choose at random at every point, or by priorities (PCT) of the same
//! depth. The tasks of both are coroutines in one thread. Ours pass a point at each lock and at
//! each release, under the lock validator.

use super::report::{BenchError, Budget, Contender, Outcome, Row, interleave};
use core::ops::RangeInclusive;
use lockdep::sync;
use pinless_sim::Strategy;
use pinless_sim::scheduler::Explore;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use std::sync::Arc;
use std::time::Instant;

/// Threads that add.
const THREADS: RangeInclusive<usize> = 2..=4;

/// Times that each thread takes the lock.
const ADDS: usize = 8;

/// Schedules in one timing.
const SCHEDULES: u32 = 2_000;

/// Ordering constraints of the bugs that PCT looks for.
const PCT_DEPTH: u32 = 3;

/// As many as shuttle.
const TIMES_PEER_MIN: f64 = 1.0;

const NO_FAILURE: &str = "nobody panics while holding it";

/// Who chooses the next thread.
#[derive(Clone, Copy)]
enum Chooser {
    Random,
    Pct,
}

const CHOOSERS: [(Chooser, &str); 2] = [(Chooser::Random, "random"), (Chooser::Pct, "PCT")];

/// Schedules a second of `explore`, which makes [`SCHEDULES`] of them.
fn rate(explore: impl FnOnce()) -> Vec<f64> {
    let begun = Instant::now();
    explore();
    vec![f64::from(SCHEDULES) / begun.elapsed().as_secs_f64()]
}

fn ours(chooser: Chooser, nr_threads: usize) -> Result<Vec<f64>, BenchError> {
    let strategy = match chooser {
        Chooser::Random => Strategy::SwitchOneIn(1),
        Chooser::Pct => Strategy::Pct {
            depth: PCT_DEPTH,
            steps: 0,
        },
    };
    let mut nr_runs = 0;
    let rates = rate(|| {
        let explore = Explore::new(0..SCHEDULES.into()).strategy(strategy);
        let explored = explore.check(move |sim| {
            let total = Arc::new(sync::Mutex::new("bench.total", 0));
            for _ in 0..nr_threads {
                let total = Arc::clone(&total);
                sim.spawn("adder", move || {
                    for _ in 0..ADDS {
                        *total.lock() += 1;
                    }
                });
            }
            sim.join_all();
            assert_eq!(*total.lock(), nr_threads * ADDS);
        });
        nr_runs = explored.nr_runs;
    });
    if nr_runs != u64::from(SCHEDULES) {
        // A variable of the environment asks for other runs.
        let what = format!("{nr_runs} schedules were made instead of {SCHEDULES}");
        return Err(BenchError(what));
    }
    Ok(rates)
}

fn shuttles(chooser: Chooser, nr_threads: usize) -> Vec<f64> {
    let body = move || {
        let total = shuttle::sync::Arc::new(shuttle::sync::Mutex::new(0));
        let adders = (0..nr_threads).map(|_| {
            let total = shuttle::sync::Arc::clone(&total);
            shuttle::thread::spawn(move || {
                for _ in 0..ADDS {
                    *total.lock().expect(NO_FAILURE) += 1;
                }
            })
        });
        for adder in adders.collect::<Vec<_>>() {
            adder.join().expect(NO_FAILURE);
        }
        assert_eq!(*total.lock().expect(NO_FAILURE), nr_threads * ADDS);
    };
    let nr = SCHEDULES as usize;
    rate(|| {
        let nr_runs = match chooser {
            Chooser::Random => {
                let chooser = RandomScheduler::new_from_seed(0, nr);
                shuttle::Runner::new(chooser, shuttle::Config::default()).run(body)
            }
            Chooser::Pct => {
                let chooser = PctScheduler::new_from_seed(0, PCT_DEPTH as usize, nr);
                shuttle::Runner::new(chooser, shuttle::Config::default()).run(body)
            }
        };
        assert_eq!(nr_runs, nr, "shuttle makes as many as it was told");
    })
}

/// One row for each chooser and number of threads.
pub(super) fn run(rounds: u32) -> Result<Outcome, BenchError> {
    let mut pairs = Vec::new();
    let mut contenders = Vec::new();
    for (chooser, name) in CHOOSERS {
        for nr_threads in THREADS {
            let pair = ["pinless-sim", "shuttle"]
                .map(|who| format!("{who}, {name}, {nr_threads} threads"));
            let [mine, peer] = pair.clone();
            contenders.push(Contender::new(mine, move || ours(chooser, nr_threads)));
            contenders.push(Contender::new(peer, move || {
                Ok(shuttles(chooser, nr_threads))
            }));
            pairs.push(pair);
        }
    }
    let measured = interleave(rounds, &mut contenders)?;
    let row = |[mine, peer]: &[String; 2]| {
        Row::new(mine, "schedules/s", measured.of(mine, 0))
            .beside(peer, measured.of(peer, 0))
            .within(Budget::TimesPeerMin(TIMES_PEER_MIN))
    };
    Ok(pairs.iter().map(row).collect::<Vec<Row>>().into())
}
