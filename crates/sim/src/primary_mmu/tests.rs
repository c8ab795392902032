//! Tests of the simulated MMU: what it does, and which misuse it names.

use super::{MachineFaults, SimMmu};
use crate::{Frames, Sim};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use lockdep::sync::Mutex;
use pinless_mm::addr::{PAGE_SIZE, PageBuf, PageIndex, PageRun, Vaddr};
use pinless_mm::fault::{FaultError, FaultHandler, StoreError};
use pinless_mm::primary_mmu::{Access, Detached, DmaFault, MmuError, PrimaryMmu};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

const NR_PAGES: u32 = 8;
const ALL: PageRun = PageRun::new(0, NR_PAGES);

fn machine() -> (Arc<Frames>, Arc<SimMmu>) {
    let frames = Frames::new(32);
    let mmu = SimMmu::new(Vaddr(0x10_0000), NR_PAGES, &frames);
    (frames, mmu)
}

fn page_of(byte: u8) -> PageBuf {
    [byte; PAGE_SIZE]
}

fn detach(mmu: &SimMmu, run: PageRun) -> Vec<Detached> {
    let mut outcome = vec![Detached::Hole; run.nr as usize];
    mmu.detach(run, &mut outcome).expect("nothing is injected");
    outcome
}

/// Gives each page as a kernel without reclaim would, and counts.
struct Demand<'a> {
    mmu: &'a SimMmu,
    nr_faults: AtomicU64,
}

impl<'a> Demand<'a> {
    fn of(mmu: &'a SimMmu) -> Self {
        let nr_faults = AtomicU64::new(0);
        Self { mmu, nr_faults }
    }
}

impl FaultHandler for Demand<'_> {
    fn fault(&self, page: PageIndex, access: Access) -> Result<(), FaultError> {
        self.nr_faults.fetch_add(1, Relaxed);
        if self.mmu.is_present(page) {
            // For a read somebody else was faster.
            if access == Access::Write {
                self.mmu.protect(PageRun::single(page), Access::Write)?;
            }
        } else if self.mmu.is_in_slot(page) {
            self.mmu.reattach(PageRun::single(page))?;
        } else {
            match self.mmu.map_zero(PageRun::single(page)) {
                // What the poison of this test stands for.
                Err(MmuError::ForeignFill { page }) => {
                    let cause = StoreError::Corrupt;
                    return Err(FaultError::Lost { page, cause });
                }
                result => result?,
            }
        }
        Ok(())
    }

    fn stale_dma(&self, _page: PageIndex) {}
}

#[test]
fn pages_go_from_their_address_to_their_slot_and_back() {
    let (frames, mmu) = machine();
    mmu.map_zero(PageRun::new(0, 2)).unwrap();
    mmu.map_filled(2, &page_of(7), Access::Read).unwrap();
    assert_eq!((frames.nr_used(), mmu.peek(1)), (3, Some(page_of(0))));
    use Detached::{Done, Hole};
    assert_eq!(detach(&mmu, PageRun::new(0, 4)), [Done, Done, Done, Hole]);
    // Again: it is where it should be already.
    assert_eq!(detach(&mmu, PageRun::new(2, 2)), [Done, Hole]);
    assert_eq!((mmu.peek(2), mmu.is_in_slot(2)), (None, true));
    let mut contents = page_of(1);
    mmu.read_detached(2, &mut contents);
    assert!(contents == page_of(7));
    mmu.reattach(PageRun::new(1, 2)).unwrap();
    assert_eq!((mmu.peek(2), mmu.is_in_slot(2)), (Some(page_of(7)), false));
    mmu.free_detached(PageRun::new(0, 2)).unwrap();
    assert_eq!(frames.nr_used(), 2);
    mmu.zap(ALL).unwrap();
    assert_eq!((frames.nr_used(), frames.nr_used_peak()), (0, 3));
}

