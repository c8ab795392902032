//! Callbacks that do not return, and others that break the contract, while memory is needed.

use super::oom::{leak, limits};
use super::{Machine, Mapping, Rng, World, linger, offset_of, write_page};
use crate::addr::{PAGE_SIZE, PageRun};
use crate::bus::{Bus, BusAddr};
use crate::fault::{FaultError, FaultHandler};
use crate::gfp::Gfp;
use crate::limits::Limits;
use crate::mm_struct::{Advice, MmHandle};
use crate::mmu_notifier::{
    Blockable, Cause, Context, EndContext, Event, Mode, Notifier, Range, Ranges, Subscription,
    TlbContext, TlbUser,
};
use crate::oom::Held;
use crate::primary_mmu::Access;
use crate::watch::{Callback, Conviction, Post};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use std::sync::Arc;

/// Far above what a callback takes that returns.
const BUDGET: Duration = Duration::from_millis(100);

fn hasty(frames: u64) -> Limits {
    Limits {
        callback_budget: BUDGET,
        nonblock_budget: BUDGET,
        settle_deadline: BUDGET,
        reap_passes: 3,
        ..limits(frames)
    }
}

/// Stays in one of its callbacks while it is closed.
struct Rude {
    callback: Callback,
    event: Event,
    is_closed: AtomicBool,
    is_in: AtomicBool,
    nr_released: AtomicU64,
}

impl Rude {
    fn new(callback: Callback, event: Event) -> Arc<Self> {
        Arc::new(Self {
            callback,
            event,
            is_closed: AtomicBool::new(true),
            is_in: AtomicBool::new(false),
            nr_released: AtomicU64::new(0),
        })
    }

    fn subscribe(self: &Arc<Self>, mapping: &dyn Mapping, pages: PageRun) -> Subscription {
        let vma = mapping.vma();
        let range = vma.address(pages.first)..vma.address(pages.end());
        let notifiers = vma.mm().notifiers();
        notifiers.subscribe("rude", Ranges::Only(vec![range]), Arc::clone(self))
    }

    fn open(&self) {
        self.is_closed.store(false, Ordering::Relaxed);
    }

    fn stay(&self) {
        self.is_in.store(true, Ordering::Relaxed);
        linger(|| self.is_closed.load(Ordering::Relaxed));
        self.is_in.store(false, Ordering::Relaxed);
    }
}

impl Notifier for Rude {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let (callback, is_mine) = match cx.mode() {
            Mode::NonBlock => (Callback::StartNonBlock, range.event == self.event),
            Mode::Blockable => (Callback::StartBlockable, true),
        };
        if self.callback == Callback::StartBlockable {
            cx.would_block()?;
        }
        if callback == self.callback && is_mine {
            self.stay();
        }
        Ok(())
    }

    fn end(&self, range: &Range, _cx: &EndContext<'_>) {
        if self.callback == Callback::End && range.event == self.event {
            self.stay();
        }
    }

    fn release(&self, _cx: &Blockable<'_>) {
        self.nr_released.fetch_add(1, Ordering::Relaxed);
        if self.callback == Callback::Release {
            self.stay();
        }
    }
}

impl TlbUser for Rude {
    fn flush(&self, range: &Range, _cx: &TlbContext<'_>) {
        if self.callback == Callback::FlushTlb && range.event == self.event {
            self.stay();
        }
    }
}

/// The callback that does not return, told of by name.
#[track_caller]
fn wait_for_conviction(world: &World<'_>, post: Option<Post>, callback: Callback) -> Conviction {
    let mut found = None;
    world.wait_until("somebody is convicted", || {
        let convictions = world.memcg.convictions();
        // On a busy machine somebody else may be late, too, and comes back.
        let is_it =
            |of: &Conviction| (of.post, of.callback, of.lasted_ns) == (post, callback, None);
        found = convictions.into_iter().find(is_it);
        found.is_some()
    });
    let found = found.expect("waited for");
    assert!(found.overdue_ns >= BUDGET.as_nanos() as u64, "{found}");
    found
}

/// Once the callback has returned, this is told too.
#[track_caller]
fn wait_for_return(world: &World<'_>) {
    world.wait_until("it returns", || {
        let convictions = world.memcg.convictions();
        convictions.iter().all(|of| of.lasted_ns.is_some())
    });
}

