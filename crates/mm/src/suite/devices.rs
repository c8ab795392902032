//! Devices that refuse, hang, or forget.

use super::{Machine, Rng, World, read_page, write_page};
use crate::addr::{PAGE_SIZE, PageRun};
use crate::bus::{Bus, BusAddr, Caught, Checks};
use crate::limits::Limits;
use crate::mm_struct::{Advice, AdviseError};
use crate::mmu_notifier::{BracketError, Context, Notifier, Range, Ranges};
use crate::page::State;
use crate::primary_mmu::Access;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use lockdep::sync::Fence;
use std::sync::Arc;

/// Refuses whenever it may.
#[derive(Default)]
struct Refuser {
    blockable: AtomicU64,
}

impl Notifier for Refuser {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        cx.would_block()?;
        self.blockable.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// G3, G4.
pub(super) fn a_refusal_without_blocking_is_settled_by_a_worker(machine: &dyn Machine) {
    let world = World::new(machine, 8);
    let mm = world.memcg.new_mm("refuser");
    let mapping = world.map(&mm, 32);
    let refuser = Arc::new(Refuser::default());
    let _subscription = mm
        .notifiers()
        .subscribe("refuser", Ranges::WholeMm, Arc::clone(&refuser));
    let mut rng = Rng(9);
    let contents: Vec<_> = (0..32).map(|_| rng.half_compressible()).collect();
    for page in 0..32 {
        write_page(&*mapping, page, &contents[page as usize]);
    }
    for page in 0..32 {
        assert_eq!(
            read_page(&*mapping, page),
            contents[page as usize],
            "page {page}"
        );
    }
    assert!(
        world.memcg.stat().reclaim_refused > 0,
        "reclaim asks without blocking first"
    );
    assert!(
        refuser.blockable.load(Ordering::Relaxed) > 0,
        "then a worker waits"
    );
}

/// Never lets go.
struct Hanging {
    fence: Fence,
}

impl Notifier for Hanging {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        cx.settle(&self.fence)
    }
}

pub(super) fn a_device_that_does_not_answer_is_named_and_left_alone(machine: &dyn Machine) {
    let mut limits = Limits::new(64 * 4096);
    limits.settle_deadline = Duration::from_millis(20);
    let world = World::with_limits(machine, limits);
    let mm = world.memcg.new_mm("hanging");
    let mapping = world.map(&mm, 16);
    let vma = mapping.vma();
    let fence = Fence::new("suite.hanging");
    let held = vma.address(4)..vma.address(6);
    let hanging = Arc::new(Hanging {
        fence: fence.clone(),
    });
    let subscription = mm
        .notifiers()
        .subscribe("gpu7", Ranges::Only(vec![held]), hanging);
    for page in 0..16 {
        write_page(&*mapping, page, &[page as u8 + 1]);
    }
    for advice in [Advice::PageOut, Advice::DontNeed] {
        let error = vma
            .advise(PageRun::new(0, 16), advice)
            .expect_err("it hangs");
        let AdviseError::Notifier(BracketError::Stuck { holder, .. }) = error else {
            panic!("{error}");
        };
        assert_eq!(&*holder, "gpu7");
        assert!(
            (0..16).all(|page| vma.page_state(page) == State::Resident),
            "nothing changed"
        );
    }
    vma.advise(PageRun::new(6, 10), Advice::PageOut)
        .expect("it holds nothing there");
    fence.signal();
    vma.advise(PageRun::new(0, 16), Advice::PageOut)
        .expect("it has answered");
    assert_eq!(read_page(&*mapping, 5)[0], 6);
    drop(subscription);
}

/// G1: a device that does not listen is convicted, never obeyed.
pub(super) fn a_translation_is_stale_after_its_page_moved(machine: &dyn Machine) {
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("stale");
    let mapping = world.map(&mm, 4);
    let vma = mapping.vma();
    write_page(&*mapping, 1, &[3; 4]);
    let translate = |access| {
        let mut at = [BusAddr {
            page: 0,
            generation: 0,
            access,
        }];
        vma.fault_range(PageRun::single(1), access, &mut at)
            .expect("a frame");
        at[0]
    };
    let at = translate(Access::Write);
    let mut bytes = [0; 4];
    vma.read(at, 0, &mut bytes).expect("fresh");
    vma.write(at, 2, &[8, 9]).expect("fresh");
    assert_eq!(read_page(&*mapping, 1)[..4], [3, 3, 8, 9]);
    vma.advise(vma.all(), Advice::PageOut)
        .expect("nobody listens");
    let stale = vma.read(at, 0, &mut bytes).expect_err("the page is gone");
    assert_eq!(stale.caught, Caught::Before);
    assert_eq!(read_page(&*mapping, 1)[..4], [3, 3, 8, 9]);
    vma.write(at, 0, &[0])
        .expect_err("the page is back, its frame is another");
    let read_only = translate(Access::Read);
    let refused = vma.write(read_only, 0, &[1]).expect_err("read-only");
    assert_eq!(refused.caught, Caught::ReadOnly);
    assert_eq!(world.memcg.stat().stale_dma, 3);
    assert_eq!(read_page(&*mapping, 1)[..4], [3, 3, 8, 9]);
}

