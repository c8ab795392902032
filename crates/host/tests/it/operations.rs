//! Each operation of the primary MMU, on real memory.

use crate::fake::{Memory, Side, mmu, pattern};
use pinless_host::{FaultMode, HostMmu};
use pinless_mm::addr::{PAGE_SIZE, PageIndex, PageRun};
use pinless_mm::primary_mmu::{Access, Detached, DmaFault, MapStopped, MmuError, PrimaryMmu};
use std::sync::Arc;

fn in_thread(nr_pages: u32) -> Option<HostMmu> {
    mmu(nr_pages, FaultMode::InThread)
}

/// Tries `test` on bare mappings of both kinds.
fn on_both(nr_pages: u32, test: impl Fn(HostMmu)) {
    for memory in [Memory::Private, Memory::Shared] {
        let faults = FaultMode::InThread;
        mmu(nr_pages, Side { memory, faults })
            .into_iter()
            .for_each(&test);
    }
}

fn detach(mmu: &HostMmu, run: PageRun) -> Vec<Detached> {
    let mut outcome = vec![Detached::Busy; run.nr as usize];
    mmu.detach(run, &mut outcome).unwrap();
    outcome
}

fn fill(mmu: &HostMmu, pages: impl IntoIterator<Item = PageIndex>) {
    for page in pages {
        mmu.map_filled(page, &pattern(page), Access::Write).unwrap();
    }
}

/// What is at a page's address. For pages that are there.
#[track_caller]
fn check_contents(mmu: &HostMmu, page: PageIndex, expected: &[u8]) {
    assert!(mmu.is_present(page), "page {page}");
    // SAFETY: the page is present, in a mapping that `mmu` keeps, and nobody else uses it.
    let found = unsafe {
        let at = (mmu.base().0 as usize + page as usize * PAGE_SIZE) as *const u8;
        std::slice::from_raw_parts(at, PAGE_SIZE).to_vec()
    };
    assert!(found == expected, "contents of page {page}");
}

#[test]
fn zero_pages_are_zero_and_a_second_fill_is_foreign() {
    on_both(8, |mmu| {
        mmu.map_zero(PageRun::new(2, 3)).unwrap();
        for page in 2..5 {
            check_contents(&mmu, page, &[0; PAGE_SIZE]);
        }
        assert!(!mmu.is_present(1) && !mmu.is_present(5));
        assert_eq!(
            mmu.map_zero(PageRun::new(0, 8)),
            Err(MmuError::ForeignFill { page: 2 })
        );
        check_contents(&mmu, 1, &[0; PAGE_SIZE]);
        assert_eq!(
            mmu.map_filled(3, &pattern(3), Access::Read),
            Err(MmuError::ForeignFill { page: 3 })
        );
        check_contents(&mmu, 3, &[0; PAGE_SIZE]);
    });
}

#[test]
fn detached_pages_keep_their_contents_and_holes_are_named() {
    on_both(200, |mmu| {
        fill(&mmu, (0..200).filter(|page| page % 7 != 3));
        let outcome = detach(&mmu, PageRun::new(0, 200));
        for (page, outcome) in outcome.iter().enumerate() {
            let expected = if page % 7 == 3 {
                Detached::Hole
            } else {
                Detached::Done
            };
            assert_eq!(*outcome, expected, "page {page}");
            assert!(!mmu.is_present(page as u32));
        }
        let mut buf = [0; PAGE_SIZE];
        for page in (0..200).filter(|page| page % 7 != 3) {
            mmu.read_detached(page, &mut buf);
            assert!(buf == pattern(page), "slot of page {page}");
        }
        for run in [PageRun::new(0, 3), PageRun::new(4, 6), PageRun::new(11, 6)] {
            mmu.reattach(run).unwrap();
            for page in run.pages() {
                check_contents(&mmu, page, &pattern(page));
            }
        }
    });
}

#[test]
fn a_full_run_detaches_and_returns_in_one_piece() {
    on_both(512, |mmu| {
        let run = PageRun::new(0, 512);
        fill(&mmu, run.pages());
        assert!(detach(&mmu, run).iter().all(|o| *o == Detached::Done));
        mmu.reattach(run).unwrap();
        for page in run.pages() {
            check_contents(&mmu, page, &pattern(page));
        }
        mmu.map_zero(PageRun::new(0, 0)).unwrap();
        assert!(detach(&mmu, PageRun::new(5, 0)).is_empty());
    });
}

