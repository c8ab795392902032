//! Memory cgroups in memory cgroups: bounds, protection, changes while they are in use.

use super::oom::leak;
use super::{Join, Machine, Mapping, Rng, World, linger, offset_of, read_page, write_page};
use crate::addr::{PAGE_SIZE, PageRun};
use crate::fault::FaultError;
use crate::gfp::Gfp;
use crate::limits::{LimitError, Limits};
use crate::memcg::{Knob, Memcg, SetLimitError, Shrinker};
use crate::mm_struct::{Advice, MmHandle, PinError};
use crate::page::State;
use crate::primary_mmu::Access;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::{Arc, Weak};

const PAGE_BYTES: u64 = PAGE_SIZE as u64;

fn limits(frames: u64) -> Limits {
    let mut limits = Limits::new(frames * PAGE_BYTES);
    limits.zswap_max_bytes = 256 * PAGE_BYTES;
    limits
}

/// Each page holds its own number and how often it was written.
fn churn(mapping: &dyn Mapping, nr_pages: u32, seed: u64, steps: u32) {
    let mut rng = Rng(seed);
    let mut model = vec![0u64; nr_pages as usize];
    for _ in 0..steps {
        let page = rng.below(u64::from(nr_pages)) as u32;
        let mut word = [0; 8];
        mapping.read(offset_of(page), &mut word).expect("contents");
        assert_eq!(
            u64::from_le_bytes(word),
            model[page as usize],
            "page {page}"
        );
        if rng.below(2) == 0 {
            let next = rng.next();
            mapping
                .write(offset_of(page), &next.to_le_bytes())
                .expect("room");
            model[page as usize] = next;
        }
    }
}

#[track_caller]
fn check_level(memcg: &Memcg) {
    for counter in [
        memcg.frames(),
        memcg.swap(),
        memcg.zswap_bytes(),
        memcg.total(),
    ] {
        let is_kept = !counter.is_exceeded();
        assert!(
            is_kept,
            "above its bound in {:?}: {counter:?}",
            memcg.name()
        );
    }
}

struct Tenant {
    memcg: Arc<Memcg>,
    mm: MmHandle,
    mapping: Arc<dyn Mapping>,
}

fn tenant(world: &World<'_>, parent: &Arc<Memcg>, limits: Limits, nr_pages: u32) -> Tenant {
    let memcg = parent
        .new_child("tenant", limits)
        .expect("bounds with room");
    let mm = memcg.new_mm("tenant");
    let mapping = world.map(&mm, nr_pages);
    Tenant { memcg, mm, mapping }
}

/// G6, G10.
pub(super) fn every_level_keeps_its_bound(machine: &dyn Machine) {
    let world = World::with_limits(machine, limits(20));
    let middle = world.memcg.new_child("middle", limits(14)).expect("room");
    let tenants = [(&world.memcg, 12), (&middle, 9), (&middle, 6)]
        .map(|(parent, frames)| tenant(&world, parent, limits(frames), 40));
    let tasks: Vec<_> = (0..)
        .zip(&tenants)
        .map(|(seed, tenant)| {
            let mapping = Arc::clone(&tenant.mapping);
            world.spawn("churn", move || churn(&*mapping, 40, seed, 600))
        })
        .collect();
    for join in tasks {
        join();
    }
    let levels = tenants.each_ref().map(|tenant| &tenant.memcg);
    for level in levels.into_iter().chain([&middle, &world.memcg]) {
        check_level(level);
        assert!(level.stat().pgsteal > 0, "{level:?} evicted nothing");
    }
    let mut sum = 0;
    // A worker may take pages back between the two looks.
    world.wait_until("pages are counted once at each level", || {
        let stats = tenants.iter().map(|tenant| tenant.memcg.stat());
        sum = stats.map(|stat| stat.pgsteal).sum();
        world.memcg.stat().pgsteal == sum
    });
    drop(tenants);
    world.wait_until_empty();
    assert_eq!((middle.frames().usage(), middle.swap().usage()), (0, 0));
    let seen = world.memcg.stat().pgsteal;
    assert!(seen >= sum, "what is gone is not forgotten");
}

