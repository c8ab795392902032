//! The invariants of intervals, hooks, shares and misuse, each with its number in the
//! specification of the mechanism.

use super::super::*;
use crate::addr::Vaddr;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use lockdep::Validator;
use lockdep::sync::{Completion, Fence, Mutex, ShortLock};
use std::sync::Arc;
use std::thread;

const EVER: Duration = Duration::from_secs(60);

type Log = Arc<ShortLock<Vec<String>>>;

/// What a callback does that it should not.
type Act = Box<dyn FnMut() + Send>;

/// Writes down how it is called; may do something more in `start`.
struct Probe {
    name: &'static str,
    log: Log,
    lock: ShortLock<u32>,
    refuses: bool,
    owner: Option<Owner>,
    is_young: bool,
    act: ShortLock<Option<Act>>,
}

impl Probe {
    fn new(name: &'static str, log: &Log) -> Self {
        Self {
            name,
            log: Arc::clone(log),
            lock: ShortLock::new("test.lock", 0),
            refuses: false,
            owner: None,
            is_young: false,
            act: ShortLock::new("test.act", None),
        }
    }

    fn note(&self, what: &str) {
        self.log.lock().push(format!("{what} {}", self.name));
    }
}

impl Notifier for Probe {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        if self.refuses {
            cx.would_block().inspect_err(|_| self.note("refuse"))?;
        }
        self.note("start");
        let act = self.act.lock().take();
        if let Some(mut act) = act {
            act();
        }
        Ok(())
    }

    fn end(&self, _range: &Range, _cx: &EndContext<'_>) {
        self.note("end");
    }

    fn release(&self, _cx: &Blockable<'_>) {
        self.note("release");
    }

    fn owner(&self) -> Option<Owner> {
        self.owner
    }

    fn clear_young(&self, _range: &Range, _cx: &EndContext<'_>) -> bool {
        self.note("clear");
        self.is_young
    }

    fn test_young(&self, _range: &Range, _cx: &EndContext<'_>) -> bool {
        self.note("test");
        self.is_young
    }
}

impl IntervalNotifier for Probe {
    type Lock = ShortLock<u32>;

    fn lock(&self) -> &ShortLock<u32> {
        &self.lock
    }
}

fn page(nr: u64) -> Vaddr {
    Vaddr(0x10_0000 + nr * 4096)
}

fn world() -> (Notifiers, Log) {
    let log = Arc::new(ShortLock::new("test.log", Vec::new()));
    (Notifiers::new(MmId(1)), log)
}

fn interval(
    notifiers: &Notifiers,
    log: &Log,
    name: &'static str,
    pages: core::ops::Range<u64>,
) -> IntervalSubscription<Probe> {
    subscribe(notifiers, pages, Probe::new(name, log))
}

fn subscribe(
    notifiers: &Notifiers,
    pages: core::ops::Range<u64>,
    probe: Probe,
) -> IntervalSubscription<Probe> {
    let (start, end) = (page(pages.start), page(pages.end));
    notifiers
        .subscribe_interval(probe.name, start, end, Arc::new(probe))
        .expect("not empty")
}

fn open(notifiers: &Notifiers, pages: core::ops::Range<u64>) -> Invalidation {
    notifiers
        .start_blockable(page(pages.start), page(pages.end), Event::Clear, EVER)
        .expect("nobody fails")
}

#[track_caller]
fn check_log(log: &Log, expected: &str) {
    assert_eq!(core::mem::take(&mut *log.lock()).join(", "), expected);
}

/// Intervals before the list, in start and in end; the list from the newest on.
#[test]
fn n19_intervals_come_before_the_list() {
    let (notifiers, log) = world();
    let _interval = interval(&notifiers, &log, "b", 2..4);
    let _lower = interval(&notifiers, &log, "a", 0..3);
    let _listed = notifiers.subscribe("c", Ranges::WholeMm, Arc::new(Probe::new("c", &log)));
    for (pages, starts, ends) in [
        (0..8, "start a, start b, start c", "end a, end b, end c"),
        (3..4, "start b, start c", "end b, end c"),
        (5..6, "start c", "end c"),
    ] {
        let bracket = open(&notifiers, pages);
        check_log(&log, starts);
        drop(bracket);
        check_log(&log, ends);
    }
}

