//! What the families do not cover: declared orders, sections and limits that end in any order,
//! fences, pins, names, strict nests, classes that come and go.

use std::sync::Arc;
use std::thread;

use lockdep::event::{self, Acquire, HeldAs};
use lockdep::sync::Mutex;
use lockdep::testing::World;
use lockdep::wait::{EventKind, EventState, Limit};
use lockdep::{
    Attributes, Checking, DynamicClass, Kind, Mode, Provenance, Report, Severity, Site, Validator,
    WaitType, context, prime, wait,
};

use crate::reports::texts;

const SILENT: &[(Severity, Kind)] = &[];
const CIRCLE: (Severity, Kind) = (Severity::Error, Kind::Circular);

/// What is said of what happens in a validator of its own.
#[track_caller]
fn check(expected: &[(Severity, Kind)], act: impl FnOnce()) -> Vec<Arc<Report>> {
    let validator = Validator::new();
    let entered = validator.enter();
    act();
    drop(entered);
    let reports = validator.reports();
    let found: Vec<_> = reports.iter().map(|r| (r.severity, r.kind)).collect();
    assert_eq!(found, expected, "{}", texts(&reports));
    reports
}

#[track_caller]
fn check_program(world: &World, program: &str, expected: &[Kind]) {
    world.run(program);
    assert_eq!(world.kinds(), expected, "{program}");
}

fn classes<const N: usize>(names: [&str; N]) -> [DynamicClass; N] {
    names.map(|name| DynamicClass::new(name, Attributes::SLEEP))
}

/// Takes one lock of each class, each under the one before, and releases all.
#[track_caller]
fn nest(classes: &[&DynamicClass]) {
    for class in classes {
        let instance = std::ptr::from_ref(*class).addr();
        event::acquire(&Acquire::new(class.id(), instance, Mode::Exclusive));
    }
    for class in classes.iter().rev() {
        event::release(std::ptr::from_ref(*class).addr());
    }
}

fn declare(held: &DynamicClass, taken: &DynamicClass) {
    let alone = |class: &DynamicClass| (class.id(), Mode::Exclusive);
    prime::order(alone(held), alone(taken));
}

#[test]
fn a_declared_order_counts_and_a_report_says_that_nobody_took_it() {
    let [lock, reclaim] = classes(["notifier lock", "fs_reclaim"]);
    // The wrong way round, as a driver of graphics cards once had it: its own lock before reclaim.
    let reports = check(&[(Severity::Warning, Kind::Circular)], || {
        declare(&lock, &reclaim);
        nest(&[&reclaim, &lock]);
    });
    let text = reports[0].text();
    assert!(text.contains("declared, never observed"), "{text}");
    let declared = reports[0]
        .orders
        .iter()
        .find(|o| o.held.class == "notifier lock");
    let declared = declared.expect("it is part of the circle");
    assert_eq!(
        (declared.provenance, &declared.thread),
        (Provenance::Declared, &None)
    );
}

#[test]
fn a_declared_order_that_is_seen_counts_as_seen() {
    let [a, b] = classes(["a", "b"]);
    check(&[CIRCLE], || {
        declare(&a, &b);
        nest(&[&a, &b]);
        nest(&[&b, &a]);
    });
    // The circle was a warning before.
    check(&[CIRCLE], || {
        declare(&a, &b);
        nest(&[&b, &a]);
        nest(&[&a, &b]);
    });
    check(&[(Severity::Warning, Kind::Circular)], || {
        declare(&a, &b);
        declare(&b, &a);
    });
    check(SILENT, || {
        declare(&a, &b);
        nest(&[&a, &b]);
    });
}

#[test]
fn known_orders_say_how_they_are_known() {
    let validator = Validator::new();
    let _entered = validator.enter();
    let [a, b, c] = classes(["beyond a", "beyond b", "beyond c"]);
    declare(&a, &b);
    nest(&[&b, &c]);
    let mut orders = validator.orders();
    orders.sort_by(|one, other| one.held.cmp(&other.held));
    let known: Vec<_> = orders
        .iter()
        .map(|order| (order.held.as_str(), order.taken.as_str(), order.provenance))
        .collect();
    let expected = [
        ("beyond a", "beyond b", Provenance::Declared),
        ("beyond b", "beyond c", Provenance::Observed),
    ];
    assert_eq!(known, expected);
}

