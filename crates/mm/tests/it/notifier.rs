//! The sequence protocol under schedules: no stale translation, no callback after the end, no
//! sleeper who is not woken; and each bug that is put back is found, by chance and by priorities.
//! One task runs at a time, so the atomics here order nothing.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use lockdep::scheduler::scheduler_point;
use lockdep::sync::Mutex;
use pinless_mm::addr::{PAGE_SIZE, Vaddr};
use pinless_mm::mmu_notifier::{
    Context, EndContext, Event, Inject, IntervalNotifier, IntervalSubscription, MmId, Notifier,
    Notifiers, Range, Ranges,
};
use pinless_sim::{Explore, Sim, Strategy};
use std::ops;
use std::sync::Arc;

const NR_PAGES: usize = 4;

const EVER: Duration = Duration::from_secs(600);

/// Schedules in which a bug must be found.
const NR_TO_FIND: u64 = 10_000;

/// Schedules that the right code passes here with each strategy; `PINLESS_SCHEDULES` asks for more.
fn nr_to_pass() -> u64 {
    let asked = std::env::var("PINLESS_SCHEDULES").ok();
    asked.and_then(|nr| nr.parse().ok()).unwrap_or(50_000)
}

/// Chance, and priorities that fall four times: most of the bugs need two switches at given places,
/// and the tasks that are not part of one must not come in between.
const STRATEGIES: [Strategy; 2] = [Strategy::Drawn, Strategy::Pct { depth: 5, steps: 0 }];

fn page(nr: usize) -> Vaddr {
    Vaddr(((nr + 1) * PAGE_SIZE) as u64)
}

fn pages_of(range: &Range) -> ops::Range<usize> {
    let nr = |at: Vaddr| (at.0 as usize / PAGE_SIZE).saturating_sub(1).min(NR_PAGES);
    nr(range.start)..nr(range.end)
}

/// An address space as brackets and devices see it: what is at each page, counted up.
struct Space {
    notifiers: Notifiers,
    pages: [AtomicU64; NR_PAGES],
}

impl Space {
    fn new(fault: Inject) -> Arc<Self> {
        let notifiers = Notifiers::new(MmId(1));
        notifiers.inject(fault);
        Arc::new(Self {
            notifiers,
            pages: Default::default(),
        })
    }

    fn look_up(&self, nr: usize) -> u64 {
        scheduler_point("test.page", 0);
        self.pages[nr].load(Ordering::Relaxed)
    }

    /// Changes pages inside of a bracket; false if it was refused.
    fn change(&self, which: ops::Range<usize>, is_blockable: bool, watched: &Device) -> bool {
        let (start, end) = (page(which.start), page(which.end));
        let bracket = if is_blockable {
            let opened = self
                .notifiers
                .start_blockable(start, end, Event::Clear, EVER);
            Some(opened.expect("a blockable bracket is not refused"))
        } else {
            let opened = self.notifiers.start_nonblock(start, end, Event::Clear);
            opened.ok()
        };
        if bracket.is_none() {
            return false;
        }
        for nr in which {
            scheduler_point("test.change", 0);
            watched.check_gone(nr);
            self.pages[nr].fetch_add(1, Ordering::Relaxed);
        }
        drop(bracket);
        true
    }
}

/// How a device looks pages up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Care {
    /// As it should.
    Right,
    /// It asks whether to retry before it takes its lock.
    AsksOutsideTheLock,
}

/// A device with a table of translations: what it believes to be at each page.
struct Device {
    table: Mutex<[Option<u64>; NR_PAGES]>,
    is_removed: AtomicBool,
}

impl Device {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::new("test.table", [None; NR_PAGES]),
            is_removed: AtomicBool::new(false),
        })
    }

    /// Invariant 17: nothing is translated when a page changes.
    fn check_gone(&self, nr: usize) {
        let at = self.table.lock()[nr];
        assert_eq!(at, None, "page {nr} changes and is still translated");
    }

    fn translate(subscription: &IntervalSubscription<Self>, space: &Space, nr: usize, care: Care) {
        loop {
            let seen = subscription.read_begin();
            let at = space.look_up(nr);
            if care == Care::AsksOutsideTheLock {
                if subscription.check_retry(seen) {
                    continue;
                }
                subscription.lock()[nr] = Some(at);
                return;
            }
            let mut table = subscription.lock();
            if !subscription.read_retry(seen, &table) {
                table[nr] = Some(at);
                return;
            }
        }
    }

    /// Uses the translation, if there is one: it must be that of now. No bracket gets past the
    /// callback while the table is locked.
    fn access(&self, space: &Space, nr: usize) {
        let table = self.table.lock();
        if let Some(at) = table[nr] {
            assert_eq!(at, space.look_up(nr), "page {nr} was used and is stale");
        }
    }
}

