//! How much of the memory of the compressed store holds nothing, after pages of all kinds have come
//! and gone.

use crate::machine::OnThreads;
use pinless_mm::Memcg;
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::limits::Limits;
use pinless_mm::mm_struct::Advice;
use pinless_mm::suite::{Machine, Mapping};
use pinless_sim::Rng;
use std::sync::Arc;
use std::time::Duration;

const NR_PAGES: u32 = 20_000;

/// At most so many thousandths may be lost.
const LOST_PERMILLE_MAX: u64 = 120;

/// Rounds of waiting before it counts as never.
const ROUNDS_MAX: u32 = 20_000;

/// A page that is almost empty, of text, of records, or of data that is compressed already: so many
/// random bytes, and the rest of one kind.
fn mixed(rng: &mut Rng) -> Vec<u8> {
    let nr_random = match rng.below(16) {
        0 | 1 => 16,
        2..=7 => 700 + rng.below(300),
        8..=12 => 1900 + rng.below(300),
        _ => PAGE_SIZE as u64,
    } as usize;
    let random = core::iter::repeat_with(|| rng.next() as u8);
    let mut page: Vec<_> = random.take(nr_random).collect();
    page.resize(PAGE_SIZE, b'-');
    page
}

fn offset_of(page: u32) -> u64 {
    u64::from(page) * PAGE_SIZE as u64
}

/// Each page is written; two of three are given up at random, and a part of them comes back.
fn churn(mapping: &dyn Mapping, rng: &mut Rng) {
    for page in 0..NR_PAGES {
        let contents = mixed(rng);
        mapping.write(offset_of(page), &contents).expect("room");
    }
    for page in 0..NR_PAGES {
        if !rng.one_in(3) {
            let run = PageRun::single(page);
            let given_up = mapping.vma().advise(run, Advice::DontNeed);
            given_up.expect("nobody has pinned it");
        }
    }
    for _ in 0..NR_PAGES / 8 {
        let page = rng.below(u64::from(NR_PAGES)) as u32;
        let contents = mixed(rng);
        mapping.write(offset_of(page), &contents).expect("room");
    }
}

#[test]
fn of_a_mixed_set_twelve_percent_are_lost_after_churn() {
    let machine = OnThreads::new();
    let mut limits = Limits::new(1000 * PAGE_SIZE as u64);
    limits.zswap_max_bytes = 128 << 20;
    let memcg = Memcg::new(limits, machine.clock()).expect("bounds with room");
    let start = |run: fn(&Memcg)| {
        let memcg = Arc::clone(&memcg);
        machine.spawn("worker", Box::new(move || run(&memcg)))
    };
    let workers = [Memcg::run_reclaim, Memcg::run_compact].map(start);
    let mm = memcg.new_mm("churn");
    let mapping = machine.map(&mm, NR_PAGES);
    churn(&*mapping, &mut Rng::new(7));
    let sparse = memcg.zswap().stats();
    let mut nr_rounds = 0;
    while memcg.zswap().stats().fragmentation_permille() > LOST_PERMILLE_MAX {
        nr_rounds += 1;
        assert!(nr_rounds < ROUNDS_MAX, "{:?}", memcg.zswap().stats());
        lockdep::sync::sleep("fragmentation", Duration::from_millis(1));
    }
    let packed = memcg.zswap().stats();
    let of = |stats: pinless_mm::swap::Stats| {
        let (lost, held) = (stats.fragmentation_permille(), stats.block_bytes >> 10);
        format!("{}.{} % of {held} KiB", lost / 10, lost % 10)
    };
    println!(
        "the store has lost {} after churn, {} when {} pages have been moved",
        of(sparse),
        of(packed),
        memcg.stat().zswpcompact
    );
    assert!(memcg.stat().zswpcompact > 0);
    drop((mapping, mm));
    memcg.stop();
    workers.into_iter().for_each(|join| join());
}
