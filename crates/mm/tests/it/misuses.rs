//! Misuses of notifiers that the lock validator catches through the charges of a memory cgroup:
//! nothing locks up, memory is not short, and one call of each side is enough.
//!
//! The letters are those of the list in `gfp`'s own tests, which has the rows of the maps alone.

use lockdep::sync::{Mutex, RwLock};
use lockdep::{Kind, Severity, Validator, might_sleep};
use pinless_mm::addr::{PAGE_SIZE, PageRun, Vaddr};
use pinless_mm::gfp::{Gfp, NoIo, NoReclaim};
use pinless_mm::limits::Limits;
use pinless_mm::mm_struct::Advice;
use pinless_mm::mmu_notifier::{
    Context, EndContext, Event, IntervalNotifier, MmId, Notifier, Notifiers, Range, Ranges,
    TlbContext, TlbUser,
};
use pinless_mm::primary_mmu::{Access, PrimaryMmu};
use pinless_mm::{Memcg, MmHandle, Vma};
use pinless_sim::{Frames, SimClock, SimMmu};
use std::sync::{Arc, Weak};
use std::time::Duration;

const BASE: u64 = 0x6000_0000;

/// A small machine with one mapping and the lock of one driver.
struct World {
    memcg: Arc<Memcg>,
    mm: MmHandle,
    vma: Arc<Vma>,
    mmu: Arc<SimMmu>,
    table: Mutex<()>,
}

impl World {
    fn new() -> Arc<Self> {
        let limits = Limits::new(64 * PAGE_SIZE as u64);
        let memcg = Memcg::new(limits, Arc::new(SimClock::new())).expect("limits");
        let mm = memcg.new_mm("misused");
        let mmu = SimMmu::new(Vaddr(BASE), 8, &Frames::new(64));
        let vma = mm.map(Arc::clone(&mmu) as Arc<dyn PrimaryMmu>);
        Arc::new(Self {
            vma: vma.expect("a mapping"),
            memcg,
            mm,
            mmu,
            table: Mutex::new("driver.table", ()),
        })
    }

    fn pin(&self, gfp: Gfp) {
        drop(self.vma.pin(PageRun::single(1), Access::Write, gfp));
    }

    fn touch(&self) {
        let written = self.mmu.cpu_write(&*self.vma, 0, &[1]);
        written.expect("there are frames");
    }
}

type Act = fn(&World);

/// What a driver does in its callbacks.
struct Driver {
    world: Weak<World>,
    in_start: Act,
    in_end: Act,
}

impl Driver {
    fn act(&self, act: Act) {
        let world = self
            .world
            .upgrade()
            .expect("the world lives as long as its brackets");
        act(&world);
    }
}

impl Notifier for Driver {
    fn start<C: Context>(&self, _: &Range, _: &C) -> Result<(), C::Refusal> {
        self.act(self.in_start);
        Ok(())
    }

    fn end(&self, _: &Range, _: &EndContext<'_>) {
        self.act(self.in_end);
    }
}

fn nothing(_: &World) {}

fn take(world: &World) {
    drop(world.table.lock());
}

fn take_by_trying(world: &World) {
    assert!(world.table.try_lock().is_some());
}

/// What is found when one thread does `before` and then has the driver called.
fn run(before: Act, in_start: Act, in_end: Act, is_blockable: bool) -> Vec<Kind> {
    let validator = Validator::new();
    let entered = validator.enter();
    let world = World::new();
    before(&world);
    let driver = Arc::new(Driver {
        world: Arc::downgrade(&world),
        in_start,
        in_end,
    });
    let notifiers = world.mm.notifiers();
    let subscription = notifiers.subscribe("driver", Ranges::WholeMm, driver);
    let (start, end) = (Vaddr(BASE), Vaddr(BASE + PAGE_SIZE as u64));
    if is_blockable {
        drop(notifiers.start_blockable(start, end, Event::Clear, Duration::ZERO));
    } else {
        drop(notifiers.start_nonblock(start, end, Event::Clear));
    }
    drop(subscription);
    drop(world);
    drop(entered);
    let reports = validator.reports();
    let bad = reports.iter().filter(|r| r.severity > Severity::Unlikely);
    bad.map(|report| report.kind).collect()
}

const CIRCLE: &[Kind] = &[Kind::Circular];
const FINE: &[Kind] = &[];

/// The driver holds its table while it does this, and takes it in its callback.
#[track_caller]
fn check_over(name: &str, over: Act, expected: &[Kind]) {
    assert_eq!(run(over, take, nothing, true), expected, "{name}");
    // A driver that only tries is right.
    assert_eq!(
        run(over, take_by_trying, nothing, true),
        FINE,
        "{name}, tried"
    );
}

