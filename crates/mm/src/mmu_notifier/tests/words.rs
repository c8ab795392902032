//! What the module says of itself: defaults, names in reports and errors, and how things print.

use super::super::callback::InCallback;
use super::super::*;
use crate::addr::Vaddr;
use core::time::Duration;
use lockdep::sync::{Fence, ShortLock};
use std::sync::Arc;

const EVER: Duration = Duration::from_secs(60);

fn nonblock(notifiers: &Notifiers) -> Invalidation {
    let opened = notifiers.start_nonblock(Vaddr(0x1000), Vaddr(0x2000), Event::Clear);
    opened.expect("nobody refuses")
}

/// A device that says no more than it must.
struct Terse;

impl Notifier for Terse {
    fn start<C: Context>(&self, _: &Range, _: &C) -> Result<(), C::Refusal> {
        Ok(())
    }
}

#[test]
fn who_says_no_more_than_it_must_is_never_young() {
    let notifiers = Notifiers::new(MmId(1));
    let subscription = notifiers.subscribe("terse", Ranges::WholeMm, Arc::new(Terse));
    assert_eq!(subscription.ability(), Ability::DropRange);
    let (start, end) = (Vaddr(0x1000), Vaddr(0x2000));
    assert!(!notifiers.age(start, end));
    assert!(!notifiers.clear_young(start, end));
    assert!(!notifiers.test_young(start, end));
    // It has no owner, so it is told of what an owner does, and of what nobody owns.
    for owner in [None, Some(Owner(0)), Some(Owner(1))] {
        drop(notifiers.start_nonblock_for(start, end, Event::Migrate, owner));
    }
    assert_eq!(Terse.owner(), None);
    assert_eq!(notifiers.stats().starts_total(), 3);
}

#[test]
fn a_bracket_knows_who_joined_since() {
    let notifiers = Notifiers::new(MmId(1));
    let mut subscribed = Vec::new();
    for _ in 0..4 {
        let bracket = nonblock(&notifiers);
        assert!(notifiers.is_current(&bracket));
        subscribed.push(notifiers.subscribe("late", Ranges::WholeMm, Arc::new(Terse)));
        assert!(!notifiers.is_current(&bracket), "somebody joined");
        let next = nonblock(&notifiers);
        drop(subscribed.pop());
        assert!(notifiers.is_current(&next), "leaving is not joining");
        subscribed.push(notifiers.subscribe("other", Ranges::WholeMm, Arc::new(Terse)));
        drop((bracket, next));
    }
}

/// A fault goes on by itself exactly while there is nobody to tell.
#[test]
fn a_bracket_for_nobody_is_none_once_somebody_is_there() {
    let notifiers = Notifiers::new(MmId(1));
    let open = || notifiers.start_for_nobody(Vaddr(0x1000), Vaddr(0x2000), Event::Clear);
    let bracket = open().expect("nobody is there");
    assert!(notifiers.is_current(&bracket));
    let subscription = notifiers.subscribe("terse", Ranges::WholeMm, Arc::new(Terse));
    assert!(open().is_none() && !notifiers.is_current(&bracket));
    drop(subscription);
    assert!(open().is_some());
}

/// What runs in another's place is in none of its callbacks.
#[test]
fn a_callback_stays_with_what_it_runs_on() {
    let mut place = Place::default();
    for mode in Mode::ALL {
        let inside = InCallback::enter(mode, &[0_u64; 2]);
        place.exchange();
        assert_eq!(running_callback(), None);
        drop(InCallback::enter(Mode::NonBlock, &[0_u64; 2]));
        place.exchange();
        assert_eq!(running_callback(), Some(mode));
        drop(inside);
        assert_eq!(running_callback(), None);
    }
}

/// Once nothing is left there, only those are told who walk the page table.
#[test]
fn who_walks_the_page_table_is_not_forgotten() {
    let notifiers = Notifiers::new(MmId(1));
    let listed = notifiers.subscribe("terse", Ranges::WholeMm, Arc::new(Terse));
    let walker = notifiers.subscribe_tlb("walker", Arc::new(Walker));
    notifiers.forget_all();
    assert!(notifiers.has_subscriptions() && notifiers.has_tlb_users());
    drop(nonblock(&notifiers));
    walker.synchronize();
    assert!(notifiers.is_empty(), "nobody else is subscribed");
    drop(listed);
}

