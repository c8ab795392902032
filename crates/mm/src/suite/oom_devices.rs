//! Running out of memory beside devices that hold some of it.

use super::oom::{leak, limits};
use super::{Machine, Rng, World, offset_of, write_page};
use crate::addr::{PAGE_SIZE, PageRun};
use crate::gfp::Gfp;
use crate::limits::{Limits, STUCK_MAX, WINDOW_PAGES};
use crate::mm_struct::Advice;
use crate::mmu_notifier::{Context, Notifier, Range, Ranges};
use crate::oom::{Held, Reaping};
use crate::primary_mmu::Access;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use lockdep::Validator;
use lockdep::sync::{Fence, Mutex};
use std::sync::Arc;

/// Refuses while it hangs.
struct Holder {
    hangs: Arc<AtomicBool>,
}

impl Notifier for Holder {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        if self.hangs.load(Ordering::Relaxed) {
            cx.would_block()?;
        }
        Ok(())
    }
}

/// G8: the reaper takes what it can, and names who holds the rest.
pub(super) fn n70_n71_what_a_device_holds_is_left_behind_by_name(machine: &dyn Machine) {
    let world = World::with_limits(machine, limits(32));
    let mm = world.memcg.new_mm("victim");
    let mapping = world.map(&mm, 512);
    let vma = mapping.vma();
    let hangs = Arc::new(AtomicBool::new(true));
    let held = vma.address(2)..vma.address(5);
    let holder = Arc::new(Holder {
        hangs: Arc::clone(&hangs),
    });
    let subscription = mm
        .notifiers()
        .subscribe("nic0", Ranges::Only(vec![held]), holder);
    leak(&*mapping, 512, 23);
    world.wait_until_reaped();
    let report = &world.memcg.oom_reports()[0];
    assert_eq!(report.passes, world.memcg.limits().reap_passes);
    assert_eq!(report.skipped.len(), 1, "{report}");
    assert_eq!(
        (&*report.skipped[0].holder, report.skipped[0].pages),
        ("nic0", 3)
    );
    assert!(
        mm.nr_frames() + mm.nr_swapped() <= 3,
        "only what is held is left"
    );
    assert!(report.first_page_ns.is_some());
    hangs.store(false, Ordering::Relaxed);
    drop(subscription);
}

/// A device lets go of its translations at once, and of its pages when its work is over: what it
/// keeps is unmapped but not freed. It counts until then, and the report says what keeps it.
pub(super) fn what_a_pin_keeps_is_told_and_comes_back_with_it(machine: &dyn Machine) {
    let world = World::with_limits(machine, limits(32));
    let mm = world.memcg.new_mm("victim");
    let mapping = world.map(&mm, 16);
    for page in 0..16 {
        write_page(&*mapping, page, &[7; PAGE_SIZE]);
    }
    let vma = mapping.vma();
    let named = mm.pin_holder("hfi");
    let pin = |holder: Option<_>, run| match holder {
        Some(holder) => vma.pin_for(holder, run, Access::Write, Gfp::Kernel),
        None => vma.pin(run, Access::Write, Gfp::Kernel),
    };
    let pins = [
        pin(Some(&named), PageRun::new(4, 3)),
        // Twice, but a page can be left behind once.
        pin(Some(&named), PageRun::new(4, 2)),
        pin(None, PageRun::new(10, 1)),
    ];
    let agrees = Arc::new(Holder {
        hangs: Arc::default(),
    });
    let subscription = mm.notifiers().subscribe("hfi", Ranges::WholeMm, agrees);
    assert!(world.memcg.kill(&mm));
    world.wait_until_reaped();
    let report = world.memcg.oom_reports().pop().expect("one was killed");
    assert_eq!(report.passes, world.memcg.limits().reap_passes);
    let told = report.skipped.iter();
    let told: Vec<_> = told.map(|it| (&*it.holder, it.how, it.pages)).collect();
    let expected = [("hfi", Held::Pinned, 4), ("a pin", Held::Pinned, 1)];
    assert_eq!(told, expected, "{report}");
    assert_eq!(report.back_ns, None, "{report}");
    assert_eq!(mm.nr_frames() + mm.nr_swapped(), 4);
    assert_eq!(world.memcg.frames().usage(), 4, "what is not freed counts");
    drop(pins.map(|pin| pin.expect("frames")));
    world.wait_until("all is back", || {
        let report = world.memcg.oom_reports().pop();
        report.is_some_and(|report| report.back_ns.is_some())
    });
    assert_eq!(world.memcg.frames().usage(), 0);
    drop(subscription);
}

