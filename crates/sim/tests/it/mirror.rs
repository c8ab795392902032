//! A device with a table of translations, and the ways in which it can be wrong.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use lockdep::sync::{Mutex, ShortLock, sleep, spin_wait};
use pinless_mm::addr::{PAGE_SIZE, PageIndex, PageRun, Vaddr};
use pinless_mm::bus::{BusAddr, DeviceMemory, DeviceStats, DmaDevice, DmaError};
use pinless_mm::fault::FaultError;
use pinless_mm::mmu_notifier::{
    Blockable, Context, EndContext, Event, Mode, Notifier, Range, Ranges, Subscription,
};
use pinless_mm::primary_mmu::Access;
use std::sync::Arc;
use std::time::Duration;

/// What is wrong with a mirror.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wrong {
    Nothing,
    /// Installs what it fetched without asking whether it is old.
    NoRetry,
    /// Drops translations at the end, not at the start.
    DropsAtEnd,
    /// Sleeps in a start that may not.
    Sleeps,
    /// Refuses everything.
    RefusesAll,
    /// Goes on with its translations after the release.
    IgnoresRelease,
    /// Listens to unmaps only.
    UnmapOnly,
    /// Writes through translations for reading.
    WritesReadOnly,
    /// Goes on writing what may be read only from now on.
    KeepsWriting,
    /// Counts brackets of any page.
    WaitsForAll,
    /// Waits for the end of brackets, and nobody wakes it.
    LosesWakeups,
    /// Holds its lock while it asks for pages.
    FaultsUnderLock,
    /// Asks for a page in a start.
    FaultsInStart,
    /// Pins pages and forgets some.
    LeaksPins,
    /// Panics in every start.
    PanicsInStart,
    /// Panics in every end, with what it was to do done.
    PanicsInEnd,
    /// Panics in an access.
    PanicsInAccess,
    /// Panics when it goes.
    PanicsInDrop,
    /// Panics in an access, and when it goes.
    PanicsTwice,
}

/// The device.
pub(crate) struct Mirror {
    memory: Arc<dyn DeviceMemory>,
    wrong: Wrong,
    table: Mutex<Vec<Option<BusAddr>>>,
    open: ShortLock<Open>,
    is_stopped: AtomicBool,
}

#[derive(Default)]
struct Open {
    runs: Vec<PageRun>,
    sequence: u64,
}

impl Notifier for Mirror {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let run = self.run_of(range);
        assert!(self.wrong != Wrong::PanicsInStart, "a mirror breaks");
        if self.wrong == Wrong::RefusesAll && cx.mode() == Mode::NonBlock {
            cx.would_block()?;
        }
        if self.wrong == Wrong::Sleeps {
            sleep("mirror", Duration::from_millis(1));
        }
        if self.wrong == Wrong::FaultsInStart && cx.mode() == Mode::Blockable {
            let _in_vain = self.fetch(run.first, Access::Read);
        }
        let is_heard = match self.wrong {
            Wrong::UnmapOnly => range.event == Event::Unmap,
            Wrong::KeepsWriting => range.event != Event::ProtectionPage,
            _ => true,
        };
        let mut table = cx.lock(&self.table)?;
        if is_heard && self.wrong != Wrong::DropsAtEnd {
            run.pages().for_each(|page| table[page as usize] = None);
        }
        cx.short(&self.open).runs.push(run);
        Ok(())
    }

    fn end(&self, range: &Range, cx: &EndContext<'_>) {
        let run = self.run_of(range);
        let mut open = cx.short(&self.open);
        let at = open.runs.iter().position(|one| *one == run);
        open.runs.swap_remove(at.expect("a start came before"));
        open.sequence += u64::from(self.wrong != Wrong::LosesWakeups);
        drop(open);
        assert!(self.wrong != Wrong::PanicsInEnd, "a mirror breaks");
    }

    fn release(&self, cx: &Blockable<'_>) {
        let Ok(mut table) = cx.lock(&self.table);
        if self.wrong != Wrong::IgnoresRelease {
            self.is_stopped.store(true, Relaxed);
            table.fill(None);
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let breaks = [Wrong::PanicsInDrop, Wrong::PanicsTwice];
        assert!(!breaks.contains(&self.wrong), "a mirror breaks as it goes");
    }
}