/// A device with a lock for its translations, of which it has none.
struct Window(ShortLock<()>);

impl Notifier for Window {
    fn start<C: Context>(&self, _: &Range, _: &C) -> Result<(), C::Refusal> {
        Ok(())
    }
}

impl IntervalNotifier for Window {
    type Lock = ShortLock<()>;

    fn lock(&self) -> &ShortLock<()> {
        &self.0
    }
}

#[test]
fn a_lookup_with_a_limit_waits_no_longer() {
    let notifiers = Notifiers::new(MmId(1));
    let window = Arc::new(Window(ShortLock::new("test.window", ())));
    let subscription = notifiers
        .subscribe_interval("window", Vaddr(0x1000), Vaddr(0x2000), Arc::clone(&window))
        .expect("it is not empty");
    assert_eq!(subscription.name(), "window");
    assert!(Arc::ptr_eq(subscription.notifier(), &window));
    let text = format!("{subscription:?}");
    assert!(
        text.contains("window") && text.contains("Interval"),
        "{text}"
    );
    let seen = subscription.read_begin_timeout(Duration::ZERO);
    let seen = seen.expect("no bracket is open");
    let bracket = nonblock(&notifiers);
    assert_eq!(subscription.snapshot().0, 1);
    assert_eq!(subscription.read_begin_timeout(Duration::ZERO), None);
    assert!(subscription.check_retry(seen));
    drop(bracket);
    let seen = subscription.read_begin_timeout(Duration::ZERO);
    assert_eq!(seen, subscription.try_read_begin());
    assert!(Arc::ptr_eq(&subscription.remove(), &window));
    // To drop one while nothing is open is no misuse.
    let idle = notifiers.subscribe_interval("idle", Vaddr(0x1000), Vaddr(0x2000), window);
    drop(idle);
    assert_eq!(notifiers.stats().misuses, 0);
}

/// Settles its release on a fence.
struct Slow(Fence);

impl Notifier for Slow {
    fn start<C: Context>(&self, _: &Range, _: &C) -> Result<(), C::Refusal> {
        Ok(())
    }

    fn release(&self, cx: &Blockable<'_>) {
        let Ok(()) = cx.settle(&self.0);
    }
}

#[test]
fn a_teardown_names_whose_fence_is_late() {
    for late in 0..3 {
        let notifiers = Notifiers::new(MmId(1));
        let names = ["oldest", "middle", "newest"];
        let fences = names.map(Fence::new);
        let subscribed = [0, 1, 2].map(|nth: usize| {
            let slow = Arc::new(Slow(fences[nth].clone()));
            notifiers.subscribe(names[nth], Ranges::WholeMm, slow)
        });
        for (nth, fence) in fences.iter().enumerate() {
            if nth != late {
                fence.signal();
            }
        }
        match notifiers.release(Duration::ZERO) {
            Err(BracketError::Stuck { holder, .. }) => assert_eq!(&*holder, names[late]),
            other => panic!("{other:?}"),
        }
        fences[late].signal();
        notifiers.release(EVER).expect("it was called before");
        drop(subscribed);
    }
}

/// Settles its release on a fence, and then breaks; says how often it is told of changes.
struct Breaks(Fence, ShortLock<u32>);

impl Notifier for Breaks {
    fn start<C: Context>(&self, _: &Range, _: &C) -> Result<(), C::Refusal> {
        *self.1.lock() += 1;
        Ok(())
    }

    fn release(&self, cx: &Blockable<'_>) {
        let Ok(()) = cx.settle(&self.0);
        panic!("a bug of the device");
    }
}

