//! The locks and waits of `lockdep::sync`, on plain threads and under a scheduler.
//!
//! Most tests run their tasks in every [`world::World`]: once on threads that block in the
//! operating system, and under many seeds of a scheduler that runs one task at a time in virtual
//! time. There a task that waits for what never comes is found at once, and the run ends as stuck.

mod attribute;
mod condvar;
mod contention;
mod events;
mod families;
mod families_beyond;
mod foreign;
mod holes;
mod hook;
mod locks;
mod marker;
mod policy;
mod programs;
mod programs_random;
mod readme;
mod reports;
mod rules;
mod sleeps;
mod stack;
mod tasks;
mod world;
