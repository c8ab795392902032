//! The template: a device with a table of translations, and the simplest driver that is right.
//!
//! Read it from [`Notifier::start`] on. Three rules make it right, and hold for any driver:
//!
//! 1. An access marks its page *in flight* under the lock of the table that it found its
//!    translation in; so a start, which takes that lock, sees every access it has to wait for.
//! 2. A translation is installed under that lock, and only if [`Rounds::is_fresh`].
//! 3. Nothing is waited for under that lock, and nothing allocated.
//!
//! Linux counterpart: lib/test_hmm.c

use crate::engine::{
    Busy, Counters, InFlight, Mark, Operation, Retry, Rounds, Tlb, fetch, ranges_of, run_of,
};
use crate::{DeviceStats, DmaDevice, DmaError};
use lockdep::sync::{Fence, Mutex, ShortLock};
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::bus::{Bus, BusAddr};
use pinless_mm::mmu_notifier::{
    Blockable, Context, EndContext, Notifier, Notifiers, Range, Subscription,
};
use pinless_mm::primary_mmu::Access;
use std::sync::Arc;

/// The template device.
pub struct Template {
    name: Box<str>,
    bus: Arc<dyn Bus>,
    table: Mutex<Table>,
    /// Inside `table`, and alone in `end`.
    rounds: ShortLock<Rounds>,
    in_flight: InFlight,
    counters: Counters,
}

struct Table {
    tlb: Tlb,
    state: State,
}

enum State {
    Running,
    /// Gives nothing back before the fence has signalled.
    Hung(Fence),
    Stopped,
}

impl Notifier for Template {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let Some(run) = run_of(&*self.bus, range) else {
            return Ok(()); // not ours: never a reason to refuse
        };
        self.counters.answered(self.invalidate(run, cx))
    }

    fn end(&self, range: &Range, cx: &EndContext<'_>) {
        if run_of(&*self.bus, range).is_some() {
            cx.short(&self.rounds).end();
        }
    }

    fn release(&self, cx: &Blockable<'_>) {
        let Ok(mut table) = cx.lock(&self.table);
        let all = table.tlb.all();
        let busy = self.busy(&table, all);
        if let State::Running = table.state {
            table.state = State::Stopped;
            table.tlb.zap(all);
        }
        drop(table);
        for fence in busy.fences() {
            let Ok(()) = cx.settle(fence);
        }
    }
}

impl Template {
    /// Makes a device for the mapping behind `bus`, and subscribes it.
    ///
    /// Stop the device before the subscription ends.
    pub fn attach(
        notifiers: &Notifiers,
        bus: Arc<dyn Bus>,
        name: &str,
    ) -> (Arc<Self>, Subscription) {
        let table = Table {
            tlb: Tlb::new(bus.nr_pages()),
            state: State::Running,
        };
        let ranges = ranges_of(&*bus);
        let device = Arc::new(Self {
            name: name.into(),
            bus,
            table: Mutex::new("devices.template.table", table),
            rounds: ShortLock::new("devices.template.rounds", Rounds::new()),
            in_flight: InFlight::new(),
            counters: Counters::default(),
        });
        let subscription = notifiers.subscribe(name, ranges, Arc::clone(&device));
        (device, subscription)
    }

    fn invalidate<C: Context>(&self, run: PageRun, cx: &C) -> Result<(), C::Refusal> {
        let mut table = cx.lock(&self.table)?;
        let busy = self.busy(&table, run);
        if !busy.is_empty() {
            cx.would_block()?;
        }
        // From here on nothing is refused, so the round can begin.
        cx.short(&self.rounds).begin(run);
        if !matches!(table.state, State::Hung(_)) {
            table.tlb.zap(run); // a device that hangs does not listen: see `hang`
        }
        drop(table);
        busy.fences().try_for_each(|fence| cx.settle(fence))
    }

    /// What still uses a page of `run`.
    fn busy(&self, table: &Table, run: PageRun) -> Busy {
        let mut busy = Busy::new();
        self.in_flight.find(run, &mut busy);
        if let State::Hung(released) = &table.state
            && table.tlb.holds(run)
        {
            busy.add(released);
        }
        busy
    }

    fn access(
        &self,
        page: PageIndex,
        offset: usize,
        mut operation: Operation<'_>,
    ) -> Result<(), DmaError> {
        let (at, mark) = self.translate(page, operation.access())?;
        let outcome = operation.run(&*self.bus, at, offset);
        drop(mark);
        if outcome.is_err() {
            self.table.lock().tlb.forget(at); // one report for each invalidation missed
        }
        self.counters.ended(&operation, outcome)
    }

    /// A translation of the page, in use until the mark is dropped.
    fn translate(&self, page: PageIndex, access: Access) -> Result<(BusAddr, Mark<'_>), DmaError> {
        let mut retry = Retry::new();
        let mut fetched = None;
        loop {
            let done = Fence::new("devices.template.access");
            let mut table = self.table.lock();
            match table.state {
                State::Running => {}
                State::Hung(_) => return Err(DmaError::Hung),
                State::Stopped => return Err(DmaError::Stopped),
            }
            let is_retry = fetched.is_some();
            if let Some((at, sequence)) = fetched.take() {
                if self.rounds.lock().is_fresh(PageRun::single(page), sequence) {
                    table.tlb.install(at);
                } else {
                    self.counters.retries.add();
                }
            }
            if let Some(at) = table.tlb.get(page, access)
                && let Some(mark) = self.in_flight.mark(page, done)
            {
                return Ok((at, mark));
            }
            drop(table);
            if is_retry && !retry.pause() {
                return Err(DmaError::Starved);
            }
            // No lock is held from here to the check; the sequence is read first.
            let sequence = self.rounds.lock().sequence();
            self.counters.faults.add();
            let at = fetch(&*self.bus, page, access).map_err(DmaError::Fault)?;
            fetched = Some((at, sequence));
        }
    }

    /// Changes the state, with no translation left, and lets go of what waits for a hang's end.
    fn reset(&self, to: State) {
        let mut table = self.table.lock();
        let all = table.tlb.all();
        table.tlb.zap(all);
        let before = core::mem::replace(&mut table.state, to);
        drop(table);
        if let State::Hung(released) = before {
            released.signal();
        }
    }
}

impl DmaDevice for Template {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, page: PageIndex, offset: usize, into: &mut [u8]) -> Result<(), DmaError> {
        self.access(page, offset, Operation::Read(into))
    }

    fn write(&self, page: PageIndex, offset: usize, from: &[u8]) -> Result<(), DmaError> {
        self.access(page, offset, Operation::Write(from))
    }

    fn hang(&self, hang: bool) {
        let released = Fence::new("devices.template.released");
        let mut table = self.table.lock();
        match (&table.state, hang) {
            (State::Running, true) => table.state = State::Hung(released),
            (State::Hung(_), false) => {
                drop(table);
                // Starts that came meanwhile dropped nothing: everything goes now.
                self.reset(State::Running);
            }
            _ => {}
        }
    }

    fn stats(&self) -> DeviceStats {
        self.counters.snapshot()
    }

    fn holds(&self) -> u32 {
        self.table.lock().tlb.nr_held()
    }

    fn serve(&self) {}

    fn stop(&self) {
        self.reset(State::Stopped);
        let mut busy = Busy::new();
        self.in_flight
            .find(PageRun::new(0, self.bus.nr_pages()), &mut busy);
        busy.fences().for_each(Fence::wait);
    }
}
