//! The memory manager on the simulated machine.

mod judge;
mod machine;
mod suite;
