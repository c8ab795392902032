//! Who does not return from a call: nobody is called again until it has, and it is named.

use super::super::member::Member;
use super::super::*;
use crate::addr::Vaddr;
use crate::watch::Suspect;
use core::ops::ControlFlow;
use core::time::Duration;
use lockdep::sync::ShortLock;
use std::sync::Arc;

const EVER: Duration = Duration::from_secs(60);
const START: Vaddr = Vaddr(0x1000);
const END: Vaddr = Vaddr(0x2000);

type Log = Arc<ShortLock<Vec<String>>>;

/// Writes down how it is called.
struct Probe(&'static str, Log, ShortLock<()>);

impl Probe {
    fn note(&self, what: &str) {
        self.1.lock().push(format!("{what} {}", self.0));
    }
}

impl Notifier for Probe {
    fn start<C: Context>(&self, _: &Range, _: &C) -> Result<(), C::Refusal> {
        self.note("start");
        Ok(())
    }

    fn end(&self, _: &Range, _: &EndContext<'_>) {
        self.note("end");
    }

    fn release(&self, _: &Blockable<'_>) {
        self.note("release");
    }

    fn clear_young(&self, _: &Range, _: &EndContext<'_>) -> bool {
        self.note("young");
        false
    }
}

impl IntervalNotifier for Probe {
    type Lock = ShortLock<()>;

    fn lock(&self) -> &ShortLock<()> {
        &self.2
    }
}

impl TlbUser for Probe {
    fn flush(&self, _: &Range, cx: &TlbContext<'_>) {
        *cx.short(&self.2) = ();
        self.note("flush");
    }
}

/// Those whom a bracket calls, in the order in which it does.
const CALLED: [&str; 3] = ["tree", "newer", "older"];
const WALKERS: [&str; 2] = ["newer walker", "older walker"];

struct World {
    notifiers: Notifiers,
    log: Log,
    tree: IntervalSubscription<Probe>,
    list: [Subscription; 2],
    walkers: [TlbSubscription; 2],
}

fn world() -> World {
    let log: Log = Arc::new(ShortLock::new("test.log", Vec::new()));
    let notifiers = Notifiers::new(MmId(1));
    let probe = |name| {
        let lock = ShortLock::new("test.lock", ());
        Arc::new(Probe(name, Arc::clone(&log), lock))
    };
    let listed = |name| notifiers.subscribe(name, Ranges::WholeMm, probe(name));
    let walker = |name| notifiers.subscribe_tlb(name, probe(name));
    let tree = notifiers.subscribe_interval(CALLED[0], START, END, probe(CALLED[0]));
    World {
        tree: tree.expect("not empty"),
        list: [CALLED[2], CALLED[1]].map(listed),
        walkers: [WALKERS[1], WALKERS[0]].map(walker),
        notifiers,
        log,
    }
}

impl World {
    fn member(&self, name: &str) -> Arc<Member> {
        let handle = self.notifiers.registry().look();
        let found = handle.version().visit_all(&mut |member| {
            if **member.name() == *name {
                return ControlFlow::Break(Arc::clone(member));
            }
            ControlFlow::Continue(())
        });
        found.break_value().expect("it is subscribed")
    }

    fn walker(&self, name: &str) -> Arc<dyn Suspect> {
        let handle = self.notifiers.registry().look();
        let mut walkers = handle.version().members.tlb_users.iter();
        let found = walkers.find(|walker| **walker.name() == *name);
        Arc::clone(found.expect("it is subscribed")) as _
    }

    #[track_caller]
    fn check_log(&self, what: &[&str], names: &[&str]) {
        let expected: Vec<_> = what
            .iter()
            .flat_map(|what| names.iter().map(move |name| format!("{what} {name}")))
            .collect();
        assert_eq!(core::mem::take(&mut *self.log.lock()), expected);
    }

    /// Every bracket names `holder`, and calls those before it, `called`, and ends what it began.
    #[track_caller]
    fn check_fails(&self, holder: &str, called: &[&str]) {
        let before = self.notifiers.stats();
        let refused = self.notifiers.start_nonblock(START, END, Event::Clear);
        let refused = refused.expect_err("one is overdue");
        assert_eq!((&*refused.holder, refused.cause), (holder, Cause::Overdue));
        self.check_log(&["start", "end"], called);
        let failed = self
            .notifiers
            .start_blockable(START, END, Event::Clear, EVER);
        self.check_names(failed.expect_err("one is overdue"), holder);
        self.check_log(&["start", "end"], called);
        let failed = self.notifiers.release(EVER);
        self.check_names(failed.expect_err("one is overdue"), holder);
        self.check_log(&[], &[]);
        let after = self.notifiers.stats();
        assert_eq!(after.refusals, before.refusals + 1);
        assert_eq!(after.starts_total(), before.starts_total() + 2);
    }

    #[track_caller]
    fn check_names(&self, failed: BracketError, name: &str) {
        let BracketError::Overdue { holder } = failed else {
            panic!("{failed}");
        };
        assert_eq!(&*holder, name);
    }

    /// Everybody is called.
    #[track_caller]
    fn check_succeeds(self) {
        drop(self.notifiers.start_nonblock(START, END, Event::Clear));
        self.check_log(&["start", "end"], &CALLED);
        let bracket = self
            .notifiers
            .start_blockable(START, END, Event::Clear, EVER);
        drop(bracket.expect("all have returned"));
        self.check_log(&["start", "end"], &CALLED);
        self.notifiers.release(EVER).expect("all have returned");
        self.check_log(&["release"], &CALLED);
        self.tree.remove();
        drop((self.list, self.walkers));
        assert!(self.notifiers.is_empty());
    }
}

#[test]
fn who_does_not_return_is_not_called_again() {
    for (nth, name) in CALLED.into_iter().enumerate() {
        let world = world();
        let member = world.member(name);
        // Two calls of it.
        member.convict();
        member.convict();
        world.check_fails(name, &CALLED[..nth]);
        member.acquit();
        world.check_fails(name, &CALLED[..nth]);
        let others: Vec<_> = CALLED.into_iter().filter(|other| *other != name).collect();
        assert!(!world.notifiers.clear_young(START, END));
        world.check_log(&["young"], &others);
        member.acquit();
        world.check_succeeds();
    }
}

#[test]
fn nothing_changes_while_a_walker_does_not_return() {
    for name in WALKERS {
        let world = world();
        assert!(!world.notifiers.has_overdue_tlb_user());
        let walker = world.walker(name);
        walker.convict();
        assert!(world.notifiers.has_overdue_tlb_user());
        world.check_fails(name, &[]);
        walker.acquit();
        assert!(!world.notifiers.has_overdue_tlb_user());
        world.check_succeeds();
    }
}

#[test]
fn a_walker_that_left_is_told_nothing_and_the_others_are() {
    for left in 0..2 {
        let World {
            notifiers,
            log,
            tree,
            list,
            walkers,
        } = world();
        assert!(notifiers.has_tlb_users());
        let mut walkers = walkers.map(Some);
        // They stand from the oldest on, and are called from the newest on.
        let gone = walkers[1 - left].take().expect("both are there");
        gone.synchronize();
        notifiers.flush_tlb_users(START, END, Event::Protection);
        assert_eq!(*log.lock(), [format!("flush {}", WALKERS[1 - left])]);
        drop(walkers);
        assert!(!notifiers.has_tlb_users() && notifiers.has_subscriptions());
        tree.remove();
        drop(list);
        assert!(!notifiers.has_subscriptions());
    }
}