fn fill(mapping: &dyn Mapping, nr_pages: u32, seed: u64) {
    let mut rng = Rng(seed);
    for page in 0..nr_pages {
        write_page(mapping, page, &rng.incompressible());
    }
}

fn nr_pages_of(mm: &MmHandle) -> u64 {
    mm.nr_frames() + mm.nr_swapped()
}

/// G8: a spare takes over from a reaper that is stuck, and takes all but what the device holds.
pub(super) fn n74_a_stuck_reaper_is_left_behind(machine: &dyn Machine) {
    for callback in [Callback::StartNonBlock, Callback::End] {
        let world = World::with_limits(machine, hasty(64));
        let [first, second] = ["first", "second"].map(|name| world.memcg.new_mm(name));
        let maps = [&first, &second].map(|mm| world.map(mm, 24));
        for mapping in &maps {
            fill(&**mapping, 24, 101);
        }
        let rude = Rude::new(callback, Event::Unmap);
        let subscription = rude.subscribe(&*maps[0], PageRun::new(2, 3));
        assert!(world.memcg.kill(&first));
        let convict = wait_for_conviction(&world, Some(Post::Reaper), callback);
        assert_eq!(&*convict.holder, "rude");
        world.wait_until_reaped();
        let report = &world.memcg.oom_reports()[0];
        let left = nr_pages_of(&first);
        let named: Vec<_> = report.skipped.iter().map(|s| (&*s.holder, s.how)).collect();
        if callback == Callback::StartNonBlock {
            assert_eq!((left, report.skipped[0].pages), (3, 3), "{report}");
            assert_eq!(named, [("rude", Held::Refused(Cause::Overdue))]);
        } else {
            // The change was made; only its end is stuck.
            assert_eq!((left, named), (0, Vec::new()), "{report}");
        }
        // Who took what does not matter: it was taken from the victim.
        let (frames, swapped) = report.held;
        let freed = report.freed_frames + report.freed_swapped;
        assert_eq!(freed, frames + swapped - left, "{report}");
        assert!(report.first_page_ns.is_some(), "{report}");
        // Who is killed next has a reaper.
        assert!(world.memcg.kill(&second));
        world.wait_until_reaped();
        assert_eq!(nr_pages_of(&second), 0);
        assert!(rude.is_in.load(Ordering::Relaxed), "it is in there still");
        rude.open();
        wait_for_return(&world);
        world.wait_until("what it held comes back", || nr_pages_of(&first) == 0);
        drop(subscription);
    }
}

/// G8: so it is with the worker that reclaims, and what that was doing keeps nobody from a kill.
pub(super) fn a_stuck_reclaimer_is_left_behind(machine: &dyn Machine) {
    let world = World::with_limits(machine, hasty(32));
    let [held, other] = ["held", "other"].map(|name| world.memcg.new_mm(name));
    let (small, large) = (world.map(&held, 4), world.map(&other, 512));
    let rude = Rude::new(Callback::StartNonBlock, Event::Clear);
    let subscription = rude.subscribe(&*small, PageRun::new(0, 4));
    fill(&*small, 4, 102);
    // Goes on with another worker, until there is nothing left but to kill.
    leak(&*large, 512, 103);
    assert!(other.is_killed() && !held.is_killed());
    wait_for_conviction(&world, Some(Post::Reclaim), Callback::StartNonBlock);
    world.wait_until_reaped();
    assert_eq!(nr_pages_of(&other), 0);
    assert!(rude.is_in.load(Ordering::Relaxed), "it is in there still");
    rude.open();
    wait_for_return(&world);
    drop(subscription);
}

/// G8: one that walks the page table and does not forget what it walked keeps its own address
/// space as it is, and nobody else.
pub(super) fn a_stuck_flush_is_left_behind(machine: &dyn Machine) {
    let world = World::with_limits(machine, hasty(32));
    let [walked, other] = ["walked", "other"].map(|name| world.memcg.new_mm(name));
    let (small, large) = (world.map(&walked, 4), world.map(&other, 512));
    let rude = Rude::new(Callback::FlushTlb, Event::Clear);
    let walks = walked
        .notifiers()
        .subscribe_tlb("rude", Arc::clone(&rude) as _);
    fill(&*small, 4, 118);
    leak(&*large, 512, 119);
    assert!(other.is_killed() && !walked.is_killed());
    let convict = wait_for_conviction(&world, Some(Post::Reclaim), Callback::FlushTlb);
    assert_eq!(&*convict.holder, "rude");
    world.wait_until_reaped();
    assert_eq!(nr_pages_of(&other), 0);
    assert!(world.memcg.kill(&walked));
    world.wait_until_reaped();
    let reports = world.memcg.oom_reports();
    let report = reports.last().expect("it was killed");
    assert_eq!(nr_pages_of(&walked), 4, "{report}");
    let skipped = &report.skipped[0];
    let named = (&*skipped.holder, skipped.how);
    assert_eq!(named, ("rude", Held::Refused(Cause::Overdue)), "{report}");
    assert!(rude.is_in.load(Ordering::Relaxed), "it is in there still");
    rude.open();
    wait_for_return(&world);
    world.wait_until("what it held comes back", || nr_pages_of(&walked) == 0);
    drop(walks);
}