/// Refusals of either kind: who was started gets its end, nobody else is called, the counts are as
/// before, and a lookup from before is still good, as nothing has changed.
#[test]
fn n20_n27_n55_a_refusal_leaves_everything_as_it_was() {
    for (refuses_in_tree, told) in [
        (true, "start a, refuse b, end a"),
        (false, "start a, start b, refuse c, end a, end b"),
    ] {
        let (notifiers, log) = world();
        let first = interval(&notifiers, &log, "a", 0..4);
        let probe = Probe {
            refuses: refuses_in_tree,
            ..Probe::new("b", &log)
        };
        let second = subscribe(&notifiers, 1..4, probe);
        let probe = Probe {
            refuses: !refuses_in_tree,
            ..Probe::new("c", &log)
        };
        let _listed = notifiers.subscribe("c", Ranges::WholeMm, Arc::new(probe));
        let before = [first.snapshot(), second.snapshot()];
        let (seen_first, seen_second) = (first.read_begin(), second.read_begin());
        let refused = notifiers.start_nonblock(page(0), page(2), Event::Unmap);
        let holder = refused.expect_err("one refuses").holder;
        assert_eq!(&*holder, if refuses_in_tree { "b" } else { "c" });
        check_log(&log, told);
        assert_eq!([first.snapshot(), second.snapshot()], before);
        assert!(!first.read_retry(seen_first, &first.lock()));
        assert!(!second.read_retry(seen_second, &second.lock()));
        first.remove();
        second.remove();
    }
}

/// Any number of brackets, in any order: the sequence is idle exactly when all over it are closed,
/// and counts each; a bracket beside it changes nothing.
#[test]
fn n28_n41_n43_n44_n53_n57_the_sequence_follows_the_brackets() {
    let (notifiers, log) = world();
    let subscription = interval(&notifiers, &log, "a", 2..4);
    let (_, first) = subscription.snapshot();
    let seen = subscription.read_begin();
    let beside = (open(&notifiers, 0..2), open(&notifiers, 4..6));
    assert_eq!(subscription.snapshot(), (0, first));
    assert!(!subscription.read_retry(seen, &subscription.lock()));
    let outer = open(&notifiers, 3..4);
    let wider = open(&notifiers, 0..8);
    assert_eq!(subscription.snapshot(), (2, first + 2));
    assert!(subscription.try_read_begin().is_none());
    assert!(
        subscription.check_retry(seen),
        "a hint that says so is right"
    );
    assert!(subscription.read_retry(seen, &subscription.lock()));
    thread::scope(|scope| scope.spawn(move || drop(outer)).join()).expect("no panic");
    assert!(subscription.try_read_begin().is_none(), "one is still open");
    drop(wider);
    assert!(subscription.read_retry(seen, &subscription.lock()));
    let seen = subscription.read_begin();
    assert!(!subscription.read_retry(seen, &subscription.lock()));
    drop(beside);
    subscription.remove();
}

/// Endless brackets over other ranges keep nobody waiting: one of them is always open.
#[test]
fn n51_a_reader_waits_for_its_own_range_only() {
    let (notifiers, log) = world();
    let subscription = interval(&notifiers, &log, "a", 0..2);
    let mut other = open(&notifiers, 4..6);
    for _ in 0..if cfg!(miri) { 5 } else { 100 } {
        let next = open(&notifiers, 2..8);
        drop(core::mem::replace(&mut other, next));
        let seen = subscription.read_begin();
        assert!(!subscription.read_retry(seen, &subscription.lock()));
    }
    drop(other);
    subscription.remove();
}

/// A reader sleeps until the bracket over its range is closed, and no longer; its wait can be
/// given up.
#[test]
fn n51_n116_a_waiting_reader_is_woken() {
    let (notifiers, log) = world();
    let subscription = interval(&notifiers, &log, "a", 0..2);
    let bracket = open(&notifiers, 0..1);
    let short = Duration::from_millis(1);
    assert!(subscription.read_begin_timeout(short).is_none());
    let begins = Completion::new("test.begins");
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            begins.complete_all();
            subscription.read_begin()
        });
        begins.wait();
        drop(bracket);
        let seen = reader.join().expect("no panic");
        assert!(!subscription.check_retry(seen));
    });
    subscription.remove();
}

/// Who joins while a bracket is open is not called by it, and looks nothing up before it closes;
/// brackets that begin later do not count.
#[test]
fn n42_n45_n46_joining_is_deferred() {
    let (notifiers, log) = world();
    let first = interval(&notifiers, &log, "a", 0..1);
    let before = open(&notifiers, 0..8);
    let late = interval(&notifiers, &log, "b", 2..4);
    let elsewhere = open(&notifiers, 6..8);
    check_log(&log, "start a");
    assert!(late.try_read_begin().is_none());
    drop(before);
    check_log(&log, "end a");
    assert!(
        late.try_read_begin().is_some(),
        "the later one is not waited for"
    );
    drop(elsewhere);
    first.remove();
    late.remove();
}

