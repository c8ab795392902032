//! What the validator must find and what it must not: lock programs, see [`lockdep::testing`].

use lockdep::testing::World;
use lockdep::{Attributes, Kind, Severity, WaitType};

use crate::reports::texts;

/// Runs a program in a world of its own: these kinds are found, and nothing else.
#[track_caller]
fn check(program: &str, expected: &[Kind]) {
    check_in(&World::new(), program, expected);
}

#[track_caller]
fn check_in(world: &World, program: &str, expected: &[Kind]) {
    let reports = world.run(program);
    assert_eq!(world.kinds(), expected, "{program}\n{}", texts(&reports));
}

const CIRCLE: &[Kind] = &[Kind::Circular];
const AGAIN: &[Kind] = &[Kind::Recursive];
const FINE: &[Kind] = &[];

#[test]
fn a_circle_of_orders_is_found() {
    check("A B ; B C ; A C ;", FINE);
    check("A B ; B A ;", CIRCLE);
    check("A B ; || B A ;", CIRCLE);
    check("A B ; B C ; C A ;", CIRCLE);
    check("A B ; C A ; B C ;", CIRCLE);
    check("A B ; B C ; C D ; D A ;", CIRCLE);
    check("A B ; C D ; B D ; D A ;", CIRCLE);
    check("A B ; C D ; B C ; D A ;", CIRCLE);
    check("A1 B1 ; B2 A2 ;", CIRCLE);
    check("A A' A'", &[Kind::BadUnlock]);
}

#[test]
fn one_circle_is_reported_once_and_the_next_one_too() {
    check("A B ; B A ; B A ; A B ; C D ; D C ;", &[Kind::Circular; 2]);
}

#[test]
fn a_class_within_itself_is_found() {
    check("A1 A2 ;", AGAIN);
    check("A A ;", AGAIN);
    check("r(A1) r(A2) ;", AGAIN);
    check("r(A) r(A) ;", AGAIN);
    check("R(A1) R(A2) ;", FINE);
    check("r(A1) R(A2) ;", FINE);
    check("R(A1) W(A2) ;", AGAIN);
    check("W(A1) R(A2) ;", AGAIN);
    check("A1 ?A2 ;", FINE);
    check("A1 A2/1 ;", FINE);
    check("A/1 ; A ;", FINE);
    check("A A1/1 ; A1/1 A ;", CIRCLE);
    check("A/8", &[Kind::InvalidSubclass]);
}

#[test]
fn readers_block_only_whom_they_block() {
    check("A ; B ; r(A) r(B) ; r(B) r(A) ;", CIRCLE);
    // A writer that comes later makes readers block each other.
    check("r(A) r(B) ; r(B) r(A) ; A ; B ;", CIRCLE);
    check("r(A) r(B) ; r(B) r(A) ; A ;", FINE);
    check("R(A) R(B) ; R(B) R(A) ;", FINE);
    check("R(A) B ; B R(A) ;", FINE);
    check("R(A) B ; R(B) A ;", CIRCLE);
    check("R(A) B ; B A ;", CIRCLE);
    check("r(A) B ; B r(A) ; A ;", CIRCLE);
    check("R(A) B ; B R(A) ; B A ;", CIRCLE);
    // Three locks, as writers and readers.
    check("A R(B) ; B R(C) ; C R(A) ;", CIRCLE);
    check("A B ; R(B) R(C) ; C R(A) ;", CIRCLE);
    check("A B ; R(B) R(C) ; R(C) A ;", FINE);
    check("A R(B) ; R(B) R(C) ; R(C) A ;", FINE);
    check("A B ; R(B) R(C) ; C A ;", CIRCLE);
}

#[test]
fn what_is_tried_blocks_nobody_but_is_held() {
    check("A ?B ; B ?A ;", FINE);
    check("A ?B ; B A ;", FINE);
    check("?A B ; B A ;", CIRCLE);
    check("A ?B C ; C A ;", CIRCLE);
    check("A ?B C ; C B ;", CIRCLE);
}

#[test]
fn what_lies_between_does_not_hide_what_lies_outside() {
    check("A B A' C ; C A ;", CIRCLE);
    check("A ~B C ; C A ;", CIRCLE);
    check("A ~B C ; C B ;", FINE);
    check("R(B) A ; A R(B) C ; C B ;", CIRCLE);
    check("B A B' C ; C B ;", CIRCLE);
}

#[test]
fn instances_of_an_ordered_class_are_compared_each_time() {
    let ordered = || World::with(|_| Attributes::SPIN.ordered(|held, taken| held.cmp(&taken)));
    // Which of the two boxes has the lower address is not known: both orders, one is wrong.
    for again in ["", "A1 A2 ; A1 A2 ;"] {
        let world = ordered();
        check_in(
            &world,
            &format!("{again} A1 A2 ; A2 A1 ; A1 A2 ; A2 A1 ;"),
            AGAIN,
        );
    }
}

