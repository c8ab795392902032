//! lockdep: locks that know their class, and one door through which every wait of a program goes.
//!
//! [`sync`] offers the locks and waits. Each object names its *class* when it is built; all objects
//! built at one place under one name stand for each other when lock orders are judged, as in the
//! kernel's lock validator. The validator is not part of the crate yet: what is here is the door.
//!
//! [`scheduler`] lets a simulator take over. A thread that has installed a [`Scheduler`] never
//! blocks in the operating system on an object of this crate: it asks the scheduler instead.
//! Threads without one go straight to the locks of `std`, for the price of one relaxed load.
//!
//! ```
//! use lockdep::sync::{Completion, Mutex};
//!
//! static TOTAL: Mutex<u64> = Mutex::new("total", 0);
//! static DONE: Completion = Completion::new("done");
//!
//! std::thread::scope(|scope| {
//!     scope.spawn(|| {
//!         *TOTAL.lock() += 1;
//!         DONE.complete_all();
//!     });
//!     DONE.wait();
//!     assert_eq!(*TOTAL.lock(), 1);
//! });
//! ```
//!
//! Linux counterpart: kernel/locking/.
#![forbid(unsafe_code)]

pub mod sync;

mod class;

pub use class::Class;
pub use sync::scheduler::{self, Scheduler};
