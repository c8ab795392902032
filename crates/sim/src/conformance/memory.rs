//! The memory that a device under test is given.

use super::Invariant;
use super::books::{Books, Change};
use super::stage::Judge;
use crate::checker::{Brackets, Breach, Closing, PinId};
use crate::scheduler::last_panic;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use core::time::Duration;
use lockdep::Map;
use lockdep::scheduler::scheduler_point;
use pinless_mm::addr::{PAGE_SIZE, PageRun, Vaddr};
use pinless_mm::bus::{Bus, BusAddr, Checks, DeviceMemory, PinError, Pinned, StaleDma};
use pinless_mm::fault::FaultError;
use pinless_mm::gfp::{Gfp, might_alloc, might_touch};
use pinless_mm::mmu_notifier::{
    BracketError, Event, Invalidation, Misuse, MisuseReport, MmId, Mode, Notifiers, Owner,
    running_callback,
};
use pinless_mm::primary_mmu::Access;
use std::sync::Arc;

/// Where the mapping begins.
const BASE: Vaddr = Vaddr(0x7000_0000);

/// How long a blockable start may take, in virtual time.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// The lock of the mappings, which is held while one goes.
static MAPPINGS: Map = Map::new("sim.kit.mappings");

/// A mapping of a few pages with the production notifiers, whose every use is judged.
pub(super) struct Memory {
    pub(super) books: Books,
    pub(super) judge: Arc<Judge>,
    notifiers: Notifiers,
    /// Who faults next takes this page back first.
    short_of: AtomicU32,
    /// How: a page of another fault is reclaimed, which may not block; its own is moved.
    moves: AtomicBool,
    /// Whether starts may fail, since a device hangs.
    is_excused: AtomicBool,
}

/// A bracket that a test opened.
pub(super) struct Bracket {
    memory: Arc<Memory>,
    id: u64,
    run: PageRun,
    invalidation: Option<Invalidation>,
}

/// What a bracket is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub(super) run: PageRun,
    pub(super) event: Event,
    pub(super) mode: Mode,
    pub(super) owner: Option<Owner>,
    /// What the driver is held to by this one, if not to stopping.
    pub(super) held_to: Option<Invariant>,
    pub(super) deadline: Duration,
}

impl Ask {
    pub(super) fn new(run: PageRun, event: Event, mode: Mode) -> Self {
        Self {
            run,
            event,
            mode,
            owner: None,
            held_to: None,
            deadline: DEADLINE,
        }
    }

    fn closing(&self, is_beside: bool) -> Closing {
        match self.held_to {
            Some(Invariant::R5) => Closing::Copies,
            Some(invariant) if self.event.keeps_pages() => Closing::ProtectedAs(invariant),
            Some(invariant) => Closing::As(invariant),
            None if self.event.keeps_pages() => Closing::Protected,
            None if is_beside => Closing::Beside,
            None => Closing::Alone,
        }
    }
}

impl Memory {
    pub(super) fn new(nr_pages: u32, judge: &Arc<Judge>, checks: Checks) -> Arc<Self> {
        let memory = Arc::new(Self {
            books: Books::new(nr_pages, checks),
            judge: Arc::clone(judge),
            notifiers: Notifiers::new(MmId(1)),
            short_of: AtomicU32::new(u32::MAX),
            moves: AtomicBool::new(false),
            is_excused: AtomicBool::new(false),
        });
        let judge = Arc::clone(judge);
        memory.notifiers.on_misuse(move |report| {
            let invariant = match report.misuse {
                Misuse::Panic(_) => return judge.note(panic_of(report)),
                Misuse::WaitInCallback | Misuse::DroppedWhileOpen => Invariant::L4,
                Misuse::SleepInNonBlock => Invariant::P3,
                Misuse::ForeignWitness => Invariant::R1,
                _ => Invariant::L1,
            };
            judge.note(Breach::of(invariant, report.to_string()));
        });
        memory
    }

    /// From now on whoever faults first reclaims `page`, as a thread does that is short of memory;
    /// or, where it may block, moves it, as a fault does that finds its page on a far node.
    pub(super) fn be_short_of(&self, page: u32, mode: Mode) {
        self.short_of.store(page, Relaxed);
        self.moves.store(mode == Mode::Blockable, Relaxed);
    }

