//! A hypervisor: a table from guest pages to frames, and processors that cache its entries.
//!
//! A start empties its part of the table under a lock that never sleeps, and makes every processor
//! forget. It never refuses: both take microseconds. A guest page that has no entry is faulted in
//! under a count of open brackets and a sequence, see [`Rounds`].
//!
//! One page, the last, is cached outside of the table, as a processor's controller needs its
//! address in a register. It obeys the same rules: *every* copy of an address does.
//!
//! Linux counterpart: virt/kvm/kvm_main.c
//!
//! [`Rounds`]: crate::engine::Rounds

use crate::engine::{
    Counters, Operation, Retry, Rounds, Running, Tlb, Vcpus, fetch, ranges_of, run_of,
};
use crate::{Bug, Bugs, DeviceMemory, DeviceStats, DmaDevice, DmaError};
use core::time::Duration;
use lockdep::sync::{ShortLock, sleep};
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::bus::BusAddr;
use pinless_mm::mmu_notifier::{Blockable, Context, EndContext, Notifier, Range, Subscription};
use pinless_mm::primary_mmu::Access;
use std::sync::Arc;

/// How many processors the guest has.
const NR_VCPUS: usize = 2;

/// How long a driver with [`Bug::SleepsInNonBlock`] lets others run.
const RESCHED: Duration = Duration::from_micros(1);

/// The guest.
pub struct Kvm {
    name: Box<str>,
    memory: Arc<dyn DeviceMemory>,
    bugs: Bugs,
    mmu: ShortLock<Mmu>,
    vcpus: Vcpus,
    counters: Counters,
}

/// What the lock of the table guards.
struct Mmu {
    table: Tlb,
    rounds: Rounds,
    /// The page that processors reach by a register.
    apic: Option<BusAddr>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// No processor enters the guest.
    Paused,
    Over,
}

impl Notifier for Kvm {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let Some(run) = run_of(&*self.memory, range) else {
            return Ok(());
        };
        let mut mmu = cx.short(&self.mmu);
        mmu.rounds.begin(run);
        mmu.zap(run);
        drop(mmu);
        if self.bugs.has(Bug::SleepsInNonBlock) {
            lockdep::might_sleep();
            sleep("devices.kvm.resched", RESCHED);
        }
        self.vcpus.flush();
        self.counters.answered(Ok(()))
    }

    fn end(&self, range: &Range, cx: &EndContext<'_>) {
        if run_of(&*self.memory, range).is_some() {
            cx.short(&self.mmu).rounds.end();
        }
    }

    fn release(&self, cx: &Blockable<'_>) {
        let mut mmu = cx.short(&self.mmu);
        mmu.state = State::Over;
        let all = mmu.table.all();
        mmu.zap(all);
        drop(mmu);
        self.vcpus.flush();
    }
}

impl Mmu {
    fn zap(&mut self, run: PageRun) {
        self.table.zap(run);
        self.apic = self.apic.filter(|at| !run.contains(at.page));
    }
}

impl Kvm {
    /// Makes a guest and subscribes it.
    pub(crate) fn attach(
        memory: &Arc<dyn DeviceMemory>,
        name: &str,
        bugs: Bugs,
    ) -> (Arc<Self>, Subscription) {
        crate::lock_order::prime();
        let mmu = Mmu {
            table: Tlb::new(memory.nr_pages()),
            rounds: Rounds::new(),
            apic: None,
            state: State::Running,
        };
        let device = Arc::new(Self {
            name: name.into(),
            bugs,
            mmu: ShortLock::new("devices.kvm.mmu", mmu),
            vcpus: Vcpus::new(NR_VCPUS, memory.nr_pages()),
            counters: Counters::default(),
            memory: Arc::clone(memory),
        });
        let ranges = ranges_of(&**memory);
        let listed = memory
            .notifiers()
            .subscribe(name, ranges, Arc::clone(&device));
        (device, listed)
    }

    fn is_apic(&self, page: PageIndex) -> bool {
        page + 1 == self.memory.nr_pages()
    }

