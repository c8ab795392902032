//! Random programs under the hardest limits, on random schedules: each gets through, with what it
//! wrote, and no bound is exceeded (G6, G10).
//!
//! The simulator ends a run in which every task waits, or which takes too many steps. A fault that
//! waits for its deadline fails its program.

use crate::machine::OnTasks;
use lockdep::sync::Completion;
use pinless_mm::addr::{PAGE_SIZE, PageRun};
use pinless_mm::gfp::Gfp;
use pinless_mm::limits::{FRAMES_MIN, Limits};
use pinless_mm::memcg::{Counter, Knob};
use pinless_mm::mm_struct::Advice;
use pinless_mm::primary_mmu::Access;
use pinless_mm::suite::{Machine, Mapping};
use pinless_mm::swap::BackingFile;
use pinless_mm::{Memcg, MmHandle};
use pinless_sim::{FileFaults, Options, Rng, Sim, SimFile};
use std::sync::Arc;
use std::time::Duration;

/// Seeds, when `PINLESS_HARDEST_SEEDS` says nothing else.
const NR_SEEDS: u64 = 40;

const PROGRAMS: u32 = 3;
const PAGES_EACH: u32 = 12;
const STEPS_EACH: u32 = 80;
const STEPS_MAX: u64 = 20_000_000;
const PAGE_BYTES: u64 = PAGE_SIZE as u64;

/// All bounds that can be changed.
const KNOBS: [Knob; 7] = [
    Knob::Max,
    Knob::High,
    Knob::Low,
    Knob::Min,
    Knob::SwapMax,
    Knob::ZswapMax,
    Knob::TotalMax,
];

/// Bounds from the fewest frames upwards; each of the others is there or not.
fn limits(rng: &mut Rng) -> Limits {
    let frames = FRAMES_MIN + rng.below(6);
    let mut limits = Limits::new(frames * PAGE_BYTES);
    limits.zswap_max_bytes = 64 * PAGE_BYTES;
    if rng.one_in(2) {
        limits.high_bytes = rng.below(frames) * PAGE_BYTES;
    }
    if rng.one_in(3) {
        limits.total_max_bytes = (frames + 50) * PAGE_BYTES;
    }
    if rng.one_in(3) {
        limits.min_bytes = rng.below(FRAMES_MIN) * PAGE_BYTES;
    }
    if rng.one_in(3) {
        limits.low_bytes = rng.below(frames) * PAGE_BYTES;
    }
    limits
}

/// A memory cgroup with its workers, on a file or not.
fn root(sim: &Sim, rng: &mut Rng) -> Arc<Memcg> {
    let mut limits = limits(rng);
    let memcg = if rng.one_in(2) {
        let file = SimFile::new(32, 3 + rng.below(3) as u32, rng.next());
        file.set_faults(FileFaults {
            latency: Duration::from_micros(rng.below(200)),
            ..FileFaults::default()
        });
        limits.zswap_max_bytes = 12 * PAGE_BYTES;
        Memcg::with_file(limits, sim.clock(), Arc::new(file) as Arc<dyn BackingFile>)
    } else {
        Memcg::new(limits, sim.clock())
    };
    let memcg = memcg.expect("bounds with room");
    for (name, run) in [
        ("reclaim", Memcg::run_reclaim as fn(&Memcg)),
        ("settle", Memcg::run_settle),
        ("reaper", Memcg::run_reaper),
        ("spare", Memcg::run_spare),
        ("write back", Memcg::run_write_back),
        ("compact", Memcg::run_compact),
    ] {
        let memcg = Arc::clone(&memcg);
        sim.spawn_daemon(name, move || run(&memcg));
    }
    memcg
}

/// Counts in pages of its own, pins them, and gives advice on them.
fn program(mapping: &dyn Mapping, number: u32, mut rng: Rng) {
    let mut model = [0u64; PAGES_EACH as usize];
    for _ in 0..STEPS_EACH {
        let mine = rng.below(u64::from(PAGES_EACH)) as usize;
        let page = number * PAGES_EACH + mine as u32;
        let (at, run) = (u64::from(page) * PAGE_BYTES, PageRun::single(page));
        match rng.below(10) {
            0 => {
                let pin = mapping.vma().pin(run, Access::Write, Gfp::Kernel);
                let _pin = pin.expect("one page of each program is pinned at most");
                lockdep::sync::sleep("hardest.pinned", Duration::from_micros(rng.below(50)));
            }
            1 => {
                let advice = [Advice::PageOut, Advice::Cold, Advice::WillNeed];
                let advice = advice[rng.below(3) as usize];
                mapping.vma().advise(run, advice).expect("nobody refuses");
            }
            2 => {
                let given_up = mapping.vma().advise(run, Advice::DontNeed);
                given_up.expect("no page of its own is pinned");
                model[mine] = 0;
            }
            what => {
                let mut word = [0; 8];
                mapping.read(at, &mut word).expect("contents");
                assert_eq!(u64::from_le_bytes(word), model[mine], "page {page}");
                if what < 7 {
                    model[mine] = rng.next();
                    let word = model[mine].to_le_bytes();
                    mapping.write(at, &word).expect("room");
                }
            }
        }
    }
}