/// A teardown that is tried again waits for what was settled before the panic, too, whoever is
/// late; from there on it goes on without who broke, and tells all of what it does.
#[test]
fn a_teardown_waits_for_what_was_settled_before_a_panic() {
    for order in [["broken", "slow"], ["slow", "broken"]] {
        let notifiers = Notifiers::new(MmId(1));
        let fences = order.map(Fence::new);
        let of = |name: &str| {
            let at = order.iter().position(|one| *one == name);
            fences[at.expect("it is one of them")].clone()
        };
        let broken = Arc::new(Breaks(of("broken"), ShortLock::new("test.told", 0)));
        let breaks = notifiers.subscribe("broken", Ranges::WholeMm, Arc::clone(&broken));
        let slow = notifiers.subscribe("slow", Ranges::WholeMm, Arc::new(Slow(of("slow"))));
        let holder = || match notifiers.release(Duration::ZERO) {
            Err(BracketError::Stuck { holder, .. }) => holder,
            other => panic!("{other:?}"),
        };
        assert!(order.contains(&&*holder()));
        fences[0].signal();
        assert_eq!(&*holder(), order[1], "the other is still waited for");
        fences[1].signal();
        notifiers.release(Duration::ZERO).expect("all is settled");
        assert_eq!(notifiers.stats().panics, 1, "it is released once");
        drop(nonblock(&notifiers));
        assert_eq!(*broken.1.lock(), 1, "it is told until the pages are gone");
        notifiers.release(Duration::ZERO).expect("as before");
        drop((breaks, slow));
    }
}

/// Misuses managed memory when it is told, if it is this one's turn; opens a bracket inside, and
/// remembers in which mode that one's callbacks ran.
struct Nosy {
    notifiers: Arc<Notifiers>,
    is_wrong: bool,
    inner: ShortLock<Vec<Mode>>,
}

impl Notifier for Nosy {
    fn start<C: Context>(&self, range: &Range, _: &C) -> Result<(), C::Refusal> {
        self.inner.lock().extend(running_callback());
        if range.event == Event::Clear {
            drop(
                self.notifiers
                    .start_nonblock(range.start, range.end, Event::Unmap),
            );
            if self.is_wrong {
                assert!(self.notifiers.note_touch());
            }
        }
        Ok(())
    }
}

#[test]
fn a_misuse_is_told_of_the_one_among_many_whose_it_is() {
    for wrong in 0..3 {
        let notifiers = Arc::new(Notifiers::new(MmId(1)));
        let reports = Arc::new(ShortLock::new("test.reports", Vec::new()));
        let sink = Arc::clone(&reports);
        notifiers.on_misuse(move |report| sink.lock().push(report.to_string()));
        let names = ["oldest", "middle", "newest"];
        let nosy = [0, 1, 2].map(|nth| {
            Arc::new(Nosy {
                notifiers: Arc::clone(&notifiers),
                is_wrong: nth == wrong,
                inner: ShortLock::new("test.inner", Vec::new()),
            })
        });
        let subscribed = [0, 1, 2]
            .map(|nth| notifiers.subscribe(names[nth], Ranges::WholeMm, nosy[nth].clone()));
        drop(nonblock(&notifiers));
        let expected = format!("`{}` used managed memory inside a callback", names[wrong]);
        assert_eq!(*reports.lock(), [expected]);
        // One that tries inside of one that tries is one that tries.
        for nosy in &nosy {
            assert_eq!(*nosy.inner.lock(), [Mode::NonBlock; 4]);
        }
        assert_eq!(running_callback(), None);
        drop(subscribed);
    }
}

/// One of those who walk the page table, which waits for brackets in its callback, if it is wrong.
struct NosyWalker {
    notifiers: Arc<Notifiers>,
    is_wrong: bool,
}

impl TlbUser for NosyWalker {
    fn flush(&self, _: &Range, _: &TlbContext<'_>) {
        if self.is_wrong {
            self.notifiers.synchronize();
        }
    }
}

#[test]
fn a_misuse_is_told_of_the_one_who_walks_whose_it_is() {
    let names = ["oldest", "middle", "newest"];
    for wrong in 0..3 {
        let notifiers = Arc::new(Notifiers::new(MmId(1)));
        let reports = Arc::new(ShortLock::new("test.reports", Vec::new()));
        let sink = Arc::clone(&reports);
        notifiers.on_misuse(move |report| sink.lock().push(report.to_string()));
        let walkers = [0, 1, 2].map(|nth| {
            let walker = NosyWalker {
                notifiers: Arc::clone(&notifiers),
                is_wrong: nth == wrong,
            };
            notifiers.subscribe_tlb(names[nth], Arc::new(walker))
        });
        notifiers.flush_tlb_users(Vaddr(0), Vaddr(0x1000), Event::Protection);
        let reports = reports.lock().clone();
        let [report] = &reports[..] else {
            panic!("{reports:?}");
        };
        assert!(report.contains(names[wrong]), "{report}");
        drop(walkers);
    }
}

