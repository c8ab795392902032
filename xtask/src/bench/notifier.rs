//! Brackets, intervals and their sequences, beside an empty call and the best interval maps.

use super::picture::{Curves, Picture};
use super::report::{BenchError, Budget, Contender, Measured, Outcome, Row, interleave};
use coitrees::{COITree, Interval, IntervalTree as _};
use iset::IntervalMap;
use lockdep::sync::{Mutex, ShortLock, spin_wait};
use mm::addr::{PAGE_SIZE, Vaddr};
use mm::mmu_notifier::{
    Context, EndContext, Event, IntervalNotifier, IntervalSubscription, MmId, Notifier, Notifiers,
    Range, Ranges,
};
use pinless_mm as mm;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Operations in one timing.
const NR: u32 = 200_000;

/// Operations of each of several threads: so many that it does not count for how long the system
/// leaves them on one processor before it moves one.
const NR_THREADED: u32 = 1_000_000;

/// Timed inserts and removes: fewer, as each changes the map.
const NR_CHANGES: u32 = 20_000;

/// An interval has this many pages, and as many lie between it and the next.
const PAGES: u64 = 4;

/// How many intervals there are.
const COUNTS: [u64; 7] = [1, 10, 100, 1000, 10_000, 100_000, 1_000_000];

/// The counts with rows of their own.
const BUDGETED: [u64; 3] = [1, 1000, 1_000_000];

const NEVER: Duration = Duration::from_secs(1);

/// Does next to nothing when it is told.
struct Idle {
    lock: ShortLock<u64>,
}

impl Idle {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            lock: ShortLock::new("bench.idle", 0),
        })
    }
}

impl Notifier for Idle {
    fn start<C: Context>(&self, range: &Range, _cx: &C) -> Result<(), C::Refusal> {
        black_box(range);
        Ok(())
    }

    fn end(&self, range: &Range, _cx: &EndContext<'_>) {
        black_box(range);
    }
}

impl IntervalNotifier for Idle {
    type Lock = ShortLock<u64>;

    fn lock(&self) -> &ShortLock<u64> {
        &self.lock
    }
}

fn page(nr: u64) -> Vaddr {
    Vaddr((nr + 16) * PAGE_SIZE as u64)
}

/// The first page of the `nth` interval.
fn first(nth: u64) -> u64 {
    nth * 2 * PAGES
}

/// Numbers that look like chance; the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// The numbers below `nr`, in an order that has nothing to do with theirs.
fn shuffled(nr: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..nr).collect();
    let mut dice = Dice(nr);
    for at in (1..order.len()).rev() {
        order.swap(at, dice.below(at as u64 + 1) as usize);
    }
    order
}

/// A cache line that says which is read next.
#[repr(align(64))]
struct Line {
    next: usize,
}

/// As many lines as there are intervals at most, in a ring without order: what one read costs that
/// finds nothing in a cache, and that the next one waits for.
fn ring() -> Vec<Line> {
    let nr = BUDGETED[BUDGETED.len() - 1];
    let order = shuffled(nr);
    let mut lines: Vec<Line> = order.iter().map(|_| Line { next: 0 }).collect();
    for (at, &line) in order.iter().enumerate() {
        lines[line as usize].next = order[(at + 1) % order.len()] as usize;
    }
    lines
}

/// Nanoseconds for one operation, over `nr` of them.
fn time(nr: u32, mut operation: impl FnMut()) -> Result<Vec<f64>, BenchError> {
    let begun = Instant::now();
    for _ in 0..nr {
        operation();
    }
    Ok(vec![begun.elapsed().as_secs_f64() * 1e9 / f64::from(nr)])
}

fn nonblock(notifiers: &Notifiers, nth: u64) {
    let (start, end) = (page(first(nth)), page(first(nth) + 1));
    let bracket = black_box(notifiers).start_nonblock(start, end, Event::Clear);
    black_box(&bracket);
}

