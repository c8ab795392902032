//! An accelerator with a translation buffer whose entries carry an address space number, and which
//! cancels by itself the lookups that an invalidation overtakes.
//!
//! A start counts, has the hardware forget its range, and waits the microseconds that takes; if no
//! context is loaded it only forgets the number, and the next load gets a fresh one. A miss waits
//! until no bracket is open. What is looked up then needs no sequence: the hardware marks the
//! lookup as cancelled in the same step in which it drops entries.
//!
//! Linux counterpart: drivers/misc/sgi-gru/grutlbpurge.c

use crate::engine::{Counters, Operation, Retry, fetch, ranges_of, run_of};
use crate::{Bug, Bugs, DeviceMemory, DeviceStats, DmaDevice, DmaError};
use lockdep::sync::{ShortLock, spin_wait};
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::bus::BusAddr;
use pinless_mm::mmu_notifier::{Blockable, Context, EndContext, Notifier, Range, Subscription};
use pinless_mm::primary_mmu::Access;
use std::sync::Arc;

/// Entries of the buffer.
const NR_ENTRIES: usize = 64;

/// Transfers and lookups that run at once.
const NR_CONTEXTS: usize = 8;

/// Address space numbers: few, so that they come round.
const NR_ASIDS: u32 = 2;

/// Pages that one instruction invalidates.
pub const PURGE_PAGES_MAX: u32 = 4;

/// The accelerator, and its driver.
pub struct Gru {
    name: Box<str>,
    memory: Arc<dyn DeviceMemory>,
    bugs: Bugs,
    chip: ShortLock<Chip>,
    counters: Counters,
}

/// The hardware, and what its driver counts.
struct Chip {
    entries: [Option<Entry>; NR_ENTRIES],
    next_entry: usize,
    contexts: [Option<Loaded>; NR_CONTEXTS],
    /// The number of this address space, if it has one.
    asid: Option<u32>,
    next_asid: u32,
    nr_open: u32,
    state: State,
}

#[derive(Clone, Copy)]
struct Entry {
    asid: u32,
    at: BusAddr,
}

/// What a loaded context does.
#[derive(Clone, Copy)]
struct Loaded {
    page: PageIndex,
    does: Does,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    /// A miss: the page is being looked up.
    Lookup,
    /// What is found will not be taken.
    Cancelled,
    Transfer,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Hung,
    Over,
}

impl Notifier for Gru {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let Some(run) = run_of(&*self.memory, range) else {
            return Ok(());
        };
        let mut chip = cx.short(&self.chip);
        chip.nr_open += 1;
        if chip.is_loaded() {
            self.purge(&mut chip, run);
        } else {
            chip.asid = None; // the next load begins with a fresh one
        }
        drop(chip);
        self.wait_for_transfers(run);
        self.counters.answered(Ok(()))
    }

    fn end(&self, range: &Range, cx: &EndContext<'_>) {
        if run_of(&*self.memory, range).is_some() {
            cx.short(&self.chip).nr_open -= 1;
        }
    }

    fn release(&self, cx: &Blockable<'_>) {
        let all = PageRun::new(0, self.memory.nr_pages());
        let mut chip = cx.short(&self.chip);
        chip.state = State::Over;
        chip.purge(all, Cancel::Yes);
        drop(chip);
        self.wait_for_transfers(all);
    }
}

/// Whether the hardware cancels lookups of what it drops.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cancel {
    Yes,
    /// A fault.
    No,
}

impl Chip {
    fn is_loaded(&self) -> bool {
        self.contexts.iter().any(Option::is_some)
    }

    /// The number of the address space; when the numbers come round, nothing of the old ones may
    /// be left.
    fn load(&mut self, is_flushed: Flush) -> u32 {
        if let Some(asid) = self.asid {
            return asid;
        }
        if self.next_asid == NR_ASIDS {
            self.next_asid = 0;
            if is_flushed == Flush::All {
                self.entries = [None; NR_ENTRIES];
            }
        }
        let asid = self.next_asid;
        self.next_asid += 1;
        self.asid = Some(asid);
        asid
    }

