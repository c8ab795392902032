//! The simulated machine judges the memory manager, and canaries judge the simulated machine.

use pinless_mm::addr::{PAGE_SIZE, PageRun, Vaddr};
use pinless_mm::limits::Limits;
use pinless_mm::mm_struct::Advice;
use pinless_mm::primary_mmu::PrimaryMmu;
use pinless_mm::{Memcg, MmHandle, Vma};
use pinless_sim::{End, Frames, MachineFaults, Sim, SimMmu};
use std::sync::Arc;
use std::time::Duration;

/// A memory cgroup on a machine that has as many frames as the cgroup may use, and not one more.
struct World {
    sim: Sim,
    frames: Arc<Frames>,
    memcg: Arc<Memcg>,
    mm: MmHandle,
}

impl World {
    fn new(sim: &Sim, nr_frames: u64, spare_frames: u64) -> Self {
        let mut limits = Limits::new(nr_frames * PAGE_SIZE as u64);
        limits.zswap_max_bytes = 1 << 20;
        let memcg = Memcg::new(limits, sim.clock()).expect("limits that leave a reserve");
        for (name, run) in [
            ("reclaim", Memcg::run_reclaim as fn(&Memcg)),
            ("settle", Memcg::run_settle),
            ("reaper", Memcg::run_reaper),
        ] {
            let memcg = Arc::clone(&memcg);
            sim.spawn_daemon(name, move || run(&memcg));
        }
        Self {
            sim: sim.clone(),
            frames: Frames::new(nr_frames + spare_frames),
            mm: memcg.new_mm("judged"),
            memcg,
        }
    }

    fn map(&self, nr_pages: u32) -> (Arc<SimMmu>, Arc<Vma>) {
        let mmu = SimMmu::new(Vaddr(0x5000_0000), nr_pages, &self.frames);
        let primary = Arc::clone(&mmu) as Arc<dyn PrimaryMmu>;
        let vma = self.mm.map(primary).expect("a mapping");
        (mmu, vma)
    }

    /// A task that counts up in pages of its own: each value it reads must be the last it wrote.
    fn spawn_counter(&self, mmu: &Arc<SimMmu>, vma: &Arc<Vma>, pages: [u32; 3]) {
        let (mmu, vma) = (Arc::clone(mmu), Arc::clone(vma));
        self.sim.spawn("counter", move || {
            for n in 0..8u8 {
                for page in pages {
                    let offset = u64::from(page) * PAGE_SIZE as u64 + 99;
                    let mut found = [0];
                    mmu.cpu_read(&*vma, offset, &mut found).expect("contents");
                    assert_eq!(found, [n], "page {page} went back");
                    mmu.cpu_write(&*vma, offset, &[n + 1]).expect("room");
                }
            }
        });
    }
}

/// Three tasks count in pages that do not fit, while somebody pages out.
fn count_under_pressure(sim: &Sim, faults: MachineFaults, spare_frames: u64) {
    let world = World::new(sim, 5, spare_frames);
    let (mmu, vma) = world.map(9);
    mmu.inject(faults);
    for first in 0..3 {
        world.spawn_counter(&mmu, &vma, [first, first + 3, first + 6]);
    }
    for round in 0..4 {
        // What is refused, a worker will do: busy pages are the machine's affair.
        let _ = vma.advise(PageRun::new(round * 2, 3), Advice::PageOut);
    }
    sim.join_all();
    let counter = world.memcg.frames();
    assert!(!counter.is_exceeded());
    assert!(world.frames.nr_used_peak() <= 5 + spare_frames);
    world.mm.unmap(&vma).expect("nobody holds anything");
    assert_eq!(counter.usage(), 0);
    assert_eq!(
        world.frames.nr_used(),
        0,
        "frames that the books have forgotten"
    );
    // A worker may just hold what it stored for a page that went; it gives it back by itself.
    lockdep::sync::sleep("quiet", Duration::from_millis(50));
    assert_eq!(world.memcg.zswap().bytes(), 0);
}

/// G6 and G10: the machine has no frame beyond the bound, so one too many would be an error.
#[test]
fn the_bound_is_kept_on_a_machine_that_has_no_more() {
    Sim::check(0..150, |sim| {
        count_under_pressure(sim, MachineFaults::default(), 0)
    });
}

/// The machine may say that a page is busy, or stop in the middle of a run.
#[test]
fn contents_survive_a_machine_that_refuses() {
    Sim::check(0..150, |sim| {
        let faults = MachineFaults {
            seed: sim.seed(),
            busy_one_in: 5,
            detach_fails_one_in: 9,
            ..MachineFaults::default()
        };
        count_under_pressure(sim, faults, 0);
    });
}

/// Canary: a machine that loses what is written during a detach must be found out.
#[test]
fn a_machine_that_loses_writes_is_found_out() {
    let run = Sim::find(0..300, |sim| {
        let faults = MachineFaults {
            seed: sim.seed(),
            copy_then_discard_one_in: 2,
            ..MachineFaults::default()
        };
        // The copy needs a frame beside the page.
        count_under_pressure(sim, faults, 5);
    });
    let run = run.expect("a write is lost under some schedule");
    let End::Panicked { task, message } = &run.end else {
        panic!("{run}");
    };
    assert_eq!(task, "counter");
    assert!(message.contains(" went back"), "{message}");
}

/// G15, through the whole memory manager.
#[test]
fn a_seed_replays_the_memory_manager() {
    let run = |seed| {
        Sim::run(seed, |sim| {
            count_under_pressure(sim, MachineFaults::default(), 0)
        })
    };
    for seed in 0..10 {
        let first = run(seed);
        first.expect_pass();
        assert_eq!(first, run(seed));
    }
}
