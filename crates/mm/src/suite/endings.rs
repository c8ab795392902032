//! Things that end: mappings that are unmapped, address spaces that exit or were killed.

use super::oom::{leak, limits};
use super::{Join, Machine, Mapping, Rng, World, linger, offset_of, read_page, write_page};
use crate::addr::{PAGE_SIZE, PageRun};
use crate::bus::{Bus, BusAddr};
use crate::fault::FaultError;
use crate::gfp::Gfp;
use crate::limits::Limits;
use crate::mm_struct::{Mm, MmHandle, UnmapError, Vma};
use crate::mmu_notifier::{
    Blockable, BracketError, Context, Event, Mode, Notifier, Range, Ranges, Subscription,
};
use crate::page::State;
use crate::primary_mmu::Access;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use lockdep::sync::Fence;
use std::sync::Arc;

/// Longer than any test: who waits for a device under it waits for the device.
const FOR_EVER: Duration = Duration::from_secs(20);

/// Works until its fence has signalled, and says when it is asked to stop.
struct Device {
    done: Fence,
    /// It panics at the end of its release.
    is_broken: bool,
    nr_told: AtomicU64,
    is_released: AtomicBool,
}

impl Device {
    fn new() -> Arc<Self> {
        Self::with(false)
    }

    fn broken() -> Arc<Self> {
        Self::with(true)
    }

    fn with(is_broken: bool) -> Arc<Self> {
        Arc::new(Self {
            done: Fence::new("suite.device"),
            is_broken,
            nr_told: AtomicU64::new(0),
            is_released: AtomicBool::new(false),
        })
    }

    fn subscribe(self: &Arc<Self>, mm: &Mm, ranges: Ranges) -> Subscription {
        mm.notifiers().subscribe("nic", ranges, Arc::clone(self))
    }

    fn was_told(&self) -> bool {
        self.nr_told.load(Ordering::Relaxed) > 0
    }

    fn is_released(&self) -> bool {
        self.is_released.load(Ordering::Relaxed)
    }
}

impl Notifier for Device {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        self.nr_told.fetch_add(1, Ordering::Relaxed);
        cx.settle(&self.done)
    }

    fn release(&self, cx: &Blockable<'_>) {
        self.is_released.store(true, Ordering::Relaxed);
        let Ok(()) = cx.settle(&self.done);
        assert!(!self.is_broken, "a bug of the device");
    }
}

/// Writes its number into each page, and translates all of them.
fn fill_and_translate(mapping: &dyn Mapping) -> Vec<BusAddr> {
    let vma = mapping.vma();
    for page in 0..vma.nr_pages() {
        write_page(mapping, page, &[page as u8 + 1; 8]);
    }
    let nowhere = BusAddr {
        page: 0,
        generation: 0,
        access: Access::Write,
    };
    let mut at = vec![nowhere; vma.nr_pages() as usize];
    vma.fault_range(vma.all(), Access::Write, &mut at)
        .expect("frames are free");
    at
}

/// The device still finds what it was given.
#[track_caller]
fn check_translations(vma: &Vma, translations: &[BusAddr]) {
    for &at in translations {
        let mut found = [0; 8];
        let read = vma.read(at, 0, &mut found);
        assert!(read.is_ok(), "page {} went: {read:?}", at.page);
        assert_eq!(found, [at.page as u8 + 1; 8]);
    }
}

/// Whoever subscribes to an address space that exits is not told any more, so it gets nothing.
#[track_caller]
fn check_nobody_joins(vma: &Vma) {
    let late = Device::new();
    let subscription = late.subscribe(vma.mm(), Ranges::WholeMm);
    let mut at = [BusAddr {
        page: 0,
        generation: 0,
        access: Access::Read,
    }];
    assert_eq!(
        vma.fault_range(PageRun::single(0), Access::Read, &mut at),
        Err(FaultError::Unmapped)
    );
    drop(subscription);
    assert!(!late.was_told() && !late.is_released());
}

/// Another address space needs more frames than there are, for as long as the hands of reclaim
/// take to go round a few times.
fn press(world: &World<'_>) {
    let mm = world.memcg.new_mm("pressing");
    let nr_pages = 2 * world.memcg.limits().frames_max() as u32;
    let mapping = world.map(&mm, nr_pages);
    let mut rng = Rng(31);
    for step in 0..4 * nr_pages {
        write_page(&*mapping, step % nr_pages, &rng.half_compressible());
    }
}

/// Room for all that [`press`] writes.
fn roomy(frames: u64, settle_deadline: Duration) -> Limits {
    let mut limits = Limits::new(frames * PAGE_SIZE as u64);
    limits.zswap_max_bytes = 16 * limits.max_bytes;
    limits.settle_deadline = settle_deadline;
    limits
}

