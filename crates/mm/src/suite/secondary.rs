//! What devices know of their use of memory, and what those are told who walk the page table.

use super::{Machine, Rng, World, read_page, write_page};
use crate::addr::{PageRun, Vaddr};
use crate::gfp::Gfp;
use crate::mm_struct::Vma;
use crate::mmu_notifier::{
    Context, EndContext, Event, Misuse, Notifier, Range, Ranges, TlbContext, TlbUser,
};
use crate::page::State;
use crate::primary_mmu::Access;
use core::sync::atomic::{AtomicU64, Ordering};
use lockdep::sync::{Mutex, ShortLock};
use std::sync::{Arc, OnceLock};

/// Uses some addresses all the time, and counts brackets over them.
struct User {
    used: core::ops::Range<Vaddr>,
    nr_told: AtomicU64,
    nr_asked: AtomicU64,
}

impl User {
    fn new(vma: &Vma, first: u32, end: u32) -> Arc<Self> {
        Arc::new(Self {
            used: vma.address(first)..vma.address(end),
            nr_told: AtomicU64::new(0),
            nr_asked: AtomicU64::new(0),
        })
    }

    fn uses(&self, range: &Range) -> bool {
        range.overlaps(self.used.start, self.used.end)
    }
}

impl Notifier for User {
    fn start<C: Context>(&self, range: &Range, _cx: &C) -> Result<(), C::Refusal> {
        let is_mine = u64::from(self.uses(range));
        self.nr_told.fetch_add(is_mine, Ordering::Relaxed);
        Ok(())
    }

    fn clear_young(&self, range: &Range, _cx: &EndContext<'_>) -> bool {
        self.nr_asked.fetch_add(1, Ordering::Relaxed);
        self.uses(range)
    }

    fn test_young(&self, range: &Range, _cx: &EndContext<'_>) -> bool {
        self.nr_asked.fetch_add(1, Ordering::Relaxed);
        self.uses(range)
    }
}

/// A page that only a device uses is not what goes.
pub(super) fn n87_what_a_device_uses_counts_as_referenced(machine: &dyn Machine) {
    const USED: u32 = 2;
    let world = World::new(machine, 16);
    let mm = world.memcg.new_mm("young");
    let mapping = world.map(&mm, 48);
    let user = User::new(mapping.vma(), 0, USED);
    let _subscription = mm
        .notifiers()
        .subscribe("user", Ranges::WholeMm, Arc::clone(&user));
    let mut rng = Rng(3);
    for page in 0..48 {
        write_page(&*mapping, page, &rng.half_compressible());
    }
    assert!(
        user.nr_asked.load(Ordering::Relaxed) > 0,
        "reclaim asks the devices"
    );
    assert_eq!(user.nr_told.load(Ordering::Relaxed), 0);
    for page in 0..USED {
        assert_eq!(mapping.vma().page_state(page), State::Resident, "{page}");
    }
}

/// G6: that devices use everything all the time holds up nobody and kills nobody.
pub(super) fn memory_goes_though_devices_use_all_of_it(machine: &dyn Machine) {
    let world = World::new(machine, 8);
    let mm = world.memcg.new_mm("all young");
    let mapping = world.map(&mm, 32);
    let user = User::new(mapping.vma(), 0, 32);
    let _subscription = mm
        .notifiers()
        .subscribe("user", Ranges::WholeMm, Arc::clone(&user));
    let mut rng = Rng(4);
    let contents: Vec<_> = (0..32).map(|_| rng.half_compressible()).collect();
    for page in 0..32 {
        write_page(&*mapping, page, &contents[page as usize]);
    }
    for page in 0..32 {
        assert!(read_page(&*mapping, page) == contents[page as usize]);
    }
    assert!(user.nr_told.load(Ordering::Relaxed) > 0);
    assert!(world.memcg.oom_reports().is_empty());
}

/// Notes what it was told to forget, and how the page was then.
struct Walker {
    vma: OnceLock<Arc<Vma>>,
    flushed: ShortLock<[u32; Event::ALL.len()]>,
}

impl TlbUser for Walker {
    fn flush(&self, range: &Range, cx: &TlbContext<'_>) {
        let vma = self.vma.get().expect("it is set before the first access");
        let page = ((range.start.0 - vma.base().0) / crate::addr::PAGE_SIZE as u64) as u32;
        let is_owned = vma.page_state(page) == State::Moving;
        let is_gone = range.event == Event::ProtectionPage || !vma.primary().is_present(page);
        if is_owned && is_gone {
            cx.short(&self.flushed)[range.event as usize] += range.pages() as u32;
        }
    }
}

