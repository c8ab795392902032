//! Memory that a kernel device holds: the machine says so, and the page stays.

use crate::fake::{mmu, pattern, skip};
use io_uring::IoUring;
use pinless_host::{FaultMode, HostMmu};
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::primary_mmu::{Access, Detached, PrimaryMmu};

/// A ring that holds some pages of the mapping as fixed buffers.
fn ring_holding(mmu: &HostMmu, runs: &[PageRun]) -> Option<IoUring> {
    let ring = match IoUring::new(4) {
        Ok(ring) => ring,
        Err(error) => {
            skip(&format!("io_uring: {error}"));
            return None;
        }
    };
    let buffers: Vec<_> = runs
        .iter()
        .map(|run| libc::iovec {
            iov_base: (mmu.base().0 as usize + run.first as usize * PAGE_SIZE) as *mut _,
            iov_len: run.len_bytes(),
        })
        .collect();
    // SAFETY: the buffers lie in the mapping, which outlives the ring in each test.
    match unsafe { ring.submitter().register_buffers(&buffers) } {
        Ok(()) => Some(ring),
        Err(error) => {
            skip(&format!("io_uring fixed buffers: {error}"));
            None
        }
    }
}

fn check(nr_pages: u32, pinned: &[PageRun], access: Access) {
    let Some(mmu) = mmu(nr_pages, FaultMode::InThread) else {
        return;
    };
    let run = PageRun::new(0, nr_pages);
    for page in run.pages() {
        mmu.map_filled(page, &pattern(page), Access::Write).unwrap();
    }
    let Some(ring) = ring_holding(&mmu, pinned) else {
        return;
    };
    mmu.protect(run, access).unwrap();
    let is_pinned = |page| pinned.iter().any(|run| run.contains(page));
    for round in 0..2 {
        let mut outcome = vec![Detached::Hole; nr_pages as usize];
        mmu.detach(run, &mut outcome).unwrap();
        for (page, outcome) in run.pages().zip(&outcome) {
            let expected = if is_pinned(page) {
                Detached::Busy
            } else {
                Detached::Done
            };
            assert_eq!(*outcome, expected, "page {page} round {round}");
            assert_eq!(mmu.is_present(page), is_pinned(page), "page {page}");
        }
        for page in run.pages().filter(|page| !is_pinned(*page)) {
            mmu.reattach(PageRun::single(page)).unwrap();
        }
    }
    ring.submitter().unregister_buffers().unwrap();
    // The kernel lets go of the pages some time after the call, on a worker of its own.
    let mut outcome = vec![Detached::Busy; nr_pages as usize];
    let mut left = run;
    while left.nr > 0 {
        let outcome = &mut outcome[left.first as usize..];
        mmu.detach(left, outcome).unwrap();
        let nr_done = outcome.iter().take_while(|o| **o == Detached::Done).count() as u32;
        // What came out behind a page that is still held goes back, for the next attempt.
        for page in left.pages().skip(nr_done as usize) {
            if outcome[(page - left.first) as usize] == Detached::Done {
                mmu.reattach(PageRun::single(page)).unwrap();
            }
        }
        left = PageRun::new(left.first + nr_done, left.nr - nr_done);
        std::thread::yield_now();
    }
    let mut buf = [0; PAGE_SIZE];
    for page in run.pages() {
        mmu.read_detached(page, &mut buf);
        assert!(buf == pattern(page), "page {page}");
    }
}

#[test]
fn pages_of_a_fixed_buffer_are_busy_until_it_is_unregistered() {
    for access in [Access::Write, Access::Read] {
        check(1, &[PageRun::single(0)], access);
        check(64, &[PageRun::single(0)], access);
        check(64, &[PageRun::single(63)], access);
        check(64, &[PageRun::new(10, 3), PageRun::single(40)], access);
        check(200, &[PageRun::new(30, 100)], access);
        check(40, &[PageRun::new(0, 40)], access);
    }
}
