//! A tree of memory cgroups: what one is short of is no matter of the others.

use crate::machine::OnTasks;
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::fault::FaultError;
use pinless_mm::limits::Limits;
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
        let mapping = machine.map(&mm, 64);
        for page in 0..64 {
            let written = mapping.write(page * PAGE, &incompressible(page));
            written.expect("room");
        }
        let all = PageRun::new(0, 64);
        let advised = mapping.vma().advise(all, Advice::PageOut);
        advised.expect("nobody refuses");
        for page in 0..64 {
            let read = mapping.read(page * PAGE, &mut [0]);
            read.expect("room");
        }
        let glutton = poor.new_mm("glutton");
        gorge(&*machine.map(&glutton, 64));
        assert_eq!(root.stat().copies_shed, 0, "{:?}", root.stat());
        root.stop();
    });
    assert!(run.has_passed(), "{run}");
}
