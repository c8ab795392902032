//! The contract of the module's head, each sentence with the test that would see it broken.

use super::super::*;
use crate::addr::Vaddr;
use core::sync::atomic::{AtomicI64, Ordering};
use core::time::Duration;
use lockdep::sync::{Completion, Fence, Mutex, ShortLock};
use std::sync::Arc;
use std::thread;

/// Long enough never to pass in a test that is right.
const EVER: Duration = Duration::from_secs(60);

type Log = Arc<ShortLock<Vec<String>>>;

/// What a probe's `start` does.
#[derive(Clone, Default)]
enum Answer {
    #[default]
    Accept,
    WouldBlock,
    Settle(Vec<Fence>),
    Panic,
}

/// A notifier that writes down how it is called.
struct Probe {
    name: &'static str,
    log: Log,
    answer: ShortLock<Answer>,
    panics_in_end: bool,
    own: Mutex<Option<Subscription>>,
}

impl Probe {
    fn new(name: &'static str, log: &Log) -> Self {
        Self {
            name,
            log: Arc::clone(log),
            answer: ShortLock::new("test.answer", Answer::Accept),
            panics_in_end: false,
            own: Mutex::new("test.own", None),
        }
    }

    fn answering(self, answer: Answer) -> Self {
        *self.answer.lock() = answer;
        self
    }

    fn note(&self, what: &str) {
        self.log.lock().push(format!("{what} {}", self.name));
    }
}

impl Notifier for Probe {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let answer = self.answer.lock().clone();
        match answer {
            Answer::Accept => {}
            Answer::WouldBlock => cx.would_block().inspect_err(|_| self.note("refuse"))?,
            Answer::Settle(fences) => {
                for fence in &fences {
                    cx.settle(fence).inspect_err(|_| self.note("refuse"))?;
                }
            }
            Answer::Panic => throw(),
        }
        self.note("start");
        Ok(())
    }

    fn end(&self, _range: &Range, _cx: &EndContext<'_>) {
        self.note("end");
        if self.panics_in_end {
            throw();
        }
    }

    fn release(&self, _cx: &Blockable<'_>) {
        self.note("release");
        drop(self.own.lock().take());
    }
}

/// A panic without a message on the terminal, whose payload panics again when it is dropped.
fn throw() -> ! {
    struct Grenade;
    impl Drop for Grenade {
        fn drop(&mut self) {
            // Of no size: it is never dropped, as that might panic again, and Miri counts leaks.
            std::panic::resume_unwind(Box::new(()));
        }
    }
    std::panic::resume_unwind(Box::new(Grenade))
}

fn signal_all(fences: &[Fence]) {
    for fence in fences {
        assert!(fence.signal(), "signalled before");
    }
}

fn log() -> Log {
    Arc::new(ShortLock::new("test.log", Vec::new()))
}

fn taken(log: &Log) -> Vec<String> {
    core::mem::take(&mut log.lock())
}

fn page(nr: u64) -> Vaddr {
    Vaddr(0x10_0000 + nr * 4096)
}

fn nonblock(notifiers: &Notifiers) -> Result<Invalidation, Refused> {
    notifiers.start_nonblock(page(0), page(1), Event::Clear)
}

fn blockable(notifiers: &Notifiers, deadline: Duration) -> Result<Invalidation, BracketError> {
    notifiers.start_blockable(page(0), page(1), Event::Clear, deadline)
}

/// Subscribes `d`, `c`, `b`, `a` in this order, so that they are called from `a` to `d`; `at`
/// answers with `answer`.
fn four(notifiers: &Notifiers, log: &Log, at: usize, answer: Answer) -> Vec<Subscription> {
    let subscribe = |(position, name): (usize, &'static str)| {
        let mut probe = Probe::new(name, log);
        if position == at {
            probe = probe.answering(answer.clone());
        }
        notifiers.subscribe(name, Ranges::WholeMm, Arc::new(probe))
    };
    ["a", "b", "c", "d"]
        .into_iter()
        .enumerate()
        .rev()
        .map(subscribe)
        .collect()
}

#[track_caller]
fn check_log(log: &Log, expected: &str) {
    assert_eq!(taken(log).join(", "), expected);
}

const NOBODY: usize = usize::MAX;