/// G8: the same in a fault, which changes what may be done with a page. Nobody else is led into it.
pub(super) fn a_stuck_flush_in_a_fault_is_named(machine: &dyn Machine) {
    let world = World::with_limits(machine, hasty(32));
    let mm = world.memcg.new_mm("walked");
    let mapping = world.map(&mm, 8);
    fill(&*mapping, 8, 121);
    let vma = mapping.vma();
    vma.advise(vma.all(), Advice::PageOut)
        .expect("nobody refuses");
    for page in 0..8 {
        // A page that was only read is write-protected.
        mapping.read(offset_of(page), &mut [0]).expect("a frame");
    }
    let rude = Rude::new(Callback::FlushTlb, Event::ProtectionPage);
    let walks = mm.notifiers().subscribe_tlb("rude", Arc::clone(&rude) as _);
    let writer = {
        let mapping = Arc::clone(&mapping);
        world.spawn("writer", move || {
            mapping.write(offset_of(0), &[1]).expect("once it returns");
        })
    };
    let convict = wait_for_conviction(&world, None, Callback::FlushTlb);
    assert_eq!(&*convict.holder, "rude");
    let other = Access::Write;
    assert_eq!(vma.fault(1, other), Err(FaultError::Overdue));
    assert_eq!(vma.fault(2, Access::Read), Ok(()), "nothing changes");
    rude.open();
    writer();
    wait_for_return(&world);
    assert_eq!(vma.fault(1, other), Ok(()));
    drop(walks);
}

/// Lets go of everything at once, but for the thread that pins pages.
struct RudeToPins {
    rude: Arc<Rude>,
    /// The number of that thread, 0 before it begins.
    pinner: AtomicU32,
}

impl Notifier for RudeToPins {
    fn start<C: Context>(&self, _range: &Range, _cx: &C) -> Result<(), C::Refusal> {
        if self.pinner.load(Ordering::Relaxed) == lockdep::thread::number() {
            self.rude.stay();
        }
        Ok(())
    }
}

/// G8: a thread of the program that reclaims for itself, and is stuck in that, is told of by name;
/// everybody else has the workers.
pub(super) fn a_stuck_direct_reclaim_is_named(machine: &dyn Machine) {
    let world = World::with_limits(machine, hasty(32));
    let [held, other] = ["held", "other"].map(|name| world.memcg.new_mm(name));
    let (pinned, filled) = (world.map(&held, 512), world.map(&other, 48));
    let rude = Rude::new(Callback::StartNonBlock, Event::Clear);
    let device = Arc::new(RudeToPins {
        rude: Arc::clone(&rude),
        pinner: AtomicU32::new(0),
    });
    let notifiers = held.notifiers();
    let subscription = notifiers.subscribe("rude", Ranges::WholeMm, Arc::clone(&device));
    let pinner = {
        let (rude, pinned) = (Arc::clone(&rude), Arc::clone(&pinned));
        world.spawn("pinner", move || {
            let me = lockdep::thread::number();
            device.pinner.store(me, Ordering::Relaxed);
            let is_closed = || rude.is_closed.load(Ordering::Relaxed);
            for page in (0..512).cycle().take_while(|_| is_closed()) {
                let run = PageRun::single(page);
                let pin = pinned.vma().pin(run, Access::Write, Gfp::Kernel);
                drop(pin.expect("a frame"));
            }
        })
    };
    let convict = wait_for_conviction(&world, None, Callback::StartNonBlock);
    assert_eq!(&*convict.holder, "rude");
    fill(&*filled, 48, 120);
    assert!(rude.is_in.load(Ordering::Relaxed), "it is in there still");
    rude.open();
    pinner();
    wait_for_return(&world);
    drop(subscription);
}

