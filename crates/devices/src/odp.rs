//! On-demand paging: a network card whose translations change only by commands to its engine.
//!
//! The card reads and writes memory through its own table. The driver cannot touch that table: it
//! posts commands to a bounded queue, and the engine ([`DmaDevice::serve`]) carries them out one
//! after the other. So a start has to wait for the engine's answer, and refuses where it may not
//! wait, but only if the card may hold a translation of the range: the driver knows which it may.
//! It refuses after it has posted the command, so that the next start may find nothing to wait for.
//!
//! The engine must answer whatever happens to memory: it takes no page faults, allocates nothing
//! that a start waits for, and waits only for accesses in flight, which end by themselves.
//!
//! Linux counterpart: drivers/infiniband/hw/mlx5/odp.c

use crate::engine::{
    Command, Counters, Fifo, Operation, PageSet, Retry, Rounds, Tlb, fetch, ranges_of, run_of,
    spare,
};
use crate::{Bug, Bugs, DeviceStats, DmaDevice, DmaError};
use core::time::Duration;
use lockdep::sync::{Completion, Fence, RwLock, ShortLock, Waited};
use lockdep::{Level, context};
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::bus::Bus;
use pinless_mm::mmu_notifier::{
    Blockable, Context, EndContext, Notifier, Notifiers, Range, Subscription,
};
use pinless_mm::primary_mmu::Access;
use std::sync::Arc;

/// How long an access waits for the engine before it calls the device hung.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// How many regions can wait for the end of a bracket.
const REGIONS_MAX: usize = 16;

/// The network card, and its driver.
pub struct Odp {
    name: Box<str>,
    bugs: Bugs,
    bus: Arc<dyn Bus>,
    /// The card's table. An access holds it shared to its end; the engine changes it, and so has
    /// waited for the accesses in flight when it answers. Taken before `host`.
    card: RwLock<Tlb>,
    host: ShortLock<Host>,
    /// There may be something to do.
    work: Completion,
    counters: Counters,
}

/// What the driver knows.
struct Host {
    rounds: Rounds,
    /// The pages of which the card may hold a translation.
    held: PageSet,
    fifo: Fifo,
    state: State,
    /// The engine was asked for pages that nobody waits for.
    is_asked: bool,
    /// The engine takes no command.
    is_hung: bool,
    /// Regions that were registered while a bracket was open: used after the last one's end.
    waiting: Vec<PageRun>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// The memory is gone: no new translations.
    Released,
    /// The engine is gone too.
    Stopped,
}

impl Notifier for Odp {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let Some(run) = run_of(&*self.bus, range) else {
            return Ok(()); // not ours: never a reason to refuse
        };
        let run = if self.bugs.has(Bug::WrongShift) {
            PageRun::new(run.first, (run.nr >> 1).max(1))
        } else {
            run
        };
        self.counters.answered(self.invalidate(run, cx))
    }

    fn end(&self, range: &Range, cx: &EndContext<'_>) {
        if run_of(&*self.bus, range).is_some() {
            let mut host = cx.short(&self.host);
            host.rounds.end();
            if !host.rounds.is_open() {
                host.waiting.clear();
            }
        }
    }

    fn release(&self, cx: &Blockable<'_>) {
        let mut host = cx.short(&self.host);
        if host.state == State::Running {
            host.state = State::Released;
        }
        if host.held.nr() == 0 {
            return;
        }
        let invalidated = host.fifo.post_invalidate(self.all());
        drop(host);
        self.kick();
        let Ok(()) = cx.settle(&invalidated);
    }
}

impl Odp {
    /// Makes a card for the mapping behind `bus`, and subscribes its driver.
    ///
    /// Stop the device before the subscription ends.
    pub fn attach(
        notifiers: &Notifiers,
        bus: Arc<dyn Bus>,
        name: &str,
    ) -> (Arc<Self>, Subscription) {
        Self::attach_with(notifiers, bus, name, Bugs::NONE)
    }