/// Who joins and leaves while a bracket is open is never called.
#[test]
fn n49_a_deferred_insert_that_is_removed_is_never_called() {
    let (notifiers, log) = world();
    let first = interval(&notifiers, &log, "a", 0..1);
    let bracket = open(&notifiers, 0..8);
    let late = interval(&notifiers, &log, "b", 2..4);
    drop(late);
    drop(open(&notifiers, 2..4));
    drop(bracket);
    check_log(&log, "start a, end a");
    first.remove();
}

/// A removal returns after the last bracket that may call it, and not before.
#[test]
fn n50_a_removal_waits_for_open_brackets() {
    let (notifiers, log) = world();
    let subscription = interval(&notifiers, &log, "a", 0..2);
    let bracket = open(&notifiers, 0..2);
    let notifiers = &notifiers;
    thread::scope(|scope| {
        let (log, other) = (&log, &log);
        scope.spawn(move || {
            let probe = subscription.remove();
            log.lock().push("removed".to_owned());
            assert!(Arc::into_inner(probe).is_some(), "nobody holds it any more");
        });
        lockdep::sync::spin_wait("test.left", 0, || notifiers.is_empty());
        other.lock().push("closing".to_owned());
        drop(bracket);
    });
    check_log(&log, "start a, closing, end a, removed");
}

#[test]
fn n47_n48_an_empty_interval_or_a_dead_space_is_an_error() {
    let (notifiers, log) = world();
    let ask = |start, end| {
        let probe = Arc::new(Probe::new("a", &log));
        let answer = notifiers.subscribe_interval("a", page(start), page(end), probe);
        answer.map(drop)
    };
    assert_eq!(ask(1, 1), Err(IntervalError::Empty));
    assert_eq!(ask(2, 1), Err(IntervalError::Empty));
    assert_eq!(ask(1, 2), Ok(()));
    notifiers.release(EVER).expect("nobody settles anything");
    assert_eq!(ask(1, 2), Err(IntervalError::Released));
    assert!(notifiers.is_empty());
}

/// Both kinds are released once, and forgotten.
#[test]
fn n12_intervals_are_released_first() {
    let (notifiers, log) = world();
    let listed = notifiers.subscribe("b", Ranges::WholeMm, Arc::new(Probe::new("b", &log)));
    let subscription = interval(&notifiers, &log, "a", 0..2);
    notifiers.release(EVER).expect("nobody settles anything");
    check_log(&log, "release a, release b");
    drop(open(&notifiers, 0..2));
    notifiers.release(EVER).expect("nobody is left");
    check_log(&log, "");
    subscription.remove();
    drop(listed);
}

/// Own `Migrate` and `Exclusive` only; nobody is the owner of anything else, or of no owner.
#[test]
fn n35_the_owner_is_left_out() {
    let (notifiers, log) = world();
    let me = Owner(7);
    let probe = Probe {
        owner: Some(me),
        ..Probe::new("a", &log)
    };
    let subscription = subscribe(&notifiers, 0..4, probe);
    let _listed = notifiers.subscribe("b", Ranges::WholeMm, Arc::new(Probe::new("b", &log)));
    for event in Event::ALL {
        for owner in [None, Some(me), Some(Owner(8))] {
            let bracket = notifiers
                .start_nonblock_for(page(0), page(1), event, owner)
                .expect("nobody refuses");
            drop(bracket);
            let is_own = matches!(event, Event::Migrate | Event::Exclusive) && owner == Some(me);
            let told = if is_own {
                "start b, end b"
            } else {
                "start a, start b, end a, end b"
            };
            check_log(&log, told);
        }
    }
    subscription.remove();
}

/// All are asked and their answers joined where they forget; one is enough where they do not.
#[test]
fn n36_young_is_what_any_device_says() {
    let (notifiers, log) = world();
    assert!(!notifiers.age(page(0), page(1)));
    let young = Probe {
        is_young: true,
        ..Probe::new("b", &log)
    };
    let subscriptions = (
        interval(&notifiers, &log, "a", 0..4),
        subscribe(&notifiers, 1..4, young),
        interval(&notifiers, &log, "c", 2..4),
    );
    assert!(notifiers.clear_young(page(2), page(3)));
    check_log(&log, "clear a, clear b, clear c");
    assert!(notifiers.age(page(2), page(3)));
    check_log(&log, "clear a, clear b, clear c");
    assert!(notifiers.test_young(page(2), page(3)));
    check_log(&log, "test a, test b");
    assert!(!notifiers.test_young(page(0), page(1)));
    check_log(&log, "test a");
    subscriptions.0.remove();
    subscriptions.1.remove();
    subscriptions.2.remove();
}

