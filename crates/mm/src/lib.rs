//! The memory manager.
#![forbid(unsafe_code)]

pub mod addr;
pub mod bus;
pub mod fault;
pub mod mmu_notifier;
pub mod primary_mmu;
pub mod swap;
