//! Moving runs of pages between their addresses and their slots.
//!
//! One loop serves both directions. The kernel's answer is believed in one case only: full
//! success. Of a move that refuses holes it says that every page has moved; of one that allows
//! them, that no page is left at its source, and the page table of the target tells which there
//! were. After anything else the page tables of both places are asked, page by page, and the loop
//! goes on at the first page that has not moved. The machine's error number then only says what to
//! do about *that* page.

use super::private::Staging;
use super::{HostMmu, NR_RETRIES_MAX, mmu_error};
use crate::errno::Errno;
use crate::pagemap::{self, Entry};
use crate::uffd::{Holes, Stopped, Uffd};
use pinless_mm::addr::{PAGE_SIZE, PageIndex, PageRun};
use pinless_mm::limits::WINDOW_PAGES;
use pinless_mm::primary_mmu::{Detached, MapStopped, MmuError};

/// Where a page is, by the page tables of both places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Source,
    Target,
    Both,
    Nowhere,
}

/// One direction of travel.
struct Route<'a> {
    mmu: &'a HostMmu,
    /// The descriptor that the target is registered with.
    uffd: &'a Uffd,
    /// Where page 0 is before and after.
    source_base: usize,
    target_base: usize,
}

impl<'a> Route<'a> {
    fn out(mmu: &'a HostMmu, staging: &'a Staging) -> Self {
        Self {
            mmu,
            uffd: &staging.uffd,
            source_base: mmu.address(0),
            target_base: staging.slot(0),
        }
    }

    /// To the address of `page` and those after it, out of the slots from that of `from` on.
    fn back(mmu: &'a HostMmu, staging: &'a Staging, page: PageIndex, from: PageIndex) -> Self {
        // Where page 0 would be: it may be before the start of memory, but is not asked for.
        let source_base = staging.slot(from).wrapping_sub(page as usize * PAGE_SIZE);
        Self {
            mmu,
            uffd: &mmu.uffd,
            source_base,
            target_base: mmu.address(0),
        }
    }

    fn source(&self, page: PageIndex) -> usize {
        self.source_base.wrapping_add(page as usize * PAGE_SIZE)
    }

    fn target(&self, page: PageIndex) -> usize {
        self.target_base + page as usize * PAGE_SIZE
    }

    fn go(&self, run: PageRun, holes: Holes) -> Result<(), Stopped> {
        self.uffd.move_pages(
            self.target(run.first),
            self.source(run.first),
            run.len_bytes(),
            holes,
        )
    }

    /// Tells `each` where the pages of `run` are, in order, until it says to stop.
    fn places(
        &self,
        run: PageRun,
        mut each: impl FnMut(PageIndex, Place) -> bool,
    ) -> Result<(), Errno> {
        let mut sources = pagemap::NOTHING;
        let mut targets = pagemap::NOTHING;
        let mut first = run.first;
        while first < run.end() {
            let nr = (run.end() - first) as usize;
            let map = &self.mmu.pagemap;
            let sources = map.read(self.source(first), nr, &mut sources)?;
            let targets = map.read(self.target(first), nr, &mut targets)?;
            for (source, target) in sources.iter().zip(targets) {
                if !each(first, place(*source, *target)) {
                    return Ok(());
                }
                first += 1;
            }
        }
        Ok(())
    }
}

fn place(source: Entry, target: Entry) -> Place {
    match (source.is_occupied(), target.is_occupied()) {
        (true, false) => Place::Source,
        (false, true) => Place::Target,
        (true, true) => Place::Both,
        (false, false) => Place::Nowhere,
    }
}

/// See [`pinless_mm::primary_mmu::PrimaryMmu::detach`].
pub(super) fn detach(
    mmu: &HostMmu,
    staging: &Staging,
    run: PageRun,
    outcome: &mut [Detached],
) -> Result<(), MmuError> {
    let route = Route::out(mmu, staging);
    let mut trip = Detach {
        route: &route,
        run,
        left: run,
        outcome,
        // Success then says it all, and to ask the page map costs as much as to move a page.
        holes: Holes::Refuse,
        nr_retries: 0,
        error: None,
    };
    while trip.left.nr > 0 {
        match route.go(trip.left, trip.holes) {
            Ok(()) if trip.holes == Holes::Refuse => trip.settle_all(Detached::Done),
            Ok(()) => trip.ask_targets()?,
            Err(stopped) => {
                let nr_before = trip.left.nr;
                trip.ask_until_source()?;
                if trip.left.nr == nr_before {
                    trip.first_page_stays(stopped.errno)?;
                } else {
                    trip.nr_retries = 0;
                }
            }
        }
    }
    trip.error.map_or(Ok(()), Err)
}

struct Detach<'a> {
    route: &'a Route<'a>,
    run: PageRun,
    /// What is not settled yet: the tail of `run`.
    left: PageRun,
    outcome: &'a mut [Detached],
    holes: Holes,
    nr_retries: u32,
    /// The first thing found that should not be.
    error: Option<MmuError>,
}