#[test]
fn what_others_put_there_is_named() {
    let (frames, mmu) = machine();
    mmu.map_filled(1, &page_of(1), Access::Write).unwrap();
    let foreign = Err(MmuError::ForeignFill { page: 1 });
    assert_eq!(mmu.map_filled(1, &page_of(2), Access::Write), foreign);
    assert_eq!(mmu.map_zero(PageRun::new(0, 3)), foreign);
    assert_eq!((mmu.is_present(0), mmu.is_present(2)), (true, false));
    assert_eq!(detach(&mmu, PageRun::single(1)), [Detached::Done]);
    mmu.foreign_fill(1, &page_of(3));
    assert_eq!(mmu.reattach(PageRun::single(1)), foreign);
    assert_eq!((mmu.peek(1), mmu.is_in_slot(1)), (Some(page_of(3)), true));
    mmu.zap(PageRun::single(1)).unwrap();
    mmu.reattach(PageRun::single(1)).unwrap();
    assert_eq!(mmu.peek(1), Some(page_of(1)));
    mmu.foreign_discard(ALL);
    assert_eq!((frames.nr_used(), mmu.is_present(1)), (0, false));
}

#[test]
fn the_processor_faults_until_it_has_what_it_needs() {
    let (_, mmu) = machine();
    let demand = Demand::of(&mmu);
    let nr_faults = || demand.nr_faults.swap(0, Relaxed);
    let mut four = [9; 4];
    mmu.cpu_read(&demand, 4094, &mut four).unwrap();
    assert_eq!((four, nr_faults()), ([0; 4], 2));
    mmu.cpu_write(&demand, 4094, &[1, 2, 3, 4]).unwrap();
    assert_eq!(nr_faults(), 0);
    // A page filled for reading traps at the first write, and at no other.
    mmu.map_filled(2, &page_of(5), Access::Read).unwrap();
    mmu.cpu_read(&demand, 8192, &mut four).unwrap();
    assert_eq!((four, nr_faults()), ([5; 4], 0));
    mmu.cpu_write(&demand, 8192, &[6]).unwrap();
    mmu.cpu_write(&demand, 8193, &[7]).unwrap();
    assert_eq!(nr_faults(), 1);
    mmu.protect(ALL, Access::Read).unwrap();
    assert_eq!(mmu.dma_write(8192, &[8]), Err(DmaFault));
    mmu.cpu_write(&demand, 8194, &[8]).unwrap();
    assert_eq!(
        (mmu.peek(2).unwrap()[..4].to_vec(), nr_faults()),
        (vec![6, 7, 8, 5], 1)
    );
    // A page that comes back from its slot does not trap, whatever it did before.
    mmu.protect(ALL, Access::Read).unwrap();
    detach(&mmu, PageRun::single(0));
    mmu.cpu_read(&demand, 4094, &mut four).unwrap();
    assert_eq!((four, nr_faults()), ([1, 2, 3, 4], 1));
    mmu.cpu_write(&demand, 0, &[1]).unwrap();
    assert_eq!(nr_faults(), 0);
}

#[test]
fn poison_is_an_error_until_it_is_zapped() {
    let (_, mmu) = machine();
    let demand = Demand::of(&mmu);
    mmu.map_zero(PageRun::single(0)).unwrap();
    mmu.poison(PageRun::new(0, 2)).unwrap();
    let mut byte = [0];
    assert_eq!(mmu.cpu_read(&demand, 0, &mut byte), Ok(()));
    let cause = StoreError::Corrupt;
    let lost = Err(FaultError::Lost { page: 1, cause });
    assert_eq!(mmu.cpu_read(&demand, 4096, &mut byte), lost);
    assert_eq!(mmu.cpu_write(&demand, 4096, &byte), lost);
    let foreign = Err(MmuError::ForeignFill { page: 1 });
    assert_eq!(mmu.map_filled(1, &page_of(1), Access::Read), foreign);
    mmu.zap(PageRun::single(1)).unwrap();
    assert_eq!(mmu.cpu_read(&demand, 4096, &mut byte), Ok(()));
}