#[test]
fn a_nest_lock_allows_its_own_class_and_nothing_else() {
    check("N A1@N A2@N ;", FINE);
    check("A1 N A2@N ;", AGAIN);
    check("A1@N ;", &[Kind::NestNotHeld]);
    check("N A1@N A2@N A3@N A2' A1' A3' N'", FINE);
    check("N A1@N A2@N A1' A2' A1'", &[Kind::BadUnlock]);
    // What is tolerated under the nest lock records no order itself.
    check("N Y1@N A Y2@N ; A ; N Y2 ;", FINE);
}

#[test]
fn levels_are_kept_apart() {
    let usage = &[Kind::InconsistentUsage];
    check("hard[ A ; ] A ;", usage);
    check("A ; hard[ A ; ]", usage);
    check("hard[ A ; ] irq- A ; irq+", FINE);
    check("hard[ A ; ] irq- A irq+ ;", usage);
    check("soft[ A ; ] bh- A ; bh+", FINE);
    check("soft[ A ; ] A ;", usage);
    check("soft[ A ; ] irq- A ; irq+", FINE);
    check("hard[ R(A) ; ] R(A) ;", FINE);
    check("hard[ R(A) ; ] W(A) ;", usage);
    check("hard[ ?A ; ] A ;", FINE);
    check("A B ; hard[ A ; ]", usage);
    check("irq- A B ; irq+ B ; hard[ A ; ]", &[Kind::IrqInversion]);
    check("hard[ A ; ] B ; irq- A B ; irq+", &[Kind::IrqOrder]);
    check("hard[ A ; ] irq- A B ; irq+ B ;", &[Kind::IrqInversion]);
    check("hard[ R(A) ; ] R(B) ; irq- R(A) R(B) ; irq+", FINE);
    check("A hard[ B ; ]", FINE);
}

#[test]
fn what_is_no_plain_lock_carries_no_inversion() {
    use lockdep::LockType::{Local, Normal, WaitOverride};
    let world = || {
        World::with(|name| Attributes {
            lock_type: match name {
                "L" => Local,
                "O" => WaitOverride,
                _ => Normal,
            },
            ..Attributes::SPIN
        })
    };
    for (between, expected) in [("L", FINE), ("O", FINE), ("M", &[Kind::IrqOrder][..])] {
        let program = format!("hard[ A ; ] {between} B ; irq- A {between} ; irq+");
        check_in(&world(), &program, expected);
    }
}

#[test]
fn waiting_is_forbidden_where_it_is() {
    let wait = &[Kind::WaitContext];
    let world = || {
        World::with(|name| match name {
            "M" | "N" | "E" => Attributes::SLEEP,
            "C" => Attributes::of(WaitType::Config),
            "F" => Attributes {
                inner: WaitType::Config,
                ..Attributes::of(WaitType::Free)
            },
            "O" => Attributes {
                inner: WaitType::Sleep,
                lock_type: lockdep::LockType::WaitOverride,
                ..Attributes::SPIN
            },
            _ => Attributes::SPIN,
        })
    };
    let check = |program, expected| check_in(&world(), program, expected);
    check("M N ; M C ; M S ; C S ; F C ; F S ;", FINE);
    check("S F ;", FINE);
    check("S M ;", wait);
    check("C M ;", wait);
    check("S C ;", wait);
    check("F M ;", wait);
    check("S ?M ;", FINE);
    check("S S' M ;", FINE);
    check("hard[ C ; ]", wait);
    check("hard[ S ; ]", FINE);
    check("soft[ C ; ]", FINE);
    check("soft[ M ; ]", wait);
    check("nonblock[ M ; ]", wait);
    check("nonblock[ C ; ] M ;", FINE);
    check("M ; nonblock[ M ; ]", wait);
    check("nonblock[ wait(E) ]", wait);
    check("S wait(E) ;", wait);
    // What overrides the limit takes its place, until the next lock lowers it.
    check("S O M ;", FINE);
    check("S O C M ;", wait);
    check("S O O' M ;", wait);
    check("F O ;", FINE);
    check("O S M ;", wait);
}

#[test]
fn a_wait_for_every_holder_is_a_wait() {
    check("R(A) sync(A) ;", AGAIN);
    check("R(A) B ; B sync(A) ;", CIRCLE);
    check("B sync(A) ; R(A) B ;", CIRCLE);
    check("B sync(A) ; R(A) ; B ;", FINE);
}

#[test]
fn held_locks_are_changed_in_place() {
    check("A down(A) ;", FINE);
    check("r(A) down(A) ;", &[Kind::Downgrade]);
    check("A down(A) R(A1) ;", FINE);
    check("A B set(A,C) ; B C ;", CIRCLE);
    check("A set(A,C) B ; B C ;", CIRCLE);
    check("A set(A,C) B ; B A ;", FINE);
    check("A pin(A) unpin(A) ;", FINE);
    check("A pin(A) ;", &[Kind::Pin]);
    check("pin(A)", &[Kind::Pin]);
    check("A unpin(A) ;", &[Kind::Pin]);
}

#[test]
fn what_is_gone_is_forgotten() {
    check("A free(A) ;", &[Kind::HeldFreed]);
    check("A ; free(A)", FINE);
    check("A B ; zap(A) B A ;", FINE);
    check("A B ; zap(A) A B ; B A ;", CIRCLE);
    check("A B ; B C ; zap(B) C A ;", FINE);
    check("A none ;", &[Kind::HeldAtExit]);
    check("A ; none", FINE);
}