fn blockable(notifiers: &Notifiers, nth: u64) {
    let (start, end) = (page(first(nth)), page(first(nth) + 1));
    let bracket = black_box(notifiers).start_blockable(start, end, Event::Clear, NEVER);
    black_box(&bracket);
}

/// Intervals under our notifiers, and the same ones in each peer.
struct Field {
    nr: u64,
    notifiers: Notifiers,
    subscriptions: Mutex<Vec<IntervalSubscription<Idle>>>,
    coitree: COITree<u32, u32>,
    superintervals: superintervals::IntervalMap<u32>,
    iset: Mutex<IntervalMap<u64, u32>>,
}

impl Field {
    fn new(nr: u64) -> Self {
        let notifiers = Notifiers::new(MmId(nr));
        let idle = Idle::new();
        let order = shuffled(nr);
        let mut iset = IntervalMap::new();
        let mut superintervals = superintervals::IntervalMap::new();
        let mut nodes: Vec<Interval<u32>> = Vec::new();
        let mut subscriptions = Vec::new();
        for &nth in &order {
            let (start, end) = (first(nth), first(nth) + PAGES);
            subscriptions.push(subscribe(&notifiers, &idle, nth));
            iset.force_insert(start..end, nth as u32);
            superintervals.add(start as i32, end as i32 - 1, nth as u32);
            nodes.push(Interval::new(start as i32, end as i32 - 1, nth as u32));
        }
        superintervals.build();
        Self {
            nr,
            notifiers,
            subscriptions: Mutex::new("bench.subscriptions", subscriptions),
            coitree: COITree::new(&nodes),
            superintervals,
            iset: Mutex::new("bench.iset", iset),
        }
    }
}

fn subscribe(notifiers: &Notifiers, idle: &Arc<Idle>, nth: u64) -> IntervalSubscription<Idle> {
    let (start, end) = (page(first(nth)), page(first(nth) + PAGES));
    notifiers
        .subscribe_interval("bench", start, end, Arc::clone(idle))
        .expect("not empty, not released")
}

/// Those who look for the one interval that a range meets. The first is a whole bracket, with the
/// sequence and two callbacks; the second calls the device that it finds. Peers find a number; one
/// of them also reads the line that belongs to it, as whoever has something to tell a device must.
const SEEKERS: [&str; 6] = [
    "bracket",
    "lookup",
    "coitrees",
    "superintervals",
    "superintervals and a record",
    "iset",
];

/// The name of a contender over a field of `nr` intervals.
fn among(seeker: &str, nr: u64) -> String {
    format!("{seeker} among {nr}")
}

/// One hit, by a bracket of ours, by a lookup of ours that calls the device it finds, and by a
/// lookup of each peer.
fn hits<'a>(field: &'a Field, records: &'a [Line], to: &mut Vec<Contender<'a>>) {
    let nr = field.nr;
    let names = SEEKERS.map(|seeker| among(seeker, nr));
    let [bracket, lookup, coitrees, superintervals, with_record, iset] = names;
    let mut dice = Dice(1);
    to.push(Contender::new(lookup, move || {
        time(NR, || {
            let at = first(dice.below(nr));
            black_box(field.notifiers.test_young(page(at), page(at + 1)));
        })
    }));
    let mut dice = Dice(1);
    to.push(Contender::new(bracket, move || {
        time(NR, || nonblock(&field.notifiers, dice.below(nr)))
    }));
    let mut dice = Dice(1);
    to.push(Contender::new(coitrees, move || {
        time(NR, || {
            let at = first(dice.below(nr)) as i32;
            field.coitree.query(at, at, |found| {
                black_box(found.metadata);
            });
        })
    }));
    let mut dice = Dice(1);
    to.push(Contender::new(superintervals, move || {
        time(NR, || {
            let at = first(dice.below(nr)) as i32;
            for found in field.superintervals.search_values_iter(at, at) {
                black_box(found);
            }
        })
    }));
    let mut dice = Dice(1);
    to.push(Contender::new(with_record, move || {
        time(NR, || {
            let at = first(dice.below(nr)) as i32;
            for found in field.superintervals.search_values_iter(at, at) {
                black_box(records[*found as usize].next);
            }
        })
    }));
    let mut dice = Dice(1);
    to.push(Contender::new(iset, move || {
        let iset = field.iset.lock();
        time(NR, || {
            let at = first(dice.below(nr));
            for found in iset.values(at..at + 1) {
                black_box(found);
            }
        })
    }));
}

