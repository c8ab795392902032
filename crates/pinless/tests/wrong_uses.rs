//! Wrong uses, each of which ends in an error that says what to do.
//!
//! Two more need a process of their own: a fork and a machine without userfaultfd, in the tests of
//! `pinless-host`.

#![expect(clippy::print_stdout, reason = "a test that cannot run here says so")]

use pinless::mmu_notifier::{Context, Notifier, Range};
use pinless::{Access, Advice, Builder, FaultMode, MapOptions, PAGE_SIZE, PageRun, Pinless};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
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
fn processors_are_kept_awake_or_who_may_not_is_told() {
    if build().is_none() {
        return;
    }
    let memory = Builder::new(u64::from(FRAMES) * PAGE_SIZE as u64);
    let built = memory.fault_threads(1).keep_processors_awake().build();
    const DEVICE: &str = "/dev/cpu_dma_latency";
    if std::fs::OpenOptions::new()
        .write(true)
        .open(DEVICE)
        .is_err()
    {
        println!("here nobody may ask for it, and that is the error");
        return check(built, &["cannot be kept awake", "write access", DEVICE]);
    }
    let pinless = built.expect("the device can be written to");
    let mm = pinless.new_mm("awake");
    let options = MapOptions::new(4 * u64::from(FRAMES) * PAGE_SIZE as u64);
    let memory = pinless.map(&mm, options.fault_mode(FaultMode::Service));
    let memory = memory.expect("a mapping");
    for round in 0..2 {
        for page in 0..u64::from(4 * FRAMES) {
            let offset = page * PAGE_SIZE as u64;
            if round == 1 {
                assert_eq!(memory.load_u64(offset).expect("it was stored"), page);
            }
            memory
                .store_u64(offset, page)
                .expect("a service thread fills it");
        }
    }
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

const SCENARIO: &str = "PINLESS_SCENARIO";

/// The test again, in a process of its own that `run` makes of the program.
fn check_in_child(test: &str, scenario: &str, run: impl FnOnce(PathBuf) -> Command) {
    let program = std::env::current_exe().expect("a path");
    let mut child = run(program);
    child.args(["--exact", test, "--nocapture"]);
    match child.env(SCENARIO, scenario).output() {
        Err(error) => println!("skipped: no such process: {error}"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            let skipped = said.lines().filter(|line| line.contains("skipped: "));
            skipped.for_each(|line| println!("{line}"));
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}\n{complaint}");
        }
    }
}

/// Bytes of this process that are in memory.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("this is Linux");
    let pages = pages.split_whitespace().nth(1).expect("the second word");
    pages.parse::<u64>().expect("a number") * PAGE_SIZE as u64
}

/// A mapping may be far larger than the machine: its books grow as its pages are used.
#[test]
fn a_huge_mapping_costs_what_is_used_of_it() {
    const LEN_BYTES: u64 = 128 << 30;
    if std::env::var_os(SCENARIO).is_none() {
        // In a process of its own: what the other tests have in memory comes and goes.
        let test = "a_huge_mapping_costs_what_is_used_of_it";
        return check_in_child(test, "alone", Command::new);
    }
    let Some(pinless) = build() else { return };
    let mm = pinless.new_mm("huge");
    for options in [LEN_BYTES.into(), MapOptions::new(LEN_BYTES).shared()] {
        let before = resident_bytes();
        let memory = pinless.map(&mm, options).expect("addresses");
        for offset in [0, LEN_BYTES / 2, LEN_BYTES - 8] {
            memory.store_u64(offset, offset + 1).expect("a frame");
            assert_eq!(memory.load_u64(offset), Ok(offset + 1));
        }
        let books = memory.vma().metadata_bytes() as u64;
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < books / 4, "{grown} of {books} bytes");
        memory.unmap().expect("nobody holds it");
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < books / 4, "{grown} of {books} bytes, unmapped");
    }
}

/// Where a process may have so many addresses only, what does not fit is an error: the memory or,
/// if that fits twice (the pages and their slots), the books.
#[test]
fn a_mapping_that_the_system_has_no_room_for() {
    if let Some(parts) = std::env::var_os(SCENARIO) {
        let Some(pinless) = build() else { return };
        let mm = pinless.new_mm("huge");
        let refused = pinless.map(&mm, pinless::MAPPING_BYTES_MAX);
        let parts = parts.into_string().expect("words");
        return check(refused, &[&*parts, "map less", "ulimit -v"]);
    }
    const GIB: u64 = 1 << 30;
    let books = pinless::MAPPING_BYTES_MAX / PAGE_SIZE as u64 * 12;
    let fits_twice = 2 * pinless::MAPPING_BYTES_MAX + books - GIB;
    for (limit, words) in [(16 * GIB, "mmap failed"), (fits_twice, "the books of")] {
        let limited = format!("ulimit -v {} && exec \"$0\" \"$@\"", limit / 1024);
        check_in_child(
            "a_mapping_that_the_system_has_no_room_for",
            words,
            |program| {
                let mut shell = Command::new("sh");
                shell.args(["-c", &limited]).arg(program);
                shell
            },
        );
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
    let test = "kernel_faults_are_asked_for_when_it_is_built";
    check_in_child(test, "as nobody", |program| {
        let mut nobody = Command::new(program);
        nobody.uid(65534);
        nobody
    });
}
