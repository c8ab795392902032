//! Buffers of user memory in a graphics card whose driver cancels in a worker.
//!
//! A start finds the objects it overlaps, takes them out of the tree, hands them to a worker, and
//! waits until the worker has unbound them. The tree has a lock that never sleeps; what sleeps is
//! the worker: it waits for jobs, and takes the lock of the whole card to unbind.
//!
//! A second start over an object that is being unbound finds it out of the tree, and has to wait
//! for the same worker all the same.
//!
//! Linux counterpart: drivers/gpu/drm/i915/i915_gem_userptr.c, version 4.19

use crate::engine::{
    Counters, Doorbell, FenceEngine, Job, Next, Operation, Resv, Rounds, Ticket, Tlb, Usage, fetch,
    ranges_of, reserve, run_of, until_done,
};
use crate::{Bug, Bugs, DeviceMemory, DeviceStats, DmaDevice, DmaError};
use core::sync::atomic::{AtomicU32, Ordering};
use lockdep::sync::{Fence, Mutex, ShortLock};
use pinless_mm::addr::{PageIndex, PageRun};
use pinless_mm::mmu_notifier::{Blockable, Context, EndContext, Notifier, Range, Subscription};
use std::sync::Arc;

/// How many objects the card can have.
const OBJECTS_MAX: usize = 16;

/// The card, and its driver.
pub struct I915y2018 {
    name: Box<str>,
    memory: Arc<dyn DeviceMemory>,
    bugs: Bugs,
    engine: FenceEngine,
    tree: ShortLock<Tree>,
    /// Held to bind and to unbind, never in a callback.
    card: Mutex<()>,
    worker: Doorbell,
    nr_servers: AtomicU32,
    counters: Counters,
}

/// The objects, and what the hardware was told of them.
struct Tree {
    objects: Vec<Object>,
    tlb: Tlb,
    rounds: Rounds,
    is_over: bool,
}

struct Object {
    run: PageRun,
    resv: Arc<Resv>,
    /// Signals when the worker has unbound the object; made anew each time it has.
    unbound: Fence,
    is_cancelled: bool,
    /// Jobs may run in it: they do in objects that are bound, and in no others.
    is_bound: bool,
    /// It takes no job any more, and is about to go.
    is_closed: bool,
    /// Signals when the lookup of its pages that runs now is over.
    acquiring: Option<Fence>,
}

/// What a start has to wait for.
type Waits = [Option<Fence>; OBJECTS_MAX];

impl Notifier for I915y2018 {
    fn start<C: Context>(&self, range: &Range, cx: &C) -> Result<(), C::Refusal> {
        let Some(run) = run_of(&*self.memory, range) else {
            return Ok(());
        };
        self.counters.answered(self.invalidate(run, cx))
    }

    fn end(&self, range: &Range, cx: &EndContext<'_>) {
        if run_of(&*self.memory, range).is_some() {
            cx.short(&self.tree).rounds.end();
        }
    }

    fn release(&self, cx: &Blockable<'_>) {
        let mut tree = cx.short(&self.tree);
        tree.is_over = true;
        let all = tree.tlb.all();
        let waits = self.cancel(&mut tree, all);
        drop(tree);
        self.worker.ring();
        for fence in waits.iter().flatten() {
            let Ok(()) = cx.settle(fence);
        }
    }
}

impl I915y2018 {
    /// Makes a card and subscribes its driver.
    pub(crate) fn attach(
        memory: &Arc<dyn DeviceMemory>,
        name: &str,
        bugs: Bugs,
    ) -> (Arc<Self>, Subscription) {
        crate::lock_order::prime();
        let tree = Tree {
            objects: Vec::with_capacity(OBJECTS_MAX),
            tlb: Tlb::new(memory.nr_pages()),
            rounds: Rounds::new(),
            is_over: false,
        };
        let device = Arc::new(Self {
            name: name.into(),
            bugs,
            engine: FenceEngine::new(),
            tree: ShortLock::new("devices.i915.tree", tree),
            card: Mutex::new("devices.i915.struct_mutex", ()),
            worker: Doorbell::new(),
            nr_servers: AtomicU32::new(0),
            counters: Counters::default(),
            memory: Arc::clone(memory),
        });
        let ranges = ranges_of(&**memory);
        let listed = memory
            .notifiers()
            .subscribe(name, ranges, Arc::clone(&device));
        (device, listed)
    }

