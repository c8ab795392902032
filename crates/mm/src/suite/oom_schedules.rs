//! Running out of memory at awkward moments.

use super::oom::{leak, limits};
use super::{Machine, Mapping, Rng, World, linger, offset_of, read_page, write_page};
use crate::addr::{PAGE_SIZE, PageRun};
use crate::fault::FaultError;
use crate::gfp::Gfp;
use crate::limits::Limits;
use crate::memcg::{Knob, Memcg};
use crate::mmu_notifier::{Blockable, Cause, Context, Event, Mode, Notifier, Range, Ranges};
use crate::oom::{Held, Reason};
use crate::page::State;
use crate::primary_mmu::Access;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::time::Duration;
use lockdep::sync::{Fence, Mutex};
use std::sync::Arc;

/// Nothing fits into the store: what is full is full.
fn without_store(frames: u64) -> Limits {
    Limits {
        zswap_max_bytes: PAGE_SIZE as u64,
        ..limits(frames)
    }
}

fn fill(mapping: &dyn Mapping, nr_pages: u32, seed: u64) -> Vec<Vec<u8>> {
    let mut rng = Rng(seed);
    let contents: Vec<_> = (0..nr_pages).map(|_| rng.incompressible()).collect();
    for (page, contents) in (0..).zip(&contents) {
        write_page(mapping, page, contents);
    }
    contents
}

#[track_caller]
fn check_contents(mapping: &dyn Mapping, contents: &[Vec<u8>]) {
    for (page, contents) in (0..).zip(contents) {
        assert!(read_page(mapping, page) == *contents, "page {page}");
    }
}

fn victims(memcg: &Memcg) -> Vec<(String, Reason)> {
    let told = memcg.oom_reports().into_iter();
    told.map(|report| (report.victim.to_string(), report.reason))
        .collect()
}

/// Each has its own killer, its own reaper and its own victim.
pub(super) fn two_memory_cgroups_run_out_at_once(machine: &dyn Machine) {
    let worlds = [0, 1].map(|_| World::with_limits(machine, without_store(24)));
    let settings = [0, 1].map(|nr: usize| {
        let world = &worlds[nr];
        let mms = ["good", "bad"].map(|name| world.memcg.new_mm(name));
        let maps = [8, 128].map(|pages| world.map(&mms[usize::from(pages == 128)], pages));
        let contents = fill(&*maps[0], 8, 120 + nr as u64);
        (mms, maps, contents)
    });
    let leaks = [0, 1].map(|nr: usize| {
        let leaked = Arc::clone(&settings[nr].1[1]);
        worlds[nr].spawn("leaks", move || {
            leak(&*leaked, 128, 122 + nr as u64);
        })
    });
    for leaked in leaks {
        leaked();
    }
    for (world, ([good, bad], [kept, _], contents)) in worlds.iter().zip(&settings) {
        world.wait_until_reaped();
        assert_eq!(victims(&world.memcg), [("bad".into(), Reason::Badness)]);
        assert!(bad.is_killed() && !good.is_killed());
        assert_eq!((bad.nr_frames(), bad.nr_swapped()), (0, 0));
        check_contents(&**kept, contents);
    }
}

/// Settles a fence, and so lets go when that signals.
struct Slow(Fence);

impl Notifier for Slow {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        cx.settle(&self.0)
    }

    fn release(&self, cx: &Blockable<'_>) {
        let Ok(()) = cx.settle(&self.0);
    }
}