/// G9.
pub(super) fn n61_n75_no_second_victim_before_the_first_is_reaped(machine: &dyn Machine) {
    let limits = Limits {
        reap_passes: 10_000,
        ..limits(32)
    };
    let world = World::with_limits(machine, limits);
    let first = world.memcg.new_mm("first");
    let second = world.memcg.new_mm("second");
    let (a, b) = (world.map(&first, 512), world.map(&second, 512));
    let hangs = Arc::new(AtomicBool::new(true));
    let holder = Arc::new(Holder {
        hangs: Arc::clone(&hangs),
    });
    let _subscription = first.notifiers().subscribe("nic1", Ranges::WholeMm, holder);
    let task = {
        let b = Arc::clone(&b);
        let mut rng = Rng(25);
        // Enough to be in need of frames while the first is reaped, not enough to be to blame.
        world.spawn("second", move || {
            for page in 0..40 {
                write_page(&*b, page, &rng.half_compressible());
            }
        })
    };
    leak(&*a, 512, 24);
    // The first victim gives nothing back while its device hangs, and still nobody else goes.
    assert!(first.is_killed() && !second.is_killed());
    hangs.store(false, Ordering::Relaxed);
    task();
    assert!(!second.is_killed());
    let reports = world.memcg.oom_reports();
    assert_eq!(
        reports.iter().map(|r| &*r.victim).collect::<Vec<_>>(),
        ["first"]
    );
}

/// Asks for its fence to be waited for.
struct Settles {
    fence: Fence,
    is_asked: AtomicBool,
}

impl Settles {
    fn new(fence: &Fence) -> Arc<Self> {
        Arc::new(Self {
            fence: fence.clone(),
            is_asked: AtomicBool::new(false),
        })
    }
}

impl Notifier for Settles {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        self.is_asked.store(true, Ordering::Relaxed);
        cx.settle(&self.fence)
    }
}

/// G7: what somebody is moving out can be freed, though reclaim finds nothing meanwhile.
pub(super) fn nobody_is_killed_while_advice_is_carried_out(machine: &dyn Machine) {
    let world = World::with_limits(
        machine,
        Limits {
            settle_deadline: Duration::from_secs(100),
            ..limits(16)
        },
    );
    let mm = world.memcg.new_mm("adviser");
    let mapping = world.map(&mm, 32);
    let pin = |pages| mapping.vma().pin(pages, Access::Write, Gfp::Kernel);
    // So few that no worker looks at them before the adviser does.
    let moved = PageRun::new(0, 8);
    drop(pin(moved).expect("eight frames"));
    let fence = Fence::new("suite.settles");
    let settles = Settles::new(&fence);
    let device = Arc::clone(&settles);
    let subscription = mm.notifiers().subscribe("gpu0", Ranges::WholeMm, device);
    let advised = Arc::clone(mapping.vma());
    let adviser = world.spawn("adviser", move || {
        let advised = advised.advise(moved, Advice::PageOut);
        advised.expect("it answers in the end");
    });
    // What begins after somebody came to wait keeps nobody from a kill.
    world.wait_until("advice is carried out", || {
        settles.is_asked.load(Ordering::Relaxed)
    });
    // None of these can be had before the fence signals.
    let pinned = pin(PageRun::new(8, 8)).expect("the other eight frames");
    let reader = Arc::clone(&mapping);
    let reader = world.spawn("reader", move || {
        reader.read(offset_of(20), &mut [0]).expect("a frame");
    });
    let stalls = world.memcg.stat().stalls;
    world.wait_until("reclaim finds nothing", || {
        world.memcg.stat().stalls > stalls + 40
    });
    fence.signal();
    adviser();
    reader();
    assert_eq!(world.memcg.stat().oom_kill, 0);
    drop((subscription, pinned));
}