/// Above `high` a thread is held up, and goes on: also when nothing can be taken back.
pub(super) fn who_is_above_high_gets_on(machine: &dyn Machine) {
    let world = World::with_limits(machine, limits(64));
    let mut bounds = limits(64);
    bounds.high_bytes = 12 * PAGE_BYTES;
    let Tenant { memcg, mapping, .. } = &tenant(&world, &world.memcg, bounds, 80);
    churn(&**mapping, 80, 3, 600);
    let peak = memcg.frames().peak();
    assert!(peak < 24, "{peak} frames were in use, with `high` at 12");
    let pin = mapping
        .vma()
        .pin(PageRun::new(0, 16), Access::Write, Gfp::Kernel)
        .expect("it is held up only");
    let high = memcg.memory_events().find(|event| event.0 == "high");
    assert!(high.is_some_and(|(_, nr)| nr >= 4), "{high:?}");
    drop(pin);
    assert_eq!(memcg.stat().oom_kill, 0);
}

/// What `min` protects stays whatever others need; what `low` protects, while there is anything
/// else.
pub(super) fn reclaim_from_above_leaves_what_is_protected(machine: &dyn Machine) {
    for (min_frames, low_frames) in [(16, 0), (0, 16)] {
        let world = World::with_limits(machine, limits(32));
        let mut bounds = limits(32);
        bounds.min_bytes = min_frames * PAGE_BYTES;
        bounds.low_bytes = low_frames * PAGE_BYTES;
        let kept = tenant(&world, &world.memcg, bounds, 12);
        let other = tenant(&world, &world.memcg, limits(32), 96);
        for page in 0..12 {
            write_page(&*kept.mapping, page, &[page as u8 + 1]);
        }
        churn(&*other.mapping, 96, 5, 800);
        let stolen = kept.memcg.stat().pgsteal;
        assert_eq!(stolen, 0, "min {min_frames}, low {low_frames}");
        assert!(other.memcg.stat().pgsteal > 0);
        want_what_is_protected(&world, (&kept, &other), min_frames > 0);
        for page in 0..12 {
            assert_eq!(read_page(&*kept.mapping, page)[0], page as u8 + 1);
        }
    }
}

/// Pins so much that nothing is left but what is protected: it goes, or whoever wants it does.
fn want_what_is_protected(world: &World<'_>, (kept, other): (&Tenant, &Tenant), is_min: bool) {
    kept.mm.set_oom_score_adj(-1000);
    if !is_min {
        // Nobody may be killed in its place.
        other.mm.set_oom_score_adj(-1000);
    }
    let run = PageRun::new(0, 24);
    let pinned = other.mapping.vma().pin(run, Access::Write, Gfp::Kernel);
    let low = world.memcg.memory_events().find(|event| event.0 == "low");
    let has_met_low = low.is_some_and(|(_, nr)| nr > 0);
    let stolen = kept.memcg.stat().pgsteal;
    if !is_min {
        assert!(
            pinned.is_ok(),
            "what is protected by `low` goes: {pinned:?}"
        );
        assert!(has_met_low && stolen > 0, "{low:?}, {stolen} frames");
        return;
    }
    let is_killed = matches!(
        pinned,
        Err(PinError::Fault {
            error: FaultError::Killed,
            ..
        })
    );
    assert!(is_killed && other.mm.is_killed(), "{pinned:?}");
    assert_eq!((has_met_low, stolen), (false, 0), "`min` stays");
    world.wait_until_reaped();
}