#[test]
fn a_lock_over_a_charge_is_caught_when_a_callback_takes_it() {
    fn holding(world: &World, act: impl FnOnce(&World)) {
        let held = world.table.lock();
        act(world);
        drop(held);
    }
    let rows: [(&str, Act, &[Kind]); 11] = [
        ("a: a pin", |w| holding(w, |w| w.pin(Gfp::Kernel)), CIRCLE),
        (
            "b: without a file system",
            |w| holding(w, |w| w.pin(Gfp::NoFs)),
            CIRCLE,
        ),
        (
            "b: without input and output",
            |w| holding(w, |w| w.pin(Gfp::NoIo)),
            CIRCLE,
        ),
        (
            "b: the same by a scope",
            |w| {
                let _scope = NoIo::enter();
                holding(w, |w| w.pin(Gfp::Kernel));
            },
            CIRCLE,
        ),
        (
            "e: what is free",
            |w| holding(w, |w| w.pin(Gfp::NoWait)),
            FINE,
        ),
        (
            "e: the same by a scope",
            |w| {
                let _scope = NoReclaim::enter();
                holding(w, |w| w.pin(Gfp::Kernel));
            },
            FINE,
        ),
        ("c: a fault", |w| holding(w, World::touch), CIRCLE),
        (
            "c: locking pages",
            |w| holding(w, |w| drop(w.vma.mlock(PageRun::single(2)))),
            CIRCLE,
        ),
        (
            "n: another mapping",
            |w| {
                holding(w, |w| {
                    let mmu = SimMmu::new(Vaddr(2 * BASE), 1, &Frames::new(1));
                    drop(w.mm.map(mmu as Arc<dyn PrimaryMmu>));
                });
            },
            CIRCLE,
        ),
        (
            "advice that asks devices",
            |w| {
                holding(w, |w| {
                    drop(w.vma.advise(PageRun::single(0), Advice::PageOut))
                })
            },
            CIRCLE,
        ),
        ("nothing", |w| holding(w, |w| _ = w.memcg.stat()), FINE),
    ];
    for (name, over, expected) in rows {
        check_over(name, over, expected);
    }
}

#[test]
fn a_charge_in_a_callback_is_caught() {
    let rows: [(&str, Act, bool); 4] = [
        ("d: a pin", |w| w.pin(Gfp::Kernel), true),
        ("d: without input and output", |w| w.pin(Gfp::NoIo), true),
        ("e: what is free", |w| w.pin(Gfp::NoWait), false),
        ("by trying", take_by_trying, false),
    ];
    for (name, act, is_wrong) in rows {
        let kinds = run(nothing, act, nothing, true);
        // What the pin goes through inside is reported beside it.
        assert_eq!(kinds.contains(&Kind::Recursive), is_wrong, "{name}");
        assert_eq!(kinds.is_empty(), !is_wrong, "{name}");
    }
}

#[test]
fn sleeping_where_a_callback_may_not_is_caught() {
    const WAITS: &[Kind] = &[Kind::WaitContext];
    let sleep: Act = |_| might_sleep();
    for act in [take, sleep] {
        // h: in a start of the list, and in every end, also of a bracket that may block.
        assert_eq!(run(nothing, act, nothing, false), WAITS);
        assert_eq!(run(nothing, nothing, act, false), WAITS);
        assert_eq!(run(nothing, nothing, act, true), WAITS);
        assert_eq!(run(nothing, act, nothing, true), FINE);
    }
    assert_eq!(run(nothing, take_by_trying, take_by_trying, false), FINE);
}

/// A driver that captured a lock and takes it as anybody would, past its context.
struct Captured {
    lock: Arc<Plain>,
}

/// The locks that a thread can sleep on.
struct Plain {
    mutex: Mutex<()>,
    rwlock: RwLock<()>,
}

impl Notifier for Captured {
    fn start<C: Context>(&self, range: &Range, _: &C) -> Result<(), C::Refusal> {
        match range.event {
            Event::Clear => drop(self.lock.mutex.lock()),
            Event::Unmap => drop(self.lock.rwlock.read()),
            _ => drop(self.lock.rwlock.write()),
        }
        Ok(())
    }
}

impl IntervalNotifier for Captured {
    type Lock = Mutex<()>;

    fn lock(&self) -> &Mutex<()> {
        &self.lock.mutex
    }
}

