//! The families of cases that a lock validator of this kind is measured by: 394, with their counts.
//!
//! A case is a lock program, see [`lockdep::testing`], and whether anything is reported. An
//! unlikely report counts: what is asked is whether the rules see the pattern. The families with
//! interrupts are in [`irq`], those of wound/wait locks and of contexts in [`contexts`].
//!
//! Linux counterpart: lib/locking-selftest.c.

mod contexts;
mod irq;

use lockdep::testing::World;
use lockdep::{Attributes, Kind};

use crate::reports::texts;

/// What a case must come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Silent,
    /// One report at least, the first of one of these kinds.
    Reports(&'static [Kind]),
}
use Verdict::{Reports, Silent};

/// Reported if `is_reported`, as one of these kinds.
fn reports_if(is_reported: bool, kinds: &'static [Kind]) -> Verdict {
    if is_reported { Reports(kinds) } else { Silent }
}

/// One program with the verdict on it.
pub(crate) struct Case {
    pub(crate) program: String,
    pub(crate) verdict: Verdict,
    pub(crate) attributes: fn(&str) -> Attributes,
}

impl Case {
    pub(crate) fn new(program: impl Into<String>, verdict: Verdict) -> Self {
        Self {
            program: program.into(),
            verdict,
            attributes: |_| Attributes::SPIN,
        }
    }

    fn with(mut self, attributes: fn(&str) -> Attributes) -> Self {
        self.attributes = attributes;
        self
    }

    /// What is wrong with the verdict, if anything is.
    fn fault(&self, family: &str) -> Option<String> {
        let world = World::with(self.attributes);
        let reports = world.run(&self.program);
        let found = reports.first().map(|report| report.kind);
        let is_right = match self.verdict {
            Silent => found.is_none(),
            Reports(kinds) => found.is_some_and(|found| kinds.contains(&found)),
        };
        let program = &self.program;
        (!is_right).then(|| format!("{family}: {program}: {found:?}\n{}", texts(&reports)))
    }
}

/// Cases of one pattern, with how many there are, and how many of them are reported.
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) nr_cases: usize,
    pub(crate) nr_reported: usize,
    pub(crate) cases: Vec<Case>,
}

/// A sort of lock: how `A` is written for it.
#[derive(Clone, Copy)]
pub(crate) struct Sort {
    mode: char,
    attributes: fn(&str) -> Attributes,
}

impl Sort {
    /// Readers of it never wait for readers.
    fn is_recursive(self) -> bool {
        self.mode == 'R'
    }

    /// `A B'` as locks of this sort.
    pub(crate) fn write(self, steps: &str) -> String {
        let write = |step: &str| match step.strip_suffix('\'') {
            _ if step == ";" => step.to_owned(),
            Some(_) => step.to_owned(),
            None => format!("{}({step})", self.mode),
        };
        let steps: Vec<String> = steps.split_whitespace().map(write).collect();
        steps.join(" ")
    }
}

const fn spinning(mode: char) -> Sort {
    Sort {
        mode,
        attributes: |_| Attributes::SPIN,
    }
}

const fn sleeping(mode: char) -> Sort {
    Sort {
        mode,
        attributes: |_| Attributes::SLEEP,
    }
}

pub(crate) const SPIN: Sort = spinning('W');
pub(crate) const WRITE: Sort = spinning('W');
pub(crate) const READ: Sort = spinning('R');
const MUTEX: Sort = sleeping('W');
const SEM_WRITE: Sort = sleeping('W');
const SEM_READ: Sort = sleeping('r');
const RT_MUTEX: Sort = sleeping('W');

const AGAIN: &[Kind] = &[Kind::Recursive];
const CIRCLE: &[Kind] = &[Kind::Circular];

const SORTS: [Sort; 7] = [SPIN, WRITE, READ, MUTEX, SEM_WRITE, SEM_READ, RT_MUTEX];

/// All orders of some steps, as programs.
pub(crate) fn permutations(parts: &[String]) -> Vec<String> {
    if parts.is_empty() {
        return vec![String::new()];
    }
    let mut all = Vec::new();
    for first in 0..parts.len() {
        let mut rest = parts.to_vec();
        let part = rest.remove(first);
        let continued = permutations(&rest);
        all.extend(continued.iter().map(|rest| format!("{part} {rest}")));
    }
    all
}

/// One program for every sort of lock; only recursive readers may do it, if `readers_may`.
fn of_each_sort(
    name: &'static str,
    steps: &str,
    kinds: &'static [Kind],
    readers_may: bool,
) -> Family {
    let case = |sort: Sort| {
        let verdict = reports_if(!(readers_may && sort.is_recursive()), kinds);
        Case::new(sort.write(steps), verdict).with(sort.attributes)
    };
    Family {
        name,
        nr_cases: 7,
        nr_reported: if readers_may { 6 } else { 7 },
        cases: SORTS.into_iter().map(case).collect(),
    }
}

fn orders() -> Vec<Family> {
    const CIRCLES: [(&str, &str); 6] = [
        ("A-B-B-A", "A B ; B A ;"),
        ("A-B-B-C-C-A", "A B ; B C ; C A ;"),
        ("A-B-C-A-B-C", "A B ; C A ; B C ;"),
        ("A-B-B-C-C-D-D-A", "A B ; B C ; C D ; D A ;"),
        ("A-B-C-D-B-D-D-A", "A B ; C D ; B D ; D A ;"),
        ("A-B-C-D-B-C-D-A", "A B ; C D ; B C ; D A ;"),
    ];
    let again = of_each_sort("A-A", "X1 X2 ;", AGAIN, true);
    let circles = CIRCLES.map(|(name, steps)| of_each_sort(name, steps, CIRCLE, true));
    let mut families = vec![again];
    families.extend(circles);
    families.push(of_each_sort(
        "double unlock",
        "A A' A'",
        &[Kind::BadUnlock],
        false,
    ));
    families.push(initialise_held());
    families
}