/// Protection is shared out: a parent's, to those of its children that ask for it.
pub(super) fn a_child_is_protected_within_its_parent(machine: &dyn Machine) {
    let world = World::with_limits(machine, limits(40));
    let mut bounds = limits(40);
    bounds.min_bytes = 12 * PAGE_BYTES;
    let parent = world
        .memcg
        .new_child("parent", bounds.clone())
        .expect("room");
    let kept = tenant(&world, &parent, bounds, 12);
    let sibling = tenant(&world, &parent, limits(40), 12);
    let other = tenant(&world, &world.memcg, limits(40), 96);
    for page in 0..12 {
        write_page(&*kept.mapping, page, &[1]);
        write_page(&*sibling.mapping, page, &[2]);
    }
    churn(&*other.mapping, 96, 6, 800);
    assert_eq!(kept.memcg.stat().pgsteal, 0);
    assert!(sibling.memcg.stat().pgsteal > 0);
}

/// G6: at every instant, also while the bound moves.
pub(super) fn bounds_change_while_they_are_in_use(machine: &dyn Machine) {
    let world = World::with_limits(machine, limits(48));
    let Tenant { memcg, mapping, .. } = &tenant(&world, &world.memcg, limits(40), 64);
    let is_over = Arc::new(AtomicBool::new(false));
    let tasks = [7, 8].map(|seed| {
        let mapping = Arc::clone(mapping);
        let first = if seed == 7 { 0 } else { 32 };
        world.spawn("writer", move || {
            let mut rng = Rng(seed);
            for _ in 0..500 {
                let page = first + rng.below(32) as u32;
                mapping.write(offset_of(page), &[page as u8]).expect("room");
            }
        })
    });
    let watcher = {
        let (memcg, is_over) = (Arc::clone(memcg), Arc::clone(&is_over));
        world.spawn("watcher", move || {
            while !is_over.load(Ordering::Relaxed) {
                let (max, usage) = (memcg.frames().max(), memcg.frames().usage());
                // The bound may have been raised in between, not lowered below what is in use.
                assert!(
                    usage <= max.max(memcg.frames().max()),
                    "{usage} above {max}"
                );
                lockdep::sync::sleep("suite.watcher", core::time::Duration::from_micros(50));
            }
        })
    };
    for frames in [30, 12, 40, 5, 20, 4, 40, 8] {
        // A thread that is kept from its processor while it has a page is in the way for a while.
        world.wait_until("the bound changes", || {
            match memcg.set_limit(Knob::Max, frames * PAGE_BYTES) {
                Ok(()) => true,
                Err(SetLimitError::InUse { .. }) => false,
                Err(error) => panic!("{error}"),
            }
        });
        assert_eq!(memcg.frames().max(), frames);
        check_level(memcg);
    }
    tasks.into_iter().for_each(|join| join());
    is_over.store(true, Ordering::Relaxed);
    watcher();
    refused_changes(memcg, &**mapping);
}

fn refused_changes(memcg: &Memcg, mapping: &dyn Mapping) {
    let run = PageRun::new(0, 6);
    let pin = mapping.vma().pin(run, Access::Write, Gfp::Kernel);
    let pin = pin.expect("eight frames");
    let refused = memcg.set_limit(Knob::Max, 5 * PAGE_BYTES);
    let six = 6 * PAGE_BYTES;
    let is_typed = matches!(
        refused,
        Err(SetLimitError::InUse { usage_bytes, .. }) if usage_bytes >= six
    );
    assert!(is_typed && memcg.frames().max() == 8, "{refused:?}");
    drop(pin);
    let refused = memcg.set_limit(Knob::Max, PAGE_BYTES);
    let too_small = LimitError::TooSmall {
        max_bytes: PAGE_BYTES,
    };
    assert_eq!(refused, Err(SetLimitError::Limit(too_small)));
    assert_eq!(memcg.set_limit(Knob::Max, 5 * PAGE_BYTES), Ok(()));
}