/// G1: reclaim goes on beside an exit, and asks the devices as before.
pub(super) fn an_exit_waits_for_the_devices_before_pages_go(machine: &dyn Machine) {
    let world = World::with_limits(machine, roomy(32, FOR_EVER));
    let mm = world.memcg.new_mm("exiting");
    let mapping = world.map(&mm, 16);
    let vma = mapping.vma();
    let device = Device::new();
    let subscription = device.subscribe(&mm, Ranges::WholeMm);
    let translations = fill_and_translate(&*mapping);
    let exit = world.spawn("exit", move || drop(mm));
    world.wait_until("the device is asked to stop", || device.is_released());
    check_nobody_joins(vma);
    press(&world);
    assert!(device.was_told(), "reclaim has asked for its pages");
    check_translations(vma, &translations);
    assert_eq!(vma.mm().nr_frames(), 16, "they stay charged");
    device.done.signal();
    exit();
    assert_eq!((vma.mm().nr_frames(), vma.mm().nr_swapped()), (0, 0));
    for &at in &translations {
        vma.read(at, 0, &mut [0]).expect_err("the page is gone");
    }
    check_nobody_joins(vma);
    world.wait_until_empty();
    drop(subscription);
}

/// G1, G6: what a stuck device may still use stays, and is charged, until it answers.
pub(super) fn an_exit_with_a_stuck_device_ends_when_it_answers(machine: &dyn Machine) {
    let world = World::with_limits(machine, roomy(32, Duration::from_millis(10)));
    let mm = world.memcg.new_mm("exiting");
    let mapping = world.map(&mm, 16);
    let vma = mapping.vma();
    let device = Device::new();
    let subscription = device.subscribe(&mm, Ranges::WholeMm);
    let translations = fill_and_translate(&*mapping);
    drop(mm);
    check_nobody_joins(vma);
    press(&world);
    check_translations(vma, &translations);
    assert_eq!(vma.mm().nr_frames(), 16, "they stay charged");
    device.done.signal();
    world.wait_until_empty();
    assert_eq!((vma.mm().nr_frames(), vma.mm().nr_swapped()), (0, 0));
    for &at in &translations {
        vma.read(at, 0, &mut [0]).expect_err("the page is gone");
    }
    check_nobody_joins(vma);
    drop(subscription);
}

/// G1: a device that breaks in its release beside one that is late: what either has settled is
/// waited for, and then the exit goes on without what broke, but tells it.
pub(super) fn an_exit_waits_for_what_was_settled_before_a_panic(machine: &dyn Machine) {
    let world = World::with_limits(machine, roomy(32, Duration::from_millis(10)));
    for order in [[0, 1], [1, 0]] {
        let mm = world.memcg.new_mm("exiting");
        let mapping = world.map(&mm, 16);
        let vma = mapping.vma();
        let devices = [Device::broken(), Device::new()];
        let subscriptions = [0, 1].map(|nth: usize| devices[nth].subscribe(&mm, Ranges::WholeMm));
        let translations = fill_and_translate(&*mapping);
        drop(mm);
        assert!(devices.iter().all(|device| device.is_released()));
        devices[order[0]].done.signal();
        press(&world);
        check_translations(vma, &translations);
        assert_eq!(vma.mm().nr_frames(), 16, "one of them may still use them");
        let nr_told = devices[0].nr_told.load(Ordering::Relaxed);
        devices[order[1]].done.signal();
        world.wait_until_empty();
        assert_eq!((vma.mm().nr_frames(), vma.mm().nr_swapped()), (0, 0));
        assert!(devices[0].nr_told.load(Ordering::Relaxed) > nr_told);
        assert_eq!(
            vma.mm().notifiers().stats().panics,
            1,
            "it is released once"
        );
        drop(subscriptions);
    }
}

/// G1: an exit that finds a mapping being unmapped leaves it to whoever does so, and leaves the
/// devices on the list of those who are told.
pub(super) fn an_exit_beside_an_unmap_leaves_nobody_out(machine: &dyn Machine) {
    let world = World::with_limits(machine, roomy(32, Duration::from_millis(10)));
    let mm = world.memcg.new_mm("exiting");
    let mapping = world.map(&mm, 16);
    let vma = mapping.vma();
    let (slow, stuck) = (Device::new(), Device::new());
    let subscriptions = [&slow, &stuck].map(|device| device.subscribe(&mm, Ranges::WholeMm));
    let translations = fill_and_translate(&*mapping);
    let (shared, unmapped) = (mm.share(), Arc::clone(vma));
    let unmapping = world.spawn("unmapping", move || {
        // It fails until the address space exits, and then goes on by itself.
        while shared.unmap(&unmapped).is_err() && !unmapped.is_dead() {
            lockdep::sync::sleep("suite.unmapping", Duration::from_micros(500));
        }
    });
    world.wait_until("the devices are asked", || slow.was_told());
    drop(mm);
    // The one that the exit waits for: it goes on, and the other has still not answered.
    stuck.done.signal();
    let nr_told = slow.nr_told.load(Ordering::Relaxed);
    world.wait_until("the other is asked again and again", || {
        vma.is_dead() || slow.nr_told.load(Ordering::Relaxed) > nr_told + 10
    });
    check_translations(vma, &translations);
    slow.done.signal();
    unmapping();
    world.wait_until_empty();
    drop(subscriptions);
}