/// A teardown that waits for a device keeps memory that nobody uses: the reaper takes it, but for
/// what the device holds, and the teardown goes on when the device answers.
pub(super) fn a_victim_that_exits_already_is_reaped(machine: &dyn Machine) {
    let limits = Limits {
        settle_deadline: Duration::from_millis(4),
        reap_passes: 2,
        ..without_store(32)
    };
    let world = World::with_limits(machine, limits);
    let exiting = world.memcg.new_mm("exiting");
    let shared = exiting.share();
    let mapping = world.map(&exiting, 24);
    fill(&*mapping, 24, 130);
    let fence = Fence::new("suite.slow");
    let vma = mapping.vma();
    let held = Ranges::Only(vec![vma.address(2)..vma.address(5)]);
    let device = Arc::new(Slow(fence.clone()));
    let subscription = shared.notifiers().subscribe("slow", held, device);
    drop(exiting);
    assert_eq!(shared.nr_frames(), 24, "the device has not answered");
    let other = world.memcg.new_mm("other");
    leak(&*world.map(&other, 64), 64, 131);
    world.wait_until_reaped();
    let reports = world.memcg.oom_reports();
    let told: Vec<_> = reports.iter().map(|report| &*report.victim).collect();
    assert_eq!(told, ["exiting", "other"]);
    let named: Vec<_> = reports[0]
        .skipped
        .iter()
        .map(|s| (&*s.holder, s.how, s.pages))
        .collect();
    let refused = Held::Refused(Cause::WouldBlock);
    assert_eq!(named, [("slow", refused, 3)], "{}", reports[0]);
    assert_eq!((shared.nr_frames(), reports[0].back_ns), (3, None));
    fence.signal();
    world.wait_until("everything is free", || world.memcg.frames().usage() == 0);
    drop(subscription);
}

/// Keeps whoever tells it of an unmap without blocking, for a moment.
#[derive(Default)]
struct Gate {
    is_open: AtomicBool,
    has_reaper: AtomicBool,
}

impl Notifier for Gate {
    fn start<C: Context>(&self, range: &Range, _cx: &C) -> Result<(), C::Refusal> {
        if (range.event, range.mode) == (Event::Unmap, Mode::NonBlock) {
            self.has_reaper.store(true, Ordering::Relaxed);
            linger(|| !self.is_open.load(Ordering::Relaxed));
        }
        Ok(())
    }
}

/// What a program left behind with its address space, which asks for the reports when it goes.
struct Remains {
    memcg: Arc<Memcg>,
    is_gone: Arc<AtomicBool>,
}

impl Drop for Remains {
    fn drop(&mut self) {
        // No lock is held where an address space goes.
        assert_eq!(self.memcg.oom_reports().len(), 1);
        self.is_gone.store(true, Ordering::Relaxed);
    }
}

/// The program lets go of everything while the reaper is in the middle of it.
pub(super) fn the_last_reference_drops_in_the_reaper(machine: &dyn Machine) {
    let limits = Limits {
        nonblock_budget: Duration::from_secs(60),
        ..without_store(32)
    };
    let world = World::with_limits(machine, limits);
    let mm = world.memcg.new_mm("victim");
    let mapping = world.map(&mm, 24);
    fill(&*mapping, 24, 140);
    let is_gone = Arc::new(AtomicBool::new(false));
    let remains = Remains {
        memcg: Arc::clone(&world.memcg),
        is_gone: Arc::clone(&is_gone),
    };
    mm.set_on_kill(move || assert!(!remains.is_gone.load(Ordering::Relaxed)));
    let gate = Arc::new(Gate::default());
    let subscription = mm
        .notifiers()
        .subscribe("slow", Ranges::WholeMm, Arc::clone(&gate));
    assert!(world.memcg.kill(&mm));
    world.wait_until("the reaper is in the middle", || {
        gate.has_reaper.load(Ordering::Relaxed)
    });
    drop(subscription);
    drop((mm, mapping));
    assert_eq!(
        world.memcg.frames().usage(),
        0,
        "torn down beside the reaper"
    );
    assert!(!is_gone.load(Ordering::Relaxed), "the reaper holds it");
    gate.is_open.store(true, Ordering::Relaxed);
    world.wait_until("it is gone", || is_gone.load(Ordering::Relaxed));
    world.wait_until_reaped();
}

/// Somebody has more memory given to the group while it has none.
pub(super) fn a_limit_that_is_raised_ends_the_shortage(machine: &dyn Machine) {
    let world = World::with_limits(machine, without_store(16));
    let mm = world.memcg.new_mm("needs");
    // Nobody can be killed, so whoever needs memory waits.
    mm.set_oom_score_adj(-1000);
    let mapping = world.map(&mm, 32);
    let writer = {
        let mapping = Arc::clone(&mapping);
        world.spawn("writer", move || drop(fill(&*mapping, 28, 150)))
    };
    let stalls = world.memcg.stat().stalls;
    world.wait_until("reclaim finds nothing", || {
        world.memcg.stat().stalls > stalls + 24
    });
    let usage = world.memcg.frames().usage();
    assert!(usage <= 16, "{usage} frames of 16");
    let raised = world.memcg.set_limit(Knob::Max, 32 * PAGE_SIZE as u64);
    raised.expect("a higher one can always be had");
    writer();
    assert_eq!(world.memcg.frames().max(), 32);
    assert_eq!(world.memcg.stat().oom_kill, 0);
    drop(mapping);
}

