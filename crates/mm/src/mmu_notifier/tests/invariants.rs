//! What both kinds of subscription have in common: who is called when, in which mode, and what a
//! lookup sees of it. Named by the numbers of the specification, as the others.

use super::super::*;
use crate::addr::Vaddr;
use core::time::Duration;
use lockdep::sync::{Completion, ShortLock};
use std::sync::Arc;
use std::thread;

const EVER: Duration = Duration::from_secs(60);

type Log = Arc<ShortLock<Vec<String>>>;

/// What a start does besides.
type Act = Box<dyn FnMut() + Send>;

/// Writes down each callback, with the mode that its thread is in and that the core told it.
struct Probe {
    name: &'static str,
    log: Log,
    lock: ShortLock<()>,
    refuses: bool,
    act: ShortLock<Option<Act>>,
}

impl Probe {
    fn new(name: &'static str, log: &Log) -> Self {
        Self {
            name,
            log: Arc::clone(log),
            lock: ShortLock::new("test.lock", ()),
            refuses: false,
            act: ShortLock::new("test.act", None),
        }
    }

    fn note(&self, what: &str, told: Mode) {
        assert_eq!(running_callback(), Some(told), "{what} of {}", self.name);
        let mode = match told {
            Mode::Blockable => "may block",
            Mode::NonBlock => "tries",
        };
        self.log.lock().push(format!("{what} {} {mode}", self.name));
    }
}

impl Notifier for Probe {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        assert_eq!(range.mode, cx.mode(), "the bracket says it");
        if self.refuses {
            cx.would_block()?;
        }
        self.note("start", cx.mode());
        let act = self.act.lock().take();
        if let Some(mut act) = act {
            act();
        }
        Ok(())
    }

    fn end(&self, range: &Range, _cx: &EndContext<'_>) {
        self.note("end", range.mode);
    }
}

impl IntervalNotifier for Probe {
    type Lock = ShortLock<()>;

    fn lock(&self) -> &ShortLock<()> {
        &self.lock
    }
}

/// An address space with one subscription of each kind: `tree` before `list`.
struct World {
    notifiers: Notifiers,
    log: Log,
    tree: IntervalSubscription<Probe>,
    list: Arc<Probe>,
    _listed: Subscription,
}

fn page(nr: u64) -> Vaddr {
    Vaddr(0x10_0000 + nr * 4096)
}

fn world(list_refuses: bool) -> World {
    let log: Log = Arc::new(ShortLock::new("test.log", Vec::new()));
    let notifiers = Notifiers::new(MmId(1));
    let probe = Arc::new(Probe::new("tree", &log));
    let tree = notifiers
        .subscribe_interval("tree", page(0), page(4), probe)
        .expect("not empty");
    let list = Arc::new(Probe {
        refuses: list_refuses,
        ..Probe::new("list", &log)
    });
    World {
        _listed: notifiers.subscribe("list", Ranges::WholeMm, Arc::clone(&list)),
        notifiers,
        log,
        tree,
        list,
    }
}

impl World {
    fn open(&self, mode: Mode) -> Option<Invalidation> {
        let (start, end) = (page(0), page(1));
        match mode {
            Mode::Blockable => self
                .notifiers
                .start_blockable(start, end, Event::Clear, EVER)
                .ok(),
            Mode::NonBlock => self.notifiers.start_nonblock(start, end, Event::Clear).ok(),
        }
    }

    #[track_caller]
    fn check_log(&self, expected: &str) {
        assert_eq!(core::mem::take(&mut *self.log.lock()).join(", "), expected);
    }
}

/// A fresh subscription is idle at number zero, and a lookup may begin.
#[test]
fn n01_a_fresh_subscription_is_idle() {
    let world = world(false);
    assert_eq!(world.tree.snapshot(), (0, 0));
    let seen = world.tree.try_read_begin().expect("no bracket is open");
    assert!(!world.tree.read_retry(seen, &world.tree.lock()));
    world.tree.remove();
}