/// A value for a bound, which programs get through with.
fn value_of(knob: Knob, rng: &mut Rng) -> u64 {
    let frames = FRAMES_MIN + rng.below(6);
    let pages = match knob {
        // What is protected here leaves a frame for those who reclaim from above.
        Knob::Min => rng.below(FRAMES_MIN),
        // Less than is in use, mostly, and for a moment only.
        Knob::SwapMax => rng.below(u64::from(PROGRAMS * PAGES_EACH)),
        Knob::ZswapMax => rng.below(8),
        Knob::TotalMax => frames + 3 + rng.below(8),
        Knob::Max | Knob::High | Knob::Low => frames,
    };
    pages * PAGE_BYTES
}

/// The counter that keeps a bound, and how many bytes it counts as one.
fn counter_of(memcg: &Memcg, knob: Knob) -> Option<(&Counter, u64)> {
    match knob {
        Knob::Max => Some((memcg.frames(), PAGE_BYTES)),
        Knob::SwapMax => Some((memcg.swap(), PAGE_BYTES)),
        Knob::ZswapMax => Some((memcg.zswap_bytes(), 1)),
        Knob::TotalMax => Some((memcg.total(), 1)),
        Knob::High | Knob::Low | Knob::Min => None,
    }
}

/// Lowers and raises bounds while programs run. What cannot be had now is refused. A bound of the
/// store that leaves no room for all pages holds up whoever needs it until it is raised again.
fn change_limits(memcg: &Memcg, mut rng: Rng) {
    for _ in 0..10 {
        let knob = KNOBS[rng.below(KNOBS.len() as u64) as usize];
        let bytes = value_of(knob, &mut rng);
        let counter = counter_of(memcg, knob);
        let before = counter.map(|(counter, unit_bytes)| counter.max() * unit_bytes);
        let is_set = memcg.set_limit(knob, bytes).is_ok();
        if let Some((counter, unit_bytes)) = counter {
            let max = counter.max() * unit_bytes;
            assert_eq!(Some(max), if is_set { Some(bytes) } else { before });
            check_bounds(memcg);
        }
        lockdep::sync::sleep("hardest.changed", Duration::from_micros(rng.below(300)));
        let is_of_store = matches!(knob, Knob::SwapMax | Knob::ZswapMax | Knob::TotalMax);
        if let Some(before) = before.filter(|_| is_of_store && is_set) {
            // What the store cannot hold in any case cannot be had back as a bound.
            let bytes = match knob {
                Knob::ZswapMax => before.min(memcg.zswap().max_bytes()),
                _ => before,
            };
            let raised = memcg.set_limit(knob, bytes);
            assert_eq!(raised, Ok(()), "{knob:?} as it was");
        }
    }
}

fn check_bounds(memcg: &Memcg) {
    for counter in [
        memcg.frames(),
        memcg.swap(),
        memcg.zswap_bytes(),
        memcg.total(),
    ] {
        assert!(!counter.is_exceeded(), "{counter:?}");
    }
}

/// One run: a memory cgroup, perhaps in another one, with programs in it.
fn run(sim: &Sim, seed: u64) {
    let mut rng = Rng::new(seed);
    let root = root(sim, &mut rng);
    let memcg = if rng.one_in(2) {
        Arc::clone(&root)
    } else {
        root.new_child("inner", limits(&mut rng))
            .expect("bounds with room")
    };
    let mm: MmHandle = memcg.new_mm("hardest");
    mm.set_oom_score_adj(-1000);
    let mapping = OnTasks::new(sim).map(&mm, PROGRAMS * PAGES_EACH);
    let ended: Vec<_> = (0..PROGRAMS)
        .map(|number| {
            let ended = Arc::new(Completion::new("ended"));
            let (ends, mapping) = (Arc::clone(&ended), Arc::clone(&mapping));
            let rng = rng.fork();
            sim.spawn("program", move || {
                program(&*mapping, number, rng);
                ends.complete_all();
            });
            ended
        })
        .collect();
    change_limits(&memcg, rng.fork());
    ended.iter().for_each(|ended| ended.wait());
    check_bounds(&memcg);
    check_bounds(&root);
    mm.unmap(mapping.vma()).expect("nobody refuses");
    assert_eq!((root.frames().usage(), root.swap().usage()), (0, 0));
    assert_eq!((root.total().usage(), memcg.total().usage()), (0, 0));
    root.stop();
}

#[test]
fn every_program_gets_through_under_the_hardest_limits() {
    let wanted = std::env::var("PINLESS_HARDEST_SEEDS").ok();
    let nr_seeds = wanted.and_then(|nr| nr.parse().ok()).unwrap_or(NR_SEEDS);
    println!("{nr_seeds} seeds");
    for seed in 0..nr_seeds {
        let options = Options {
            steps_max: STEPS_MAX,
            ..Options::new(seed)
        };
        let ran = Sim::run_with(options, move |sim| run(sim, seed));
        assert!(ran.has_passed(), "{ran}");
    }
}
