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