/// Entries are gone, and frames are not, when they are told.
pub(super) fn who_walks_the_page_table_is_told_of_each_entry(machine: &dyn Machine) {
    let world = World::new(machine, 32);
    let mm = world.memcg.new_mm("walked");
    let mapping = world.map(&mm, 16);
    let walker = Arc::new(Walker {
        vma: OnceLock::new(),
        flushed: ShortLock::new("suite.walker", [0; Event::ALL.len()]),
    });
    assert!(walker.vma.set(Arc::clone(mapping.vma())).is_ok());
    let subscription = mm
        .notifiers()
        .subscribe_tlb("walker", Arc::clone(&walker) as _);
    let flushed = |event: Event| walker.flushed.lock()[event as usize];
    let mut rng = Rng(5);
    for page in 0..16 {
        write_page(&*mapping, page, &rng.half_compressible());
    }
    assert_eq!(flushed(Event::Clear), 0);
    let advise = |run, advice| mapping.vma().advise(run, advice).expect("nobody refuses");
    advise(PageRun::new(0, 4), crate::mm_struct::Advice::PageOut);
    assert_eq!(flushed(Event::Clear), 4, "pages go into their slots");
    advise(PageRun::new(4, 4), crate::mm_struct::Advice::DontNeed);
    assert_eq!(flushed(Event::Clear), 8, "frames are given back");
    mm.unmap(mapping.vma()).expect("nothing is pinned");
    assert_eq!(flushed(Event::Unmap), 16, "what was left is unmapped");
    assert_eq!(world.memcg.frames().usage(), 0);
    drop(subscription);
}

/// Also at the end of the address space, after everybody else was released.
pub(super) fn who_walks_the_page_table_is_told_of_its_end(machine: &dyn Machine) {
    let world = World::new(machine, 32);
    let mm = world.memcg.new_mm("walked");
    let mapping = world.map(&mm, 16);
    let walker = Arc::new(Walker {
        vma: OnceLock::new(),
        flushed: ShortLock::new("suite.walker", [0; Event::ALL.len()]),
    });
    assert!(walker.vma.set(Arc::clone(mapping.vma())).is_ok());
    let walks = mm
        .notifiers()
        .subscribe_tlb("walker", Arc::clone(&walker) as _);
    let user = User::new(mapping.vma(), 0, 16);
    let uses = mm.notifiers().subscribe("user", Ranges::WholeMm, user);
    for page in 0..16 {
        write_page(&*mapping, page, &[1; crate::addr::PAGE_SIZE]);
    }
    drop(mm);
    assert_eq!(walker.flushed.lock()[Event::Unmap as usize], 16);
    assert_eq!(world.memcg.frames().usage(), 0);
    drop((walks, uses));
}

/// Pins a page whenever it is told of a change.
struct Toucher {
    vma: Mutex<Option<Arc<Vma>>>,
}

impl Notifier for Toucher {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        if let Some(vma) = cx.lock(&self.vma)?.as_ref() {
            drop(vma.pin(PageRun::new(0, 1), Access::Read, Gfp::NoWait));
        }
        Ok(())
    }
}

/// A callback that uses managed memory is reported, with the subscriber's name.
pub(super) fn a_callback_that_touches_memory_is_named(machine: &dyn Machine) {
    let world = World::new(machine, 16);
    let mm = world.memcg.new_mm("touched");
    let mapping = world.map(&mm, 8);
    let toucher = Arc::new(Toucher {
        vma: Mutex::new("suite.toucher", None),
    });
    let reports = Arc::new(Mutex::new("suite.misuses", Vec::new()));
    let sink = Arc::clone(&reports);
    mm.notifiers()
        .on_misuse(move |report| sink.lock().push(report.clone()));
    let subscription = mm
        .notifiers()
        .subscribe("toucher", Ranges::WholeMm, Arc::clone(&toucher));
    for page in 0..8 {
        write_page(&*mapping, page, &[1; crate::addr::PAGE_SIZE]);
    }
    *toucher.vma.lock() = Some(Arc::clone(mapping.vma()));
    let advised = mapping
        .vma()
        .advise(PageRun::new(4, 2), crate::mm_struct::Advice::DontNeed);
    *toucher.vma.lock() = None;
    drop(subscription);
    assert!(advised.is_ok());
    let reports = core::mem::take(&mut *reports.lock());
    let named = reports
        .iter()
        .map(|report| (report.misuse, &*report.subscriber));
    assert_eq!(
        named.collect::<Vec<_>>(),
        [(Misuse::TouchInCallback, "toucher")]
    );
}