    fn look_up(&self, asid: u32, page: PageIndex, access: Access) -> Option<BusAddr> {
        let fits = |entry: &&Entry| {
            entry.asid == asid
                && entry.at.page == page
                && (access == Access::Read || entry.at.access == access)
        };
        self.entries
            .iter()
            .flatten()
            .find(fits)
            .map(|entry| entry.at)
    }

    fn drop_in(&mut self, at: BusAddr, asid: u32) {
        let same = |entry: &Option<Entry>| {
            entry.is_some_and(|entry| entry.asid == asid && entry.at.page == at.page)
        };
        let slot = self.entries.iter().position(same).unwrap_or_else(|| {
            self.next_entry = (self.next_entry + 1) % NR_ENTRIES;
            self.next_entry
        });
        self.entries[slot] = Some(Entry { asid, at });
    }

    /// One instruction.
    fn purge(&mut self, run: PageRun, cancel: Cancel) {
        for entry in &mut self.entries {
            *entry = entry.filter(|entry| !run.contains(entry.at.page));
        }
        if cancel == Cancel::Yes {
            for loaded in self.contexts.iter_mut().flatten() {
                if run.contains(loaded.page) && loaded.does == Does::Lookup {
                    loaded.does = Does::Cancelled;
                }
            }
        }
    }
}

/// What happens when the numbers of address spaces come round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flush {
    All,
    /// Nothing: a fault.
    Nothing,
}

impl Gru {
    /// Makes an accelerator and subscribes its driver.
    pub(crate) fn attach(
        memory: &Arc<dyn DeviceMemory>,
        name: &str,
        bugs: Bugs,
    ) -> (Arc<Self>, Subscription) {
        crate::lock_order::prime();
        let chip = Chip {
            entries: [None; NR_ENTRIES],
            next_entry: 0,
            contexts: [None; NR_CONTEXTS],
            asid: None,
            next_asid: 0,
            nr_open: 0,
            state: State::Running,
        };
        let device = Arc::new(Self {
            name: name.into(),
            bugs,
            chip: ShortLock::new("devices.gru.chip", chip),
            counters: Counters::default(),
            memory: Arc::clone(memory),
        });
        let ranges = ranges_of(&**memory);
        let listed = memory
            .notifiers()
            .subscribe(name, ranges, Arc::clone(&device));
        (device, listed)
    }

    /// As many instructions as the range needs.
    fn purge(&self, chip: &mut Chip, run: PageRun) {
        let cancel = if self.bugs.has(Bug::NoHardwareCancel) {
            Cancel::No
        } else {
            Cancel::Yes
        };
        let mut first = run.first;
        while first < run.end() {
            let nr = PURGE_PAGES_MAX.min(run.end() - first);
            chip.purge(PageRun::new(first, nr), cancel);
            first += nr;
            if self.bugs.has(Bug::ClippedFlush) {
                return;
            }
        }
    }

    /// Spins until no transfer uses a page of `run`: each takes microseconds, and none begins.
    fn wait_for_transfers(&self, run: PageRun) {
        spin_wait("devices.gru.purged", 0, || {
            let chip = self.chip.lock();
            !chip
                .contexts
                .iter()
                .flatten()
                .any(|loaded| loaded.does == Does::Transfer && run.contains(loaded.page))
        });
    }

    fn transfer(
        &self,
        page: PageIndex,
        offset: usize,
        mut operation: Operation<'_>,
    ) -> Result<(), DmaError> {
        let mut retry = Retry::new();
        loop {
            if let Some((context, at)) = self.load(page, operation.access())? {
                let outcome = match at {
                    Some(at) => Some(operation.run(&*self.memory, at, offset)),
                    None => self.miss(&context, operation.access())?,
                };
                drop(context);
                match outcome {
                    Some(Ok(())) => {
                        self.counters.done(&operation);
                        return Ok(());
                    }
                    Some(Err(stale)) => {
                        self.counters.stale.add();
                        self.chip.lock().purge(PageRun::single(page), Cancel::No);
                        return Err(DmaError::Stale(stale));
                    }
                    None => {}
                }
            }
            if !retry.pause() {
                return Err(DmaError::Starved);
            }
        }
    }

