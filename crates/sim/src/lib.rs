//! The simulated machine and the scheduler that explores it.
//!
//! The production memory manager runs here unchanged, on [`SimMmu`]s instead of the kernel, and on
//! the tasks of a [`Sim`], of which one at a time runs. Time is virtual, chance comes from a
//! seed, and a run with the same seed is the same run.
//!
//! What judges a run are assertions in its tasks and the contract that [`SimMmu`] checks: a broken
//! one ends the run with a report of who did what, and how to see it again.
#![forbid(unsafe_code)]

#[cfg(feature = "conformance")]
pub mod checker;
pub mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod file;
pub mod frames;
pub mod lock_order;
pub mod primary_mmu;
pub mod rng;
pub mod scheduler;

/// The page for driver authors is compiled and run like the documentation.
#[cfg(all(doctest, feature = "conformance"))]
#[doc = include_str!("../../../docs/writing-a-driver.md")]
struct WritingADriver;

pub use clock::SimClock;
pub use file::{FileFaults, SimFile};
pub use frames::Frames;
pub use primary_mmu::{MachineFaults, SimMmu};
pub use rng::Rng;
pub use scheduler::{End, Explore, Explored, Knob, Options, Run, Sim, Strategy};
