//! Threads that stand in for devices: what they meet absent is counted and never resolved.

use crate::fake::{MODES, managed, pattern};
use pinless_host::{AccessError, FaultMode, attach_thread, mark_engine_thread};
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::primary_mmu::{DmaFault, PrimaryMmu};

#[test]
fn an_access_to_an_absent_page_is_a_dma_fault_counted_once() {
    for mode in MODES {
        let Some((mapping, fake)) = managed(4, mode) else {
            return;
        };
        let mmu = mapping.mmu();
        let mut bytes = [0; 64];
        for nr in 1..=3 {
            assert_eq!(mmu.dma_read(100, &mut bytes), Err(DmaFault), "{mode:?}");
            assert_eq!(fake.nr_stale(), nr, "{mode:?}");
        }
        assert_eq!(mmu.dma_write(4096, &bytes), Err(DmaFault), "{mode:?}");
        assert_eq!(fake.nr_stale(), 4, "{mode:?}");
        assert_eq!(fake.nr_faults(), 0, "{mode:?}: nothing was resolved");
        assert_eq!(bytes, [0; 64]);
    }
}

#[test]
fn the_program_gets_the_page_that_a_device_was_refused() {
    for mode in MODES {
        let Some((mapping, fake)) = managed(4, mode) else {
            return;
        };
        let _attached = attach_thread().unwrap();
        let mmu = mapping.mmu();
        let mut bytes = [0; 64];
        assert_eq!(mmu.dma_read(4096, &mut bytes), Err(DmaFault));
        mapping.read_at(4096, &mut bytes).unwrap();
        assert!(bytes == pattern(1)[..64], "{mode:?}");
        // The page came for a read, so a write of a device's is stale too.
        assert_eq!(mmu.dma_write(4160, &[5; 64]), Err(DmaFault), "{mode:?}");
        mapping.store_u64(4096, 1 << 32).unwrap();
        assert_eq!(mmu.dma_write(4160, &[5; 64]), Ok(()), "{mode:?}");
        assert_eq!(mmu.dma_read(4160, &mut bytes), Ok(()));
        assert_eq!(bytes, [5; 64]);
        assert_eq!(fake.detach(PageRun::single(1)), 1);
        assert_eq!(mmu.dma_read(4160, &mut bytes), Err(DmaFault));
        mapping.read_at(4160, &mut bytes).unwrap();
        assert_eq!(bytes, [5; 64], "{mode:?}: after a round through standby");
        assert_eq!(fake.nr_stale(), 3, "{mode:?}");
    }
}

#[test]
fn a_marked_thread_is_refused_until_its_last_guard_goes() {
    for mode in MODES {
        let Some((mapping, fake)) = managed(4, mode) else {
            return;
        };
        let _attached = attach_thread().unwrap();
        let stale = Err(AccessError::StaleDma { offset: 8, page: 0 });
        let outer = mark_engine_thread();
        assert_eq!(mapping.load_u64(8), stale, "{mode:?}");
        let inner = mark_engine_thread();
        assert_eq!(mapping.load_u64(8), stale, "{mode:?}");
        drop(inner);
        assert_eq!(mapping.load_u64(8), stale, "{mode:?}");
        assert_eq!(fake.nr_faults(), 0, "{mode:?}");
        drop(outer);
        assert_eq!(mapping.load_u64(8), Ok(1), "{mode:?}");
        assert_eq!(fake.nr_stale(), 3, "{mode:?}");
    }
}

#[test]
fn a_device_and_a_program_on_one_page_keep_apart() {
    for mode in MODES {
        let Some((mapping, fake)) = managed(32, mode) else {
            return;
        };
        let mmu = mapping.mmu();
        let nr_refused = std::thread::scope(|scope| {
            let device = scope.spawn(|| {
                let mut bytes = [0; 8];
                let mut nr_refused = 0;
                for round in 0..2000_u64 {
                    let page = round % 32;
                    match mmu.dma_read(page * PAGE_SIZE as u64, &mut bytes) {
                        Ok(()) => assert_eq!(u64::from_ne_bytes(bytes), page << 32),
                        Err(DmaFault) => nr_refused += 1,
                    }
                }
                nr_refused
            });
            scope.spawn(|| {
                let _attached = attach_thread().unwrap();
                for round in 0..2000_u64 {
                    let page = round * 7 % 32;
                    assert_eq!(mapping.load_u64(page * PAGE_SIZE as u64), Ok(page << 32));
                    if round % 50 == 0 {
                        fake.detach(PageRun::new(0, 32));
                    }
                }
            });
            device.join().unwrap()
        });
        // A device that waits in the kernel for its refusal may see the program bring the page
        // back first: it is counted, and goes on.
        match mode.faults {
            FaultMode::Service => assert!(fake.nr_stale() >= nr_refused),
            FaultMode::InThread => assert_eq!(fake.nr_stale(), nr_refused),
        }
    }
}