/// The newest first, and one end for each start.
#[test]
fn n03_n18_the_newest_is_called_first() {
    let (notifiers, log) = (Notifiers::new(MmId(7)), log());
    let _subscriptions = four(&notifiers, &log, NOBODY, Answer::Accept);
    for mode in Mode::ALL {
        let invalidation = match mode {
            Mode::NonBlock => nonblock(&notifiers).expect("nobody refuses"),
            Mode::Blockable => blockable(&notifiers, EVER).expect("nobody fails"),
        };
        assert_eq!(
            (invalidation.range().mm, invalidation.range().mode),
            (MmId(7), mode)
        );
        check_log(&log, "start a, start b, start c, start d");
        drop(invalidation);
        check_log(&log, "end a, end b, end c, end d");
    }
}

/// After a refusal those whose start succeeded get their end, once;
/// who refused gets none, and who comes later is not called at all.
#[test]
fn n18_n21_n22_a_refusal_ends_what_was_started() {
    let rows = [
        (0, "refuse a"),
        (1, "start a, refuse b, end a"),
        (2, "start a, start b, refuse c, end a, end b"),
        (
            3,
            "start a, start b, start c, refuse d, end a, end b, end c",
        ),
    ];
    let unsignalled = Answer::Settle(vec![Fence::new("test.fence")]);
    for (at, expected) in rows {
        for answer in [Answer::WouldBlock, unsignalled.clone()] {
            let (notifiers, log) = (Notifiers::new(MmId(1)), log());
            let _subscriptions = four(&notifiers, &log, at, answer);
            let refused = nonblock(&notifiers).expect_err("one refuses");
            assert_eq!(&*refused.holder, ["a", "b", "c", "d"][at]);
            check_log(&log, expected);
            assert_eq!(notifiers.stats().refusals, 1);
        }
    }
}

/// The canary of the one above: ends that a refused bracket forgets are missed.
#[test]
fn a_refusal_that_forgets_its_ends_is_seen() {
    let (notifiers, log) = (Notifiers::new(MmId(1)), log());
    let _subscriptions = four(&notifiers, &log, 2, Answer::WouldBlock);
    notifiers.inject(Inject::ForgetList);
    let refused = nonblock(&notifiers).expect_err("one refuses");
    assert_eq!(&*refused.holder, "c");
    check_log(&log, "start a, start b, refuse c");
}

/// Guarantee G3: what refuses when it must not block, accepts when it may.
#[test]
fn n24_a_blockable_start_is_not_refused() {
    let (notifiers, log) = (Notifiers::new(MmId(1)), log());
    let _subscriptions = four(&notifiers, &log, 1, Answer::WouldBlock);
    drop(blockable(&notifiers, Duration::ZERO).expect("a blockable start cannot be refused"));
    check_log(
        &log,
        "start a, start b, start c, start d, end a, end b, end c, end d",
    );
}

/// A panic counts as a refusal where there are refusals, and as an error where there are none.
#[test]
fn panic_in_start_is_contained() {
    let (notifiers, log) = (Notifiers::new(MmId(1)), log());
    let _subscriptions = four(&notifiers, &log, 2, Answer::Panic);
    let refused = nonblock(&notifiers).expect_err("it panics");
    assert_eq!(&*refused.holder, "c");
    check_log(&log, "start a, start b, end a, end b");
    let error = blockable(&notifiers, EVER).expect_err("it panics");
    assert!(matches!(&error, BracketError::Panicked { holder } if &**holder == "c"));
    check_log(&log, "start a, start b, end a, end b");
    assert_eq!(notifiers.stats().panics, 2);
}

#[test]
fn panic_in_end_does_not_stop_the_other_ends() {
    let (notifiers, log) = (Notifiers::new(MmId(1)), log());
    let _older = notifiers.subscribe("b", Ranges::WholeMm, Arc::new(Probe::new("b", &log)));
    let bad = Probe {
        panics_in_end: true,
        ..Probe::new("a", &log)
    };
    let _newer = notifiers.subscribe("a", Ranges::WholeMm, Arc::new(bad));
    let told = Arc::new(Mutex::new("test.told", Vec::new()));
    let sink = Arc::clone(&told);
    notifiers.on_misuse(move |report| sink.lock().push(report.to_string()));
    drop(nonblock(&notifiers).expect("nobody refuses"));
    check_log(&log, "start a, start b, end a, end b");
    assert_eq!(notifiers.stats().panics, 1);
    assert_eq!(*told.lock(), ["`a` panicked inside a callback, its end"]);
}

