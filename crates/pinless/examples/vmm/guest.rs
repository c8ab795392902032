//! A guest that writes a word to each page of its memory.

use pinless::kvm::kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use pinless::kvm::{RunError, Vcpu, VcpuExit, Vm, kvm_ioctls};
use pinless::{AttachedThread, Errno, Mapping, Mlock, PAGE_SIZE, PageRun};
use std::error::Error;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

/// Where the guest's code is.
const CODE: u64 = 0x1000;

/// Where its page tables are: a page of each of the two upper levels, and four of the third, which
/// map 4 GiB to themselves.
const TABLES: PageRun = PageRun::new(2, 6);

/// The first page that it writes.
pub(crate) const FIRST_PAGE: u32 = TABLES.end();

/// Where it says that a page does not hold what it wrote there.
const LOST_PORT: u16 = 0x10;

/// Where it says that it is done.
const DONE_PORT: u16 = 0x11;

/// What the processor runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Code in real mode, with segments of 4 GiB; some machines have KVM emulate all of it.
    Real,
    /// A program in 64-bit mode without privileges, which every machine runs by itself.
    Program,
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "real" => Ok(Self::Real),
            "program" => Ok(Self::Program),
            _ => Err(format!(
                "there is no guest `{name}`; say `real` or `program`"
            )),
        }
    }
}

/// For each page from `edi` up to `esi`: if `ecx` is not zero, compares the first word with the
/// page's address and `ebx`; then writes the address and `edx` there.
const REAL: &[u8] = &[
    0x66, 0x85, 0xc9, // again: test ecx, ecx
    0x74, 0x0b, // jz write
    0x67, 0x66, 0x8d, 0x04, 0x1f, // lea eax, [edi + ebx]
    0x67, 0x66, 0x3b, 0x07, // cmp eax, [edi]
    0x75, 0x17, // jne lost
    0x67, 0x66, 0x8d, 0x04, 0x17, // write: lea eax, [edi + edx]
    0x67, 0x66, 0x89, 0x07, // mov [edi], eax
    0x66, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add edi, 4096
    0x66, 0x39, 0xf7, // cmp edi, esi
    0x72, 0xdb, // jb again
    0xe6, 0x11, // out 0x11, al
    0xe6, 0x10, // lost: out 0x10, al
];

/// The same, with longer registers for addresses.
const PROGRAM: &[u8] = &[
    0x85, 0xc9, // again: test ecx, ecx
    0x74, 0x07, // jz write
    0x8d, 0x04, 0x1f, // lea eax, [rdi + rbx]
    0x3b, 0x07, // cmp eax, [rdi]
    0x75, 0x13, // jne lost
    0x8d, 0x04, 0x17, // write: lea eax, [rdi + rdx]
    0x89, 0x07, // mov [rdi], eax
    0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add rdi, 4096
    0x48, 0x39, 0xf7, // cmp rdi, rsi
    0x72, 0xe4, // jb again
    0xe6, 0x11, // out 0x11, al
    0xe6, 0x10, // lost: out 0x10, al
];

/// A virtual machine whose memory, from guest address zero on, is a mapping.
pub(crate) struct Machine {
    vm: Arc<Vm>,
    _tables: Option<Mlock>,
    memory: Arc<Mapping>,
    kind: Kind,
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
    pub(crate) fn new(memory: Mapping, kind: Kind) -> Result<Self, Box<dyn Error>> {
        let (vm, memory) = (Vm::new()?, Arc::new(memory));
        let tables = match kind {
            Kind::Real => {
                memory.write_at(CODE, REAL)?;
                None
            }
            Kind::Program => {
                memory.write_at(CODE, PROGRAM)?;
                write_tables(&memory)?;
                // Some machines have KVM walk them, which cannot wait for a page.
                Some(memory.mlock(TABLES)?)
            }
        };
        vm.add_memory(0, memory.clone())?;
        Ok(Self {
            vm,
            _tables: tables,
            memory,
            kind,
        })
    }

    pub(crate) fn memory(&self) -> &Arc<Mapping> {
        &self.memory
    }

    pub(crate) fn guest(&self, id: u64) -> Result<Guest, Box<dyn Error>> {
        let vcpu = self.vm.create_vcpu(id)?;
        let mut sregs = vcpu.fd().get_sregs()?;
        match self.kind {
            Kind::Real => {
                (sregs.cs.base, sregs.cs.selector) = (0, 0);
                (sregs.ds.base, sregs.ds.selector) = (0, 0);
                (sregs.ds.limit, sregs.ds.g) = (u32::MAX, 1);
            }
            Kind::Program => set_long_mode(&mut sregs),
        }
        vcpu.fd().set_sregs(&sregs)?;
        Ok(Guest { vcpu })
    }
}

/// Writes tables that map 4 GiB to themselves, in pages of 2 MiB.
fn write_tables(memory: &Mapping) -> Result<(), Box<dyn Error>> {
    /// Present, writable, for programs.
    const ENTRY: u64 = 0b111;
    /// An entry of the third level that is a page.
    const LARGE: u64 = 1 << 7;
    let address = |place: u32| u64::from(TABLES.first + place) * PAGE_SIZE as u64;
    memory.store_u64(address(0), address(1) | ENTRY)?;
    for nr in 0..4 {
        let entry = address(2 + nr) | ENTRY;
        memory.store_u64(address(1) + u64::from(nr) * 8, entry)?;
    }
    for nr in 0..4 * 512 {
        memory.store_u64(address(2) + nr * 8, nr << 21 | LARGE | ENTRY)?;
    }
    Ok(())
}

/// A processor in 64-bit mode, without privileges but that of ports.
fn set_long_mode(sregs: &mut kvm_sregs) {
    let code = kvm_segment {
        limit: u32::MAX,
        selector: 8 | 3,
        type_: 0b1011,
        present: 1,
        dpl: 3,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        selector: 16 | 3,
        type_: 0b0011,
        db: 1,
        l: 0,
        ..code
    };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    sregs.cr3 = u64::from(TABLES.first) * PAGE_SIZE as u64;
    sregs.cr4 = 1 << 5; // PAE
    sregs.cr0 = 1 | 1 << 4 | 1 << 16 | 1 << 31; // PE, ET, WP, PG
    sregs.efer = 1 << 8 | 1 << 10; // LME, LMA
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
            rflags: 2 | 3 << 12, // a program may use ports
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
                VcpuExit::IoOut(DONE_PORT, _) => return Ok(Ended::Done),
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
