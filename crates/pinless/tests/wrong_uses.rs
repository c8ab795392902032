//! Wrong uses, each of which ends in an error that says what to do.
//!
//! Two more need a process of their own: a fork and a machine without userfaultfd, in the tests of
//! `pinless-host`.

#![expect(clippy::print_stdout, reason = "a test that cannot run here says so")]

use pinless::mmu_notifier::{Context, Notifier, Range};
use pinless::{Access, Advice, Builder, FaultMode, MapOptions, PAGE_SIZE, PageRun, Pinless};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

const FRAMES: u32 = 64;

fn build() -> Option<Pinless> {
    let built = Builder::new(u64::from(FRAMES) * PAGE_SIZE as u64)
        .fault_threads(1)
        .build();
    built
        .inspect_err(|error| println!("skipped: no userfaultfd: {error}"))
        .ok()
}

/// The error is there, and says both what is wrong and what to do.
#[track_caller]
fn check<T, E: std::fmt::Display>(result: Result<T, E>, parts: &[&str]) {
    let Err(error) = result else {
        panic!("a wrong use was let pass");
    };
    let words = error.to_string();
    for part in parts {
        assert!(words.contains(part), "{part:?} in {words:?}");
    }
}

#[test]
fn bounds_that_leave_no_room() {
    let needs = ["too small", "at least 16384 bytes"];
    check(Builder::new(0).build(), &["0 bytes", needs[0], needs[1]]);
    check(Builder::new(100).build(), &needs);
    let huge_store = Builder::new(1 << 20).zswap_max(u64::MAX);
    check(huge_store.build(), &["compressed store", "at most"]);
    let tiny_file = Builder::new(1 << 20).swap_file("/", 4096);
    check(tiny_file.build(), &["4096 bytes", "65536 or more"]);
}

#[test]
fn mappings_that_cannot_be() {
    let Some(pinless) = build() else { return };
    let mm = pinless.new_mm("lengths");
    for len_bytes in [0, 1, u64::MAX, 1 << 60, (1 << 42) + 4096] {
        let parts = [&*len_bytes.to_string(), "multiple of the page size"];
        check(pinless.map(&mm, len_bytes), &parts);
    }
}

#[test]
fn a_mapping_is_unmapped_once() {
    let Some(pinless) = build() else { return };
    let (mm, other) = (pinless.new_mm("once"), pinless.new_mm("other"));
    let memory = pinless.map(&mm, 1 << 16).expect("a mapping");
    check(other.unmap(memory.vma()), &["not mapped", "its own"]);
    mm.unmap(memory.vma()).expect("nobody holds it");
    check(mm.unmap(memory.vma()), &["not mapped", "once"]);
    check(memory.load_u64(0), &["gone", "map it again"]);
    check(memory.unmap(), &["not mapped", "once"]);
}

#[test]
fn nothing_is_used_after_a_kill() {
    let Some(pinless) = build() else { return };
    let attached = pinless::attach_thread().expect("a thread can be attached");
    for mode in [FaultMode::Service, FaultMode::InThread] {
        let mm = pinless.new_mm("killed");
        let options = MapOptions::of_pages(8).fault_mode(mode);
        let memory = pinless.map(&mm, options).expect("a mapping");
        memory.store_u64(0, 1).expect("a frame");
        assert!(pinless.memcg().kill(&mm), "{mode:?}");
        let parts = ["killed", "make a new one"];
        check(memory.load_u64(5 * PAGE_SIZE as u64), &parts);
        let run = PageRun::single(3);
        check(memory.guard(run, Access::Read), &parts);
        check(memory.advise(run, Advice::WillNeed), &parts);
        check(pinless.map(&mm, 1 << 16), &parts);
    }
    drop(attached);
}

