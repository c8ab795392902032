//! Judges of a run: each an object of its own, which is told what happens and says what is wrong.
//!
//! A checker knows neither the machine nor what it judges. It keeps a model of its own, and a call
//! that contradicts the model returns a [`Breach`]. So each is tested with histories alone: what
//! is right passes, and each way of going wrong is a canary that must not.
//!
//! | guarantee | judge |
//! |---|---|
//! | G1, G2 | [`Translations`] |
//! | G3, G5 | [`Brackets`] |
//! | G4, G14 | [`Locks`] |
//! | G6 | [`Bounds`] |
//! | G7, G8, G9 | [`Kills`] |
//! | G10, G13, G16 | [`Contents`] |
//! | G11 | [`Pins`] |
//! | G15 | [`Replays`] |
//!
//! The scenes of the conformance kit use those of them that a driver can break: [`Translations`],
//! [`Brackets`], [`Locks`], [`Contents`] and [`Pins`] in each run, [`Replays`] over each scene.
//! Its memory has no bound and kills nobody, so no driver can break what [`Bounds`] and [`Kills`]
//! judge: they are for workloads on real memory, and `pinless torture` has both.
//!
//! G12 (nothing allocates after start) cannot be judged here: it takes an allocator that counts,
//! and the tests named `..._allocates_nothing` have one.

mod bounds;
mod brackets;
mod contents;
mod kills;
mod locks;
mod pins;
mod replays;
mod translations;

pub use bounds::Bounds;
pub use brackets::Brackets;
pub use contents::{Contents, Found, Known, Span};
pub use kills::Kills;
pub use locks::Locks;
pub use pins::{PinId, Pins};
pub use replays::Replays;
pub use translations::{Closing, Ticket, Translations};

use crate::conformance::Invariant;
use core::fmt;
use core::panic::Location;

/// Something that must not have happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Breach {
    /// The guarantee that was broken: `G1` and so on.
    pub guarantee: &'static str,
    /// What the driver owed, if it was a driver.
    pub invariant: Option<Invariant>,
    /// What was seen.
    pub what: String,
}

impl Breach {
    /// A driver broke what it owes.
    pub fn of(invariant: Invariant, what: impl Into<String>) -> Self {
        Self {
            guarantee: invariant.guarantee(),
            invariant: Some(invariant),
            what: what.into(),
        }
    }

    /// The memory manager broke a guarantee.
    pub fn against(guarantee: &'static str, what: impl Into<String>) -> Self {
        Self {
            guarantee,
            invariant: None,
            what: what.into(),
        }
    }

    /// Ends the run, where the calling task stands: no destructor hides what is broken.
    ///
    /// # Panics
    ///
    /// Outside of a run.
    #[track_caller]
    pub fn raise(&self) -> ! {
        crate::scheduler::fail(format!("{self}, at {}", Location::caller()));
        panic!("{self}")
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.invariant {
            Some(invariant) => write!(f, "{invariant}: {}", self.what),
            None => write!(f, "{}: {}", self.guarantee, self.what),
        }
    }
}

impl std::error::Error for Breach {}
