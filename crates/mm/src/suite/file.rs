//! A file under the compressed store.

use super::{Machine, Rng, World, offset_of, read_page, write_page};
use crate::addr::PAGE_SIZE;
use crate::limits::Limits;
use crate::memcg::Knob;
use crate::page::{State, Word};
use crate::swap::Stored;
use std::sync::Arc;

const NR_PAGES: u32 = 192;

/// G10: with a compressed store that holds a sixth of the pages, and a file for the others.
pub(super) fn contents_survive_in_the_file(machine: &dyn Machine) {
    let Some(file) = machine.file(64) else { return };
    let mut limits = Limits::new(16 * PAGE_SIZE as u64);
    limits.zswap_max_bytes = 20 * PAGE_SIZE as u64;
    let world = World::on_file(machine, limits, Some(file));
    let mm = world.memcg.new_mm("file");
    let mapping = world.map(&mm, NR_PAGES);
    let vma = Arc::clone(mapping.vma());
    let mut model: Vec<_> = (0..NR_PAGES).map(|page| vec![page as u8; 8]).collect();
    let mut rng = Rng(61);
    for page in 0..NR_PAGES {
        write_page(&*mapping, page, &rng.half_compressible());
        write_page(&*mapping, page, &model[page as usize]);
    }
    for _ in 0..NR_PAGES * 4 {
        let page = rng.below(u64::from(NR_PAGES)) as u32;
        let found = read_page(&*mapping, page);
        assert!(
            found.starts_with(&model[page as usize]),
            "page {page} changed"
        );
        if rng.below(3) == 0 {
            let next = rng.next().to_le_bytes().to_vec();
            mapping.write(offset_of(page), &next).expect("room");
            model[page as usize] = next;
        }
    }
    world.check_bounds();
    let (memcg, file) = (&world.memcg, world.memcg.file().expect("there is one"));
    let stats = file.stats();
    assert!(memcg.stat().zswpwb > 0 && stats.reads > 0, "{stats:?}");
    assert_eq!((stats.read_errors, stats.write_errors), (0, 0));
    mm.unmap(&vma).expect("nobody refuses");
    world.wait_until_empty();
    world.wait_until("the file is empty", || file.stats().clusters == 0);
}

/// G7: nobody is killed for a total that is full of what the file has room for.
pub(super) fn a_full_total_is_relieved_by_the_file(machine: &dyn Machine) {
    let Some(file) = machine.file(64) else { return };
    let mut limits = Limits::new(64 * PAGE_SIZE as u64);
    limits.zswap_max_bytes = 128 * PAGE_SIZE as u64;
    limits.total_max_bytes = 80 * PAGE_SIZE as u64;
    let world = World::on_file(machine, limits, Some(file));
    let mm = world.memcg.new_mm("total");
    let mapping = world.map(&mm, NR_PAGES);
    let contents = |page| Rng(u64::from(page)).half_compressible();
    for page in 0..NR_PAGES {
        write_page(&*mapping, page, &contents(page));
    }
    for page in 0..NR_PAGES {
        assert!(read_page(&*mapping, page) == contents(page), "page {page}");
    }
    let (stat, total) = (world.memcg.stat(), world.memcg.total());
    assert!(stat.zswpwb > 0 && stat.oom_kill == 0, "{total:?}");
    assert!(!total.is_exceeded(), "{total:?}");
}

/// The copy in the file of a page that is mapped stays when compressed bytes are short.
pub(super) fn what_the_file_holds_makes_no_room_in_the_store(machine: &dyn Machine) {
    let Some(file) = machine.file(64) else { return };
    let mut limits = Limits::new(64 * PAGE_SIZE as u64);
    limits.zswap_max_bytes = 20 * PAGE_SIZE as u64;
    let world = World::on_file(machine, limits, Some(file));
    let mm = world.memcg.new_mm("copies");
    let mapping = world.map(&mm, NR_PAGES);
    let vma = mapping.vma();
    let mut rng = Rng(67);
    for page in 0..NR_PAGES {
        write_page(&*mapping, page, &rng.half_compressible());
    }
    let is_in_file = |seen: Word| matches!(seen.copy(), Some(Stored::File { .. }));
    let is_swapped = |seen: Word| seen.state() == State::Swapped && is_in_file(seen);
    world.wait_until("pages are in the file", || {
        let words = (0..NR_PAGES).map(|page| vma.pages.load(page));
        words.filter(|&seen| is_swapped(seen)).count() >= 16
    });
    // One: the second of a cluster has others read ahead, and a page that leaves again before it is
    // read comes back without its copy.
    let mut pages = 0..NR_PAGES;
    let page = pages.find(|&page| is_swapped(vma.pages.load(page)));
    let page = page.expect("waited for");
    read_page(&*mapping, page);
    assert!(is_in_file(vma.pages.load(page)));
    // Too low for what is stored: all that can go goes.
    let _ = world.memcg.set_limit(Knob::ZswapMax, 0);
    assert!(is_in_file(vma.pages.load(page)), "it made no room");
}