#[test]
fn a_guard_across_an_unmap() {
    let Some(pinless) = build() else { return };
    let mm = pinless.new_mm("guarded");
    let memory = pinless.map(&mm, 1 << 16).expect("a mapping");
    memory.store_u64(PAGE_SIZE as u64, 7).expect("a frame");
    let run = PageRun::new(1, 2);
    let guard = memory.guard(run, Access::Write).expect("two frames");
    let parts = ["page 1 is pinned", "drop its guards"];
    check(mm.unmap(memory.vma()), &parts);
    check(memory.advise(run, Advice::DontNeed), &parts);
    check(memory.unmap(), &parts);
    assert_eq!(guard.load_u64(0), Ok(7), "the guard has its memory still");
    drop(guard);
    assert_eq!(pinless.memcg().frames().usage(), 0, "and was its last user");
}

#[test]
fn more_pins_than_frames() {
    let Some(pinless) = build() else { return };
    let mm = pinless.new_mm("pinned");
    let options = MapOptions::of_pages(2 * FRAMES);
    let memory = pinless.map(&mm, options).expect("a mapping");
    let parts = ["limit of 64 frames", "pin fewer", "raise `max`"];
    check(memory.guard(memory.all(), Access::Read), &parts);
    check(
        memory.pin(PageRun::new(0, FRAMES + 1), Access::Write),
        &parts,
    );
    assert_eq!(mm.nr_pins(), 0, "nothing stays pinned");
}

struct Panics;

impl Notifier for Panics {
    fn start<C: Context>(&self, _: &Range, _: &C) -> Result<(), C::Refusal> {
        panic!("a bug in a driver");
    }
}

#[test]
fn a_notifier_that_panics_is_named() {
    let Some(pinless) = build() else { return };
    let mm = pinless.new_mm("panics");
    let memory = pinless.map(&mm, 1 << 16).expect("a mapping");
    memory.store_u64(0, 7).expect("a frame");
    let subscription = memory.subscribe("nic", Arc::new(Panics));
    let parts = ["`nic` panicked", "drop its subscription"];
    check(memory.advise(memory.all(), Advice::DontNeed), &parts);
    assert_eq!(memory.load_u64(0), Ok(7), "nothing was changed");
    drop(subscription);
    memory.unmap().expect("nobody holds it");
}

#[test]
fn a_fault_mode_that_there_is_not() {
    let asked: Result<FaultMode, _> = "kernel".parse();
    check(asked, &["`kernel`", "`service` or `in-thread`"]);
    for (name, mode) in FaultMode::NAMES {
        assert_eq!(name.parse(), Ok(mode));
    }
}

const SCENARIO: &str = "PINLESS_AS_NOBODY";

/// Without privileges a machine mostly resolves faults of user mode alone: who needs more is told
/// when it is built, and not by the first system call that fails.
#[test]
fn kernel_faults_are_asked_for_when_it_is_built() {
    if std::env::var_os(SCENARIO).is_some() {
        match Builder::new(1 << 20).build() {
            Err(error) => println!("skipped: no userfaultfd: {error}"),
            Ok(pinless) if pinless.capabilities().serves_kernel_faults() => {
                println!("skipped: no lack of privileges: {}", pinless.capabilities());
            }
            Ok(pinless) => {
                let words = pinless.capabilities().to_string();
                assert!(words.contains("through guards"), "{words}");
                let strict = Builder::new(1 << 20).require_kernel_faults().build();
                check(strict, &["system calls and of KVM", "/dev/userfaultfd"]);
            }
        }
        return;
    }
    let program = std::env::current_exe().expect("a path");
    let test = "kernel_faults_are_asked_for_when_it_is_built";
    let nobody = Command::new(program)
        .args(["--exact", test, "--nocapture"])
        .env(SCENARIO, "1")
        .uid(65534)
        .output();
    match nobody {
        Err(error) => println!("skipped: no change of user: {error}"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            let skipped = said.lines().filter(|line| line.contains("skipped: "));
            skipped.for_each(|line| println!("{line}"));
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}\n{complaint}");
        }
    }
}