/// A plain lock in a start that may not block is reported when it is taken, by the name of the lock
/// and with the place that took it; nobody has to hold it. Of a member of the list and of an
/// interval, whose callbacks the kernel does not watch.
#[test]
fn n101_a_captured_lock_is_reported_by_its_name() {
    #[track_caller]
    fn check(event: Event, of_interval: bool, is_blockable: bool, name: &str) {
        let validator = Validator::new();
        let entered = validator.enter();
        let notifiers = Notifiers::new(MmId(1));
        let (start, end) = (Vaddr(BASE), Vaddr(BASE + PAGE_SIZE as u64));
        let lock = Arc::new(Plain {
            mutex: Mutex::new("captured.mutex", ()),
            rwlock: RwLock::new("captured.rwlock", ()),
        });
        let driver = Arc::new(Captured { lock });
        let subscribed = if of_interval {
            let subscribed = notifiers.subscribe_interval("driver", start, end, driver);
            (None, Some(subscribed.expect("it is not empty")))
        } else {
            let subscribed = notifiers.subscribe("driver", Ranges::WholeMm, driver);
            (Some(subscribed), None)
        };
        if is_blockable {
            drop(notifiers.start_blockable(start, end, event, Duration::ZERO));
        } else {
            drop(notifiers.start_nonblock(start, end, event));
        }
        drop(subscribed);
        drop(entered);
        let reports = validator.reports();
        if is_blockable {
            assert_eq!(reports.len(), 0, "{event:?}");
            return;
        }
        let [report] = &reports[..] else {
            panic!("{} reports of {event:?}", reports.len());
        };
        let text = report.text();
        assert_eq!(report.kind, Kind::WaitContext, "{text}");
        for part in [name, "non-block", "misuses.rs"] {
            assert!(text.contains(part), "`{part}` is not in: {text}");
        }
    }
    let rows = [
        (Event::Clear, "captured.mutex"),
        (Event::Unmap, "captured.rwlock"),
        (Event::Protection, "captured.rwlock"),
    ];
    for (event, name) in rows {
        for of_interval in [false, true] {
            check(event, of_interval, false, name);
            check(event, of_interval, true, name);
        }
    }
}

/// Walks the page table, and sleeps when it is told of a change.
struct Sleepy {
    lock: Mutex<()>,
}

impl TlbUser for Sleepy {
    fn flush(&self, _: &Range, _: &TlbContext<'_>) {
        drop(self.lock.lock());
    }
}

/// A flush has no way to a lock that sleeps but to capture it: then it is reported.
#[test]
fn who_sleeps_in_a_flush_is_reported() {
    let validator = Validator::new();
    let entered = validator.enter();
    let notifiers = Notifiers::new(MmId(1));
    let walker = Arc::new(Sleepy {
        lock: Mutex::new("captured.by_walker", ()),
    });
    let walks = notifiers.subscribe_tlb("walker", walker);
    let (start, end) = (Vaddr(BASE), Vaddr(BASE + PAGE_SIZE as u64));
    notifiers.flush_tlb_users(start, end, Event::Clear);
    drop(walks);
    drop(entered);
    let reports = validator.reports();
    let kinds: Vec<_> = reports.iter().map(|report| report.kind).collect();
    assert_eq!(kinds, [Kind::WaitContext]);
    assert!(reports[0].text().contains("captured.by_walker"));
}

/// The driver of an interval, whose callback takes the lock of its translations.
struct Window {
    table: Mutex<()>,
}

impl Notifier for Window {
    fn start<C: Context>(&self, _: &Range, cx: &C) -> Result<(), C::Refusal> {
        drop(cx.lock(&self.table)?);
        Ok(())
    }
}

impl IntervalNotifier for Window {
    type Lock = Mutex<()>;

    fn lock(&self) -> &Mutex<()> {
        &self.table
    }
}

/// Misuse l, and i in an interval, which the kernel does not catch.
#[test]
fn waiting_for_brackets_under_the_lock_of_a_callback_is_caught() {
    #[track_caller]
    fn check(is_locked: bool, removes: bool, expected: &[Kind]) {
        let validator = Validator::new();
        let entered = validator.enter();
        let world = World::new();
        let window = Arc::new(Window {
            table: Mutex::new("window.table", ()),
        });
        let end = Vaddr(BASE + PAGE_SIZE as u64);
        let notifiers = world.mm.notifiers();
        let subscription = notifiers
            .subscribe_interval("window", Vaddr(BASE), end, Arc::clone(&window))
            .expect("it is not empty");
        drop(notifiers.start_blockable(Vaddr(BASE), end, Event::Clear, Duration::ZERO));
        let held = is_locked.then(|| window.table.lock());
        if removes {
            drop(subscription.remove());
        } else {
            let _ = subscription.read_begin();
        }
        drop(held);
        drop(world);
        drop(entered);
        let kinds: Vec<Kind> = validator.reports().iter().map(|r| r.kind).collect();
        assert_eq!(kinds, expected);
    }
    for removes in [false, true] {
        check(true, removes, CIRCLE);
        check(false, removes, FINE);
    }
}