/// What it must not do, and what comes of it: errors, and no deadlock.
pub(super) fn a_reaction_to_a_kill_that_asks_for_memory_gets_none(machine: &dyn Machine) {
    let world = World::with_limits(machine, without_store(32));
    let [good, bad] = ["good", "bad"].map(|name| world.memcg.new_mm(name));
    let (kept, leaked) = (world.map(&good, 8), world.map(&bad, 128));
    let contents = fill(&*kept, 4, 160);
    let answers = Arc::new(Mutex::new("suite.answers", Vec::new()));
    let told = Arc::clone(&answers);
    let own = Arc::clone(leaked.vma());
    bad.set_on_kill(move || {
        let pinned = own.pin(PageRun::single(127), Access::Write, Gfp::NoWait);
        let heap = vec![1_u8; 1 << 16];
        told.lock().push((pinned.is_err(), heap.len()));
    });
    leak(&*leaked, 128, 161);
    world.wait_until_reaped();
    world.wait_until("it has its answer", || !answers.lock().is_empty());
    assert_eq!(*answers.lock(), [(true, 1 << 16)]);
    assert_eq!((bad.nr_frames(), world.memcg.stat().oom_kill), (0, 1));
    check_contents(&*kept, &contents);
}

/// Refuses so many times.
struct Refuses(AtomicU32);

impl Notifier for Refuses {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let left = self.0.load(Ordering::Relaxed);
        if range.event == Event::Unmap && left > 0 {
            self.0.store(left - 1, Ordering::Relaxed);
            cx.would_block()?;
        }
        Ok(())
    }
}

/// The last pass is as good as the first.
pub(super) fn n113_success_in_the_last_pass_is_success(machine: &dyn Machine) {
    let passes = limits(8).reap_passes;
    for (nr_refused, left) in [(0, 0), (1, 0), (passes - 1, 0), (passes, 1)] {
        let world = World::with_limits(machine, limits(8));
        let mm = world.memcg.new_mm("victim");
        // One page, so that it is asked for once in each pass.
        let mapping = world.map(&mm, 1);
        write_page(&*mapping, 0, &[1]);
        // The machine lets the writer go on before the thread that served it has noted the page.
        world.wait_until("the fault is over", || {
            (mm.nr_frames(), mapping.vma().page_state(0)) == (1, State::Resident)
        });
        let device = Arc::new(Refuses(AtomicU32::new(nr_refused)));
        let subscription = mm.notifiers().subscribe("nic", Ranges::WholeMm, device);
        assert!(world.memcg.kill(&mm));
        world.wait_until_reaped();
        let report = &world.memcg.oom_reports()[0];
        assert_eq!(report.passes, (nr_refused + 1).min(passes), "{report}");
        assert_eq!((mm.nr_frames(), report.skipped.len() as u64), (left, left));
        assert_eq!(report.back_ns.is_some(), left == 0);
        drop(subscription);
    }
}

/// The address space is killed for want of memory, and gone: a fault in it is not a fault of
/// another that took its place.
pub(super) fn who_takes_the_place_of_a_victim_has_its_own_memory(machine: &dyn Machine) {
    let world = World::with_limits(machine, without_store(32));
    for round in 0..4 {
        let mm = world.memcg.new_mm("tenant");
        let mapping = world.map(&mm, 24);
        assert!(
            read_page(&*mapping, 7) == vec![0; PAGE_SIZE],
            "round {round}"
        );
        let contents = fill(&*mapping, 24, 170 + round);
        check_contents(&*mapping, &contents);
        assert!(world.memcg.kill(&mm));
        world.wait_until_reaped();
        let read = mapping.read(offset_of(7), &mut [0]);
        assert_eq!(read, Err(FaultError::Killed));
    }
    assert_eq!(world.memcg.stat().oom_kill, 4);
}