/// One subscription for each type; the last share ends it; a failure to make it subscribes nobody.
#[test]
fn n04_n06_n07_n08_n15_shares_are_of_one_subscription() {
    let (notifiers, log) = world();
    let failed = notifiers.get("a", Ranges::WholeMm, || Err::<Arc<Probe>, _>("no memory"));
    assert_eq!(failed.map(drop), Err("no memory"));
    assert!(notifiers.is_empty());
    let nr_made = AtomicU32::new(0);
    let get = || {
        let make = || {
            nr_made.fetch_add(1, Ordering::Relaxed);
            Ok::<_, &str>(Arc::new(Probe::new("a", &log)))
        };
        notifiers.get("a", Ranges::WholeMm, make).expect("made")
    };
    let (one, two) = (get(), get());
    assert!(Arc::ptr_eq(one.notifier(), two.notifier()));
    assert_eq!(nr_made.load(Ordering::Relaxed), 1);
    let alive = Arc::downgrade(one.notifier());
    drop(one);
    let bracket = open(&notifiers, 0..1);
    check_log(&log, "start a");
    drop(two);
    assert!(notifiers.is_empty());
    assert!(alive.upgrade().is_some(), "an open bracket keeps it");
    drop(bracket);
    notifiers.synchronize();
    assert!(alive.upgrade().is_none());
    check_log(&log, "end a");
    drop(get());
    assert_eq!(nr_made.load(Ordering::Relaxed), 2);
}

struct Walker {
    pages: AtomicU32,
}

impl TlbUser for Walker {
    fn flush(&self, range: &Range, _cx: &TlbContext<'_>) {
        self.pages
            .fetch_add(range.pages() as u32, Ordering::Relaxed);
    }
}

/// Those who walk the page table are told of flushes and of nothing else.
#[test]
fn n14_a_tlb_user_has_no_brackets() {
    let (notifiers, log) = world();
    let walker = Arc::new(Walker {
        pages: AtomicU32::new(0),
    });
    let subscription = notifiers.subscribe_tlb("walker", Arc::clone(&walker) as _);
    let listed = interval(&notifiers, &log, "a", 0..4);
    drop(open(&notifiers, 0..4));
    assert_eq!(walker.pages.load(Ordering::Relaxed), 0);
    notifiers.flush_tlb_users(page(0), page(3), Event::Protection);
    assert_eq!(walker.pages.load(Ordering::Relaxed), 3);
    check_log(&log, "start a, end a");
    subscription.synchronize();
    notifiers.flush_tlb_users(page(0), page(3), Event::Protection);
    assert_eq!(
        Arc::into_inner(walker).map(|walker| walker.pages.into_inner()),
        Some(3)
    );
    listed.remove();
}

/// The end of such a subscription waits for what runs, and so is reported in a callback.
#[test]
fn n56_a_tlb_user_that_is_waited_for_in_a_callback_is_reported() {
    let validator = Validator::new();
    let _entered = validator.enter();
    let (notifiers, log) = world();
    let walker = notifiers.subscribe_tlb(
        "walker",
        Arc::new(Walker {
            pages: AtomicU32::new(0),
        }),
    );
    let listed = interval(&notifiers, &log, "a", 0..4);
    let mut walker = Some(walker);
    let act = move || walker.take().map_or((), TlbSubscription::synchronize);
    *listed.notifier().act.lock() = Some(Box::new(act));
    drop(open(&notifiers, 0..1));
    assert_eq!(notifiers.stats().misuses, 1);
    notifiers.flush_tlb_users(page(0), page(3), Event::Protection);
    listed.remove();
}

