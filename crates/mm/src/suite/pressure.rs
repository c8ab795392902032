//! What memory is kept, what is lost while it is short, and who gives back.

use super::{Machine, Rng, World, offset_of, read_page, write_page};
use crate::addr::{PAGE_SIZE, PageRun};
use crate::fault::FaultError;
use crate::gfp::Gfp;
use crate::limits::Limits;
use crate::memcg::Shrinker;
use crate::mm_struct::{Pin, Vma};
use crate::page::State;
use crate::primary_mmu::Access;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use lockdep::sync::Mutex;
use std::sync::Arc;

/// Pages that are used all the time, beside others that are used once.
pub(super) fn what_comes_back_soon_stays(machine: &dyn Machine) {
    const HOT: u32 = 20;
    const ROUNDS: u32 = 40;
    const COLD_EACH: u32 = 12;
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("workingset");
    let mapping = world.map(&mm, HOT + ROUNDS * COLD_EACH);
    let mut majors_late = 0;
    for round in 0..ROUNDS {
        for page in 0..HOT {
            let is_out = mapping.vma().page_state(page) == State::Swapped;
            majors_late += u32::from(is_out && round >= ROUNDS / 2);
            let mut contents = [0; 4];
            mapping
                .read(offset_of(page), &mut contents)
                .expect("a frame");
            assert_eq!(u32::from_le_bytes(contents), round * u32::from(round > 0));
            let next = (round + 1).to_le_bytes();
            mapping.write(offset_of(page), &next).expect("a frame");
        }
        for nth in 0..COLD_EACH {
            let page = HOT + round * COLD_EACH + nth;
            write_page(&*mapping, page, &[3]);
        }
    }
    let stat = world.memcg.stat();
    assert!(stat.workingset_activate > 0, "{stat:?}");
    let nr_late = HOT * ROUNDS / 2;
    assert!(
        majors_late * 8 < nr_late,
        "{majors_late} of {nr_late} were gone"
    );
    let active = world.memcg.domain.nr_active();
    assert!(
        active > 0 && active <= world.memcg.frames().max(),
        "{active}"
    );
    mm.unmap(mapping.vma()).expect("nobody refuses");
    assert_eq!(world.memcg.domain.nr_active(), 0);
}

/// A wait for a frame is pressure: some of the time, and all of it if nobody else works.
pub(super) fn a_wait_for_a_frame_is_pressure(machine: &dyn Machine) {
    let mut limits = Limits::new(8 * PAGE_SIZE as u64);
    limits.fault_deadline = Duration::from_millis(200);
    let world = World::with_limits(machine, limits);
    let mm = world.memcg.new_mm("stalled");
    mm.set_oom_score_adj(-1000);
    let mapping = world.map(&mm, 16);
    assert_eq!(world.memcg.pressure().some.total, Duration::ZERO);
    for nr_threads in [1, 2] {
        let threads: Vec<_> = (0..nr_threads)
            .map(|_| world.memcg.count_thread())
            .collect();
        let run = PageRun::new(0, 8);
        let pin = mapping.vma().pin(run, Access::Write, Gfp::Kernel);
        let pin = pin.expect("eight frames");
        let before = world.memcg.pressure();
        let starved = mapping.read(offset_of(9), &mut [0]);
        assert!(
            matches!(starved, Err(FaultError::NoFrame { .. })),
            "{starved:?}"
        );
        let after = world.memcg.pressure();
        let lost = after.some.total - before.some.total;
        assert!(lost >= Duration::from_millis(200), "{after}");
        let full = after.full.total - before.full.total;
        assert_eq!(
            full >= Duration::from_millis(200),
            nr_threads == 1,
            "{after}"
        );
        drop((pin, threads));
        read_page(&*mapping, 9);
    }
}

/// A cache of a device: it keeps pages pinned until it is asked.
struct PinCache {
    pins: Mutex<Vec<Pin>>,
    nr_asked: AtomicU64,
}

impl Shrinker for PinCache {
    fn count(&self) -> u64 {
        self.pins.lock().len() as u64
    }

    fn scan(&self, nr: u64) -> Option<u64> {
        self.nr_asked.fetch_add(1, Ordering::Relaxed);
        let mut pins = self.pins.lock();
        let rest = pins.len().saturating_sub(nr as usize);
        let dropped = pins.split_off(rest);
        drop(pins);
        Some(dropped.len() as u64)
    }
}

fn pin_each(vma: &Arc<Vma>, nr: u32) -> Vec<Pin> {
    let pin = |page| vma.pin(PageRun::single(page), Access::Write, Gfp::Kernel);
    (0..nr).map(|page| pin(page).expect("a frame")).collect()
}

/// G7: a cache gives back before anybody is killed.
pub(super) fn a_shrinker_is_asked_before_memory_runs_out(machine: &dyn Machine) {
    let world = World::new(machine, 16);
    let mm = world.memcg.new_mm("shrinks");
    let mapping = world.map(&mm, 64);
    let cache = Arc::new(PinCache {
        pins: Mutex::new("suite.pin_cache", pin_each(mapping.vma(), 15)),
        nr_asked: AtomicU64::new(0),
    });
    let shrinker = Arc::clone(&cache) as Arc<dyn Shrinker>;
    let handle = world.memcg.register_shrinker("pin cache", shrinker);
    let mut rng = Rng(8);
    let contents: Vec<_> = (0..64).map(|_| rng.half_compressible()).collect();
    // All at the same time, but for the machine.
    let pins: Vec<_> = (16..24)
        .map(|page| {
            let run = PageRun::single(page);
            let pin = mapping.vma().pin(run, Access::Write, Gfp::Kernel);
            pin.expect("the cache gives back")
        })
        .collect();
    assert!(cache.nr_asked.load(Ordering::Relaxed) > 0 && cache.count() < 15);
    drop(pins);
    for page in 0..64 {
        write_page(&*mapping, page, &contents[page as usize]);
    }
    for page in 0..64 {
        assert!(read_page(&*mapping, page) == contents[page as usize]);
    }
    assert_eq!(world.memcg.stat().oom_kill, 0);
    drop(handle);
    assert_eq!(Arc::strong_count(&cache), 1, "nobody asks it any more");
}