/// What each level of checks says of a translation whose page is not there, and of one whose page
/// is back in another frame; and how many of the two it counts.
pub(super) fn each_level_of_checks_convicts_what_it_looks_at(machine: &dyn Machine) {
    let stale = |caught| Err(caught);
    for (checks, absent, back, counted) in [
        (Checks::Generation, Caught::Before, stale(Caught::Before), 2),
        (Checks::Poison, Caught::Absent, Ok(()), 1),
        (Checks::Off, Caught::Absent, Ok(()), 0),
    ] {
        let mut limits = Limits::new(64 * PAGE_SIZE as u64);
        limits.bus_checks = checks;
        let world = World::with_limits(machine, limits);
        let mm = world.memcg.new_mm("levels");
        let mapping = world.map(&mm, 4);
        let vma = mapping.vma();
        write_page(&*mapping, 1, &[3; 4]);
        let mut at = [BusAddr {
            page: 0,
            generation: 0,
            access: Access::Read,
        }];
        vma.fault_range(PageRun::single(1), Access::Read, &mut at)
            .expect("a frame");
        let read = || {
            let mut bytes = [0; 4];
            let outcome = vma.read(at[0], 0, &mut bytes);
            outcome.map_err(|stale| stale.caught).map(|()| bytes)
        };
        assert_eq!(read(), Ok([3; 4]), "{checks:?}: it is fresh");
        vma.advise(vma.all(), Advice::PageOut)
            .expect("nobody listens");
        assert_eq!(read(), Err(absent), "{checks:?}: the page is gone");
        assert_eq!(read_page(&*mapping, 1)[..4], [3; 4]);
        assert_eq!(read().map(|_| ()), back, "{checks:?}: it is back");
        assert_eq!(world.memcg.stat().stale_dma, counted, "{checks:?}");
    }
}

/// Does not answer before the device has translated everything again.
#[derive(Default)]
struct Retranslates {
    nr_told: AtomicU64,
    nr_rounds: AtomicU64,
}

impl Notifier for Retranslates {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        cx.would_block()?;
        self.nr_told.fetch_add(1, Ordering::Relaxed);
        let nr_rounds = self.nr_rounds.load(Ordering::Relaxed);
        for _ in 0..100 {
            // The round that is under way, and a whole one.
            if self.nr_rounds.load(Ordering::Relaxed) > nr_rounds + 1 {
                break;
            }
            lockdep::sync::sleep("suite.retranslates", Duration::from_micros(50));
        }
        Ok(())
    }
}

/// A device that uses its range again and again while it is told does not keep the range alive.
pub(super) fn advice_not_to_need_ends_beside_a_device(machine: &dyn Machine) {
    const NR_CALLS: u64 = 8;
    let world = World::new(machine, 64);
    let mm = world.memcg.new_mm("dontneed");
    let mapping = world.map(&mm, 8);
    let vma = Arc::clone(mapping.vma());
    let notifier = Arc::new(Retranslates::default());
    let subscription = mm
        .notifiers()
        .subscribe("gpu9", Ranges::WholeMm, Arc::clone(&notifier));
    let is_stopped = Arc::new(AtomicBool::new(false));
    let (used, counts, stops) = (
        Arc::clone(&vma),
        Arc::clone(&notifier),
        Arc::clone(&is_stopped),
    );
    let device = world.spawn("device", move || {
        let mut at = [BusAddr {
            page: 0,
            generation: 0,
            access: Access::Write,
        }; 8];
        // Gives in at last, so that a call that does not end by itself is counted.
        while !stops.load(Ordering::Relaxed)
            && counts.nr_told.load(Ordering::Relaxed) <= 4 * NR_CALLS
        {
            used.fault_range(PageRun::new(0, 8), Access::Write, &mut at)
                .expect("frames are free");
            counts.nr_rounds.fetch_add(1, Ordering::Relaxed);
            lockdep::sync::sleep("suite.device", Duration::from_micros(20));
        }
    });
    for _ in 0..NR_CALLS {
        vma.advise(PageRun::new(0, 8), Advice::DontNeed)
            .expect("nobody hangs");
    }
    is_stopped.store(true, Ordering::Relaxed);
    device();
    let nr_told = notifier.nr_told.load(Ordering::Relaxed);
    assert_eq!(nr_told, NR_CALLS, "once is enough");
    drop(subscription);
}
