//! Buffers of user memory in a graphics card whose driver waits for nothing: it pins.
//!
//! A start does nothing but make the sequence of the object move, which the core does. Jobs go on
//! in pages that stay pinned; the next submission sees that the sequence has moved, and pins what
//! is there now. What a start was accepted for is *unmapped, not freed*: a worker lets go of it
//! when its jobs are over, so that memory comes back in bounded time.
//!
//! Linux counterpart: drivers/gpu/drm/i915/gem/i915_gem_userptr.c

use crate::engine::{
    Counters, Doorbell, FenceEngine, Job, Next, Operation, Pending, Registrations, Resv, Ticket,
    Usage, fetch_run, interval_of, reserve, until_done,
};
use crate::{Bugs, DeviceMemory, DeviceStats, DmaDevice, DmaError, Pinned};
use core::sync::atomic::{AtomicU32, Ordering};
use lockdep::sync::ShortLock;
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::bus::BusAddr;
use pinless_mm::mmu_notifier::{
    Blockable, Context, IntervalNotifier, IntervalSubscription, Notifier, Range,
};
use pinless_mm::primary_mmu::Access;
use std::sync::Arc;

/// The card, and its driver.
pub struct I915 {
    shared: Arc<Shared>,
    objects: Registrations<Object>,
    nr_servers: AtomicU32,
}

struct Shared {
    name: Box<str>,
    memory: Arc<dyn DeviceMemory>,
    engine: FenceEngine,
    retire: Doorbell,
    counters: Counters,
}

/// An object of user memory.
struct Object {
    shared: Arc<Shared>,
    run: PageRun,
    resv: Resv,
    pages: ShortLock<Pages>,
}

/// The pages of one object.
struct Pages {
    pinned: Option<(Pinned, Vec<BusAddr>)>,
    /// A start came since they were pinned.
    is_doomed: bool,
    is_over: bool,
}

impl Notifier for Object {
    fn start<C: Context>(&self, _range: &Range, cx: &C) -> Result<(), C::Refusal> {
        cx.short(&self.pages).is_doomed = true;
        self.shared.retire.ring();
        self.shared.counters.answered(Ok(()))
    }

    fn release(&self, cx: &Blockable<'_>) {
        let mut pages = cx.short(&self.pages);
        (pages.is_doomed, pages.is_over) = (true, true);
        drop(pages);
        self.shared.retire.ring();
        let mut pending = Pending::new();
        self.resv
            .for_each_pending(Usage::Bookkeep, |fence| pending.add(fence));
        let Ok(()) = pending.settle(cx);
    }
}

impl IntervalNotifier for Object {
    type Lock = ShortLock<Pages>;

    fn lock(&self) -> &Self::Lock {
        &self.pages
    }
}

impl Object {
    fn pending(&self) -> Pending {
        let mut pending = Pending::new();
        self.resv
            .for_each_pending(Usage::Bookkeep, |fence| pending.add(fence));
        pending
    }

    /// Lets go of its pages: nobody uses it any more.
    fn quiesce(&self) {
        self.pages.lock().is_doomed = true;
        self.retire();
    }

    /// Lets go of pages that a start was accepted for, if no job uses them. The lock of the buffer
    /// keeps submissions out meanwhile.
    fn retire(&self) {
        let ticket = Ticket::begin();
        let _reserved = reserve(&self.resv, &ticket);
        if !self.pages.lock().is_doomed {
            return;
        }
        self.pending().wait();
        let mut pages = self.pages.lock();
        let unpinned = pages.pinned.take();
        if !pages.is_over {
            pages.is_doomed = false;
        }
        drop(pages);
        drop(unpinned);
    }
}

impl I915 {
    /// Makes a card, which subscribes each object by itself.
    pub(crate) fn attach(memory: &Arc<dyn DeviceMemory>, name: &str, _bugs: Bugs) -> Arc<Self> {
        crate::lock_order::prime();
        let shared = Arc::new(Shared {
            name: name.into(),
            memory: Arc::clone(memory),
            engine: FenceEngine::new(),
            retire: Doorbell::new(),
            counters: Counters::default(),
        });
        Arc::new(Self {
            shared,
            objects: Registrations::new(),
            nr_servers: AtomicU32::new(0),
        })
    }

    fn submit(
        &self,
        page: PageIndex,
        offset: usize,
        operation: &Operation<'_>,
    ) -> Result<Job, DmaError> {
        let found = self.objects.find(|object| object.run.contains(page));
        let object = found.ok_or(DmaError::Unregistered { page })?;
        until_done(|| self.try_submit(&object, page, offset, operation))
    }

