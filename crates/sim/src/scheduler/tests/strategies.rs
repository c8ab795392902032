//! Tests of the strategies: what they promise, counted.

use super::super::{End, Explore, Sim, Strategy};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use lockdep::scheduler::scheduler_point;
use lockdep::sync::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A place where another task may go on.
fn point() {
    scheduler_point("step", 0);
}

/// A small program with one bug, which it counts instead of failing.
type Program = fn(&Sim, &Arc<AtomicU64>);

/// One ordering constraint: the user comes before the maker.
fn used_before_it_is_made(sim: &Sim, nr_hits: &Arc<AtomicU64>) {
    let made = Arc::new(AtomicU32::new(0));
    let (maker, hits) = (Arc::clone(&made), Arc::clone(nr_hits));
    sim.spawn("maker", move || maker.store(1, Relaxed));
    sim.spawn("user", move || {
        hits.fetch_add(u64::from(made.load(Relaxed) == 0), Relaxed);
    });
    sim.join_all();
}

/// Two: all of the long task happens in one gap of the other.
fn all_in_one_gap(sim: &Sim, nr_hits: &Arc<AtomicU64>) {
    let gap = Arc::new(AtomicU32::new(0));
    let (opener, hits) = (Arc::clone(&gap), Arc::clone(nr_hits));
    sim.spawn("opener", move || {
        (0..5).for_each(|_| point());
        opener.store(1, Relaxed);
        point();
        opener.store(0, Relaxed);
    });
    sim.spawn("long", move || {
        let is_open = gap.load(Relaxed) == 1;
        (0..10).for_each(|_| point());
        hits.fetch_add(u64::from(is_open && gap.load(Relaxed) == 1), Relaxed);
    });
    sim.join_all();
}

/// Three: there and back again.
fn gap_within_a_gap(sim: &Sim, nr_hits: &Arc<AtomicU64>) {
    let gaps = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
    let (outer, hits) = (Arc::clone(&gaps), Arc::clone(nr_hits));
    sim.spawn("outer", move || {
        outer[0].store(1, Relaxed);
        point();
        outer[0].store(0, Relaxed);
        hits.fetch_add(u64::from(outer[1].load(Relaxed) == 1), Relaxed);
    });
    sim.spawn("inner", move || {
        if gaps[0].load(Relaxed) == 1 {
            gaps[1].store(1, Relaxed);
            point();
            gaps[1].store(0, Relaxed);
        }
    });
    sim.join_all();
}

/// How often the bug is met in so many runs, and the most steps of a run.
fn nr_hits(program: Program, strategy: Strategy, nr_runs: u64) -> u64 {
    let nr_hits = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&nr_hits);
    let explore = Explore::new(0..nr_runs).strategy(strategy);
    explore.check(move |sim| program(sim, &counted));
    nr_hits.load(Relaxed)
}

fn pct(depth: u32) -> Strategy {
    Strategy::Pct { depth, steps: 0 }
}

/// The bound of the published algorithm, for three tasks that take so many steps.
#[test]
fn pct_meets_a_bug_as_often_as_it_promises() {
    let rows: [(u32, Program, u64); 3] = [
        (1, used_before_it_is_made, 6),
        (2, all_in_one_gap, 22),
        (3, gap_within_a_gap, 8),
    ];
    const NR_RUNS: u64 = 6_000;
    for (depth, program, nr_steps) in rows {
        let hits = nr_hits(program, pct(depth), NR_RUNS);
        let expected = NR_RUNS / (3 * nr_steps.pow(depth - 1));
        // What is expected varies by its root: a fifth less is more than two of these.
        assert!(
            hits * 5 >= expected * 4,
            "depth {depth}: {hits} of {expected}"
        );
        if depth > 1 {
            let hits = nr_hits(program, pct(depth - 1), NR_RUNS);
            assert_eq!(hits, 0, "depth {depth} needs no less");
        }
    }
}

/// A bug of depth 2 that needs a long time without a switch.
#[test]
fn pct_meets_a_deep_bug_sooner_than_chance_does() {
    const NR_RUNS: u64 = 2_000;
    let by_pct = nr_hits(all_in_one_gap, pct(2), NR_RUNS);
    let by_chance = nr_hits(all_in_one_gap, Strategy::SwitchOneIn(1), NR_RUNS);
    assert!(
        by_pct > 4 * by_chance,
        "{by_pct} and {by_chance} of {NR_RUNS}"
    );
}

