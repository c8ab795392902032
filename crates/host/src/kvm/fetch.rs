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
    let physical = |linear: u64| {
        let found = fd.translate_gva(linear).ok()?;
        (found.valid != 0).then_some(found.physical_address)
    };
    let [first, last] = linear_ends(sregs.cs.base, regs.rip);
    let first = physical(first)?;
    // The last one may lie where nothing is mapped, and not belong to the instruction.
    let last = physical(last).unwrap_or(first);
    Some([first, last])
}

/// The linear addresses of these bytes. The guest says where it runs: at the end of all addresses
/// too, after which they go on from zero.
#[cfg(target_arch = "x86_64")]
fn linear_ends(cs_base: u64, rip: u64) -> [u64; 2] {
    let first = cs_base.wrapping_add(rip);
    [first, first.wrapping_add(INSTRUCTION_BYTES_MAX - 1)]
}

/// The processors of other architectures fetch by themselves, and KVM never emulates a fetch.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn next_instruction(_fd: &VcpuFd) -> Option<[u64; 2]> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::linear_ends;

    #[track_caller]
    fn check(cs_base: u64, rip: u64, expected: [u64; 2]) {
        assert_eq!(linear_ends(cs_base, rip), expected);
    }

    #[test]
    fn a_guest_may_run_anywhere() {
        check(0xF_0000, 0xFFF0, [0xF_FFF0, 0xF_FFFE]);
        check(0, u64::MAX - 14, [u64::MAX - 14, u64::MAX]);
        check(0, u64::MAX - 13, [u64::MAX - 13, 0]);
        check(0, u64::MAX, [u64::MAX, 13]);
        check(u64::MAX, 2, [1, 15]);
    }
}
