//! What a device refused, or makes others wait for, is found again.

use super::{Machine, Rng, World, write_page};
use crate::addr::{PAGE_SIZE, PageRun};
use crate::gfp::Gfp;
use crate::limits::Limits;
use crate::mm_struct::Advice;
use crate::mmu_notifier::{Context, Mode, Notifier, Range, Ranges};
use crate::page::State;
use crate::primary_mmu::Access;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use lockdep::Validator;
use lockdep::sync::Mutex;
use std::sync::Arc;

/// Hangs in a callback that may block.
struct Hung {
    lock: Mutex<()>,
    is_hung: AtomicBool,
}

impl Notifier for Hung {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        if range.mode == Mode::Blockable {
            self.is_hung.store(true, Ordering::Relaxed);
        }
        drop(cx.lock(&self.lock)?);
        Ok(())
    }
}

/// Refuses a number of times, then never again.
struct Brief {
    left: AtomicU64,
    nr_refused: AtomicU64,
}

impl Notifier for Brief {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        if range.mode == Mode::NonBlock && self.left.load(Ordering::Relaxed) > 0 {
            self.left.fetch_sub(1, Ordering::Relaxed);
            self.nr_refused.fetch_add(1, Ordering::Relaxed);
            cx.would_block()?;
        }
        Ok(())
    }
}

/// Frames are wanted while a device hangs in a callback, which holds up the worker that may wait,
/// and another one refuses a number of times. Returns how many were killed, and whether the frames
/// came.
fn refused_once_beside_a_hung_device(machine: &dyn Machine, nr_refusals: u64) -> (u64, bool) {
    let mut limits = Limits::new(32 * PAGE_SIZE as u64);
    limits.zswap_max_bytes = 8 * limits.max_bytes;
    limits.settle_deadline = Duration::from_millis(10);
    limits.fault_deadline = Duration::from_secs(5);
    let world = World::with_limits(machine, limits);
    let small = world.memcg.new_mm("small");
    let busy = world.memcg.new_mm("busy");
    let needs = world.memcg.new_mm("needs");
    let held = world.map(&small, 4);
    let used = world.map(&busy, 20);
    let pinned = world.map(&needs, 32);
    let hung = Arc::new(Hung {
        lock: Mutex::new("suite.hung", ()),
        is_hung: AtomicBool::new(false),
    });
    let brief = Arc::new(Brief {
        left: AtomicU64::new(0),
        nr_refused: AtomicU64::new(0),
    });
    let one = small
        .notifiers()
        .subscribe("hung", Ranges::WholeMm, Arc::clone(&hung));
    let two = busy
        .notifiers()
        .subscribe("brief", Ranges::WholeMm, Arc::clone(&brief));
    let mut rng = Rng(91);
    for page in 0..4 {
        write_page(&*held, page, &rng.half_compressible());
    }
    // Who holds a driver's lock and then asks for memory is wrong, as the validator says.
    let validator = Validator::new();
    let apart = validator.enter();
    let hangs = hung.lock.lock();
    let filler = pinned
        .vma()
        .pin(PageRun::new(0, 28), Access::Write, Gfp::Kernel);
    let filler = filler.expect("28 frames");
    world.wait_until("the settle worker hangs", || {
        world.memcg.reclaim.kick();
        hung.is_hung.load(Ordering::Relaxed)
    });
    drop(filler);
    pinned
        .vma()
        .advise(pinned.vma().all(), Advice::DontNeed)
        .expect("nobody refuses");
    for page in 0..20 {
        write_page(&*used, page, &rng.half_compressible());
    }
    brief.left.store(nr_refusals, Ordering::Relaxed);
    // 4 pages hang; of the 20 others 16 have to go, and their device lets go if it is asked.
    let pin = pinned
        .vma()
        .pin(PageRun::new(0, 24), Access::Write, Gfp::Kernel);
    let result = (world.memcg.stat().oom_kill, pin.is_ok());
    drop(pin);
    drop(hangs);
    drop(apart);
    drop((one, two));
    result
}

/// The control: without a refusal.
pub(super) fn a_willing_device_beside_a_hung_one_lets_go(machine: &dyn Machine) {
    assert_eq!(refused_once_beside_a_hung_device(machine, 0), (0, true));
}

/// G7.
pub(super) fn a_window_refused_once_is_not_lost_beside_a_hung_device(machine: &dyn Machine) {
    assert_eq!(refused_once_beside_a_hung_device(machine, 1), (0, true));
}

/// Lets somebody else lock pages while it is asked.
struct Slow {
    is_asked: AtomicBool,
    is_locked: AtomicBool,
}

