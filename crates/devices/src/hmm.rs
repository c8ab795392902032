//! A hub: one subscription of an address space, and many devices behind it that mirror its table.
//!
//! A hub is a notifier core in small, and can go wrong as one: it has to call its mirrors in the
//! right half of the bracket, to ask all of them, to say no if one does, and to end what it began.
//! The hub of 2018 called them in `end`, when the frames were in other hands already.
//!
//! Linux counterpart: mm/hmm.c, version 4.19

use crate::engine::{
    Busy, Counters, InFlight, Mark, Operation, Rounds, Tlb, fetch, ranges_of, run_of, until_done,
};
use crate::{Bug, Bugs, DeviceMemory, DeviceStats, DmaDevice, DmaError};
use core::sync::atomic::{AtomicUsize, Ordering};
use lockdep::sync::{Fence, Mutex, ShortLock};
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::bus::BusAddr;
use pinless_mm::mmu_notifier::{Blockable, Context, EndContext, Notifier, Range, Subscription};
use pinless_mm::primary_mmu::Access;
use std::sync::Arc;

/// How many devices are behind the hub.
const NR_MIRRORS: usize = 2;

/// The hub, and the devices behind it.
pub struct Hmm {
    name: Box<str>,
    memory: Arc<dyn DeviceMemory>,
    bugs: Bugs,
    mirrors: [Mirror; NR_MIRRORS],
    rounds: ShortLock<Rounds>,
    next_mirror: AtomicUsize,
    counters: Counters,
}

/// A device that mirrors the table.
struct Mirror {
    table: ShortLock<Table>,
    /// Held by an access from its lookup to its mark, and by a start from its look to its zap.
    gate: Mutex<()>,
    in_flight: InFlight,
}

struct Table {
    tlb: Tlb,
    state: State,
}

#[derive(Clone, PartialEq, Eq)]
enum State {
    Running,
    Hung,
    Over,
}

impl Notifier for Hmm {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let Some(run) = run_of(&*self.memory, range) else {
            return Ok(());
        };
        self.counters.answered(self.fan_out(run, cx))
    }

    fn end(&self, range: &Range, cx: &EndContext<'_>) {
        let Some(run) = run_of(&*self.memory, range) else {
            return;
        };
        if self.bugs.has(Bug::WorkInEnd) {
            for mirror in &self.mirrors {
                cx.short(&mirror.table).tlb.zap(run);
            }
        }
        cx.short(&self.rounds).end();
    }

    fn release(&self, cx: &Blockable<'_>) {
        for mirror in &self.mirrors {
            let busy = mirror.close();
            for fence in busy.fences() {
                let Ok(()) = cx.settle(fence);
            }
        }
    }
}

impl Mirror {
    fn new(nr_pages: u32) -> Self {
        let table = Table {
            tlb: Tlb::new(nr_pages),
            state: State::Running,
        };
        Self {
            table: ShortLock::new("devices.hmm.table", table),
            gate: Mutex::new("devices.hmm.gate", ()),
            in_flight: InFlight::new(),
        }
    }

    fn invalidate<C: Context>(&self, run: PageRun, cx: &C) -> Result<(), C::Refusal> {
        let gate = cx.lock(&self.gate)?;
        let busy = self.busy(run);
        if !busy.is_empty() {
            cx.would_block()?;
        }
        cx.short(&self.table).tlb.zap(run);
        drop(gate);
        busy.fences().try_for_each(|fence| cx.settle(fence))
    }

    fn busy(&self, run: PageRun) -> Busy {
        let mut busy = Busy::new();
        self.in_flight.find(run, &mut busy);
        busy
    }

    /// No access begins any more; what still runs is in the answer.
    fn close(&self) -> Busy {
        let _gate = self.gate.lock();
        let mut table = self.table.lock();
        table.state = State::Over;
        let all = table.tlb.all();
        table.tlb.zap(all);
        drop(table);
        self.busy(all)
    }