/// Uses memory of another address space when it is told, `nr` times, and may leave its own before.
struct Stranger {
    elsewhere: Arc<Notifiers>,
    nr: u64,
    leaves: ShortLock<Option<Subscription>>,
}

impl Stranger {
    fn new(elsewhere: &Arc<Notifiers>, nr: u64) -> Arc<Self> {
        Arc::new(Self {
            elsewhere: Arc::clone(elsewhere),
            nr,
            leaves: ShortLock::new("test.leaves", None),
        })
    }

    fn touch(&self) {
        for _ in 0..self.nr {
            assert!(self.elsewhere.note_touch());
        }
    }
}

impl Notifier for Stranger {
    fn start<C: Context>(&self, _: &Range, _: &C) -> Result<(), C::Refusal> {
        let own = self.leaves.lock().take();
        drop(own);
        self.touch();
        Ok(())
    }

    fn release(&self, _: &Blockable<'_>) {
        self.touch();
    }
}

impl TlbUser for Stranger {
    fn flush(&self, _: &Range, _: &TlbContext<'_>) {
        self.touch();
    }
}

/// An address space that writes down what it is told of misuses.
fn told() -> (Arc<Notifiers>, Arc<ShortLock<Vec<String>>>) {
    let notifiers = Arc::new(Notifiers::new(MmId(1)));
    let reports = Arc::new(ShortLock::new("test.reports", Vec::new()));
    let sink = Arc::clone(&reports);
    notifiers.on_misuse(move |report| sink.lock().push(report.subscriber.to_string()));
    (notifiers, reports)
}

/// Who breaks the contract of an address space is named there, whosever callback it is.
#[test]
fn a_misuse_by_a_callback_of_another_address_space_is_told_by_name() {
    // Wrong on purpose: the lock validator sees some of it, too.
    let validator = lockdep::Validator::new();
    let _apart = validator.enter();
    let (theirs, reports) = told();
    let (own, at_home) = told();
    let check = |names: &[&str]| assert_eq!(core::mem::take(&mut *reports.lock()), names);
    let listed = own.subscribe("listed", Ranges::WholeMm, Stranger::new(&theirs, 2));
    drop(nonblock(&own));
    check(&["listed"; 2]);
    // Its callbacks inside of one another: each misuse is that of the innermost.
    let walker = own.subscribe_tlb("walker", Stranger::new(&theirs, 1));
    let nosy = Stranger::new(&theirs, 1);
    let through = theirs.subscribe(
        "through",
        Ranges::WholeMm,
        Arc::new(Passing(Arc::clone(&own))),
    );
    drop(nonblock(&theirs));
    check(&["walker", "listed", "listed"]);
    drop((listed, walker, through));
    // One that has left.
    let gone = own.subscribe("gone", Ranges::WholeMm, Arc::clone(&nosy));
    *nosy.leaves.lock() = Some(gone);
    drop(nonblock(&own));
    check(&["gone"]);
    // One of whom much is to be told, without an end of its callback in sight.
    let loud = own.subscribe("loud", Ranges::WholeMm, Stranger::new(&theirs, 6));
    own.release(EVER).expect("nobody is late");
    check(&["?", "?", "loud", "loud", "loud", "loud"]);
    drop(loud);
    assert_eq!(theirs.stats().misuses, 2 + 3 + 1 + 6);
    assert_eq!((own.stats().misuses, at_home.lock().len()), (0, 0));
}

/// Brackets of another address space in its own callback.
struct Passing(Arc<Notifiers>);

impl Notifier for Passing {
    fn start<C: Context>(&self, range: &Range, _: &C) -> Result<(), C::Refusal> {
        self.0
            .flush_tlb_users(range.start, range.end, Event::Protection);
        drop(nonblock(&self.0));
        Ok(())
    }
}

