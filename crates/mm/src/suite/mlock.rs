//! Locked memory and cold memory.

use super::oom::{leak, limits};
use super::{Machine, Mapping, Rng, World, read_page, write_page};
use crate::addr::PageRun;
use crate::fault::FaultError;
use crate::mm_struct::{Advice, AdviseError, MlockError};
use crate::page::State;
use core::ops::Range;

fn check_states(mapping: &dyn Mapping, pages: Range<u32>, state: State) {
    for page in pages {
        assert_eq!(mapping.vma().page_state(page), state, "page {page}");
    }
}

/// Kernel counterpart: `mlock(2)`; a locked page is passed over, whatever else needs its frame.
pub(super) fn locked_pages_are_never_evicted(machine: &dyn Machine) {
    let world = World::new(machine, 24);
    let mm = world.memcg.new_mm("locked");
    let mapping = world.map(&mm, 128);
    let vma = mapping.vma();
    let mut rng = Rng(41);
    let contents: Vec<_> = (0..128).map(|_| rng.half_compressible()).collect();
    write_page(&*mapping, 65, &contents[65]);
    vma.advise(vma.all(), Advice::PageOut)
        .expect("nobody refuses");
    let lock = vma.mlock(PageRun::new(64, 8)).expect("there is room");
    assert_eq!(vma.nr_locked(), 8);
    for page in (0..128).filter(|page| *page != 65) {
        write_page(&*mapping, page, &contents[page as usize]);
    }
    check_states(&*mapping, 64..72, State::Resident);
    for advice in [Advice::PageOut, Advice::Cold] {
        vma.advise(vma.all(), advice)
            .expect("locked pages are passed over");
        check_states(&*mapping, 64..72, State::Resident);
    }
    let refused = vma.advise(vma.all(), Advice::DontNeed);
    assert!(
        matches!(refused, Err(AdviseError::Locked { page: 64 })),
        "{refused:?}"
    );
    for page in 0..128 {
        assert!(
            read_page(&*mapping, page) == contents[page as usize],
            "page {page}"
        );
    }
    drop(lock);
    assert_eq!(vma.nr_locked(), 0);
    // A page that a worker is putting away just now is passed over.
    world.wait_until("nothing is locked in any more", || {
        vma.advise(vma.all(), Advice::PageOut)
            .expect("nobody refuses");
        (0..128).all(|page| vma.page_state(page) == State::Swapped)
    });
    let refused = vma.mlock(PageRun::new(127, 2));
    assert!(
        matches!(refused, Err(MlockError::OutOfRange { nr_pages: 128, .. })),
        "{refused:?}"
    );
}

pub(super) fn a_lock_ends_with_the_last_that_covers_a_page(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("nested");
    let mapping = world.map(&mm, 16);
    let vma = mapping.vma();
    let lock = |first, nr| vma.mlock(PageRun::new(first, nr)).expect("there is room");
    let (wide, same, inner) = (lock(0, 8), lock(0, 8), lock(2, 2));
    let page_out = || {
        vma.advise(vma.all(), Advice::PageOut)
            .expect("nobody refuses")
    };
    drop(wide);
    page_out();
    check_states(&*mapping, 0..8, State::Resident);
    drop(same);
    page_out();
    check_states(&*mapping, 0..2, State::Swapped);
    check_states(&*mapping, 2..4, State::Resident);
    check_states(&*mapping, 4..8, State::Swapped);
    assert_eq!(vma.nr_locked(), 2);
    drop(inner);
    page_out();
    check_states(&*mapping, 2..4, State::Swapped);
}

/// A lock protects from reclaim, not from the end of its owner.
pub(super) fn n73_the_reaper_takes_locked_pages(machine: &dyn Machine) {
    let world = World::with_limits(machine, limits(32));
    let mm = world.memcg.new_mm("victim");
    let mapping = world.map(&mm, 512);
    let lock = mapping
        .vma()
        .mlock(PageRun::new(0, 4))
        .expect("there is room");
    leak(&*mapping, 512, 42);
    world.wait_until_reaped();
    assert_eq!((mm.nr_frames(), mm.nr_swapped()), (0, 0));
    assert_eq!(mapping.vma().nr_locked(), 0);
    let refused = mapping.vma().mlock(PageRun::new(0, 4));
    let killed = MlockError::Fault {
        page: 0,
        error: FaultError::Killed,
    };
    assert_eq!(refused.err(), Some(killed));
    drop(lock);
}

/// Cold pages keep their frames until somebody needs them, and come back softly.
pub(super) fn cold_pages_stand_by(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("cold");
    let mapping = world.map(&mm, 16);
    for page in 0..16 {
        write_page(&*mapping, page, &[page as u8 + 1]);
    }
    let cold = PageRun::new(4, 4);
    mapping
        .vma()
        .advise(cold, Advice::Cold)
        .expect("nobody refuses");
    check_states(&*mapping, 0..4, State::Resident);
    check_states(&*mapping, 4..8, State::Standby);
    assert_eq!(world.memcg.frames().usage(), 16);
    let before = world.memcg.stat().pgfault_soft;
    for page in cold.pages() {
        assert_eq!(read_page(&*mapping, page)[0], page as u8 + 1);
    }
    // A page is there before its fault is counted.
    world.wait_until("four soft faults", || {
        world.memcg.stat().pgfault_soft - before == 4
    });
}
