//! What a run may end in, given to a processor as the kernel would.
//!
//! Not every kernel and machine ends a run in each of these ways; those that this one has are in
//! the tests of guests.

use super::{RunError, Vcpu, VcpuExit, Vm};
use crate::kvm::KvmError;
use crate::{AccessError, CreateError, Errno, HostMapping, MonotonicClock, Resolver};
use kvm_bindings::{KVM_EXIT_MEMORY_FAULT, KVM_EXIT_MMIO, KVM_EXIT_UNKNOWN};
use pinless_mm::addr::{PAGE_SIZE, PageIndex};
use pinless_mm::fault::{FaultError, FaultHandler};
use pinless_mm::limits::Limits;
use pinless_mm::page::State;
use pinless_mm::{Memcg, MmHandle, Vma};
use std::sync::Arc;

const NR_PAGES: u32 = 8;

struct Owner(HostMapping);

impl AsRef<HostMapping> for Owner {
    fn as_ref(&self) -> &HostMapping {
        &self.0
    }
}

/// A processor whose guest has a mapping at address zero.
struct World {
    vcpu: Vcpu,
    vma: Arc<Vma>,
    memcg: Arc<Memcg>,
    mm: MmHandle,
}

/// `None` where the machine has no KVM or no userfaultfd; the tests of guests say so there.
fn world() -> Option<World> {
    let mut mapping = match HostMapping::create(NR_PAGES, Resolver::InThread) {
        Err(CreateError::Unavailable(_) | CreateError::Features(_)) => return None,
        made => made.expect("a mapping"),
    };
    let vm = match Vm::new() {
        Err(KvmError::NoKvm(_)) => return None,
        made => made.expect("a machine"),
    };
    let limits = Limits::new(u64::from(2 * NR_PAGES) * PAGE_SIZE as u64);
    let memcg = Memcg::new(limits, Arc::new(MonotonicClock)).expect("bounds");
    let mm = memcg.new_mm("guest");
    let vma = mm.map(mapping.mmu()).expect("a mapping");
    let handler = Arc::clone(&vma) as Arc<dyn FaultHandler>;
    mapping.attach(handler).expect("nobody has to be asked");
    vm.add_memory(0, Arc::new(Owner(mapping))).expect("a slot");
    Some(World {
        vcpu: vm.create_vcpu(0).expect("a processor"),
        vma,
        memcg,
        mm,
    })
}

fn gpa_of(page: PageIndex) -> u64 {
    u64::from(page) * PAGE_SIZE as u64
}

fn missing(page: PageIndex, nr_pages: u32) -> VcpuExit<'static> {
    VcpuExit::MemoryFault {
        flags: 0,
        gpa: gpa_of(page),
        size: gpa_of(nr_pages),
    }
}

#[test]
fn a_page_that_a_run_missed_is_filled() {
    let Some(mut world) = world() else { return };
    let (vcpu, vma) = (&mut world.vcpu, &world.vma);
    assert_eq!(vcpu.see_to(&missing(2, 3)), Ok(true));
    let filled = vma
        .all()
        .pages()
        .filter(|&page| vma.page_state(page) == State::Resident);
    assert_eq!(filled.collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!(vcpu.stats().memory_faults, 3);
    let refused = Err(RunError::Refused(Errno(libc::EFAULT)));
    assert_eq!(vcpu.see_to(&missing(NR_PAGES, 1)), refused, "it has none");
    let in_a_row = (0..2000).find(|_| vcpu.see_to(&missing(2, 1)) == refused);
    assert_eq!(in_a_row, Some(1024), "it makes no way");
    for exit in [VcpuExit::Hlt, VcpuExit::Shutdown] {
        assert_eq!(vcpu.see_to(&exit), Ok(false), "for the program");
    }
}

#[test]
fn a_page_that_cannot_be_had_ends_the_run() {
    let Some(mut world) = world() else { return };
    assert!(world.memcg.kill(&world.mm));
    let page = 5;
    let error = AccessError::Fault {
        offset: gpa_of(page),
        page,
        error: FaultError::Killed,
    };
    let gpa = gpa_of(page);
    let ended = world.vcpu.see_to(&missing(page, 1));
    assert_eq!(ended, Err(RunError::Memory { gpa, error }));
    let ended = world.vcpu.see_to(&VcpuExit::Shutdown);
    let error = ended.expect_err("its page tables are gone, too");
    assert!(error.is_killed(), "{error}");
}

/// A kernel that names no page says nothing, and what it has said before is not taken for it.
#[test]
fn an_end_without_an_address_is_told_as_such() {
    let Some(mut world) = world() else { return };
    let vcpu = &mut world.vcpu;
    for (before, after) in [
        (KVM_EXIT_MEMORY_FAULT, KVM_EXIT_UNKNOWN),
        (KVM_EXIT_MMIO, KVM_EXIT_MMIO),
    ] {
        vcpu.fd.get_kvm_run().exit_reason = before;
        vcpu.forget_memory_fault();
        assert_eq!(vcpu.fd.get_kvm_run().exit_reason, after);
    }
    let ended = vcpu.ended_by(Errno(libc::EFAULT)).expect_err("no address");
    assert_eq!(ended, RunError::NoAddress);
    assert!(ended.to_string().contains("use service threads"), "{ended}");
    assert!(matches!(
        vcpu.ended_by(Errno(libc::EINTR)),
        Ok(VcpuExit::Intr)
    ));
}