/// What a misuse is reported as, and that it does not hang.
#[test]
fn n56_n102_n115_a_misuse_is_reported_by_name() {
    // The validator of locks reports some of them too.
    let validator = Validator::new();
    let _entered = validator.enter();
    let (notifiers, log) = world();
    let notifiers = Arc::new(notifiers);
    let reports = Arc::clone(&log);
    notifiers.on_misuse(move |report| {
        // Only tries: a report may come under the driver's short lock.
        let mut reports = reports.try_lock().expect("nobody else uses it");
        reports.push(report.to_string());
    });
    let victim = Arc::new(Mutex::new(
        "test.victim",
        Some(interval(&notifiers, &log, "v", 8..9)),
    ));
    let reader = Arc::new(interval(&notifiers, &log, "r", 0..4));
    let (of, gone) = (Arc::clone(&notifiers), Arc::clone(&victim));
    let (waits, touches, sleeps) = (of, Arc::clone(&notifiers), Arc::clone(&notifiers));
    let read = Arc::clone(&reader);
    let acts: [(Act, &str); 5] = [
        (
            Box::new(move || waits.synchronize()),
            "`r` waited inside a callback for brackets to close",
        ),
        (
            Box::new(move || drop(gone.lock().take().map(IntervalSubscription::remove))),
            "`r` waited inside a callback for brackets to close",
        ),
        (
            Box::new(move || assert!(touches.note_touch())),
            "`r` used managed memory inside a callback",
        ),
        (
            Box::new(move || drop(open(&sleeps, 20..21))),
            "`r` began a blockable bracket in a start that may not block",
        ),
        (
            Box::new(move || assert!(read.check_retry(read.read_begin()))),
            "`r` looked up pages inside a callback",
        ),
    ];
    for (act, report) in acts {
        *reader.notifier().act.lock() = Some(act);
        drop(notifiers.start_nonblock(page(0), page(1), Event::Clear));
        check_log(&log, &format!("start r, {report}, end r"));
    }
    let other = ShortLock::new("test.other", 0);
    assert!(reader.read_retry(reader.read_begin(), &Witness::lock(&other)));
    check_log(&log, "`r` was judged under a lock that is not its own");
    let bracket = open(&notifiers, 0..1);
    // That bracket does not know it.
    drop(interval(&notifiers, &log, "d", 0..1));
    drop(bracket);
    check_log(&log, "start r, end r");
    let dropped = interval(&notifiers, &log, "d", 0..1);
    let elsewhere = open(&notifiers, 5..6);
    drop(interval(&notifiers, &log, "e", 0..1));
    drop(elsewhere);
    let bracket = open(&notifiers, 0..1);
    drop(dropped);
    drop(bracket);
    let report = "`d` was dropped while a bracket over it was open";
    check_log(&log, &format!("start r, start d, {report}, end r, end d"));
    assert_eq!(notifiers.stats().misuses, 7);
    assert!(!notifiers.note_touch());
}

/// An interval may settle a fence, and is named if it does not signal; nothing has changed then.
#[test]
fn n18_n118_an_interval_that_is_stuck_is_named() {
    struct Hangs(ShortLock<()>, Fence);
    impl Notifier for Hangs {
        fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
            cx.settle(&self.1)
        }
    }
    impl IntervalNotifier for Hangs {
        type Lock = ShortLock<()>;
        fn lock(&self) -> &ShortLock<()> {
            &self.0
        }
    }
    let (notifiers, log) = world();
    let first = interval(&notifiers, &log, "a", 0..2);
    let fence = Fence::new("test.fence");
    let hangs = Arc::new(Hangs(ShortLock::new("test.hangs", ()), fence.clone()));
    let second = notifiers
        .subscribe_interval("gpu", page(1), page(2), hangs)
        .expect("not empty");
    let before = (first.snapshot(), second.snapshot());
    let opened = notifiers.start_blockable(page(0), page(2), Event::Clear, Duration::ZERO);
    assert_eq!(&**opened.expect_err("it hangs").holder(), "gpu");
    assert_eq!((first.snapshot(), second.snapshot()), before);
    check_log(&log, "start a, end a");
    fence.signal();
    drop(open(&notifiers, 0..2));
    first.remove();
    second.remove();
}

/// The number wraps without anybody noticing.
#[test]
fn n58_the_number_wraps() {
    use super::super::sequence::{Look, Sequence};
    let last = (1 << 40) - 1;
    let sequence = Sequence::new_open(last);
    let _nobody_waits = sequence.end();
    assert_eq!(sequence.look(), Look::Idle(last));
    sequence.begin();
    assert!(!sequence.is_at(last));
    assert_eq!(sequence.look(), Look::Open);
    let _nobody_waits = sequence.end();
    assert_eq!(sequence.look(), Look::Idle(0));
}

/// A million changes while one bracket is open are applied when it closes, without recursion.
#[test]
fn n45_a_long_row_of_deferred_changes_is_applied() {
    const NR: usize = if cfg!(miri) { 10 } else { 20_000 };
    let (notifiers, log) = world();
    let first = interval(&notifiers, &log, "a", 0..1);
    let bracket = open(&notifiers, 0..1);
    let late: Vec<_> = (0..NR)
        .map(|_| interval(&notifiers, &log, "b", 2..4))
        .collect();
    assert!(late.iter().all(|late| late.try_read_begin().is_none()));
    drop(bracket);
    assert!(late.iter().all(|late| late.try_read_begin().is_some()));
    drop(late);
    first.remove();
    assert!(notifiers.is_empty());
}