#[test]
fn a_section_lasts_until_its_last_guard_ends() {
    let wait = (Severity::Error, Kind::WaitContext);
    let lock = Mutex::new("lock", ());
    let take = || drop(lock.lock());
    check(SILENT, || {
        drop(context::non_block());
        take();
    });
    for first in [0, 1] {
        check(&[wait], || {
            let mut sections = vec![context::non_block(), context::non_block()];
            drop(sections.remove(first));
            take();
        });
    }
    check(SILENT, || {
        let sections = [context::non_block(), context::non_block()];
        drop(sections);
        take();
    });
}

#[test]
fn the_lowest_limit_counts_whatever_ends_first() {
    use WaitType::{Config, Sleep, Spin, Unchecked};
    #[track_caller]
    fn check_limits(limits: &[WaitType], ends: &[usize], may_take: WaitType) {
        let sorts = [Spin, Config, Sleep].map(|sort| {
            let class = DynamicClass::new(format!("{sort:?}"), Attributes::of(sort));
            (sort, class)
        });
        for (sort, class) in &sorts {
            let is_allowed = *sort <= may_take;
            let wait = [(Severity::Error, Kind::WaitContext)];
            let expected = if is_allowed { SILENT } else { &wait };
            check(expected, || {
                let mut guards: Vec<_> = limits
                    .iter()
                    .map(|&l| Some(context::wait_limit(l)))
                    .collect();
                ends.iter().for_each(|&end| drop(guards[end].take()));
                nest(&[class]);
            });
        }
    }
    check_limits(&[], &[], Sleep);
    check_limits(&[Sleep], &[], Sleep);
    check_limits(&[Spin], &[], Spin);
    check_limits(&[Spin], &[0], Sleep);
    check_limits(&[Spin, Config], &[], Spin);
    check_limits(&[Config, Spin], &[], Spin);
    check_limits(&[Config, Spin], &[1], Config);
    check_limits(&[Spin, Config], &[0], Config);
    check_limits(&[Spin, Config], &[0, 1], Sleep);
    check_limits(&[Spin, Unchecked], &[], Spin);
    check_limits(&[Unchecked], &[], Sleep);
}

#[test]
fn a_scope_is_shown_with_what_was_done_in_it() {
    const NO_FS: context::Scope = context::Scope::new(5);
    NO_FS.name("no file systems");
    let [a, b] = classes(["a", "b"]);
    let reports = check(&[CIRCLE], || {
        assert!(!NO_FS.is_active());
        let outer = NO_FS.enter();
        let inner = NO_FS.enter();
        drop(outer);
        assert!(NO_FS.is_active());
        nest(&[&a, &b]);
        drop(inner);
        assert!(!NO_FS.is_active());
        nest(&[&b, &a]);
    });
    let scopes: Vec<u8> = reports[0]
        .orders
        .iter()
        .map(|o| o.taken.context.scopes())
        .collect();
    assert!(
        scopes.contains(&(1 << 5)) && scopes.contains(&0),
        "{scopes:?}"
    );
    assert!(reports[0].text().contains("no file systems"));
}

#[test]
fn who_owes_a_fence_needs_nothing_that_is_held_while_fences_are_waited_for() {
    let [lock] = classes(["lock"]);
    let signals = || {
        let _signalling = wait::begin_signalling();
        nest(&[&lock]);
    };
    let waits = || {
        let held = std::ptr::from_ref(&lock).addr();
        event::acquire(&Acquire::new(lock.id(), held, Mode::Exclusive));
        wait::might_wait_for_fence();
        event::release(held);
    };
    check(&[CIRCLE], || (signals(), waits()).0);
    check(&[CIRCLE], || (waits(), signals()).0);
    check(SILENT, || (waits(), nest(&[&lock])).0);
    // Sections in each other are one; what an interrupt-like level signals needs no annotation.
    check(SILENT, || {
        let _outer = wait::begin_signalling();
        let _inner = wait::begin_signalling();
    });
    check(SILENT, || {
        let _level = context::enter(lockdep::Level::Hard);
        let _signalling = wait::begin_signalling();
        assert_eq!(event::nr_held(), 0);
    });
    // A section that began inside of another does not end it.
    check(&[CIRCLE], || {
        waits();
        let _outer = wait::begin_signalling();
        drop(wait::begin_signalling());
        nest(&[&lock]);
    });
    // Two that take each other's locks in other orders inside of sections are no circle with it.
    check(SILENT, || {
        let section = wait::begin_signalling();
        nest(&[&lock]);
        drop(section);
        let held = std::ptr::from_ref(&lock).addr();
        event::acquire(&Acquire::new(lock.id(), held, Mode::Exclusive));
        event::release(held);
        let _section = wait::begin_signalling();
    });
}