/// G11, as the machine sees it.
#[test]
fn a_pinned_frame_stays_whatever_happens_to_its_page() {
    let (frames, mmu) = machine();
    assert!(mmu.kernel_pin(0).is_none(), "a hole cannot be pinned");
    mmu.map_filled(0, &page_of(1), Access::Write).unwrap();
    let first = mmu.kernel_pin(0).unwrap();
    let second = mmu.kernel_pin(0).unwrap();
    assert_eq!(detach(&mmu, PageRun::new(0, 1)), [Detached::Busy]);
    mmu.dma_write(5, &[2]).unwrap();
    assert_eq!((first.read()[5], first.is_mapped()), (2, true));
    mmu.zap(PageRun::single(0)).unwrap();
    mmu.map_filled(0, &page_of(3), Access::Write).unwrap();
    let third = mmu.kernel_pin(0).unwrap();
    assert_eq!((first.read()[5], first.is_mapped()), (2, false));
    assert_eq!((third.read()[5], third.is_mapped()), (3, true));
    assert_eq!(frames.nr_used(), 2);
    drop(first);
    assert_eq!((second.read()[5], frames.nr_used()), (2, 2));
    drop(second);
    assert_eq!(frames.nr_used(), 1);
    assert_eq!(detach(&mmu, PageRun::new(0, 1)), [Detached::Busy]);
    drop(third);
    assert_eq!(detach(&mmu, PageRun::new(0, 1)), [Detached::Done]);
}

#[test]
fn a_device_reads_and_writes_what_is_there() {
    let (_, mmu) = machine();
    mmu.map_filled(1, &page_of(4), Access::Write).unwrap();
    let mut bytes = [0; 2];
    assert_eq!(mmu.dma_write(4096 + 10, &[5]), Ok(()));
    assert_eq!(mmu.dma_read(4096 + 9, &mut bytes), Ok(()));
    assert_eq!(bytes, [4, 5]);
    detach(&mmu, ALL);
    assert_eq!(mmu.dma_read(4096, &mut bytes), Err(DmaFault));
    assert_eq!(mmu.dma_write(4096, &bytes), Err(DmaFault));
}

#[test]
fn injected_faults_stay_within_the_contract() {
    let (frames, mmu) = machine();
    mmu.map_zero(ALL).unwrap();
    let count = |outcome: &[Detached], what| outcome.iter().filter(|o| **o == what).count();
    let busy_one_in = |one_in, seed| MachineFaults {
        seed,
        busy_one_in: one_in,
        ..MachineFaults::default()
    };
    mmu.inject(busy_one_in(1, 0));
    assert_eq!(count(&detach(&mmu, ALL), Detached::Busy), 8);
    let (mut nr_busy, mut nr_failed) = (0, 0);
    for seed in 0..100 {
        mmu.inject(busy_one_in(4, seed));
        nr_busy += count(&detach(&mmu, ALL), Detached::Busy);
        mmu.foreign_discard(ALL);
        mmu.free_detached(ALL).unwrap();
        mmu.inject(MachineFaults::default());
        mmu.map_zero(ALL).unwrap();
        mmu.inject(MachineFaults {
            seed,
            detach_fails_one_in: 8,
            ..MachineFaults::default()
        });
        let mut outcome = [Detached::Hole; NR_PAGES as usize];
        if let Err(error) = mmu.detach(ALL, &mut outcome) {
            let MmuError::Gone { page } = error else {
                panic!("{error}");
            };
            let (before, after) = outcome.split_at(page as usize);
            assert_eq!(count(before, Detached::Done), before.len());
            assert_eq!(count(after, Detached::Busy), after.len());
            nr_failed += 1;
        }
        mmu.inject(MachineFaults::default());
        detach(&mmu, ALL);
        mmu.reattach(ALL).unwrap();
    }
    assert!(
        (120..280).contains(&nr_busy),
        "{nr_busy} of 800 pages were busy"
    );
    assert!(
        (40..90).contains(&nr_failed),
        "{nr_failed} of 100 detaches failed"
    );
    mmu.zap(ALL).unwrap();
    mmu.inject(MachineFaults {
        no_memory_one_in: 1,
        ..MachineFaults::default()
    });
    assert_eq!(mmu.map_zero(ALL), Err(MmuError::NoMemory));
    assert_eq!(frames.nr_used(), 0);
}

#[test]
fn a_machine_has_so_many_frames() {
    let frames = Frames::new(3);
    let mmu = SimMmu::new(Vaddr(0), NR_PAGES, &frames);
    assert_eq!(mmu.map_zero(ALL), Err(MmuError::NoMemory));
    assert_eq!(
        (frames.nr_used(), mmu.is_present(2), mmu.is_present(3)),
        (3, true, false)
    );
    drop(mmu);
    assert_eq!(frames.nr_used(), 0);
}