    /// From now on starts may fail: a device hangs.
    pub(super) fn excuse(&self, is_excused: bool) {
        self.is_excused.store(is_excused, Relaxed);
    }

    /// Opens a bracket; `None` if it was refused, or could not be opened for a device that hangs.
    pub(super) fn bracket(self: &Arc<Self>, ask: Ask) -> Option<Bracket> {
        let (id, is_beside) = self.books.start_called(ask.run);
        let (start, end) = addresses(ask.run);
        let opened = match ask.mode {
            Mode::NonBlock => {
                let opened = self
                    .notifiers
                    .start_nonblock_for(start, end, ask.event, ask.owner);
                opened.ok()
            }
            Mode::Blockable => {
                let (owner, deadline) = (ask.owner, ask.deadline);
                let opened = self
                    .notifiers
                    .start_blockable_for(start, end, ask.event, owner, deadline);
                opened.map_err(|error| self.failed(&error)).ok()
            }
        };
        let Some(invalidation) = opened else {
            self.books.ended(id);
            return None;
        };
        if self.notifiers.is_current(&invalidation) {
            self.books.start_returned(ask.run, ask.closing(is_beside));
        }
        Some(Bracket {
            memory: Arc::clone(self),
            id,
            run: ask.run,
            invalidation: Some(invalidation),
        })
    }

    fn failed(&self, error: &BracketError) {
        // Who panicked says more than that a start failed.
        self.judge.judge_noted();
        if !self.is_excused.load(Relaxed) {
            self.judge.judge(Err(Brackets::failed(error)));
        }
    }

    /// A start failed that a lookup has called: what it waits for may be the lookup.
    fn failed_in_fault(&self, error: &BracketError) {
        let what = format!("a start failed inside of a lookup of pages: {error}");
        self.judge.judge(Err(Breach::of(Invariant::P5, what)));
    }

    /// The memory goes away.
    pub(super) fn release(&self) {
        let all = PageRun::new(0, self.books.nr_pages());
        let (id, _) = self.books.start_called(all);
        // A mapping goes with its lock held, which whoever pins pages takes.
        let mappings = lockdep::is_enabled().then(|| MAPPINGS.read_recursive());
        if let Err(error) = self.notifiers.release(DEADLINE) {
            self.failed(&error);
        }
        drop(mappings);
        self.books.released();
        self.books.ended(id);
    }

    /// What a thread does that finds no frame: takes one from another page. Or a page that it
    /// wants is moved first, once.
    fn reclaim(&self, wanted: PageRun) {
        let (page, moves) = (self.short_of.load(Relaxed), self.moves.load(Relaxed));
        if page == u32::MAX || running_callback().is_some() || moves != wanted.contains(page) {
            return;
        }
        self.short_of.store(u32::MAX, Relaxed);
        let run = PageRun::single(page);
        let (id, is_beside) = self.books.start_called(run);
        let (start, end) = addresses(run);
        let (notifiers, event) = (&self.notifiers, Event::Clear);
        let (opened, mode) = match moves {
            true => {
                let opened = notifiers.start_blockable(start, end, event, DEADLINE);
                let opened = opened.map_err(|error| self.failed_in_fault(&error));
                (opened.ok(), Mode::Blockable)
            }
            false => {
                let opened = notifiers.start_nonblock(start, end, event);
                (opened.ok(), Mode::NonBlock)
            }
        };
        if let Some(invalidation) = opened {
            let ask = Ask::new(run, event, mode);
            if self.notifiers.is_current(&invalidation) {
                self.books.start_returned(run, ask.closing(is_beside));
                self.books.change(run, Change::Move);
            }
            drop(invalidation);
        }
        self.books.ended(id);
    }

    /// Ends the run for a use that is stale, if the driver owes that; else says what the bus says.
    #[track_caller]
    fn stale(&self, breach: Breach, at: BusAddr, access: Access) -> StaleDma {
        self.judge.judge(Err(breach));
        self.books.stale(at, access)
    }
}