const EMPTY: &str = "empty call";
const NONE: &str = "bracket, nobody";
const NONE_BLOCKABLE: &str = "bracket, nobody, blockable";
const ONE: &str = "bracket, one on the list";
const ONE_BLOCKABLE: &str = "bracket, one on the list, blockable";
const READ: &str = "read_begin and read_retry";
const INSERT: &str = "insert and remove at 1 000 000";
const INSERT_ISET: &str = "iset, insert and remove";
const MISS: &str = "one read of 1 000 000 lines";
const TWO: &str = "two threads, disjoint ranges";
const ALONE: &str = "one thread";

#[inline(never)]
fn empty(start: Vaddr) -> Vaddr {
    start
}

/// What needs no field of intervals.
fn brackets<'a>(nobody: &'a Notifiers, one: &'a Notifiers, to: &mut Vec<Contender<'a>>) {
    to.push(Contender::new(EMPTY, || {
        time(NR, || {
            black_box(empty(black_box(page(1))));
        })
    }));
    to.push(Contender::new(NONE, || time(NR, || nonblock(nobody, 1))));
    to.push(Contender::new(NONE_BLOCKABLE, || {
        time(NR, || blockable(nobody, 1))
    }));
    to.push(Contender::new(ONE, || time(NR, || nonblock(one, 1))));
    to.push(Contender::new(ONE_BLOCKABLE, || {
        time(NR, || blockable(one, 1))
    }));
}

/// Changes of the largest field, and lookups in it by its devices.
fn changes<'a>(field: &'a Field, lines: &'a [Line], to: &mut Vec<Contender<'a>>) {
    let idle = Idle::new();
    let mut dice = Dice(3);
    to.push(Contender::new(INSERT, move || {
        time(NR_CHANGES, || {
            drop(subscribe(&field.notifiers, &idle, dice.below(field.nr)));
        })
    }));
    let mut dice = Dice(3);
    to.push(Contender::new(INSERT_ISET, move || {
        let mut iset = field.iset.lock();
        time(NR_CHANGES, || {
            // One page beside, so that it takes out what it put in.
            let start = first(dice.below(field.nr)) + 1;
            iset.force_insert(start..start + PAGES, 7);
            black_box(iset.remove(start..start + PAGES));
        })
    }));
    let mut at = 0;
    to.push(Contender::new(MISS, move || {
        time(NR, || at = lines[black_box(at)].next)
    }));
    to.push(Contender::new(READ, move || {
        let subscriptions = field.subscriptions.lock();
        let subscription = &subscriptions[0];
        let witness = subscription.lock();
        time(NR, || {
            let seen = black_box(subscription).read_begin();
            black_box(subscription.read_retry(black_box(seen), &witness));
        })
    }));
}

/// Millions of brackets a second, by `nr_threads` threads, each with its own half of the field.
fn throughput(field: &Field, nr_threads: u64) -> Result<Vec<f64>, BenchError> {
    let half = field.nr / 2;
    let nr_running = AtomicU64::new(0);
    let run = |thread: u64| {
        let mut dice = Dice(thread);
        // None begins before all run.
        nr_running.fetch_add(1, Ordering::Relaxed);
        spin_wait("bench.go", 0, || {
            nr_running.load(Ordering::Relaxed) == nr_threads
        });
        let begun = Instant::now();
        for _ in 0..NR_THREADED {
            nonblock(&field.notifiers, thread * half + dice.below(half));
        }
        begun.elapsed()
    };
    let elapsed = std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..nr_threads)
            .map(|thread| scope.spawn(move || run(thread)))
            .collect();
        let threads = threads.into_iter();
        threads
            .map(|thread| thread.join().expect("a bracket does not panic"))
            .max()
    });
    let nr = nr_threads as f64 * f64::from(NR_THREADED);
    Ok(vec![nr / elapsed.unwrap_or_default().as_secs_f64() / 1e6])
}