/// G6 for what is stored: `swap.max`, `zswap.max` and `total.max`.
pub(super) fn what_is_stored_keeps_its_bounds(machine: &dyn Machine) {
    const NR_PAGES: u32 = 24;
    let world = World::with_limits(machine, limits(64));
    for knob in [Knob::SwapMax, Knob::ZswapMax, Knob::TotalMax] {
        let mut bounds = limits(24);
        match knob {
            Knob::SwapMax => bounds.swap_max_bytes = 9 * PAGE_BYTES,
            Knob::ZswapMax => bounds.zswap_max_bytes = 6 * PAGE_BYTES,
            _ => bounds.total_max_bytes = 18 * PAGE_BYTES,
        }
        let Tenant { memcg, mapping, .. } = &tenant(&world, &world.memcg, bounds, NR_PAGES);
        let vma = mapping.vma();
        let mut rng = Rng(17);
        let contents: Vec<_> = (0..NR_PAGES).map(|_| rng.half_compressible()).collect();
        for page in 0..NR_PAGES {
            write_page(&**mapping, page, &contents[page as usize]);
        }
        vma.advise(vma.all(), Advice::PageOut)
            .expect("nobody refuses");
        check_level(memcg);
        let nr_stored = memcg.swap().usage();
        let is_bounded = knob == Knob::TotalMax || nr_stored < u64::from(NR_PAGES);
        assert!(nr_stored > 0 && is_bounded, "{knob:?}: {nr_stored} pages");
        for page in 0..NR_PAGES {
            let found = read_page(&**mapping, page);
            assert!(found == contents[page as usize], "{knob:?}: page {page}");
        }
        check_level(memcg);
        let swapped = (0..NR_PAGES).filter(|&page| vma.page_state(page) == State::Swapped);
        assert!(swapped.count() as u64 <= memcg.swap().usage());
    }
}

/// A fault that would wait for longer than any test takes.
fn patient(frames: u64) -> Limits {
    Limits {
        fault_deadline: Duration::from_secs(3600),
        ..limits(frames)
    }
}

/// A task that writes `page` once `may_begin`; and whether it is done with it.
fn spawn_writer(
    world: &World<'_>,
    mapping: &Arc<dyn Mapping>,
    page: u32,
    may_begin: impl Fn() -> bool + Send + 'static,
) -> (Join, Arc<AtomicBool>) {
    let is_done = Arc::new(AtomicBool::new(false));
    let (mapping, done) = (Arc::clone(mapping), Arc::clone(&is_done));
    let body = move || {
        linger(|| !may_begin());
        // The world may have ended because the test failed: that is told there.
        let _ = mapping.write(offset_of(page), &[1]);
        done.store(true, Ordering::Relaxed);
    };
    (world.spawn("writer", body), is_done)
}

/// A cache of nothing that is asked while a bound is lowered, until somebody waits for a frame.
struct Gate {
    memcg: Weak<Memcg>,
    is_asked: AtomicBool,
}

impl Shrinker for Gate {
    fn count(&self) -> u64 {
        1
    }

    fn scan(&self, _nr: u64) -> Option<u64> {
        self.is_asked.store(true, Ordering::Relaxed);
        let memcg = self.memcg.upgrade()?;
        linger(|| memcg.frames.nr_waiting() == 0);
        None
    }
}

/// G6: who came to wait while a bound could not be lowered goes on when that is given up.
pub(super) fn a_bound_that_stays_lets_those_who_wait_go_on(machine: &dyn Machine) {
    let world = World::with_limits(machine, patient(64));
    let Tenant { memcg, mm, mapping } = &tenant(&world, &world.memcg, limits(32), 40);
    mm.set_oom_score_adj(-1000);
    let run = PageRun::new(0, 16);
    let pin = mapping.vma().pin(run, Access::Write, Gfp::Kernel);
    let _pin = pin.expect("32 frames");
    let gate = Arc::new(Gate {
        memcg: Arc::downgrade(memcg),
        is_asked: AtomicBool::new(false),
    });
    let asked = Arc::clone(&gate);
    let handle = memcg.register_shrinker("gate", Arc::clone(&gate) as Arc<dyn Shrinker>);
    let (writer, is_done) = spawn_writer(&world, mapping, 20, move || {
        asked.is_asked.load(Ordering::Relaxed)
    });
    let refused = memcg.set_limit(Knob::Max, 8 * PAGE_BYTES);
    let is_in_use = matches!(refused, Err(SetLimitError::InUse { .. }));
    assert!(is_in_use && memcg.frames().max() == 32, "{refused:?}");
    world.wait_until("the writer has its frame", || {
        is_done.load(Ordering::Relaxed)
    });
    assert!(memcg.stat().pgfault_waited > 0, "it had to wait");
    writer();
    drop(handle);
}

