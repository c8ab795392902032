//! Stores that lie, and frames that do not come.

use super::{Machine, Rng, World, offset_of, read_page, write_page};
use crate::addr::PageRun;
use crate::fault::{FaultError, StoreError};
use crate::gfp::Gfp;
use crate::limits::Limits;
use crate::mm_struct::Advice;
use crate::page::State;
use crate::primary_mmu::Access;
use crate::swap::Inject;
use core::time::Duration;

/// G13.
pub(super) fn a_lost_store_is_an_error_of_its_page(machine: &dyn Machine) {
    check_injected(machine, Inject::LoseStore { one_in: 8 });
}

/// G13.
pub(super) fn a_corrupt_slot_is_an_error_of_its_page(machine: &dyn Machine) {
    check_injected(machine, Inject::CorruptSlot { one_in: 8 });
}

fn check_injected(machine: &dyn Machine, fault: Inject) {
    const NR_PAGES: u32 = 512;
    let world = World::new(machine, 1024);
    let mm = world.memcg.new_mm("failing");
    let mapping = world.map(&mm, NR_PAGES);
    let vma = mapping.vma();
    let mut rng = Rng(13);
    let contents: Vec<_> = (0..NR_PAGES).map(|_| rng.half_compressible()).collect();
    for page in 0..NR_PAGES {
        write_page(&*mapping, page, &contents[page as usize]);
    }
    world.memcg.zswap().inject(fault);
    vma.advise(vma.all(), Advice::PageOut)
        .expect("nobody refuses");
    world.memcg.zswap().inject(Inject::None);
    let mut lost = 0;
    for page in 0..NR_PAGES {
        let mut found = vec![0; 4096];
        match mapping.read(offset_of(page), &mut found) {
            Ok(()) => assert!(
                found == contents[page as usize],
                "wrong data in page {page}"
            ),
            Err(FaultError::Lost { page: named, cause }) => {
                assert_eq!(named, page);
                // Where a store is lost, the slot may hold parts of what was there before.
                let is_told = match fault {
                    Inject::CorruptSlot { .. } => cause == StoreError::Corrupt,
                    _ => cause != StoreError::Unreadable,
                };
                assert!(is_told, "{fault:?}: {cause:?}");
                assert_eq!(vma.page_state(page), State::Poisoned);
                let again = mapping.write(offset_of(page), &[1]);
                assert_eq!(
                    again,
                    Err(FaultError::Lost { page, cause }),
                    "it stays lost"
                );
                lost += 1;
            }
            Err(error) => panic!("page {page}: {error}"),
        }
    }
    assert!((1..NR_PAGES).contains(&lost), "{lost} pages were lost");
    assert_eq!(world.memcg.stat().pages_lost, u64::from(lost));
    vma.advise(vma.all(), Advice::DontNeed)
        .expect("nobody refuses");
    assert_eq!(
        read_page(&*mapping, 7),
        vec![0; 4096],
        "lost pages can be given up"
    );
    write_page(&*mapping, 7, &[1]);
}

pub(super) fn a_fault_without_frames_ends_in_an_error(machine: &dyn Machine) {
    let mut limits = Limits::new(8 * 4096);
    limits.fault_deadline = Duration::from_millis(30);
    let world = World::with_limits(machine, limits);
    let mm = world.memcg.new_mm("starved");
    mm.set_oom_score_adj(-1000);
    let mapping = world.map(&mm, 16);
    let run = PageRun::new(0, 8);
    let pin = mapping
        .vma()
        .pin(run, Access::Write, Gfp::Kernel)
        .expect("eight frames");
    let starved = mapping.read(offset_of(9), &mut [0]);
    assert!(
        matches!(starved, Err(FaultError::NoFrame { .. })),
        "{starved:?}"
    );
    let starved = mapping
        .vma()
        .pin(PageRun::single(10), Access::Read, Gfp::NoWait);
    assert!(starved.is_err());
    drop(pin);
    mapping
        .read(offset_of(10), &mut [0])
        .expect("frames are free again");
}