/// Refuses where it may not block, and lets go where it may.
struct Waits;

impl Notifier for Waits {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        cx.would_block()
    }
}

/// G8: and with the one that waits for devices. Another device that wants to be waited for is.
pub(super) fn a_stuck_settler_is_left_behind(machine: &dyn Machine) {
    let mut limits = hasty(32);
    limits.zswap_max_bytes = 16 * limits.max_bytes;
    // Who takes over may come late on a busy machine: nobody is to be killed for that.
    limits.settle_deadline = Duration::from_secs(100);
    let world = World::with_limits(machine, limits);
    let [held, other] = ["held", "other"].map(|name| world.memcg.new_mm(name));
    let (small, large) = (world.map(&held, 4), world.map(&other, 96));
    let rude = Rude::new(Callback::StartBlockable, Event::Clear);
    let subscription = rude.subscribe(&*small, PageRun::new(0, 4));
    let waits = other
        .notifiers()
        .subscribe("waits", Ranges::WholeMm, Arc::new(Waits));
    fill(&*small, 4, 104);
    let writer = {
        let large = Arc::clone(&large);
        world.spawn("writer", move || fill(&*large, 96, 105))
    };
    wait_for_conviction(&world, Some(Post::Settle), Callback::StartBlockable);
    writer();
    assert_eq!(world.memcg.stat().oom_kill, 0, "all of it could be stored");
    rude.open();
    wait_for_return(&world);
    drop((subscription, waits));
}

/// G8: who reacts to a kill and does not come back keeps neither the reaper nor anybody else.
pub(super) fn a_stuck_reaction_to_a_kill_is_left_behind(machine: &dyn Machine) {
    let world = World::with_limits(machine, hasty(32));
    let [good, bad] = ["good", "bad"].map(|name| world.memcg.new_mm(name));
    let (kept, leaked) = (world.map(&good, 16), world.map(&bad, 512));
    let rude = Rude::new(Callback::OnKill, Event::Unmap);
    let stays = Arc::clone(&rude);
    bad.set_on_kill(move || stays.stay());
    leak(&*leaked, 512, 106);
    let convict = wait_for_conviction(&world, Some(Post::Reclaim), Callback::OnKill);
    assert_eq!(&*convict.holder, "bad");
    world.wait_until_reaped();
    fill(&*kept, 16, 107);
    assert_eq!((nr_pages_of(&bad), world.memcg.stat().oom_kill), (0, 1));
    rude.open();
    wait_for_return(&world);
}

/// G8: who is killed with it is told all the same.
pub(super) fn a_stuck_reaction_keeps_nobody_else_from_being_told(machine: &dyn Machine) {
    let limits = Limits {
        oom_group: true,
        ..hasty(32)
    };
    let world = World::with_limits(machine, limits);
    let [stuck, other] = ["stuck", "other"].map(|name| world.memcg.new_mm(name));
    let (leaked, small) = (world.map(&stuck, 512), world.map(&other, 4));
    fill(&*small, 4, 112);
    let rude = Rude::new(Callback::OnKill, Event::Unmap);
    let stays = Arc::clone(&rude);
    stuck.set_on_kill(move || stays.stay());
    let is_told = Arc::new(AtomicBool::new(false));
    let tells = Arc::clone(&is_told);
    other.set_on_kill(move || tells.store(true, Ordering::Relaxed));
    leak(&*leaked, 512, 113);
    wait_for_conviction(&world, Some(Post::Reclaim), Callback::OnKill);
    world.wait_until("the other is told", || is_told.load(Ordering::Relaxed));
    assert!(rude.is_in.load(Ordering::Relaxed), "it is in there still");
    rude.open();
    wait_for_return(&world);
}