/// The core asks only those who are concerned, and neighbours are not.
#[test]
fn n34_n57_ranges_filter_before_any_callback() {
    let only = |pages: &[(u64, u64)]| {
        Ranges::Only(
            pages
                .iter()
                .map(|&(start, end)| page(start)..page(end))
                .collect(),
        )
    };
    let rows: [(Ranges, &[u64]); 8] = [
        (Ranges::WholeMm, &[0, 1, 2, 3, 4, 5, 6, 7]),
        (only(&[]), &[]),
        (only(&[(3, 3), (5, 4)]), &[]),
        (only(&[(2, 4)]), &[2, 3]),
        (only(&[(6, 7), (1, 2)]), &[1, 6]),
        (only(&[(4, 6), (1, 3), (2, 5)]), &[1, 2, 3, 4, 5]),
        (only(&[(5, 6), (1, 7), (2, 3)]), &[1, 2, 3, 4, 5, 6]),
        (only(&[(1, 2), (3, 4), (4, 5), (7, 8)]), &[1, 3, 4, 7]),
    ];
    for (ranges, expected) in rows {
        let (notifiers, log) = (Notifiers::new(MmId(1)), log());
        let probe = Probe::new("a", &log).answering(Answer::WouldBlock);
        let _subscription = notifiers.subscribe("a", ranges.clone(), Arc::new(probe));
        for (start, end) in (0..8).flat_map(|start| (start + 1..=8).map(move |end| (start, end))) {
            let is_refused = notifiers
                .start_nonblock(page(start), page(end), Event::Unmap)
                .is_err();
            let is_concerned = expected.iter().any(|nr| (start..end).contains(nr));
            assert_eq!(is_refused, is_concerned, "{start}..{end} of {ranges:?}");
        }
    }
}

/// Any number of brackets, over one another, nested, crossed, closed in any
/// order and in any thread, and with nothing changed inside.
#[test]
fn n28_n33_brackets_close_in_any_order() {
    let orders = [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ];
    for order in orders {
        let (notifiers, log) = (Notifiers::new(MmId(1)), log());
        let probe = Arc::new(Probe::new("a", &log));
        let _subscription = notifiers.subscribe("a", Ranges::WholeMm, probe);
        let mut open = [(0, 4), (2, 6), (0, 8)].map(|(start, end)| {
            let (start, end) = (page(start), page(end));
            Some(
                notifiers
                    .start_nonblock(start, end, Event::Clear)
                    .expect("nobody refuses"),
            )
        });
        check_log(&log, "start a, start a, start a");
        for index in order {
            let invalidation = open[index].take();
            thread::scope(|scope| scope.spawn(move || drop(invalidation)).join())
                .expect("the end does not panic");
            check_log(&log, "end a");
        }
    }
}

/// The waits for several devices overlap. Each fence is signalled only after every
/// start was called, so a core that waited after each start would never get on.
#[test]
fn n118_settling_waits_once_for_all() {
    let (notifiers, log) = (Notifiers::new(MmId(1)), log());
    let fences: Vec<Fence> = (0..4).map(|_| Fence::new("test.fence")).collect();
    let _subscriptions: Vec<Subscription> = fences
        .iter()
        .map(|fence| {
            let probe = Probe::new("a", &log).answering(Answer::Settle(vec![fence.clone()]));
            notifiers.subscribe("a", Ranges::WholeMm, Arc::new(probe))
        })
        .collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            lockdep::sync::spin_wait("test.starts", 0, || log.lock().len() == fences.len());
            signal_all(&fences);
        });
        drop(blockable(&notifiers, EVER).expect("all settle"));
    });
    assert_eq!(log.lock().len(), 8);
}

/// More fences than a bracket can hold back cost overlap, not correctness.
#[test]
fn settling_more_than_the_queue_holds() {
    let fences: Vec<Fence> = (0..SETTLE_QUEUE * 2 + 1)
        .map(|_| Fence::new("test.fence"))
        .collect();
    let (notifiers, log) = (Notifiers::new(MmId(1)), log());
    let probe = Probe::new("a", &log).answering(Answer::Settle(fences.clone()));
    let _subscription = notifiers.subscribe("a", Ranges::WholeMm, Arc::new(probe));
    thread::scope(|scope| {
        scope.spawn(|| signal_all(&fences));
        drop(blockable(&notifiers, EVER).expect("all settle"));
    });
    check_log(&log, "start a, end a");
    // And when they do not settle, the bracket fails while the queue is being filled.
    let silent = (0..SETTLE_QUEUE + 1)
        .map(|_| Fence::new("test.fence"))
        .collect();
    let probe = Probe::new("b", &log).answering(Answer::Settle(silent));
    let _subscription = notifiers.subscribe("b", Ranges::WholeMm, Arc::new(probe));
    let error = blockable(&notifiers, Duration::ZERO).expect_err("nobody signals");
    assert_eq!(&**error.holder(), "b");
    check_log(&log, "start b, end b");
}

