//! A tree of memory cgroups: what one is short of is no matter of the others.

use crate::machine::OnTasks;
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::fault::FaultError;
use pinless_mm::limits::Limits;
use pinless_mm::memcg::Knob;
use pinless_mm::suite::{Machine, Mapping};
use pinless_mm::{Advice, Memcg};
use pinless_sim::{Rng, Sim};
use std::sync::Arc;

const PAGE: u64 = PAGE_SIZE as u64;

/// A tree with the threads that it needs.
fn root_of(sim: &Sim, max_pages: u64) -> Arc<Memcg> {
    let memcg = Memcg::new(Limits::new(max_pages * PAGE), sim.clock()).expect("room");
    for (name, run) in [
        ("reclaim", Memcg::run_reclaim as fn(&Memcg)),
        ("reaper", Memcg::run_reaper),
    ] {
        let memcg = Arc::clone(&memcg);
        sim.spawn_daemon(name, move || run(&memcg));
    }
    memcg
}

fn incompressible(seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let words = (0..PAGE_SIZE / 8).flat_map(|_| rng.next().to_le_bytes());
    words.collect()
}

/// Writes page after page until it is killed for that.
fn gorge(mapping: &dyn Mapping) {
    for page in 0.. {
        match mapping.write(page * PAGE, &incompressible(page)) {
            Ok(()) => {}
            Err(FaultError::Killed) => return,
            Err(error) => panic!("page {page}: {error}"),
        }
    }
    unreachable!("there are not so many pages")
}

/// Fills pages, has them stored, and reads them: they are mapped, and their copies are kept.
fn keep_copies(mapping: &dyn Mapping, nr_pages: u32) {
    for page in 0..u64::from(nr_pages) {
        let written = mapping.write(page * PAGE, &incompressible(page));
        written.expect("room");
    }
    let all = PageRun::new(0, nr_pages);
    let advised = mapping.vma().advise(all, Advice::PageOut);
    advised.expect("nobody refuses");
    for page in 0..u64::from(nr_pages) {
        let read = mapping.read(page * PAGE, &mut [0]);
        read.expect("room");
    }
}

/// Who may store no more gets no room from copies that are charged to others, so they keep them.
#[test]
fn copies_are_given_back_where_there_is_no_room() {
    let run = Sim::run(1, |sim| {
        let machine = OnTasks::new(sim);
        let root = root_of(sim, 1000);
        let rich = root.new_child("rich", Limits::new(500 * PAGE));
        let mut limits = Limits::new(16 * PAGE);
        limits.swap_max_bytes = 8 * PAGE;
        let poor = root.new_child("poor", limits).expect("room");
        let mm = rich.expect("room").new_mm("rich");
        keep_copies(&*machine.map(&mm, 64), 64);
        let glutton = poor.new_mm("glutton");
        gorge(&*machine.map(&glutton, 64));
        assert_eq!(root.stat().copies_shed, 0, "{:?}", root.stat());
        assert!(root.zswap_bytes().usage() >= 64 * PAGE, "they are there");
        root.stop();
    });
    assert!(run.has_passed(), "{run}");
}

/// Where the total is short, copies are given back that are in the way of frames, though who waits
/// may store no more.
#[test]
fn copies_are_given_back_for_a_total() {
    let run = Sim::run(1, |sim| {
        let machine = OnTasks::new(sim);
        let root = root_of(sim, 1000);
        root.set_limit(Knob::TotalMax, 200 * PAGE).expect("room");
        let mut limits = Limits::new(500 * PAGE);
        // Or their frames would go, and the copies with them.
        limits.min_bytes = 500 * PAGE;
        let rich = root.new_child("rich", limits).expect("room");
        let mut limits = Limits::new(500 * PAGE);
        limits.swap_max_bytes = 8 * PAGE;
        let poor = root.new_child("poor", limits).expect("room");
        let mm = rich.new_mm("rich");
        keep_copies(&*machine.map(&mm, 40), 40);
        let glutton = poor.new_mm("glutton");
        gorge(&*machine.map(&glutton, 400));
        assert_eq!(root.stat().copies_shed, 40, "{:?}", root.stat());
        root.stop();
    });
    assert!(run.has_passed(), "{run}");
}