/// G8: who is asked to give memory back and does not answer is not asked again, and holds nobody up
/// who would set another answer.
pub(super) fn a_stuck_answer_is_asked_for_once(machine: &dyn Machine) {
    let limits = Limits {
        zswap_max_bytes: PAGE_SIZE as u64,
        ..hasty(24)
    };
    let world = World::with_limits(machine, limits);
    let [large, small] = ["large", "small"].map(|name| world.memcg.new_mm(name));
    let (held, needed) = (world.map(&large, 16), world.map(&small, 64));
    fill(&*held, 16, 114);
    let rude = Rude::new(Callback::Cancel, Event::Unmap);
    let stays = Arc::clone(&rude);
    large.set_on_cancel(move || {
        stays.stay();
        false
    });
    let writer = {
        let needed = Arc::clone(&needed);
        world.spawn("writer", move || fill(&*needed, 20, 115))
    };
    world.wait_until("it is asked", || rude.is_in.load(Ordering::Relaxed));
    let nr_asked = Arc::new(AtomicU64::new(0));
    let asked = Arc::clone(&nr_asked);
    large.set_on_cancel(move || {
        asked.fetch_add(1, Ordering::Relaxed);
        false
    });
    // One frame comes free: the ladder begins anew.
    let given = held.vma().advise(PageRun::single(3), Advice::DontNeed);
    given.expect("nobody holds it");
    wait_for_conviction(&world, Some(Post::Reclaim), Callback::Cancel);
    writer();
    assert!(large.is_killed() && !small.is_killed());
    assert_eq!(nr_asked.load(Ordering::Relaxed), 0);
    assert!(rude.is_in.load(Ordering::Relaxed), "it is in there still");
    rude.open();
    wait_for_return(&world);
}

/// G8: what a stuck reaper was about to come to is had by the one that takes over.
pub(super) fn leftovers_outlive_a_stuck_reaper(machine: &dyn Machine) {
    let world = World::with_limits(machine, hasty(64));
    let mms = ["first", "second"].map(|name| world.memcg.new_mm(name));
    let maps = [0, 1].map(|at| world.map(&mms[at], 8));
    let mut pins = maps.each_ref().map(|mapping| {
        fill(&**mapping, 8, 116);
        let pinned = mapping
            .vma()
            .pin(PageRun::single(3), Access::Write, Gfp::Kernel);
        Some(pinned.expect("a frame"))
    });
    for mm in &mms {
        assert!(world.memcg.kill(mm));
        world.wait_until_reaped();
        assert_eq!(nr_pages_of(mm), 1, "one page is pinned");
    }
    let rude = Rude::new(Callback::StartNonBlock, Event::Unmap);
    let subscription = rude.subscribe(&*maps[0], PageRun::new(3, 1));
    // The reaper goes over both, and the first stops it.
    pins[1] = None;
    wait_for_conviction(&world, Some(Post::Reaper), Callback::StartNonBlock);
    world.wait_until("the second is had", || nr_pages_of(&mms[1]) == 0);
    assert!(rude.is_in.load(Ordering::Relaxed), "it is in there still");
    rude.open();
    wait_for_return(&world);
    pins[0] = None;
    world.wait_until("the first is had", || nr_pages_of(&mms[0]) == 0);
    drop(subscription);
}

/// G8: whoever tears an address space down does not call what is stuck: the release comes when that
/// has returned, once.
pub(super) fn a_release_waits_for_what_is_stuck(machine: &dyn Machine) {
    let world = World::with_limits(machine, hasty(32));
    let mm = world.memcg.new_mm("exiting");
    let mapping = world.map(&mm, 8);
    fill(&*mapping, 8, 117);
    let rude = Rude::new(Callback::StartNonBlock, Event::Unmap);
    let subscription = rude.subscribe(&*mapping, PageRun::new(2, 3));
    assert!(world.memcg.kill(&mm));
    wait_for_conviction(&world, Some(Post::Reaper), Callback::StartNonBlock);
    drop(mm);
    assert_eq!(rude.nr_released.load(Ordering::Relaxed), 0);
    rude.open();
    world.wait_until("it is released", || {
        rude.nr_released.load(Ordering::Relaxed) > 0
    });
    world.wait_until("everything is free", || world.memcg.frames().usage() == 0);
    assert_eq!(rude.nr_released.load(Ordering::Relaxed), 1);
    drop(subscription);
}

/// G8: a thread of the program that is stuck in a release is named, and what it tears down can be
/// had all the same, without it.
pub(super) fn a_stuck_release_is_named(machine: &dyn Machine) {
    let world = World::with_limits(machine, hasty(32));
    let mm = world.memcg.new_mm("exiting");
    let shared = mm.share();
    let mapping = world.map(&mm, 24);
    fill(&*mapping, 24, 108);
    let rude = Rude::new(Callback::Release, Event::Unmap);
    let subscription = rude.subscribe(&*mapping, PageRun::new(2, 3));
    let exit = world.spawn("exit", move || drop(mm));
    wait_for_conviction(&world, None, Callback::Release);
    // It is the worst, although it is about to go: nobody can say when.
    assert!(world.memcg.kill(&shared));
    world.wait_until_reaped();
    let report = &world.memcg.oom_reports()[0];
    assert_eq!(&*report.skipped[0].holder, "rude", "{report}");
    assert_eq!(shared.nr_frames() + shared.nr_swapped(), 3);
    rude.open();
    exit();
    world.wait_until("everything is free", || world.memcg.frames().usage() == 0);
    drop(subscription);
}