impl Bracket {
    /// Changes the pages, unless somebody has subscribed since the bracket began, as the memory
    /// manager does: who joined was not told.
    pub(super) fn change(&self, change: Change) {
        scheduler_point("kit.change", 0);
        let is_current = |bracket: &Invalidation| self.memory.notifiers.is_current(bracket);
        if self.invalidation.as_ref().is_some_and(is_current) {
            self.memory.books.change(self.run, change);
        }
    }
}

impl Drop for Bracket {
    fn drop(&mut self) {
        // The end first: until it has come, the bracket is open.
        drop(self.invalidation.take());
        self.memory.books.ended(self.id);
    }
}

impl Bus for Memory {
    fn base(&self) -> Vaddr {
        BASE
    }

    fn nr_pages(&self) -> u32 {
        self.books.nr_pages()
    }

    fn fault_range(
        &self,
        run: PageRun,
        access: Access,
        into: &mut [BusAddr],
    ) -> Result<(), FaultError> {
        self.notifiers.note_touch();
        might_touch();
        self.reclaim(run);
        scheduler_point("kit.fault", 0);
        for (page, into) in run.pages().zip(into) {
            let (at, found) = self.books.fetch(page, access).ok_or(FaultError::Unmapped)?;
            self.judge.judge(found);
            *into = at;
        }
        scheduler_point("kit.fetched", 0);
        Ok(())
    }

    fn read(&self, at: BusAddr, offset: usize, into: &mut [u8]) -> Result<(), StaleDma> {
        let stale = |breach| self.stale(breach, at, Access::Read);
        let allowed = self.books.access_began(at, Access::Read).map_err(stale)?;
        scheduler_point("kit.read", 0);
        self.books
            .access(at, Access::Read, allowed, |bytes| {
                into.copy_from_slice(&bytes[offset..][..into.len()]);
            })
            .map_err(stale)
    }

    fn write(&self, at: BusAddr, offset: usize, from: &[u8]) -> Result<(), StaleDma> {
        let stale = |breach| self.stale(breach, at, Access::Write);
        let allowed = self.books.access_began(at, Access::Write).map_err(stale)?;
        scheduler_point("kit.write", 0);
        self.books
            .access(at, Access::Write, allowed, |bytes| {
                bytes[offset..][..from.len()].copy_from_slice(from);
            })
            .map_err(stale)
    }
}

impl DeviceMemory for Memory {
    fn notifiers(&self) -> &Notifiers {
        &self.notifiers
    }

    fn pin(
        self: Arc<Self>,
        _holder: &str,
        run: PageRun,
        access: Access,
    ) -> Result<Pinned, PinError> {
        self.notifiers.note_touch();
        if lockdep::is_enabled() {
            MAPPINGS.might_acquire();
        }
        might_alloc(Gfp::Kernel);
        self.reclaim(run);
        scheduler_point("kit.pin", 0);
        let Some(id) = self.books.pinned(run, access) else {
            let error = FaultError::Unmapped;
            let page = run.first;
            return Err(PinError::Fault { page, error });
        };
        scheduler_point("kit.pinned", 0);
        Ok(Box::new(Held {
            memory: self,
            id,
            access,
        }))
    }
}

/// Unpins when dropped.
struct Held {
    memory: Arc<Memory>,
    id: PinId,
    access: Access,
}

impl Drop for Held {
    fn drop(&mut self) {
        if running_callback().is_some() {
            let what = "pages were unpinned in a callback";
            self.memory.judge.note(Breach::of(Invariant::L1, what));
        }
        let unpinned = self.memory.books.unpinned(self.id, self.access);
        self.memory.judge.judge(unpinned);
    }
}

/// A callback panicked: for a breach of what it names, if it is the kit's own, else of its duty to
/// come to an end.
fn panic_of(report: &MisuseReport) -> Breach {
    let message = last_panic().unwrap_or_default();
    let named = message.split_once(": ");
    let invariant = named.and_then(|(name, _)| Invariant::of_name(name));
    let what = format!("{report}: {message}");
    Breach::of(invariant.unwrap_or(Invariant::P2), what)
}

fn addresses(run: PageRun) -> (Vaddr, Vaddr) {
    let at = |page: u32| Vaddr(BASE.0 + u64::from(page) * PAGE_SIZE as u64);
    (at(run.first), at(run.end()))
}