/// Canary: misuse has to be named.
#[test]
fn a_broken_contract_is_named() {
    #[track_caller]
    fn check(misuse: impl FnOnce(&SimMmu), expected: &str) {
        let (_, mmu) = machine();
        mmu.map_zero(PageRun::new(0, 4)).unwrap();
        detach(&mmu, PageRun::new(0, 2));
        let payload = panic::catch_unwind(AssertUnwindSafe(|| misuse(&mmu)));
        let payload = payload.expect_err("the contract was broken");
        let message = payload
            .downcast::<String>()
            .expect("a breach has a message");
        assert_eq!(
            *message,
            format!("broken contract of PrimaryMmu: {expected}")
        );
        // Nothing stays locked, and no operation under way.
        mmu.zap(ALL).unwrap();
    }
    let one = PageRun::single;
    check(
        |mmu| _ = mmu.reattach(PageRun::new(1, 2)),
        "a reattach of page 2, whose slot is empty",
    );
    check(
        |mmu| _ = mmu.map_zero(one(1)),
        "a fill of page 1, whose contents are in its slot",
    );
    check(
        |mmu| mmu.read_detached(2, &mut page_of(0)),
        "a read of the slot of page 2, which is empty",
    );
    check(
        |mmu| _ = mmu.zap(PageRun::new(7, 2)),
        "zap of pages 7..9, which is not in the mapping",
    );
    check(
        |mmu| {
            mmu.foreign_fill(0, &page_of(1));
            detach(mmu, one(0));
        },
        "a detach of page 0, whose slot is taken",
    );
}

/// Canary: two operations on one page at the same time.
#[test]
fn operations_that_meet_are_found() {
    let run = Sim::find(0..200, |sim| {
        let (_, mmu) = machine();
        let other = Arc::clone(&mmu);
        sim.spawn("reaper", move || _ = other.zap(PageRun::new(2, 1)));
        let _ = mmu.map_zero(PageRun::new(0, 4));
        sim.join_all();
    });
    let run = run
        .expect("the zap can come in the middle of the fill")
        .to_string();
    assert!(run.contains("broken contract of PrimaryMmu: "), "{run}");
    assert!(run.contains(" met "), "{run}");
    Sim::check(0..200, |sim| {
        let (_, mmu) = machine();
        let other = Arc::clone(&mmu);
        sim.spawn("reaper", move || _ = other.zap(PageRun::new(4, 1)));
        let _ = mmu.map_zero(PageRun::new(0, 4));
        sim.join_all();
    });
}

/// A manager of one lock, as simple as can be: it serves faults and takes pages away.
struct OneLock {
    mmu: Arc<SimMmu>,
    lock: Mutex<()>,
}

impl FaultHandler for OneLock {
    fn fault(&self, page: PageIndex, access: Access) -> Result<(), FaultError> {
        let _guard = self.lock.lock();
        Demand::of(&self.mmu).fault(page, access)
    }

    fn stale_dma(&self, _page: PageIndex) {}
}

/// G10 for the machine alone: no write is lost between an address and its slot.
#[test]
fn no_write_is_lost_while_pages_come_and_go() {
    Sim::check(0..200, |sim| {
        let (_, mmu) = machine();
        let lock = Mutex::new("manager", ());
        let manager = Arc::new(OneLock { mmu, lock });
        for writer in 0..2 {
            let manager = Arc::clone(&manager);
            sim.spawn("writer", move || {
                let mut seen = [0];
                for n in 0..6 {
                    let offset = writer * 64;
                    manager.mmu.cpu_read(&*manager, offset, &mut seen).unwrap();
                    assert_eq!(seen, [n]);
                    manager.mmu.cpu_write(&*manager, offset, &[n + 1]).unwrap();
                }
            });
        }
        for _ in 0..6 {
            let _guard = manager.lock.lock();
            detach(&manager.mmu, PageRun::new(0, 2));
        }
        sim.join_all();
    });
}