fn initialise_held() -> Family {
    let case = |sort: Sort| {
        let program = sort.write("A") + " free(A) ;";
        Case::new(program, Reports(&[Kind::HeldFreed])).with(sort.attributes)
    };
    Family {
        name: "initialise held",
        nr_cases: 7,
        nr_reported: 7,
        cases: SORTS.into_iter().map(case).collect(),
    }
}

/// Readers beside writers and plain locks: one program with recursive readers, as spinning reader
/// locks have them, one with those of sleeping ones.
fn mixed() -> Vec<Family> {
    let rows = [
        ("recursive read-lock", "READ(X1) READ(X1) ;", AGAIN, true),
        ("recursive read-lock #2", "READ(X1) READ(X2) ;", AGAIN, true),
        ("mixed read-write-lock", "READ(X1) W(X2) ;", AGAIN, false),
        ("mixed write-read-lock", "W(X1) READ(X2) ;", AGAIN, false),
        ("mixed R-L/L-W ABBA", "READ(X) Y ; Y W(X) ;", CIRCLE, false),
        (
            "mixed R-L/L-R ABBA",
            "READ(X) Y ; Y READ(X) ;",
            CIRCLE,
            true,
        ),
        ("mixed W-L/L-W ABBA", "W(X) Y ; Y W(X) ;", CIRCLE, false),
    ];
    let family = |(name, steps, kinds, readers_may): (_, &str, _, _)| Family {
        name,
        nr_cases: 2,
        nr_reported: if readers_may { 1 } else { 2 },
        cases: [READ, SEM_READ]
            .into_iter()
            .map(|sort| {
                let program = steps.replace("READ", &sort.mode.to_string());
                let verdict = reports_if(!(readers_may && sort.is_recursive()), kinds);
                Case::new(program, verdict).with(sort.attributes)
            })
            .collect(),
    };
    let mut families: Vec<Family> = rows.into_iter().map(family).collect();
    let cached = "R(X) Y ; Y R(X) ; Y W(X) ;";
    families.push(Family {
        name: "chain cached mixed R-L/L-W ABBA",
        nr_cases: 1,
        nr_reported: 1,
        cases: vec![Case::new(cached, Reports(CIRCLE))],
    });
    families
}

/// Three orders of three reader-writer locks, found in any of six sequences.
fn three_orders() -> Vec<Family> {
    let rows = [
        ("W1R2/W2R3/W3R1", ["X R(Y) ;", "Y R(Z) ;", "Z R(X) ;"], true),
        ("W1W2/R2R3/W3R1", ["X Y ;", "R(Y) R(Z) ;", "Z R(X) ;"], true),
        (
            "W1R2/R2R3/W3W1",
            ["X R(Y) ;", "R(Y) R(Z) ;", "Z X ;"],
            false,
        ),
        (
            "W1W2/R2R3/R3W1",
            ["X Y ;", "R(Y) R(Z) ;", "R(Z) X ;"],
            false,
        ),
    ];
    let family = |(name, parts, is_reported): (_, [&str; 3], _)| Family {
        name,
        nr_cases: 6,
        nr_reported: if is_reported { 6 } else { 0 },
        cases: permutations(&parts.map(str::to_owned))
            .into_iter()
            .map(|program| Case::new(program, reports_if(is_reported, CIRCLE)))
            .collect(),
    };
    rows.into_iter().map(family).collect()
}

/// Every family, in the order in which the counts are told.
fn all() -> Vec<Family> {
    let mut families = orders();
    families.extend(mixed());
    families.extend(three_orders());
    families.extend(irq::families());
    families.extend(contexts::families());
    families
}

#[test]
fn every_case_of_every_family_has_its_verdict() {
    let families = all();
    let faults: Vec<String> = families
        .iter()
        .flat_map(|family| family.cases.iter().map(|case| (family.name, case)))
        .step_by(if cfg!(miri) { 20 } else { 1 })
        .filter_map(|(family, case)| case.fault(family))
        .collect();
    assert!(
        faults.is_empty(),
        "{}\n{} faults",
        faults.join("\n"),
        faults.len()
    );
}

#[test]
fn the_families_have_all_their_cases() {
    let families = all();
    for family in &families {
        let nr_reported = family.cases.iter().filter(|c| c.verdict != Silent).count();
        let counts = (family.cases.len(), nr_reported);
        assert_eq!(
            counts,
            (family.nr_cases, family.nr_reported),
            "{}",
            family.name
        );
        println!(
            "{:36} {:3} cases, {:3} reported",
            family.name, counts.0, counts.1
        );
    }
    let nr_cases: usize = families.iter().map(|family| family.cases.len()).sum();
    let nr_reported: usize = families.iter().map(|family| family.nr_reported).sum();
    // Three more, of reclaim, are code and no programs: see `contexts`.
    let (nr_more, nr_more_reported) = contexts::NR_RECLAIM;
    let totals = (nr_cases + nr_more, nr_reported + nr_more_reported);
    println!("{:36} {:3} cases, {:3} reported", "all", totals.0, totals.1);
    assert_eq!(totals, (394, 250));
}