/// A deadline that passes closes the bracket and names who.
#[test]
fn n18_n23_a_missed_deadline_names_the_holder_and_ends_all() {
    let (notifiers, log) = (Notifiers::new(MmId(1)), log());
    let hung = Fence::new("test.fence");
    let _subscriptions = four(&notifiers, &log, 1, Answer::Settle(vec![hung.clone()]));
    let deadline = Duration::from_millis(2);
    match blockable(&notifiers, deadline).expect_err("the fence is not signalled") {
        BracketError::Stuck {
            holder,
            fence,
            waited,
        } => {
            assert_eq!((&*holder, fence, waited), ("b", hung.clone(), deadline));
        }
        other => panic!("{other}"),
    }
    check_log(
        &log,
        "start a, start b, start c, start d, end a, end b, end c, end d",
    );
    assert_eq!(notifiers.stats().stuck, 1);
    hung.signal();
    drop(blockable(&notifiers, Duration::ZERO).expect("a signalled fence needs no wait"));
}

/// Who leaves during a bracket gets its end all the same, and nothing after.
#[test]
fn n07_n30_who_leaves_during_a_bracket_gets_its_end() {
    let (notifiers, log) = (Notifiers::new(MmId(1)), log());
    let probe = Arc::new(Probe::new("a", &log));
    let alive = Arc::downgrade(&probe);
    let subscription = notifiers.subscribe("a", Ranges::WholeMm, probe);
    let open = nonblock(&notifiers).expect("nobody refuses");
    drop(subscription);
    assert!(notifiers.is_empty());
    drop(nonblock(&notifiers).expect("nobody is called"));
    check_log(&log, "start a");
    assert_eq!(
        alive.strong_count(),
        1,
        "the open bracket keeps the notifier"
    );
    drop(open);
    check_log(&log, "end a");
    assert_eq!(alive.strong_count(), 0, "let go of");
    assert_eq!(notifiers.stats().misuses, 0, "nothing is left open");
}

/// Who joins during a bracket has no part in it: no end without a start.
#[test]
fn n02_who_joins_during_a_bracket_has_no_part_in_it() {
    let (notifiers, log) = (Notifiers::new(MmId(1)), log());
    let of_nobody = nonblock(&notifiers).expect("nobody is called");
    let _first = notifiers.subscribe("a", Ranges::WholeMm, Arc::new(Probe::new("a", &log)));
    let of_one = nonblock(&notifiers).expect("nobody refuses");
    let _second = notifiers.subscribe("b", Ranges::WholeMm, Arc::new(Probe::new("b", &log)));
    drop(of_nobody);
    drop(of_one);
    check_log(&log, "start a, end a");
}

/// Invariant 9: `synchronize` returns after the last callback, and the notifier is free.
#[test]
fn n09_synchronize_waits_for_open_brackets() {
    let (notifiers, log) = (Notifiers::new(MmId(1)), log());
    let probe = Arc::new(Probe::new("a", &log));
    let subscription = notifiers.subscribe("a", Ranges::WholeMm, Arc::clone(&probe));
    let open = nonblock(&notifiers).expect("nobody refuses");
    let is_unlinked = Completion::new("test.unlinked");
    thread::scope(|scope| {
        scope.spawn(|| {
            is_unlinked.wait();
            log.lock().push("closing".to_owned());
            drop(open);
        });
        scope.spawn(|| {
            lockdep::sync::spin_wait("test.empty", 0, || notifiers.is_empty());
            is_unlinked.complete_all();
        });
        subscription.synchronize();
        log.lock().push("synchronized".to_owned());
    });
    check_log(&log, "start a, closing, end a, synchronized");
    assert!(Arc::try_unwrap(probe).is_ok(), "no list holds the notifier");
}

