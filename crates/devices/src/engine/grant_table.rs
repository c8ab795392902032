//! The engine of pattern G: foreign pages that are mapped here, used by input and output that
//! somebody else drives, and not mapped again once they are gone.
//!
//! Whoever is told that such a mapping goes has to wait until nobody uses its pages, and that is
//! the progress of another subsystem: the deepest wait of all patterns. Then the owner of the pages
//! is told, once, that they are his again.

use super::{Busy, InFlight, Mark, PageSet, Rounds, Tlb};
use crate::DmaError;
use lockdep::sync::{Fence, Mutex, ShortLock};
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::bus::BusAddr;
use pinless_mm::primary_mmu::Access;

/// How many mappings of grants there can be.
pub const GRANTS_MAX: usize = 16;

/// All mappings of grants in one mapping.
pub struct GrantTable {
    /// The mappings; whoever marks a page as used does so under this lock.
    pub grants: Mutex<Grants>,
    /// The brackets: inside of `grants`, and alone in `end`.
    pub rounds: ShortLock<Rounds>,
    in_flight: InFlight,
}

/// What there is of grants.
pub struct Grants {
    /// The pages that are still mapped.
    pub tlb: Tlb,
    /// Pages whose owner was told that they are his again.
    pub revoked: PageSet,
    /// How often an owner was told.
    pub nr_notified: u64,
    /// The memory is gone, or the device is stopped.
    pub is_over: bool,
    /// Input and output stands still until this signals.
    pub hung: Option<Fence>,
    maps: Vec<PageRun>,
}

/// Which parts of its mappings a start finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tracking {
    /// All of them.
    Pages,
    /// Those whose first page is in the range: a fault, once a mapping was split.
    FirstPage,
}

impl GrantTable {
    /// No grant in a mapping of `nr_pages`.
    pub fn new(nr_pages: u32) -> Self {
        crate::lock_order::prime();
        let grants = Grants {
            tlb: Tlb::new(nr_pages),
            revoked: PageSet::new(nr_pages),
            nr_notified: 0,
            is_over: false,
            hung: None,
            maps: Vec::with_capacity(GRANTS_MAX),
        };
        Self {
            grants: Mutex::new("devices.grants", grants),
            rounds: ShortLock::new("devices.grants.rounds", Rounds::new()),
            in_flight: InFlight::new(),
        }
    }

    /// A page is in use by input and output until the mark is dropped. None if too many are.
    ///
    /// # Errors
    ///
    /// [`DmaError::Unregistered`], [`DmaError::Stopped`]
    pub fn get(
        &self,
        page: PageIndex,
        access: Access,
        done: Fence,
    ) -> Result<Option<(BusAddr, Mark<'_>, Option<Fence>)>, DmaError> {
        let grants = self.grants.lock();
        if grants.is_over {
            return Err(DmaError::Stopped);
        }
        let found = grants.tlb.get(page, access);
        let at = found.ok_or(DmaError::Unregistered { page })?;
        let hung = grants.hung.clone();
        let mark = self.in_flight.mark(page, done);
        Ok(mark.map(|mark| (at, mark, hung)))
    }

    /// What uses pages of `run`.
    pub fn busy(&self, run: PageRun) -> Busy {
        let mut busy = Busy::new();
        self.in_flight.find(run, &mut busy);
        busy
    }
}

impl Grants {
    /// Maps a grant.
    ///
    /// # Errors
    ///
    /// [`DmaError::LimitReached`]
    pub fn map(&mut self, run: PageRun, at: &[BusAddr]) -> Result<(), DmaError> {
        if self.maps.len() == GRANTS_MAX {
            let limit = GRANTS_MAX as u32;
            return Err(DmaError::LimitReached { limit });
        }
        self.maps.push(run);
        self.revoked.remove(run, |_| ());
        at.iter().for_each(|&at| self.tlb.install(at));
        Ok(())
    }

    /// Unmaps what is in `run`, and tells the owners of its pages.
    pub fn unmap(&mut self, run: PageRun, tracking: Tracking) {
        for at in 0..self.maps.len() {
            let map = self.maps[at];
            if tracking == Tracking::FirstPage && !run.contains(map.first) {
                continue;
            }
            let Some(part) = intersection(map, run) else {
                continue;
            };
            for page in part.pages().map(PageRun::single) {
                if self.tlb.holds(page) {
                    assert!(!self.revoked.overlaps(page), "an owner is told twice");
                    self.revoked.insert(page.first);
                    self.nr_notified += 1;
                }
            }
            self.tlb.zap(part);
        }
        let Self { maps, tlb, .. } = self;
        maps.retain(|&map| tlb.holds(map));
    }
}

fn intersection(a: PageRun, b: PageRun) -> Option<PageRun> {
    let (first, end) = (a.first.max(b.first), a.end().min(b.end()));
    (first < end).then(|| PageRun::new(first, end - first))
}
