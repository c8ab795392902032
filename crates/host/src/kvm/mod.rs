//! KVM guests over managed memory: a real secondary MMU.
//!
//! A guest's memory is one or more managed mappings, put into a [`Vm`] as memory slots. The kernel
//! hears of every page that goes through its own MMU notifiers, so nothing has to be told to KVM.
//! What is left is that a guest touches pages that are not there. There are three ways:
//!
//! * **Service threads** ([`FaultMode::Service`](crate::FaultMode) where the kernel's faults are
//!   served): the processor waits in the kernel until the page is there, and the program sees
//!   nothing of it.
//! * **In the processor's thread** ([`FaultMode::InThread`](crate::FaultMode), or where only faults
//!   of user mode are served): the run ends. A plain access ends it with EFAULT and the guest's
//!   address ([`VcpuExit::MemoryFault`]); [`Vcpu::run`] has the page filled and goes on.
//! * An access that KVM **emulates** instruction by instruction cannot end that way. It looks like
//!   one to a device, at an address that is memory ([`VcpuExit::MmioRead`],
//!   [`VcpuExit::MmioWrite`]); [`Vcpu::run`] carries it out on the guest's behalf, and an
//!   instruction that could not be fetched is fetched again.
//!
//! When a page cannot be had, because the address space was killed or the store lost it, the run
//! ends in a [`RunError`], whichever way the access came. The access is not forgotten: the next run
//! tries it again first. So a program may repair the page, or tell the guest of it, and go on.
//!
//! Limits. An access that is carried out for the guest is as whole as the instruction is for a
//! device: an emulated locked instruction is a read and a write. And where KVM walks the guest's
//! page tables in software (no second-level paging), a table that is not there becomes a page fault
//! of the guest's: keep such tables locked, or use service threads.
//!
//! Linux counterparts: `virt/kvm/kvm_main.c`, `arch/x86/kvm/x86.c`.

mod error;
mod fetch;
mod memory;
mod vcpu;

pub use error::{KvmError, RunError};
pub use kvm_bindings;
pub use kvm_ioctls::{self, VcpuExit, VcpuFd, VmFd};
pub use memory::{SlotId, Vm};
pub use vcpu::{Vcpu, VcpuStats};