impl Notifier for Device {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let mut table = cx.lock(&self.table)?;
        scheduler_point("test.start", 0);
        assert!(
            !self.is_removed.load(Ordering::Relaxed),
            "called after its end"
        );
        table[pages_of(range)].fill(None);
        Ok(())
    }

    fn end(&self, _range: &Range, _cx: &EndContext<'_>) {
        assert!(
            !self.is_removed.load(Ordering::Relaxed),
            "called after its end"
        );
    }
}

impl IntervalNotifier for Device {
    type Lock = Mutex<[Option<u64>; NR_PAGES]>;

    fn lock(&self) -> &Self::Lock {
        &self.table
    }
}

/// A member of the list that refuses every other time it may.
struct Refuser(AtomicU64);

impl Notifier for Refuser {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        if self.0.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            cx.would_block()?;
        }
        Ok(())
    }
}

/// Two threads change pages, one of them where it may be refused; a device subscribes, looks
/// pages up, uses them, and leaves, twice.
fn protocol(sim: &Sim, fault: Inject, care: Care) {
    let space = Space::new(fault);
    let refuser = Arc::new(Refuser(AtomicU64::new(0)));
    let listed = space
        .notifiers
        .subscribe("refuser", Ranges::WholeMm, refuser);
    let device = Device::new();
    for (which, is_blockable) in [(0..2, true), (1..3, false)] {
        let (space, device) = (Arc::clone(&space), Arc::clone(&device));
        sim.spawn("changer", move || {
            for _ in 0..3 {
                space.change(which.clone(), is_blockable, &device);
            }
        });
    }
    let (used, by) = (Arc::clone(&space), Arc::clone(&device));
    sim.spawn("device", move || {
        for _ in 0..2 {
            by.is_removed.store(false, Ordering::Relaxed);
            let subscription = used
                .notifiers
                .subscribe_interval("device", page(0), page(3), Arc::clone(&by))
                .expect("not empty");
            for nr in [1, 0] {
                Device::translate(&subscription, &used, nr, care);
                by.access(&used, nr);
            }
            // Invariant 119: what it translated goes before the subscription does.
            by.table.lock().fill(None);
            subscription.remove();
            by.is_removed.store(true, Ordering::Relaxed);
        }
    });
    sim.join_all();
    assert_eq!(space.notifiers.stats().panics, 0, "a callback failed");
    check_at_rest(&space);
    drop(listed);
}

/// Invariants 27, 40 to 45: with no bracket open, whoever subscribes waits for nobody.
fn check_at_rest(space: &Space) {
    let late = space
        .notifiers
        .subscribe_interval("late", page(0), page(NR_PAGES), Device::new())
        .expect("not empty");
    assert!(late.try_read_begin().is_some(), "a bracket was left open");
    late.remove();
}

#[test]
fn n17_n54_n119_no_translation_is_stale_under_any_schedule() {
    for strategy in STRATEGIES {
        let explored = Explore::new(0..nr_to_pass())
            .strategy(strategy)
            .check(|sim| protocol(sim, Inject::None, Care::Right));
        assert!(explored.is_complete);
    }
}

/// What was broken, with which switch and how the device looks up.
const BUGS: [(&str, Inject, Care); 8] = [
    ("the number grows after", Inject::BumpAfter, Care::Right),
    ("nothing is deferred", Inject::ForgetDeferred, Care::Right),
    ("nobody is woken", Inject::LoseWakeUp, Care::Right),
    ("no roll-back", Inject::ForgetIntervals, Care::Right),
    ("asks unlocked", Inject::None, Care::AsksOutsideTheLock),
    ("removes early", Inject::RemoveEarly, Care::Right),
    ("ends before the change", Inject::LateEnd, Care::Right),
    ("nobody is told", Inject::SkipNotifier, Care::Right),
];

/// Each is found, with either strategy; what was found fails again with the same choices.
#[test]
fn n120_each_bug_that_is_put_back_is_found() {
    for strategy in STRATEGIES {
        for (what, fault, care) in BUGS {
            let explored = Explore::new(0..NR_TO_FIND)
                .strategy(strategy)
                .find(move |sim| protocol(sim, fault, care));
            println!("{what}, {strategy}: {} schedules", explored.nr_runs);
            let run = explored.failure;
            let run = run.unwrap_or_else(|| panic!("not found with {strategy}: {what}"));
            assert!(run.to_string().contains("PINLESS_SIM="), "{run}");
            let again = Sim::replay(run.seed, &run.schedule, move |sim| {
                protocol(sim, fault, care);
            });
            assert_eq!((again.end, again.digest), (run.end, run.digest), "{what}");
        }
    }
}
