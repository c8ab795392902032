//! The machine is asked, and what it lacks is named.

use pinless_host::{Errno, Feature, MonotonicClock, ProbeError, Source, Unavailable, probe};
use pinless_mm::env::Clock;

#[test]
fn this_machine_has_everything_or_says_what_it_lacks() {
    match probe() {
        Ok(capabilities) => assert_eq!(
            capabilities.serves_kernel_faults(),
            capabilities.source != Source::UserModeOnly
        ),
        Err(error) => crate::fake::skip(&error.to_string()),
    }
}

#[test]
fn an_error_says_what_was_tried_and_how_to_allow_it() {
    let unavailable = Unavailable {
        device: Errno(libc::EACCES),
        system_call: Errno(libc::EPERM),
        user_mode_only: Errno(libc::ENOSYS),
    };
    let words = ProbeError::Unavailable(unavailable).to_string();
    for part in [
        "/dev/userfaultfd: Permission denied",
        "userfaultfd(2): Operation not permitted",
        "user mode only: Function not implemented",
        "Linux 6.8",
        "vm.unprivileged_userfaultfd=1",
    ] {
        assert!(words.contains(part), "{part:?} in {words:?}");
    }
    let lacks = ProbeError::Lacks {
        feature: Feature::Move,
        errno: Errno(libc::EINVAL),
        source: Source::SystemCall,
    };
    let words = lacks.to_string();
    for part in ["UFFDIO_MOVE", "userfaultfd(2)", "Invalid argument", "6.8"] {
        assert!(words.contains(part), "{part:?} in {words:?}");
    }
}

#[test]
fn the_clock_goes_forward() {
    let clock = MonotonicClock;
    let mut last = clock.now_ns();
    for _ in 0..1000 {
        let now = clock.now_ns();
        assert!(now >= last);
        last = now;
    }
}

/// Lets no userfaultfd be made in this process any more, as sandboxes do.
fn forbid_userfaultfd() {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    /// Asks `/dev/userfaultfd` for a descriptor.
    const USERFAULTFD_IOC_NEW: u32 = 0xAA00;
    let op = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut filter = [
        op(LOAD, 0, 0, 0), // the number of the call
        op(JUMP_EQUAL, libc::SYS_userfaultfd as u32, 3, 0),
        op(JUMP_EQUAL, libc::SYS_ioctl as u32, 0, 3),
        op(LOAD, 24, 0, 0), // the low half of its second argument
        op(JUMP_EQUAL, USERFAULTFD_IOC_NEW, 0, 1),
        op(RETURN, refuse, 0, 0),
        op(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program lives until the call returns, and the kernel checks it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program),
            0
        );
    }
}

#[test]
fn a_machine_without_userfaultfd_says_how_to_get_it() {
    let test = "probes::a_machine_without_userfaultfd_says_how_to_get_it";
    let output = crate::child::run(test, "no_userfaultfd", || {
        forbid_userfaultfd();
        let refused = probe().expect_err("there is no way left");
        assert!(matches!(refused, ProbeError::Unavailable(_)), "{refused:?}");
        let words = refused.to_string();
        for part in ["Operation not permitted", "vm.unprivileged_userfaultfd=1"] {
            assert!(words.contains(part), "{part:?} in {words:?}");
        }
    });
    crate::child::assert_ended_well(&output);
}
