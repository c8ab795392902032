//! A virtual machine with one processor, in real mode with segments of 4 GiB.

use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use std::error::Error;

/// Where the guest's code is; what it writes begins behind that.
const CODE: u32 = 0x1000;
pub(crate) const DATA: u32 = 0x2000;

/// Writes a word to each page from `edi` up to `esi`, and halts.
const PROGRAM: [u8; 18] = [
    0x67, 0x66, 0x89, 0x3f, // again: mov [edi], edi
    0x66, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add edi, 4096
    0x66, 0x39, 0xf7, // cmp edi, esi
    0x72, 0xf0, // jb again
    0xf4, // hlt
    0x90, // nop
];

/// The machine.
pub(crate) struct Guest {
    vcpu: VcpuFd,
    /// Lives as long as the processor does.
    _vm: VmFd,
}

impl Guest {
    pub(crate) fn new(len: u32) -> Result<Self, Box<dyn Error>> {
        let vm = Kvm::new()
            .map_err(|error| format!("/dev/kvm: {error}"))?
            .create_vm()?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing. It is never
        // unmapped, so the guest may use it as long as the process lives.
        let memory = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                len as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        // SAFETY: the mapping is longer than the code's page, and nobody else knows it yet.
        unsafe {
            let code = memory.cast::<u8>().add(CODE as usize);
            code.copy_from_nonoverlapping(PROGRAM.as_ptr(), PROGRAM.len());
        }
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: len.into(),
            userspace_addr: memory as u64,
        };
        // SAFETY: the range is the mapping made above, which is never unmapped, and to which no
        // Rust reference exists.
        unsafe { vm.set_user_memory_region(region)? };
        let vcpu = vm.create_vcpu(0)?;
        let mut sregs = vcpu.get_sregs()?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        (sregs.ds.base, sregs.ds.selector) = (0, 0);
        (sregs.ds.limit, sregs.ds.g) = (u32::MAX, 1);
        vcpu.set_sregs(&sregs)?;
        Ok(Self { vcpu, _vm: vm })
    }

    /// Has the guest write each page of a part of its memory.
    pub(crate) fn write_pages(&mut self, from: u32, to: u32) -> Result<(), Box<dyn Error>> {
        self.vcpu.set_regs(&kvm_regs {
            rip: CODE.into(),
            rdi: from.into(),
            rsi: to.into(),
            rflags: 2,
            ..Default::default()
        })?;
        match self.vcpu.run()? {
            VcpuExit::Hlt => Ok(()),
            other => Err(format!("the guest ended in {other:?}").into()),
        }
    }
}