/// G10, G11: while the devices are asked, programs may use the mapping, and they keep it if one
/// of them does not answer.
pub(super) fn a_failed_unmap_changes_nothing(machine: &dyn Machine) {
    let world = World::with_limits(machine, roomy(64, Duration::from_millis(100)));
    let mm = world.memcg.new_mm("unmapping");
    let mapping = world.map(&mm, 8);
    let vma = mapping.vma();
    let device = Device::new();
    let subscription = device.subscribe(&mm, Ranges::WholeMm);
    let translations = fill_and_translate(&*mapping);
    let (shared, unmapped) = (mm.share(), Arc::clone(vma));
    let unmapping = world.spawn("unmapping", move || {
        let error = shared.unmap(&unmapped).expect_err("it hangs");
        let UnmapError::Notifier(BracketError::Stuck { holder, .. }) = error else {
            panic!("{error}");
        };
        assert_eq!(&*holder, "nic");
    });
    world.wait_until("the device is asked", || device.was_told());
    assert_eq!(read_page(&*mapping, 2)[..8], [3; 8]);
    write_page(&*mapping, 5, &[6; 8]);
    let pin = vma.pin(PageRun::new(0, 4), Access::Write, Gfp::NoWait);
    drop(pin.expect("it may become alive again"));
    unmapping();
    assert_eq!((mm.nr_pins(), mm.nr_frames()), (0, 8));
    check_translations(vma, &translations);
    for page in 0..8 {
        assert_eq!(vma.page_state(page), State::Resident);
        assert_eq!(read_page(&*mapping, page)[..8], [page as u8 + 1; 8]);
    }
    device.done.signal();
    mm.unmap(vma).expect("it has answered");
    world.wait_until_empty();
    drop(subscription);
}

/// Has somebody unmap the mapping, and waits until the device is asked.
fn spawn_unmapping(world: &World, mm: &MmHandle, vma: &Arc<Vma>, device: &Device) -> Join {
    let (shared, unmapped) = (mm.share(), Arc::clone(vma));
    let unmapping = world.spawn("unmapping", move || {
        shared.unmap(&unmapped).expect("it answers in the end");
    });
    world.wait_until("the device is asked", || device.was_told());
    unmapping
}

/// G11: a pin that comes while devices are asked keeps its page beyond the mapping.
pub(super) fn what_is_pinned_during_an_unmap_goes_with_its_pin(machine: &dyn Machine) {
    let world = World::with_limits(machine, roomy(64, FOR_EVER));
    let mm = world.memcg.new_mm("unmapping");
    let mapping = world.map(&mm, 8);
    let vma = mapping.vma();
    let device = Device::new();
    let subscription = device.subscribe(&mm, Ranges::WholeMm);
    let translations = fill_and_translate(&*mapping);
    let unmapping = spawn_unmapping(&world, &mm, vma, &device);
    let pin = vma.pin(PageRun::new(3, 2), Access::Write, Gfp::NoWait);
    let pin = pin.expect("still alive");
    device.done.signal();
    unmapping();
    assert_eq!(world.memcg.frames().usage(), 2, "all but what is pinned");
    check_translations(vma, &translations[3..5]);
    let refused = vma.pin(PageRun::single(3), Access::Read, Gfp::NoWait);
    assert!(refused.is_err(), "{refused:?}");
    drop(pin);
    world.wait_until_empty();
    drop(subscription);
}

/// G11: either the unmap or whoever lets go of the pin takes the pages, in whatever order.
pub(super) fn a_pin_let_go_beside_an_unmap_keeps_nothing(machine: &dyn Machine) {
    let world = World::with_limits(machine, roomy(64, FOR_EVER));
    let mm = world.memcg.new_mm("unmapping");
    let mapping = world.map(&mm, 8);
    let vma = mapping.vma();
    let device = Device::new();
    let subscription = device.subscribe(&mm, Ranges::WholeMm);
    fill_and_translate(&*mapping);
    let unmapping = spawn_unmapping(&world, &mm, vma, &device);
    // One of them is letting go at the moment at which the mapping dies.
    let unpinning = [0, 2, 4, 6].map(|page| {
        let pin = vma.pin(PageRun::new(page, 2), Access::Write, Gfp::NoWait);
        let pin = pin.expect("still alive");
        world.spawn("unpinning", move || drop(pin))
    });
    device.done.signal();
    unmapping();
    unpinning.into_iter().for_each(|join| join());
    world.wait_until_empty();
    drop(subscription);
}

