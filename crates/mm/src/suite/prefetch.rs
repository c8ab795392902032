//! Pages that come back before they are asked for.

use super::{Machine, Rng, World, offset_of, write_page};
use crate::page::Word;

const NR_PAGES: u32 = 512;

/// Reads `pages` four bytes each, which are their numbers; returns how many were not there.
fn read_through(machine: &dyn Machine, frames: u64, pages: &[u32]) -> (u64, u64) {
    let world = World::new(machine, frames);
    let mm = world.memcg.new_mm("scan");
    let mapping = world.map(&mm, NR_PAGES);
    for page in 0..NR_PAGES {
        write_page(&*mapping, page, &page.to_le_bytes());
    }
    let run = crate::addr::PageRun::new(0, NR_PAGES);
    mapping
        .vma()
        .advise(run, crate::mm_struct::Advice::PageOut)
        .expect("nobody refuses");
    let before = world.memcg.stat();
    for &page in pages {
        let mut found = [0; 4];
        mapping.read(offset_of(page), &mut found).expect("contents");
        assert_eq!(u32::from_le_bytes(found), page);
    }
    world.check_bounds();
    let after = world.memcg.stat();
    let majors = after.pgmajfault - before.pgmajfault;
    (majors, after.prefetched - before.prefetched)
}

/// A scan faults once in a while, also when it has far fewer frames than pages.
pub(super) fn a_stride_is_read_ahead(machine: &dyn Machine) {
    let forward: Vec<_> = (0..NR_PAGES).collect();
    let backward: Vec<_> = (0..NR_PAGES).rev().collect();
    let strided: Vec<_> = (0..NR_PAGES).step_by(3).collect();
    for pages in [&forward, &backward, &strided] {
        for frames in [64, 1024] {
            let (majors, prefetched) = read_through(machine, frames, pages);
            let nr = pages.len() as u64;
            assert!(majors * 3 < nr, "{majors} of {nr} faulted, {frames} frames");
            assert!(
                prefetched + majors <= 2 * nr,
                "{prefetched} were prefetched"
            );
        }
    }
}

/// What is read ahead of writes is neither written nor used: it is clean, and goes for nothing.
pub(super) fn what_is_read_ahead_is_not_written(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("ahead");
    let mapping = world.map(&mm, NR_PAGES);
    for page in 0..NR_PAGES {
        write_page(&*mapping, page, &page.to_le_bytes());
    }
    let vma = mapping.vma();
    let run = crate::addr::PageRun::new(0, NR_PAGES);
    vma.advise(run, crate::mm_struct::Advice::PageOut)
        .expect("nobody refuses");
    let before = world.memcg.stat();
    for page in 0..9 {
        write_page(&*mapping, page, &[1; 4]);
    }
    let stat = world.memcg.stat();
    let nr_ahead = (stat.prefetched - before.prefetched) as usize;
    assert!(nr_ahead > 0, "nothing was read ahead");
    let untouched = (9..NR_PAGES).map(|page| vma.pages.load(page));
    let ahead: Vec<_> = untouched.filter(|word| word.is_mapped()).collect();
    assert!(!ahead.is_empty(), "of {nr_ahead} pages");
    let is_clean = |word: &Word| !word.is_dirty() && word.is_protected();
    assert!(ahead.iter().all(is_clean), "{ahead:?}");
    let is_unused = |word: &Word| !word.used().is_referenced();
    assert!(ahead.iter().all(is_unused), "{ahead:?}");
    let asked_for = stat.workingset_refault - before.workingset_refault;
    assert!(asked_for <= stat.pgmajfault - before.pgmajfault);
    mapping.read(offset_of(9), &mut [0; 4]).expect("contents");
}

/// Nothing is read for a program whose faults have no stride.
pub(super) fn what_has_no_stride_is_not_read_ahead(machine: &dyn Machine) {
    let mut rng = Rng(70);
    let pages: Vec<_> = (0..800)
        .map(|_| rng.below(u64::from(NR_PAGES)) as u32)
        .collect();
    let (majors, prefetched) = read_through(machine, 64, &pages);
    assert!(
        prefetched * 20 < majors,
        "{prefetched} beside {majors} faults"
    );
}

/// With the fewest frames there may be, a scan gets through.
pub(super) fn a_scan_with_few_frames_gets_through(machine: &dyn Machine) {
    let pages: Vec<_> = (0..NR_PAGES).collect();
    for frames in [4, 5, 9] {
        let (majors, prefetched) = read_through(machine, frames, &pages);
        assert!(majors + prefetched >= u64::from(NR_PAGES) / 2);
    }
}
