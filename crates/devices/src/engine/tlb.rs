//! A table of translations. The driver chooses the lock around it.

use super::page_set::PageSet;
use pinless_mm::addr::{PAGE_SIZE, PageIndex, PageRun, Vaddr};
use pinless_mm::bus::{Bus, BusAddr};
use pinless_mm::mmu_notifier::{Range, Ranges};
use pinless_mm::primary_mmu::Access;

/// What a device knows of one mapping.
#[derive(Debug)]
pub struct Tlb {
    entries: Vec<Option<BusAddr>>,
    held: PageSet,
}

impl Tlb {
    /// No translation of a mapping of `nr_pages`.
    pub fn new(nr_pages: u32) -> Self {
        Self {
            entries: vec![None; nr_pages as usize],
            held: PageSet::new(nr_pages),
        }
    }

    /// All pages of the mapping.
    pub fn all(&self) -> PageRun {
        PageRun::new(0, self.entries.len() as u32)
    }

    /// The translation of `page`, if it allows `access`.
    pub fn get(&self, page: PageIndex, access: Access) -> Option<BusAddr> {
        self.entries[page as usize].filter(|at| access == Access::Read || at.access == access)
    }

    /// Takes over a translation.
    pub fn install(&mut self, at: BusAddr) {
        self.entries[at.page as usize] = Some(at);
        self.held.insert(at.page);
    }

    /// Drops the translations of `run`.
    pub fn zap(&mut self, run: PageRun) {
        self.held
            .remove(run, |page| self.entries[page as usize] = None);
    }

    /// Drops one translation, unless another has taken its place.
    pub fn forget(&mut self, at: BusAddr) {
        if self.entries[at.page as usize] == Some(at) {
            self.zap(PageRun::single(at.page));
        }
    }

    /// Whether there is a translation of a page of `run`.
    pub fn holds(&self, run: PageRun) -> bool {
        self.held.overlaps(run)
    }

    /// How many pages are translated.
    pub fn nr_held(&self) -> u32 {
        self.held.nr()
    }
}

/// The ranges to subscribe to for the mapping behind `bus`.
pub fn ranges_of(bus: &dyn Bus) -> Ranges {
    let end = bus.base().0 + u64::from(bus.nr_pages()) * PAGE_SIZE as u64;
    Ranges::Only(vec![bus.base()..Vaddr(end)])
}

/// The interval to subscribe to for some pages of the mapping behind `bus`.
pub fn interval_of(bus: &dyn Bus, run: PageRun) -> (Vaddr, Vaddr) {
    let at = |page: PageIndex| Vaddr(bus.base().0 + u64::from(page) * PAGE_SIZE as u64);
    (at(run.first), at(run.end()))
}

/// The pages of the mapping behind `bus` that `range` touches, if any.
pub fn run_of(bus: &dyn Bus, range: &Range) -> Option<PageRun> {
    let (base, size) = (bus.base().0, PAGE_SIZE as u64);
    let first = range.start.0.saturating_sub(base) / size;
    let end = range
        .end
        .0
        .saturating_sub(base)
        .div_ceil(size)
        .min(u64::from(bus.nr_pages()));
    (first < end).then(|| PageRun::new(first as PageIndex, (end - first) as u32))
}
