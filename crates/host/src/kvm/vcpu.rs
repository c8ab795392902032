//! A virtual processor whose missing pages are seen to.

#[cfg(test)]
mod tests;

use super::error::RunError;
use super::fetch;
use super::memory::Vm;
use crate::errno::Errno;
use crate::mapping::AccessError;
use crate::thread::{self, AttachedThread};
use crate::uaccess::UserFault;
use core::fmt;
use kvm_bindings::{KVM_EXIT_MEMORY_FAULT, KVM_EXIT_UNKNOWN, KVM_INTERNAL_ERROR_EMULATION};
use kvm_ioctls::{VcpuExit, VcpuFd};
use pinless_mm::addr::PAGE_SIZE;
use pinless_mm::primary_mmu::Access;
use std::sync::Arc;

/// Faults in a row at one address, all of them resolved, after which something else is wrong.
const NR_IN_A_ROW_MAX: u32 = 1024;

/// A processor of a [`Vm`].
pub struct Vcpu {
    /// Before the machine, whose memory it uses.
    fd: VcpuFd,
    vm: Arc<Vm>,
    /// An access that is to be carried out for the guest before it goes on.
    unfinished: Option<Unfinished>,
    /// Address and number of times in a row that its page was filled.
    in_a_row: (u64, u32),
    stats: VcpuStats,
}

/// An access to memory that came as one to a device. Its bytes are in the page that the processor
/// shares with the kernel.
#[derive(Clone, Copy)]
struct Unfinished {
    gpa: u64,
    len: usize,
    access: Access,
}

/// What a processor's thread did for its guest.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct VcpuStats {
    /// Pages filled because the run ended in EFAULT.
    pub memory_faults: u64,
    /// Accesses carried out that had come as accesses to a device.
    pub mmio_in_ram: u64,
    /// Instructions tried again because they may not have been fetched.
    pub fetches: u64,
}

