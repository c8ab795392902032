//! A guest in real mode, with segments of 4 GiB, that writes a word to each page of its memory.

use pinless::kvm::kvm_bindings::kvm_regs;
use pinless::kvm::{RunError, Vcpu, VcpuExit, Vm, kvm_ioctls};
use pinless::{AttachedThread, Errno, Mapping, PAGE_SIZE};
use std::error::Error;
use std::ops::Range;
use std::sync::Arc;

/// Where the guest's code is.
const CODE: u64 = 0x1000;

/// The first page that it writes.
pub(crate) const FIRST_PAGE: u32 = 2;

/// Where it says that a page does not hold what it wrote there.
const LOST_PORT: u16 = 0x10;

/// For each page from `edi` up to `esi`: if `ecx` is not zero, compares the first word with the
/// page's address and `ebx`; then writes the address and `edx` there. Halts at the end.
const PROGRAM: [u8; 43] = [
    0x66, 0x85, 0xc9, // again: test ecx, ecx
    0x74, 0x0b, // jz write
    0x67, 0x66, 0x8d, 0x04, 0x1f, // lea eax, [edi + ebx]
    0x67, 0x66, 0x3b, 0x07, // cmp eax, [edi]
    0x75, 0x16, // jne lost
    0x67, 0x66, 0x8d, 0x04, 0x17, // write: lea eax, [edi + edx]
    0x67, 0x66, 0x89, 0x07, // mov [edi], eax
    0x66, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add edi, 4096
    0x66, 0x39, 0xf7, // cmp edi, esi
    0x72, 0xdb, // jb again
    0xf4, // hlt
    0xb0, 0x01, // lost: mov al, 1
    0xe6, 0x10, // out 0x10, al
    0xf4, // hlt
];

/// A virtual machine whose memory, from guest address zero on, is a mapping.
pub(crate) struct Machine {
    vm: Arc<Vm>,
    memory: Arc<Mapping>,
}

/// A processor of it.
pub(crate) struct Guest {
    vcpu: Vcpu,
}

/// What the guest is to do with its pages.
pub(crate) struct Pass {
    pub(crate) pages: Range<u32>,
    /// What the last pass wrote, if that is to be looked at; less than a page's size.
    pub(crate) expects: Option<u32>,
    /// What is added to each page's address.
    pub(crate) writes: u32,
}

/// How a pass ended.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// All pages were written.
    Done,
    /// This page does not hold what the guest wrote there.
    Lost { page: u32 },
    /// In a way that the program does not know.
    Other(String),
}

impl Machine {
    pub(crate) fn new(memory: Mapping) -> Result<Self, Box<dyn Error>> {
        let (vm, memory) = (Vm::new()?, Arc::new(memory));
        memory.write_at(CODE, &PROGRAM)?;
        vm.add_memory(0, memory.clone())?;
        Ok(Self { vm, memory })
    }

    pub(crate) fn memory(&self) -> &Arc<Mapping> {
        &self.memory
    }

    pub(crate) fn guest(&self, id: u64) -> Result<Guest, Box<dyn Error>> {
        let vcpu = self.vm.create_vcpu(id)?;
        let mut sregs = vcpu.fd().get_sregs()?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        (sregs.ds.base, sregs.ds.selector) = (0, 0);
        (sregs.ds.limit, sregs.ds.g) = (u32::MAX, 1);
        vcpu.fd().set_sregs(&sregs)?;
        Ok(Guest { vcpu })
    }
}

impl Guest {
    pub(crate) fn vcpu(&self) -> &Vcpu {
        &self.vcpu
    }

    /// Has the guest go over its pages once.
    pub(crate) fn pass(&mut self, thread: &AttachedThread, pass: &Pass) -> Result<Ended, RunError> {
        let address = |page: u32| u64::from(page) * PAGE_SIZE as u64;
        let regs = kvm_regs {
            rip: CODE,
            rdi: address(pass.pages.start),
            rsi: address(pass.pages.end),
            rbx: u64::from(pass.expects.unwrap_or(0)),
            rcx: u64::from(pass.expects.is_some()),
            rdx: u64::from(pass.writes),
            rflags: 2,
            ..Default::default()
        };
        self.vcpu.fd().set_regs(&regs).map_err(refused)?;
        self.go_on(thread)
    }

    /// Has it go on where it was.
    pub(crate) fn go_on(&mut self, thread: &AttachedThread) -> Result<Ended, RunError> {
        loop {
            match self.vcpu.run(thread)? {
                VcpuExit::Intr => {}
                VcpuExit::Hlt => return Ok(Ended::Done),
                VcpuExit::IoOut(LOST_PORT, _) => break,
                other => return Ok(Ended::Other(format!("{other:?}"))),
            }
        }
        let regs = self.vcpu.fd().get_regs().map_err(refused)?;
        let page = (regs.rdi / PAGE_SIZE as u64) as u32;
        Ok(Ended::Lost { page })
    }
}

fn refused(error: kvm_ioctls::Error) -> RunError {
    RunError::Refused(Errno(error.errno()))
}