impl Mirror {
    pub(crate) fn attach(
        memory: &Arc<dyn DeviceMemory>,
        wrong: Wrong,
    ) -> (Arc<Self>, Subscription) {
        let nr_pages = memory.nr_pages();
        let mirror = Arc::new(Self {
            memory: Arc::clone(memory),
            wrong,
            table: Mutex::new("mirror.table", vec![None; nr_pages as usize]),
            open: ShortLock::new(
                "mirror.open",
                Open {
                    runs: Vec::with_capacity(16),
                    sequence: 0,
                },
            ),
            is_stopped: AtomicBool::new(false),
        });
        let base = memory.base();
        let end = Vaddr(base.0 + u64::from(nr_pages) * PAGE_SIZE as u64);
        let listed = memory.notifiers().subscribe(
            "mirror",
            Ranges::Only(vec![base..end]),
            Arc::clone(&mirror),
        );
        (mirror, listed)
    }

    fn run_of(&self, range: &Range) -> PageRun {
        let (base, size) = (self.memory.base().0, PAGE_SIZE as u64);
        let first = (range.start.0.saturating_sub(base) / size) as u32;
        let end =
            (range.end.0.saturating_sub(base).div_ceil(size) as u32).min(self.memory.nr_pages());
        PageRun::new(first, end - first)
    }

    fn access(
        &self,
        page: PageIndex,
        access: Access,
        mut act: impl FnMut(BusAddr) -> Result<(), DmaError>,
    ) -> Result<(), DmaError> {
        let mut fetched: Option<(BusAddr, u64)> = None;
        let breaks = [Wrong::PanicsInAccess, Wrong::PanicsTwice];
        assert!(!breaks.contains(&self.wrong), "a mirror breaks");
        loop {
            let mut table = self.table.lock();
            if self.is_stopped.load(Relaxed) {
                return Err(DmaError::Stopped);
            }
            if let Some((at, seen)) = fetched.take() {
                let open = self.open.lock();
                let is_open = open.runs.iter().any(|run| run.contains(page));
                if self.wrong == Wrong::NoRetry || (open.sequence == seen && !is_open) {
                    table[page as usize] = Some(at);
                }
            }
            let may = |at: &BusAddr| {
                access == Access::Read || at.access == access || self.wrong == Wrong::WritesReadOnly
            };
            if let Some(at) = table[page as usize].filter(may) {
                return act(at);
            }
            let held = (self.wrong == Wrong::FaultsUnderLock).then_some(table);
            if self.wrong == Wrong::WaitsForAll {
                spin_wait("mirror.open", 0, || self.open.lock().runs.is_empty());
            } else if self.wrong == Wrong::LosesWakeups {
                self.wait_for_a_wakeup(page);
            } else {
                spin_wait("mirror.open", 0, || {
                    !self.open.lock().runs.iter().any(|run| run.contains(page))
                });
            }
            let seen = self.open.lock().sequence;
            if self.wrong == Wrong::LeaksPins {
                let pinned = Arc::clone(&self.memory).pin("mirror", PageRun::single(page), access);
                core::mem::forget(pinned);
            }
            let at = self.fetch(page, access).map_err(DmaError::Fault)?;
            drop(held);
            fetched = Some((at, seen));
        }
    }

    /// Asks for a page.
    fn fetch(&self, page: PageIndex, access: Access) -> Result<BusAddr, FaultError> {
        let mut at = [BusAddr {
            page,
            generation: 0,
            access,
        }];
        self.memory
            .fault_range(PageRun::single(page), access, &mut at)?;
        let [at] = at;
        Ok(at)
    }

    /// Waits for the sequence to move, which it never does.
    fn wait_for_a_wakeup(&self, page: PageIndex) {
        let open = self.open.lock();
        let seen = open.sequence;
        if open.runs.iter().any(|run| run.contains(page)) {
            drop(open);
            spin_wait("mirror.open", 0, || self.open.lock().sequence != seen);
        }
    }
}

impl DmaDevice for Mirror {
    fn name(&self) -> &str {
        "mirror"
    }

    fn read(&self, page: PageIndex, offset: usize, into: &mut [u8]) -> Result<(), DmaError> {
        self.access(page, Access::Read, |at| {
            self.memory.read(at, offset, into).map_err(DmaError::Stale)
        })
    }

    fn write(&self, page: PageIndex, offset: usize, from: &[u8]) -> Result<(), DmaError> {
        self.access(page, Access::Write, |at| {
            self.memory.write(at, offset, from).map_err(DmaError::Stale)
        })
    }

    fn hang(&self, _hang: bool) {}

    /// Counts nothing, as a driver may.
    fn stats(&self) -> DeviceStats {
        DeviceStats::default()
    }

    fn holds(&self) -> u32 {
        self.table.lock().iter().flatten().count() as u32
    }

    fn nr_servers(&self) -> u32 {
        0
    }

    fn serve(&self) {}

    fn stop(&self) {
        let mut table = self.table.lock();
        self.is_stopped.store(true, Relaxed);
        table.fill(None);
    }
}