#[test]
fn releases_come_in_any_order() {
    check("A B C A' B' C'", FINE);
    check("A B C B' D ; D A ;", CIRCLE);
    check("A B C A' D ; D A ;", CIRCLE);
    check("A B A' C ; C A ;", CIRCLE);
    check("A'", &[Kind::BadUnlock]);
}

#[test]
fn more_locks_are_held_than_lie_in_the_thread() {
    let nr = if cfg!(miri) { 12 } else { 200 };
    let names: Vec<String> = (0..nr)
        .map(|n: u32| {
            let letter = |n: u32| char::from_u32('a' as u32 + n).expect("a letter");
            format!("L{}{}", letter(n / 26), letter(n % 26))
        })
        .collect();
    let all = names.join(" ");
    check(&format!("{all} ; {all} ;"), FINE);
    let (first, last) = (&names[0], &names[names.len() - 1]);
    check(&format!("{all} ; {last} {first} ;"), CIRCLE);
    // Released from the bottom, which shifts what is spilled.
    let releases: Vec<String> = names.iter().map(|name| format!("{name}'")).collect();
    check(&format!("{all} {} none", releases.join(" ")), FINE);
}

#[test]
fn who_ends_a_wait_must_not_need_what_the_waiter_holds() {
    // The signaller took A while somebody waited: seen. Before: a possibility.
    check("begin(E) A A' signal(E) || A wait(E) ;", CIRCLE);
    check("A wait(E) ; || A ; signal(E)", CIRCLE);
    check("A ; begin(E) signal(E) || A wait(E) ;", FINE);
    check("B ; signal(E) || A wait(E) ;", FINE);
    check("?A ; signal(E) || A wait(E) ;", FINE);
    check("A B ; || B ; signal(E) || A wait(E) ; ", FINE);
    check("B A ; || B ; signal(E) || A wait(E) ; ", CIRCLE);
    check("A B ; B wait(E) ; || A ; signal(E)", CIRCLE);
    // Two that wait for each other first.
    check("wait(E) signal(F) || wait(F) signal(E)", FINE);
}

#[test]
fn a_signal_from_an_interrupt_like_level_is_silent() {
    let program = |signal: &str| format!("begin(E) A A' {signal} || A wait(E) ;");
    check(&program("signal(E)"), CIRCLE);
    // Whom it interrupts has nothing to do with the signal.
    for level in ["hard", "soft", "threaded"] {
        check(&program(&format!("{level}[ signal(E) ]")), FINE);
    }
}

#[test]
fn a_time_limit_and_a_possibility_lower_the_severity() {
    #[track_caller]
    fn check(program: &str, expected: Severity) {
        let world = World::new();
        let reports = world.run(program);
        let severities: Vec<Severity> = reports.iter().map(|r| r.severity).collect();
        assert_eq!(severities, [expected], "{program}");
    }
    check("A B ; || B A ;", Severity::Error);
    check("A ; signal(E) || A wait(E) ;", Severity::Warning);
    check("A ; signal(E) A wait(E) ;", Severity::Unlikely);
    check("A timed(E) ; || A ; signal(E)", Severity::Warning);
    // Under a lock held alone by both, or never at one time.
    check("r(A) r(B) ; r(B) r(A) ;", Severity::Unlikely);
    check("G A B ; || G B A ;", Severity::Unlikely);
    check("G A B ; || B A ;", Severity::Error);
    check("P Q ?G R S ; || S P ;", Severity::Error);
    check("A B ; | B A ;", Severity::Unlikely);
    check("A B ; | A B ; || B A ;", Severity::Error);
    // What was unlikely is looked at again when its sides meet.
    check("A B ; | B A ; || A B ;", Severity::Error);
    check("A B ; | B A ; | A B ; || B A ;", Severity::Error);
    check("A B ; | B A ; | B A ; || B A ;", Severity::Unlikely);
    check("G A B ; || G B A ; || A B ;", Severity::Error);
    check("G A B ; || G B A ; || H A B ;", Severity::Error);
    check(
        "A ; signal(E) A wait(E) ; || A ; signal(E)",
        Severity::Warning,
    );
    check(
        "A ; signal(E) || A timed(E) ; A wait(E) ;",
        Severity::Warning,
    );
    check(
        "begin(E) B B' signal(E) || B timed(E) ; ",
        Severity::Warning,
    );
}

#[test]
fn chains_of_any_length_are_told_apart() {
    // Far more chains than the table of a private validator holds, but under Miri.
    let last = if cfg!(miri) { 'f' } else { 'z' };
    let names: Vec<String> = ('a'..=last).map(|c| format!("L{c}")).collect();
    let mut program = String::new();
    for outer in 0..names.len() {
        for inner in outer + 1..names.len() {
            for third in inner + 1..names.len() {
                program += &format!("{} {} {} ; ", names[outer], names[inner], names[third]);
            }
        }
    }
    check(&program, FINE);
    check(&format!("{program} L{last} La ;"), CIRCLE);
}
