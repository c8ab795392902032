//! Memory that the store holds for nothing.

use super::{Machine, Rng, World, read_page, write_page};
use crate::addr::{PAGE_SIZE, PageRun};
use crate::limits::Limits;
use crate::mm_struct::Advice;

/// Blocks of the store that have become sparse are emptied into each other.
pub(super) fn sparse_blocks_are_emptied(machine: &dyn Machine) {
    const NR_PAGES: u32 = 512;
    let mut limits = Limits::new(16 * PAGE_SIZE as u64);
    limits.zswap_max_bytes = 4 << 20;
    let world = World::with_limits(machine, limits);
    let mm = world.memcg.new_mm("sparse");
    let mapping = world.map(&mm, NR_PAGES);
    let contents = |page| Rng(u64::from(page)).half_compressible();
    for page in 0..NR_PAGES {
        write_page(&*mapping, page, &contents(page));
    }
    let zswap = world.memcg.zswap();
    let nr_blocks_before = zswap.stats().block_bytes;
    let stays = |page: &u32| page.is_multiple_of(8);
    for page in (0..NR_PAGES).filter(|page| !stays(page)) {
        let given_up = mapping
            .vma()
            .advise(PageRun::single(page), Advice::DontNeed);
        given_up.expect("nobody has pinned it");
    }
    world.wait_until("blocks are emptied", || {
        zswap.stats().block_bytes <= nr_blocks_before / 2
    });
    assert!(world.memcg.stat().zswpcompact > 0);
    for page in (0..NR_PAGES).filter(stays) {
        assert!(read_page(&*mapping, page) == contents(page), "page {page}");
    }
}
