//! One thread, no devices: the life of a page.

use super::{Machine, Rng, World, offset_of, read_page, write_page};
use crate::addr::{PAGE_SIZE, PageRun};
use crate::gfp::Gfp;
use crate::mm_struct::{Advice, AdviseError, UnmapError};
use crate::page::State;
use crate::primary_mmu::Access;

pub(super) fn untouched_pages_read_as_zeros(machine: &dyn Machine) {
    let world = World::new(machine, 16);
    let mm = world.memcg.new_mm("zeros");
    let mapping = world.map(&mm, 64);
    for page in 0..64 {
        assert_eq!(read_page(&*mapping, page), vec![0; PAGE_SIZE]);
    }
    write_page(&*mapping, 3, &[9; 100]);
    assert_eq!(
        read_page(&*mapping, 3)[..101],
        [[9; 100].as_slice(), &[0]].concat()
    );
    assert!(world.memcg.stat().pgfault_zero >= 64);
}

/// G6, G10.
pub(super) fn contents_survive_eviction_under_every_limit(machine: &dyn Machine) {
    for frames in [4, 5, 7, 16, 64] {
        let world = World::new(machine, frames);
        let mm = world.memcg.new_mm("model");
        let nr_pages = frames as u32 * 4;
        let mapping = world.map(&mm, nr_pages);
        let mut model = vec![vec![0; PAGE_SIZE]; nr_pages as usize];
        let mut rng = Rng(frames);
        for step in 0..nr_pages * 12 {
            let page = rng.below(u64::from(nr_pages)) as u32;
            if rng.below(3) == 0 {
                let contents = match rng.below(4) {
                    0 => vec![step as u8; PAGE_SIZE],
                    1 => rng.incompressible(),
                    _ => rng.half_compressible(),
                };
                write_page(&*mapping, page, &contents);
                model[page as usize] = contents;
            } else {
                let found = read_page(&*mapping, page);
                assert!(
                    found == model[page as usize],
                    "page {page} changed, {frames} frames"
                );
            }
        }
        world.check_bounds();
        assert!(
            world.memcg.stat().pgsteal > 0,
            "nothing was evicted with {frames} frames"
        );
    }
}

pub(super) fn a_clean_page_is_not_stored_twice(machine: &dyn Machine) {
    let world = World::new(machine, 256);
    let mm = world.memcg.new_mm("clean");
    let mapping = world.map(&mm, 8);
    let vma = mapping.vma();
    let contents = Rng(1).half_compressible();
    write_page(&*mapping, 0, &contents);
    for round in 0..3 {
        vma.advise(PageRun::new(0, 8), Advice::PageOut)
            .expect("nobody refuses");
        assert_eq!(vma.page_state(0), State::Swapped);
        let stat = world.memcg.stat();
        assert_eq!(
            (stat.zswpout, stat.clean_drop),
            (1, round),
            "the first store is enough"
        );
        assert_eq!(read_page(&*mapping, 0), contents);
    }
    write_page(&*mapping, 0, &[1]);
    vma.advise(PageRun::new(0, 8), Advice::PageOut)
        .expect("nobody refuses");
    assert_eq!(
        world.memcg.stat().zswpout,
        2,
        "a page that was written is stored again"
    );
    assert_eq!(read_page(&*mapping, 0)[..2], [1, contents[1]]);
    assert!(world.memcg.stat().pgfault_wp >= 1, "the write trapped");
}

pub(super) fn a_page_that_stands_by_comes_back_softly(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("standby");
    let mapping = world.map(&mm, 64);
    for page in 0..64 {
        write_page(&*mapping, page, &[page as u8 + 1]);
    }
    let standby = || (0..64).find(|&page| mapping.vma().page_state(page) == State::Standby);
    world.wait_until("a page in standby", || standby().is_some());
    let mut byte = [0];
    while let Some(page) = standby() {
        mapping.read(offset_of(page), &mut byte).expect("contents");
        assert_eq!(byte[0], page as u8 + 1);
        if world.memcg.stat().pgfault_soft > 0 {
            return;
        }
    }
    assert!(world.memcg.stat().pgfault_soft > 0, "no soft fault");
}