/// G7, G9: more is refused than counts as pinned, so that there is always something to ask for.
pub(super) fn a_hung_device_does_not_stop_the_oom_killer(machine: &dyn Machine) {
    const NR_WINDOWS: u32 = STUCK_MAX as u32 + 4;
    let limits = Limits {
        zswap_max_bytes: PAGE_SIZE as u64,
        settle_deadline: Duration::from_millis(4),
        fault_deadline: Duration::from_secs(5),
        reap_passes: 1,
        ..limits(u64::from(NR_WINDOWS) + 8)
    };
    let world = World::with_limits(machine, limits);
    let (hog, other) = (world.memcg.new_mm("hog"), world.memcg.new_mm("other"));
    let held = world.map(&hog, NR_WINDOWS * WINDOW_PAGES);
    let fence = Fence::new("suite.settles");
    let settles = Settles::new(&fence);
    let subscription = hog.notifiers().subscribe("gpu1", Ranges::WholeMm, settles);
    let mut rng = Rng(26);
    for window in 0..NR_WINDOWS {
        write_page(&*held, window * WINDOW_PAGES, &rng.incompressible());
    }
    let needs = world.map(&other, 32);
    for page in 0..32 {
        let written = needs.write(offset_of(page), &rng.incompressible());
        if written.is_err() || world.memcg.stat().oom_kill > 0 {
            break;
        }
    }
    let reports = world.memcg.oom_reports();
    let victims: Vec<_> = reports.iter().map(|report| &*report.victim).collect();
    assert_eq!(victims.first(), Some(&"hog"), "{victims:?}");
    fence.signal();
    drop(subscription);
}

/// Takes its lock in its callback.
struct Locker {
    lock: Mutex<()>,
}

impl Notifier for Locker {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        drop(cx.lock(&self.lock)?);
        Ok(())
    }
}

/// G7: no deadline bounds a callback that may block, but what waits for it does not count for ever.
pub(super) fn a_hung_callback_does_not_stop_the_oom_killer(machine: &dyn Machine) {
    let limits = Limits {
        zswap_max_bytes: PAGE_SIZE as u64,
        settle_deadline: Duration::from_millis(10),
        fault_deadline: Duration::from_secs(5),
        ..limits(32)
    };
    let world = World::with_limits(machine, limits);
    let (small, hog) = (world.memcg.new_mm("small"), world.memcg.new_mm("hog"));
    let (held, leaked) = (world.map(&small, 4), world.map(&hog, 128));
    let locker = Arc::new(Locker {
        lock: Mutex::new("suite.locker", ()),
    });
    let subscription = small
        .notifiers()
        .subscribe("gpu2", Ranges::WholeMm, Arc::clone(&locker));
    let mut rng = Rng(27);
    for page in 0..4 {
        write_page(&*held, page, &rng.incompressible());
    }
    // Who holds a driver's lock and then waits for memory is wrong, as the validator says.
    let validator = Validator::new();
    let apart = validator.enter();
    let hangs = locker.lock.lock();
    leak(&*leaked, 128, 28);
    assert!(hog.is_killed() && !small.is_killed());
    drop(hangs);
    drop(apart);
    drop(subscription);
}

/// What Linux did until 2018, and what it was cured of: a reaper that gives up because a notifier
/// might block frees nothing, and somebody who did nothing goes next.
pub(super) fn a_reaper_that_gives_up_kills_a_second(machine: &dyn Machine) {
    for (reaping, nr_killed) in [(Reaping::Asks, 1), (Reaping::GivesUp, 2)] {
        let world = World::with_limits(machine, limits(32));
        world.memcg.set_reaping(reaping);
        let (bystander, leaker) = (
            world.memcg.new_mm("bystander"),
            world.memcg.new_mm("leaker"),
        );
        let (kept, leaked) = (world.map(&bystander, 40), world.map(&leaker, 512));
        // It never refuses, and never blocks; but who knows.
        let device = Arc::new(Willing);
        let subscription = leaker.notifiers().subscribe("nic", Ranges::WholeMm, device);
        let mut rng = Rng(81);
        for page in 0..8 {
            write_page(&*kept, page, &rng.incompressible());
        }
        leak(&*leaked, 512, 82);
        for page in 8..40 {
            // Fails when it is killed for it.
            let _ = kept.write(offset_of(page), &rng.incompressible());
        }
        world.wait_until_reaped();
        let reports = world.memcg.oom_reports();
        assert_eq!(reports.len(), nr_killed, "{reaping:?}: {reports:?}");
        let held = (leaker.nr_frames() + leaker.nr_swapped()) > 0;
        assert_eq!(held, reaping == Reaping::GivesUp);
        assert_eq!(bystander.is_killed(), reaping == Reaping::GivesUp);
        drop(subscription);
    }
}

struct Willing;

impl Notifier for Willing {
    fn start<C: Context>(&self, _range: &Range, _cx: &C) -> Result<(), C::Refusal> {
        Ok(())
    }
}
