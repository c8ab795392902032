//! Tests of the real machine: one program, since its SIGBUS handler serves a whole process.

mod child;
mod disks;
mod engines;
mod fake;
mod faults;
mod files;
mod forks;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
mod guests;
mod lifetimes;
mod operations;
mod pins;
mod probes;
mod races;
mod sharing;
mod signal_stacks;
mod signals;
mod strangers;
mod system_calls;
mod victims;
mod world;