impl fmt::Debug for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vcpu")
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl Vcpu {
    pub(super) fn new(fd: VcpuFd, vm: Arc<Vm>) -> Self {
        Self {
            fd,
            vm,
            unfinished: None,
            in_a_row: (0, 0),
            stats: VcpuStats::default(),
        }
    }

    /// The descriptor, for registers. Run the processor through [`Vcpu::run`] alone.
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// What its thread did for the guest so far.
    pub fn stats(&self) -> VcpuStats {
        self.stats
    }

    /// Runs the guest until it wants something of the program. Missing pages, however their access
    /// ends the run, are seen to. A signal ends it with [`VcpuExit::Intr`].
    ///
    /// The thread is attached, so that the end of an access reaches it as an error.
    ///
    /// # Errors
    ///
    /// See [`RunError`]. The processor may be run again.
    pub fn run(&mut self, thread: &AttachedThread) -> Result<VcpuExit<'_>, RunError> {
        let _: &AttachedThread = thread;
        loop {
            self.finish_access()?;
            self.forget_memory_fault();
            let fd = &raw mut self.fd;
            // SAFETY: a borrow of this round's own. An exit that borrows from it is either returned
            // at once, under the lifetime of `self`, or dropped before the next round.
            let fd = unsafe { &mut *fd };
            let outside = thread::enter_guest();
            let exit = fd.run();
            drop(outside);
            match exit {
                Ok(exit) if self.see_to(&exit)? => {}
                Ok(exit) => return Ok(exit),
                Err(error) => return self.ended_by(Errno(error.errno())),
            }
        }
    }

    /// Sees to an exit that is of memory of ours; false when it is for the program.
    fn see_to(&mut self, exit: &VcpuExit<'_>) -> Result<bool, RunError> {
        match exit {
            VcpuExit::MmioRead(gpa, data) if self.vm.find(*gpa).is_some() => {
                self.begin_access(*gpa, data.len(), Access::Read);
            }
            VcpuExit::MmioWrite(gpa, data) if self.vm.find(*gpa).is_some() => {
                self.begin_access(*gpa, data.len(), Access::Write);
            }
            VcpuExit::MemoryFault { gpa, size, .. } => self.fill(*gpa, *size)?,
            VcpuExit::InternalError => return self.fetch_again(),
            // Of a guest whose page tables went with the rest of its memory, too.
            VcpuExit::Shutdown => return self.vm.check_alive().map(|()| false),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Takes back what the last run said of a missing page: where this one does not say which, the
    /// kernel may leave it there.
    fn forget_memory_fault(&mut self) {
        let run = self.fd.get_kvm_run();
        if run.exit_reason == KVM_EXIT_MEMORY_FAULT {
            run.exit_reason = KVM_EXIT_UNKNOWN;
        }
    }

    /// What a failed run means.
    fn ended_by(&self, errno: Errno) -> Result<VcpuExit<'static>, RunError> {
        match errno.0 {
            libc::EFAULT => Err(RunError::NoAddress),
            libc::EINTR => {
                // The kernel may have met a page that could not be had, and sent SIGBUS.
                let denied = thread::take_fault().and_then(|fault| self.denied(fault));
                denied.map_or(Ok(VcpuExit::Intr), Err)
            }
            _ => Err(RunError::Refused(errno)),
        }
    }

    /// The end of a run by a page of the guest's; nothing if the guest does not have it, or not any
    /// more.
    fn denied(&self, fault: UserFault) -> Option<RunError> {
        let gpa = self.vm.gpa_of(fault.address)?;
        let (_, offset) = self.vm.find(gpa)?;
        let error = AccessError::at(offset, fault.cause);
        Some(RunError::Memory { gpa, error })
    }

    fn begin_access(&mut self, gpa: u64, len: usize, access: Access) {
        self.unfinished = Some(Unfinished { gpa, len, access });
    }

    /// Carries out what the guest was stopped in, if it was.
    fn finish_access(&mut self) -> Result<(), RunError> {
        let Some(Unfinished { gpa, len, access }) = self.unfinished else {
            return Ok(());
        };
        if let Some((memory, offset)) = self.vm.find(gpa) {
            // SAFETY: this field of the union is the one in use: the last run ended in such an
            // access (only then is there an unfinished one), and there was no run since.
            let mmio = unsafe { &mut self.fd.get_kvm_run().__bindgen_anon_1.mmio };
            let (mapping, bytes) = (memory.mapping(), &mut mmio.data[..len]);
            let done = match access {
                Access::Read => mapping.read_at(offset, bytes),
                Access::Write => mapping.write_at(offset, bytes),
            };
            done.map_err(|error| RunError::Memory { gpa, error })?;
        }
        self.unfinished = None;
        self.stats.mmio_in_ram += 1;
        Ok(())
    }

    /// Fills the pages of a part of the guest's memory, for writing: the kernel does not say what
    /// they are wanted for.
    fn fill(&mut self, gpa: u64, size: u64) -> Result<(), RunError> {
        if !self.may_try_again(gpa) {
            return Err(RunError::Refused(Errno(libc::EFAULT)));
        }
        let mut at = gpa;
        while at < gpa.saturating_add(size.max(1)) {
            self.fill_page(at, Access::Write)?;
            at = (at / PAGE_SIZE as u64 + 1) * PAGE_SIZE as u64;
            self.stats.memory_faults += 1;
        }
        Ok(())
    }

    fn fill_page(&self, gpa: u64, access: Access) -> Result<(), RunError> {
        let Some((memory, offset)) = self.vm.find(gpa) else {
            return Err(RunError::Refused(Errno(libc::EFAULT)));
        };
        let filled = memory.mapping().fault_in(offset, access);
        filled.map_err(|error| RunError::Memory { gpa, error })
    }

    /// Fills the pages of an instruction that could not be emulated, as it may be that it could not
    /// be fetched. By now they may be there, filled by another processor; so it is tried again all
    /// the same, and false only after many times in a row.
    fn fetch_again(&mut self) -> Result<bool, RunError> {
        // SAFETY: this field of the union is the one in use after such an exit, which the last run
        // ended in.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        if internal.suberror != KVM_INTERNAL_ERROR_EMULATION {
            return Ok(false);
        }
        let Some(ends) = fetch::next_instruction(&self.fd) else {
            return Ok(false);
        };
        let is_memory = |gpa: &u64| self.vm.find(*gpa).is_some();
        if !ends.iter().all(is_memory) || !self.may_try_again(ends[0]) {
            return Ok(false);
        }
        for gpa in ends {
            self.fill_page(gpa, Access::Read)?;
        }
        self.stats.fetches += 1;
        Ok(true)
    }

    /// Counts a try at an address; false when there were too many in a row.
    fn may_try_again(&mut self, gpa: u64) -> bool {
        let (last, nr) = self.in_a_row;
        let nr = if last == gpa { nr + 1 } else { 1 };
        let is_enough = nr > NR_IN_A_ROW_MAX;
        self.in_a_row = (gpa, if is_enough { 0 } else { nr });
        !is_enough
    }
}