/// Clusters that have become half empty are won back: a file with hardly more room than what is in
/// it takes what changes all the time, and nobody is killed.
pub(super) fn half_empty_clusters_are_won_back(machine: &dyn Machine) {
    // Half of a page in each: what there is takes seven clusters.
    let Some(file) = machine.file(10) else { return };
    let mut limits = Limits::new(16 * PAGE_SIZE as u64);
    limits.zswap_max_bytes = 40 * PAGE_SIZE as u64;
    let world = World::on_file(machine, limits, Some(file));
    let mm = world.memcg.new_mm("churn");
    let mapping = world.map(&mm, NR_PAGES);
    let mut seeds: Vec<_> = (0..u64::from(NR_PAGES)).collect();
    let contents = |seed| Rng(seed).half_compressible();
    for page in 0..NR_PAGES {
        write_page(&*mapping, page, &contents(seeds[page as usize]));
    }
    let mut rng = Rng(71);
    for nth in 0..NR_PAGES * 8 {
        let page = rng.below(u64::from(NR_PAGES)) as u32;
        let seed = u64::from(NR_PAGES + nth);
        seeds[page as usize] = seed;
        let written = mapping.write(offset_of(page), &contents(seed));
        written.unwrap_or_else(|error| {
            let file = world.memcg.file().expect("there is one");
            panic!(
                "write {nth}: {error}: {:?}, {:?}",
                file.stats(),
                world.memcg.stat()
            )
        });
    }
    for page in 0..NR_PAGES {
        let expected = contents(seeds[page as usize]);
        assert!(read_page(&*mapping, page) == expected, "page {page}");
    }
    let (stat, stats) = (
        world.memcg.stat(),
        world.memcg.file().expect("there is one").stats(),
    );
    assert!(stat.file_compact > 0 && stat.oom_kill == 0, "{stats:?}");
    mm.unmap(mapping.vma()).expect("nobody refuses");
    let file = world.memcg.file().expect("there is one");
    world.wait_until("the file is empty", || file.stats().clusters == 0);
}

/// Pages that were written together come back together, though their addresses have no stride.
pub(super) fn what_was_written_together_comes_back_together(machine: &dyn Machine) {
    let Some(file) = machine.file(64) else { return };
    let mut limits = Limits::new(64 * PAGE_SIZE as u64);
    limits.zswap_max_bytes = 20 * PAGE_SIZE as u64;
    let world = World::on_file(machine, limits, Some(file));
    let mm = world.memcg.new_mm("together");
    let mapping = world.map(&mm, 3 * NR_PAGES);
    // One, two or three pages apart.
    let mut rng = Rng(73);
    let steps = core::iter::repeat_with(|| 1 + rng.below(3) as u32);
    let pages: Vec<_> = steps
        .scan(0, |page, step| {
            *page += step;
            Some(*page)
        })
        .take_while(|&page| page < 3 * NR_PAGES)
        .collect();
    for &page in &pages {
        write_page(&*mapping, page, &Rng(page.into()).half_compressible());
    }
    let before = world.memcg.stat().prefetched;
    // How many depends on the worker, which makes the room for them.
    world.wait_until("neighbours are read ahead", || {
        for &page in &pages {
            let expected = Rng(page.into()).half_compressible();
            assert!(read_page(&*mapping, page) == expected, "page {page}");
        }
        world.memcg.stat().prefetched >= before + 16
    });
    world.check_bounds();
}