    fn invalidate<C: Context>(&self, run: PageRun, cx: &C) -> Result<(), C::Refusal> {
        let mut tree = cx.short(&self.tree);
        if self.is_busy(&tree, run) {
            drop(tree);
            cx.would_block()?;
            tree = cx.short(&self.tree);
        }
        tree.rounds.begin(run);
        let waits = self.cancel(&mut tree, run);
        drop(tree);
        self.worker.ring();
        if self.bugs.has(Bug::FlushSkipped) {
            return Ok(());
        }
        waits
            .iter()
            .flatten()
            .try_for_each(|fence| cx.settle(fence))
    }

    /// Whether a start over `run` has to wait for anything.
    fn is_busy(&self, tree: &Tree, run: PageRun) -> bool {
        let mut objects = tree
            .objects
            .iter()
            .filter(|object| object.run.overlaps(run));
        objects.any(|object| object.is_cancelled || object.is_bound)
    }

    /// Hands the objects that overlap `run` to the worker. Whoever looks their pages up now does so
    /// in vain: the round is open.
    fn cancel(&self, tree: &mut Tree, run: PageRun) -> Waits {
        let mut waits: Waits = Default::default();
        let objects = tree.objects.iter_mut();
        let objects = objects.filter(|object| object.run.overlaps(run));
        for (object, wait) in objects.zip(&mut waits) {
            if self.bugs.has(Bug::WaitsForItself)
                && let Some(acquiring) = &object.acquiring
            {
                *wait = Some(acquiring.clone());
            } else if object.is_cancelled {
                if !self.bugs.has(Bug::DetachedIsHidden) {
                    *wait = Some(object.unbound.clone());
                }
            } else if object.is_bound {
                object.is_cancelled = true;
                *wait = Some(object.unbound.clone());
            }
        }
        waits
    }

    /// The worker: unbinds one object that was cancelled.
    fn unbind_one(&self) -> Next {
        let tree = self.tree.lock();
        let found = tree.objects.iter().find(|object| object.is_cancelled);
        let Some((run, resv)) = found.map(|object| (object.run, Arc::clone(&object.resv))) else {
            return if tree.is_over { Next::End } else { Next::Sleep };
        };
        drop(tree);
        let _card = self.card.lock();
        let mut pending = crate::engine::Pending::new();
        resv.for_each_pending(Usage::Bookkeep, |fence| pending.add(fence));
        pending.wait();
        let fresh = Fence::new("devices.i915.unbound");
        let mut tree = self.tree.lock();
        let Tree { objects, tlb, .. } = &mut *tree;
        tlb.zap(run);
        let same = |object: &&mut Object| Arc::ptr_eq(&object.resv, &resv);
        let unbound = objects.iter_mut().find(same).map(|object| {
            (object.is_cancelled, object.is_bound) = (false, false);
            core::mem::replace(&mut object.unbound, fresh)
        });
        drop(tree);
        if let Some(unbound) = unbound {
            unbound.signal();
        }
        Next::Step
    }

    fn submit(
        &self,
        page: PageIndex,
        offset: usize,
        operation: &Operation<'_>,
    ) -> Result<Job, DmaError> {
        until_done(|| {
            let job = self.try_submit(page, offset, operation)?;
            Ok(self.counters.tried(job))
        })
    }

    fn try_submit(
        &self,
        page: PageIndex,
        offset: usize,
        operation: &Operation<'_>,
    ) -> Result<Option<Job>, DmaError> {
        let acquired = Fence::new("devices.i915.acquired");
        let mut tree = self.tree.lock();
        if tree.is_over {
            return Err(DmaError::Stopped);
        }
        let (known, sequence) = (
            tree.tlb.get(page, operation.access()),
            tree.rounds.sequence(),
        );
        let object = object_of(&mut tree, page)?;
        let resv = Arc::clone(&object.resv);
        object.acquiring = known.is_none().then(|| acquired.clone());
        drop(tree);
        let at = known.map_or_else(
            || {
                self.counters.faults.add();
                fetch(&*self.memory, page, operation.access())
            },
            Ok,
        );
        acquired.signal();
        let at = at.map_err(DmaError::Fault)?;
        let job = Job::new(at, offset, operation);
        let _card = self.card.lock();
        let ticket = Ticket::begin();
        let reserved = reserve(&resv, &ticket);
        let Ok(slot) = reserved.reserve() else {
            return Ok(None);
        };
        let mut tree = self.tree.lock();
        let is_fresh = tree.rounds.is_fresh(PageRun::single(page), sequence);
        let is_over = tree.is_over;
        let object = object_of(&mut tree, page)?;
        object.acquiring = None;
        if is_over {
            return Err(DmaError::Stopped);
        }
        if object.is_cancelled || !is_fresh || !Arc::ptr_eq(&object.resv, &resv) {
            return Ok(None);
        }
        // Bound before the job is queued: a start that comes now finds the object in use.
        object.is_bound = true;
        tree.tlb.install(at);
        drop(tree);
        slot.add(job.fence(), Usage::Bookkeep);
        let submitted = self.engine.submit(&job);
        if submitted != Ok(true) {
            job.abandon();
        }
        Ok(submitted?.then_some(job))
    }

