//! What the validator has to say: as data, as text, as JSON.

mod build;
pub(crate) mod json;
mod render;
mod sink;

pub(crate) use build::{ThreadNames, build};
pub(crate) use sink::{Delivery, deliver};
pub use sink::{Policy, Sink};

use crate::graph::Provenance;
use crate::task::Site;
use crate::word::{Context, Mode};

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Kind {
    /// Orders of classes form a cycle: threads can wait for each other.
    Circular,
    /// A class is taken while it is held: the thread can wait for itself.
    Recursive,
    /// A class is taken in an interrupt-like level, and held where that level can come.
    InconsistentUsage,
    /// A new order leads from a class taken in a level to one held where that level can come.
    IrqOrder,
    /// A new use of a class does so along orders that were known.
    IrqInversion,
    /// Something that may wait longer is taken where only shorter waits are allowed.
    WaitContext,
    /// A lock is released that is not held.
    BadUnlock,
    /// The nest lock that was given is not held.
    NestNotHeld,
    /// A lock is destroyed or made anew while it is held.
    HeldFreed,
    /// A thread or a task ends, or waits, with locks that it must not hold there.
    HeldAtExit,
    /// A subclass is above seven.
    InvalidSubclass,
    /// A pinned lock is released, or pins do not match.
    Pin,
    /// A reader is downgraded.
    Downgrade,
    /// Wound/wait locks are used against their rules.
    WoundWait,
    /// There is no more room to record what is seen: later faults may be missed.
    Limit,
}

impl Kind {
    /// A stable name, as it stands in signatures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Circular => "circular",
            Self::Recursive => "recursive",
            Self::InconsistentUsage => "inconsistent-usage",
            Self::IrqOrder => "irq-order",
            Self::IrqInversion => "irq-inversion",
            Self::WaitContext => "wait-context",
            Self::BadUnlock => "bad-unlock",
            Self::NestNotHeld => "nest-not-held",
            Self::HeldFreed => "held-freed",
            Self::HeldAtExit => "held-at-exit",
            Self::InvalidSubclass => "invalid-subclass",
            Self::Pin => "pin",
            Self::Downgrade => "downgrade",
            Self::WoundWait => "wound-wait",
            Self::Limit => "limit",
        }
    }

    /// One line for people.
    pub const fn headline(self) -> &'static str {
        match self {
            Self::Circular => "possible deadlock: locks are taken in a circle",
            Self::Recursive => "possible deadlock: a lock is taken while one of its class is held",
            Self::InconsistentUsage => "possible deadlock: an interrupt can meet its own lock",
            Self::IrqOrder => {
                "possible deadlock: a lock of an interrupt waits for one not safe there"
            }
            Self::IrqInversion => "possible deadlock: an interrupt can invert the order of locks",
            Self::WaitContext => "a wait where waiting is not allowed",
            Self::BadUnlock => "a lock is released that is not held",
            Self::NestNotHeld => "the lock under which this one nests is not held",
            Self::HeldFreed => "a held lock is destroyed",
            Self::HeldAtExit => "locks are held where none may be",
            Self::InvalidSubclass => "a subclass above seven",
            Self::Pin => "pins of a lock do not match",
            Self::Downgrade => "a reader is downgraded",
            Self::WoundWait => "wound/wait locks are used against their rules",
            Self::Limit => "the validator is out of room",
        }
    }
}

/// How sure a report is; later ones are worse.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// Possible by the rules, but every run so far kept the sides apart; the report says by what.
    Unlikely,
    /// Possible, but a part of it was not seen, or ends by itself: a declared order, an inferred
    /// signaller, a wait with a time limit.
    Warning,
    /// Every part of it was seen.
    Error,
}

impl Severity {
    /// `unlikely`, `warning`, `error`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unlikely => "unlikely",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One acquisition in a report.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acquisition {
    /// The class, with version and subclass: `inode#2/1`.
    pub class: String,
    /// How it was taken.
    pub mode: Mode,
    /// Whether it was only tried.
    pub is_try: bool,
    /// Whether it was a wait for an event, and not a lock.
    pub is_wait: bool,
    /// Whether the wait ends by itself.
    pub is_timed: bool,
    /// In which context.
    pub context: Context,
    /// Where.
    pub site: Site,
}

/// One order in a report: `taken` was taken while `held` was held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    /// The lock that was held; for an inferred order, the event that somebody was to end.
    pub held: Acquisition,
    /// The lock that was taken under it.
    pub taken: Acquisition,
    /// The thread that was seen to do so, if one was.
    pub thread: Option<String>,
    /// How it is known.
    pub provenance: Provenance,
    /// In how many different situations it was seen.
    pub nr_seen: u32,
    /// Classes that were held alone beside it whenever it was seen.
    pub gates: Vec<String>,
}

/// One step of the timeline that ends in the deadlock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moment {
    /// Which of the threads that take part, from 0.
    pub thread: usize,
    /// What it does: `holds a`, `waits for b`.
    pub text: String,
}

/// Something wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// What.
    pub kind: Kind,
    /// How sure.
    pub severity: Severity,
    /// Names the fault in this and later runs, whatever the order in which it was found. Classes of
    /// one name are not told apart.
    pub signature: String,
    /// The same for this run alone, with classes of one name told apart.
    pub(crate) fault: String,
    /// The thread in which it was found.
    pub thread: Option<String>,
    /// What it was about to do.
    pub act: Acquisition,
    /// What that is in conflict with, in the same thread.
    pub against: Option<Acquisition>,
    /// The orders that take part; in a cycle each begins with the class that ended the one before.
    pub orders: Vec<Order>,
    /// Uses of classes in interrupt-like levels and outside, each with its name.
    pub uses: Vec<(String, Acquisition)>,
    /// What the thread held, the last taken first.
    pub held: Vec<Acquisition>,
    /// How it comes to a deadlock.
    pub timeline: Vec<Moment>,
    /// Why it is less than an error, if it is.
    pub doubt: Option<String>,
    /// What could be changed.
    pub advice: Vec<String>,
}

impl Report {
    /// The report as text, with the lines of source that can be read.
    #[must_use]
    pub fn text(&self) -> String {
        render::text(self)
    }

    /// The report as one JSON object.
    #[must_use]
    pub fn json(&self) -> String {
        json::object(self)
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text())
    }
}