#[test]
fn write_protected_and_zero_pages_detach_too() {
    on_both(4, |mmu| {
        mmu.map_filled(0, &pattern(0), Access::Read).unwrap();
        mmu.map_filled(1, &pattern(1), Access::Write).unwrap();
        mmu.map_zero(PageRun::new(2, 2)).unwrap();
        mmu.protect(PageRun::new(0, 4), Access::Read).unwrap();
        let run = PageRun::new(0, 4);
        assert_eq!(detach(&mmu, run), [Detached::Done; 4]);
        mmu.reattach(run).unwrap();
        // Writable without a trap: a device's write stands for the program's.
        for page in run.pages() {
            let offset = u64::from(page) * PAGE_SIZE as u64;
            assert_eq!(mmu.dma_write(offset, &[7; 16]), Ok(()), "page {page}");
        }
    });
}

/// The kernel answers EEXIST, or ENOENT, and a negative count: nothing moved, it says, and the
/// pages are where they should be. Here because the caller asks twice; on Linux 6.18 also when a
/// writer races with the move.
#[test]
fn a_move_that_is_denied_although_it_happened_is_found_out() {
    on_both(64, |mmu| {
        let run = PageRun::new(0, 64);
        fill(&mmu, run.pages());
        assert_eq!(detach(&mmu, run), [Detached::Done; 64]);
        assert_eq!(detach(&mmu, run), [Detached::Done; 64]);
        // Some back, so that the run is mixed.
        mmu.reattach(PageRun::new(20, 10)).unwrap();
        mmu.reattach(PageRun::new(50, 14)).unwrap();
        assert_eq!(detach(&mmu, run), [Detached::Done; 64]);
        mmu.reattach(PageRun::new(3, 5)).unwrap();
        mmu.reattach(run).unwrap();
        mmu.reattach(run).unwrap();
        for page in run.pages() {
            check_contents(&mmu, page, &pattern(page));
        }
    });
}

#[test]
fn a_foreign_page_keeps_the_stored_one_in_its_slot() {
    let Some(mmu) = in_thread(4) else { return };
    let run = PageRun::new(0, 4);
    fill(&mmu, run.pages());
    assert_eq!(detach(&mmu, run), [Detached::Done; 4]);
    mmu.map_zero(PageRun::single(2)).unwrap();
    assert_eq!(mmu.reattach(run), Err(MmuError::ForeignFill { page: 2 }));
    check_contents(&mmu, 0, &pattern(0));
    check_contents(&mmu, 1, &pattern(1));
    check_contents(&mmu, 2, &[0; PAGE_SIZE]);
    let mut buf = [0; PAGE_SIZE];
    mmu.read_detached(2, &mut buf);
    assert!(buf == pattern(2), "the slot of page 2");
    mmu.zap(PageRun::single(2)).unwrap();
    mmu.reattach(PageRun::new(2, 2)).unwrap();
    check_contents(&mmu, 2, &pattern(2));
    mmu.zap(PageRun::single(2)).unwrap();
    assert_eq!(
        mmu.reattach(PageRun::single(2)),
        Err(MmuError::Gone { page: 2 }),
        "an empty slot"
    );
}

/// The frames of pages 0 and 1 hold pages 4 and 5 next, and those of 2 and 3 stay as they are.
#[test]
fn frames_go_from_slots_to_other_pages() {
    let Some(mmu) = in_thread(8) else { return };
    let reuse = mmu.reuse().expect("anonymous memory");
    fill(&mmu, 0..4);
    assert_eq!(detach(&mmu, PageRun::new(0, 4)), [Detached::Done; 4]);
    reuse.write_detached(0, &pattern(4));
    reuse.write_detached(1, &pattern(5));
    assert_eq!(reuse.map_detached(PageRun::new(4, 2), 0), Ok(()));
    check_contents(&mmu, 4, &pattern(4));
    check_contents(&mmu, 5, &pattern(5));
    let offset = 4 * PAGE_SIZE as u64;
    assert_eq!(mmu.dma_write(offset, &[7; 16]), Ok(()), "without a trap");
    mmu.map_zero(PageRun::single(7)).unwrap();
    let stopped = MapStopped {
        nr_done: 1,
        error: MmuError::ForeignFill { page: 7 },
    };
    assert_eq!(reuse.map_detached(PageRun::new(6, 2), 2), Err(stopped));
    check_contents(&mmu, 6, &pattern(2));
    check_contents(&mmu, 7, &[0; PAGE_SIZE]);
    let mut buf = [0; PAGE_SIZE];
    mmu.read_detached(3, &mut buf);
    assert!(buf == pattern(3), "the slot of page 3");
    let stopped = MapStopped {
        nr_done: 0,
        error: MmuError::Gone { page: 0 },
    };
    let empty = reuse.map_detached(PageRun::single(0), 0);
    assert_eq!(empty, Err(stopped), "an empty slot");
}

