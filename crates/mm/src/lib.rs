//! The memory manager: address spaces, notifiers, reclaim, swap, limits, OOM.
//!
//! This crate decides; a machine ([`primary_mmu::PrimaryMmu`]) does what it says. It makes no
//! system call, starts no thread and reads no clock, so the same code runs on real memory and on
//! a simulated machine, where every run can be repeated.
//!
//! The modules, in reading order:
#![forbid(unsafe_code)]

pub mod addr;
pub mod env;
pub mod event;
pub mod limits;
pub mod lock_order;
pub mod primary_mmu;

pub mod page;
mod wait;
pub mod watch;

pub mod mm_struct;

pub mod bus;
pub mod fault;
pub mod gfp;
#[cfg(feature = "notifiers")]
pub mod mmu_notifier;
#[cfg(not(feature = "notifiers"))]
#[path = "mmu_notifier/absent.rs"]
pub mod mmu_notifier;

pub mod memcg;
pub mod oom;
mod reclaim;
pub mod swap;

pub mod histogram;
#[doc(hidden)]
pub mod suite;
mod switch;

pub use memcg::Memcg;
pub use mm_struct::{Advice, Mm, MmHandle, Pin, Vma};
pub use switch::ThreadState;