/// What is owed of a callback goes with the task that runs it, and is told where that goes on.
#[test]
fn what_is_owed_of_a_callback_goes_with_its_task() {
    struct Switching(Arc<Notifiers>, Arc<Notifiers>);
    impl Notifier for Switching {
        fn start<C: Context>(&self, _: &Range, _: &C) -> Result<(), C::Refusal> {
            assert!(self.0.note_touch());
            let mut other = crate::ThreadState::new();
            other.exchange();
            drop(nonblock(&self.1));
            other.exchange();
            Ok(())
        }
    }
    let (theirs, reports) = told();
    let (own, other) = (Notifiers::new(MmId(2)), Arc::new(Notifiers::new(MmId(3))));
    let brief = other.subscribe("brief", Ranges::WholeMm, Stranger::new(&theirs, 1));
    let switching = Arc::new(Switching(Arc::clone(&theirs), Arc::clone(&other)));
    let switched = own.subscribe("switched", Ranges::WholeMm, switching);
    drop(nonblock(&own));
    assert_eq!(*reports.lock(), ["brief", "switched"]);
    drop((brief, switched));
}

struct Walker;

impl TlbUser for Walker {
    fn flush(&self, _: &Range, _: &TlbContext<'_>) {}
}

#[test]
fn a_failure_says_whose_it_is_and_why() {
    let holder: Arc<str> = "gpu3".into();
    for (cause, text) in [
        (Cause::WouldBlock, "`gpu3` would have to wait"),
        (Cause::Panicked, "`gpu3` panicked"),
        (Cause::Overdue, "`gpu3` does not return"),
    ] {
        let holder = Arc::clone(&holder);
        assert_eq!(Refused { holder, cause }.to_string(), text);
    }
    let holder = || Arc::clone(&holder);
    let stuck = BracketError::Stuck {
        holder: holder(),
        fence: Fence::new("test.stuck"),
        waited: Duration::from_millis(1500),
    };
    for (error, text) in [
        (stuck, "`gpu3` still uses the range after 1500 ms"),
        (
            BracketError::Panicked { holder: holder() },
            "a callback of `gpu3` panicked, and nothing was changed; mend it, or drop its \
             subscription",
        ),
        (
            BracketError::Overdue { holder: holder() },
            "a callback of `gpu3` has not returned, so it was not called; wait for it, or mend it",
        ),
    ] {
        assert_eq!(error.to_string(), text);
        assert_eq!(&**error.holder(), "gpu3");
    }
}

#[test]
fn pages_stay_where_their_rights_change() {
    let mut kept = Event::ALL.to_vec();
    kept.retain(|event| event.keeps_pages());
    let rights = [Event::Protection, Event::ProtectionPage, Event::SoftDirty];
    assert_eq!(kept, rights);
}

#[test]
fn everything_prints_under_its_name() {
    let notifiers = Notifiers::new(MmId(7));
    let bracket = nonblock(&notifiers);
    let subscription = notifiers.subscribe("gpu3", Ranges::WholeMm, Arc::new(Terse));
    let walker = notifiers.subscribe_tlb("walker", Arc::new(Walker));
    let make = || Ok::<_, core::convert::Infallible>(Arc::new(Terse));
    let Ok(shared) = notifiers.get("shared", Ranges::WholeMm, make);
    assert_eq!((subscription.name(), shared.name()), ("gpu3", "shared"));
    assert_eq!(notifiers.mm(), MmId(7));
    let Err(would_block) = NonBlock::new().would_block() else {
        panic!("it may not block");
    };
    let shown = [
        (format!("{shared:?}"), "Shared { name: \"shared\""),
        (would_block.to_string(), "would have to wait"),
        (format!("{walker:?}"), "TlbSubscription { id: 1"),
        (format!("{notifiers:?}"), "MmId(7)"),
        (format!("{bracket:?}"), "Clear"),
        (format!("{subscription:?}"), "gpu3"),
        (bracket.range().to_string(), "clear of "),
        (IntervalError::Empty.to_string(), "empty"),
        (IntervalError::Released.to_string(), "gone"),
    ];
    for (text, part) in shown {
        assert!(text.contains(part), "`{part}` is not in `{text}`");
    }
}