/// Panics in the starts of unmaps.
struct Panics;

impl Notifier for Panics {
    fn start<C: Context>(&self, range: &Range, _cx: &C) -> Result<(), C::Refusal> {
        assert_ne!(range.event, Event::Unmap, "a bug of the device");
        Ok(())
    }
}

/// G8: it is contained, and named; the rest comes back.
pub(super) fn a_panic_under_the_reaper_is_contained(machine: &dyn Machine) {
    let limits = Limits {
        // The message of a panic takes its time.
        nonblock_budget: Duration::from_secs(60),
        ..hasty(32)
    };
    let world = World::with_limits(machine, limits);
    let mm = world.memcg.new_mm("victim");
    let mapping = world.map(&mm, 24);
    fill(&*mapping, 24, 109);
    let vma = mapping.vma();
    let range = vma.address(7)..vma.address(8);
    let subscription =
        mm.notifiers()
            .subscribe("fragile", Ranges::Only(vec![range]), Arc::new(Panics));
    mm.set_on_kill(|| panic!("a bug of the program"));
    assert!(world.memcg.kill(&mm));
    world.wait_until_reaped();
    let report = &world.memcg.oom_reports()[0];
    let named: Vec<_> = report.skipped.iter().map(|s| (&*s.holder, s.how)).collect();
    assert_eq!(named, [("fragile", Held::Refused(Cause::Panicked))]);
    assert_eq!(nr_pages_of(&mm), 1, "{report}");
    // Each single page was asked for, in each pass.
    assert!(mm.notifiers().stats().panics >= 3);
    drop(subscription);
}

/// G16: a device that asks for its pages again as soon as they are taken gets none.
pub(super) fn who_maps_again_while_it_is_reaped_gets_nothing(machine: &dyn Machine) {
    let world = World::with_limits(machine, hasty(32));
    let mm = world.memcg.new_mm("victim");
    let mapping = world.map(&mm, 24);
    fill(&*mapping, 24, 110);
    let nr_asked = Arc::new(AtomicU64::new(0));
    let device = {
        let (vma, nr_asked) = (Arc::clone(mapping.vma()), Arc::clone(&nr_asked));
        world.spawn("device", move || {
            let nowhere = BusAddr {
                page: 0,
                generation: 0,
                access: Access::Write,
            };
            for round in 0.. {
                nr_asked.fetch_add(1, Ordering::Relaxed);
                let run = PageRun::single(round % 24);
                match vma.fault_range(run, Access::Write, &mut [nowhere]) {
                    Ok(()) => lockdep::sync::sleep("suite.device", Duration::from_micros(100)),
                    Err(FaultError::Killed) => return,
                    Err(error) => panic!("{error}"),
                }
            }
        })
    };
    world.wait_until("it asks", || nr_asked.load(Ordering::Relaxed) > 30);
    assert!(world.memcg.kill(&mm));
    device();
    world.wait_until_reaped();
    let report = &world.memcg.oom_reports()[0];
    assert_eq!((nr_pages_of(&mm), report.skipped.len()), (0, 0), "{report}");
    let written = mapping.write(offset_of(0), &[1]);
    assert_eq!(written, Err(FaultError::Killed));
}

/// The other way round: nobody is convicted who returns, however often it refuses.
pub(super) fn nobody_is_convicted_who_returns(machine: &dyn Machine) {
    let world = World::with_limits(machine, limits(32));
    let mm = world.memcg.new_mm("victim");
    let mapping = world.map(&mm, 512);
    let subscription = mm
        .notifiers()
        .subscribe("waits", Ranges::WholeMm, Arc::new(Waits));
    leak(&*mapping, 512, 111);
    world.wait_until_reaped();
    let convictions = world.memcg.convictions();
    assert!(convictions.is_empty(), "{convictions:?}");
    drop(subscription);
}