/// One release each, newest first; a subscription may end itself there; and
/// whoever comes later, bracket or subscription, is not called.
#[test]
fn n08_n10_release_calls_each_once_and_empties_the_list() {
    let (notifiers, log) = (Notifiers::new(MmId(1)), log());
    let kept = notifiers.subscribe("b", Ranges::Only(vec![]), Arc::new(Probe::new("b", &log)));
    let own = Arc::new(Probe::new("a", &log));
    *own.own.lock() = Some(notifiers.subscribe("a", Ranges::WholeMm, Arc::clone(&own)));
    let open = nonblock(&notifiers).expect("nobody refuses");
    notifiers.release(EVER).expect("nobody settles anything");
    check_log(&log, "start a, release a, release b");
    drop(open);
    check_log(&log, "end a");
    notifiers.release(EVER).expect("nobody is left");
    let late = notifiers.subscribe("c", Ranges::WholeMm, Arc::new(Probe::new("c", &log)));
    assert!(notifiers.is_empty());
    drop(blockable(&notifiers, EVER).expect("nobody is called"));
    late.synchronize();
    kept.synchronize();
    check_log(&log, "");
}

/// What several devices settle when they are released is waited for to the last fence, however
/// often the teardown is tried again; nobody is released twice.
#[test]
fn n11_a_release_ends_when_the_last_fence_has_signalled() {
    struct Late(&'static str, Vec<Fence>, Log);
    impl Notifier for Late {
        fn start<C: Context>(&self, _range: &Range, _cx: &C) -> Result<(), C::Refusal> {
            Ok(())
        }

        fn release(&self, cx: &Blockable<'_>) {
            self.2.lock().push(format!("release {}", self.0));
            for fence in &self.1 {
                let Ok(()) = cx.settle(fence);
            }
        }
    }
    let (notifiers, log) = (Notifiers::new(MmId(1)), log());
    let fences: Vec<_> = (0..SETTLE_QUEUE + 4)
        .map(|_| Fence::new("test.late"))
        .collect();
    let (of_a, of_b) = fences.split_at(2);
    let subscribe = |name, fences: &[Fence]| {
        let late = Late(name, fences.to_vec(), Arc::clone(&log));
        notifiers.subscribe(name, Ranges::WholeMm, Arc::new(late))
    };
    let _subscribed = [subscribe("b", of_b), subscribe("a", of_a)];
    // The newest is released first.
    for (nth, fence) in fences.iter().enumerate() {
        let stuck = notifiers.release(Duration::ZERO);
        let Err(BracketError::Stuck { holder, .. }) = stuck else {
            panic!("{nth} of {} have signalled: {stuck:?}", fences.len());
        };
        assert_eq!(&*holder, if nth < of_a.len() { "a" } else { "b" });
        assert!(!notifiers.is_empty(), "a device may use pages: it is told");
        fence.signal();
    }
    notifiers
        .release(Duration::ZERO)
        .expect("all have signalled");
    assert!(notifiers.is_empty());
    check_log(&log, "release a, release b");
}

#[test]
fn injected_faults_break_the_brackets() {
    let rows = [
        (Inject::None, "start a, change, end a"),
        (Inject::SkipNotifier, "change"),
        (Inject::LateEnd, "start a, end a, change"),
    ];
    let (notifiers, log) = (Notifiers::new(MmId(1)), log());
    let _subscription = notifiers.subscribe("a", Ranges::WholeMm, Arc::new(Probe::new("a", &log)));
    for (fault, expected) in rows {
        notifiers.inject(fault);
        let invalidation = nonblock(&notifiers).expect("nobody refuses");
        log.lock().push("change".to_owned());
        drop(invalidation);
        check_log(&log, expected);
    }
}

#[test]
fn starts_are_counted_by_event_and_mode() {
    let (notifiers, log) = (Notifiers::new(MmId(1)), log());
    drop(nonblock(&notifiers).expect("nobody is called"));
    assert_eq!(notifiers.stats(), NotifierStats::default());
    let _subscription = notifiers.subscribe("a", Ranges::WholeMm, Arc::new(Probe::new("a", &log)));
    for (index, event) in Event::ALL.into_iter().enumerate() {
        for _ in 0..=index {
            drop(
                notifiers
                    .start_nonblock(page(0), page(1), event)
                    .expect("nobody refuses"),
            );
        }
        drop(
            notifiers
                .start_blockable(page(0), page(1), event, EVER)
                .expect("nobody fails"),
        );
    }
    let stats = notifiers.stats();
    assert_eq!(
        Event::ALL.map(|event| stats.starts(event, Mode::NonBlock)),
        [1, 2, 3, 4, 5, 6, 7, 8]
    );
    assert_eq!(
        Event::ALL.map(|event| stats.starts(event, Mode::Blockable)),
        [1; 8]
    );
    assert_eq!(stats.starts_total(), 44);
}

#[test]
fn ranges_overlap_by_half_open_ends() {
    let range = |start, end| Range {
        mm: MmId(1),
        start: Vaddr(start),
        end: Vaddr(end),
        event: Event::Unmap,
        owner: None,
        mode: Mode::NonBlock,
    };
    let rows = [
        (range(0x1000, 0x3000), 0x0, 0x1000, false, 2),
        (range(0x1000, 0x3000), 0x0, 0x1001, true, 2),
        (range(0x1000, 0x3000), 0x2fff, 0x4000, true, 2),
        (range(0x1000, 0x3000), 0x3000, 0x4000, false, 2),
        (range(0x1fff, 0x2001), 0x1000, 0x3000, true, 2),
        (range(0x1000, u64::MAX), 0x0, u64::MAX, true, (1 << 52) - 1),
    ];
    for (range, start, end, overlaps, pages) in rows {
        assert_eq!(
            range.overlaps(Vaddr(start), Vaddr(end)),
            overlaps,
            "{range}"
        );
        assert_eq!(range.pages(), pages, "{range}");
    }
}

/// Counts its open brackets, and is told to refuse by a lock that somebody else holds at times.
struct Balance {
    busy: Mutex<()>,
    open: ShortLock<i64>,
    starts: AtomicI64,
}

impl Notifier for Balance {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let busy = cx.lock(&self.busy)?;
        *cx.short(&self.open) += 1;
        self.starts.fetch_add(1, Ordering::Relaxed);
        drop(busy);
        Ok(())
    }

    fn end(&self, _range: &Range, cx: &EndContext<'_>) {
        let mut open = cx.short(&self.open);
        *open -= 1;
        assert!(*open >= 0, "an end without a start");
    }
}

