//! Families with interrupt-like levels, 210 cases, and the few of mixed levels and fair readers.

use lockdep::Kind;

use super::{Case, Family, READ, Reports, SPIN, Silent, Sort, WRITE, permutations, reports_if};

/// How a level is entered, and how it is kept off.
#[derive(Clone, Copy)]
struct Switch {
    enter: &'static str,
    off: &'static str,
    on: &'static str,
}

const HARD: Switch = Switch {
    enter: "hard[",
    off: "irq-",
    on: "irq+",
};
const SOFT: Switch = Switch {
    enter: "soft[",
    off: "bh-",
    on: "bh+",
};

impl Switch {
    fn inside(self, steps: &str) -> String {
        format!("{} {steps} ]", self.enter)
    }

    fn without(self, steps: &str) -> String {
        format!("{} {steps} {}", self.off, self.on)
    }
}

const THREE: [Sort; 3] = [SPIN, WRITE, READ];
const TWO: [Sort; 2] = [WRITE, READ];
const BOTH: [Switch; 2] = [HARD, SOFT];
/// One lock contradicts itself.
const USAGE: &[Kind] = &[Kind::InconsistentUsage];
/// Two locks do: which of the two it is depends on what is seen last.
const PATH: &[Kind] = &[Kind::IrqOrder, Kind::IrqInversion];

const ANY: &[Kind] = &[Kind::InconsistentUsage, Kind::IrqOrder, Kind::IrqInversion];

/// The parts in every order, for each of these sorts and levels; recursive readers may do it.
fn family(
    name: &'static str,
    nr_cases: usize,
    (sorts, levels): (&[Sort], &[Switch]),
    kinds: &'static [Kind],
    parts: impl Fn(Sort, Switch) -> Vec<String>,
) -> Family {
    let mut cases = Vec::new();
    for &sort in sorts {
        let verdict = reports_if(!sort.is_recursive(), kinds);
        for &level in levels {
            let programs = permutations(&parts(sort, level));
            cases.extend(
                programs
                    .into_iter()
                    .map(|program| Case::new(program, verdict)),
            );
        }
    }
    // One sort of each list is that of recursive readers.
    let nr_reported = nr_cases / sorts.len() * (sorts.len() - 1);
    Family {
        name,
        nr_cases,
        nr_reported,
        cases,
    }
}

/// One lock, in a level and where the level can come.
fn one_lock() -> [Family; 3] {
    let three = (&THREE[..], &BOTH[..]);
    let held_on = |sort: Sort, level: Switch| format!("{} A'", level.without(&sort.write("A")));
    [
        family("irqs-on + irq-safe-A", 12, three, USAGE, |sort, level| {
            let both = sort.write("A A'");
            vec![level.inside(&both), both]
        }),
        // Where the hard level can come, the soft one can.
        family(
            "sirq-safe-A => hirqs-on",
            6,
            (&THREE, &[SOFT]),
            USAGE,
            |sort, level| vec![level.inside(&sort.write("A A'")), held_on(sort, HARD)],
        ),
        family("safe-A + irqs-on", 12, three, USAGE, |sort, level| {
            vec![level.inside(&sort.write("A A'")), held_on(sort, level)]
        }),
    ]
}

/// A lock of a level waits for one that is held where the level can come.
fn two_locks() -> [Family; 3] {
    let three = (&THREE[..], &BOTH[..]);
    [
        family("safe-A + unsafe-B #1", 36, three, ANY, |sort, level| {
            let [a, b] = ["A A'", "B B'"].map(|steps| sort.write(steps));
            vec![sort.write("A B B' A'"), b, level.inside(&a)]
        }),
        family("safe-A + unsafe-B #2", 36, three, PATH, |sort, level| {
            let [a, b] = ["A A'", "B B'"].map(|steps| sort.write(steps));
            let nested = level.without(&sort.write("A B B' A'"));
            vec![nested, b, level.inside(&a)]
        }),
        family("irq lock-inversion", 36, three, PATH, |sort, level| {
            let b = sort.write("B B'");
            let nested = level.without(&format!("A {b} A'"));
            vec![nested, b, level.inside("R(A) A'")]
        }),
    ]
}

/// Readers outside of the level, and a lock of the level that their writers wait for.
fn read_recursion() -> [Family; 3] {
    let two = (&TWO[..], &BOTH[..]);
    let reader = || "R(A) A'".to_owned();
    [
        family("irq read-recursion", 24, two, USAGE, |sort, level| {
            let inside = format!("{} B B' A'", sort.write("A"));
            vec![level.without("A A'"), reader(), level.inside(&inside)]
        }),
        family("irq read-recursion #2", 24, two, PATH, |sort, level| {
            let nested = format!("B {} A' B'", sort.write("A"));
            vec![level.without(&nested), reader(), level.inside("B B'")]
        }),
        family("irq read-recursion #3", 24, two, PATH, |sort, level| {
            let nested = format!("B {} A' B'", sort.write("A"));
            vec![level.without(&nested), reader(), level.inside("R(B) B'")]
        }),
    ]
}

/// Readers that do not pass waiting writers outside of levels.
fn fair_readers() -> Family {
    let cases = vec![
        Case::new(
            "hard[ R(A) B ; ] irq- B r(A) ; irq+",
            Reports(&[Kind::Circular]),
        ),
        Case::new("hard[ B R(A) ; ] irq- r(A) B ; irq+", Silent),
        Case::new("hard[ B ; ] irq- B r(A) ; irq+ r(A) ;", Reports(PATH)),
    ];
    Family {
        name: "queued read lock",
        nr_cases: 3,
        nr_reported: 2,
        cases,
    }
}

/// A lock may be safe in the one level and not in the other: the pair of one level counts.
fn two_levels() -> Family {
    let program = "soft[ A ; ] irq- B A ; irq+ hard[ C ; ] irq- C B ; irq+";
    Family {
        name: "hardirq-unsafe-softirq-safe",
        nr_cases: 1,
        nr_reported: 1,
        cases: vec![Case::new(program, Reports(PATH))],
    }
}

pub(super) fn families() -> Vec<Family> {
    let mut families = Vec::new();
    families.extend(one_lock());
    families.extend(two_locks());
    families.extend(read_recursion());
    families.extend([fair_readers(), two_levels()]);
    families
}

/// Without the contradiction the patterns are silent: the cases above are not reported for
/// something else.
#[test]
fn the_patterns_are_silent_without_their_contradiction() {
    for program in [
        "hard[ A A' ] irq- A A' irq+",
        "soft[ A A' ] bh- A A' bh+",
        "A B B' A' B B' hard[ C ; ]",
        "irq- A B B' A' irq+ irq- B B' irq+ hard[ A A' ]",
        "irq- A A' irq+ R(A) A' hard[ R(A) B B' A' ]",
        "soft[ A ; ] irq- B A ; irq+ soft[ C ; ] irq- C B ; irq+",
        "hard[ B ; ] irq- B r(A) ; irq+ irq- r(A) ; irq+",
    ] {
        let fault = Case::new(program, Silent).fault("without the contradiction");
        assert_eq!(fault, None);
    }
}