/// A zero page has no frame: what is written over it gets one.
#[test]
fn a_slot_with_zeros_can_be_written() {
    let Some(mmu) = in_thread(2) else { return };
    let reuse = mmu.reuse().expect("anonymous memory");
    mmu.map_zero(PageRun::single(0)).unwrap();
    assert_eq!(detach(&mmu, PageRun::single(0)), [Detached::Done]);
    reuse.write_detached(0, &pattern(1));
    assert_eq!(reuse.map_detached(PageRun::single(1), 0), Ok(()));
    check_contents(&mmu, 1, &pattern(1));
    mmu.map_zero(PageRun::single(0)).unwrap();
    check_contents(&mmu, 0, &[0; PAGE_SIZE]);
}

#[test]
fn freed_slots_and_zapped_pages_are_holes() {
    on_both(8, |mmu| {
        let run = PageRun::new(0, 8);
        fill(&mmu, run.pages());
        mmu.zap(PageRun::new(0, 2)).unwrap();
        assert_eq!(
            detach(&mmu, PageRun::new(0, 4)),
            [
                Detached::Hole,
                Detached::Hole,
                Detached::Done,
                Detached::Done
            ]
        );
        mmu.free_detached(PageRun::new(0, 4)).unwrap();
        fill(&mmu, 0..4);
        assert_eq!(detach(&mmu, run), [Detached::Done; 8]);
    });
}

#[test]
fn poison_ends_accesses_and_a_zap_removes_it() {
    let Some((mapping, fake)) = crate::fake::managed(4, FaultMode::InThread) else {
        return;
    };
    let mmu = mapping.mmu();
    mmu.map_zero(PageRun::single(1)).unwrap();
    mmu.poison(PageRun::new(0, 3)).unwrap();
    let mut byte = [9];
    assert_eq!(mmu.dma_read(0, &mut byte), Err(DmaFault));
    assert_eq!(mmu.dma_read(4096, &mut byte), Ok(()), "a page was there");
    assert_eq!(byte, [0]);
    assert_eq!(mmu.dma_read(8192, &mut byte), Err(DmaFault));
    assert_eq!(fake.nr_stale(), 2);
    assert_eq!(detach(&mmu, PageRun::single(0)), [Detached::Busy]);
    mmu.zap(PageRun::new(0, 3)).unwrap();
    mmu.map_zero(PageRun::new(0, 3)).unwrap();
    assert_eq!(mmu.dma_read(8192, &mut byte), Ok(()));
}

#[test]
fn a_range_changed_behind_the_back_is_gone() {
    // In a process of its own: the hole must not become somebody else's memory.
    let output = crate::child::run(
        "operations::a_range_changed_behind_the_back_is_gone",
        "hole",
        punch_and_try_everything,
    );
    crate::child::assert_ended_well(&output);
}

fn punch_and_try_everything() {
    let Some(mmu) = in_thread(8) else { return };
    fill(&mmu, 0..8);
    let page_4 = (mmu.base().0 as usize + 4 * PAGE_SIZE) as *mut libc::c_void;
    // SAFETY: the range is a page of the mapping, to which no Rust reference exists; the mapping
    // of the test is given up after this.
    unsafe { libc::munmap(page_4, PAGE_SIZE) };
    let mut outcome = [Detached::Busy; 8];
    let result = mmu.detach(PageRun::new(0, 8), &mut outcome);
    assert!(matches!(result, Err(MmuError::Gone { .. })), "{result:?}");
    for (page, outcome) in outcome.iter().enumerate() {
        // Whatever it says must be so.
        let is_there = mmu.is_present(page as u32);
        assert_eq!(*outcome == Detached::Busy, is_there, "page {page}");
    }
    let gone = |result| matches!(result, Err(MmuError::Gone { .. }));
    assert!(gone(mmu.zap(PageRun::new(3, 2))), "zap");
    assert!(
        gone(mmu.protect(PageRun::new(4, 1), Access::Read)),
        "protect"
    );
    assert!(gone(mmu.map_zero(PageRun::single(4))), "map_zero");
    assert!(gone(mmu.poison(PageRun::single(4))), "poison");
    assert!(
        gone(mmu.map_filled(4, &pattern(4), Access::Read)),
        "map_filled"
    );
}

#[test]
fn mappings_do_not_share_anything() {
    let Some(first) = in_thread(4) else { return };
    let second = Arc::new(in_thread(4).unwrap());
    fill(&first, 0..4);
    fill(&second, 0..4);
    assert_eq!(detach(&first, PageRun::new(0, 4)), [Detached::Done; 4]);
    drop(first);
    for page in 0..4 {
        check_contents(&second, page, &pattern(page));
    }
}
