//! Instructions that KVM could not fetch, because their page was not there.
//!
//! A fetch has no exit of its own: where KVM emulates, a page that it cannot read ends the run as
//! an instruction that it cannot emulate.

use kvm_ioctls::VcpuFd;

/// The longest instruction.
#[cfg(target_arch = "x86_64")]
const INSTRUCTION_BYTES_MAX: u64 = 15;

/// The guest's addresses of the first and the last byte that the next instruction may have, if they
/// are known: two, as it may lie in two pages.
#[cfg(target_arch = "x86_64")]
pub(super) fn next_instruction(fd: &VcpuFd) -> Option<[u64; 2]> {
    let (regs, sregs) = (fd.get_regs().ok()?, fd.get_sregs().ok()?);
    let linear = sregs.cs.base.wrapping_add(regs.rip);
    let physical = |linear: u64| {
        let found = fd.translate_gva(linear).ok()?;
        (found.valid != 0).then_some(found.physical_address)
    };
    let first = physical(linear)?;
    // The last one may lie where nothing is mapped, and not belong to the instruction.
    let last = physical(linear + INSTRUCTION_BYTES_MAX - 1).unwrap_or(first);
    Some([first, last])
}

/// The processors of other architectures fetch by themselves, and KVM never emulates a fetch.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn next_instruction(_fd: &VcpuFd) -> Option<[u64; 2]> {
    None
}