/// Who did something when, a digit each to the base of eight.
#[derive(Clone, Default)]
struct Order(Arc<AtomicU64>);

impl Order {
    fn add(&self, who: u64) {
        // One task at a time runs.
        self.0.store(self.0.load(Relaxed) * 8 + who, Relaxed);
    }
}

/// Tasks that go through so many points each, in any order.
fn walkers(sim: &Sim, nr_points: &[u32], orders: &Mutex<BTreeSet<u64>>) {
    let order = Order::default();
    for (id, &nr_points) in (2..).zip(nr_points) {
        let walked = order.clone();
        sim.spawn("walker", move || {
            walked.add(id);
            for _ in 0..nr_points {
                point();
                walked.add(id);
            }
        });
        order.add(1);
    }
    sim.join_all();
    orders.lock().insert(order.0.load(Relaxed));
}

/// The same program as numbers: what each task has left to do between two points. The body comes
/// first, with one piece more than there are tasks: it waits at the end of the last.
#[derive(Clone)]
struct Pieces {
    left: Vec<u32>,
    nr_spawned: usize,
    running: usize,
}

impl Pieces {
    fn is_ready(&self, id: usize) -> bool {
        id <= self.nr_spawned && self.left[id] > 0
    }

    /// Schedules with at most this many preemptions, one by one.
    fn count(&self, preemptions_max: u32) -> u64 {
        let ready: Vec<_> = (0..self.left.len())
            .filter(|&id| self.is_ready(id))
            .collect();
        let mut nr = u64::from(ready.is_empty());
        for id in ready {
            let is_preemption = id != self.running && self.is_ready(self.running);
            let Some(left) = preemptions_max.checked_sub(u32::from(is_preemption)) else {
                continue;
            };
            let mut next = self.clone();
            next.running = id;
            next.left[id] -= 1;
            next.nr_spawned += usize::from(id == 0 && next.left[0] > 0);
            nr += next.count(left);
        }
        nr
    }
}

#[test]
fn the_exhaustive_strategy_makes_each_schedule_once() {
    for nr_points in [&[1, 1][..], &[2, 2], &[3, 1], &[1, 1, 1]] {
        let mut left = vec![nr_points.len() as u32 + 1];
        left.extend(nr_points.iter().map(|nr| nr + 1));
        let pieces = Pieces {
            left,
            nr_spawned: 0,
            running: 0,
        };
        for preemptions_max in [0, 1, 2, 3, 99] {
            let orders = Arc::new(Mutex::new("orders", BTreeSet::new()));
            let seen = Arc::clone(&orders);
            let explore = Explore::new(0..1).strategy(Strategy::Exhaustive { preemptions_max });
            let explored = explore.check(move |sim| walkers(sim, nr_points, &seen));
            let expected = pieces.count(preemptions_max);
            assert!(explored.is_complete);
            assert_eq!(
                explored.nr_runs, expected,
                "{nr_points:?}, {preemptions_max}"
            );
            assert_eq!(orders.lock().len() as u64, expected, "each once");
        }
    }
}

/// There, back, and there again.
#[test]
fn a_bug_of_two_preemptions_needs_two() {
    for preemptions_max in [0, 1, 2, 3] {
        let explore = Explore::new(0..1).strategy(Strategy::Exhaustive { preemptions_max });
        let explored = explore.find(|sim| {
            let order = Order::default();
            for (name, id) in [("a", 1), ("b", 2)] {
                let order = order.clone();
                sim.spawn(name, move || {
                    order.add(id);
                    point();
                    order.add(id);
                });
            }
            sim.join_all();
            assert_ne!(order.0.load(Relaxed), 0o1212, "there and back");
        });
        assert_eq!(explored.is_complete, preemptions_max < 2);
        let end = explored.failure.map(|run| run.end);
        assert_eq!(
            matches!(end, Some(End::Panicked { .. })),
            preemptions_max >= 2,
            "{end:?}"
        );
    }
}

#[test]
fn a_strategy_is_read_as_it_is_written() {
    for (text, written) in [
        ("drawn", "drawn"),
        ("random", "random:1"),
        ("random:16", "random:16"),
        ("pct", "pct:3:0"),
        ("pct:2:57", "pct:2:57"),
        ("exhaustive:1", "exhaustive:1"),
    ] {
        assert_eq!(text.parse::<Strategy>().unwrap().to_string(), written);
    }
    for text in ["", "chance", "pct:", "pct:1:2:3", "random:x"] {
        assert!(text.parse::<Strategy>().is_err(), "{text}");
    }
}
