//! The zoo: faults that drivers and their core have had, each a switch of the model it belongs to.
//!
//! A checker of drivers is worth what it finds. So each fault of the list can be put back, and the
//! checker has to find it; what cannot be put back names the proof of that. With no switch set,
//! a model is right, or as right as its [findings](crate::ModelInfo::findings) say.

use pinless_mm::mmu_notifier::Inject;

/// A fault. Its number is the one by which the table in `docs` and the reports know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Bug {
    /// See its [`BugInfo::line`], like all.
    NoSecondCheck = 19,
    /// A refusal of any range, in use or not.
    RangeBlind = 30,
}

impl Bug {
    /// The number in the list.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// What is known of it.
    ///
    /// # Panics
    ///
    /// Never: each has its row, which a test sees to.
    pub fn info(self) -> &'static BugInfo {
        let found = ZOO.iter().find(|info| info.bug == self);
        found.expect("each bug has a row")
    }
}

/// The faults that are switched on in one model.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bugs(u64);

impl Bugs {
    /// None: the model is right.
    pub const NONE: Self = Self(0);

    /// These.
    pub const fn of(bugs: &[Bug]) -> Self {
        let mut set = 0;
        let mut at = 0;
        while at < bugs.len() {
            set |= 1 << bugs[at].number();
            at += 1;
        }
        Self(set)
    }

    /// Whether it is switched on.
    pub const fn has(self, bug: Bug) -> bool {
        self.0 & 1 << bug.number() != 0
    }

    /// Whether all of these are among `others`.
    pub const fn are_among(self, others: Self) -> bool {
        self.0 & !others.0 == 0
    }
}

impl From<Bug> for Bugs {
    fn from(bug: Bug) -> Self {
        Self::of(&[bug])
    }
}

/// Where a fault comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// It was in a kernel or a driver that people used.
    Real,
    /// It was proposed and found in review.
    Near,
    /// It was derived from what can go wrong.
    Synthetic,
}

/// Where a fault can be switched on, or why not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Home {
    /// In the [models](crate::models) that list it among their switches.
    Model,
    /// In the notifiers: `Notifiers::inject`.
    Core(Inject),
    /// It cannot be written in these types: the item whose documentation has the program that
    /// does not compile.
    Inexpressible(&'static str),
    /// It is no matter of schedules: the property test that finds it in the function at fault.
    Property(&'static str),
}

/// A row of the zoo.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BugInfo {
    /// Which.
    pub bug: Bug,
    /// What is wrong, in one line.
    pub line: &'static str,
    /// Where it comes from.
    pub origin: Origin,
    /// The invariants that it breaks, by the names of the conformance list: `R1`, `P3`.
    pub breaks: &'static [&'static str],
    /// Where it is switched on.
    pub home: Home,
}

/// All faults, by number.
pub fn zoo() -> &'static [BugInfo] {
    ZOO
}

const fn row(
    bug: Bug,
    origin: Origin,
    home: Home,
    breaks: &'static [&'static str],
    line: &'static str,
) -> BugInfo {
    BugInfo {
        bug,
        line,
        origin,
        breaks,
        home,
    }
}

static ZOO: &[BugInfo] = &[
    row(
        Bug::NoSecondCheck,
        Origin::Synthetic,
        Home::Model,
        &["R1"],
        "the check before the card takes a translation over is left out",
    ),
    row(
        Bug::RangeBlind,
        Origin::Real,
        Home::Model,
        &["P1"],
        "a start that may not block refuses, whether anything of the range is in use or not",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models;

    #[test]
    fn rows_are_sorted_and_each_switch_is_in_a_model() {
        assert!(ZOO.is_sorted_by_key(|info| info.bug));
        for info in ZOO {
            let is_switch = models()
                .iter()
                .any(|model| model.switches.contains(&info.bug));
            assert_eq!(is_switch, info.home == Home::Model, "{:?}", info.bug);
            assert!(!info.breaks.is_empty() && !info.line.is_empty());
            assert_eq!(info.bug.info(), info);
        }
    }

    #[test]
    fn sets_have_what_was_put_in() {
        let both = Bugs::of(&[Bug::NoSecondCheck, Bug::RangeBlind]);
        assert!(both.has(Bug::RangeBlind) && !Bugs::NONE.has(Bug::RangeBlind));
        assert!(Bugs::from(Bug::RangeBlind).are_among(both));
        assert!(!both.are_among(Bug::RangeBlind.into()));
    }
}
