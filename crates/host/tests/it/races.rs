//! The lost-write meter: programs write while pages are taken away, and no write may be lost.

use crate::fake::{Fake, MODES, managed};
use pinless_host::{FaultMode, HostMapping, attach_thread};
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::primary_mmu::{Access, PrimaryMmu};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const NR_PAGES: u32 = 64;
const NR_WRITERS: u64 = 2;
const NR_ROUNDS: u64 = 1500;

/// Counts up its own word of each page until told to stop; answers how many writes it made and
/// how many it did not find again.
fn write_until(mapping: &HostMapping, writer: u64, is_over: &AtomicBool) -> (u64, u64) {
    let _attached = attach_thread().unwrap();
    let offset = |page: u64| page * PAGE_SIZE as u64 + 512 * writer + 64;
    let mut last = [0; NR_PAGES as usize];
    for (page, last) in (0..).zip(&mut last) {
        *last = mapping.load_u64(offset(page)).unwrap();
    }
    let (mut nr_writes, mut nr_lost) = (0, 0);
    while !is_over.load(Ordering::Relaxed) {
        for (page, last) in (0..).zip(&mut last) {
            let found = mapping.load_u64(offset(page)).unwrap();
            nr_lost += u64::from(found != *last);
            *last = found + 1;
            mapping.store_u64(offset(page), *last).unwrap();
            nr_writes += 1;
        }
    }
    for (page, last) in (0..).zip(&last) {
        nr_lost += u64::from(mapping.load_u64(offset(page)).unwrap() != *last);
    }
    (nr_writes, nr_lost)
}

/// Takes pages away while writers write; `protect` first, as a manager does that wants to know
/// what is dirty. Answers writes, lost writes, and pages taken away.
fn race(mapping: &HostMapping, fake: &Fake, protect: bool) -> (u64, u64, u64) {
    let run = PageRun::new(0, NR_PAGES);
    let is_over = AtomicBool::new(false);
    let nr_detached = AtomicU64::new(0);
    let (is_over, nr_detached) = (&is_over, &nr_detached);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..NR_WRITERS)
            .map(|writer| scope.spawn(move || write_until(mapping, writer, is_over)))
            .collect();
        let evictor = scope.spawn(move || {
            for round in 0..NR_ROUNDS {
                if protect {
                    mapping.mmu().protect(run, Access::Read).unwrap();
                }
                nr_detached.fetch_add(fake.detach(run) as u64, Ordering::Relaxed);
                if round % 3 == 0 {
                    fake.store(run);
                }
                std::thread::yield_now();
            }
        });
        evictor.join().unwrap();
        is_over.store(true, Ordering::Relaxed);
        let counts = writers.into_iter().map(|writer| writer.join().unwrap());
        let (nr_writes, nr_lost) =
            counts.fold((0, 0), |sum, (writes, lost)| (sum.0 + writes, sum.1 + lost));
        (nr_writes, nr_lost, nr_detached.load(Ordering::Relaxed))
    })
}

#[expect(clippy::print_stderr, reason = "the figures of the meter")]
fn check(mode: FaultMode, protect: bool) {
    let Some((mapping, fake)) = managed(NR_PAGES, mode) else {
        return;
    };
    let (nr_writes, nr_lost, nr_detached) = race(&mapping, &fake, protect);
    eprintln!(
        "{mode:?}, protect {protect}: {nr_writes} writes, {nr_lost} lost, {nr_detached} pages \
         taken away"
    );
    assert_eq!(nr_lost, 0, "{mode:?}, protect {protect}");
    assert!(
        nr_detached > 0,
        "{mode:?}, protect {protect}: nothing raced"
    );
}

#[test]
fn no_write_is_lost_when_pages_are_taken_away() {
    for mode in MODES {
        check(mode, false);
    }
}

#[test]
fn no_write_is_lost_when_protected_pages_are_taken_away() {
    for mode in MODES {
        check(mode, true);
    }
}