/// Rows for brackets, hits, changes, lookups and threads.
pub(super) fn run(rounds: u32) -> Result<Outcome, BenchError> {
    let nobody = Notifiers::new(MmId(0));
    let one = Notifiers::new(MmId(1));
    let _subscription = one.subscribe("bench", Ranges::WholeMm, Idle::new());
    let fields = COUNTS.map(Field::new);
    let lines = ring();
    let mut contenders = Vec::new();
    brackets(&nobody, &one, &mut contenders);
    for field in &fields {
        hits(field, &lines, &mut contenders);
    }
    let [_, _, _, thousand, .., million] = &fields;
    changes(million, &lines, &mut contenders);
    contenders.push(Contender::new(ALONE, || throughput(thousand, 1)));
    contenders.push(Contender::new(TWO, || throughput(thousand, 2)));
    let measured = interleave(rounds, &mut contenders)?;
    Ok(Outcome {
        rows: rows(&measured),
        notes: vec![
            "a lookup of ours holds the version that it searches and calls the device it finds; \
             the peers take no change while they are searched, but iset"
                .to_owned(),
            format!(
                "a hit among a million reads two lines at least that are in no cache, one after \
                 the other: where the interval is found, and the subscription. \"{MISS}\" is what \
                 one costs; GLIBC_TUNABLES=glibc.malloc.hugetlb=1 puts all of it on huge pages"
            ),
        ],
        picture: Some(Picture::Curves(curves(&measured))),
    })
}

fn rows(measured: &Measured) -> Vec<Row> {
    let ns = |name: &'static str| Row::new(name, "ns", measured.of(name, 0));
    let beside_empty = |name| ns(name).beside(EMPTY, measured.of(EMPTY, 0));
    let mut rows = vec![
        beside_empty(NONE).within(Budget::Max(5.0)),
        beside_empty(NONE_BLOCKABLE).within(Budget::Max(5.0)),
        beside_empty(ONE).within(Budget::Max(25.0)),
        beside_empty(ONE_BLOCKABLE).within(Budget::Max(25.0)),
    ];
    for nr in BUDGETED {
        let [bracket, lookup, peers @ ..] = SEEKERS.map(|seeker| among(seeker, nr));
        let of = |name: &str| Row::new(name, "ns", measured.of(name, 0));
        let beside_lookup = of(&bracket).beside(lookup.as_str(), measured.of(&lookup, 0));
        rows.push(beside_lookup.within(Budget::Max(200.0)));
        for peer in &peers {
            let beside_peer = of(&lookup).beside(peer.as_str(), measured.of(peer, 0));
            rows.push(beside_peer.within(Budget::TimesPeerMax(1.0)));
        }
    }
    rows.push(ns(MISS));
    rows.push(ns(INSERT).beside(INSERT_ISET, measured.of(INSERT_ISET, 0)));
    rows.push(beside_empty(READ).within(Budget::Max(15.0)));
    rows.push(
        Row::new(TWO, "M/s", measured.of(TWO, 0))
            .beside(ALONE, measured.of(ALONE, 0))
            .within(Budget::TimesPeerMin(1.7)),
    );
    rows
}

fn curves(measured: &Measured) -> Curves {
    let line = |seeker: &str| {
        let value = |nr| measured.of(&among(seeker, nr), 0).median();
        (seeker.to_owned(), COUNTS.map(value).to_vec())
    };
    Curves {
        title: "One hit among many intervals".to_owned(),
        counted: "intervals".to_owned(),
        unit: "ns",
        counts: COUNTS.to_vec(),
        lines: SEEKERS.map(line).into(),
    }
}
