//! The memory manager.
#![forbid(unsafe_code)]

pub mod addr;
pub mod bus;
pub mod fault;
pub mod primary_mmu;