/// G6: who waits for room in the total alone goes on when compressed bytes come free.
pub(super) fn what_is_stored_makes_room_for_frames_when_it_goes(machine: &dyn Machine) {
    const NR_STORED: u32 = 6;
    let world = World::with_limits(machine, patient(64));
    let mut bounds = limits(24);
    bounds.total_max_bytes = 18 * PAGE_BYTES;
    let Tenant { memcg, mm, mapping } = &tenant(&world, &world.memcg, bounds, 64);
    mm.set_oom_score_adj(-1000);
    let vma = mapping.vma();
    let (stored, mut rng) = (PageRun::new(0, NR_STORED), Rng(23));
    for page in stored.pages() {
        write_page(&**mapping, page, &rng.incompressible());
    }
    vma.advise(stored, Advice::PageOut).expect("nobody refuses");
    let pin = |page| vma.pin(PageRun::single(page), Access::Write, Gfp::Kernel);
    let mut pins = Vec::new();
    while memcg.room() > 0 {
        pins.push(pin(NR_STORED + pins.len() as u32).expect("a frame"));
    }
    assert!(memcg.frames().free() > 0 && memcg.swap().usage() == 6);
    let (writer, is_done) = spawn_writer(&world, mapping, 60, || true);
    let is_waiting = || memcg.frames.nr_waiting() > 0;
    world.wait_until("the writer waits", is_waiting);
    vma.advise(stored, Advice::DontNeed)
        .expect("nobody refuses");
    let has_written = || is_done.load(Ordering::Relaxed);
    world.wait_until("the writer has its frame", has_written);
    writer();
    check_level(memcg);
}

/// G6: a lower total is reached by storing what is in frames, and leaves room to store more.
pub(super) fn a_total_is_lowered_by_storing_pages(machine: &dyn Machine) {
    const NR_PAGES: u32 = 40;
    let world = World::with_limits(machine, limits(64));
    let mut bounds = limits(48);
    bounds.total_max_bytes = 60 * PAGE_BYTES;
    let Tenant { memcg, mapping, .. } = &tenant(&world, &world.memcg, bounds, NR_PAGES);
    let mut rng = Rng(29);
    let contents: Vec<_> = (0..NR_PAGES).map(|_| rng.half_compressible()).collect();
    for page in 0..NR_PAGES {
        write_page(&**mapping, page, &contents[page as usize]);
    }
    for pages in [50, 36, 32] {
        let set = memcg.set_limit(Knob::TotalMax, pages * PAGE_BYTES);
        assert_eq!(set, Ok(()), "{:?}", memcg.total());
        assert_eq!(memcg.total().max(), pages * PAGE_BYTES);
        check_level(memcg);
        for page in 0..NR_PAGES {
            let found = read_page(&**mapping, page);
            assert!(found == contents[page as usize], "page {page}");
        }
    }
    assert_eq!(memcg.stat().oom_kill, 0);
    check_level(memcg);
}

