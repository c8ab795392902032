//! Families of wound/wait locks, of wait contexts, of local locks and of reclaim.

use lockdep::context::Scope;
use lockdep::{Attributes, Kind, LockType, Map, Validator, WaitType};

use super::{Case, Family, Reports, Silent};

const MISUSE: &[Kind] = &[Kind::WoundWait];
const AGAIN: &[Kind] = &[Kind::Recursive];
const CIRCLE: &[Kind] = &[Kind::Circular];

fn of_programs(name: &'static str, rows: &[(&str, &'static [Kind])]) -> Family {
    let case = |(program, kinds): &(&str, &'static [Kind])| {
        let verdict = if kinds.is_empty() {
            Silent
        } else {
            Reports(kinds)
        };
        Case::new(*program, verdict).with(|_| Attributes::SLEEP)
    };
    Family {
        name,
        nr_cases: rows.len(),
        nr_reported: rows.iter().filter(|(_, kinds)| !kinds.is_empty()).count(),
        cases: rows.iter().map(case).collect(),
    }
}

/// 36 cases in four families.
fn wound_wait() -> [Family; 4] {
    let api = [
        // A lock taken by other means, a refusal that is obeyed, a wait that nothing asked for.
        ("O1 O1' ctx(1,O) done(1) end(1)", &[][..]),
        ("ctx(1,O) O1%1 O2%1 done(1) O1'%1 O2'%1 end(1)", &[]),
        ("ctx(1,O) slow(O1%1) O1'%1 end(1)", MISUSE),
        ("ctx(1,O) ctx(2,O) end(2) end(1)", AGAIN),
        ("ctx(1,O) P1%1 P1'%1 end(1)", MISUSE),
        ("ctx(1,O) done(1) done(1) end(1)", MISUSE),
        ("ctx(1,O) end(1) end(1)", &[Kind::BadUnlock]),
        ("ctx(1,O) O1%1 end(1)", MISUSE),
        ("ctx(1,O) done(1) O1%1 O1'%1 end(1)", MISUSE),
        ("ctx(1,O) O1%1 O1'%1 O1'%1 end(1)", MISUSE),
        ("O1 ctx(1,O) O1'%1 end(1)", MISUSE),
        ("ctx(1,O) O1%1 || ctx(2,O) O1%2 O1'%2 end(2)", MISUSE),
    ];
    let backing_off = [
        ("ctx(1,O) O1%1 !O2%1 O1'%1 O2%1 O2'%1 end(1)", &[][..]),
        ("ctx(1,O) O1%1 !O2%1 O1'%1 slow(O2%1) O1%1 O1'%1 O2'%1", &[]),
        ("ctx(1,O) O1%1 !O2%1 O2%1 O2'%1 O1'%1", MISUSE),
        ("ctx(1,O) O1%1 !O2%1 slow(O2%1) O2'%1 O1'%1", MISUSE),
        ("ctx(1,O) O1%1 !O2%1 O3%1 O3'%1 O1'%1", MISUSE),
        ("ctx(1,O) O1%1 !O2%1 slow(O3%1) O3'%1 O1'%1", MISUSE),
        ("ctx(1,O) O1%1 !O2%1 !O3%1 O1'%1", MISUSE),
        ("ctx(1,O) O1%1 !O2%1 !O3%1 O1'%1 slow(O3%1) O3'%1", MISUSE),
        ("ctx(1,O) O1%1 !O2%1 O1'%1 O3%1 O3'%1", MISUSE),
        ("ctx(1,O) O1%1 !O2%1 O1'%1 slow(O3%1) O3'%1", MISUSE),
    ];
    let nested = [
        ("O1 A1@O1 A2@O1 A2' A1' O1'", &[][..]),
        ("A1@O1 A1'", &[Kind::NestNotHeld]),
    ];
    [
        of_programs("ww api", &api),
        of_programs("ww backing off", &backing_off),
        of_programs("spinlock nest", &nested),
        wound_wait_matrix(),
    ]
}

/// What is taken while the row is held: blocking, tried, under a context.
fn wound_wait_matrix() -> Family {
    of_programs(
        "ww block/try/context in context/try/block/spin",
        &[
            ("ctx(1,O) O1%1 O2 O2' O1'%1", AGAIN),
            ("ctx(1,O) O1%1 ?O2 O2' O1'%1", &[]),
            ("ctx(1,O) O1%1 O2%1 O2'%1 O1'%1", &[]),
            ("?O1 O2 ;", AGAIN),
            ("?O1 ?O2 ;", &[]),
            ("?O1 ctx(1,O) O2%1 O2'%1 end(1) O1'", AGAIN),
            ("O1 O2 ;", AGAIN),
            ("O1 ?O2 ;", &[]),
            ("O1 ctx(1,O) O2%1 O2'%1 end(1) O1'", AGAIN),
            ("A O1 ; O1 A ;", CIRCLE),
            ("A ?O1 ; ?O1 A ;", &[]),
            (
                "A ctx(1,O) O1%1 O1'%1 end(1) A' ctx(2,O) O1%2 A A' O1'%2",
                CIRCLE,
            ),
        ],
    )
}

