//! The memory manager on the simulated machine.

mod answers;
mod features;
mod file_tier;
mod fragmentation;
mod hardest;
#[cfg(feature = "notifiers")]
mod invariants;
mod judge;
mod levels;
mod machine;
mod memory_stat;
#[cfg(feature = "notifiers")]
mod misuses;
#[cfg(feature = "notifiers")]
mod notifier;
mod races;
mod shrinkers;
mod suite;
mod throttle;
mod victims;
