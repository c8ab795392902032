//! What is tried before somebody is killed.

use super::oom::{leak, limits};
use super::{Machine, Mapping, Rng, World, read_page, write_page};
use crate::addr::{PAGE_SIZE, PageRun};
use crate::gfp::Gfp;
use crate::limits::Limits;
use crate::memcg::Shrinker;
use crate::mm_struct::{Advice, Pin};
use crate::oom::Ladder;
use crate::primary_mmu::Access;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use lockdep::sync::Mutex;
use std::sync::Arc;

fn without_store(frames: u64) -> Limits {
    Limits {
        zswap_max_bytes: PAGE_SIZE as u64,
        cancel_deadline: Duration::from_millis(40),
        ..limits(frames)
    }
}

fn fill(mapping: &dyn Mapping, nr_pages: u32, seed: u64) {
    let mut rng = Rng(seed);
    for page in 0..nr_pages {
        write_page(mapping, page, &rng.incompressible());
    }
}

/// Keeps pins because it may need them again.
struct PinCache {
    pins: Mutex<Vec<Pin>>,
}

impl Shrinker for PinCache {
    fn count(&self) -> u64 {
        self.pins.lock().len() as u64
    }

    fn scan(&self, nr: u64) -> Option<u64> {
        let mut pins = self.pins.lock();
        let left = pins.len().saturating_sub(nr as usize);
        let given = pins.split_off(left);
        drop(pins);
        Some(given.len() as u64)
    }
}

/// G7: before anybody is killed, caches are asked.
pub(super) fn a_shrinker_comes_before_a_kill(machine: &dyn Machine) {
    let world = World::with_limits(machine, without_store(24));
    let [caches, needs] = ["caches", "needs"].map(|name| world.memcg.new_mm(name));
    let (cached, needed) = (world.map(&caches, 20), world.map(&needs, 128));
    let mut pins = Vec::new();
    for page in 0..20 {
        // A pattern, which is stored without any room.
        write_page(&*cached, page, &[page as u8; PAGE_SIZE]);
        let run = PageRun::single(page);
        let pin = cached.vma().pin(run, Access::Write, Gfp::Kernel);
        pins.push(pin.expect("frames are free"));
    }
    let cache = Arc::new(PinCache {
        pins: Mutex::new("suite.pins", pins),
    });
    let handle = world
        .memcg
        .register_shrinker("pins", Arc::clone(&cache) as Arc<dyn Shrinker>);
    fill(&*needed, 20, 181);
    assert_eq!(world.memcg.stat().oom_kill, 0);
    // There is nothing more to let go of: now somebody goes, and the report says what was tried.
    leak(&*needed, 128, 182);
    world.wait_until_reaped();
    let report = &world.memcg.oom_reports()[0];
    assert_eq!((&*report.victim, report.ladder.shrunk), ("needs", 20));
    assert!(report.to_string().contains("shrinkers gave 20 things back"));
    for page in 0..20 {
        assert_eq!(read_page(&*cached, page)[0], page as u8);
    }
    drop(handle);
}

/// Linux counterpart: `MADV_FREE`, which needs no kill either.
pub(super) fn what_can_be_done_without_goes_before_anybody_is_killed(machine: &dyn Machine) {
    let world = World::with_limits(machine, without_store(24));
    let [gives, needs] = ["gives", "needs"].map(|name| world.memcg.new_mm(name));
    let (given, needed) = (world.map(&gives, 16), world.map(&needs, 128));
    for page in 0..16 {
        let mut contents = Rng(u64::from(page)).incompressible();
        contents[0] = page as u8 + 1;
        write_page(&*given, page, &contents);
    }
    let advise = |first, nr, advice| {
        let advised = given.vma().advise(PageRun::new(first, nr), advice);
        advised.expect("advice that needs nobody");
    };
    advise(4, 10, Advice::Discardable);
    advise(6, 2, Advice::Keep);
    fill(&*needed, 12, 183);
    assert_eq!(world.memcg.stat().oom_kill, 0);
    for page in 0..16 {
        let is_gone = (4..14).contains(&page) && !(6..8).contains(&page);
        let expected = if is_gone { 0 } else { page as u8 + 1 };
        assert_eq!(read_page(&*given, page)[0], expected, "page {page}");
    }
    leak(&*needed, 128, 184);
    let report = &world.memcg.oom_reports()[0];
    // The zeros that were read in their place go the same way.
    let ladder = Ladder {
        discarded: 2 * 8,
        ..Ladder::default()
    };
    assert_eq!(report.ladder, ladder, "{report}");
}

/// Who is asked to give memory back, and does, lives; who only says so goes after a while.
pub(super) fn who_cancels_in_time_is_not_killed(machine: &dyn Machine) {
    for is_true_to_its_word in [true, false] {
        let limits = Limits {
            cancel_deadline: Duration::from_millis(if is_true_to_its_word { 10_000 } else { 40 }),
            ..without_store(24)
        };
        let world = World::with_limits(machine, limits);
        let [large, small] = ["large", "small"].map(|name| world.memcg.new_mm(name));
        let (held, needed) = (world.map(&large, 16), world.map(&small, 16));
        fill(&*held, 16, 185);
        let is_asked = Arc::new(AtomicBool::new(false));
        let asks = Arc::clone(&is_asked);
        large.set_on_cancel(move || {
            asks.store(true, Ordering::Relaxed);
            true
        });
        let writer = {
            let needed = Arc::clone(&needed);
            world.spawn("writer", move || fill(&*needed, 12, 186))
        };
        world.wait_until("it is asked", || is_asked.load(Ordering::Relaxed));
        if is_true_to_its_word {
            let given = held.vma().advise(PageRun::new(0, 12), Advice::DontNeed);
            given.expect("nobody holds it");
        }
        writer();
        assert_eq!(large.is_killed(), !is_true_to_its_word);
        let reports = world.memcg.oom_reports();
        let told = reports
            .iter()
            .map(|report| report.ladder.cancelling.as_deref());
        assert!(told.eq((!is_true_to_its_word).then_some(Some("large"))));
    }
}
