//! A coprocessor behind a bus: windows of memory that both sides know, copies between them by one
//! channel of hardware, and a cache of windows that come and go by themselves.
//!
//! An endpoint holds two kinds of pinned memory, by design. A *registered* window stays until it is
//! unregistered, whatever becomes of the mapping: no start touches it. A *cached* window is made
//! for a copy from or to a virtual address and kept for the next one; a start takes it out of the
//! cache, and a worker unpins it when the channel is drained. So starts never wait and never
//! refuse, and what they were accepted for is freed later.
//!
//! The peer is a node with memory, an inbox and mirrors of the registered windows. Programs on both
//! talk through [endpoints](Endpoint). Copies between windows ([`Scif::write_to`],
//! [`Scif::read_from`]) go on while the program does, in order, but for [ends](Tail::AnyTime) that
//! overtake what was queued earlier; a mark is a place in that order which can be waited for, and a
//! signal is a value that is stored at one. What the peer
//! [maps](Scif::map_for_peer) or [uses](Scif::pages_for_peer) of a window stays pinned until the
//! peer lets go, too: an endpoint that was stopped before is a [zombie](Scif::is_zombie), whose
//! worker stays for that.
//!
//! A list of notifiers that was walked without its lock (bug 45 of the zoo) cannot be written: what
//! a lock guards is inside of it.
//!
//! ```compile_fail,E0599
//! # use lockdep::sync::Mutex;
//! fn end_all(notifiers: &Mutex<Vec<u64>>) -> u64 {
//!     notifiers.iter().sum() // there is no list without the lock
//! }
//! ```
//!
//! Linux counterpart: drivers/misc/mic/scif/, version 4.19

mod card;
mod endpoint;
mod offsets;
mod rma;

pub use card::{Card, Message, WINDOWS_MAX, What};
pub use endpoint::{
    Bound, Connecting, Endpoint, EndpointError, Listener, MESSAGES_MAX, Node, Port,
};
pub use offsets::{Offset, Offsets, SPACE_PAGES, Unit, Widen, widen};
pub use rma::{LINE, PeerMapping, PeerPages, Rma, Tail};

use crate::engine::{
    Counters, DmaFence, Doom, Doorbell, FenceEngine, Insert, Job, Keep, Next, Operation, PinCache,
    Using, WorkLost, fetch_run, ranges_of, run_of, until_done,
};
use crate::{Bug, Bugs, DeviceMemory, DeviceStats, DmaDevice, DmaError, Pinned};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::time::Duration;
use lockdep::sync::{Mutex, Waited};
use pinless_mm::addr::{PAGE_SIZE, PageIndex, PageRun};
use pinless_mm::bus::BusAddr;
use pinless_mm::mmu_notifier::{Blockable, Context, EndContext, Notifier, Range, Subscription};
use pinless_mm::primary_mmu::Access;
use std::sync::Arc;

/// How long the worker waits for the channel before it comes back later.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a peer may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A window that is cached has this many pages, where the mapping has them.
const CACHED_PAGES: u32 = 2;

/// A connected endpoint, with the channel and the worker of its node.
pub struct Scif {
    name: Box<str>,
    memory: Arc<dyn DeviceMemory>,
    bugs: Bugs,
    /// The registered windows. Taken in `release`, so nothing is pinned under it.
    rma: Mutex<Registered>,
    cache: PinCache,
    channel: FenceEngine,
    endpoint: Endpoint,
    peer: Arc<Card>,
    worker: Arc<Worker>,
    /// The last copy that was queued.
    last: Mutex<Option<DmaFence>>,
    /// Copies between windows that nobody has seen the end of.
    under_way: Mutex<Vec<rma::UnderWay>>,
    nr_servers: AtomicU32,
    is_over: AtomicBool,
    counters: Counters,
}

/// What an endpoint has registered.
struct Registered {
    offsets: Offsets,
    windows: Vec<Window>,
    is_over: bool,
}

/// A registered window: sticky.
struct Window {
    offset: Offset,
    run: PageRun,
    /// Copies under way have it, too: the pages stay pinned until the last one is over.
    pages: Arc<Pages>,
}

/// The pages of a window.
struct Pages {
    at: Vec<BusAddr>,
    /// Held for its destructor.
    _pinned: Pinned,
}

/// What the slow work of a node is told by.
struct Worker {
    bell: Doorbell,
    lent: Mutex<Lent>,
}

/// What the peer has of this node.
#[derive(Default)]
struct Lent {
    /// How often something was lent that is not back, or not looked after.
    nr: usize,
    /// What has come back and is still pinned.
    returned: Vec<Arc<Pages>>,
}