/// Whoever joins while a bracket is open has no part in it, of either kind: registration need not
/// wait for it, and its end ignores who came later.
#[test]
fn n02_who_joins_later_gets_no_end() {
    let world = world(false);
    let bracket = world.open(Mode::Blockable);
    let late = Arc::new(Probe::new("late", &world.log));
    let listed = world
        .notifiers
        .subscribe("late", Ranges::WholeMm, Arc::clone(&late));
    let interval = world
        .notifiers
        .subscribe_interval("late", page(0), page(1), late)
        .expect("not empty");
    drop(bracket);
    world.check_log(
        "start tree may block, start list may block, \
         end tree may block, end list may block",
    );
    listed.synchronize();
    interval.remove();
    world.tree.remove();
}

/// The mode is that of the bracket, in every callback of either kind, also in the ends of a
/// bracket that was refused. Outside of callbacks there is none.
#[test]
fn n37_n101_n110_every_callback_is_in_the_mode_of_its_bracket() {
    let accepts = world(false);
    drop(accepts.open(Mode::Blockable).expect("nobody fails"));
    accepts.check_log(
        "start tree may block, start list may block, \
         end tree may block, end list may block",
    );
    drop(accepts.open(Mode::NonBlock).expect("nobody refuses"));
    accepts.check_log("start tree tries, start list tries, end tree tries, end list tries");
    accepts.tree.remove();
    let refuses = world(true);
    assert!(refuses.open(Mode::NonBlock).is_none());
    refuses.check_log("start tree tries, end tree tries");
    assert_eq!(running_callback(), None);
    refuses.tree.remove();
}

/// A bracket that a callback opens inside of one that may not block is not allowed to block
/// either: the callbacks of a blockable one know it, and it is reported.
#[test]
fn n109_a_bracket_inside_of_one_that_tries_is_not_to_block() {
    // Wrong on purpose: the lock validator sees it, too.
    let validator = lockdep::Validator::new();
    let _apart = validator.enter();
    for (inner, reports) in [(Mode::NonBlock, 0), (Mode::Blockable, 1)] {
        let world = Arc::new(world(false));
        let log: Log = Arc::new(ShortLock::new("test.inner", Vec::new()));
        let modes = Arc::clone(&log);
        let of = Arc::downgrade(&world);
        *world.list.act.lock() = Some(Box::new(move || {
            let world = of.upgrade().expect("it is being used");
            let (start, end) = (page(20), page(21));
            let probe = Arc::new(Inner(Arc::clone(&modes)));
            let inside = Notifiers::new(MmId(2));
            let _inner = inside.subscribe("inner", Ranges::WholeMm, probe);
            match inner {
                Mode::NonBlock => drop(inside.start_nonblock(start, end, Event::Clear)),
                Mode::Blockable => {
                    drop(inside.start_blockable(start, end, Event::Clear, EVER));
                    // The same of the address space whose callback it is: reported by name.
                    drop(
                        world
                            .notifiers
                            .start_blockable(start, end, Event::Clear, EVER),
                    );
                }
            }
        }));
        drop(world.open(Mode::NonBlock).expect("nobody refuses"));
        assert_eq!(*log.lock(), ["tries", "tries"]);
        assert_eq!(world.notifiers.stats().misuses, reports);
    }
}

/// Writes down the mode that its thread is in.
struct Inner(Log);

impl Inner {
    fn note(&self) {
        let mode = match running_callback() {
            Some(Mode::NonBlock) => "tries",
            Some(Mode::Blockable) => "may block",
            None => "outside",
        };
        self.0.lock().push(mode.to_owned());
    }
}

impl Notifier for Inner {
    fn start<C: Context>(&self, _range: &Range, _cx: &C) -> Result<(), C::Refusal> {
        self.note();
        Ok(())
    }

    fn end(&self, _range: &Range, _cx: &EndContext<'_>) {
        self.note();
    }
}

