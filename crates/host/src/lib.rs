//! The real machine under Pinless: memory, userfaultfd, signals and system calls.
//!
//! This is the crate that calls the system, and needs `unsafe` for it. It holds mechanism only:
//! what to evict, whom to kill and when to ask a device again is decided in `pinless-mm`. Which
//! of an io_uring's slots is given to another range (the one unused longest), and how often a
//! system call that was interrupted is repeated, is decided here.
//! `SOUNDNESS.md` beside this crate says, module by module, why the unsafe code is sound.
//!
//! [`HostMapping`] is where to begin: a mapping whose pages can be taken away while programs use
//! it. [`HostMmu`] is what the memory manager drives, [`FaultService`] and [`attach_thread`]
//! are the two ways to have faults resolved, and [`mark_engine_thread`] is for threads that stand
//! in for devices.
//!
//! [`memcg`], [`process`], [`tracefs`], [`kmsg`] and [`psi`] are for who tests a program on the
//! kernel: they put it under a limit, and tell what the kernel does about it.
//!
//! Linux counterparts: `fs/userfaultfd.c`, `mm/userfaultfd.c`.

mod clock;
mod cpu_latency;
mod errno;
mod fault_thread;
mod fork;
mod guard;
pub mod io_uring;
#[cfg(any(feature = "kvm", feature = "vm-memory"))]
mod kept;
pub mod kmsg;
#[cfg(feature = "kvm")]
pub mod kvm;
pub mod lock_order;
mod mapping;
pub mod memcg;
mod memfd;
mod pagemap;
mod plea;
mod primary_mmu;
mod probe;
pub mod process;
pub mod psi;
mod region;
mod registry;
mod share;
mod sigbus;
mod swap_file;
mod thread;
pub mod tracefs;
pub mod uaccess;
mod uffd;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;
mod window;

pub use clock::MonotonicClock;
pub use cpu_latency::CpuLatency;
pub use errno::Errno;
pub use fault_thread::FaultService;
pub use fork::is_forked_child;
pub use guard::{Guard, GuardError};
pub use mapping::{AccessError, HostMapping, Resolver, SharedMapping};
pub use primary_mmu::{CreateError, FaultMode, HostMmu, UnknownFaultMode};
pub use probe::{Capabilities, Feature, ProbeError, probe};
pub use share::{Client, Share, ShareError};
pub use swap_file::{SwapFile, SwapFileError};
pub use thread::{AttachedThread, EngineThread, attach_thread, last_fault, mark_engine_thread};
pub use uffd::{Source, Unavailable};