/// Classes by the last letter of their names: what is held, and what is taken there.
fn by_letter(name: &str) -> Attributes {
    let reader = |inner| Attributes {
        inner,
        ..Attributes::of(WaitType::Free)
    };
    match name.chars().last() {
        Some('F') => reader(WaitType::Config),
        Some('G') => reader(WaitType::Spin),
        Some('S') => Attributes::SPIN,
        Some('C') => Attributes::of(WaitType::Config),
        _ => Attributes::SLEEP,
    }
}

/// What may be taken where: 36 cases.
fn wait_contexts() -> Family {
    let outside = [
        ("threaded[", "]"),
        ("hard[", "]"),
        ("soft[", "]"),
        ("R(oF)", ";"),
        ("bh- R(oF)", "; bh+"),
        ("R(oG)", ";"),
        ("oS", ";"),
        ("oC", ";"),
        ("oM", ";"),
    ];
    let inside = ["R(iF)", "iS", "iC", "iM"];
    let cases = outside.into_iter().flat_map(|(begin, end)| {
        inside.map(|taken| {
            let is_forbidden = match taken {
                "iM" => begin != "oM",
                "iC" => ["hard[", "R(oG)", "oS"].contains(&begin),
                _ => false,
            };
            let verdict = if is_forbidden {
                Reports(&[Kind::WaitContext])
            } else {
                Silent
            };
            Case::new(format!("{begin} {taken} ; {end}"), verdict).with(by_letter)
        })
    });
    Family {
        name: "wait context",
        nr_cases: 36,
        nr_reported: 11,
        cases: cases.collect(),
    }
}

/// A lock that each core has for itself carries no inversion; what lies beside it does.
fn local_locks() -> Family {
    fn local(name: &str) -> Attributes {
        let lock_type = if name == "L" {
            LockType::Local
        } else {
            LockType::Normal
        };
        Attributes {
            lock_type,
            ..Attributes::SPIN
        }
    }
    let inversion = Reports(&[Kind::IrqOrder, Kind::IrqInversion]);
    let rows = [
        ("L ; hard[ A ; ] irq- A L ; irq+", Silent),
        ("L B ; hard[ A ; ] irq- A L ; irq+", Silent),
        ("L B ; hard[ A ; ] irq- A L ; A B ; irq+", inversion),
    ];
    Family {
        name: "local lock",
        nr_cases: 3,
        nr_reported: 1,
        cases: rows
            .map(|(program, verdict)| Case::new(program, verdict).with(local))
            .into(),
    }
}

pub(super) fn families() -> Vec<Family> {
    let mut families = Vec::from(wound_wait());
    families.extend([wait_contexts(), local_locks()]);
    families
}

/// How many cases of reclaim there are, and how many of them are reported.
pub(super) const NR_RECLAIM: (usize, usize) = (RECLAIM_CASES.len(), 1);

/// Whether the allocation inside of reclaim may call file systems, whether a scope forbids it, and
/// whether that is reported.
const RECLAIM_CASES: [(bool, bool, bool); 3] = [
    (false, false, false),
    (true, false, true),
    (true, true, false),
];

static RECLAIM: Map = Map::new("reclaim");
const NO_FS: Scope = Scope::new(3);

/// An allocation: what its task must not do is looked at before anything is annotated.
fn might_allocate(may_call_fs: bool) {
    if may_call_fs && !NO_FS.is_active() {
        RECLAIM.might_acquire();
    }
}

#[test]
fn an_allocation_inside_of_reclaim_must_not_reclaim() {
    for (may_call_fs, has_scope, is_reported) in RECLAIM_CASES {
        let validator = Validator::new();
        let _entered = validator.enter();
        let inside = RECLAIM.enter();
        let scope = has_scope.then(|| NO_FS.enter());
        might_allocate(may_call_fs);
        drop((scope, inside));
        let kinds: Vec<Kind> = validator.reports().iter().map(|r| r.kind).collect();
        let expected: &[Kind] = if is_reported { AGAIN } else { &[] };
        assert_eq!(kinds, expected, "{may_call_fs} {has_scope}");
    }
    let nr_reported = RECLAIM_CASES.iter().filter(|case| case.2).count();
    assert_eq!(nr_reported, NR_RECLAIM.1);
}
