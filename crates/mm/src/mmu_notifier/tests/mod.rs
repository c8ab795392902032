//! The contract of the module's head, and what the specification of the mechanism numbers.

mod interval;
mod invariants;
mod list;
mod member;
mod overdue;
mod sequence;
mod settling;
#[cfg(loom)]
pub(super) mod weak_memory;
mod words;