/// A lookup that begins between two brackets returns at once, though the second makes it stale
/// before it is judged; and one that waited for the first is not held up by the second.
#[test]
fn n52_a_lookup_may_be_stale_when_it_returns() {
    let world = world(false);
    let seen = world.tree.read_begin();
    drop(world.open(Mode::Blockable));
    assert!(world.tree.check_retry(seen));
    assert!(world.tree.read_retry(seen, &world.tree.lock()));
    let first = world.open(Mode::Blockable);
    let begins = Completion::new("test.begins");
    let tree = &world.tree;
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            begins.complete_all();
            tree.read_begin()
        });
        begins.wait();
        drop(first);
        let seen = reader.join().expect("no panic");
        let second = world.open(Mode::Blockable);
        assert!(tree.read_retry(seen, &tree.lock()));
        drop(second);
    });
    world.tree.remove();
}

/// The number of a lookup is that of one change and no other: it grows with each bracket over the
/// interval, so a lookup of before is never taken for one of after.
#[test]
fn n40_the_number_grows_with_each_bracket() {
    let world = world(false);
    let mut seen = vec![world.tree.read_begin()];
    for _ in 0..if cfg!(miri) { 10 } else { 100 } {
        drop(world.open(Mode::NonBlock));
        let now = world.tree.read_begin();
        assert!(!seen.contains(&now));
        let stale = |seen| world.tree.check_retry(seen);
        assert!(seen.iter().copied().all(stale) && !stale(now));
        seen.push(now);
    }
    world.tree.remove();
}

/// A share is one more reference: there is no count that could be full.
#[test]
fn n05_any_number_of_shares_is_of_one_subscription() {
    const NR: usize = if cfg!(miri) { 10 } else { 70_000 };
    let log: Log = Arc::new(ShortLock::new("test.log", Vec::new()));
    let notifiers = Notifiers::new(MmId(1));
    let make = || Ok::<_, core::convert::Infallible>(Arc::new(Probe::new("a", &log)));
    let get = || notifiers.get("a", Ranges::WholeMm, make);
    let Ok(first) = get();
    let shares: Vec<_> = (0..NR).map(|_| first.clone()).collect();
    drop(first);
    drop(notifiers.start_nonblock(page(0), page(1), Event::Clear));
    assert_eq!(log.lock().len(), 2, "one start and one end");
    drop(shares);
    assert!(notifiers.is_empty());
}

/// A bracket that nobody hears of is not counted, and has the mode that it was asked for.
#[test]
fn n117_a_bracket_over_nobody_is_nothing() {
    let notifiers = Notifiers::new(MmId(1));
    let (start, end) = (page(0), page(1));
    let tries = notifiers.start_nonblock(start, end, Event::Clear);
    let blocks = notifiers.start_blockable(start, end, Event::Clear, EVER);
    assert_eq!(
        tries.map(|open| open.range().mode).ok(),
        Some(Mode::NonBlock)
    );
    assert_eq!(
        blocks.map(|open| open.range().mode).ok(),
        Some(Mode::Blockable)
    );
    assert_eq!(notifiers.stats(), NotifierStats::default());
}

/// A device that cannot use managed memory without a fault is found out where it would fault.
#[test]
fn n105_a_callback_that_uses_managed_memory_is_reported() {
    // Wrong on purpose: the lock validator sees it, too.
    let validator = lockdep::Validator::new();
    let _apart = validator.enter();
    let world = Arc::new(world(false));
    let of = Arc::downgrade(&world);
    for misuses in 1..3 {
        let of = of.clone();
        *world.list.act.lock() = Some(Box::new(move || {
            let world = of.upgrade().expect("it is being used");
            assert!(world.notifiers.note_touch());
        }));
        drop(world.open(Mode::Blockable));
        assert_eq!(world.notifiers.stats().misuses, misuses);
    }
    assert!(!world.notifiers.note_touch(), "outside it is allowed");
}