    /// The same with faults.
    pub(crate) fn attach_with(
        notifiers: &Notifiers,
        bus: Arc<dyn Bus>,
        name: &str,
        bugs: Bugs,
    ) -> (Arc<Self>, Subscription) {
        let host = Host {
            rounds: Rounds::new(),
            held: PageSet::new(bus.nr_pages()),
            fifo: Fifo::new(),
            state: State::Running,
            is_asked: false,
            is_hung: false,
            waiting: Vec::with_capacity(REGIONS_MAX),
        };
        let ranges = ranges_of(&*bus);
        let device = Arc::new(Self {
            name: name.into(),
            bugs,
            card: RwLock::new("devices.odp.card", Tlb::new(bus.nr_pages())),
            bus,
            host: ShortLock::new("devices.odp.host", host),
            work: Completion::new("devices.odp.work"),
            counters: Counters::default(),
        });
        let subscription = notifiers.subscribe(name, ranges, Arc::clone(&device));
        (device, subscription)
    }

    fn all(&self) -> PageRun {
        PageRun::new(0, self.bus.nr_pages())
    }

    fn invalidate<C: Context>(&self, run: PageRun, cx: &C) -> Result<(), C::Refusal> {
        if self.bugs.has(Bug::RangeBlind) {
            cx.would_block()?;
        }
        let mut host = cx.short(&self.host);
        if host.held.overlaps(run) {
            drop(host);
            if let Err(refusal) = cx.would_block() {
                self.ask(&mut cx.short(&self.host), run);
                return Err(refusal);
            }
            host = cx.short(&self.host);
        }
        // From here on nothing is refused. A map command on its way will not be fresh.
        host.rounds.begin(run);
        if !host.held.overlaps(run) {
            return Ok(());
        }
        let invalidated = host.fifo.post_invalidate(run);
        drop(host);
        self.kick();
        cx.settle(&invalidated)
    }

    /// Has the engine begin before anybody waits for it: if it is fast enough, whoever asks again
    /// need not wait. One such command at a time, so that the queue is left to those who do wait.
    fn ask(&self, host: &mut Host, run: PageRun) {
        if host.is_asked || host.state == State::Stopped || !host.held.overlaps(run) {
            return;
        }
        host.is_asked = true;
        let _: Fence = host.fifo.post_invalidate(run);
        self.kick();
    }

    /// There may be something to do for the engine.
    fn kick(&self) {
        // The engine at rest waits for nobody in particular. To the validator the call comes from
        // outside of the caller's own work, as an interrupt does.
        let _outside = context::enter(Level::Soft);
        self.work.complete_all();
    }

    /// The data path: through the card's table, or by a fault and again.
    fn access(
        &self,
        page: PageIndex,
        offset: usize,
        mut operation: Operation<'_>,
    ) -> Result<(), DmaError> {
        let mut retry = Retry::new();
        let mut is_retry = false;
        loop {
            let card = self.card.read();
            if let Some(at) = card.get(page, operation.access()) {
                let outcome = operation.run(&*self.bus, at, offset);
                drop(card);
                return match outcome {
                    Ok(()) => {
                        self.counters.done(&operation);
                        Ok(())
                    }
                    Err(stale) => {
                        self.counters.stale.add();
                        self.forget(page); // one report for each invalidation missed
                        Err(DmaError::Stale(stale))
                    }
                };
            }
            drop(card);
            if is_retry && !retry.pause() {
                return Err(DmaError::Starved);
            }
            self.fault(page, operation.access())?;
            is_retry = true;
        }
    }

    /// Asks for a translation and has the engine install it, if that comes in time.
    fn fault(&self, page: PageIndex, access: Access) -> Result<(), DmaError> {
        let host = self.host.lock();
        let (state, is_hung, sequence) = (host.state, host.is_hung, host.rounds.sequence());
        let must_wait = host.waiting.iter().any(|region| region.contains(page));
        drop(host);
        match state {
            State::Running if is_hung => return Err(DmaError::Hung),
            State::Running => {}
            State::Released | State::Stopped => return Err(DmaError::Stopped),
        }
        if must_wait {
            return Ok(()); // its time comes with the end of the last bracket
        }
        self.counters.faults.add();
        let at = fetch(&*self.bus, page, access).map_err(DmaError::Fault)?;
        let mapped = Fence::new("devices.odp.mapped");
        let mut host = self.host.lock();
        if host.state != State::Running {
            return Err(DmaError::Stopped);
        }
        if !host.rounds.is_fresh(PageRun::single(page), sequence) {
            self.counters.retries.add();
            return Ok(());
        }
        let posted = host.fifo.post_map(at, sequence, mapped.clone());
        drop(host);
        self.kick();
        // A full queue is no failure: the access tries again later.
        if posted.is_ok() && mapped.wait_timeout(COMMAND_TIMEOUT) == Waited::TimedOut {
            return Err(DmaError::Hung);
        }
        Ok(())
    }