/// G11, G16: the reaper cannot have what is pinned, and the owner is not there to ask again.
pub(super) fn a_pin_of_a_dead_victim_gives_its_frames_back(machine: &dyn Machine) {
    let limits = Limits {
        reap_passes: 2,
        ..limits(16)
    };
    let world = World::with_limits(machine, limits);
    let mm = world.memcg.new_mm("victim");
    let mapping = world.map(&mm, 256);
    let run = PageRun::new(0, 2);
    let pin = mapping.vma().pin(run, Access::Write, Gfp::Kernel);
    let pin = pin.expect("frames are free");
    leak(&*mapping, 256, 32);
    world.wait_until_reaped();
    assert_eq!(mm.nr_frames(), 2);
    drop(mm);
    assert_eq!(world.memcg.frames().usage(), 2);
    drop(pin);
    world.wait_until_empty();
}

/// Keeps the reaper in its callback while it is closed.
struct Gate {
    is_closed: AtomicBool,
    has_reaper: AtomicBool,
}

impl Notifier for Gate {
    fn start<C: Context>(&self, range: &Range, _cx: &C) -> Result<(), C::Refusal> {
        if (range.event, range.mode) != (Event::Unmap, Mode::NonBlock) {
            return Ok(());
        }
        self.has_reaper.store(true, Ordering::Relaxed);
        linger(|| self.is_closed.load(Ordering::Relaxed));
        Ok(())
    }
}

/// G8: a victim that reacts to its kill by unmapping moves its mappings under the reaper's feet.
pub(super) fn the_reaper_skips_no_mapping(machine: &dyn Machine) {
    let limits = Limits {
        zswap_max_bytes: 4 * PAGE_SIZE as u64,
        ..limits(32)
    };
    let world = World::with_limits(machine, limits);
    let mm = world.memcg.new_mm("victim");
    let [first, second, third] = [4, 4, 128].map(|nr_pages| world.map(&mm, nr_pages));
    let gate = Arc::new(Gate {
        is_closed: AtomicBool::new(true),
        has_reaper: AtomicBool::new(false),
    });
    let vma = second.vma();
    let watched = Ranges::Only(vec![vma.base()..vma.address(vma.nr_pages())]);
    let subscription = mm.notifiers().subscribe("slow", watched, Arc::clone(&gate));
    let mut rng = Rng(33);
    for page in 0..4 {
        write_page(&*first, page, &rng.incompressible());
        write_page(&*second, page, &rng.incompressible());
    }
    leak(&*third, 128, 34);
    world.wait_until("the reaper is in the middle", || {
        gate.has_reaper.load(Ordering::Relaxed)
    });
    mm.unmap(first.vma()).expect("nobody holds it");
    gate.is_closed.store(false, Ordering::Relaxed);
    world.wait_until_reaped();
    let report = &world.memcg.oom_reports()[0];
    assert_eq!((mm.nr_frames(), mm.nr_swapped()), (0, 0), "{report}");
    drop(subscription);
}

/// G7: what an exit is about to give back can be waited for.
pub(super) fn nobody_is_killed_while_another_exits(machine: &dyn Machine) {
    let limits = Limits {
        zswap_max_bytes: PAGE_SIZE as u64,
        settle_deadline: FOR_EVER,
        ..limits(32)
    };
    let world = World::with_limits(machine, limits);
    let mm = world.memcg.new_mm("exiting");
    let mapping = world.map(&mm, 24);
    let mut rng = Rng(35);
    for page in 0..24 {
        write_page(&*mapping, page, &rng.incompressible());
    }
    // Not concerned by any range, so that reclaim has no reason to wait for it: it finds nothing.
    let device = Device::new();
    let subscription = device.subscribe(&mm, Ranges::Only(Vec::new()));
    let exit = world.spawn("exit", move || drop(mm));
    world.wait_until("the device is asked to stop", || device.is_released());
    let innocent = world.memcg.new_mm("innocent");
    let needs = world.map(&innocent, 24);
    let writer = world.spawn("writer", move || {
        for page in 0..24 {
            let written = needs.write(offset_of(page), &rng.incompressible());
            written.expect("a frame");
        }
    });
    let stalls = world.memcg.stat().stalls;
    world.wait_until("reclaim finds nothing", || {
        world.memcg.stat().stalls > stalls + 24
    });
    assert_eq!(world.memcg.stat().oom_kill, 0);
    device.done.signal();
    exit();
    writer();
    assert_eq!(world.memcg.stat().oom_kill, 0);
    drop(subscription);
}