    fn transfer(
        &self,
        page: PageIndex,
        offset: usize,
        operation: Operation<'_>,
    ) -> Result<(), DmaError> {
        let job = self.submit(page, offset, &operation)?;
        job.finish(operation, &self.counters)
    }
}

fn object_of(tree: &mut Tree, page: PageIndex) -> Result<&mut Object, DmaError> {
    let mut open = tree.objects.iter_mut().filter(|object| !object.is_closed);
    let found = open.find(|object| object.run.contains(page));
    found.ok_or(DmaError::Unregistered { page })
}

impl DmaDevice for I915y2018 {
    fn name(&self) -> &str {
        &self.name
    }

    fn register(&self, run: PageRun) -> Result<(), DmaError> {
        let object = Object {
            run,
            resv: Arc::new(Resv::new()),
            unbound: Fence::new("devices.i915.unbound"),
            is_cancelled: false,
            is_bound: false,
            is_closed: false,
            acquiring: None,
        };
        let mut tree = self.tree.lock();
        if tree.is_over {
            return Err(DmaError::Stopped);
        }
        if tree.objects.len() == OBJECTS_MAX {
            let limit = OBJECTS_MAX as u32;
            return Err(DmaError::LimitReached { limit });
        }
        tree.objects.push(object);
        Ok(())
    }

    fn unregister(&self, run: PageRun) {
        let is_inside = |object: &Object| object.run.hull(run) == run;
        let mut tree = self.tree.lock();
        let inside = tree.objects.iter_mut().filter(|object| is_inside(object));
        inside.for_each(|object| object.is_closed = true);
        loop {
            let waits = self.cancel(&mut tree, run);
            drop(tree);
            self.worker.ring();
            waits.iter().flatten().for_each(Fence::wait);
            tree = self.tree.lock();
            // A start may have cancelled one again, for a page that another object has, too.
            let mut inside = tree.objects.iter().filter(|object| is_inside(object));
            if inside.all(|object| !object.is_closed || !object.is_cancelled) {
                break;
            }
        }
        let mut gone = Vec::with_capacity(OBJECTS_MAX);
        let is_gone = |object: &Object| object.is_closed && is_inside(object);
        while let Some(at) = tree.objects.iter().position(is_gone) {
            gone.push(tree.objects.swap_remove(at));
        }
        drop(tree);
    }

    fn read(&self, page: PageIndex, offset: usize, into: &mut [u8]) -> Result<(), DmaError> {
        self.transfer(page, offset, Operation::Read(into))
    }

    fn write(&self, page: PageIndex, offset: usize, from: &[u8]) -> Result<(), DmaError> {
        self.transfer(page, offset, Operation::Write(from))
    }

    fn wait_idle(&self) {
        self.engine.wait_idle();
    }

    fn hang(&self, hang: bool) {
        self.engine.hang(hang);
    }

    fn stats(&self) -> DeviceStats {
        self.counters.snapshot()
    }

    fn holds(&self) -> u32 {
        self.tree.lock().tlb.nr_held()
    }

    fn nr_servers(&self) -> u32 {
        2
    }

    fn serve(&self) {
        match self.nr_servers.fetch_add(1, Ordering::Relaxed) {
            0 => self.engine.serve(&*self.memory, &self.counters),
            _ => self.worker.serve(|| self.unbind_one()),
        }
    }

    fn stop(&self) {
        let mut tree = self.tree.lock();
        tree.is_over = true;
        let all = tree.tlb.all();
        // With the same lock: the worker ends once it is over and nothing is cancelled, and a start
        // that came after that would hand it an object in vain.
        let _unbound: Waits = self.cancel(&mut tree, all);
        drop(tree);
        self.engine.stop();
        self.tree.lock().tlb.zap(all);
        self.worker.ring();
    }
}
