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
    assert_eq!((memcg.swap().usage(), memcg.zswap_bytes().usage()), (0, 0));
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
    assert!(total.peak() <= total.max(), "{total:?}");
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
    let read: Vec<_> = (0..NR_PAGES)
        .filter(|&page| is_swapped(vma.pages.load(page)))
        .take(4)
        .collect();
    for &page in &read {
        read_page(&*mapping, page);
    }
    let nr_kept = || {
        let words = read.iter().map(|&page| vma.pages.load(page));
        words.filter(|&seen| is_in_file(seen)).count()
    };
    assert_eq!(nr_kept(), 4);
    // Too low for what is stored: all that can go goes.
    let _ = world.memcg.set_limit(Knob::ZswapMax, 0);
    assert_eq!(nr_kept(), 4, "it made no room");
}