impl Detach<'_> {
    /// Settles the first page that is left.
    fn settle(&mut self, outcome: Detached) {
        self.outcome[(self.left.first - self.run.first) as usize] = outcome;
        self.left = PageRun::new(self.left.first + 1, self.left.nr - 1);
    }

    fn settle_all(&mut self, outcome: Detached) {
        while self.left.nr > 0 {
            self.settle(outcome);
        }
    }

    fn settle_by_place(&mut self, page: PageIndex, place: Place) {
        match place {
            Place::Source => self.settle(Detached::Busy),
            Place::Target => self.settle(Detached::Done),
            Place::Nowhere => self.settle(Detached::Hole),
            Place::Both => {
                // The slot was empty, so what is in it is the page. At the address there is
                // something else since: the mark of a refused fault, or a foreign page.
                if !self.route.mmu.take_denied(page) {
                    self.error.get_or_insert(MmuError::ForeignFill { page });
                }
                self.settle(Detached::Done);
            }
        }
    }

    /// Settles all that is left after a move that left nothing at the sources: what is in its
    /// slot has moved, and what is not was a hole.
    fn ask_targets(&mut self) -> Result<(), MmuError> {
        let route = self.route;
        let mut entries = [Entry::NOTHING; WINDOW_PAGES as usize];
        while self.left.nr > 0 {
            let slot = route.target(self.left.first);
            let asked = route
                .mmu
                .pagemap
                .read(slot, self.left.nr as usize, &mut entries);
            let targets = match asked {
                Ok(targets) => targets,
                Err(errno) => return self.or_busy(Err(errno)),
            };
            for target in targets {
                self.settle(if target.is_occupied() {
                    Detached::Done
                } else {
                    Detached::Hole
                });
            }
        }
        Ok(())
    }

    /// Settles all that is left by where each page is.
    fn ask_all(&mut self) -> Result<(), MmuError> {
        let (route, left) = (self.route, self.left);
        let asked = route.places(left, |page, place| {
            self.settle_by_place(page, place);
            true
        });
        self.or_busy(asked)
    }

    /// Settles what is left up to the first page that is still at its address only.
    fn ask_until_source(&mut self) -> Result<(), MmuError> {
        let (route, left) = (self.route, self.left);
        // While holes are refused, a hole where the move stopped is why it stopped.
        let asked = route.places(left, |page, place| {
            if place == Place::Source {
                return false;
            }
            if place == Place::Nowhere {
                self.holes = Holes::Allow;
            }
            self.settle_by_place(page, place);
            true
        });
        self.or_busy(asked)
    }

    /// If the page tables cannot be read, nothing may be called done.
    fn or_busy(&mut self, asked: Result<(), Errno>) -> Result<(), MmuError> {
        asked.map_err(|errno| {
            let page = self.left.first;
            self.settle_all(Detached::Busy);
            mmu_error("reading the page map", page, errno)
        })
    }

    /// The move stopped at the first page that is left, which has not moved.
    fn first_page_stays(&mut self, errno: Errno) -> Result<(), MmuError> {
        self.nr_retries += 1;
        let page = self.left.first;
        match errno.0 {
            // Somebody is looking at the page, or the answer makes no sense: try again.
            libc::EAGAIN | libc::EEXIST if self.nr_retries <= NR_RETRIES_MAX => Ok(()),
            // A hole, into which the mark of a refused fault has come since.
            libc::ENOENT if self.holes == Holes::Refuse => {
                self.holes = Holes::Allow;
                Ok(())
            }
            // Pinned; or a mark, such as poison, that cannot move.
            libc::EBUSY | libc::EFAULT | libc::EAGAIN | libc::EEXIST => {
                self.nr_retries = 0;
                self.settle(Detached::Busy);
                Ok(())
            }
            _ => {
                self.ask_all()?;
                Err(mmu_error("UFFDIO_MOVE", page, errno))
            }
        }
    }
}

/// See [`pinless_mm::primary_mmu::PrimaryMmu::reattach`], where `from` is the first page of `run`,
/// and [`pinless_mm::primary_mmu::ReuseFrames::map_detached`].
pub(super) fn attach(
    mmu: &HostMmu,
    staging: &Staging,
    run: PageRun,
    from: PageIndex,
) -> Result<(), MapStopped> {
    let route = Route::back(mmu, staging, run.first, from);
    let mut left = run;
    let mut nr_retries = 0;
    while left.nr > 0 {
        let Err(stopped) = route.go(left, Holes::Refuse) else {
            break;
        };
        let at = |error| MapStopped {
            nr_done: left.first - run.first,
            error,
        };
        let (nr_moved, next) = nr_back(&route, left).map_err(at)?;
        if nr_moved > 0 {
            // The kernel wakes for what it counted only.
            let _ = mmu
                .uffd
                .wake(mmu.address(left.first), nr_moved as usize * PAGE_SIZE);
            left = PageRun::new(left.first + nr_moved, left.nr - nr_moved);
            nr_retries = 0;
            continue;
        }
        nr_retries += 1;
        let page = left.first;
        match (stopped.errno.0, next) {
            (_, Place::Both) if mmu.take_denied(page) => {}
            (_, Place::Both) => return Err(at(MmuError::ForeignFill { page })),
            (libc::EAGAIN | libc::EEXIST, Place::Source) if nr_retries <= NR_RETRIES_MAX => {}
            (_, Place::Nowhere) => return Err(at(MmuError::Gone { page })),
            _ => return Err(at(mmu_error("UFFDIO_MOVE", page, stopped.errno))),
        }
    }
    Ok(())
}

/// How many pages of the run are back, from its start on, and where the one after them is.
fn nr_back(route: &Route<'_>, run: PageRun) -> Result<(u32, Place), MmuError> {
    let mut nr = 0;
    let mut next = Place::Target;
    route
        .places(run, |_, place| {
            next = place;
            nr += u32::from(place == Place::Target);
            place == Place::Target
        })
        .map_err(|errno| mmu_error("reading the page map", run.first, errno))?;
    Ok((nr, next))
}