impl Worker {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            bell: Doorbell::new(),
            lent: Mutex::new("devices.scif.lent", Lent::default()),
        })
    }

    /// Lets go of what the peer has given back; whether there was any.
    fn sweep(&self) -> bool {
        let returned = core::mem::take(&mut self.lent.lock().returned);
        let nr = returned.len();
        drop(returned); // unpins with no lock held
        if nr > 0 {
            self.lent.lock().nr -= nr;
        }
        nr > 0
    }
}

/// What became of a window that was taken back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unregistered {
    /// Its pages are unpinned.
    Unpinned,
    /// The peer has it mapped, or uses pages of it: they stay pinned until it lets go.
    Lingers,
    /// There was no such window.
    Unknown,
}

/// The port of a node at which its service for windows listens.
const RMA_PORT: Port = Port(1);

/// Connects two nodes that nobody else knows.
fn connected() -> (Endpoint, Endpoint) {
    let (host, card) = (Node::new(), Node::new());
    let connect = || {
        let listener = card.bind(RMA_PORT)?.listen(1);
        let asked = host.bind(RMA_PORT)?.ask(&card, RMA_PORT)?;
        let theirs = listener.accept();
        Ok::<_, EndpointError>((asked.wait()?, theirs))
    };
    connect().expect("all ports of a new node are free, and somebody listens")
}

/// A place in the order of copies; see [`Scif::mark`].
#[derive(Clone, Debug)]
pub struct FenceMark {
    last: Option<DmaFence>,
}

impl Notifier for Scif {
    fn start<C: Context>(&self, range: &Range, _cx: &C) -> Result<(), C::Refusal> {
        if let Some(run) = run_of(&*self.memory, range)
            && self.cache.begin(run, Doom::All)
        {
            self.worker.bell.ring();
        }
        self.counters.answered(Ok(()))
    }

    fn end(&self, range: &Range, _cx: &EndContext<'_>) {
        if run_of(&*self.memory, range).is_some() {
            self.cache.end();
        }
    }

    fn release(&self, cx: &Blockable<'_>) {
        let Ok(mut rma) = cx.lock(&self.rma);
        rma.is_over = true;
        drop(rma);
        self.cache.close();
        self.worker.bell.ring();
    }
}

impl Scif {
    /// Connects an endpoint to a peer and subscribes its cache.
    pub fn connect(
        memory: &Arc<dyn DeviceMemory>,
        name: &str,
        bugs: Bugs,
    ) -> (Arc<Self>, Subscription) {
        crate::lock_order::prime();
        let rma = Registered {
            offsets: Offsets::default(),
            windows: Vec::with_capacity(WINDOWS_MAX),
            is_over: false,
        };
        let (ours, theirs) = connected();
        let nr_bytes = memory.nr_pages() as usize * PAGE_SIZE;
        let endpoint = Arc::new(Self {
            name: name.into(),
            bugs,
            rma: Mutex::new("devices.scif.rma", rma),
            cache: PinCache::new(name, memory.nr_pages().max(4)),
            channel: FenceEngine::new(),
            endpoint: ours,
            peer: Arc::new(Card::new(nr_bytes, theirs)),
            worker: Worker::new(),
            last: Mutex::new("devices.scif.last", None),
            under_way: Mutex::new("devices.scif.under_way", Vec::new()),
            nr_servers: AtomicU32::new(0),
            is_over: AtomicBool::new(false),
            counters: Counters::default(),
            memory: Arc::clone(memory),
        });
        let ranges = ranges_of(&**memory);
        let listed = memory
            .notifiers()
            .subscribe(name, ranges, Arc::clone(&endpoint));
        (endpoint, listed)
    }

    /// The other node.
    pub fn peer(&self) -> &Card {
        &self.peer
    }

    /// The program's connection to that of the peer.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Registers a window: its pages stay pinned until it is
    /// [unregistered](Self::unregister_window), and the peer has a mirror of it.
    ///
    /// # Errors
    ///
    /// [`DmaError`]; nothing was registered.
    pub fn register_window(&self, run: PageRun) -> Result<Offset, DmaError> {
        let pinned = Arc::clone(&self.memory)
            .pin(&self.name, run, Access::Write)
            .map_err(DmaError::Pin)?;
        let at = fetch_run(&*self.memory, run, Access::Write).map_err(DmaError::Fault)?;
        let pages = Arc::new(Pages {
            at,
            _pinned: pinned,
        });
        let unit = if self.bugs.has(Bug::BytesForPages) {
            Unit::Bytes
        } else {
            Unit::Pages
        };
        let mut rma = self.rma.lock();
        if rma.is_over {
            return Err(DmaError::Stopped);
        }
        let limit = WINDOWS_MAX as u32;
        let full = DmaError::LimitReached { limit };
        if rma.windows.len() == WINDOWS_MAX {
            return Err(full);
        }
        let offset = rma.offsets.take(run.nr, unit).ok_or(full)?;
        rma.windows.push(Window { offset, run, pages });
        drop(rma);
        if let Err(error) = self.ask(What::Register(offset)) {
            // In order: whenever it answers, the mirror is gone in the end.
            let _unanswered = self.peer.send(What::Unregister(offset));
            let _gone = self.remove(offset);
            return Err(error);
        }
        Ok(offset)
    }