impl Notifier for Slow {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        cx.would_block()?;
        self.is_asked.store(true, Ordering::Relaxed);
        while !self.is_locked.load(Ordering::Relaxed) {
            lockdep::sync::sleep("suite.slow", Duration::from_micros(50));
        }
        Ok(())
    }
}

/// The lock was taken after the advice had looked for locks.
pub(super) fn pages_locked_during_advice_stay_locked(machine: &dyn Machine) {
    let world = World::new(machine, 32);
    let mm = world.memcg.new_mm("locks");
    let mapping = world.map(&mm, 8);
    for page in 0..8 {
        write_page(&*mapping, page, &[page as u8 + 1]);
    }
    let slow = Arc::new(Slow {
        is_asked: AtomicBool::new(false),
        is_locked: AtomicBool::new(false),
    });
    let subscription = mm
        .notifiers()
        .subscribe("slow", Ranges::WholeMm, Arc::clone(&slow));
    let guard = Arc::new(Mutex::new("suite.guard", None));
    let locker = {
        let (vma, guard, slow) = (
            Arc::clone(mapping.vma()),
            Arc::clone(&guard),
            Arc::clone(&slow),
        );
        world.spawn("locker", move || {
            while !slow.is_asked.load(Ordering::Relaxed) {
                lockdep::sync::sleep("suite.locker", Duration::from_micros(50));
            }
            *guard.lock() = Some(vma.mlock(PageRun::new(0, 8)).expect("room"));
            slow.is_locked.store(true, Ordering::Relaxed);
        })
    };
    let _ = mapping.vma().advise(mapping.vma().all(), Advice::DontNeed);
    locker();
    let state = mapping.vma().page_state(0);
    drop(subscription);
    let is_kept = state == State::Resident && mapping.vma().nr_locked() == 8;
    drop(guard.lock().take());
    assert!(is_kept, "an Mlock lives and its pages are gone");
}

/// Never answers.
struct Settles {
    fence: lockdep::sync::Fence,
}

impl Notifier for Settles {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        cx.settle(&self.fence)
    }
}

/// Frames are wanted while windows queue up of a device whose fence never signals; another device
/// refuses a number of times. Whether the frames came, and nobody was killed.
fn refused_once_behind_windows_of_a_hung_device(machine: &dyn Machine, nr_refusals: u64) -> bool {
    const NR_HELD: u32 = 10;
    let mut limits = Limits::new(48 * PAGE_SIZE as u64);
    limits.zswap_max_bytes = 8 * limits.max_bytes;
    // Ten waits would be too long.
    limits.settle_deadline = Duration::from_secs(1);
    limits.fault_deadline = Duration::from_secs(5);
    let world = World::with_limits(machine, limits);
    let (hog, busy) = (world.memcg.new_mm("hog"), world.memcg.new_mm("busy"));
    let needs = world.memcg.new_mm("needs");
    let held = world.map(&hog, NR_HELD * 64);
    let (used, pinned) = (world.map(&busy, 20), world.map(&needs, 38));
    let settles = Arc::new(Settles {
        fence: lockdep::sync::Fence::new("suite.settles"),
    });
    let brief = Arc::new(Brief {
        left: AtomicU64::new(0),
        nr_refused: AtomicU64::new(0),
    });
    let one = hog
        .notifiers()
        .subscribe("hung", Ranges::WholeMm, Arc::clone(&settles));
    let two = busy
        .notifiers()
        .subscribe("brief", Ranges::WholeMm, Arc::clone(&brief));
    let mut rng = Rng(93);
    for window in 0..NR_HELD {
        write_page(&*held, window * 64, &rng.half_compressible());
    }
    for page in 0..20 {
        write_page(&*used, page, &rng.half_compressible());
    }
    brief.left.store(nr_refusals, Ordering::Relaxed);
    // 10 pages hang; the 20 others can all go.
    let pin = pinned
        .vma()
        .pin(PageRun::new(0, 30), Access::Write, Gfp::Kernel);
    let is_good = pin.is_ok() && world.memcg.stat().oom_kill == 0;
    settles.fence.signal();
    drop((pin, one, two));
    is_good
}

/// The control: without a refusal.
pub(super) fn a_willing_device_behind_windows_of_a_hung_one_lets_go(machine: &dyn Machine) {
    assert!(refused_once_behind_windows_of_a_hung_device(machine, 0));
}

/// A holder that does not answer is waited for once, not once for each of its windows.
pub(super) fn a_window_refused_once_is_found_behind_others(machine: &dyn Machine) {
    assert!(refused_once_behind_windows_of_a_hung_device(machine, 1));
}
