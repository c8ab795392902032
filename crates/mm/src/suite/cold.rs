//! Pages that are packed closer while nobody asks for them.

use super::{Machine, Mapping, Rng, World, offset_of, read_page, write_page};
use crate::addr::{PAGE_SIZE, PageRun};
use crate::fault::FaultError;
use crate::mm_struct::Advice;
use crate::swap::Inject;
use std::sync::Arc;

/// Pages that stay away, and behind them those that are used in turn meanwhile.
const NR_COLD: u32 = 48;
const NR_PAGES: u32 = NR_COLD + 32;

/// A page that says its number, in words.
fn text(page: u32) -> Vec<u8> {
    const WORDS: [&str; 6] = ["a page ", "that ", "stays ", "away ", "for ", "long; "];
    let mut rng = Rng(u64::from(page));
    let mut text = page.to_le_bytes().to_vec();
    while text.len() < PAGE_SIZE {
        text.extend(WORDS[rng.below(6) as usize].bytes());
    }
    text.truncate(PAGE_SIZE);
    text
}

/// Uses the pages behind the cold ones until some of these have been packed.
fn wait_until_packed(world: &World<'_>, mapping: &dyn Mapping, nr: u64) {
    world.wait_until("pages that were away are packed", || {
        for page in NR_COLD..NR_PAGES {
            // One of these may be lost.
            let _ = mapping.read(offset_of(page), &mut [0; 4]);
        }
        world.memcg.stat().zswprecomp >= nr
    });
}

/// G10: what stays away for long takes fewer bytes, and is what it was.
pub(super) fn what_stays_away_takes_less_room(machine: &dyn Machine) {
    let world = World::new(machine, 16);
    let mm = world.memcg.new_mm("cold");
    let mapping = world.map(&mm, NR_PAGES);
    for page in 0..NR_PAGES {
        write_page(&*mapping, page, &text(page));
    }
    wait_until_packed(&world, &*mapping, u64::from(NR_COLD / 2));
    let (stat, zswap) = (world.memcg.stat(), world.memcg.zswap());
    assert!(
        stat.zswprecomp_bytes >= 64 * stat.zswprecomp,
        "{} bytes of {} pages",
        stat.zswprecomp_bytes,
        stat.zswprecomp
    );
    world.wait_until("the store and its bound agree", || {
        zswap.bytes() == world.memcg.zswap_bytes().usage()
    });
    for page in 0..NR_PAGES {
        assert!(read_page(&*mapping, page) == text(page), "page {page}");
    }
    mm.unmap(mapping.vma()).expect("nobody refuses");
    world.wait_until_empty();
}

/// G10: programs that read, write and give up pages meet the worker that packs them.
pub(super) fn packing_meets_programs_and_loses_nothing(machine: &dyn Machine) {
    let world = World::new(machine, 16);
    let mm = world.memcg.new_mm("race");
    let mapping = world.map(&mm, NR_PAGES);
    for page in 0..NR_PAGES {
        write_page(&*mapping, page, &text(page));
    }
    let programs: Vec<_> = (0..2)
        .map(|program| {
            let mapping = Arc::clone(&mapping);
            world.spawn("program", move || use_pages(&*mapping, program))
        })
        .collect();
    wait_until_packed(&world, &*mapping, 1);
    programs.into_iter().for_each(|join| join());
    mm.unmap(mapping.vma()).expect("nobody refuses");
    world.wait_until_empty();
}

/// Uses every second one of the cold pages, seldom enough for them to be packed in between.
fn use_pages(mapping: &dyn Mapping, program: u32) {
    let mut rng = Rng(u64::from(program));
    let mut model: Vec<_> = (0..NR_COLD).map(text).collect();
    for _ in 0..120 {
        let page = rng.below(u64::from(NR_COLD / 2)) as u32 * 2 + program;
        let expected = &mut model[page as usize];
        assert!(read_page(mapping, page) == *expected, "page {page}");
        match rng.below(4) {
            0 => {
                let given_up = mapping
                    .vma()
                    .advise(PageRun::single(page), Advice::DontNeed);
                given_up.expect("nobody has pinned it");
                *expected = vec![0; PAGE_SIZE];
            }
            1 => {
                *expected = text(rng.next() as u32);
                write_page(mapping, page, expected);
            }
            _ => {}
        }
        lockdep::sync::sleep("suite.cold", core::time::Duration::from_micros(300));
    }
}

/// G13: a bit that flipped in a slot is an error of its page, also after pages were packed.
pub(super) fn packing_makes_no_error_look_right(machine: &dyn Machine) {
    let world = World::new(machine, 16);
    let mm = world.memcg.new_mm("flipped");
    let mapping = world.map(&mm, NR_PAGES);
    let zswap = world.memcg.zswap();
    zswap.inject(Inject::CorruptSlot { one_in: 5 });
    for page in 0..NR_PAGES {
        write_page(&*mapping, page, &text(page));
    }
    zswap.inject(Inject::None);
    wait_until_packed(&world, &*mapping, u64::from(NR_COLD / 4));
    let mut nr_lost = 0;
    for page in 0..NR_PAGES {
        let mut found = vec![0; PAGE_SIZE];
        match mapping.read(offset_of(page), &mut found) {
            Ok(()) => assert!(found == text(page), "page {page}"),
            Err(FaultError::Lost { page: named, .. }) if named == page => nr_lost += 1,
            Err(error) => panic!("page {page}: {error}"),
        }
    }
    assert!(
        (NR_COLD / 10..NR_COLD).contains(&nr_lost),
        "{nr_lost} are lost"
    );
}
