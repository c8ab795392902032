//! A shrinker that goes while it is asked.

use crate::machine::OnTasks;
use lockdep::sync::Completion;
use pinless_mm::Memcg;
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::gfp::Gfp;
use pinless_mm::limits::Limits;
use pinless_mm::memcg::{Knob, Shrinker};
use pinless_mm::primary_mmu::Access;
use pinless_mm::suite::Machine;
use pinless_sim::Sim;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

const PAGE_BYTES: u64 = PAGE_SIZE as u64;

/// Schedules.
const NR_SEEDS: u64 = 50;

/// How long a scan looks out for the end of its registration, in looks.
const LOOKS: u32 = 300;

/// A cache of nothing that stays in a scan for long, and sees whether it is gone meanwhile.
#[derive(Default)]
struct Outlook {
    nr_scans: AtomicU64,
    nr_inside: AtomicU64,
    is_gone: AtomicBool,
    /// It was gone, and was asked or still being asked.
    was_called_when_gone: AtomicBool,
}

impl Shrinker for Outlook {
    fn count(&self) -> u64 {
        1
    }

    fn scan(&self, _nr: u64) -> Option<u64> {
        self.nr_scans.fetch_add(1, Relaxed);
        self.nr_inside.fetch_add(1, Relaxed);
        let mut looks_left = LOOKS;
        lockdep::sync::spin_wait("shrinkers.look", 0, || {
            looks_left -= 1;
            looks_left == 0 || self.is_gone.load(Relaxed)
        });
        if self.is_gone.load(Relaxed) {
            self.was_called_when_gone.store(true, Relaxed);
        }
        self.nr_inside.fetch_sub(1, Relaxed);
        Some(0)
    }
}

/// Unregisters a shrinker while a thread that lowers a bound, in vain, is in it.
fn unregister_in_a_scan(sim: &Sim) {
    let memcg = Memcg::new(Limits::new(32 * PAGE_BYTES), sim.clock()).expect("bounds with room");
    let mm = memcg.new_mm("pinned");
    let mapping = OnTasks::new(sim).map(&mm, 16);
    let pin = mapping
        .vma()
        .pin(PageRun::new(0, 16), Access::Write, Gfp::Kernel);
    let _pin = pin.expect("32 frames");
    let outlook = Arc::new(Outlook::default());
    let shrinker = Arc::clone(&outlook) as Arc<dyn Shrinker>;
    let handle = memcg.register_shrinker("outlook", shrinker);
    let ended = Arc::new(Completion::new("ended"));
    let (ends, lowers) = (Arc::clone(&ended), Arc::clone(&memcg));
    sim.spawn("lowers", move || {
        // In vain: sixteen frames are pinned, unless the test has failed.
        let _ = lowers.set_limit(Knob::Max, 8 * PAGE_BYTES);
        ends.complete_all();
    });
    while outlook.nr_inside.load(Relaxed) == 0 {
        lockdep::sync::sleep("shrinkers.asked", Duration::from_micros(1));
    }
    drop(handle);
    outlook.is_gone.store(true, Relaxed);
    assert_eq!(outlook.nr_inside.load(Relaxed), 0, "it waits for the scan");
    let nr_scans = outlook.nr_scans.load(Relaxed);
    ended.wait();
    assert!(!outlook.was_called_when_gone.load(Relaxed));
    assert_eq!(outlook.nr_scans.load(Relaxed), nr_scans, "nobody asks it");
    assert_eq!(Arc::strong_count(&outlook), 1, "nobody has it any more");
    memcg.stop();
}

#[test]
fn who_unregisters_a_shrinker_waits_for_its_scan() {
    for seed in 0..NR_SEEDS {
        let run = Sim::run(seed, unregister_in_a_scan);
        assert!(run.has_passed(), "{run}");
    }
}