    /// Takes a registered window back: the peer's mirror goes first, then the pages are unpinned,
    /// after all copies that were queued before, unless the peer has it mapped.
    pub fn unregister_window(&self, offset: Offset) -> Unregistered {
        let _unanswered = self.ask(What::Unregister(offset));
        let _lost = self.wait(&self.mark());
        self.remove(offset)
    }

    fn remove(&self, offset: Offset) -> Unregistered {
        let mut rma = self.rma.lock();
        let found = rma
            .windows
            .iter()
            .position(|window| window.offset == offset);
        let window = found.map(|at| rma.windows.swap_remove(at));
        if window.is_some() {
            rma.offsets.give_back(offset);
        }
        drop(rma);
        match window.map(|window| Arc::into_inner(window.pages)) {
            Some(Some(pages)) => {
                drop(pages); // unpins with no lock held
                Unregistered::Unpinned
            }
            Some(None) => Unregistered::Lingers,
            None => Unregistered::Unknown,
        }
    }

    /// Whether the endpoint was stopped and the peer still has pages of it. It copies nothing; its
    /// worker ends when the last of them has come back.
    pub fn is_zombie(&self) -> bool {
        // Relaxed: what is lent is looked up under its lock.
        self.is_over.load(Ordering::Relaxed) && self.worker.lent.lock().nr > 0
    }

    /// Waits until every copy before the mark is over.
    ///
    /// # Errors
    ///
    /// [`DmaError::Hung`] if the last of them was lost to a reset of the hardware.
    pub fn wait(&self, mark: &FenceMark) -> Result<(), DmaError> {
        let over = mark.last.as_ref().map_or(Ok(()), DmaFence::wait);
        self.retire();
        over.map_err(|WorkLost| DmaError::Hung)
    }

    fn ask(&self, what: What) -> Result<(), DmaError> {
        let answer = self.peer.send(what).ok_or(DmaError::Stopped)?;
        match answer.wait_timeout(ANSWER_TIMEOUT) {
            Waited::Done => Ok(()),
            Waited::TimedOut => Err(DmaError::Hung),
        }
    }

    /// The pages of a registered window that has `page`, and its address there, if there is one.
    fn registered(&self, page: PageIndex) -> Result<Option<(Arc<Pages>, BusAddr)>, DmaError> {
        let rma = self.rma.lock();
        if rma.is_over {
            return Err(DmaError::Stopped);
        }
        let found = rma.windows.iter().find(|window| window.run.contains(page));
        Ok(found.map(|window| {
            let at = window.pages.at[(page - window.run.first) as usize];
            (Arc::clone(&window.pages), at)
        }))
    }

