//! The zoo: faults that drivers and their core have had, each a switch of the model it belongs to.
//!
//! A checker of drivers is worth what it finds. So each fault of the list can be put back, and the
//! checker has to find it; what cannot be put back names the proof of that. With no switch set,
//! a model is right; [`shipped`](crate::ModelInfo::shipped) are those that the driver had.
//!
//! Two cannot be put back, because what is taken here is a guard. An error path cannot unlock what
//! is not held (6):
//!
//! ```compile_fail,E0382
//! # use lockdep::sync::Mutex;
//! fn submit(lock: &Mutex<u32>) {
//!     let held = lock.lock();
//!     drop(held);
//!     drop(held); // the error path: there is no second one
//! }
//! ```
//!
//! And no path leaves a bracket open (40), as its end is no call that could be forgotten:
//!
//! ```compile_fail,E0599
//! # use pinless_mm::mmu_notifier::Invalidation;
//! fn skip(bracket: Invalidation) {
//!     bracket.end(); // it ends when it goes, on every path
//! }
//! ```

use pinless_mm::mmu_notifier::Inject;

/// A fault. Its number is the one by which reports and `pinless conform --bug` know it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Bug {
    /// A start refuses where it may block, and nobody looks.
    RefusedInBlockable = 1,
    /// A bracket is refused, and those who were started get no end.
    EndsMissing = 2,
    /// One of the list refuses, and the intervals get no end.
    IntervalsLeftOpen = 3,
    /// The lock that is held from start to end is taken without regard to the mode.
    BlockingLock = 4,
    /// Memory is allocated under a lock that the notifier takes.
    AllocUnderLock = 5,
    /// An error path unlocks what is not held.
    UnlocksNotHeld = 6,
    /// A start queues the cancellation and does not wait for it.
    FlushSkipped = 7,
    /// The devices behind a hub are told in `end`, not in `start`.
    WorkInEnd = 8,
    /// Nobody asks whether a page has changed between its lookup and its use.
    NoRetry = 9,
    /// Only the first of several starts waits until the queues have stopped.
    FirstStops = 10,
    /// A second start finds nothing, as the first has taken it out of the tree.
    DetachedIsHidden = 11,
    /// Pinned pages that are in use are found again after their start.
    BusyStaysInTree = 12,
    /// The program is told that its buffer is gone, the hardware is not.
    HardwareEntryKept = 13,
    /// Pages are pinned and put into the cache with no look at brackets in between.
    InsertUnchecked = 14,
    /// An address that is cached outside of the table is not checked like the others.
    CopyOutsideTable = 15,
    /// The sequence is read after the lookup, not before.
    SequenceReadLate = 16,
    /// A fault waits until no bracket is open at all, related or not.
    MmWideWait = 17,
    /// A region that is registered during a bracket waits for an end that has been.
    AdmittedTooLate = 18,
    /// The check before the card takes a translation over is left out.
    NoSecondCheck = 19,
    /// Bytes become pages by a wrong shift.
    WrongShift = 20,
    /// A start waits for another subsystem with the lock held that all need.
    WaitsUnderLock = 21,
    /// Of a mapping that was split only the first half is known.
    SplitUntracked = 22,
    /// What may be cached is not, and what may not is.
    AdmissionInverted = 23,
    /// Pages are in the cache and in the list of what is doomed.
    InTwoLists = 24,
    /// The window for two requests does not contain them.
    UnionWrong = 25,
    /// Pages are pinned under a lock that the teardown of the memory takes.
    PinUnderRmaLock = 26,
    /// What is doomed while the hardware hangs is never freed.
    LeaksOnHang = 27,
    /// Room is taken in bytes where it is counted in pages.
    BytesForPages = 28,
    /// The worker that frees waits for a peer first.
    WorkerBlocked = 29,
    /// A start that may not block refuses, whether anything of the range is in use or not.
    RangeBlind = 30,
    /// A start waits for the hardware whether it may block or not.
    ModeBlind = 31,
    /// The lock that is held from start to end lets a writer go before later readers.
    FairLockHeldAcross = 32,
    /// A start waits for the lookup of pages that it may have been called from.
    WaitsForItself = 33,
    /// A worker ends a subscription under a lock that the callback takes.
    LastReferenceInWorker = 34,
    /// The hardware does not cancel the lookups that an invalidation overtakes.
    NoHardwareCancel = 35,
    /// A number of an address space is given out again with its old entries.
    AsidReused = 36,
    /// One instruction is issued, for a range that needs several.
    ClippedFlush = 37,
    /// Memory is allocated between the publication of a fence and its signal.
    PublishedTooEarly = 38,
    /// A start gives up waiting for a job and goes on as if it were over.
    TimeoutIgnored = 39,
    /// The path that skips a range leaves its bracket open.
    GuardLeaked = 40,
    /// A start lets others run in the middle, whether it may block or not.
    SleepsInNonBlock = 41,
    /// A hub answers what the last of its devices said.
    AnswersMerged = 42,
    /// The worker lets the queues go on though pages were taken away again.
    RestoresBlindly = 43,
    /// A device writes through a translation that was asked for reading.
    DirtyNotReported = 44,
    /// A list is walked without the lock that guards it.
    UnlockedWalk = 45,
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
    /// It cannot be written in these types: the file whose documentation has the program that does
    /// not compile, and with which error.
    Inexpressible(&'static str),
    /// In a model, by something that no other device has, so that a checker for all of them does
    /// not come across it: the test of this crate that does, by its whole name.
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
        Bug::RefusedInBlockable,
        Origin::Real,
        Home::Inexpressible("crates/devices/src/gntdev.rs: E0308"),
        &["P2"],
        "a start refuses where it may block, and nobody looks",
    ),
    row(
        Bug::EndsMissing,
        Origin::Real,
        Home::Core(Inject::ForgetList),
        &["P4"],
        "a bracket is refused, and those who were started get no end",
    ),
    row(
        Bug::IntervalsLeftOpen,
        Origin::Real,
        Home::Core(Inject::ForgetIntervals),
        &["P4", "P6"],
        "one of the list refuses, and the intervals get no end",
    ),
    row(
        Bug::BlockingLock,
        Origin::Real,
        Home::Model,
        &["P3"],
        "the lock that is held from start to end is taken without regard to the mode",
    ),
    row(
        Bug::AllocUnderLock,
        Origin::Real,
        Home::Model,
        &["L2"],
        "memory is allocated under a lock that the notifier takes",
    ),
    row(
        Bug::UnlocksNotHeld,
        Origin::Real,
        Home::Inexpressible("crates/devices/src/zoo.rs: E0382"),
        &["L2"],
        "an error path unlocks what is not held",
    ),
    row(
        Bug::FlushSkipped,
        Origin::Near,
        Home::Model,
        &["R2", "R4"],
        "a start queues the cancellation and does not wait for it",
    ),
    row(
        Bug::WorkInEnd,
        Origin::Real,
        Home::Model,
        &["R4", "P3"],
        "the devices behind a hub are told in `end`, not in `start`",
    ),
    row(
        Bug::NoRetry,
        Origin::Real,
        Home::Model,
        &["R1"],
        "nobody asks whether a page has changed between its lookup and its use",
    ),
    row(
        Bug::FirstStops,
        Origin::Real,
        Home::Model,
        &["R3"],
        "only the first of several starts waits until the queues have stopped",
    ),
    row(
        Bug::DetachedIsHidden,
        Origin::Real,
        Home::Model,
        &["R3"],
        "a second start finds nothing, as the first has taken it out of the tree",
    ),
    row(
        Bug::BusyStaysInTree,
        Origin::Real,
        Home::Model,
        &["R6"],
        "pinned pages that are in use are found again after their start",
    ),
    row(
        Bug::HardwareEntryKept,
        Origin::Real,
        Home::Model,
        &["R6"],
        "the program is told that its buffer is gone, the hardware is not",
    ),
    row(
        Bug::InsertUnchecked,
        Origin::Real,
        Home::Model,
        &["R1"],
        "pages are pinned and put into the cache with no look at brackets in between",
    ),
    row(
        Bug::CopyOutsideTable,
        Origin::Real,
        Home::Model,
        &["R5"],
        "an address that is cached outside of the table is not checked like the others",
    ),
    row(
        Bug::SequenceReadLate,
        Origin::Synthetic,
        Home::Model,
        &["R1"],
        "the sequence is read after the lookup, not before",
    ),
    row(
        Bug::MmWideWait,
        Origin::Real,
        Home::Model,
        &["P8"],
        "a fault waits until no bracket is open at all, related or not",
    ),
    row(
        Bug::AdmittedTooLate,
        Origin::Real,
        Home::Property("models::registration_during_a_bracket_is_not_forgotten"),
        &["P6"],
        "a region that is registered during a bracket waits for an end that has been",
    ),
    row(
        Bug::NoSecondCheck,
        Origin::Synthetic,
        Home::Model,
        &["R1"],
        "the check before the card takes a translation over is left out",
    ),
    row(
        Bug::WrongShift,
        Origin::Real,
        Home::Model,
        &["R2"],
        "bytes become pages by a wrong shift",
    ),
    row(
        Bug::WaitsUnderLock,
        Origin::Real,
        Home::Model,
        &["P9"],
        "a start waits for another subsystem with the lock held that all need",
    ),
    row(
        Bug::SplitUntracked,
        Origin::Real,
        Home::Model,
        &["R8"],
        "of a mapping that was split only the first half is known",
    ),
    row(
        Bug::AdmissionInverted,
        Origin::Real,
        Home::Property("models::each_fault_is_found_in_each_model_that_has_it"),
        &["P7"],
        "what may be cached is not, and what may not is",
    ),
    row(
        Bug::InTwoLists,
        Origin::Real,
        Home::Model,
        &["R8"],
        "pages are in the cache and in the list of what is doomed",
    ),
    row(
        Bug::UnionWrong,
        Origin::Real,
        Home::Property("scif::offsets::tests::window_contains_what_was_asked_for"),
        &["R2"],
        "the window for two requests does not contain them",
    ),
    row(
        Bug::PinUnderRmaLock,
        Origin::Real,
        Home::Model,
        &["L6"],
        "pages are pinned under a lock that the teardown of the memory takes",
    ),
    row(
        Bug::LeaksOnHang,
        Origin::Real,
        Home::Property("models::each_fault_is_found_in_each_model_that_has_it"),
        &["R8", "P9"],
        "what is doomed while the hardware hangs is never freed",
    ),
    row(
        Bug::BytesForPages,
        Origin::Real,
        Home::Property("scif::offsets::tests::space_lasts_for_as_many_windows_as_it_has_room"),
        &["P7"],
        "room is taken in bytes where it is counted in pages",
    ),
    row(
        Bug::WorkerBlocked,
        Origin::Real,
        Home::Property("scif::memory_comes_back_while_the_peer_is_silent"),
        &["P7"],
        "the worker that frees waits for a peer first",
    ),
    row(
        Bug::RangeBlind,
        Origin::Real,
        Home::Model,
        &["P1"],
        "a start that may not block refuses, whether anything of the range is in use or not",
    ),
    row(
        Bug::ModeBlind,
        Origin::Real,
        Home::Model,
        &["P3"],
        "a start waits for the hardware whether it may block or not",
    ),
    row(
        Bug::FairLockHeldAcross,
        Origin::Real,
        Home::Model,
        &["L5"],
        "the lock that is held from start to end lets a writer go before later readers",
    ),
    row(
        Bug::WaitsForItself,
        Origin::Real,
        Home::Model,
        &["P5"],
        "a start waits for the lookup of pages that it may have been called from",
    ),
    row(
        Bug::LastReferenceInWorker,
        Origin::Real,
        Home::Model,
        &["L4"],
        "a worker ends a subscription under a lock that the callback takes",
    ),
    row(
        Bug::NoHardwareCancel,
        Origin::Synthetic,
        Home::Model,
        &["R1"],
        "the hardware does not cancel the lookups that an invalidation overtakes",
    ),
    row(
        Bug::AsidReused,
        Origin::Synthetic,
        Home::Model,
        &["R4"],
        "a number of an address space is given out again with its old entries",
    ),
    row(
        Bug::ClippedFlush,
        Origin::Synthetic,
        Home::Model,
        &["R2"],
        "one instruction is issued, for a range that needs several",
    ),
    row(
        Bug::PublishedTooEarly,
        Origin::Synthetic,
        Home::Model,
        &["L3"],
        "memory is allocated between the publication of a fence and its signal",
    ),
    row(
        Bug::TimeoutIgnored,
        Origin::Real,
        Home::Model,
        &["R2"],
        "a start gives up waiting for a job and goes on as if it were over",
    ),
    row(
        Bug::GuardLeaked,
        Origin::Real,
        Home::Inexpressible("crates/devices/src/zoo.rs: E0599"),
        &["P4"],
        "the path that skips a range leaves its bracket open",
    ),
    row(
        Bug::SleepsInNonBlock,
        Origin::Real,
        Home::Model,
        &["P3"],
        "a start lets others run in the middle, whether it may block or not",
    ),
    row(
        Bug::AnswersMerged,
        Origin::Synthetic,
        Home::Model,
        &["R2"],
        "a hub answers what the last of its devices said",
    ),
    row(
        Bug::RestoresBlindly,
        Origin::Synthetic,
        Home::Model,
        &["R1"],
        "the worker lets the queues go on though pages were taken away again",
    ),
    row(
        Bug::DirtyNotReported,
        Origin::Synthetic,
        Home::Model,
        &["R7"],
        "a device writes through a translation that was asked for reading",
    ),
    row(
        Bug::UnlockedWalk,
        Origin::Real,
        Home::Inexpressible("crates/devices/src/scif/mod.rs: E0599"),
        &["R4"],
        "a list is walked without the lock that guards it",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models;

    #[test]
    fn there_are_45_and_each_switch_is_in_a_model() {
        assert!((1..=45).eq(ZOO.iter().map(|info| info.bug.number())));
        for info in ZOO {
            let is_switch = models()
                .iter()
                .any(|model| model.switches.contains(&info.bug));
            let is_in_model = matches!(info.home, Home::Model | Home::Property(_));
            assert_eq!(is_switch, is_in_model, "{:?}", info.bug);
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