#[test]
fn pins_are_undone_with_their_own_cookies() {
    let pin = &[(Severity::Error, Kind::Pin)];
    let [lock] = classes(["lock"]);
    let with_lock = |act: &dyn Fn(usize)| {
        let held = std::ptr::from_ref(&lock).addr();
        event::acquire(&Acquire::new(lock.id(), held, Mode::Exclusive));
        act(held);
        event::release(held);
    };
    check(SILENT, || {
        with_lock(&|lock| {
            let (one, other) = (event::pin(lock), event::pin(lock));
            event::unpin(lock, one);
            event::unpin(lock, other);
            event::repin(lock, one);
            event::unpin(lock, one);
        });
    });
    check(pin, || {
        with_lock(&|lock| event::unpin(lock, event::PinCookie::FORGED))
    });
    check(pin, || {
        with_lock(&|lock| {
            let cookie = event::pin(lock);
            event::unpin(lock, cookie);
            event::repin(lock, cookie);
        });
    });
}

#[test]
fn a_strict_nest_records_what_a_tolerated_lock_is_taken_under() {
    let between = "N Y1@N A Y2@N ;";
    check_program(&World::new(), between, &[]);
    let strict = || {
        let world = World::new();
        world.validator().be_strict_in_nests();
        world
    };
    // Nobody else can be there as long as all hold the nest lock.
    let world = strict();
    let reports = world.run(between);
    let found: Vec<_> = reports.iter().map(|r| (r.severity, r.kind)).collect();
    assert_eq!(found, [(Severity::Unlikely, Kind::Circular)]);
    check_program(
        &strict(),
        &format!("{between} || Y1 A ;"),
        &[Kind::Circular],
    );
    check_program(&strict(), "N Y1@N Y2@N ; N Y2@N Y1@N ;", &[]);
    check_program(&strict(), "N Y1@N A Y2@N Z ; Z A ;", &[Kind::Circular]);
}

#[test]
fn what_is_not_validated_is_only_balanced() {
    let world = || {
        World::with(|name| match name {
            "V" => Attributes::SPIN.checking(Checking::NoValidate),
            "T" => Attributes::SPIN.checking(Checking::NoTrack),
            _ => Attributes::SPIN,
        })
    };
    check_program(&world(), "A V ; V A ; V V1 ; T A ; A T ;", &[]);
    check_program(&world(), "A V B ; B A ;", &[Kind::Circular]);
    check_program(&world(), "V free(V) ;", &[Kind::HeldFreed]);
    check_program(&world(), "V none ;", &[Kind::HeldAtExit]);
    check_program(&world(), "hard[ V ; ] V ;", &[]);
}

#[test]
fn programs_beyond_the_families() {
    for (program, expected) in [
        // Both ways of hiding an outer lock behind a reader, with reclaim as the last class.
        ("R(S) L ; || L F ; || F R(S) L ;", &[Kind::Circular][..]),
        ("A R(B) R(C) D ; D A ;", &[Kind::Circular]),
        ("A ?R(B) C ; C A ;", &[Kind::Circular]),
        ("R(A) ?B C ; C W(A) ;", &[Kind::Circular]),
        // A lock that is released from below others, and the orders that remain.
        ("A B C A' D ; D B ;", &[Kind::Circular]),
        ("A B C A' D ; D A ;", &[Kind::Circular]),
        ("A B C B' A' C' ; C A ;", &[Kind::Circular]),
        ("A B A' B' ; A B ;", &[]),
        // A class is changed while it is held, or was not held.
        ("A B C set(B,D) ; D C ; C D ;", &[Kind::Circular]),
        ("A B set(A,B) ;", &[Kind::Recursive]),
        ("set(A,C)", &[Kind::BadUnlock]),
        ("A B down(A) ; r(A1) B ; B r(A1) ;", &[Kind::Circular]),
        // Waits for all holders, behind readers of each kind.
        ("r(A) sync(A) ;", &[Kind::Recursive]),
        ("A B ; B sync(A) ;", &[Kind::Circular]),
        ("?A sync(A) ;", &[Kind::Recursive]),
        // Subclasses in the middle of a circle.
        ("A/1 B ; B/2 A/1 ; B B1/2 ;", &[Kind::Circular]),
        ("A A1/1 A2/2 ; A1/1 A2/2 ; A A2/2 ;", &[]),
        ("A/7 ; A/8", &[Kind::InvalidSubclass]),
        // Under a nest lock: counted, released in any order, by class.
        ("N A1@N A2@N A3@N A1' A3' N' A2'", &[]),
        ("N A1@N A2@N ; A1'", &[Kind::BadUnlock]),
        ("N A1@N B A2@N ; N B ; B N ;", &[Kind::Circular]),
        // Levels are chains of their own.
        ("A hard[ B B' C C' ] ;", &[]),
        (
            "A hard[ A1 ; ]",
            &[Kind::InconsistentUsage, Kind::Recursive],
        ),
    ] {
        let world = World::new();
        let reports = world.run(program);
        assert_eq!(world.kinds(), expected, "{program}\n{}", texts(&reports));
    }
}