    /// The cached window that has a page, made now if there is none.
    fn cached(&self, page: PageIndex, access: Access) -> Result<Option<Using<'_>>, DmaError> {
        let last = self.memory.nr_pages();
        let run = PageRun::new(page, CACHED_PAGES.min(last - page));
        let how = if self.bugs.has(Bug::UnionWrong) {
            Widen::FromTheOldStart
        } else {
            Widen::Union
        };
        let clip = |run: PageRun| PageRun::new(run.first, run.nr.min(last - run.first));
        let run = match self.cache.overlapping(run) {
            Some(found) if found.hull(run) != found => clip(widen(run, found, how)),
            _ => run,
        };
        let insert = if self.bugs.has(Bug::InsertUnchecked) {
            Insert::Unchecked
        } else {
            Insert::Checked
        };
        let _rma = self.bugs.has(Bug::PinUnderRmaLock).then(|| self.rma.lock());
        self.cache
            .get(&self.memory, run, access, insert, &self.counters)
    }

    fn transfer(
        &self,
        page: PageIndex,
        offset: usize,
        operation: Operation<'_>,
    ) -> Result<(), DmaError> {
        if let Some((_pinned, at)) = self.registered(page)? {
            return self.copy(at, offset, operation);
        }
        let using = until_done(|| self.cached(page, operation.access()))?;
        let at = using.find(page).ok_or(DmaError::Unregistered { page })?;
        let outcome = self.copy(at, offset, operation);
        if self.bugs.has(Bug::AdmissionInverted) {
            self.cache.discard(using, Keep::Nowhere);
        } else if self.bugs.has(Bug::InTwoLists) {
            self.cache.discard(using, Keep::InTheTree);
        } else {
            drop(using);
        }
        self.worker.bell.ring();
        outcome
    }

    /// Has the channel copy between a page and the peer's memory.
    fn copy(&self, at: BusAddr, offset: usize, operation: Operation<'_>) -> Result<(), DmaError> {
        let there = at.page as usize * PAGE_SIZE + offset;
        let job = match &operation {
            Operation::Read(_) => Job::new(at, offset, &operation),
            Operation::Write(from) => {
                self.peer.store(there, from);
                Job::new(at, offset, &operation)
            }
        };
        self.submit(&job)?;
        match operation {
            Operation::Read(into) => {
                let taken = Operation::Read(&mut *into);
                job.finish(taken, &self.counters)?;
                self.peer.store(there, into);
                Ok(())
            }
            Operation::Write(_) => job.finish(operation, &self.counters),
        }
    }

    /// The worker of the node: unpins what the peer has given back, and what is doomed, when the
    /// channel is drained.
    fn work(&self) -> Next {
        if self.worker.sweep() {
            return Next::Step;
        }
        if self.bugs.has(Bug::WorkerBlocked) && self.cache.nr_pinned().1 > 0 {
            // The fault: what a peer owes comes before what can be had now.
            if let Some(answer) = self.peer.send(What::Fence) {
                let _late = answer.wait_timeout(ANSWER_TIMEOUT);
            }
        }
        let drained = self
            .mark()
            .last
            .is_none_or(|last| last.wait_timeout(DRAIN_TIMEOUT) == Waited::Done);
        if !drained {
            if self.bugs.has(Bug::LeaksOnHang) {
                self.cache.leak();
            }
            return Next::SleepFor(DRAIN_TIMEOUT);
        }
        if self.cache.reap_one() {
            return Next::Step;
        }
        // Relaxed: the bell that rings after it was set orders it.
        if self.is_over.load(Ordering::Relaxed) && !self.is_zombie() {
            Next::End
        } else {
            Next::Sleep
        }
    }
}

impl DmaDevice for Scif {
    fn name(&self) -> &str {
        &self.name
    }

    fn register(&self, run: PageRun) -> Result<(), DmaError> {
        self.register_window(run).map(|_| ())
    }

    fn unregister(&self, run: PageRun) {
        let rma = self.rma.lock();
        let inside = rma
            .windows
            .iter()
            .filter(|window| window.run.hull(run) == run);
        let offsets: Vec<Offset> = inside.map(|window| window.offset).collect();
        drop(rma);
        offsets
            .into_iter()
            .for_each(|offset| _ = self.unregister_window(offset));
        self.cache.forget(run);
        self.worker.bell.ring();
    }

    fn read(&self, page: PageIndex, offset: usize, into: &mut [u8]) -> Result<(), DmaError> {
        self.transfer(page, offset, Operation::Read(into))
    }

    fn write(&self, page: PageIndex, offset: usize, from: &[u8]) -> Result<(), DmaError> {
        self.transfer(page, offset, Operation::Write(from))
    }

    fn wait_idle(&self) {
        self.channel.wait_idle();
        self.cache.reap_all();
    }

    /// The channel hangs; the peer goes on.
    fn hang(&self, hang: bool) {
        self.channel.hang(hang);
    }

    fn stats(&self) -> DeviceStats {
        let mut stats = self.counters.snapshot();
        let (pinned, doomed) = self.cache.nr_pinned();
        let rma = self.rma.lock();
        let sticky: u32 = rma.windows.iter().map(|window| window.run.nr).sum();
        drop(rma);
        stats.pinned = u64::from(pinned + sticky);
        stats.doomed = u64::from(doomed);
        stats
    }

    fn holds(&self) -> u32 {
        let sticky: u32 = self
            .rma
            .lock()
            .windows
            .iter()
            .map(|window| window.run.nr)
            .sum();
        self.cache.nr_live() + sticky
    }

    fn nr_servers(&self) -> u32 {
        3
    }

    fn serve(&self) {
        match self.nr_servers.fetch_add(1, Ordering::Relaxed) {
            0 => self.channel.serve(&*self.memory, &self.counters),
            1 => self.worker.bell.serve(|| self.work()),
            _ => self.peer.serve(),
        }
    }

    fn stop(&self) {
        self.channel.stop();
        // The last copy may be over and not be told yet.
        let _lost = self.wait(&self.mark());
        self.endpoint.close();
        let mut rma = self.rma.lock();
        rma.is_over = true;
        let windows = core::mem::take(&mut rma.windows);
        drop(rma);
        drop(windows);
        self.cache.close();
        self.cache.drain();
        self.peer.stop();
        self.is_over.store(true, Ordering::Relaxed);
        self.worker.bell.ring();
    }
}
