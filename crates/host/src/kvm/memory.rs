//! A virtual machine and its memory slots.

use super::error::{KvmError, RunError};
use super::vcpu::Vcpu;
use crate::errno::Errno;
use crate::kept::Kept;
use crate::lock_order;
use crate::mapping::{AccessError, SharedMapping};
use crate::uaccess::Cause;
use core::fmt;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use lockdep::sync::RwLock;
use pinless_mm::addr::{PAGE_SIZE, Vaddr};
use pinless_mm::fault::FaultError;
use std::sync::Arc;

/// Names memory of a [`Vm`], until that is removed; then other memory may get the name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotId(u32);

struct Slot {
    id: SlotId,
    gpa: u64,
    memory: Kept,
}

impl Slot {
    fn end(&self) -> u64 {
        self.gpa + self.memory.len_bytes()
    }
}

/// A virtual machine. Memory that was added lives as long as it, or until it is removed.
pub struct Vm {
    /// Before the slots: the kernel lets go of the memory first.
    fd: VmFd,
    slots: RwLock<Vec<Slot>>,
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm").finish_non_exhaustive()
    }
}

pub(super) fn refused(operation: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |error| KvmError::Refused {
        operation,
        errno: Errno(error.errno()),
    }
}

impl Vm {
    /// A machine without memory and processors.
    ///
    /// # Errors
    ///
    /// [`KvmError::NoKvm`], and what the kernel refuses.
    pub fn new() -> Result<Arc<Self>, KvmError> {
        lock_order::prime();
        let kvm = Kvm::new().map_err(|error| KvmError::NoKvm(Errno(error.errno())))?;
        Ok(Arc::new(Self {
            fd: kvm.create_vm().map_err(refused("KVM_CREATE_VM"))?,
            slots: RwLock::new("host.kvm.slots", Vec::new()),
        }))
    }

    /// The descriptor, for everything that is not about memory or processors.
    ///
    /// # Safety
    ///
    /// What is made through it, a processor above all, is closed before this value is dropped: it
    /// keeps the kernel's machine and its memory slots, and would go on writing at addresses that
    /// are somebody else's by then ([`Vm::create_vcpu`] has the processor keep this value). Memory
    /// slots are left alone.
    pub unsafe fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Gives the guest `memory` at `gpa`, a multiple of the page size.
    ///
    /// # Errors
    ///
    /// See [`KvmError`].
    pub fn add_memory(&self, gpa: u64, memory: SharedMapping) -> Result<SlotId, KvmError> {
        if !gpa.is_multiple_of(PAGE_SIZE as u64) {
            return Err(KvmError::Misaligned { gpa });
        }
        let memory = Kept::new(memory);
        let len_bytes = memory.len_bytes();
        let end = gpa.checked_add(len_bytes);
        let end = end.ok_or(KvmError::Overlap { gpa })?;
        let mut slots = self.slots.write();
        if slots.iter().any(|slot| slot.gpa < end && gpa < slot.end()) {
            return Err(KvmError::Overlap { gpa });
        }
        let id = free_id(&slots);
        let slot = Slot { id, gpa, memory };
        let set = self.set_region(&slot, len_bytes);
        if set.is_ok() {
            slots.push(slot);
        } else {
            // Not under the lock: this may be the last share, which unmaps.
            drop(slots);
            drop(slot);
        }
        set.map(|()| id)
    }

    /// Takes memory away from the guest.
    ///
    /// # Errors
    ///
    /// [`KvmError::NoSuchSlot`], and what the kernel refuses: the guest has the memory still then.
    pub fn remove_memory(&self, id: SlotId) -> Result<(), KvmError> {
        let mut slots = self.slots.write();
        let place = slots.iter().position(|slot| slot.id == id);
        let place = place.ok_or(KvmError::NoSuchSlot)?;
        self.set_region(&slots[place], 0)?;
        let slot = slots.swap_remove(place);
        // Not under the lock: this may be the last share, which unmaps.
        drop(slots);
        drop(slot);
        Ok(())
    }

    /// A processor with the number `id`.
    ///
    /// # Errors
    ///
    /// What the kernel refuses.
    pub fn create_vcpu(self: &Arc<Self>, id: u64) -> Result<Vcpu, KvmError> {
        let fd = self
            .fd
            .create_vcpu(id)
            .map_err(refused("KVM_CREATE_VCPU"))?;
        Ok(Vcpu::new(fd, Arc::clone(self)))
    }

    /// The memory at `gpa`, and how far into it that is.
    pub(super) fn find(&self, gpa: u64) -> Option<(Kept, u64)> {
        let slots = self.slots.read();
        let mut holding = slots
            .iter()
            .filter(|slot| (slot.gpa..slot.end()).contains(&gpa));
        let slot = holding.next()?;
        Some((slot.memory.clone(), gpa - slot.gpa))
    }

    /// The guest's address of what the program has at `address`.
    pub(super) fn gpa_of(&self, address: Vaddr) -> Option<u64> {
        let slots = self.slots.read();
        let mut found = slots.iter().filter_map(|slot| {
            let base = slot.memory.as_ptr().addr() as u64;
            let offset = address.0.checked_sub(base)?;
            (offset < slot.memory.len_bytes()).then_some(slot.gpa + offset)
        });
        found.next()
    }

    /// An error if the address space of some of the memory was killed.
    pub(super) fn check_alive(&self) -> Result<(), RunError> {
        let slots = self.slots.read();
        for slot in slots.iter() {
            let handler = slot.memory.mapping().handler();
            let denied = handler.map(|handler| handler.denied(0));
            if denied == Some(FaultError::Killed) {
                let error = AccessError::at(0, Cause::Fault(FaultError::Killed));
                return Err(RunError::Memory {
                    gpa: slot.gpa,
                    error,
                });
            }
        }
        Ok(())
    }

    fn set_region(&self, slot: &Slot, len_bytes: u64) -> Result<(), KvmError> {
        let region = kvm_userspace_memory_region {
            slot: slot.id.0,
            flags: 0,
            guest_phys_addr: slot.gpa,
            memory_size: len_bytes,
            userspace_addr: slot.memory.as_ptr().addr() as u64,
        };
        // SAFETY: the addresses are of memory that the slot keeps until the kernel has let go of
        // it: it is dropped after a call with length zero, or after the descriptor. No Rust
        // reference into a mapping is ever made, so the guest may write there at any time.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(refused("KVM_SET_USER_MEMORY_REGION"))
    }
}

/// The smallest number that no slot has: the kernel knows a fixed number of them.
fn free_id(slots: &[Slot]) -> SlotId {
    let is_free = |id: &SlotId| slots.iter().all(|slot| slot.id != *id);
    // One of so many numbers is free, for there is one more than slots.
    let nr = slots.len() as u32;
    (0..nr).map(SlotId).find(is_free).unwrap_or(SlotId(nr))
}