    fn try_submit(
        &self,
        subscription: &IntervalSubscription<Object>,
        page: PageIndex,
        offset: usize,
        operation: &Operation<'_>,
    ) -> Result<Option<Job>, DmaError> {
        let object = &**subscription.notifier();
        self.pin(subscription)?;
        let ticket = Ticket::begin();
        let reserved = reserve(&object.resv, &ticket);
        let Ok(slot) = reserved.reserve() else {
            return Ok(None);
        };
        let pages = object.pages.lock();
        if pages.is_over {
            return Err(DmaError::Stopped);
        }
        if pages.is_doomed {
            return Ok(None);
        }
        let Some(at) = pages
            .pinned
            .as_ref()
            .map(|(_, at)| at[(page - object.run.first) as usize])
        else {
            return Ok(None);
        };
        drop(pages);
        // The pages cannot be let go of before the lock of the buffer is.
        let job = Job::new(at, offset, operation);
        if !self.shared.engine.submit(&job)? {
            return Ok(None);
        }
        slot.add(job.fence(), Usage::Bookkeep);
        Ok(Some(job))
    }

    /// Has the object's pages pinned, as they are now.
    fn pin(&self, subscription: &IntervalSubscription<Object>) -> Result<(), DmaError> {
        let object = &**subscription.notifier();
        let pages = object.pages.lock();
        if pages.is_over {
            return Err(DmaError::Stopped);
        }
        let (is_pinned, is_doomed) = (pages.pinned.is_some(), pages.is_doomed);
        drop(pages);
        if is_doomed {
            object.retire();
        } else if is_pinned {
            return Ok(());
        }
        let seen = subscription.read_begin();
        let shared = &*self.shared;
        shared.counters.faults.add();
        let pinned = Arc::clone(&shared.memory)
            .pin(&shared.name, object.run, Access::Write)
            .map_err(DmaError::Pin)?;
        let at = fetch_run(&*shared.memory, object.run, Access::Write).map_err(DmaError::Fault)?;
        let mut new = Some((pinned, at));
        let mut pages = subscription.lock();
        if !subscription.read_retry(seen, &pages) && pages.pinned.is_none() {
            pages.pinned = new.take();
            pages.is_doomed = false;
        } else {
            shared.counters.retries.add();
        }
        drop(pages);
        drop(new);
        Ok(())
    }

    fn transfer(
        &self,
        page: PageIndex,
        offset: usize,
        operation: Operation<'_>,
    ) -> Result<(), DmaError> {
        let job = self.submit(page, offset, &operation)?;
        job.finish(operation, &self.shared.counters)
    }

    /// The worker: looks at all objects, and lets go of what is doomed.
    fn retire(&self) -> Next {
        for object in self.objects.all() {
            object.notifier().retire();
        }
        if self.shared.engine.is_stopped() {
            Next::End
        } else {
            Next::Sleep
        }
    }
}

impl DmaDevice for I915 {
    fn name(&self) -> &str {
        &self.shared.name
    }

    fn register(&self, run: PageRun) -> Result<(), DmaError> {
        let pages = Pages {
            pinned: None,
            is_doomed: false,
            is_over: false,
        };
        let object = Arc::new(Object {
            shared: Arc::clone(&self.shared),
            run,
            resv: Resv::new(),
            pages: ShortLock::new("devices.i915.pages", pages),
        });
        let (start, end) = interval_of(&*self.shared.memory, run);
        let notifiers = self.shared.memory.notifiers();
        let subscribed = notifiers.subscribe_interval(&self.shared.name, start, end, object);
        let subscription = subscribed.map_err(|_| DmaError::Stopped)?;
        self.objects.add(subscription)
    }

    fn unregister(&self, run: PageRun) {
        let is_inside = |object: &Object| object.run.hull(run) == run;
        self.objects.remove(is_inside, Object::quiesce);
    }

    fn read(&self, page: PageIndex, offset: usize, into: &mut [u8]) -> Result<(), DmaError> {
        self.transfer(page, offset, Operation::Read(into))
    }

    fn write(&self, page: PageIndex, offset: usize, from: &[u8]) -> Result<(), DmaError> {
        self.transfer(page, offset, Operation::Write(from))
    }

    fn wait_idle(&self) {
        self.shared.engine.wait_idle();
        for object in self.objects.all() {
            object.notifier().retire();
        }
    }

    fn hang(&self, hang: bool) {
        self.shared.engine.hang(hang);
    }

    fn stats(&self) -> DeviceStats {
        let mut stats = self.shared.counters.snapshot();
        for object in self.objects.all() {
            let pages = object.notifier().pages.lock();
            if pages.pinned.is_some() {
                let nr = u64::from(object.notifier().run.nr);
                stats.pinned += nr;
                stats.doomed += if pages.is_doomed { nr } else { 0 };
            }
        }
        stats
    }

    fn holds(&self) -> u32 {
        self.stats().pinned as u32
    }

    fn nr_servers(&self) -> u32 {
        2
    }

    fn serve(&self) {
        let shared = &*self.shared;
        match self.nr_servers.fetch_add(1, Ordering::Relaxed) {
            0 => shared.engine.serve(&*shared.memory, &shared.counters),
            _ => shared.retire.serve(|| self.retire()),
        }
    }

    fn stop(&self) {
        self.shared.engine.stop();
        self.shared.retire.ring();
        self.objects.close(Object::quiesce);
    }
}