    /// Loads a context for a transfer of this page, or for a lookup where there is no entry; none
    /// where it has to wait.
    fn load(
        &self,
        page: PageIndex,
        access: Access,
    ) -> Result<Option<(LoadedContext<'_>, Option<BusAddr>)>, DmaError> {
        let mut chip = self.chip.lock();
        match chip.state {
            State::Running => {}
            State::Hung => return Err(DmaError::Hung),
            State::Over => return Err(DmaError::Stopped),
        }
        let Some(slot) = chip.contexts.iter().position(Option::is_none) else {
            return Ok(None);
        };
        let flush = if self.bugs.has(Bug::AsidReused) {
            Flush::Nothing
        } else {
            Flush::All
        };
        let asid = chip.load(flush);
        let at = chip.look_up(asid, page, access);
        if at.is_none() && chip.nr_open > 0 {
            return Ok(None);
        }
        let does = match at {
            Some(_) => Does::Transfer,
            None => Does::Lookup,
        };
        chip.contexts[slot] = Some(Loaded { page, does });
        let context = LoadedContext { gru: self, slot };
        Ok(Some((context, at)))
    }

    /// Looks the page up and drops the entry in, unless the hardware has cancelled that.
    fn miss(
        &self,
        context: &LoadedContext<'_>,
        access: Access,
    ) -> Result<Option<Result<(), pinless_mm::bus::StaleDma>>, DmaError> {
        let page = context.page();
        self.counters.faults.add();
        let at = fetch(&*self.memory, page, access).map_err(DmaError::Fault)?;
        let mut chip = self.chip.lock();
        let loaded = chip.contexts[context.slot];
        let is_cancelled = loaded.is_none_or(|loaded| loaded.does == Does::Cancelled);
        match chip.asid {
            Some(asid) if !is_cancelled && chip.state != State::Over => chip.drop_in(at, asid),
            _ => self.counters.retries.add(),
        }
        Ok(None)
    }
}

/// A loaded context; unloaded when dropped.
struct LoadedContext<'a> {
    gru: &'a Gru,
    slot: usize,
}

impl LoadedContext<'_> {
    fn page(&self) -> PageIndex {
        let loaded = self.gru.chip.lock().contexts[self.slot];
        loaded.expect("a context is loaded while it exists").page
    }
}

impl Drop for LoadedContext<'_> {
    fn drop(&mut self) {
        self.gru.chip.lock().contexts[self.slot] = None;
    }
}

impl DmaDevice for Gru {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, page: PageIndex, offset: usize, into: &mut [u8]) -> Result<(), DmaError> {
        self.transfer(page, offset, Operation::Read(into))
    }

    fn write(&self, page: PageIndex, offset: usize, from: &[u8]) -> Result<(), DmaError> {
        self.transfer(page, offset, Operation::Write(from))
    }

    fn hang(&self, hang: bool) {
        let mut chip = self.chip.lock();
        if chip.state != State::Over {
            chip.state = if hang { State::Hung } else { State::Running };
        }
    }

    fn stats(&self) -> DeviceStats {
        self.counters.snapshot()
    }

    fn holds(&self) -> u32 {
        let chip = self.chip.lock();
        let is_mine = |entry: &&Entry| Some(entry.asid) == chip.asid;
        chip.entries.iter().flatten().filter(is_mine).count() as u32
    }

    fn nr_servers(&self) -> u32 {
        0
    }

    fn serve(&self) {}

    fn stop(&self) {
        let all = PageRun::new(0, self.memory.nr_pages());
        let mut chip = self.chip.lock();
        chip.state = State::Over;
        chip.purge(all, Cancel::Yes);
        drop(chip);
        self.wait_for_transfers(all);
    }
}
