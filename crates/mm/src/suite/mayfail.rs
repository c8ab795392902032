//! An object that is built page by page while memory is short: what a flag by which notifiers may
//! fail was to cure, what that cure would break, and the mark that needs no such flag.
//!
//! Each driver gathers the same pages. Between two of them the program uses other memory, so that
//! reclaim comes past what was gathered already.
//!
//! Linux counterpart: the proposal of June 2020 to let notifiers fail in reclaim (`MAYFAIL`), which
//! was refused.

use super::{Machine, Rng, World, read_page, write_page};
use crate::addr::PageRun;
use crate::bus::{Bus, BusAddr};
use crate::gfp::Gfp;
use crate::limits::Limits;
use crate::mm_struct::{Building, Vma};
use crate::mmu_notifier::{Context, Notifier, Range, Ranges};
use crate::primary_mmu::Access;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use lockdep::sync::Fence;
use std::sync::Arc;

const OBJECT: PageRun = PageRun::new(0, 24);
const NR_PAGES: u32 = 160;
const NR_FRAMES: u64 = 40;

/// What a driver does when it is told about an object that it is still building.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Policy {
    /// The device must be done with it first: refuse, or wait.
    Waits,
    /// Say yes and keep the pages, as the flag would have allowed.
    KeepsWhatItHas,
}

/// A driver with one object.
struct Driver {
    policy: Policy,
    is_building: AtomicBool,
    is_built: Fence,
    /// Where what it has gathered ends.
    gathered_end: AtomicU64,
    /// Times that it was told about the object while it was being built.
    nr_told: AtomicU64,
}

impl Notifier for Driver {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let is_ahead = range.start.0 >= self.gathered_end.load(Ordering::Relaxed);
        if is_ahead || !self.is_building.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.nr_told.fetch_add(1, Ordering::Relaxed);
        match self.policy {
            Policy::Waits => cx.settle(&self.is_built),
            Policy::KeepsWhatItHas => Ok(()),
        }
    }
}

impl Driver {
    /// It begins to build.
    fn new(policy: Policy) -> Self {
        Self {
            policy,
            is_building: AtomicBool::new(true),
            is_built: Fence::new("suite.built"),
            gathered_end: AtomicU64::new(0),
            nr_told: AtomicU64::new(0),
        }
    }
}

/// What came of building the object.
struct Built {
    nr_told: u64,
    nr_stale: usize,
    nr_refused: u64,
}

fn translate(vma: &Vma, page: u32) -> BusAddr {
    let mut at = [BusAddr {
        page,
        generation: 0,
        access: Access::Write,
    }];
    vma.fault_range(PageRun::single(page), Access::Write, &mut at)
        .expect("a frame comes free");
    at[0]
}

fn build(machine: &dyn Machine, policy: Policy, is_marked: bool) -> Built {
    let mut limits = Limits::new(NR_FRAMES * 4096);
    limits.zswap_max_bytes = 16 * limits.max_bytes;
    limits.settle_deadline = Duration::from_millis(20);
    let world = World::with_limits(machine, limits);
    let mm = world.memcg.new_mm("builder");
    let mapping = world.map(&mm, NR_PAGES);
    let vma = mapping.vma();
    let mut rng = Rng(31);
    let contents: Vec<_> = (0..NR_PAGES).map(|_| rng.half_compressible()).collect();
    for page in 0..NR_PAGES {
        write_page(&*mapping, page, &contents[page as usize]);
    }
    let driver = Arc::new(Driver::new(policy));
    let range = vma.address(OBJECT.first)..vma.address(OBJECT.end());
    let subscription =
        mm.notifiers()
            .subscribe("gpu3", Ranges::Only(vec![range]), Arc::clone(&driver));
    let mut building = Building::new(Arc::clone(vma), Access::Write, Gfp::Kernel);
    let mut translations = Vec::new();
    let mut use_other_memory = || {
        for _ in 0..5 {
            let other = OBJECT.nr + rng.below(u64::from(NR_PAGES - OBJECT.nr)) as u32;
            write_page(&*mapping, other, &contents[other as usize]);
        }
    };
    for page in OBJECT.pages() {
        let end = vma.address(page + 1).0;
        if is_marked {
            building.add(page).expect("a frame comes free");
        } else {
            // Before: what is translated is asked for from then on.
            driver.gathered_end.store(end, Ordering::Relaxed);
        }
        translations.push(translate(vma, page));
        use_other_memory();
        // Not before: it may have been chosen when it had come, and was not marked yet.
        driver.gathered_end.store(end, Ordering::Relaxed);
    }
    // Past the last one, too.
    use_other_memory();
    let nr_told = driver.nr_told.load(Ordering::Relaxed);
    let mut word = [0; 8];
    let nr_stale = translations
        .iter()
        .filter(|at| match vma.read(**at, 0, &mut word) {
            Ok(()) => {
                assert_eq!(word, contents[at.page as usize][..8], "page {}", at.page);
                false
            }
            Err(_stale) => true,
        })
        .count();
    driver.is_building.store(false, Ordering::Relaxed);
    driver.is_built.signal();
    drop((building.finish(), subscription));
    for page in 0..NR_PAGES {
        assert!(
            read_page(&*mapping, page) == contents[page as usize],
            "page {page}"
        );
    }
    Built {
        nr_told,
        nr_stale,
        nr_refused: world.memcg.stat().reclaim_refused,
    }
}

/// The failure: reclaim on behalf of the builder has the driver wait for itself. Here it costs
/// refusals, and a wait of the worker that only the deadline ends.
pub(super) fn mayfail_a_builder_is_told_to_let_go_of_its_own_pages(machine: &dyn Machine) {
    let built = build(machine, Policy::Waits, false);
    assert!(built.nr_told > 0, "reclaim did not come past the object");
    assert!(built.nr_refused > 0 && built.nr_stale == 0);
}

/// The cure that was refused: who may keep pages after it was told uses frames that others have.
pub(super) fn mayfail_a_notifier_that_keeps_its_pages_goes_stale(machine: &dyn Machine) {
    let built = build(machine, Policy::KeepsWhatItHas, false);
    assert!(built.nr_told > 0 && built.nr_stale > 0);
}

/// The cure: what is marked before the next fault is never chosen, so nobody is asked.
pub(super) fn mayfail_marked_pages_are_never_asked_for(machine: &dyn Machine) {
    for policy in [Policy::Waits, Policy::KeepsWhatItHas] {
        let built = build(machine, policy, true);
        assert_eq!(
            (built.nr_told, built.nr_refused, built.nr_stale),
            (0, 0, 0),
            "{policy:?}"
        );
    }
}
