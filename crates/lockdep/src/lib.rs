//! lockdep: locks that know their class, and a validator that finds deadlocks before they happen.
//!
//! [`sync`] offers the locks and waits. Each object names its *class* when it is built; all objects
//! built at one place under one name stand for each other when lock orders are judged, as in the
//! kernel's lock validator. Each order of classes that is seen is remembered, and the first that
//! closes a cycle is reported, though nothing has locked up yet. The validator goes on afterwards.
//!
//! [`scheduler`] lets a simulator take over. A thread that has installed a [`Scheduler`] never
//! blocks in the operating system on an object of this crate: it asks the scheduler instead.
//!
//! Where neither watches, a lock costs what the lock of `std` costs and one relaxed load.
//!
//! ```
//! use lockdep::Validator;
//! use lockdep::sync::Mutex;
//!
//! # if !cfg!(feature = "validate") { return; }
//! static FROM: Mutex<u64> = Mutex::new("from", 10);
//! static TO: Mutex<u64> = Mutex::new("to", 0);
//!
//! let validator = Validator::new();
//! let _entered = validator.enter();
//! let (from, to) = (FROM.lock(), TO.lock());
//! drop((from, to));
//! assert!(validator.reports().is_empty());
//! let (to, from) = (TO.lock(), FROM.lock());
//! drop((from, to));
//! println!("{}", validator.reports()[0]);
//! ```
//!
//! [`event`] is what locks tell the validator, for locks of one's own. `LOCKDEP=off|print|panic|`
//! `abort|strict|once` in the environment says what happens on a report; without it, a build with
//! debug assertions prints, and one without is not watched.
//!
//! Linux counterpart: kernel/locking/.
#![deny(unsafe_code)]

/// The README is tested like the documentation.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod contention;
pub mod context;
pub mod event;
pub mod instrument;
pub mod lock_api;
pub mod lock_order;
pub mod map;
pub mod prime;
pub mod report;
pub mod snapshot;
pub mod sync;
pub mod testing;
pub mod thread;
pub mod wait;
pub mod ww;

mod chain;
mod check;
mod class;
mod core;
mod finding;
mod graph;
mod handed;
mod hooks;
mod identity;
mod needs;
mod pending;
mod registry;
mod spill;
mod switch;
mod task;
mod usage;
mod validator;
mod word;

use std::sync::Arc;

/// The size of a table: small under Miri and for fuzzers, whose instruments see to every byte.
const fn room(nr: usize) -> usize {
    if cfg!(any(miri, fuzzing)) {
        nr / 64
    } else {
        nr
    }
}

pub use class::{Class, DynamicClass};
pub use graph::Provenance;
pub use lock_order::LockOrder;
pub use map::{Map, MapGuard, might_sleep};
pub use registry::{Attributes, Checking, KeyName, LockType, Name, OrderFn, WaitType};
pub use report::{Kind, Policy, Report, Severity, Sink};
pub use snapshot::{Snapshot, snapshot};
pub use switch::ThreadState;
pub use sync::scheduler::{self, Scheduler};
pub use task::{Site, TaskState};
pub use usage::Level;
pub use validator::{Entered, Validator};
pub use word::{ClassId, Context, Mode};

/// A test that fails on what is reported in it; takes the place of `#[test]`.
///
/// The body runs in [`testing::check`]: with a validator of its own, which threads that are made by
/// [`thread::spawn`] share. It may return what tests may.
///
/// ```
/// use lockdep::sync::Mutex;
///
/// #[lockdep::test]
/// fn both_are_taken_in_one_order() {
///     let (a, b) = (Mutex::new("a", ()), Mutex::new("b", ()));
///     drop((a.lock(), b.lock()));
/// }
/// ```
///
/// It is for plain functions, and has no arguments.
///
/// ```compile_fail
/// #[lockdep::test]
/// async fn a_future() {}
/// ```
///
/// ```compile_fail
/// #[lockdep::test(strict)]
/// fn with_an_argument() {}
/// ```
///
/// ```compile_fail
/// #[lockdep::test]
/// struct NoFunction {}
/// ```
#[cfg(feature = "macros")]
pub use lockdep_macros::test;

/// Starts the validator of the process: reads the environment and reserves its tables.
///
/// Happens by itself at the first event. An allocator that takes locks of this crate calls it
/// before its first lock, and so gets no call from the validator while it holds one.
pub fn start() {
    Validator::global().unwatched(|_| ());
}

/// Whether the validator is on: one relaxed load, for annotations that would cost more.
#[inline]
#[must_use]
pub fn is_enabled() -> bool {
    hooks::load().has_validator()
}

/// Switches the validator on or off for the whole process; says whether it was on.
///
/// Locks taken while it was off are unknown to it.
pub fn set_enabled(is_on: bool) -> bool {
    start();
    hooks::set_validator(is_on)
}

/// The class of a key, for foreign interfaces; made if there is none.
///
/// Allocates for a new one.
pub fn register(key: KeyName, name: Name, attributes: &Attributes) -> ClassId {
    registry::register(key, name, attributes)
}

/// The class of a key that was registered.
#[must_use]
pub fn find_class(key: &KeyName) -> Option<ClassId> {
    registry::find(key)
}

/// The classes whose keys are addresses in this range, for foreign interfaces.
///
/// A class that is made meanwhile may be missing.
pub fn classes_in(range: std::ops::Range<usize>) -> impl Iterator<Item = ClassId> {
    let mut after = ClassId::of_key(0);
    std::iter::from_fn(move || {
        after = registry::find_address(&range, after)?;
        Some(after)
    })
}

/// What was reported to the calling thread's validator.
#[must_use]
pub fn reports() -> Vec<Arc<Report>> {
    Validator::current().reports()
}

/// Asserts that nothing was reported but what is unlikely.
///
/// # Panics
///
/// With the text of the reports, if there are any.
#[track_caller]
pub fn assert_no_reports() {
    let reports = reports();
    let bad: Vec<String> = reports
        .iter()
        .filter(|report| report.severity > Severity::Unlikely)
        .map(|report| report.text())
        .collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Forgets all orders and reports of the calling thread's validator.
pub fn reset() {
    Validator::current().reset();
}