#[test]
fn is_held_knows_modes() {
    check(SILENT, || {
        let class = DynamicClass::new("lock", Attributes::SLEEP);
        let held = |how| event::is_held(1, how);
        assert_eq!(held(HeldAs::Any), Some(false));
        event::acquire(&Acquire::new(class.id(), 1, Mode::Shared));
        let all = [HeldAs::Any, HeldAs::Exclusive, HeldAs::Reader].map(held);
        assert_eq!(all, [Some(true), Some(false), Some(true)]);
        event::release(1);
    });
}

/// Pairs that are built anew in another order each time, each with classes of its own.
#[test]
fn classes_that_are_gone_take_their_orders_with_them() {
    check(SILENT, || {
        for round in 0..if cfg!(miri) { 6 } else { 100 } {
            let [a, b] = classes(["gone a", "gone b"]);
            let pair = [[&a, &b], [&b, &a]][round % 2];
            nest(&pair);
        }
    });
}

#[test]
fn classes_come_and_go_while_others_are_validated() {
    let validator = Validator::new();
    let lasting = classes(["lasting a", "lasting b", "lasting c"]);
    let [a, b, c] = &lasting;
    let churn = || {
        let _entered = validator.enter();
        for _ in 0..if cfg!(miri) { 5 } else { 300 } {
            let [passing] = classes(["passing"]);
            nest(&[a, &passing, b]);
            nest(&[&passing, c]);
        }
    };
    let steady = || {
        let _entered = validator.enter();
        for _ in 0..if cfg!(miri) { 10 } else { 3000 } {
            nest(&[a, b, c]);
        }
    };
    thread::scope(|scope| {
        scope.spawn(churn);
        scope.spawn(churn);
        scope.spawn(steady);
    });
    assert!(validator.reports().is_empty());
    let _entered = validator.enter();
    nest(&[c, a]);
    let kinds: Vec<Kind> = validator.reports().iter().map(|r| r.kind).collect();
    assert_eq!(kinds, [Kind::Circular], "what lasts is remembered");
}

/// A client and a server: the one asks and waits for the answer, the other waits for the next
/// question. With several of both, either wait begins while another's lasts.
#[test]
fn who_asks_and_answers_in_turn_is_no_circle() {
    let [asked, answered] = classes(["asked", "answered"]);
    let site = Site::Unknown;
    let wait = |class: &DynamicClass| {
        let event = EventState::new(EventKind::Once);
        drop(event.wait(class.id(), Limit::Forever, site));
    };
    // While somebody waits, another's wait begins and ends before the signal.
    let signal_after = |waited: &DynamicClass, signalled: &DynamicClass| {
        let event = EventState::new(EventKind::Once);
        let waiting = event.wait(signalled.id(), Limit::Forever, site);
        wait(waited);
        event.signal(signalled.id(), site);
        drop(waiting);
    };
    let unlikely = (Severity::Unlikely, Kind::Circular);
    let reports = check(&[unlikely], || {
        signal_after(&answered, &asked);
        signal_after(&asked, &answered);
    });
    assert!(reports[0].text().contains("in turn"));
}
