//! Mappings come and go while others are in use, and nothing outlives its mapping.

use crate::child::{assert_killed_by, run, words};
use crate::fake::{Fake, MODES, managed, mapping, pattern, word_of};
use pinless_host::{AccessError, FaultMode, FaultService, HostMapping, Resolver, attach_thread};
use pinless_mm::addr::{PAGE_SIZE, PageIndex, PageRun};
use pinless_mm::fault::{FaultError, FaultHandler, StoreError};
use pinless_mm::primary_mmu::{Access, MmuError, PrimaryMmu};
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

#[test]
fn mappings_come_and_go_while_others_fault() {
    let Some((steady, fake)) = managed(16, FaultMode::InThread) else {
        return;
    };
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let _attached = attach_thread().unwrap();
                while !is_over.load(Ordering::Relaxed) {
                    for page in 0..16 {
                        let found = steady.load_u64(page * 4096).unwrap();
                        assert_eq!(found, word_of(page as u32, 0));
                    }
                    fake.detach(PageRun::new(0, 16));
                }
            });
        }
        let _attached = attach_thread().unwrap();
        let service = Resolver::Service(FaultService::start(1).unwrap());
        for round in 0..200 {
            let resolver = match round % 2 {
                0 => Resolver::InThread,
                _ => service.clone(),
            };
            let mut mapping = HostMapping::create(4, resolver).unwrap();
            assert_eq!(mapping.load_u64(0), Err(AccessError::NotAttached));
            mapping.attach(Fake::new(mapping.mmu())).unwrap();
            for page in [3, 1] {
                let found = mapping.load_u64(page * 4096 + 8);
                assert_eq!(found, Ok(word_of(page as u32, 1)), "round {round}");
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

/// Never gives a page, and never says so.
struct Idle(AtomicU32);

impl FaultHandler for Idle {
    fn fault(&self, _: PageIndex, _: Access) -> Result<(), FaultError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn stale_dma(&self, _: PageIndex) {}
}

#[test]
fn an_access_that_waits_when_its_mapping_goes_ends_in_a_signal() {
    for mode in MODES {
        let output = run(
            "lifetimes::an_access_that_waits_when_its_mapping_goes_ends_in_a_signal",
            &format!("gone-{mode:?}"),
            || {
                let Some(mut mapping) = mapping(2, mode) else {
                    return;
                };
                let idle = Arc::new(Idle(AtomicU32::new(0)));
                mapping.attach(idle.clone()).unwrap();
                let address = mapping.as_ptr() as usize;
                let program = std::thread::spawn(move || {
                    let _attached = attach_thread().unwrap();
                    // SAFETY: the address is meant to trap.
                    unsafe { (address as *const u8).read_volatile() }
                });
                while idle.0.load(Ordering::Relaxed) < 3 {
                    std::thread::yield_now();
                }
                // The memory itself stays, for the memory manager.
                let mmu = mapping.mmu();
                drop(mapping);
                let _ = program.join();
                drop(mmu);
            },
        );
        if !words(&output).contains("skipped") {
            // In the faulting thread, the signal may be on its way already when the mapping goes.
            let may_be_sigbus = mode.faults == FaultMode::InThread;
            if !(may_be_sigbus && output.status.signal() == Some(libc::SIGBUS)) {
                assert_killed_by(&output, libc::SIGSEGV);
            }
        }
    }
}

#[test]
fn the_memory_manager_may_keep_the_memory_after_the_mapping() {
    for mode in MODES {
        let Some((mapping, fake)) = managed(4, mode) else {
            return;
        };
        let _attached = attach_thread().unwrap();
        for page in 0..4 {
            mapping.load_u64(page * 4096).unwrap();
        }
        let mmu = mapping.mmu();
        assert_eq!(fake.detach(PageRun::new(0, 2)), 2);
        drop(mapping);
        let mut buf = [0; PAGE_SIZE];
        mmu.read_detached(1, &mut buf);
        assert!(buf == pattern(1));
        mmu.free_detached(PageRun::new(0, 4)).unwrap();
        mmu.zap(PageRun::new(0, 4)).unwrap();
        assert!(!mmu.is_present(3));
    }
}

#[test]
fn an_access_to_a_poisoned_page_asks_the_manager_and_fails_with_its_reason() {
    let lost = FaultError::Lost {
        page: 1,
        cause: StoreError::Misplaced,
    };
    for mode in MODES {
        let Some((mapping, fake)) = managed(4, mode) else {
            return;
        };
        let _attached = attach_thread().unwrap();
        mapping.mmu().poison(PageRun::single(1)).unwrap();
        fake.refuse(1, lost);
        let failed = mapping.load_u64(4096 + 24);
        let expected = AccessError::Fault {
            offset: 4096 + 24,
            page: 1,
            error: lost,
        };
        assert_eq!(failed, Err(expected), "{mode:?}");
        assert_eq!(fake.nr_faults(), 1, "{mode:?}");
    }
}

#[test]
fn poison_that_stays_whatever_the_manager_says_is_an_error() {
    for mode in MODES {
        let Some(mut mapping) = mapping(2, mode) else {
            return;
        };
        let idle = Arc::new(Idle(AtomicU32::new(0)));
        mapping.attach(idle.clone()).unwrap();
        let _attached = attach_thread().unwrap();
        mapping.mmu().poison(PageRun::single(1)).unwrap();
        let failed = mapping.store_u64(4096, 1);
        let is_machine_error = matches!(
            failed,
            Err(AccessError::Fault {
                page: 1,
                error: FaultError::Machine(MmuError::Os { .. }),
                ..
            })
        );
        assert!(is_machine_error, "{mode:?}: {failed:?}");
        assert!(idle.0.load(Ordering::Relaxed) > 1, "{mode:?}");
    }
}