/// G11.
pub(super) fn pinned_pages_stay_until_they_are_let_go(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("pins");
    let mapping = world.map(&mm, 16);
    let vma = mapping.vma();
    write_page(&*mapping, 2, &[5; 8]);
    vma.advise(vma.all(), Advice::PageOut)
        .expect("nobody refuses");
    let run = PageRun::new(2, 2);
    let pin = vma
        .pin(run, Access::Write, Gfp::Kernel)
        .expect("frames are free");
    let second = vma
        .pin(PageRun::single(2), Access::Read, Gfp::NoWait)
        .expect("resident");
    vma.advise(vma.all(), Advice::PageOut)
        .expect("pinned pages are passed over");
    assert_eq!(vma.page_state(2), State::Resident);
    assert_eq!(vma.page_state(3), State::Resident);
    let refused = vma.advise(vma.all(), Advice::DontNeed);
    assert!(
        matches!(refused, Err(AdviseError::Pinned { page: 2 })),
        "{refused:?}"
    );
    let refused = mm.unmap(vma);
    assert!(
        matches!(refused, Err(UnmapError::Pinned { page: 2 })),
        "{refused:?}"
    );
    drop(pin);
    vma.advise(vma.all(), Advice::PageOut)
        .expect("pinned pages are passed over");
    assert_eq!(
        (vma.page_state(2), vma.page_state(3)),
        (State::Resident, State::Swapped)
    );
    drop(second);
    vma.advise(vma.all(), Advice::PageOut)
        .expect("nobody refuses");
    assert_eq!(vma.page_state(2), State::Swapped);
    assert_eq!(mm.nr_pins(), 0);
    assert_eq!(read_page(&*mapping, 2)[..9], [5, 5, 5, 5, 5, 5, 5, 5, 0]);
}

pub(super) fn advice_not_to_need_gives_zeros_and_frees_everything(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("dontneed");
    let mapping = world.map(&mm, 32);
    let vma = mapping.vma();
    let mut rng = Rng(4);
    for page in 0..32 {
        write_page(&*mapping, page, &rng.incompressible());
    }
    vma.advise(PageRun::new(0, 16), Advice::PageOut)
        .expect("nobody refuses");
    vma.advise(PageRun::new(4, 24), Advice::DontNeed)
        .expect("nobody refuses");
    assert_eq!(world.memcg.frames().usage(), 4);
    vma.advise(vma.all(), Advice::DontNeed)
        .expect("nobody refuses");
    world.wait_until_empty();
    for page in 0..32 {
        assert_eq!(read_page(&*mapping, page), vec![0; PAGE_SIZE]);
    }
    let outside = vma.advise(PageRun::new(30, 3), Advice::DontNeed);
    assert!(
        matches!(outside, Err(AdviseError::OutOfRange { .. })),
        "{outside:?}"
    );
}

/// G16.
pub(super) fn unmapping_gives_everything_back(machine: &dyn Machine) {
    let world = World::new(machine, 16);
    let mm = world.memcg.new_mm("unmap");
    let mapping = world.map(&mm, 64);
    let mut rng = Rng(5);
    for page in 0..64 {
        write_page(&*mapping, page, &rng.half_compressible());
    }
    mm.unmap(mapping.vma()).expect("nobody refuses");
    world.wait_until_empty();
    assert_eq!((mm.nr_frames(), mm.nr_swapped()), (0, 0));
    assert!(
        mapping.read(0, &mut [0]).is_err(),
        "an access after the unmapping"
    );
    let again = mm.unmap(mapping.vma());
    assert!(matches!(again, Err(UnmapError::NotMapped)), "{again:?}");
}

pub(super) fn willneed_fills_what_fits(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("willneed");
    let mapping = world.map(&mm, 32);
    let vma = mapping.vma();
    for page in 0..32 {
        write_page(&*mapping, page, &[page as u8]);
    }
    vma.advise(vma.all(), Advice::PageOut)
        .expect("nobody refuses");
    vma.advise(vma.all(), Advice::WillNeed)
        .expect("contents are there");
    assert!((0..32).all(|page| vma.page_state(page) == State::Resident));
    let majors = world.memcg.stat().pgmajfault;
    assert_eq!(read_page(&*mapping, 31)[0], 31);
    assert_eq!(world.memcg.stat().pgmajfault, majors, "no fault is left");
}
