//! Victims that are processes: killed through the policy of the memory manager.

use pinless_host::process::{Mrelease, PidFd};
use pinless_host::{Errno, MonotonicClock};
use pinless_mm::limits::Limits;
use pinless_mm::oom::{Release, kill_process};
use std::process::{Child, Command, Stdio};

/// A process that does nothing, and has memory as any program has.
fn sleeper() -> Child {
    Command::new("sleep")
        .arg("1000")
        .stdin(Stdio::null())
        .spawn()
        .expect("a system with `sleep`")
}

/// The answers of the kernel, before, during and after.
#[test]
fn n79_a_process_is_killed_and_its_memory_comes_back() {
    let mut child = sleeper();
    let process = PidFd::open(child.id()).expect("it lives");
    match process.mrelease() {
        Mrelease::NotDying => {}
        Mrelease::Failed(errno) => {
            println!("skipped: no process_mrelease: {errno}");
            child.kill().expect("it lives");
            child.wait().expect("it ends");
            return;
        }
        other => panic!("{other:?} for one that lives"),
    }
    let patient = Limits {
        reap_passes: u32::MAX,
        ..Limits::new(1 << 20)
    };
    let report = kill_process(&process, &patient, &MonotonicClock);
    let report = report.expect("it is ours");
    assert!(report.back_ns.is_some(), "{report}");
    assert!(
        [Release::Released, Release::Gone].contains(&report.outcome),
        "{report}"
    );
    child.wait().expect("it ended");
    assert_eq!(process.mrelease(), Mrelease::Gone);
    let again = kill_process(&process, &Limits::new(1 << 20), &MonotonicClock);
    assert_eq!(again, Err(Errno(3)), "ESRCH: there is nobody to kill");
}