/// Guarantee G5 under threads: brackets of both modes, refusals, subscriptions that come and go.
#[test]
fn n18_n28_starts_and_ends_balance_under_threads() {
    const ROUNDS: u64 = if cfg!(miri) { 20 } else { 2000 };
    let notifiers = Notifiers::new(MmId(1));
    let bracket = |round: u64| {
        let (start, end) = (page(round % 5), page(round % 5 + 2));
        if round.is_multiple_of(7) {
            drop(notifiers.start_nonblock(start, end, Event::Clear));
        } else {
            let inner = notifiers.start_blockable(start, end, Event::Clear, EVER);
            drop(notifiers.start_nonblock(start, page(9), Event::Unmap));
            drop(inner.expect("nobody settles anything"));
        }
    };
    let subscriber = |first: u64| {
        for round in 0..ROUNDS / 10 {
            let balance = Arc::new(Balance {
                busy: Mutex::new("test.busy", ()),
                open: ShortLock::new("test.open", 0),
                starts: AtomicI64::new(0),
            });
            let first = (first + round) % 6;
            let ranges = Ranges::Only(vec![page(first)..page(first + 2)]);
            let subscription = notifiers.subscribe("balance", ranges, Arc::clone(&balance));
            let (start, end) = (page(first), page(first + 1));
            drop(
                notifiers
                    .start_blockable(start, end, Event::Clear, EVER)
                    .expect("nothing hangs"),
            );
            for _ in 0..4 {
                let busy = balance.busy.lock();
                thread::yield_now();
                drop(busy);
            }
            subscription.synchronize();
            let balance = Arc::into_inner(balance).expect("nobody holds it any more");
            assert!(balance.starts.into_inner() > 0);
            assert_eq!(balance.open.into_inner(), 0);
        }
    };
    thread::scope(|scope| {
        for first in [0, 3] {
            scope.spawn(move || subscriber(first));
        }
        for _ in 0..2 {
            scope.spawn(|| (0..ROUNDS).for_each(bracket));
        }
    });
    assert_eq!(notifiers.stats().panics, 0);
    assert!(notifiers.is_empty());
}