    fn transfer(
        &self,
        page: PageIndex,
        offset: usize,
        mut operation: Operation<'_>,
    ) -> Result<(), DmaError> {
        let mut retry = Retry::new();
        loop {
            match self.mmu.lock().state {
                State::Running => {}
                State::Paused => return Err(DmaError::Hung),
                State::Over => return Err(DmaError::Stopped),
            }
            let access = operation.access();
            if let Some(vcpu) = self.vcpus.enter() {
                if let Some(at) = self.translate(&vcpu, page, access) {
                    let outcome = operation.run(&*self.memory, at, offset);
                    drop(vcpu);
                    return self.finish(outcome.map_err(DmaError::Stale), &operation, page);
                }
                drop(vcpu);
                self.fault(page, access)?;
            }
            if !retry.pause() {
                return Err(DmaError::Starved);
            }
        }
    }

    fn finish(
        &self,
        outcome: Result<(), DmaError>,
        operation: &Operation<'_>,
        page: PageIndex,
    ) -> Result<(), DmaError> {
        if outcome.is_ok() {
            self.counters.done(operation);
        } else {
            self.counters.stale.add();
            self.mmu.lock().zap(PageRun::single(page));
            self.vcpus.flush();
        }
        outcome
    }

    /// What a processor in the guest finds: in its own buffer, in the table, or in its register.
    fn translate(&self, vcpu: &Running<'_>, page: PageIndex, access: Access) -> Option<BusAddr> {
        if self.is_apic(page) {
            let allows = |at: &BusAddr| access == Access::Read || at.access == access;
            return self.mmu.lock().apic.filter(allows);
        }
        let cached = vcpu.get(page, access);
        cached.or_else(|| {
            let at = self.mmu.lock().table.get(page, access)?;
            vcpu.fill(at);
            Some(at)
        })
    }

    /// The guest has left for a page: looks it up, and installs it if that is still true.
    fn fault(&self, page: PageIndex, access: Access) -> Result<(), DmaError> {
        let before = self.mmu.lock().rounds.sequence();
        self.counters.faults.add();
        let asked = if self.bugs.has(Bug::DirtyNotReported) {
            Access::Read
        } else {
            access
        };
        let at = fetch(&*self.memory, page, asked).map_err(DmaError::Fault)?;
        let at = BusAddr { access, ..at };
        let sequence = if self.bugs.has(Bug::SequenceReadLate) {
            self.mmu.lock().rounds.sequence()
        } else {
            before
        };
        let mut mmu = self.mmu.lock();
        if mmu.state == State::Over {
            return Err(DmaError::Stopped);
        }
        let run = PageRun::single(page);
        let is_fresh = if self.bugs.has(Bug::MmWideWait) {
            mmu.rounds.is_idle_since(sequence)
        } else {
            mmu.rounds.is_fresh(run, sequence)
        };
        if self.is_apic(page) && (is_fresh || self.bugs.has(Bug::CopyOutsideTable)) {
            mmu.apic = Some(at);
        } else if is_fresh {
            mmu.table.install(at);
        } else {
            self.counters.retries.add();
        }
        Ok(())
    }

    fn set(&self, to: State) {
        let mut mmu = self.mmu.lock();
        if mmu.state != State::Over {
            mmu.state = to;
        }
    }
}

impl DmaDevice for Kvm {
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
        self.set(if hang { State::Paused } else { State::Running });
    }

    fn stats(&self) -> DeviceStats {
        self.counters.snapshot()
    }

    fn holds(&self) -> u32 {
        let mmu = self.mmu.lock();
        mmu.table.nr_held() + u32::from(mmu.apic.is_some())
    }

    fn nr_servers(&self) -> u32 {
        0
    }

    fn serve(&self) {}

    fn stop(&self) {
        let mut mmu = self.mmu.lock();
        mmu.state = State::Over;
        let all = mmu.table.all();
        mmu.zap(all);
        drop(mmu);
        self.vcpus.flush();
        self.vcpus.wait_idle();
    }
}