    /// Has the engine drop a translation that turned out to be stale.
    fn forget(&self, page: PageIndex) {
        let mut host = self.host.lock();
        if host.state == State::Stopped {
            return;
        }
        let _: Fence = host.fifo.post_invalidate(PageRun::single(page));
        drop(host);
        self.kick();
    }

    /// The engine carries out one command.
    fn carry_out(&self, command: Command) {
        match command {
            Command::Map { at, sequence, done } => {
                let mut card = self.card.write();
                let mut host = self.host.lock();
                // Again: a start may have come since the driver looked, before the card holds it.
                let is_fresh = host.state == State::Running
                    && (self.bugs.has(Bug::NoSecondCheck)
                        || host.rounds.is_fresh(PageRun::single(at.page), sequence));
                if is_fresh {
                    host.held.insert(at.page);
                }
                drop(host);
                if is_fresh {
                    card.install(at);
                } else {
                    self.counters.retries.add();
                }
                drop(card);
                done.signal();
            }
            Command::Invalidate { run, done } => {
                self.card.write().zap(run);
                let mut host = self.host.lock();
                host.held.remove(run, |_| ());
                host.is_asked = false;
                drop(host);
                done.signal();
                let spare = spare();
                self.host.lock().fifo.restock(spare);
            }
        }
    }
}

impl DmaDevice for Odp {
    fn name(&self) -> &str {
        &self.name
    }

    /// A region that is registered while a bracket is open is used after its end.
    fn register(&self, run: PageRun) -> Result<(), DmaError> {
        let mut host = self.host.lock();
        let is_open = host.rounds.is_open();
        if self.bugs.has(Bug::AdmittedTooLate) {
            drop(host); // the last end may come here, and finds nothing to admit
            host = self.host.lock();
        }
        if !is_open {
            return Ok(());
        }
        if host.waiting.len() == REGIONS_MAX {
            let limit = REGIONS_MAX as u32;
            return Err(DmaError::LimitReached { limit });
        }
        host.waiting.push(run);
        Ok(())
    }

    fn read(&self, page: PageIndex, offset: usize, into: &mut [u8]) -> Result<(), DmaError> {
        self.access(page, offset, Operation::Read(into))
    }

    fn write(&self, page: PageIndex, offset: usize, from: &[u8]) -> Result<(), DmaError> {
        self.access(page, offset, Operation::Write(from))
    }

    fn hang(&self, hang: bool) {
        self.host.lock().is_hung = hang;
        self.kick();
    }

    fn stats(&self) -> DeviceStats {
        self.counters.snapshot()
    }

    fn holds(&self) -> u32 {
        self.host.lock().held.nr()
    }

    /// The card's engine. It is what starts wait for, so nothing here may wait for memory.
    fn serve(&self) {
        loop {
            // Whoever changes `host` after the look below completes after the reset.
            self.work.reset();
            let mut host = self.host.lock();
            if host.state == State::Stopped {
                return;
            }
            let command = if host.is_hung { None } else { host.fifo.take() };
            drop(host);
            match command {
                Some(command) => self.carry_out(command),
                None => self.work.wait(),
            }
        }
    }

    /// Resets the card without asking its engine.
    fn stop(&self) {
        self.host.lock().state = State::Stopped;
        self.card.write().zap(self.all());
        self.host.lock().held.remove(self.all(), |_| ());
        loop {
            let command = self.host.lock().fifo.take();
            match command {
                Some(Command::Map { done, .. } | Command::Invalidate { done, .. }) => {
                    done.signal();
                }
                None => break,
            }
        }
        self.kick();
    }
}