    fn get(
        &self,
        page: PageIndex,
        access: Access,
    ) -> Result<Option<(BusAddr, Mark<'_>)>, DmaError> {
        let done = Fence::new("devices.hmm.access");
        let _gate = self.gate.lock();
        let table = self.table.lock();
        match table.state {
            State::Running => {}
            State::Hung => return Err(DmaError::Hung),
            State::Over => return Err(DmaError::Stopped),
        }
        let at = table.tlb.get(page, access);
        drop(table);
        Ok(at.and_then(|at| Some((at, self.in_flight.mark(page, done)?))))
    }
}

impl Hmm {
    /// Makes a hub with its devices and subscribes it.
    pub(crate) fn attach(
        memory: &Arc<dyn DeviceMemory>,
        name: &str,
        bugs: Bugs,
    ) -> (Arc<Self>, Subscription) {
        crate::lock_order::prime();
        let device = Arc::new(Self {
            name: name.into(),
            bugs,
            mirrors: core::array::from_fn(|_| Mirror::new(memory.nr_pages())),
            rounds: ShortLock::new("devices.hmm.rounds", Rounds::new()),
            next_mirror: AtomicUsize::new(0),
            counters: Counters::default(),
            memory: Arc::clone(memory),
        });
        let ranges = ranges_of(&**memory);
        let listed = memory
            .notifiers()
            .subscribe(name, ranges, Arc::clone(&device));
        (device, listed)
    }

    /// Asks every mirror. The round begins first, so that none of them installs anything after it
    /// was asked; it is taken back if one refuses.
    fn fan_out<C: Context>(&self, run: PageRun, cx: &C) -> Result<(), C::Refusal> {
        cx.short(&self.rounds).begin(run);
        if self.bugs.has(Bug::WorkInEnd) {
            return Ok(());
        }
        let mut answer = Ok(());
        for mirror in &self.mirrors {
            let one = mirror.invalidate(run, cx);
            if self.bugs.has(Bug::AnswersMerged) {
                answer = one; // the last one's
            } else if one.is_err() {
                answer = one;
                break;
            }
        }
        if answer.is_err() {
            cx.short(&self.rounds).end();
        }
        answer
    }

    fn transfer(
        &self,
        page: PageIndex,
        offset: usize,
        mut operation: Operation<'_>,
    ) -> Result<(), DmaError> {
        let nr = self.next_mirror.fetch_add(1, Ordering::Relaxed);
        let mirror = &self.mirrors[nr % NR_MIRRORS];
        let (at, mark) = until_done(|| {
            let translated = mirror.get(page, operation.access())?;
            if translated.is_none() {
                self.fault(mirror, page, operation.access())?;
            }
            Ok(translated)
        })?;
        let outcome = operation.run(&*self.memory, at, offset);
        drop(mark);
        if outcome.is_err() {
            mirror.table.lock().tlb.forget(at);
        }
        self.counters.ended(&operation, outcome)
    }

    fn fault(&self, mirror: &Mirror, page: PageIndex, access: Access) -> Result<(), DmaError> {
        let sequence = self.rounds.lock().sequence();
        self.counters.faults.add();
        let at = fetch(&*self.memory, page, access).map_err(DmaError::Fault)?;
        let _gate = mirror.gate.lock();
        let is_fresh = self.rounds.lock().is_fresh(PageRun::single(page), sequence);
        let mut table = mirror.table.lock();
        if is_fresh && table.state != State::Over {
            table.tlb.install(at);
        } else {
            self.counters.retries.add();
        }
        Ok(())
    }

    fn set(&self, to: &State) {
        for mirror in &self.mirrors {
            let mut table = mirror.table.lock();
            if table.state != State::Over {
                table.state = to.clone();
            }
        }
    }
}

impl DmaDevice for Hmm {
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
        self.set(if hang { &State::Hung } else { &State::Running });
    }

    fn stats(&self) -> DeviceStats {
        self.counters.snapshot()
    }

    fn holds(&self) -> u32 {
        let held = |mirror: &Mirror| mirror.table.lock().tlb.nr_held();
        self.mirrors.iter().map(held).sum()
    }

    fn nr_servers(&self) -> u32 {
        0
    }

    fn serve(&self) {}

    fn stop(&self) {
        for mirror in &self.mirrors {
            mirror.close().fences().for_each(Fence::wait);
        }
    }
}
