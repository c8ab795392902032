//! The memory manager on the simulated machine.

mod answers;
mod judge;
mod machine;
mod notifier;
mod suite;