/// Whoever goes while all are visited takes nobody's turn with it.
pub(super) fn every_level_has_its_turn(machine: &dyn Machine) {
    let world = World::with_limits(machine, limits(64));
    for goes in 0..3 {
        let levels = [0, 1, 2].map(|_| world.memcg.new_child("level", limits(64)).expect("room"));
        let mut mms: Vec<_> = levels
            .iter()
            .map(|level| Some(level.new_mm("one")))
            .collect();
        let mut nr_visits = [0; 3];
        world.memcg.for_each_level(&mut |at| {
            if let Some(nth) = levels.iter().position(|level| level.is(at)) {
                nr_visits[nth] += 1;
                mms[nth].take_if(|_| nth == goes);
            }
        });
        assert!(nr_visits.iter().all(|&nr| nr > 0), "{goes}: {nr_visits:?}");
    }
}

/// G7: who is out of memory is killed where the bound is, not elsewhere.
pub(super) fn a_child_out_of_memory_kills_within(machine: &dyn Machine) {
    let world = World::with_limits(machine, limits(64));
    let mut bounds = limits(16);
    bounds.zswap_max_bytes = 32 * PAGE_BYTES;
    bounds.oom_group = true;
    let big = tenant(&world, &world.memcg, limits(64), 40);
    for page in 0..40 {
        write_page(&*big.mapping, page, &[9]);
    }
    let small = tenant(&world, &world.memcg, bounds, 512);
    let member = small.memcg.new_mm("member");
    write_page(&*world.map(&member, 1), 0, &[1]);
    leak(&*small.mapping, 512, 33);
    assert!(small.mm.is_killed() && member.is_killed() && !big.mm.is_killed());
    world.wait_until_reaped();
    let events: Vec<_> = small.memcg.memory_events().collect();
    assert!(events.contains(&("oom_group_kill", 1)), "{events:?}");
    assert_eq!(big.memcg.stat().oom_kill, 0);
    assert_eq!(read_page(&*big.mapping, 39)[0], 9);
}

/// Memory runs out where the bound is, and a kill is counted where the victim belongs to.
pub(super) fn a_kill_is_counted_where_the_victim_was(machine: &dyn Machine) {
    let mut bounds = limits(16);
    bounds.zswap_max_bytes = 32 * PAGE_BYTES;
    let world = World::with_limits(machine, bounds);
    let [worst, other] = [512, 4].map(|nr| tenant(&world, &world.memcg, limits(64), nr));
    write_page(&*other.mapping, 0, &[9]);
    leak(&*worst.mapping, 512, 35);
    world.wait_until_reaped();
    let told = |memcg: &Memcg| {
        let mut events = memcg.memory_events();
        ["oom", "oom_kill"].map(|name| events.find(|(known, _)| *known == name).map(|it| it.1))
    };
    let [root, worst, other] = [&world.memcg, &worst.memcg, &other.memcg].map(|at| told(at));
    assert_eq!(root, [Some(1), Some(1)]);
    assert_eq!((worst, other), ([Some(0), Some(1)], [Some(0), Some(0)]));
}

/// G7: whether one goes or all is what was set last. Kernel counterpart: writes to
/// `memory.oom.group`.
pub(super) fn who_goes_together_changes_while_in_use(machine: &dyn Machine) {
    let world = World::with_limits(machine, limits(64));
    let mut bounds = limits(16);
    bounds.zswap_max_bytes = 32 * PAGE_BYTES;
    let memcg = world.memcg.new_child("group", bounds).expect("room");
    for (seed, together) in (41..).zip([false, true, false]) {
        memcg.set_oom_group(together);
        let groups = memcg.stat().oom_group_kill;
        let (worst, member) = (memcg.new_mm("worst"), memcg.new_mm("member"));
        let kept = world.map(&member, 1);
        write_page(&*kept, 0, &[7]);
        leak(&*world.map(&worst, 512), 512, seed);
        world.wait_until_reaped();
        assert_eq!((worst.is_killed(), member.is_killed()), (true, together));
        let groups = memcg.stat().oom_group_kill - groups;
        assert_eq!(groups, u64::from(together));
        if !together {
            assert_eq!(read_page(&*kept, 0)[0], 7);
        }
    }
}
